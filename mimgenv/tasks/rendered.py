"""Rendered tasks: the tables of worlds and task types, and the source that serves them without end.

A task is a pure function of (generator version, world, type, difficulty, split, number). Splits are disjoint seed
ranges by contract. To add a task type, write a function `(world, rng, difficulty) -> Draft` and add it to
`TASK_TYPES`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Final

import numpy as np

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.flat import Flat
from mimgenv.scenes.scene import World
from mimgenv.scenes.tabletop import Tabletop
from mimgenv.tasks.counting import counting
from mimgenv.tasks.draft import TaskType, finish
from mimgenv.tasks.group_grounding import group_grounding
from mimgenv.tasks.locate import locate
from mimgenv.tasks.odd_one_out import odd_one_out, odd_one_out_qa
from mimgenv.tasks.referring import referring
from mimgenv.tasks.static_difference import static_difference
from mimgenv.types import Task

GENERATOR_VERSION: Final = 0
"""Part of every seed; bumped with `-vN` when a seed's images or text change."""

SPLIT_SIZE: Final = 2**40
SPLITS: Final = ("train", "val", "test")
"""Split i owns the seeds from i · SPLIT_SIZE up to (i + 1) · SPLIT_SIZE."""

WORLDS: Final[dict[str, type[World]]] = {"tabletop": Tabletop, "tiny": Flat}
GROUNDING_TYPES: Final[dict[str, TaskType]] = {
    "locate": locate,
    "referring": referring,
    "static_difference": static_difference,
    "odd_one_out": odd_one_out,
    "group_grounding": group_grounding,
}
QA_TYPES: Final[dict[str, TaskType]] = {"odd_one_out_qa": odd_one_out_qa, "counting": counting}
TASK_TYPES: Final[dict[str, TaskType]] = GROUNDING_TYPES | QA_TYPES

ATTEMPTS: Final = 100


@cache
def _world(name: str) -> World:
    return WORLDS[name]()


@lru_cache(maxsize=128)
def make_task(world: str, task_type: str, difficulty: int | None, split: str, number: int) -> Task:
    """The task of a world, type, difficulty (1 to 5 or None), split and number (0 <= number < 2**40).

    Raises:
        TaskError: If no valid draft turns up in a bounded number of attempts.
    """
    seed = SPLITS.index(split) * SPLIT_SIZE + number
    rng = np.random.default_rng([GENERATOR_VERSION, seed, zlib.crc32(task_type.encode())])
    task_id = _task_id(world, task_type, difficulty, split, number)
    for _ in range(ATTEMPTS):
        try:
            draft = TASK_TYPES[task_type](_world(world), rng, difficulty)
            return finish(draft, _world(world), task_id, task_type)
        except TaskError as error:
            reason = error
    raise TaskError(f"{task_id}: no valid task in {ATTEMPTS} attempts, the last because {reason}")


def _task_id(world: str, task_type: str, difficulty: int | None, split: str, number: int) -> str:
    return f"rendered:{world}/{task_type}/{difficulty or 'any'}/{split}/{number}"


def load_rendered_task(task_id: str) -> Task:
    """Makes the task of an id such as `rendered:tiny/referring/any/train/17`.

    Raises:
        TaskError: If the id is not one that a source gave out.
    """
    parts = task_id.removeprefix("rendered:").split("/")
    try:
        world, task_type, difficulty, split, number = parts
        level, place = None if difficulty == "any" else int(difficulty), int(number)
        known = world in WORLDS and task_type in TASK_TYPES and split in SPLITS and 0 <= place < SPLIT_SIZE
        if not known or task_id != _task_id(world, task_type, level, split, place):
            raise ValueError
        _world(world).counts(level)
    except ValueError:
        raise TaskError(f"no such task: {task_id}") from None
    return make_task(world, task_type, level, split, place)


class RenderedTasks:
    """Tasks of one world: types take turns with the seed, so that every run of seeds holds them in equal shares.

    Args:
        world: A key of `WORLDS`.
        tasks: Keys of `TASK_TYPES`.
        split: One of `SPLITS`.
        difficulty: 1 to 5, or None for the world's ordinary range.

    Raises:
        ConfigurationError: If one of these is unknown.
    """

    def __init__(self, world: str, tasks: Sequence[str], split: str = "train", difficulty: int | None = None) -> None:
        for what, value, table in (("world", world, WORLDS), ("split", split, SPLITS)):
            if value not in table:
                raise ConfigurationError(f"{what} {value!r} is not one of {list(table)}")
        unknown = [name for name in tasks if name not in TASK_TYPES]
        if unknown or not tasks:
            raise ConfigurationError(f"task types {unknown or list(tasks)} are not among {list(TASK_TYPES)}")
        if difficulty is not None and type(difficulty) is not int:
            raise ConfigurationError(f"difficulty {difficulty!r} is not a whole number")
        _world(world).counts(difficulty)
        self.world, self.split, self.difficulty = world, split, difficulty
        self.task_types = tuple(tasks)

    def __len__(self) -> int:
        return SPLIT_SIZE

    def task(self, seed: int) -> Task:
        """The task of a seed."""
        if seed < 0:
            raise TaskError(f"seed {seed} is negative")
        number = seed % SPLIT_SIZE
        task_type = self.task_types[number % len(self.task_types)]
        return make_task(self.world, task_type, self.difficulty, self.split, number)
