"""ODINW: multi-image grounding on real photographs with COCO annotations (arXiv 2204.08790).

Owns which tasks a folder can support, and how photographs are put together so that the target is unique. Reads files
through `coco` only. Photographs of a folder become items (a photograph and a class with exactly one box in it), and
each item of each type is one task; the same folder always gives the same tasks.

What the annotations do not say is not used. Where an annotation was left out (no area, a crowd), its class is neither
once in that photograph nor absent from it. A class that nearly every photograph shows is absent from none: where it
is not annotated, annotators have most likely overlooked it (in BCCD, red cells fill the photographs without any red
cell annotated).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from mimgenv.datasets.coco import Photograph, read_coco, read_pixels
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.types import Grounding, Task

MIN_ABSENT_SHARE: Final = 0.1
"""The part of a folder's photographs that must lack a class before its absence from any of them is believed."""

COMPANIONS: Final = (1, 2, 3)
"""How many photographs may be shown beside the target's, where a type shows several."""

QUESTIONS: Final = {
    "locate": "Find the {label} in Image-{image}.",
    "group_grounding": "Find the {label}: in which image is it, and where?",
    "common_object": "These images share one kind of object. Find it in Image-{image}.",
}
RATIONALES: Final = {
    "locate": "Image-{image} has one {label}.",
    "group_grounding": "The {label} is in Image-{image}; {others} none.",
    "common_object": "{label} is the only kind in every image; Image-{image} has one.",
}
TASK_TYPES: Final = tuple(QUESTIONS)

