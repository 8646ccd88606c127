"""A recipe carried out for one seed: stage after stage, each in a folder named after the path that leads to it.

What two arms share is done once, what is complete is not done again, and what was stopped goes on where it was. A stage
goes on from what the nearest stages before it left; `Found` says what that is.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import gymnasium as gym

from agents.rollout import make_envs
from mimgenv.datasets.curated_files import write_whole
from mimgenv.errors import MimgenvError
from rl.config import RENDERED, SCRATCH, TrainConfig
from rl.errors import CheckpointError, TrainingStopped
from rl.recipes.evaluation import EvaluateConfig, evaluate
from rl.recipes.recipe import Recipe, Stage
from rl.recipes.rejection import GIVES, POLICY, SampleConfig, sample

EVERY: Final = 60.0
"""Seconds between lines about a stage that is under way."""
LOCK: Final = ".lock"
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
        ValueError: If settings of a stage cannot work, or it begins with a model that is not there; the message names
            the stage.
    """
    from agents.shapes import model_shape  # torch: only once the recipe is read

    look_for = cache(model_shape)  # out of reach, the hub is asked for long
    for path in recipe.whole_paths:
        stage = recipe.stages[path[-1]]
        try:
            _check(stage, found_before(recipe, path, Path()), look_for)
        except (ValueError, OSError, MimgenvError, gym.error.Error) as error:
            raise ValueError(f"stage {stage.name}: {error}") from error


def _check(stage: Stage, found: Found, look_for: Callable[[str], object]) -> None:
    config = stage.config()
    make_envs(config.env, 1, **config.env_arguments())
    model = _first_model(config, found)
    if isinstance(config, TrainConfig):
        config.objective()
        if model == SCRATCH and (found.trajectories is not None or not config.cold_start):
            raise ValueError("it would begin with random weights: --start MODEL says which to begin with")
    if model is not None and model != SCRATCH:
        look_for(model)


def _first_model(config: Any, found: Found) -> str | None:
    """The model that a stage names itself; None where one before it trained it, or it needs none."""
    agent = getattr(config, "agent", POLICY)
    if agent == POLICY:
        return config.start if found.model is None else None
    return agent.removeprefix("vlm:") if agent.startswith("vlm:") else None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process on this machine writes to the folder.

    Raises:
        ValueError: If one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another command is at work in it") from error
        yield


def run_seed(recipe: Recipe, seed: int, output: Path) -> None:
    """Runs every stage of every arm that is not complete, and evaluates the arms.

    Where a stage cannot go on, the arms that do without it still run.

    Raises:
        ValueError, MimgenvError, TrainingStopped, CheckpointError: Of the first stage that cannot go on, such as one
            whose folder holds it with other settings.
    """
    home = folder_of(output, seed)
    with alone_in(home):
        _run_all(recipe, seed, home)


def _run_all(recipe: Recipe, seed: int, home: Path) -> None:
    failed: dict[tuple[str, ...], Exception] = {}
    for path in recipe.whole_paths:
        if any(path[: len(before)] == before for before in failed):
            continue
        stage = recipe.stages[path[-1]]
        try:
            told = _run(stage, Path(home, *path), seed, found_before(recipe, path, home).given(stage))
        except (ValueError, MimgenvError, TrainingStopped, CheckpointError) as error:
            failed[path], told = error, f"cannot go on: {error}"
        if told:
            print(f"seed {seed}, {' > '.join(path)}: {told}", flush=True)
    for error in failed.values():
        raise error


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


class _NowAndThen:
    """Says how far a stage is, once a minute."""

    def __init__(self, output: str) -> None:
        self.output, self.told = output, time.monotonic()

    def __call__(self, done: int, most: int, what: str = "tasks") -> None:
        """Told of every portion."""
        if time.monotonic() - self.told > EVERY:
            print(f"{self.output}: {what} {done} of {most}", flush=True)
            self.told = time.monotonic()


def _train(config: TrainConfig) -> str:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from rl.checkpoint import checkpoints
    from rl.trainer import GRPOTrainer

    disable_progress_bar()
    if config.device == "cpu":
        torch.set_num_threads(1)
    tell = _NowAndThen(config.output)
    resume = bool(checkpoints(Path(config.output)))
    result = GRPOTrainer(config, resume=resume, on_step=lambda phase, step, most, _: tell(step, most, phase)).train()
    before, after = (metrics.get("reward/total", float("nan")) for metrics in (result.before, result.after))
    return f"reward {before:.2f} -> {after:.2f}" if config.steps else f"reward {after:.2f} after SFT"


def _sample(config: SampleConfig) -> str:
    counts = sample(config, _NowAndThen(config.output))
    left = f"{counts.all_right} all right, {counts.all_wrong} all wrong"
    lost = f"; {counts.unanswered} attempts without an answer, {counts.failed} failed" if counts.unanswered else ""
    return f"{counts.kept} of {counts.tasks} tasks kept ({left} of {counts.attempts}{lost})"


def _evaluate(config: EvaluateConfig) -> str:
    found = evaluate(config)
    return ", ".join(f"{split} success {rows['all']['success']:.2f}" for split, rows in found.items())


_RUN: Final[Mapping[str, Any]] = {"train": _train, "sample": _sample, "evaluate": _evaluate}
