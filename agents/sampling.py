"""The contract between an agent and whatever samples tokens for it: Hugging Face, vLLM, a fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agents.types import Action
from mimgenv.types import Image


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids with one placeholder per image, and the images in that order.

    Attributes:
        ids: Compact ids: an image is one placeholder, however many tokens it takes in a model.
        images: (H, W, 3) uint8 each.
    """

    ids: tuple[int, ...]
    images: tuple[Image, ...]


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
        """One completion per prompt, in order; media and role tokens never occur in one."""
        ...