_ORDER_SEED: Final = 20_220_408
_TASK_ID: Final = re.compile(r"odinw:(.+)::([a-z_]+)::(0|[1-9][0-9]{0,8})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Item:
    """A photograph, by its place in the folder, and a class with exactly one box in it."""

    photograph: int
    label: str


class _Census:
    """Which classes each photograph shows, and which it may show: everything uniqueness is decided from."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self.shown = tuple(frozenset(o.label for o in photograph.objects) for photograph in photographs)
        self.classes = frozenset(label for labels in self.shown for label in labels)
        noted = [shown | photograph.doubtful for shown, photograph in zip(self.shown, photographs, strict=True)]
        counts = Counter(label for labels in noted for label in labels)
        missing = {label: len(noted) - count for label, count in counts.items()}
        self.everywhere = frozenset(label for label, count in missing.items() if count < MIN_ABSENT_SHARE * len(noted))
        self.possible = tuple(labels | self.everywhere for labels in noted)
        self.having = {label: _places(self.shown, label, True) for label in counts}
        self.lacking = {label: _places(self.possible, label, False) for label in counts}
        self._kinds = {  # one photograph for each set of classes: enough to know whether companions exist
            label: tuple({self.possible[i]: i for i in places}.values()) for label, places in self.having.items()
        }

    def rivals(self, item: _Item) -> frozenset[str]:
        """The other classes that the item's photograph may show."""
        return self.possible[item.photograph] - {item.label}

    def supports(self, task_type: str, item: _Item) -> bool:
        """Whether companions exist that make the item's target unique."""
        if task_type == "locate":
            return True
        if task_type == "group_grounding":
            return len(self.classes) > 1 and bool(self.lacking[item.label])
        enough = len(self.classes) > 1 and len(self.having[item.label]) > 1
        covers = (_cover(self._kinds[item.label], self.rivals(item), self.possible, n) for n in (0, *COMPANIONS))
        return enough and any(cover is not None for cover in covers)

    def companions(self, task_type: str, item: _Item, rng: np.random.Generator) -> tuple[int, ...]:
        """Photographs to show beside the item's, for a type and item that are supported."""
        if task_type == "locate":
            return ()
        common = task_type == "common_object"
        pool = self.having[item.label] if common else self.lacking[item.label]
        order = [pool[i] for i in rng.permutation(len(pool)) if pool[i] != item.photograph]
        rivals = self.rivals(item) if common else frozenset()
        covers = (_cover(order, rivals, self.possible, int(count)) for count in rng.permutation(COMPANIONS))
        return next(cover for cover in covers if cover is not None)


def _places(sets: Sequence[frozenset[str]], label: str, having: bool) -> tuple[int, ...]:
    return tuple(i for i, labels in enumerate(sets) if (label in labels) == having)


def _cover(
    order: Sequence[int], rivals: frozenset[str], possible: Sequence[frozenset[str]], count: int
) -> tuple[int, ...] | None:
    """The first `count` photographs of `order` that lack each rival at least once between them, if there are any."""
    if not count:
        return None if rivals else ()
    rival = min(rivals, default="")  # one of them must lack it: trying those first loses nothing
    tried = set()
    for place in order:
        left = rivals & possible[place]
        if left in tried or rival in left:
            continue
        rest = _cover([other for other in order if other != place], left, possible, count - 1)
        if rest is not None:
            return place, *rest
        tried.add(left)  # photographs that leave the same rivals lead to the same end
    return None


def _items(photographs: Sequence[Photograph]) -> tuple[_Item, ...]:
    items = []
    for place, photograph in enumerate(photographs):
        counts = Counter(annotated.label for annotated in photograph.objects)
        items += [_Item(place, label) for label, n in counts.items() if n == 1 and label not in photograph.doubtful]
    return tuple(items)


def _reason(task_type: str, items: Sequence[_Item], census: _Census) -> str:
    """Why a type without items has none."""
    if not items:
        return "no photograph has exactly one box of a class"
    if len(census.classes) < 2:
        return f"two classes are needed, and {_listed(census.classes)} is the only one"
    everywhere = f"in more than {1 - MIN_ABSENT_SHARE:.0%} of the photographs, so in none surely absent"
    if task_type == "group_grounding":
        labels = {item.label for item in items}
        return f"each class that a photograph shows once is {everywhere}: {_listed(labels)}"
    reason = "no 2 to 4 photographs have exactly one class in common that one of them shows once"
    return f"{reason}; {everywhere}: {_listed(census.everywhere)}" if census.everywhere else reason


def _listed(labels: frozenset[str] | set[str]) -> str:
    return ", ".join(repr(label) for label in sorted(labels))


class OdinwTasks:
    """The tasks of one ODINW split, or of any folder of the same form; a `TaskSource`.

    Args:
        folder: Holds `annotations_without_background.json` and the images.
        tasks: The types wanted; all that the folder supports where None. The id of a task does not depend on it.

    Attributes:
        folder: The absolute folder without symbolic links, as it stands in task ids.
        task_types: The types served.
        unsupported: Type to reason, for the types that this folder cannot support.
        skipped: One sentence per annotation that was left out.

    Raises:
        DatasetError: If the folder cannot be read, or supports no type at all.
        ConfigurationError: If a wanted type is unknown or not supported.
    """

    def __init__(self, folder: str | Path, tasks: Sequence[str] | None = None) -> None:
        read = read_coco(folder)
        self.folder = read.file.parent
        self.skipped = read.skipped
        self._photographs = read.photographs
        self._census = _Census(read.photographs)
        candidates = _items(read.photographs)
        supported = {t: tuple(i for i in candidates if self._census.supports(t, i)) for t in TASK_TYPES}
        self._items = {task_type: items for task_type, items in supported.items() if items}
        self.unsupported: Mapping[str, str] = {
            t: _reason(t, candidates, self._census) for t in TASK_TYPES if t not in self._items
        }
        if not self._items:
            reasons = "; ".join(f"{task_type}: {reason}" for task_type, reason in self.unsupported.items())
            raise DatasetError(f"{read.file}: no task can be made of it: {reasons}")
        self.task_types = self._chosen(tasks)
        served = [(task_type, number) for task_type in self.task_types for number in range(self.count(task_type))]
        self._order = [served[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(served))]

    def __len__(self) -> int:
        return len(self._order)

    def count(self, task_type: str) -> int:
        """Number of items of a type; 0 where the folder does not support it."""
        return len(self._items.get(task_type, ()))

    def task(self, seed: int) -> Task:
        """The task of a seed (>= 0): seeds 0 … len-1 visit each item once, types and photographs mixed.

        Raises:
            TaskError: If the seed is negative.
            DatasetError: If a photograph has become unreadable.
        """
        if seed < 0:
            raise TaskError(f"a seed is at least 0, not {seed}")
        return self.by_id(*self._order[seed % len(self)])

    def by_id(self, task_type: str, number: int) -> Task:
        """Item `number` (from 0) of a type's own list, whether or not the type was asked for.

        Raises:
            TaskError: If there is no such item.
            DatasetError: If a photograph has become unreadable.
        """
        if not 0 <= number < self.count(task_type):
            why = self.unsupported.get(task_type, f"it has {self.count(task_type)} items")
            raise TaskError(f"{self.folder} has no item {number} of type {task_type!r}: {why}")
        item = self._items[task_type][number]
        rng = np.random.default_rng((TASK_TYPES.index(task_type), number))
        companions = self._census.companions(task_type, item, rng)
        shown = [int(place) for place in rng.permutation(companions)]
        image = int(rng.integers(len(shown) + 1)) + 1
        shown.insert(image - 1, item.photograph)
        return self._build(f"odinw:{self.folder}::{task_type}::{number}", task_type, item.label, shown, image)

    def _chosen(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        wanted = tuple(self._items) if tasks is None else tuple(tasks)
        if not wanted:
            raise ConfigurationError("tasks must name at least one type, it is empty")
        for task_type in wanted:
            if task_type in self.unsupported:
                raise ConfigurationError(f"{self.folder} cannot support {task_type!r}: {self.unsupported[task_type]}")
            if task_type not in self._items:
                raise ConfigurationError(f"unknown task type {task_type!r}; the types are {', '.join(TASK_TYPES)}")
        return tuple(task_type for task_type in TASK_TYPES if task_type in wanted)

    def _build(self, task_id: str, task_type: str, label: str, shown: Sequence[int], image: int) -> Task:
        photographs = [self._photographs[place] for place in shown]
        box = next(annotated.box for annotated in photographs[image - 1].objects if annotated.label == label)
        others = [f"Image-{i}" for i in range(1, len(shown) + 1) if i != image]
        having = " and ".join(others) + (" has" if len(others) == 1 else " have")
        return Task(
            task_id=task_id,
            task_type=task_type,
            images=tuple(read_pixels(photograph.path) for photograph in photographs),
            question=QUESTIONS[task_type].format(label=label, image=image),
            truth=Grounding(image, label, box),
            rationale=RATIONALES[task_type].format(label=label, image=image, others=having),
            objects=tuple(photograph.objects for photograph in photographs),
            named_image=None if task_type == "group_grounding" else image,
        )


@lru_cache(maxsize=8)
def _opened(folder: str) -> OdinwTasks:
    return OdinwTasks(folder)


def load_odinw_task(task_id: str) -> Task:
    """Makes the task of an id `odinw:<absolute folder>::<type>::<n>` again. The last few folders stay open.

    Raises:
        TaskError: If the id is malformed, or its folder holds no such task.
        DatasetError: If the folder or a photograph cannot be read.
    """
    match = _TASK_ID.fullmatch(task_id)
    if match is None or not Path(match[1]).is_absolute():
        raise TaskError(f"{task_id!r} is not of the form odinw:<absolute folder>::<type>::<n>")
    return _opened(match[1]).by_id(match[2], int(match[3]))
