"""An environment in which a random policy gets every kind of episode, and what a small run is compared by."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import mimgenv
from mimgenv.env import MultiImageEnv
from mimgenv.tasks.prefetch import PrefetchedTasks

WHIMS = "Whims-v0"


class Whims(MultiImageEnv):
    """The tiny world, but judged by ids alone: a random policy's rewards differ, and so do its stops and errors.

    Pays the share of even ids in the episode. In training, where no turn is read back, it takes the turns whose first
    id is no multiple of 3, and says that the turns ran out where the last id is a multiple of 4.
    """

    def reset(self, **given: Any) -> Any:
        self.said: list[int] = []
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        ids = [int(index) for index in action]
        self.said += ids
        over = terminated or truncated
        tasks = self.source.source if isinstance(self.source, PrefetchedTasks) else self.source
        if getattr(tasks, "split", None) == "train":
            info["error"] = info["error"] if ids[0] % 3 == 0 else None
            info["stop"] = "turn_limit" if over and ids[-1] % 4 == 0 else info["stop"]
        paid = sum(index % 2 == 0 for index in self.said) / len(self.said) if over else 0.0
        return observation, paid, terminated, truncated, info


gym.register(WHIMS, entry_point=Whims, kwargs=mimgenv.ENVIRONMENTS["MultiImageTiny-v0"])


@pytest.fixture(scope="session")
def whims() -> str:
    """The id of an environment that pays a random policy."""
    return WHIMS
