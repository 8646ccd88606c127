"""Where tasks come from: source strings to sources, and task ids back to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.tasks.rendered import TASK_TYPES, RenderedTasks, load_rendered_task
from mimgenv.tasks.siblings import siblings
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Task

SOURCES: Final = ("odinw",)
"""What may stand before the colon of a source string."""


def open_source(
    source: str | TaskSource | None, world: str, tasks: Sequence[str] | None, split: str, difficulty: int | None
) -> TaskSource:
    """Opens `source`, or the rendered tasks of `world` where it is None.

    Raises:
        ConfigurationError: If it names no known kind of source.
        DatasetError: If the data it points to cannot be served.
    """
    if source is None:
        return RenderedTasks(world, tasks or tuple(TASK_TYPES), split, difficulty)
    if not isinstance(source, str):
        return source
    kind, _, path = source.partition(":")
    if kind != "odinw" or not path:
        raise ConfigurationError(f"source {source!r} is not one of {[f'{name}:/path' for name in SOURCES]}")
    from mimgenv.datasets.odinw import OdinwTasks  # reads photographs: only where asked for

    return OdinwTasks(path, tasks)


def load_task(task_id: str) -> Task:
    """Makes a task again, with its truth, from the id that `info["task_id"]` gave.

    Only the oracle, the metrics, the viewer and the tests have a reason to call it.

    Raises:
        TaskError: If there is no such task.
    """
    base, _, sibling = task_id.rpartition("+") if _is_sibling(task_id) else (task_id, "", "")
    if base.startswith("rendered:"):
        task = load_rendered_task(base)
    elif base.startswith("odinw:"):
        from mimgenv.datasets.odinw import load_odinw_task

        task = load_odinw_task(base)
    else:
        raise TaskError(f"no such task: {task_id}")
    if not sibling:
        return task
    family = siblings(task)
    if int(sibling) >= len(family):
        raise TaskError(f"no such task: {task_id}; {base} has {len(family)} siblings")
    return family[int(sibling)]


def _is_sibling(task_id: str) -> bool:
    base, plus, number = task_id.rpartition("+")
    return bool(plus) and number.isdecimal() and bool(base)
