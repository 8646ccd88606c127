"""Where tasks come from: source strings to sources, and task ids back to tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from mimgenv.curriculum import Difficulty
from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.tasks.rendered import GROUNDING_TYPES, QA_TYPES, RenderedTasks, load_rendered_task
from mimgenv.tasks.siblings import siblings
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Task

SOURCES: Final = ("odinw", "curated", "selected")
"""What may stand before the colon of a source string."""

TASK_GROUPS: Final = {"grounding": GROUNDING_TYPES, "qa": QA_TYPES}

_SIBLING: Final = re.compile(r"(.+)\+(0|[1-9][0-9]{0,5})", re.DOTALL)


def open_source(
    source: str | TaskSource | None,
    world: str | None,
    tasks: str | Sequence[str] | None,
    split: str,
    difficulty: Difficulty,
) -> TaskSource:
    """Opens `source`, or the rendered tasks where it is None.

    Args:
        source: None, `odinw:/path/to/folder`, `curated:/path/to/file.jsonl`, `selected:/path/to/tasks.jsonl`, or a
            source of your own.
        world: Of rendered tasks; None for the ordinary worlds in turn.
        tasks: Names of task types, one name, or a group: `grounding` or `qa`; None for all.
        split: Of rendered tasks.
        difficulty: Of rendered tasks.

    Raises:
        ConfigurationError: If it names no known kind of source.
        DatasetError: If the data it points to cannot be served.
    """
    if isinstance(tasks, str) and tasks not in TASK_GROUPS:
        tasks = (tasks,)
    if source is None:
        if isinstance(tasks, str):
            tasks = tuple(name for name in RenderedTasks(world).task_types if name in TASK_GROUPS[tasks])
        return RenderedTasks(world, tasks, split, difficulty)
    if not isinstance(source, str):
        return source
    kind, _, path = source.partition(":")
    if kind not in SOURCES or not path:
        raise ConfigurationError(f"source {source!r} is not one of {[f'{name}:/path' for name in SOURCES]}")
    # What reads files is imported only where asked for.
    if kind == "curated":
        from mimgenv.datasets.curated_tasks import CuratedTasks

        return CuratedTasks(path, tasks)
    if kind == "selected":
        from mimgenv.datasets.selected import SelectedTasks

        return SelectedTasks(path, tasks)
    if tasks == "qa":
        raise ConfigurationError(f"{source} has no QA tasks")
    from mimgenv.datasets.odinw import OdinwTasks

    return OdinwTasks(path, None if isinstance(tasks, str) else tasks)


@lru_cache(maxsize=256)
def load_task(task_id: str) -> Task:
    """Makes a task again, with its truth, from the id that `info["task_id"]` gave.

    Only the oracle, the metrics, the viewer and the tests have a reason to call it.

    Raises:
        TaskError: If there is no such task.
        DatasetError: If the data that the id points to cannot be read.
    """
    match = _SIBLING.fullmatch(task_id)
    base = match[1] if match else task_id
    if base.startswith("rendered:"):
        task = load_rendered_task(base)
    elif base.startswith("odinw:"):
        from mimgenv.datasets.odinw import load_odinw_task

        task = load_odinw_task(base)
    elif base.startswith("curated:"):
        from mimgenv.datasets.curated_tasks import load_curated_task

        task = load_curated_task(base)
    else:
        raise TaskError(f"no such task: {task_id}")
    if match is None:
        return task
    family = siblings(task)
    if int(match[2]) >= len(family):
        raise TaskError(f"no such task: {task_id}; {base} has {len(family)} siblings")
    return family[int(match[2])]
