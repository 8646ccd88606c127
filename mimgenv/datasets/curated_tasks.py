"""A curated set as a source of tasks: `curated:/path/to/file.jsonl`.

Owns which items are served and in what order. An item is one task; rejected ones are left out, those that nobody has
reviewed are not. Nothing beyond the truth is annotated, so a task lists no objects and has no siblings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from mimgenv.datasets.coco import read_pixels
from mimgenv.datasets.curated import Item, image_path
from mimgenv.datasets.curated_files import read_items
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.types import Grounding, Task, TextAnswer

GROUPS: Final[dict[str, type]] = {"grounding": Grounding, "qa": TextAnswer}
"""Groups of items by their kind of truth, whatever their task types are."""

_ORDER_SEED: Final = 20_251_209
_TASK_ID: Final = re.compile(r"curated:(.+)::([A-Za-z0-9._-]+)", re.DOTALL)


class CuratedTasks:
    """The items of a curated set that were not rejected; a `TaskSource`.

    Args:
        file: JSON lines as `mimgenv.datasets.curated` states them.
        tasks: The types wanted, or `grounding` or `qa` for the items of one kind of truth; None for all. The id of a
            task does not depend on it.

    Attributes:
        file: The absolute path without symbolic links, as it stands in task ids.
        task_types: The types served.

    Raises:
        DatasetError: If the file cannot be read, or no item is left to serve.
        ConfigurationError: If a wanted type is not in the file.
    """

    def __init__(self, file: str | Path, tasks: str | Sequence[str] | None = None) -> None:
        try:
            self.file = Path(file).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise DatasetError(f"{str(file)!r} is no path ({error})") from error
        items = read_items(self.file)
        self._items = {item.id: item for item in items if item.review is None or item.review.verdict != "rejected"}
        if not self._items:
            raise DatasetError(f"{self.file}: no item to serve: {len(items)} in the file, {len(items)} rejected")
        served = self._chosen(tasks)
        self.task_types = tuple(dict.fromkeys(item.task_type for item in served))
        self._order = [served[i].id for i in np.random.default_rng(_ORDER_SEED).permutation(len(served))]

    def __len__(self) -> int:
        return len(self._order)

    def task(self, seed: int) -> Task:
        """The task of a seed (>= 0): seeds 0 … len-1 visit each item once, in a fixed permutation of the file.

        Raises:
            TaskError: If the seed is negative.
            DatasetError: If an image has become unreadable.
        """
        if seed < 0:
            raise TaskError(f"a seed is at least 0, not {seed}")
        return self.by_id(self._order[seed % len(self)])

    def by_id(self, item_id: str) -> Task:
        """The task of an item, whether or not its type was asked for.

        Raises:
            TaskError: If there is no such item, or it was rejected.
            DatasetError: If an image has become unreadable.
        """
        if item_id not in self._items:
            raise TaskError(f"{self.file} serves no item {item_id!r}")
        item = self._items[item_id]
        try:
            paths = [image_path(self.file.parent, name) for name in item.images]
        except ValueError as error:
            raise DatasetError(f"{self.file}: item {item_id}: {error}") from error
        return Task(
            task_id=f"curated:{self.file}::{item_id}",
            task_type=item.task_type,
            images=tuple(map(read_pixels, paths)),
            question=item.full_question,
            truth=item.truth,
            rationale=item.truth.label if isinstance(item.truth, Grounding) else item.truth.text,
            objects=((),) * len(paths),
        )

    def _chosen(self, tasks: str | Sequence[str] | None) -> list[Item]:
        items = list(self._items.values())
        if tasks is None:
            return items
        if isinstance(tasks, str) and tasks in GROUPS:
            served = [item for item in items if isinstance(item.truth, GROUPS[tasks])]
        else:
            tasks = (tasks,) if isinstance(tasks, str) else tasks
            types = {item.task_type for item in items}
            unknown = [name for name in tasks if name not in types]
            if unknown or not tasks:
                raise ConfigurationError(
                    f"task types {unknown or list(tasks)} are not among {sorted(types)} of {self.file}"
                )
            served = [item for item in items if item.task_type in tasks]
        if not served:
            raise ConfigurationError(f"{self.file} has no {tasks} tasks")
        return served


@lru_cache(maxsize=8)
def _opened(file: str) -> CuratedTasks:
    return CuratedTasks(file)


def load_curated_task(task_id: str) -> Task:
    """Makes the task of an id `curated:<absolute file>::<item>` again. The last few files stay open.

    Raises:
        TaskError: If the id is malformed, or its file serves no such item.
        DatasetError: If the file or an image cannot be read.
    """
    match = _TASK_ID.fullmatch(task_id)
    if match is None or not Path(match[1]).is_absolute():
        raise TaskError(f"{task_id!r} is not of the form curated:<absolute file>::<item>")
    task = _opened(match[1]).by_id(match[2])
    if task.task_id != task_id:
        raise TaskError(f"no such task: {task_id}; its file is {_opened(match[1]).file}")
    return task
