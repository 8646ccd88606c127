"""One episode under watch: what must hold of every message an environment gives is asserted of every message."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Self, TypeAlias

import gymnasium as gym
import numpy as np

from mimgenv.env import CHARACTERS_PER_TOKEN, STOPS, MultiImageEnv
from mimgenv.errors import TURN_ERRORS, TaskError
from mimgenv.rewards import total_reward
from mimgenv.spaces import UnicodeText
from mimgenv.tasks.registry import load_task
from mimgenv.testing.hostile import answer, call
from mimgenv.types import Grounding, Image, Observation, Task

Env: TypeAlias = gym.Env[Observation, Any]

INFO: Final = {"reward_parts", "error", "stop", "budget", "task_id", "task_type", "answer_kind"}


class Episode:
    """Starts an episode and plays it turn by turn.

    Args:
        env: A `MultiImageEnv`, wrapped at most by what keeps its observations; its actions are ids or text.
        seed: Of the episode.
        limits: Budgets to set first, such as `max_turns`.
        scribble: Whether to overwrite every image as soon as it was read.

    Attributes:
        said: Every message so far: observation, reward, terminated, truncated, info.
        transcript: All that was said, as text and bytes: to compare episodes by.
        started: How many images it started with.
    """

    def __init__(self, env: Env, seed: int, limits: Mapping[str, int] | None = None, scribble: bool = False) -> None:
        assert isinstance(env.unwrapped, MultiImageEnv), f"an environment is a MultiImageEnv, not {env.unwrapped}"
        self.env, self.inner, self.seed, self.scribble = env, env.unwrapped, seed, scribble
        for name, value in (limits or {}).items():
            setattr(self.inner, name, value)
        self.said: list[tuple[Observation, float, bool, bool, dict[str, Any]]] = []
        self.transcript: list[str | bytes] = []
        self._handed: list[Image] = []
        observation, self.info = env.reset(seed=seed)
        self._check_info(0.0, False, False)
        assert self.info["stop"] is self.info["error"] is None, f"reset tells no stop and no error: {self.info}"
        self._take(observation, 0.0, False, False)
        self.started = len(self._handed)
        assert self.started, "an episode starts with an image"

    def play(self, *turns: str) -> Self:
        """Plays turns, in the form of the environment's actions, until the episode ends."""
        for turn in turns:
            if self.info["stop"] is None:
                self.step(self.form(turn))
        return self

    def step(self, action: Any) -> None:
        """Plays one action and checks all that comes back."""
        before = self.info
        try:
            result: Any = self.env.step(action)
        except Exception as error:
            raise AssertionError(f"nothing an agent sends makes a step raise: {error!r} for {action!r:.99}") from error
        observation, reward, terminated, truncated, self.info = result
        self._check_info(reward, terminated, truncated)
        self._check_reply(observation, before)
        self._take(observation, reward, terminated, truncated)

    def form(self, turn: str) -> Any:
        """A turn as an action: ids, or text where the environment takes text."""
        return turn if isinstance(self.env.action_space, UnicodeText) else self.inner.codec.encode_turn(turn)

    def cost(self, turn: str) -> int:
        """The tokens a turn is charged."""
        action = self.form(turn)
        return -(-len(action) // CHARACTERS_PER_TOKEN) if isinstance(action, str) else len(action)

    @property
    def task(self) -> Task:
        """The task with its truth."""
        try:
            return load_task(self.info["task_id"])
        except TaskError:  # a source of one's own, which gives out ids of its own
            return self.inner.source.task(self.seed)

    def right(self) -> str:
        """The turn that answers the truth."""
        truth = self.task.truth
        if not isinstance(truth, Grounding):
            return answer(truth.text)
        box = self.inner.views[truth.image - 1].from_original(truth.box, self.inner.box_frame)
        return answer(_box_json(truth.image, truth.label, box))

    def wrong(self) -> str:
        """A turn of the same form that is wrong: another text, or the same box in no more than a corner of itself."""
        truth = self.task.truth
        if not isinstance(truth, Grounding):
            return answer(f"not {truth.text}")
        x1, y1, x2, y2 = self.inner.views[truth.image - 1].from_original(truth.box, self.inner.box_frame)
        return answer(_box_json(truth.image, truth.label, (x1, y1, x1 + (x2 - x1) / 4, y1 + (y2 - y1) / 4)))

    def call(self) -> str | None:
        """A turn that calls the first tool on all of Image-1; None without tools."""
        for tool in self.inner.tools.values():
            width, height = self.inner.views[0].extent(self.inner.box_frame)
            values = {"image": 1, "bbox_2d": [0, 0, width, height], "label": "all"}
            return call(tool.name, **{name: values[name] for name in tool.parameters})
        return None

    def _check_info(self, reward: float, terminated: bool, truncated: bool) -> None:
        info, stop = self.info, self.info.get("stop")
        assert info.keys() >= INFO, f"info holds {sorted(INFO)}, not only {sorted(info)}"
        assert ("success" in info) == (stop is not None), f"success is told at the end and only there: {info}"
        assert stop is None or stop in STOPS, f"stop {stop!r} is None or one of {STOPS}"
        assert info["error"] is None or info["error"] in TURN_ERRORS, f"error {info['error']!r} is None or a known code"
        names = self.said[0][4]["reward_parts"].keys() if self.said else info["reward_parts"].keys()
        assert info["reward_parts"].keys() == names, f"the parts keep their names: {names}, {info['reward_parts']}"
        ends = (stop == "answered", stop not in (None, "answered"))
        told = (terminated, truncated)
        assert told == ends, f"an answer terminates, a budget truncates: {told} for {stop!r}"
        assert min(info["budget"].values()) >= 0, f"no budget is overdrawn: {info['budget']}"
        assert isinstance(reward, float) and math.isfinite(reward), f"a reward is a finite float, not {reward!r}"
        due = 0.0 if stop is None else total_reward(self.inner.reward, info["reward_parts"])
        assert reward == due, f"the weighted parts are paid at the end, nothing before: {reward}, not {due}"

    def _check_reply(self, observation: Observation, before: dict[str, Any]) -> None:
        error, stop, images = self.info["error"], self.info["stop"], len(observation["images"])
        for key in ("task_id", "task_type"):
            assert self.info[key] == before[key], f"{key} stays: {before[key]}, then {self.info[key]}"
        left, had = self.info["budget"], before["budget"]
        assert left["turns"] == had["turns"] - 1, f"every turn counts, whatever it holds: {had}, then {left}"
        assert left["images"] == had["images"] - images, f"every image shown counts: {had}, then {left}, {images} shown"
        assert left["tokens"] <= had["tokens"], f"tokens are spent, never given: {had}, then {left}"
        nothing = images == 0 and observation["text"] == ""
        assert stop is None or nothing, f"the message at the end is empty: {observation['text']!r}, {images} images"
        told = images == 0 and observation["text"].startswith(f"Error ({error}): {TURN_ERRORS.get(error, '')}")
        assert stop is not None or error is None or told, f"after a bad turn, its code is told: {observation['text']!r}"

    def _take(self, observation: Observation, reward: float, terminated: bool, truncated: bool) -> None:
        """Checks what is shown, and keeps it."""
        assert self.env.observation_space.contains(observation), f"the space contains {observation!r:.200}"
        images, text, first = observation["images"], observation["text"], len(self._handed) + 1
        announced = [int(number) for number in re.findall(r"Image-(\d+): <image>", text)]
        due = list(range(first, first + len(images)))
        assert announced == due and text.count("<image>") == len(due), (
            f"one marker per image, numbered over the episode: Image-{due}, not {announced}, in {text!r}"
        )
        kept = [*self._handed, *(view.pixels for view in self.inner.views)]
        for image in images:
            used = any(np.may_share_memory(image, other) for other in kept)
            assert not used, "an array handed out is used nowhere else"
            kept.append(image)
        self._handed += images
        told = [f"{key}: {self.info[key]!r}" for key in sorted(self.info)]
        self.transcript += [text, *(b"%d %d " % i.shape[:2] + i.tobytes() for i in images), str(reward), *told]
        self.said.append((observation, reward, terminated, truncated, self.info))
        for image in images if self.scribble else ():
            image[:] = 255 - image


def _box_json(image: int, label: str, box: tuple[float, ...]) -> str:
    return json.dumps({"image": image, "label": label, "bbox_2d": [round(value, 4) for value in box]})
