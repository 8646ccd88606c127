"""Where the settings of a run come from: a TOML file, the command line, or the run's own file, in that order.

Knows the names and types of `TrainConfig` and nothing of what they mean. An unknown key is an error.
"""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from rl.config import EnvSettings, TrainConfig

CONFIG: Final = "config.json"
"""What a run writes its settings to."""

REFUSED: Final = {
    "top_p": "training samples from the whole distribution: log-probs of a truncated one are not the policy's",
    "top_k": "training samples from the whole distribution: log-probs of a truncated one are not the policy's",
    "min_p": "training samples from the whole distribution: log-probs of a truncated one are not the policy's",
    "lora_vision": "adapters are put on the language model only: vLLM loads none of a vision tower",
}
"""Options that other trainers have and this one cannot offer, and why."""


def _options(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _convert(name: str, text: str, annotation: Any) -> Any:
    """A command-line word as the type of its field."""
    options = _options(annotation)
    if text.lower() == "none" and type(None) in options:
        return None
    if any(typing.get_origin(option) is tuple for option in options) and ("," in text or str not in options):
        return tuple(part for part in text.split(",") if part)
    if bool in options:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--{name} {text}: true or false")
        return text.lower() == "true"
    for kind in (int, float):
        if kind in options:
            try:
                return kind(text)
            except ValueError:
                raise ValueError(f"--{name} {text}: not {'a whole number' if kind is int else 'a number'}") from None
    return text


def converted_setting(name: str, text: str, kind: type[EnvSettings]) -> Any:
    """A command-line word as the type of a field of `kind`.

    Raises:
        ValueError: If it cannot be one.
    """
    return _convert(name, text, typing.get_type_hints(kind)[name])


def _check_names(names: Iterable[str], where: str, kind: type[EnvSettings] = TrainConfig) -> None:
    known = {item.name for item in fields(kind)}
    for name in sorted(REFUSED.keys() & set(names)):
        raise ValueError(f"{where}: {name} is not offered: {REFUSED[name]}")
    check_known(names, known, where)


def check_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses unknown names, with what may have been meant.

    Raises:
        ValueError: If there are any.
    """
    known = sorted(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        near = {name: get_close_matches(name, known, 1, cutoff=0.8) for name in unknown}
        said = ", ".join(f"{name} ({found[0]}?)" if found else name for name, found in near.items())
        raise ValueError(f"{where}: unknown {said}; known: {', '.join(known)}")


def _typed(name: str, value: Any, annotation: Any, where: str) -> Any:
    """A value of a file as the type of its field; a list is a tuple, a whole number is a number too."""
    value = tuple(value) if isinstance(value, list) else value
    options = _options(annotation)
    words = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if type(value) in options or (words and any(typing.get_origin(option) is tuple for option in options)):
        return value
    if float in options and type(value) is int:
        return float(value)
    raise ValueError(f"{where}: {name} {value!r} is not of type {getattr(annotation, '__name__', annotation)}")


def checked_settings(table: Mapping[str, Any], where: str, kind: type[EnvSettings] = TrainConfig) -> dict[str, Any]:
    """Settings from a file, as fields of `kind`.

    Raises:
        ValueError: On an unknown name or a value of the wrong type; the message says where.
    """
    _check_names(table, where, kind)
    annotations = typing.get_type_hints(kind)
    return {name: _typed(name, value, annotations[name], where) for name, value in table.items()}


def resumed_settings(words: Sequence[str]) -> dict[str, Any]:
    """The settings that the run in `--output` was started with.

    Raises:
        FileNotFoundError: If there is no run.
    """
    path = Path(read_config(words).output) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no run to resume")
    written = json.loads(path.read_text("utf-8"))
    return checked_settings({name: value for name, value in written.items() if value is not None}, str(path))


def read_config(words: Sequence[str], base: Mapping[str, Any] | None = None) -> TrainConfig:
    """From command-line words: `[settings.toml] [--key value …]`, on top of `base`.

    Raises:
        ValueError: On an unknown key, a value of the wrong type, or a combination that cannot work.
    """
    rest = list(words)
    settings: dict[str, Any] = dict(base or {})
    annotations = typing.get_type_hints(TrainConfig)
    if rest and not rest[0].startswith("--"):
        path = Path(rest.pop(0))
        table = tomllib.loads(path.read_text("utf-8"))
        if "arms" in table:
            raise ValueError(f"{path} is a recipe of several stages: python -m rl.reproduce {path}")
        settings |= checked_settings(table, str(path))
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or (not equals and not rest):
            raise ValueError(f"{word}: expected --key value")
        _check_names([name], word)
        settings[name] = _convert(name, text if equals else rest.pop(0), annotations[name])
    return TrainConfig(**settings)
