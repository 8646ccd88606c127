"""A selection of tasks by their ids, as rejection sampling leaves it, and a source that serves it: `selected:/path`.

Owns the form of the file, its checks, and the order in which tasks are served. A selection holds no task: any id that
`mimgenv.load_task` knows may stand in it, and the task that is served keeps that id. Who attempted the tasks and why
these were kept is not known here. One line per task, UTF-8, an object with these keys and no others:

    version     1
    task_id     once in a file
    task_type   of that task
    attempts    how often the task was attempted: a whole number of at least 1
    right       how many of the attempts were right: a whole number from 0 to `attempts`
    by          who attempted it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mimgenv.datasets.curated_files import line_of, read_lines, write_whole
from mimgenv.datasets.curated_tasks import GROUPS
from mimgenv.errors import ConfigurationError, DatasetError, MimgenvError, TaskError
from mimgenv.tasks.registry import TASK_GROUPS, load_task
from mimgenv.types import Task

VERSION: Final = 1
"""Written to every line; bumped when a key is renamed, removed or means something else."""

_KEYS: Final[dict[str, type]] = {"task_id": str, "task_type": str, "attempts": int, "right": int, "by": str}
_ORDER_SEED: Final = 20_250_700


@dataclass(frozen=True, slots=True)
class Selected:
    """One selected task.

    Attributes:
        task_id: `mimgenv.load_task` makes the task.
        task_type: Such as `referring`.
        attempts: How often it was attempted, at least 1.
        right: How many of the attempts were right, 0 to `attempts`.
        by: Who attempted it.

    Raises:
        ValueError: If a text is empty or a number out of its range.
    """

    task_id: str
    task_type: str
    attempts: int
    right: int
    by: str

    def __post_init__(self) -> None:
        for name in ("task_id", "task_type", "by"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        if self.attempts < 1 or not 0 <= self.right <= self.attempts:
            raise ValueError(f"right must be 0 to attempts, and those at least 1, not {self.right} of {self.attempts}")


def read_selection(path: str | Path) -> tuple[Selected, ...]:
    """Reads and checks a whole file; empty lines are passed over. No task is loaded.

    Raises:
        DatasetError: If the file or a line of it breaks a rule; the message names the file, the line and the fault.
    """
    return tuple(item for _, item in _numbered(Path(path)))


def write_selection(path: str | Path, items: Iterable[Selected]) -> None:
    """Writes a whole file at once: whenever the machine stops, there is the old file or the new one.

    Raises:
        DatasetError: If an id stands twice; nothing is written.
    """
    path, items = Path(path), tuple(items)
    ids: set[str] = set()
    for item in items:
        if item.task_id in ids:
            raise DatasetError(f"{path}: the id {item.task_id!r} stands twice")
        ids.add(item.task_id)
    write_whole(path, "".join(line_of({"version": VERSION} | asdict(item)) for item in items))


def _numbered(path: Path) -> Iterator[tuple[int, Selected]]:
    """The entries of a file with the numbers of their lines."""
    ids: set[str] = set()
    for number, value in read_lines(path):
        try:
            item = _selected(value)
            if item.task_id in ids:
                raise ValueError(f"the id {item.task_id!r} stands on an earlier line too")
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error
        ids.add(item.task_id)
        yield number, item


def _selected(value: object) -> Selected:
    if not isinstance(value, dict):
        raise TypeError(f"a line must be an object, not {type(value).__name__}")
    version = value.get("version")
    if type(version) is not int or version != VERSION:  # true is no version
        raise ValueError(f"unknown version {version!r}; this reader knows {VERSION}")
    if value.keys() != {"version", *_KEYS}:
        raise ValueError(f"the keys must be {['version', *_KEYS]}, not {[*value]}")
    for key, kind in _KEYS.items():
        if type(value[key]) is not kind:
            raise TypeError(f"{key} must be {kind.__name__}, not {type(value[key]).__name__}")
    return Selected(**{key: value[key] for key in _KEYS})


class SelectedTasks:
    """The tasks of a selection; a `TaskSource`.

    Args:
        file: JSON lines as the module states them.
        tasks: The types wanted, or `grounding` or `qa` for the tasks of one kind of truth; None for all. A type that
            the selection has lost is no error, as long as another one is left.

    Attributes:
        file: Its path.
        task_types: The types served.

    Raises:
        DatasetError: If the file breaks a rule or is empty, or a task whose kind of truth is asked for cannot be
            loaded.
        ConfigurationError: If no task of the wanted types is in it.
    """

    def __init__(self, file: str | Path, tasks: str | Sequence[str] | None = None) -> None:
        self.file = Path(file)
        lines = list(_numbered(self.file))
        if not lines:
            raise DatasetError(f"{self.file}: no task to serve: the selection is empty")
        served = [line for line in lines if self._wanted(*line, tasks)]
        if not served:
            found = sorted({item.task_type for _, item in lines})
            raise ConfigurationError(f"{self.file} has no task of {tasks}, its types are {found}")
        self.task_types = tuple(dict.fromkeys(item.task_type for _, item in served))
        self._order = [served[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(served))]

    def __len__(self) -> int:
        return len(self._order)

    def task(self, seed: int) -> Task:
        """The task of a seed (>= 0): seeds 0 … len-1 visit each one once, in a fixed permutation of the file.

        Raises:
            TaskError: If the seed is negative.
            DatasetError: If the task cannot be loaded, or is of another type than the file says; the message names the
                file and the line.
        """
        if seed < 0:
            raise TaskError(f"a seed is at least 0, not {seed}")
        return self._load(*self._order[seed % len(self)])

    def _load(self, number: int, item: Selected) -> Task:
        try:
            task = load_task(item.task_id)
        except MimgenvError as error:
            raise DatasetError(f"{self.file}, line {number}: {error}") from error
        if task.task_type != item.task_type:
            fault = f"{item.task_id} is of the type {task.task_type!r}, not {item.task_type!r}"
            raise DatasetError(f"{self.file}, line {number}: {fault}")
        return task

    def _wanted(self, number: int, item: Selected, tasks: str | Sequence[str] | None) -> bool:
        if tasks is None:
            return True
        if not isinstance(tasks, str) or tasks not in GROUPS:
            return item.task_type in ((tasks,) if isinstance(tasks, str) else tasks)
        if item.task_id.startswith("rendered:"):  # its type says it, without minutes of rendering
            return item.task_type in TASK_GROUPS[tasks]
        return isinstance(self._load(number, item).truth, GROUPS[tasks])
