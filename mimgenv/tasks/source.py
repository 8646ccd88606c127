"""The contract between the environment and whatever makes its tasks."""

from __future__ import annotations

from typing import Protocol

from mimgenv.types import Task


class TaskSource(Protocol):
    """Serves tasks by seed. A task is a pure function of (generator version or data, seed)."""

    @property
    def task_types(self) -> tuple[str, ...]:
        """The types served."""
        ...

    def __len__(self) -> int:
        """Number of distinct tasks; seeds 0 … len-1 visit each once, and seed n is seed n mod len."""
        ...

    def task(self, seed: int) -> Task:
        """The task of a seed (>= 0).

        Raises:
            TaskError: If no task can be made.
        """
        ...
