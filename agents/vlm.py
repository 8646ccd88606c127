"""The VLM agent: a chat template in front of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from agents.chat import Chat
from agents.sampling import Sampler, SamplingParameters
from agents.types import Action, History


class VLMAgent:
    """Plays with any sampler.

    Args:
        chat: Turns a history into a prompt; its codec is the environment's.
        sampler: Completes prompts.
        parameters: How to sample; a turn is never longer than the budget that is left.
    """

    def __init__(self, chat: Chat, sampler: Sampler, parameters: SamplingParameters | None = None) -> None:
        self.chat, self.sampler = chat, sampler
        self.parameters = parameters or SamplingParameters()
        self.codec = chat.codec

    @classmethod
    def load(
        cls,
        name: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Self:
        """Loads a Qwen2.5-VL-type model: a directory, a hub name, or `tiny`."""
        from agents.hf_sampler import HFSampler
        from agents.qwen_vl import load_qwen_vl

        qwen = load_qwen_vl(name, device, dtype)
        return cls(qwen.chat, HFSampler(qwen, seed), SamplingParameters(temperature, max_tokens))

    def act(self, histories: Sequence[History]) -> list[Action]:
        """One completion per history; all are sampled together."""
        left = max((history.budget.tokens for history in histories), default=1)
        parameters = replace(self.parameters, max_tokens=max(1, min(self.parameters.max_tokens, left)))
        actions = self.sampler.sample([self.chat.prompt(history) for history in histories], parameters)
        return [_cut(action, history.budget.tokens) for action, history in zip(actions, histories, strict=True)]


def _cut(action: Action, left: int) -> Action:
    """The action as far as its own budget goes: the longest one's decided how far all were sampled."""
    return action if len(action.ids) <= left else Action(action.ids[:left], action.logprobs[:left], "length")
