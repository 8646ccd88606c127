"""Recipes: what a paper did, as stages and as arms that lead through them.

A recipe is a TOML file, those of this package in `rl/recipes/`. It knows names and types of settings, and nothing of
what they mean. Its tables:

    about                   what is reproduced, what is assumed
    in_domain, out_of_domain  grounding types that are trained on, and that are not; columns of the tables
    [arms]                  name of a row of the ablation table = stages in order
    [[claims]]              what the paper says, as an ordering of two arms; see `Claim`
    [settings]              of every stage that has such a setting, and of which nothing else is said
    [stages.NAME]           `kind` and its settings; `like = "OTHER"` begins with those of another stage
    [tiny], [paper]         of one size: `skip` (stages that its arms pass over), domains where they are others,
                            `settings`, and a table per stage

The kinds of a stage: `train` (settings of `TrainConfig`), `sample` (`SampleConfig`) and `evaluate` (`EvaluateConfig`).
Every arm ends with a stage of kind `evaluate`: with its own if the last of it is one, else with `evaluation`. A stage
goes on from the nearest stages before it on its arm: from the model of the last one that trained, and from what the
last ones that sampled gave, trajectories or tasks. The tasks of a seed are numbered: GRPO takes them from the first on,
so that a stage that samples others says which is its `first`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeAlias

from rl.config import EnvSettings, TrainConfig
from rl.recipes.evaluation import SPLITS, EvaluateConfig
from rl.recipes.rejection import SampleConfig
from rl.settings import check_known, checked_settings, converted_setting

SIZES: Final = ("tiny", "paper")
EVALUATION: Final = "evaluation"
KINDS: Final[Mapping[str, type[EnvSettings]]] = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
}
FILLED: Final = ("output", "seed")
"""Settings that the command knows and no recipe says."""
DOMAINS: Final = ("in_domain", "out_of_domain")
TYPES: Final = ("all", *DOMAINS, "locate", "qa")
"""What a claim about accuracy may be about."""
_TABLES: Final = ("about", *DOMAINS, "arms", "claims", "settings", "stages", *SIZES)

Table: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: The name of its folder.
        kind: A key of `KINDS`.
        settings: Those that differ from the kind's defaults.
        like: The stage that it begins with the settings of.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    like: str | None = None

    def config(self, **given: Any) -> Any:
        """Its configuration, of the kind's class; what is given wins.

        Raises:
            ValueError: If a value cannot work; the message names the stage.
        """
        try:
            return KINDS[self.kind](**{**self.settings, **given})
        except ValueError as error:
            raise ValueError(f"stage {self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Claim:
    """An ordering that the paper claims, to be held against what was measured.

    Attributes:
        says: In words.
        better, worse: Arms.
        measure: `accuracy`, the macro mean of Acc@0.5 over grounding types; or a figure of all episodes as in
            `evaluation.json`, with slashes: `success`, `turns`, `reward_parts/image`, `tool_calls/zoom`. `tool_calls`
            is the sum over tools.
        types: Of `accuracy`: `all`, `in_domain` or `out_of_domain`; or, of what is not multi-image grounding,
            `locate` or `qa`, as in the table of retention.
        split: `test` or `test_ood`.
        margin: What may be lost and still counts as nothing: the claim is that better is above worse less this.
    """

    says: str
    better: str
    worse: str
    measure: str = "accuracy"
    types: str = "all"
    split: str = "test"
    margin: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A recipe at one size.

    Attributes:
        name: Of the file.
        size: One of `SIZES`.
        about: What it reproduces.
        stages: By name, those that no arm of this size visits too.
        arms: Stages in order, by the name of the arm; without the evaluation.
        ends: The stage that evaluates each arm.
        in_domain, out_of_domain: Grounding types.
        claims: Of the paper, about arms of this size.
        left_out: Arms that are another one, since stages of theirs are skipped: that other one.
    """

    name: str
    size: str
    about: str
    stages: Mapping[str, Stage]
    arms: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, str]
    in_domain: tuple[str, ...]
    out_of_domain: tuple[str, ...]
    claims: tuple[Claim, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Every stage that is run, once, as the path that leads to it; each behind those it goes on from."""
        prefixes = (arm[: end + 1] for arm in self.arms.values() for end in range(len(arm)))
        return tuple(dict.fromkeys(prefixes))

    @cached_property
    def whole_paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths, and behind them those that end with an evaluation."""
        return (*self.paths, *((*path, self.ends[arm]) for arm, path in self.arms.items()))


def recipe_names() -> tuple[str, ...]:
    """Those that ship with the package."""
    found = files("rl").joinpath("recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in found if file.name.endswith(".toml")))


def read_recipe(
    name: str, size: str = "tiny", skip: Sequence[str] = (), given: Mapping[str, str] | None = None
) -> Recipe:
    """Reads a recipe and works out its stages at one size.

    Args:
        name: One of `recipe_names()`, or a path that ends in `.toml`.
        size: One of `SIZES`.
        skip: Stages to pass over, beside those that the size passes over.
        given: Settings as words, by `STAGE.KEY`, which wins, or by `KEY`: of every stage that has such a setting, but
            for those of which the recipe says something else by name.

    Raises:
        ValueError: If there is no such recipe, or a table, key, value, stage or arm in it is wrong.
        OSError: If the file cannot be read.
    """
    where = Path(name) if name.endswith(".toml") else Path(str(files("rl").joinpath("recipes", f"{name}.toml")))
    if not name.endswith(".toml") and name not in recipe_names():
        raise ValueError(f"recipe {name!r} is not one of {', '.join(recipe_names())}, and no path to a .toml file")
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
    try:
        table = tomllib.loads(where.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where.name}: {error}") from error
    check_known(table, _TABLES, where.name)
    own, written = table.get(size, {}), table.get("stages", {})
    check_known(own, ("skip", *DOMAINS, "settings", *written), f"{where.name}, [{size}]")
    layers = [
        {"settings": table.get("settings", {}), **{stage: _settings(said) for stage, said in written.items()}},
        own,
        _spoken(given or {}, written),
    ]
    stages = {stage: _stage(stage, written, layers, where.name) for stage in written}
    if EVALUATION not in stages or stages[EVALUATION].kind != "evaluate":
        raise ValueError(f"{where.name}: a stage {EVALUATION!r} of kind 'evaluate' is needed")
    passed = {*own.get("skip", ()), *skip}
    check_known(dict.fromkeys(passed), tuple(name for name in written if name != EVALUATION), f"{where.name}, skip")
    domains = (tuple(own.get(key, table.get(key, ()))) for key in DOMAINS)
    arms, ends, left_out = _arms(table, stages, passed, where.name)
    claims = _claims(table, arms, where.name)
    return Recipe(where.stem, size, table.get("about", ""), stages, arms, ends, *domains, claims, left_out)


def _claims(table: Table, arms: Mapping[str, tuple[str, ...]], where: str) -> tuple[Claim, ...]:
    """The claims about arms that this size has."""
    claims = []
    for said in table.get("claims", ()):
        check_known(said, tuple(item.name for item in fields(Claim)), f"{where}, claims")
        absent = [item.name for item in fields(Claim) if item.default is MISSING and item.name not in said]
        if absent:
            raise ValueError(f"{where}, claims: {', '.join(absent)} missing")
        claim = Claim(**said)
        place = f"{where}, claim {claim.says!r}"
        check_known(dict.fromkeys((claim.better, claim.worse)), tuple(table.get("arms", {})), place)
        for name, allowed in (("types", TYPES), ("split", SPLITS)):
            if getattr(claim, name) not in allowed:
                raise ValueError(f"{place}: {name} {getattr(claim, name)!r} is not one of {', '.join(allowed)}")
        if claim.better in arms and claim.worse in arms:
            claims.append(claim)
    return tuple(claims)


def _arms(
    table: Table, stages: Mapping[str, Stage], passed: set[str], where: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, str], dict[str, str]]:
    """The stages of each arm, the one that evaluates it, and the arms that are another one at this size."""
    found: dict[tuple[tuple[str, ...], str], str] = {}
    left_out: dict[str, str] = {}
    for arm, names in table.get("arms", {}).items():
        if not isinstance(names, list):
            raise ValueError(f"{where}, arm {arm!r}: a list of stages is needed, not {names!r}")
        check_known(dict.fromkeys(names), tuple(stages), f"{where}, arm {arm!r}")
        *path, last = names if names and stages[names[-1]].kind == "evaluate" else (*names, EVALUATION)
        visited = tuple(name for name in path if name not in passed)
        if any(stages[name].kind == "evaluate" for name in visited):
            raise ValueError(f"{where}, arm {arm!r}: an evaluation can but end it")
        if visited and not any(stages[name].kind == "train" for name in visited):
            raise ValueError(f"{where}, arm {arm!r}: no stage of it trains")
        same = found.setdefault((visited, last), arm)
        if same != arm:
            left_out[arm] = same
    if not found:
        raise ValueError(f"{where}: there are no arms")
    paths = {arm: visited for (visited, _), arm in found.items()}
    return paths, {arm: last for (_, last), arm in found.items()}, left_out


def _stage(name: str, written: Mapping[str, Table], layers: Sequence[Mapping[str, Table]], where: str) -> Stage:
    """A stage of all layers: in each, what is said of every stage, of the one it is like, and of itself."""
    parent = written[name].get("like")
    if parent is not None and ("like" in written.get(parent, {"like": None})):
        raise ValueError(f"{where}, stage {name}: like {parent!r} is no stage, or itself like another")
    sources = [parent, name] if parent is not None else [name]
    merged: dict[str, Any] = {}
    for source in ("settings", *sources):  # what is said of a stage wins over what is said of all
        for layer in layers:
            merged |= layer.get(source, {})
    kind = {**written.get(parent or "", {}), **written[name]}.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}, stage {name}: kind {kind!r} is not one of {', '.join(KINDS)}")
    own = {item.name for item in fields(KINDS[kind])} - set(FILLED)
    said = {key for layer in layers for source in sources for key in layer.get(source, {})}
    anywhere = {item.name for other in KINDS.values() for item in fields(other)} - set(FILLED)
    check_known(dict.fromkeys(said), tuple(own), f"{where}, stage {name}")
    check_known(dict.fromkeys(set(merged) - said), tuple(anywhere), f"{where}, settings")
    settings = {key: value for key, value in merged.items() if key in own}
    return Stage(name, kind, _typed(settings, KINDS[kind], f"{where}, stage {name}"), parent)


def _settings(stage: Table) -> Table:
    return {key: value for key, value in stage.items() if key not in ("kind", "like")}


def _typed(settings: Table, kind: type[EnvSettings], where: str) -> dict[str, Any]:
    words = {key: value for key, value in settings.items() if isinstance(value, _Word)}
    found = checked_settings({key: value for key, value in settings.items() if key not in words}, where, kind)
    return found | {key: converted_setting(key, str(word), kind) for key, word in words.items()}


class _Word(str):
    """A value as it stands on the command line."""


def _spoken(given: Mapping[str, str], written: Mapping[str, Table]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for name, text in given.items():
        stage, dot, key = name.rpartition(".")
        if dot and stage not in written:
            raise ValueError(f"--{name}: {stage!r} is not one of the stages {', '.join(written)}")
        tables.setdefault(stage if dot else "settings", {})[key] = _Word(text)
    return tables
