"""Tasks made ahead of time in other processes, so that a trainer never waits for scenes.

Owns the processes and what they have made. Seeds are mostly asked for in order: whoever asks for one gets the next
ones put to work. What a task holds does not change, only when it is made.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import OrderedDict
from concurrent.futures import Future, ProcessPoolExecutor
from threading import Thread
from types import TracebackType
from typing import Final, Self

from mimgenv.errors import ConfigurationError
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Task

START: Final = "spawn"
"""Forking a process that holds threads (torch's, say) may leave it hanging."""

_source: TaskSource


class PrefetchedTasks:
    """A source that makes the tasks of coming seeds in other processes.

    A script that uses it needs the guard `if __name__ == "__main__":`, as for any process that is spawned.

    Args:
        source: Makes the tasks; it is sent to each process once.
        workers: Number of processes.
        ahead: Seeds after the last one asked for that are made ahead, and most tasks that are kept.

    Raises:
        ConfigurationError: If one of the numbers is below 1, or the difficulty of the source is a schedule, which
            would have to be asked ahead of time.
    """

    def __init__(self, source: TaskSource, workers: int = 1, ahead: int = 64) -> None:
        if min(workers, ahead) < 1:
            raise ConfigurationError(f"workers {workers} and ahead {ahead} must be at least 1")
        if callable(getattr(source, "difficulty", None)):
            raise ConfigurationError("tasks of a difficulty that changes with time cannot be made ahead of it")
        self.source, self.ahead = source, ahead
        self._made: OrderedDict[int, Future[Task]] = OrderedDict()
        context = multiprocessing.get_context(START)
        self._pool = ProcessPoolExecutor(workers, context, initializer=_keep, initargs=(source,))

    @property
    def task_types(self) -> tuple[str, ...]:
        """The types served."""
        return self.source.task_types

    def __len__(self) -> int:
        return len(self.source)

    def task(self, seed: int) -> Task:
        """The task of a seed; the seeds after it are put to work.

        Raises:
            TaskError: If no task can be made.
        """
        for coming in range(seed, seed + self.ahead):
            if coming not in self._made:
                self._made[coming] = self._pool.submit(_make, coming)
        self._made.move_to_end(seed)
        while len(self._made) > 2 * self.ahead:
            self._made.popitem(last=False)[1].cancel()
        return self._made[seed].result()

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _keep(source: TaskSource) -> None:
    global _source
    _source = source
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process, from now on, when its parent was killed, which cannot tell it to."""
    Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make(seed: int) -> Task:
    return _source.task(seed)
