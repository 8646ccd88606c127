"""The configuration of a run: one flat record, from defaults, a TOML recipe and `--key value`, in that order.

Knows names, types and ranges; nothing else reads a command line or a file of settings. An unknown key is an error.
"""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from rl.masking import KEEP_STOPS

DTYPES: Final = ("float32", "bfloat16", "float16")
CONFIG: Final = "config.json"
"""What a run writes its settings to."""


_LEAST: Final = {
    "sft_tasks": 3,  # a third of them in each easier stage
    "sft_questions": 1,
    "sft_rows": 1,
    "sft_probe_every": 1,
    "sft_probe_episodes": 1,
    "prompts_per_step": 1,
    "max_turn_tokens": 1,
    "eval_episodes": 1,
    "save_every": 1,
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides a run. The defaults train a tiny model from scratch on a CPU in minutes.

    Attributes:
        env: Environment id.
        source: Where training tasks come from, such as `odinw:/path`; None renders them.
        eval_source: The same for the held-out evaluation; None: `source`.
        tasks: Task types or a group; None for the id's own.
        difficulty: 1 to 5 of rendered tasks; None for the ordinary range.
        tools: Tools of the environment; None for the id's own.
        reward: A reward preset.
        instructions: How much the environment explains; None for the id's own.
        start: `scratch` (a tiny model, cold-started), `tiny` (the shipped cold-started one), a directory or a hub name.
        output: Folder of the run.
        seed: Of every generator.
        device, dtype: Of the model.

        cold_start: Whether to run SFT on oracle trajectories first; None: only from `scratch`.
        sft_tasks: Tasks in the fixed cold-start set; a third as many easier ones come before them.
        sft_questions: Most questions about one set of images in a row, beside the easier ones'.
        sft_rows: Rows per update.
        sft_steps: Most updates.
        sft_learning_rate, sft_weight_decay: Of AdamW.
        sft_zoom: How often the oracle zooms first, where the environment has that tool.
        sft_stop_iou, sft_stop_type_iou, sft_stop_format: The cold start ends when the probe's mean IoU over grounding
            types, its least IoU of any of them, and its format rate reach these.
        sft_probe_every, sft_probe_episodes: Updates between probes, and greedy episodes of each (`val` split).

        steps: GRPO updates.
        prompts_per_step, group_size: Tasks per update, and attempts at each.
        workers: Processes that make the scenes of coming updates; 0: they are made where they are needed.
        temperature: Of sampling; log-probs are those of the tempered distribution.
        max_turn_tokens: Longest turn.
        learning_rate, weight_decay, warmup, final_learning_rate: AdamW's; linear warm-up, then linear to a share.
        clip_low, clip_high, beta: Of the surrogate and the KL to the reference.
        normalise_advantages: Divide by the group's standard deviation, as GRPO does; Dr.GRPO does not.
        mask_invalid_actions: Do not train on turns that the environment refused.
        keep_stops: Stop reasons whose trajectories are trained on.
        count_masked: Whether masked trajectories enter their group's mean and deviation.
        divide_by_masked: Whether their tokens enter the loss's denominator.
        max_grad_norm: Gradients are clipped to this.

        eval_every: GRPO updates between evaluations on the probe's episodes; 0: only before and after.
        eval_episodes: Episodes of the evaluation before and after GRPO, greedy and sampled.
        save_every: Updates between checkpoints.
    """

    env: str = "MultiImageTiny-v0"
    source: str | None = None
    eval_source: str | None = None
    tasks: str | tuple[str, ...] | None = None
    difficulty: int | None = None
    tools: tuple[str, ...] | None = None
    reward: str = "grounding"
    instructions: str | None = None
    start: str = "scratch"
    output: str = "runs/tiny"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    cold_start: bool | None = None
    sft_tasks: int = 4500
    sft_questions: int = 3
    sft_rows: int = 16
    sft_steps: int = 2500
    sft_learning_rate: float = 2e-3
    sft_weight_decay: float = 0.01
    sft_zoom: float = 0.5
    sft_stop_iou: float = 0.44
    sft_stop_type_iou: float = 0.22
    sft_stop_format: float = 0.95
    sft_probe_every: int = 50
    sft_probe_episodes: int = 280

    steps: int = 350
    prompts_per_step: int = 28
    workers: int = 0
    group_size: int = 8
    temperature: float = 1.0
    max_turn_tokens: int = 24
    learning_rate: float = 8e-4
    weight_decay: float = 0.0
    warmup: int = 30
    final_learning_rate: float = 0.1
    clip_low: float = 0.2
    clip_high: float = 0.28
    beta: float = 0.0
    normalise_advantages: bool = False
    mask_invalid_actions: bool = False
    keep_stops: tuple[str, ...] = tuple(stop for stop, kept in KEEP_STOPS.items() if kept)
    count_masked: bool = True
    divide_by_masked: bool = False
    max_grad_norm: float = 1.0

    eval_every: int = 50
    eval_episodes: int = 560
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size {self.group_size}: an advantage is relative to a group of at least 2")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature}: training samples, so it must be above 0")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype} is not one of {list(DTYPES)}")
        unknown = set(self.keep_stops) - set(KEEP_STOPS)
        if unknown:
            raise ValueError(f"keep_stops {sorted(unknown)} are not among {list(KEEP_STOPS)}")

    def env_arguments(self, evaluation: bool = False) -> dict[str, Any]:
        """What `gym.make` is given, for training or for the held-out evaluation."""
        source = (self.eval_source or self.source) if evaluation else self.source
        chosen = {
            "source": source,
            "tasks": self.tasks,
            "difficulty": self.difficulty,
            "tools": self.tools,
            "instructions": self.instructions,
            "reward": self.reward,
        }
        return {name: value for name, value in chosen.items() if value is not None}


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


def _check_names(names: Iterable[str], where: str) -> None:
    known = {item.name for item in fields(TrainConfig)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _typed(name: str, value: Any, annotation: Any, where: str) -> Any:
    """A value of a recipe as the type of its field; a list is a tuple, a whole number is a number too."""
    value = tuple(value) if isinstance(value, list) else value
    options = _options(annotation)
    words = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if type(value) in options or (words and any(typing.get_origin(option) is tuple for option in options)):
        return value
    if float in options and type(value) is int:
        return float(value)
    raise ValueError(f"{where}: {name} {value!r} is not of type {getattr(annotation, '__name__', annotation)}")


def _from_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings from a recipe or a run's own file, with names and types checked."""
    _check_names(table, where)
    annotations = typing.get_type_hints(TrainConfig)
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
    return _from_table({name: value for name, value in written.items() if value is not None}, str(path))


def read_config(words: Sequence[str], base: Mapping[str, Any] | None = None) -> TrainConfig:
    """From command-line words: `[recipe.toml] [--key value …]`, on top of `base`.

    Raises:
        ValueError: On an unknown key, a value of the wrong type, or a combination that cannot work.
    """
    rest = list(words)
    settings: dict[str, Any] = dict(base or {})
    annotations = typing.get_type_hints(TrainConfig)
    if rest and not rest[0].startswith("--"):
        path = Path(rest.pop(0))
        settings |= _from_table(tomllib.loads(path.read_text("utf-8")), str(path))
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or (not equals and not rest):
            raise ValueError(f"{word}: expected --key value")
        _check_names([name], word)
        settings[name] = _convert(name, text if equals else rest.pop(0), annotations[name])
    return TrainConfig(**settings)
