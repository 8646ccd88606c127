"""What can be known of a task without looking: its question, and what the answers to others like it were.

Owns the view of a task that blind policies get, and the habits they learn from training tasks. No pixel comes in here;
truths come in only to be learned from.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from mimgenv.tasks.rendered import RenderedTasks
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Box, Grounding, Task

ENOUGH: Final = 8
"""Fewer tasks that are alike make no habit."""

_STEPS: Final = (0.05, 0.025, 0.012, 0.006, 0.003, 0.0015)

T = TypeVar("T")
Boxes: TypeAlias = npt.NDArray[np.float64]
Key: TypeAlias = tuple[object, ...]
"""What a habit is for: tasks that are alike to a reader."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A task as one who does not look knows it. Boxes are in fractions of the image.

    What a careful reader would tell from the question is taken from the task's record: type, kind of answer, image.

    Attributes:
        task_type: Such as `referring`.
        question: The question alone.
        sizes: Width and height of each image, in pixels.
        grounding: Whether a box is wanted.
        named_image: The image that the question says the target is in, if it does.
    """

    task_type: str
    question: str
    sizes: tuple[tuple[int, int], ...]
    grounding: bool
    named_image: int | None

    @classmethod
    def of(cls, task: Task) -> Asked:
        """Of a task: neither pixels nor the truth get through."""
        sizes = tuple((image.shape[1], image.shape[0]) for image in task.images)
        return cls(task.task_type, task.question, sizes, isinstance(task.truth, Grounding), task.named_image)

    @property
    def options(self) -> str:
        """The letters of the options in the question, from A on; empty if there are none."""
        letters = set(re.findall(r"\b[A-H]\b", self.question))
        options = "".join(itertools.takewhile(lambda letter: letter in letters, string.ascii_uppercase))
        return options if len(options) > 1 else ""

    @property
    def mentioned(self) -> tuple[int, ...]:
        """Numbers of the images that the question mentions, in order."""
        numbers = (int(number) for number in re.findall(r"\bImage-(\d{1,3})\b", self.question))
        return tuple(number for number in numbers if 1 <= number <= len(self.sizes))

    @property
    def group(self) -> Key:
        """Equal for tasks that leave a reader the same choice of answers."""
        sizes = tuple(self.sizes[number - 1] for number in self.mentioned)
        return self.task_type, len(self.sizes), len(self.options), sizes

    def keys(self, by_question: bool) -> tuple[Key, ...]:
        """From what this task is most like to all tasks of its type."""
        wide = self.group, (self.task_type,)
        return ((self.task_type, self.question), *wide) if by_question else wide

    def fractions(self, place: Grounding) -> Box:
        """The box of a place in an image."""
        (width, height), (x1, y1, x2, y2) = self.sizes[place.image - 1], place.box
        return x1 / width, y1 / height, x2 / width, y2 / height


@dataclass(frozen=True, slots=True)
class Habits:
    """The best constant answers to the tasks of each key of which there were `ENOUGH`.

    Attributes:
        boxes: The box of highest mean IoU.
        images: The image that most often held the target.
        answers: All answers in text, the most frequent first.
    """

    boxes: Mapping[Key, Box] = field(default_factory=dict)
    images: Mapping[Key, int] = field(default_factory=dict)
    answers: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)


def learn_habits(tasks: Iterable[Task]) -> Habits:
    """Habits from the truths of tasks, which should not be those that are to be played."""
    boxes: dict[Key, list[Box]] = defaultdict(list)
    images: dict[Key, Counter[int]] = defaultdict(Counter)
    answers: dict[Key, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        asked = Asked.of(task)
        for key in asked.keys(by_question=True):
            if isinstance(task.truth, Grounding):
                boxes[key].append(asked.fractions(task.truth))
                images[key][task.truth.image] += 1
            else:
                answers[key][task.truth.text] += 1
    return Habits(
        boxes={key: best_box(np.array(seen)) for key, seen in boxes.items() if len(seen) >= ENOUGH},
        images={key: _ranked(seen)[0] for key, seen in images.items() if seen.total() >= ENOUGH},
        answers={key: _ranked(seen) for key, seen in answers.items() if seen.total() >= ENOUGH},
    )


def _ranked(counts: Counter[T]) -> tuple[T, ...]:
    return tuple(value for value, _ in counts.most_common())


def best_box(boxes: Boxes) -> Box:
    """The one box of highest mean IoU with (N, 4) boxes, all in fractions of an image.

    The best on a grid of tenths, whose edges then move by ever smaller steps where that helps.
    """
    spans = list(itertools.combinations(np.linspace(0, 1, 11), 2))
    candidates = np.array([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in itertools.product(spans, spans)])
    best = candidates[mean_iou(candidates, boxes).argmax()]
    for step in _STEPS:
        moved = best + step * np.array(list(itertools.product((0, -1, 1), repeat=4)))
        moved = moved[((moved >= 0) & (moved <= 1)).all(1) & (moved[:, :2] < moved[:, 2:]).all(1)]
        best = moved[mean_iou(moved, boxes).argmax()]
    x1, y1, x2, y2 = map(float, best)
    return x1, y1, x2, y2


def mean_iou(candidates: Boxes, boxes: Boxes) -> Boxes:
    """Mean IoU of each of (C, 4) boxes with (N, 4) boxes, (C,)."""
    low = np.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(some[:, 2:] - some[:, :2]).prod(-1) for some in (candidates, boxes)]
    return np.asarray((common / (areas[0][:, None] + areas[1][None] - common)).mean(1))


def training_tasks(source: TaskSource, count: int) -> Iterator[Task]:
    """Tasks to learn habits from, about `count` of each type.

    Those of the train split; a source without splits has only its own, which makes habits a little too good.
    """
    if isinstance(source, RenderedTasks):
        source = RenderedTasks(source.world, source.task_types, "train", source.difficulty)
    return (source.task(seed) for seed in range(min(count * len(source.task_types), len(source))))
