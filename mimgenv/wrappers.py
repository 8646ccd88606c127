"""Wrappers that change the form of actions, or the content of images, and nothing else.

Those that change images answer the question whether an agent looks at all: sizes, texts, truth and rewards stay, so
what an agent loses is what it saw. `env.unwrapped` keeps its own images.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from mimgenv.env import CHARACTERS_PER_TOKEN, MultiImageEnv
from mimgenv.errors import TaskError
from mimgenv.geometry import View
from mimgenv.spaces import UnicodeText
from mimgenv.tools import resize, whole_pixels
from mimgenv.types import Image, Observation, Task

GREY: Final = 128
"""What every channel of a blank image holds."""

TRIES: Final = 64
"""Seeds that are looked at for another task of the same type."""


def _inner(env: gym.Env[Observation, Any]) -> MultiImageEnv:
    inner = env.unwrapped
    assert isinstance(inner, MultiImageEnv)
    return inner


class TextActions(gym.Wrapper[Observation, str, Observation, Any], RecordConstructorArgs):
    """Actions are text: handed to the parser without tokenizing, charged a token per four characters."""

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.action_space = UnicodeText(_inner(env).max_tokens * CHARACTERS_PER_TOKEN)


class BlankImages(gym.ObservationWrapper[Observation, Any, Observation], RecordConstructorArgs):
    """Every image is one flat grey of the same size, those that tools return included."""

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def observation(self, observation: Observation) -> Observation:
        """The same text, grey images."""
        return {
            "images": tuple(np.full_like(image, GREY) for image in observation["images"]),
            "text": observation["text"],
        }


class _OtherImages(gym.Wrapper[Observation, Any, Observation, Any], RecordConstructorArgs):
    """Other images stand in for a task's, at the same sizes.

    An image that a tool returns shows the same region of what stands in for the image it was made of, so that no tool
    gives the true images away; what the tool drew on it is not shown.
    """

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._stand_ins: tuple[Image, ...] = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode, with other images than its own."""
        observation, info = self.env.reset(seed=seed, options=options)
        task = _inner(self)._task
        assert task is not None
        others = self._others(task, None if options and "task_id" in options else seed)
        sizes = ((image.shape[1], image.shape[0]) for image in task.images)
        self._stand_ins = tuple(resize(other, *size) for other, size in zip(others, sizes, strict=True))
        return self._replaced(observation), info

    def step(self, action: Any) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Plays one turn; a new image is replaced."""
        observation, *rest = self.env.step(action)
        return self._replaced(observation), *rest  # type: ignore[return-value]

    def _replaced(self, observation: Observation) -> Observation:
        views = _inner(self).views
        new = views[len(views) - len(observation["images"]) :]
        return {"images": tuple(map(self._part, new)), "text": observation["text"]}

    def _part(self, view: View) -> Image:
        """What a view would show of the image that stands in for its own."""
        other = self._stand_ins[view.image - 1]
        x1, y1, x2, y2 = whole_pixels(view.region, other)
        return resize(other[y1:y2, x1:x2], *view.size)

    @abstractmethod
    def _others(self, task: Task, seed: int | None) -> tuple[Image, ...]:
        """One image per image of the task, of any sizes; the same ones for the same task and seed.

        Args:
            task: The true one.
            seed: That the source made it of; None where that is not known.
        """


class ShuffleImages(_OtherImages):
    """The task's images in another order, drawn from its id: never the true one where there are two or more.

    The truth stays: it names an image by its true number, where another one is now seen. A tool works on what is seen.
    """

    def _others(self, task: Task, seed: int | None) -> tuple[Image, ...]:
        rng, true_order = np.random.default_rng(list(task.task_id.encode())), np.arange(len(task.images))
        order = rng.permutation(true_order)
        while len(order) > 1 and (order == true_order).all():
            order = rng.permutation(true_order)
        return tuple(task.images[index] for index in order)


class SwapImages(_OtherImages):
    """The images of another task of the same source and type; where it has fewer, they come round again.

    It is the task of one of the next seeds, or, where the episode was started without a seed, of one that the task's
    id decides. A tool works on what is seen.

    Raises:
        TaskError: If the next seeds of the source hold no other task of the type.
    """

    def _others(self, task: Task, seed: int | None) -> tuple[Image, ...]:
        for other in self._candidates(task, seed):
            if other.task_type == task.task_type and other.task_id != task.task_id:
                return tuple(other.images[index % len(other.images)] for index in range(len(task.images)))
        raise TaskError(f"none of {TRIES} seeds of the source holds another task of type {task.task_type}")

    def _candidates(self, task: Task, seed: int | None) -> Iterator[Task]:
        source = _inner(self).source
        # Types mostly take turns with the seed, so the next task of a type is as many seeds away as there are types.
        step = len(source.task_types)
        if seed is None:
            seed, step = int(np.random.default_rng(list(task.task_id.encode())).integers(2**31)), 1
        return (source.task(seed + step * number) for number in range(1, TRIES + 1))
