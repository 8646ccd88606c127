"""What the arms of a recipe left behind: evaluations, attention and metrics, seed by seed, and means over seeds.

Owns the reading of stage folders, the statistics over seeds, and which task types were trained on. Knows nothing of
tables, plots and pages, nor of how a stage is run. A run that was stopped leaves files out: what is not there is
listed, never made up.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimgenv import ENVIRONMENTS
from mimgenv.tasks.registry import open_source
from rl.config import EnvSettings
from rl.recipes.evaluation import ATTENTION, EVALUATION, SPLITS
from rl.recipes.recipe import Recipe
from rl.tracker import read_metrics

STUDENT: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)
"""Half the width of a mean's 95 % interval in standard errors, of 2, 3, … seeds: Student's t. Of more: the last."""


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm of a recipe, run with one seed.

    Attributes:
        arm: Its name in the recipe.
        seed: Of the run.
        folder: Of its evaluation.
        train_folders: Of the train stages on its path, in order.
        sample_folders: Of the sample stages on its path, in order.
    """

    arm: str
    seed: int
    folder: Path
    train_folders: tuple[Path, ...]
    sample_folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A figure of an arm, with a value for each seed that has it.

    Attributes:
        values: By seed; finite. May be empty.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        """How many seeds have it."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over the seeds; nan where none has it."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean: s / √n with s the sample standard deviation (n - 1); nan for fewer than two."""
        return statistics.stdev(self.values.values()) / math.sqrt(self.n) if self.n > 1 else math.nan

    def of(self, seeds: Iterable[int]) -> OverSeeds:
        """The same figure of these seeds only, all of which have it."""
        return OverSeeds({seed: self.values[seed] for seed in seeds})

    def __sub__(self, other: OverSeeds) -> Difference:
        """The difference within each seed that both have: what varies with the seed in both cancels."""
        both = self.values.keys() & other.values.keys()
        return Difference({seed: self.values[seed] - other.values[seed] for seed in sorted(both)})


@dataclass(frozen=True, slots=True)
class Difference(OverSeeds):
    """A figure of one arm minus that of another, seed by seed."""

    def clear_of(self, value: float) -> bool:
        """Whether a value lies outside the 95 % interval of the mean.

        Never with fewer than two seeds, nor where two are equal: that says little of their error.
        """
        if self.error == 0 and self.n < 3:
            return False
        width = STUDENT[min(self.n - 2, len(STUDENT) - 1)] if self.n > 1 else math.inf
        return abs(self.mean - value) > width * self.error


