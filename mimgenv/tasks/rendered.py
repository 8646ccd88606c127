"""Rendered tasks: the tables of worlds and task types, and the source that serves them without end.

A task is a pure function of (generator version, world, type, difficulty, split, number). Splits are disjoint seed
ranges by contract; `test_ood` shows what the others hold back: combinations of attributes, wordings, viewpoints. To
add a task type, write a function `(world, rng, difficulty) -> Draft` and add it to a table below.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Final

import numpy as np

from mimgenv.curriculum import Difficulty, Learner
from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.flat import Flat
from mimgenv.scenes.scene import World
from mimgenv.scenes.sprites.world import Sprites
from mimgenv.scenes.tabletop.world import Tabletop
from mimgenv.tasks.common_object import common_object
from mimgenv.tasks.comparison import comparison
from mimgenv.tasks.correspondence import correspondence, visual_correspondence
from mimgenv.tasks.counting import counting
from mimgenv.tasks.draft import TaskType, finish
from mimgenv.tasks.forensic import forensic
from mimgenv.tasks.group_grounding import group_grounding
from mimgenv.tasks.jigsaw import jigsaw
from mimgenv.tasks.locate import locate
from mimgenv.tasks.multi_view import multi_view
from mimgenv.tasks.object_tracking import object_tracking
from mimgenv.tasks.odd_one_out import odd_one_out, odd_one_out_qa
from mimgenv.tasks.reasoning import reasoning
from mimgenv.tasks.referring import referring
from mimgenv.tasks.region_locating import region_locating
from mimgenv.tasks.robust_difference import robust_difference, robust_difference_qa
from mimgenv.tasks.similarity import similarity
from mimgenv.tasks.static_difference import static_difference
from mimgenv.tasks.temporal_order import temporal_order
from mimgenv.types import Task

GENERATOR_VERSION: Final = 0
"""Part of every seed; bumped with `-vN` when a seed's images or text change."""

SPLIT_SIZE: Final = 2**40
SPLITS: Final = ("train", "val", "test", "test_ood")
"""Split i owns the seeds from i · SPLIT_SIZE up to (i + 1) · SPLIT_SIZE."""
HELD_OUT: Final = "test_ood"

WORLDS: Final[dict[str, Callable[..., World]]] = {"tabletop": Tabletop, "sprites": Sprites, "tiny": Flat}
ORDINARY_WORLDS: Final = ("tabletop", "sprites")
"""The worlds that take turns where none is named."""

GROUNDING_TYPES: Final[dict[str, TaskType]] = {
    "locate": locate,
    "referring": referring,
    "static_difference": static_difference,
    "odd_one_out": odd_one_out,
    "group_grounding": group_grounding,
    "robust_difference": robust_difference,
    "object_tracking": object_tracking,
    "multi_view": multi_view,
    "correspondence": correspondence,
    "common_object": common_object,
    "region_locating": region_locating,
    "reasoning": reasoning,
}
QA_TYPES: Final[dict[str, TaskType]] = {
    "odd_one_out_qa": odd_one_out_qa,
    "counting": counting,
    "robust_difference_qa": robust_difference_qa,
    "visual_correspondence": visual_correspondence,
    "forensic": forensic,
    "jigsaw": jigsaw,
    "similarity": similarity,
    "comparison": comparison,
    "temporal_order": temporal_order,
}
TASK_TYPES: Final[dict[str, TaskType]] = GROUNDING_TYPES | QA_TYPES

ONLY_IN: Final[dict[str, tuple[str, ...]]] = {
    "robust_difference": ORDINARY_WORLDS,
    "robust_difference_qa": ORDINARY_WORLDS,
    "object_tracking": ORDINARY_WORLDS,
    "multi_view": ("tabletop",),
    "correspondence": ("tabletop",),
    "visual_correspondence": ("tabletop",),
    "forensic": ORDINARY_WORLDS,
    "region_locating": ORDINARY_WORLDS,
    "reasoning": ORDINARY_WORLDS,
    "jigsaw": ORDINARY_WORLDS,
    "temporal_order": ORDINARY_WORLDS,
}
"""The worlds of a type that is not at home in all of them."""

TINY_TYPES: Final = (
    "locate",
    "referring",
    "static_difference",
    "odd_one_out",
    "group_grounding",
    "odd_one_out_qa",
    "counting",
)
"""What the tiny world serves unless it is told otherwise: what the shipped checkpoint and its vocabulary know."""

ATTEMPTS: Final = 100


@cache
def world_of(name: str, held_out: bool = False) -> World:
    """The world of a name."""
    return WORLDS[name](held_out=held_out)


