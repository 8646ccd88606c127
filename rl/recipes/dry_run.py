"""What a recipe would do, in words: for someone who wants to know whether it fits, and what it does for days.

For every stage that would run, once: where it comes in, how much it does, and of one that trains its plan and a
rehearsed step of it (rl/planning).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Final

from rl.config import TrainConfig
from rl.planning.plan import SAMPLED_TOGETHER, plan, shape_of
from rl.planning.rehearsal import rehearse
from rl.planning.words import WIDTH, Pairs, describe_plan, describe_rehearsal, listed
from rl.recipes.evaluation import SPLITS, EvaluateConfig
from rl.recipes.pipeline import Found, found_before
from rl.recipes.recipe import Recipe, Stage
from rl.recipes.rejection import POLICY, SampleConfig


def dry_run(recipe: Recipe, rehearsed: bool = True) -> Iterator[str]:
    """Says what a recipe would do, a paragraph at a time.

    Args:
        recipe: At a size.
        rehearsed: Whether a step of every stage that trains is rehearsed: minutes for models of billions.

    Raises:
        ValueError: If settings cannot work together.
        TrainingStopped: If a rehearsed step cannot.
        FileNotFoundError: If nothing is known of a model.
    """
    yield f"{recipe.name}, size {recipe.size}: nothing is trained here.\n\n{_arms(recipe)}"
    planned: set[str | None] = set()
    shapes = cache(shape_of)  # out of reach, the hub is asked for long
    visits = sorted(_visits(recipe).items(), key=lambda visit: recipe.stages[visit[0]].like is not None)
    for name, paths in visits:
        stage = recipe.stages[name]
        yield _stage_words(recipe, stage, paths)
        if stage.kind != "train":
            continue
        if stage.like in planned:
            yield listed(_unlike(stage, recipe.stages[stage.like]))
            continue
        planned.add(name)
        given = _before(recipe, paths[0]).given(stage)
        config = stage.config(**{name: file for name, file in given.items() if name == "sft_data"})
        yield describe_plan(plan(config, shapes(config.start)))
        if rehearsed:
            yield describe_rehearsal(rehearse(config, shapes(config.start)))


def _arms(recipe: Recipe) -> str:
    widest = max(map(len, recipe.arms))
    return "\n".join(
        [
            "Arms, a row of the table each; stages that they share at their beginning run once per seed:",
            *(f"  {arm:{widest}}  {' > '.join((*path, recipe.ends[arm]))}" for arm, path in recipe.arms.items()),
        ]
    )


def _visits(recipe: Recipe) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The paths that lead to each stage, in the order in which stages are first run."""
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for path in recipe.whole_paths:
        found[path[-1]] = (*found.get(path[-1], ()), path)
    return found


def _stage_words(recipe: Recipe, stage: Stage, paths: Sequence[Sequence[str]]) -> str:
    times = f"{len(paths)} times" if len(paths) > 1 else "once"
    title = f"-- {stage.name}: {_DOES[stage.kind]}, {times} for every seed "
    return f"{title:-<{WIDTH}}\n" + listed(_WORDS[stage.kind](recipe, stage, paths))


# ---------------------------------------------------------------- what a stage goes on from, and does


def _unlike(stage: Stage, other: Stage) -> Pairs:
    """In what a stage differs from the one it is like."""
    config, others = asdict(stage.config()), asdict(other.config())
    yield "as", f"{other.name}, but for:"
    yield from ((name, f"{value}, not {others[name]}") for name, value in config.items() if value != others[name])


def _before(recipe: Recipe, path: Sequence[str]) -> Found:
    """What a stage goes on from; here its folders are but names."""
    return found_before(recipe, path, Path())


def _sources(recipe: Recipe, paths: Sequence[Sequence[str]], wanted: str, own: str) -> str:
    """Where a stage takes a `model`, `trajectories` or `tasks` from, on each of the paths to it."""
    found = dict.fromkeys(getattr(_before(recipe, path), wanted) for path in paths)
    return ", or ".join(own if file is None else f"the {wanted} of {Path(file).parent.name}" for file in found)


def _train_words(recipe: Recipe, stage: Stage, paths: Sequence[Sequence[str]]) -> Pairs:
    config: TrainConfig = stage.config()
    yield "begins with", _sources(recipe, paths, "model", config.start)
    if config.cold_start:
        yield "learns from", _sources(recipe, paths, "trajectories", "episodes of an oracle")
    if config.steps:
        yield "plays", _sources(recipe, paths, "tasks", "any tasks") + f" of {config.env}"


def _sample_words(recipe: Recipe, stage: Stage, paths: Sequence[Sequence[str]]) -> Pairs:
    config: SampleConfig = stage.config()
    model = _sources(recipe, paths, "model", config.start)
    yield "plays", f"{config.count:,} tasks of {config.env}, attempts at each: {config.attempts}"
    yield "agent", model if config.agent == POLICY else config.agent
    yield "keeps", f"{config.gives}, by the rule {config.keep}"
    episodes = config.count * config.attempts
    if config.agent == POLICY:
        waits = -(-episodes // SAMPLED_TOGETHER) * config.max_turn_tokens
        yield "waits for", f"at most {waits:,} passes for single tokens a turn, one after another"


def _evaluate_words(recipe: Recipe, stage: Stage, paths: Sequence[Sequence[str]]) -> Pairs:
    config: EvaluateConfig = stage.config()
    played = f"{config.episodes:,} episodes of each split ({', '.join(SPLITS)})"
    yield "plays", f"{played} of {config.env}, temperature {config.temperature:g}"
    if config.attention_episodes:
        yield "looks at", f"the attention to images in {config.attention_episodes} of them"


_DOES: Final = {"train": "training", "sample": "data", "evaluate": "held-out episodes"}
_WORDS: Final[Mapping[str, Callable[[Recipe, Stage, Sequence[Sequence[str]]], Pairs]]] = {
    "train": _train_words,
    "sample": _sample_words,
    "evaluate": _evaluate_words,
}