@dataclass(frozen=True, slots=True)
class Results:
    """All that is there of a recipe's arms.

    Attributes:
        recipe: Which.
        runs: One per arm and seed.
        evaluations: By arm and seed: the content of `evaluation.json`.
        attentions: By arm and seed: the content of `attention.json`.
        updates: By arm and seed: the metrics of the GRPO updates of the arm's last train stage, where it has any.
        missing: What should be there and is not, a line each.
    """

    recipe: Recipe
    runs: tuple[ArmRun, ...]
    evaluations: Mapping[tuple[str, int], Mapping[str, Any]]
    attentions: Mapping[tuple[str, int], Mapping[str, Any]]
    updates: Mapping[tuple[str, int], list[dict[str, Any]]]
    missing: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that any arm was run with."""
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that any arm was evaluated on."""
        return tuple(split for split in SPLITS if any(split in found for found in self.evaluations.values()))

    @property
    def arms(self) -> tuple[str, ...]:
        """Those with an evaluation, in the recipe's order."""
        return tuple(arm for arm in self.recipe.arms if any(name == arm for name, _ in self.evaluations))

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The task types of each average."""
        inside, outside = tuple(self.recipe.in_domain), tuple(self.recipe.out_of_domain)
        return {"In-domain": inside, "Out-of-domain": outside, "AVG": inside + outside}

    def rows(self, arm: str, split: str) -> dict[int, Mapping[str, Mapping[str, Any]]]:
        """By seed: what an evaluation found for each task type, and for `all` of them."""
        found = {seed: told[split] for (name, seed), told in self.evaluations.items() if name == arm and split in told}
        return {seed: {**told["rows"], "all": told["all"]} for seed, told in sorted(found.items())}

    def types(self) -> tuple[str, ...]:
        """All task types that were evaluated, in the order of the files."""
        found = (told[split]["rows"] for told in self.evaluations.values() for split in self.splits if split in told)
        return tuple(dict.fromkeys(name for rows in found for name in rows))

    def trained(self) -> frozenset[str]:
        """The task types that GRPO trains on, in any arm."""
        stages = {name: self.recipe.stages[name] for path in self.recipe.paths for name in path}
        configs = [stage.config() for stage in stages.values() if stage.kind == "train"]
        return frozenset(name for config in configs if config.steps > 0 for name in _task_types(config))

    def figure(self, arm: str, split: str, *keys: str) -> OverSeeds:
        """A figure by its keys, such as `figure("full", "test", "all", "reward_parts", "iou")`."""
        return _finite((seed, _at(rows, keys)) for seed, rows in self.rows(arm, split).items())

    def calls(self, arm: str, split: str, *tools: str) -> OverSeeds:
        """Calls per episode of these tools together, over all types; of all tools, where none is named."""
        told = {seed: rows["all"]["tool_calls"] for seed, rows in self.rows(arm, split).items()}
        # Evaluations leave out what was never called: that is 0, not unknown.
        return OverSeeds({seed: sum((calls.get(t, 0.0) for t in tools or calls), 0.0) for seed, calls in told.items()})

    def accuracy(self, arm: str, split: str, types: Sequence[str]) -> OverSeeds:
        """Macro mean of the share of right answers over those of the types that were evaluated; per cent."""
        found = {
            seed: [100.0 * rows[name]["success"] for name in types if name in rows]
            for seed, rows in self.rows(arm, split).items()
        }
        return _finite((seed, statistics.fmean(values) if values else None) for seed, values in found.items())


def read_results(recipe: Recipe, runs: Sequence[ArmRun]) -> Results:
    """Reads what there is.

    Args:
        recipe: Whose arms they are.
        runs: At most one per arm and seed; stages of theirs may have been stopped, or never begun.

    Raises:
        ValueError: If a run's arm is not one of the recipe's, or an arm has two runs of one seed.
    """
    by_key = {(run.arm, run.seed): run for run in runs}
    unknown = sorted({run.arm for run in runs} - set(recipe.arms))
    if unknown or len(by_key) < len(runs):
        raise ValueError(f"runs are one per arm and seed, of arms {list(recipe.arms)}; got {_named(runs)}")
    evaluations = {key: told for key, run in by_key.items() if (told := read_json(run.folder / EVALUATION))}
    attentions = {key: told for key, run in by_key.items() if (told := read_json(run.folder / ATTENTION))}
    updates = {key: rows for key, run in by_key.items() if (rows := _updates(run))}
    expected = [(arm, seed) for arm in recipe.arms for seed in sorted({run.seed for run in runs})]
    missing = [_told_missing(key, by_key.get(key)) for key in expected if key not in evaluations]
    return Results(recipe, tuple(runs), evaluations, attentions, updates, tuple(missing))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none, or it was cut off in the writing."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def _task_types(config: EnvSettings) -> tuple[str, ...]:
    """Those that an environment renders with these settings; a source of its own holds no others."""
    arguments = ENVIRONMENTS.get(config.env, {}) | config.env_arguments()
    return open_source(None, arguments.get("world"), arguments.get("tasks"), "train", None).task_types


def _updates(run: ArmRun) -> list[dict[str, Any]]:
    rows = read_metrics(run.train_folders[-1]) if run.train_folders else []
    return [row for row in rows if row["phase"] == "grpo"]


def _told_missing(key: tuple[str, int], run: ArmRun | None) -> str:
    arm, seed = key
    if run is None:
        return f"{arm}, seed {seed}: not run"
    state = "cannot be read" if (run.folder / EVALUATION).exists() else "is not there"
    return f"{arm}, seed {seed}: {EVALUATION} {state}"


def _named(runs: Sequence[ArmRun]) -> list[str]:
    return [f"{run.arm}, seed {run.seed}" for run in runs]


def _at(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _finite(values: Iterable[tuple[int, float | None]]) -> OverSeeds:
    return OverSeeds({seed: float(value) for seed, value in values if value is not None and math.isfinite(value)})
