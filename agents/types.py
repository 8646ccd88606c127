"""The records of play: actions, turns, the live history and the finished trajectory.

Owns what passes between agents, the episode loop and the trainer. Holds token ids, images and rewards as plain
tuples; knows no tensors, chat templates or tasks. A history only grows, and the ids a policy emitted are kept as they
were: nothing here is ever encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from mimgenv.turn_rules import OpenTurn
from mimgenv.types import Image

FinishReason: TypeAlias = Literal["stop", "length"]
"""Why sampling of one turn ended: at an end-of-turn token, or at its length limit."""

Walk: TypeAlias = Callable[[], OpenTurn]
"""Makes the walk of a turn anew, from its beginning: it says which ids are legal, one after the other."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the environment said: text with one `<image>` marker per image, in order.

    Raises:
        ValueError: If the numbers of markers and images differ.
    """

    text: str
    images: tuple[Image, ...]

    def __post_init__(self) -> None:
        markers = self.text.count("<image>")
        if markers != len(self.images):
            raise ValueError(f"{markers} image markers, {len(self.images)} images")


@dataclass(frozen=True, slots=True)
class Action:
    """The token ids of one turn, with the log-probability of each under the distribution it was sampled from.

    Attributes:
        ids: Token ids, end-of-turn token included if one was emitted.
        logprobs: One per id; empty where the ids were not sampled (scripted agents).
        finish_reason: Why the turn ended.
        walk: Of the turn, where only legal ids were drawn: the log-probs are then those among them. None where all
            were free. Two actions are equal whatever their walks.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    walk: Walk | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.logprobs and len(self.logprobs) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids, {len(self.logprobs)} log-probs")


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of an episode: turns, tokens, and images that tools may still return."""

    turns: int
    tokens: int
    images: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One agent action, what it answered to, and how the environment took it (`error` is a code or None)."""

    message: Message
    action: Action
    error: str | None


@dataclass(frozen=True, slots=True)
class History:
    """An episode under way: what was said and done so far, and the message that waits for an action.

    Attributes:
        task_id: Of the task.
        turns: What was said and done so far.
        message: What waits for an action.
        budget: What is left.
        answer_kind: What the question wants, of `mimgenv.grammar.ANSWERS`; None where it is not known.
    """

    task_id: str
    turns: tuple[Turn, ...]
    message: Message
    budget: Budget
    answer_kind: str | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        """All images shown so far, in order: Image-1 first."""
        return tuple(image for message in (*(t.message for t in self.turns), self.message) for image in message.images)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A finished episode.

    Attributes:
        task_id: `mimgenv.load_task` makes the task again, with its truth.
        task_type: Such as `referring`.
        turns: What was said and done.
        reward: Total reward.
        reward_parts: Unweighted parts by name, such as `iou` and `format`.
        stop: Why the episode ended; one of `mimgenv.env.STOPS`.
        success: Whether the answer counts as right.
    """

    task_id: str
    task_type: str
    turns: tuple[Turn, ...]
    reward: float
    reward_parts: Mapping[str, float]
    stop: str
    success: bool

    @property
    def images(self) -> tuple[Image, ...]:
        """All images shown, in order: Image-1 first."""
        return tuple(image for turn in self.turns for image in turn.message.images)


class Agent(Protocol):
    """A function of histories: no reset, no hidden conversation.

    An agent that speaks a tokenizer of its own has a `codec` attribute, and the environment is built with it. An
    action may be given as text: it is encoded once, by the environment's codec.
    """

    def act(self, histories: Sequence[History]) -> Sequence[Action | str]:
        """One action per history, in order."""
        ...


def codec_of(agent: Any) -> Any:
    """The agent's own codec, or None where it takes the environment's."""
    return getattr(agent, "codec", None)