def worlds_of(task_type: str) -> tuple[str, ...]:
    """The worlds in which a type is at home."""
    return ONLY_IN.get(task_type, tuple(WORLDS))


@lru_cache(maxsize=128)
def make_task(world: str, task_type: str, difficulty: int | None, split: str, number: int) -> Task:
    """The task of a world, type, difficulty (1 to 5 or None), split and number (0 <= number < 2**40).

    Raises:
        TaskError: If no valid draft turns up in a bounded number of attempts.
    """
    seed = SPLITS.index(split) * SPLIT_SIZE + number
    rng = np.random.default_rng([GENERATOR_VERSION, seed, zlib.crc32(task_type.encode())])
    task_id = _task_id(world, task_type, difficulty, split, number)
    held_out = split == HELD_OUT
    place = world_of(world, held_out)
    for _ in range(ATTEMPTS):
        try:
            draft = TASK_TYPES[task_type](place, rng, difficulty)
            return finish(draft, place, task_id, task_type, held_out)
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
        known = task_type in TASK_TYPES and world in WORLDS and world in worlds_of(task_type) and split in SPLITS
        if not known or not 0 <= place < SPLIT_SIZE or task_id != _task_id(world, task_type, level, split, place):
            raise ValueError
        world_of(world).counts(level)
    except ValueError:
        raise TaskError(f"no such task: {task_id}") from None
    return make_task(world, task_type, level, split, place)


class RenderedTasks:
    """Rendered tasks: types take turns with the seed, so that every run of seeds holds them in equal shares.

    Args:
        world: A key of `WORLDS`; None for `ORDINARY_WORLDS`, which take turns as far as a type is at home in them.
        tasks: Keys of `TASK_TYPES`; None for all that are at home there, or `TINY_TYPES`.
        split: One of `SPLITS`.
        difficulty: 1 to 5, None for the world's ordinary range, or a schedule (curriculum.py).

    Raises:
        ConfigurationError: If one of these is unknown, or a type is not at home in the world.
    """

    def __init__(
        self,
        world: str | None = None,
        tasks: Sequence[str] | None = None,
        split: str = "train",
        difficulty: Difficulty = None,
    ) -> None:
        if split not in SPLITS:
            raise ConfigurationError(f"split {split!r} is not one of {list(SPLITS)}")
        if world is not None and world not in WORLDS:
            raise ConfigurationError(f"world {world!r} is not one of {list(WORLDS)}")
        worlds = [name for name in WORLDS if (name in ORDINARY_WORLDS if world is None else name == world)]
        homes = {name: tuple(w for w in worlds if w in worlds_of(name)) for name in TASK_TYPES}
        if tasks is None:
            tasks = TINY_TYPES if world == "tiny" else [name for name in TASK_TYPES if homes[name]]
        types = list(tasks)
        unknown = [name for name in types if not homes.get(name)]
        if unknown or not types:
            served = [name for name in TASK_TYPES if homes[name]]
            raise ConfigurationError(f"task types {unknown or types} are not among {served} of {' and '.join(worlds)}")
        if not callable(difficulty):
            _check_level(difficulty, worlds[0])
        self.world, self.split, self.difficulty = world, split, difficulty
        self.task_types = tuple(types)
        self._homes, self._begun = homes, 0

    def __len__(self) -> int:
        return SPLIT_SIZE

    def task(self, seed: int) -> Task:
        """The task of a seed.

        Raises:
            TaskError: If the seed is negative, or no task can be made.
            ConfigurationError: If a schedule gives a difficulty that does not exist.
        """
        if seed < 0:
            raise TaskError(f"seed {seed} is negative")
        number = seed % SPLIT_SIZE
        turn, place = divmod(number, len(self.task_types))
        task_type = self.task_types[place]
        worlds = self._homes[task_type]
        world = worlds[turn % len(worlds)]
        return make_task(world, task_type, self._level(world, task_type), self.split, number)

    def record(self, task_type: str, success: bool) -> None:
        """Tells the curriculum, if there is one, how an episode ended."""
        if isinstance(self.difficulty, Learner):
            self.difficulty.record(task_type, success)

    def _level(self, world: str, task_type: str) -> int | None:
        if not callable(self.difficulty):
            return self.difficulty
        level = self.difficulty(self._begun, task_type)
        _check_level(level, world)
        self._begun += 1
        return level


def _check_level(level: int | None, world: str) -> None:
    if level is not None and type(level) is not int:
        raise ConfigurationError(f"difficulty {level!r} is not a whole number")
    world_of(world).counts(level)
