"""Difficulty that changes with time or with success.

The `difficulty` of rendered tasks may be a whole number, None, or anything that can be called with the number of
episodes begun so far and the task type and returns one of these: a schedule. If it also has a method `record`, it is
told how each episode ended: a curriculum. The same seed then gives another task at another time; its id says which.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol, TypeAlias, runtime_checkable

from mimgenv.errors import ConfigurationError

LEVELS: Final = 5


class Schedule(Protocol):
    """Says how difficult the next task is."""

    def __call__(self, episode: int, task_type: str) -> int | None:
        """The difficulty, 1 to 5 or None, of the episode of that number, counted from 0 over all environments."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A schedule that learns from success."""

    def record(self, task_type: str, success: bool) -> None:
        """Takes note of how an episode of a type ended."""
        ...


Difficulty: TypeAlias = int | Schedule | None


class Curriculum:
    """One level per task type, which rises and falls with the share of recent successes.

    Args:
        up: A level is left upwards when at least this share of the window succeeded.
        down: A level is left downwards when at most this share of the window succeeded.
        window: Episodes of a type, at one level, that are looked at.
        first: The level to begin with, 1 to 5.

    Raises:
        ConfigurationError: If these are out of range.
    """

    def __init__(self, up: float = 0.8, down: float = 0.2, window: int = 32, first: int = 1) -> None:
        if not (0 <= down < up <= 1 and window >= 1 and 1 <= first <= LEVELS):
            raise ConfigurationError(f"0 <= {down} < {up} <= 1, window {window} >= 1, first {first} in 1 to {LEVELS}")
        self.up, self.down, self.window = up, down, window
        self.first, self.levels = first, dict[str, int]()
        self._recent: dict[str, deque[bool]] = {}

    def __call__(self, episode: int, task_type: str) -> int:
        """The level of the type."""
        return self.levels.get(task_type, self.first)

    def record(self, task_type: str, success: bool) -> None:
        """Takes note of an episode; a change of level starts a new window."""
        recent = self._recent.setdefault(task_type, deque(maxlen=self.window))
        recent.append(success)
        if len(recent) < self.window:
            return
        share, level = sum(recent) / self.window, self.levels.get(task_type, self.first)
        step = (share >= self.up and level < LEVELS) - (share <= self.down and level > 1)
        if step:
            self.levels[task_type] = level + step
            recent.clear()
