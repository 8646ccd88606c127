"""The contract between an agent and whatever samples tokens for it: Hugging Face, vLLM, a fake.

Owns also how the ids that were legal are found again after sampling, for whoever trains on the log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agents.types import Action, Walk
from mimgenv.bounded_turn import Mask
from mimgenv.types import Image


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids with one placeholder per image, and the images in that order.

    Attributes:
        ids: Compact ids: an image is one placeholder, however many tokens it takes in a model.
        images: (H, W, 3) uint8 each.
        walk: Where only legal ids may be drawn; each completion walks one of its own.
    """

    ids: tuple[int, ...]
    images: tuple[Image, ...]
    walk: Walk | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How to sample.

    Attributes:
        temperature: Above 0: log-probs are those of the tempered distribution. 0: greedy, log-probs at temperature 1.
        max_tokens: Longest completion.
    """

    temperature: float = 1.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1:
            raise ValueError(f"temperature {self.temperature} must be >= 0, max_tokens {self.max_tokens} >= 1")


class Sampler(Protocol):
    """Completes prompts. Equal prompts in one call may share their computation."""

    def sample(self, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Action]:
        """One completion per prompt, in order; media and role tokens never occur in one.

        Where a prompt has a walk, every id is legal, log-probs are those of the distribution among the legal ids, and
        the turn ends where the walk is complete; the action carries the walk.
        """
        ...

    def sync(self) -> None:
        """The weights have changed: what was computed with the old ones is used no more.

        To be called after each update, before the next `sample`. A sampler that shares the trainer's model drops the
        keys, values and image features it keeps. One with weights of its own, such as vLLM, loads the new ones here,
        and resets its prefix, multimodal and encoder caches.
        """
        ...


def legal_ids(action: Action) -> Mask:
    """Which ids were legal when each id of an action was drawn, found by walking the turn again.

    The log-prob of an id is that of `log_softmax(logits / temperature)` over its row of legal ids alone.

    Returns:
        (T, V) bool, one row per id, V the size of the codec's vocabulary.

    Raises:
        ValueError: If the action has no walk, or an id was not legal.
    """
    if action.walk is None:
        raise ValueError("an action without a walk was drawn freely")
    turn = action.walk()
    legal = np.empty((len(action.ids), len(turn.mask)), np.bool_)
    for row, index in enumerate(action.ids):
        if not turn.mask[index]:
            raise ValueError(f"id {index}, number {row + 1} of {len(action.ids)}, was not legal")
        legal[row] = turn.mask
        turn.write(index)
    return legal
