"""What is shown to people: episodes that were played, and episodes that wait for an agent.

Owns the way to both: from records on disk, whose images are made again, from an environment while it plays, and from
seeds of one, for people who design tasks. Writes an episode as plain text; knows no HTML, `viewer` lays that out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import gymnasium as gym

from mimgenv.errors import ConfigurationError, DatasetError, TurnError
from mimgenv.geometry import View
from mimgenv.parsing import ToolCall, parse_turn
from mimgenv.records import EpisodeRecord, EpisodeTurn, ViewRecord, called_tools, read_records
from mimgenv.tools import TOOLS, Tool, ToolContext, call_tool, resize
from mimgenv.types import Answer, Image, Observation, Task

MAX_SEEDS: Final = 1000
"""Tasks of one preview: more would make a page that no browser opens."""

_SEEDS: Final = re.compile(r"([0-9]{1,18})(?::([0-9]{1,18}))?")

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f]")
_UNSEEN: Final = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True, slots=True, eq=False)
class ShownEpisode:
    """A finished episode and its images.

    Attributes:
        record: What was said and done.
        images: One (H, W, 3) uint8 array per view, as shown: Image-1 first.
        section: The group it is shown in, such as `before` and `after`; empty for none.
        task: Where the page gets the rationale and the annotated objects from; None to show neither.

    Raises:
        ValueError: If the numbers or the sizes of views and images differ.
    """

    record: EpisodeRecord
    images: tuple[Image, ...]
    section: str = ""
    task: Task | None = None

    def __post_init__(self) -> None:
        views = self.record.views
        if len(views) != len(self.images):
            raise ValueError(f"{len(views)} views, {len(self.images)} images")
        for number, (view, pixels) in enumerate(zip(views, self.images, strict=True), start=1):
            if pixels.shape != (view.height, view.width, 3):
                raise ValueError(f"Image-{number} is {pixels.shape}, its view {(view.height, view.width, 3)}")


@dataclass(frozen=True, slots=True, eq=False)
class OpenEpisode:
    """An episode that waits for the agent: one under way, or a task that nobody plays.

    Attributes:
        task: What is asked.
        views: All images so far, Image-1 first.
        message: What the environment said last.
        turns: What was said and done before.
        section: The group it is shown in; empty for none.
        revealed: Whether the truth, the rationale and the annotated objects may be seen.
    """

    task: Task
    views: tuple[View, ...]
    message: str
    turns: tuple[EpisodeTurn, ...] = ()
    section: str = ""
    revealed: bool = False


class EpisodeLog:
    """What was said in an episode under way: kept for people, where an environment is asked to render it.

    Args:
        task: What is asked.
        views: The environment's own list, which grows.
        message: The first message.
    """

    def __init__(self, task: Task, views: Sequence[View], message: str) -> None:
        self._task, self._views = task, views
        self._message, self._images = message, len(views)
        self._turns: tuple[EpisodeTurn, ...] = ()

    def add(self, action: str, error: str | None, observation: Observation) -> None:
        """Adds a turn of the agent and what the environment said to it."""
        self._turns += (EpisodeTurn(self._message, action, error, self._images),)
        self._message, self._images = observation["text"], len(observation["images"])

    def waiting(self) -> OpenEpisode:
        """The episode while it goes on."""
        return OpenEpisode(self._task, tuple(self._views), self._message, self._turns)

    def finished(
        self, info: Mapping[str, Any], reward: float, prediction: Answer | None, box_frame: str
    ) -> ShownEpisode:
        """The episode after its last turn.

        Args:
            info: The environment's at the end.
            reward: Total.
            prediction: The agent's answer.
            box_frame: How the agent wrote boxes.
        """
        record = EpisodeRecord(
            task_id=self._task.task_id,
            task_type=self._task.task_type,
            agent="",
            question=self._task.question,
            turns=self._turns,
            reward=reward,
            reward_parts=info["reward_parts"],
            stop=info["stop"],
            success=info["success"],
            tool_calls=tuple(called_tools(self._turns)),
            truth=self._task.truth,
            prediction=prediction,
            views=tuple(ViewRecord(view.image, view.region, *view.size) for view in self._views),
            box_frame=box_frame,
        )
        return ShownEpisode(record, tuple(view.pixels for view in self._views), task=self._task)


def transcript(episode: ShownEpisode | OpenEpisode) -> str:
    """An episode as text for a terminal: what was said, error codes, and at the end the reward and its parts.

    Nothing an agent wrote can move the cursor or turn the reading direction: such characters are shown by name.
    """
    turns = episode.record.turns if isinstance(episode, ShownEpisode) else episode.turns
    paragraphs = []
    for number, turn in enumerate(turns, start=1):
        error = f" ({turn.error})" if turn.error else ""
        paragraphs += [f"Environment:\n{turn.message}", f"Agent, turn {number}{error}:\n{turn.action}"]
    if isinstance(episode, ShownEpisode):
        record = episode.record
        parts = ", ".join(f"{name} {value:.3f}" for name, value in record.reward_parts.items())
        paragraphs.append(f"End: {record.stop}, reward {record.reward:.3f} ({parts})")
    else:
        paragraphs.append(f"Environment:\n{episode.message}")
    return _by_name("\n\n".join(paragraphs)) + "\n"


def _by_name(text: str) -> str:
    text = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text)
    return _UNSEEN.sub(lambda match: f"⟨{ord(match[0]):x}⟩", text)


def preview(env: str, seeds: range, section: str = "", **arguments: Any) -> list[OpenEpisode]:
    """The tasks of some seeds as an agent meets them, with their truth.

    Args:
        env: An id of a `MultiImageEnv`.
        seeds: Of a finite source at most as many as it has tasks are shown, so that none is shown twice.
        section: The group they are shown in.
        **arguments: For `gym.make`, such as `source`, `tasks` or `difficulty`.

    Raises:
        MimgenvError: If the environment or a task cannot be made.
        gymnasium.error.Error: If there is no such id.
    """
    from mimgenv.env import MultiImageEnv

    try:
        made = gym.make(env, disable_env_checker=True, **arguments).unwrapped
    except TypeError as error:  # how the constructor of another kind of environment refuses our arguments
        raise ConfigurationError(f"{env} cannot be made with {sorted(arguments)}: {error}") from error
    if not isinstance(made, MultiImageEnv):
        raise ConfigurationError(f"{env} is a {type(made).__name__}, not a MultiImageEnv")
    made.render_mode = "html"  # now that it is known to have this mode: it keeps what is shown
    episodes = []
    for seed in seeds[: len(made.source)]:
        made.reset(seed=seed)
        waiting = made.shown()
        assert isinstance(waiting, OpenEpisode)
        episodes.append(replace(waiting, section=section, revealed=True))
    return episodes


def seed_range(text: str) -> range:
    """Reads `7` (one seed) or `0:40` (from 0, up to but without 40).

    Raises:
        ConfigurationError: If it is neither, or holds no seed or more than `MAX_SEEDS`.
    """
    match = _SEEDS.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"seeds {text!r} are neither like 7 nor like 0:40")
    first = int(match[1])
    seeds = range(first, int(match[2]) if match[2] else first + 1)
    if not 1 <= len(seeds) <= MAX_SEEDS:
        raise ConfigurationError(f"seeds {text} name {len(seeds)} tasks, a preview shows 1 to {MAX_SEEDS}")
    return seeds


def load_episodes(path: str | Path, section: str = "") -> list[ShownEpisode]:
    """Reads records and makes the images they were played on again.

    Raises:
        DatasetError: If a line is no record, shows a part that its task does not have, or its task asks something else
            than when it was played.
        TaskError: If a task cannot be made.
    """
    from mimgenv import load_task

    load = lru_cache(maxsize=16)(load_task)  # A group of attempts at one task lies together in the file.
    episodes = []
    for record in read_records(path):
        task = load(record.task_id)
        if (record.question, record.truth) != (task.question, task.truth):
            raise DatasetError(f"{path}: {task.task_id} is another task than the one that was played")
        episodes.append(ShownEpisode(record, episode_images(record, task.images), section, task))
    return episodes


def episode_images(record: EpisodeRecord, originals: Sequence[Image]) -> tuple[Image, ...]:
    """The images of an episode, Image-1 first: same bytes as the agent saw.

    What a tool drew, such as the box of `visual_confirmation`, is drawn by calling the tool again. Two things are not
    made again and leave a plain view: what a tool drew that is not in `mimgenv.tools.TOOLS`, and what any tool drew
    in a record without a box frame.

    Args:
        record: What was said, and which parts of the originals were shown.
        originals: The task's images, each (H, W, 3) uint8 at full resolution.

    Raises:
        DatasetError: If a view shows a part that the originals do not have.
    """
    tools = {name: make() for name, make in TOOLS.items()}
    views: list[View] = []
    action = ""  # the first images answer no call
    for turn in record.turns:
        for place in record.views[len(views) : len(views) + turn.images]:
            pixels = view_image(originals, place)
            if record.box_frame is not None:
                pixels = _called_again(tools, action, ToolContext(views, originals, record.box_frame), place, pixels)
            views.append(View(pixels, place.image, place.region))
        action = turn.action
    return tuple(view.pixels for view in views)


def _called_again(
    tools: dict[str, Tool], action: str, context: ToolContext, place: ViewRecord, otherwise: Image
) -> Image:
    """What the tool call of a turn returns, if it is the view on record."""
    try:
        call = parse_turn(action)
        if not isinstance(call, ToolCall):
            return otherwise
        view = call_tool(tools, context, call.name, dict(call.arguments))
    except TurnError:
        return otherwise
    return view.pixels if ViewRecord(view.image, view.region, *view.size) == place else otherwise


def view_image(originals: Sequence[Image], view: ViewRecord) -> Image:
    """The part of an original that a view shows, (height, width, 3) uint8; same bytes as the environment's.

    Args:
        originals: The task's images, each (H, W, 3) uint8 at full resolution.
        view: Which part, and how large.

    Raises:
        DatasetError: If there is no such image, or the part lies outside it.
    """
    if view.image > len(originals):
        raise DatasetError(f"a view shows image {view.image} of {len(originals)}")
    original = originals[view.image - 1]
    x1, y1, x2, y2 = *map(math.floor, view.region[:2]), *map(math.ceil, view.region[2:])
    if x1 < 0 or y1 < 0 or x2 > original.shape[1] or y2 > original.shape[0]:
        raise DatasetError(f"a view shows {view.region} of an image of {original.shape[1]}x{original.shape[0]}")
    return resize(original[y1:y2, x1:x2], view.width, view.height)
