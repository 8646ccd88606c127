"""A recipe carried out for one seed: stage after stage, each in a folder named after the path that leads to it.

What two arms share is done once, what is complete is not done again, and what was stopped goes on where it was. A stage
goes on from what the nearest stages before it left; `Found` says what that is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agents.rollout import make_envs
from mimgenv.datasets.curated_files import write_whole
from rl.config import RENDERED, TrainConfig
from rl.recipes.evaluation import EvaluateConfig, evaluate
from rl.recipes.recipe import Recipe, Stage
from rl.recipes.rejection import GIVES, SampleConfig, sample

STAGE: Final = "stage.json"
"""Kind and settings of the stage that a folder holds, written before it begins."""
DONE: Final = "done.json"
"""Written when a stage is complete: seconds that it took, of the clock and of the processor."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the stages of an arm have left so far; empty settings where they have left nothing.

    Attributes:
        model: The last one that was trained.
        trajectories, tasks: Files of the last stages that sampled them.
    """

    model: str | None = None
    trajectories: str | None = None
    tasks: str | None = None

    def after(self, stage: Stage, folder: Path) -> Found:
        """The same with what a stage left in its folder."""
        if stage.kind == "train":
            return replace(self, model=str(folder / "model"))
        gives = stage.config().gives
        return replace(self, **{gives: str(folder / GIVES[gives])})

    def given(self, stage: Stage) -> dict[str, Any]:
        """The settings of a stage that goes on from here."""
        given: dict[str, Any] = {} if self.model is None else {"start": self.model}
        if stage.kind != "train":
            return given
        config = stage.config()
        if self.trajectories is not None and config.cold_start:
            given["sft_data"] = self.trajectories
        if self.tasks is not None and config.steps:
            given |= {"source": f"selected:{self.tasks}", "eval_source": config.eval_source or RENDERED}
        return given


def found_before(recipe: Recipe, path: Sequence[str], output: Path) -> Found:
    """What the last stage of a path goes on from, where the stages lie in `output`."""
    found = Found()
    for end in range(1, len(path)):
        found = found.after(recipe.stages[path[end - 1]], Path(output, *path[:end]))
    return found


def folder_of(output: Path, seed: int) -> Path:
    """Where the stages of a seed lie."""
    return output / f"seed-{seed}"


def check_stages(recipe: Recipe) -> None:
    """Refuses, before hours of work, what a later stage would.

    Raises:
        ValueError: If settings of a stage cannot work.
        MimgenvError, gymnasium.error.Error: If there is no such environment.
    """
    for name in dict.fromkeys([*(path[-1] for path in recipe.paths), recipe.evaluation.name]):
        config = recipe.stages[name].config()
        make_envs(config.env, 1, **config.env_arguments())
        if isinstance(config, TrainConfig):
            config.objective()


def run_seed(recipe: Recipe, seed: int, output: Path) -> None:
    """Runs every stage of every arm that is not complete, and evaluates the arms.

    Raises:
        ValueError: If a folder holds a stage with other settings, or a stage cannot go on.
    """
    home = folder_of(output, seed)
    ends = [(*path, recipe.evaluation.name) for path in recipe.arms.values()]
    for path in (*recipe.paths, *ends):
        stage = recipe.stages[path[-1]]
        told = _run(stage, Path(home, *path), seed, found_before(recipe, path, home).given(stage))
        if told:
            print(f"seed {seed}, {' > '.join(path)}: {told}", flush=True)


def _run(stage: Stage, folder: Path, seed: int, given: Mapping[str, Any]) -> str:
    """What came of a stage, in words; empty where it was complete."""
    _check_settings(stage, folder)
    if (folder / DONE).exists():
        return ""
    began, worked = time.perf_counter(), time.process_time()
    told = _RUN[stage.kind](stage.config(**given, seed=seed, output=str(folder)))
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    write_whole(folder / DONE, json.dumps(spent))
    return f"{told} ({spent['cpu_seconds']:.0f} CPU s)"


def _check_settings(stage: Stage, folder: Path) -> None:
    """Refuses to go on with a stage under other settings than it was begun with."""
    settings = json.loads(json.dumps({"kind": stage.kind, **stage.settings}))
    path = folder / STAGE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1))
        return
    begun = json.loads(path.read_text())
    other = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
    if other:
        values = ", ".join(f"{name} {begun.get(name)!r}, now {settings.get(name)!r}" for name in other)
        raise ValueError(f"{folder} was begun with {values}: take another --output, or remove it")


def _train(config: TrainConfig) -> str:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from rl.checkpoint import checkpoints
    from rl.trainer import GRPOTrainer

    disable_progress_bar()
    if config.device == "cpu":
        torch.set_num_threads(1)
    result = GRPOTrainer(config, resume=bool(checkpoints(Path(config.output)))).train()
    before, after = (metrics.get("reward/total", float("nan")) for metrics in (result.before, result.after))
    return f"reward {before:.2f} -> {after:.2f}" if config.steps else f"reward {after:.2f} after SFT"


def _sample(config: SampleConfig) -> str:
    counts = sample(config)
    left = f"{counts.all_right} all right, {counts.all_wrong} all wrong"
    return f"{counts.kept} of {counts.tasks} tasks kept ({left} of {counts.attempts})"


def _evaluate(config: EvaluateConfig) -> str:
    found = evaluate(config)
    return ", ".join(f"{split} success {rows['all']['success']:.2f}" for split, rows in found.items())


_RUN: Final[Mapping[str, Any]] = {"train": _train, "sample": _sample, "evaluate": _evaluate}
