"""The VLM agent: a chat template in front of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Self

from agents.chat import Chat
from agents.sampling import Sampler, SamplingParameters
from agents.types import Action, History, Walk
from mimgenv.errors import ConfigurationError
from mimgenv.turn_rules import TurnRules


class VLMAgent:
    """Plays with any sampler.

    Args:
        chat: Turns a history into a prompt; its codec is the environment's.
        sampler: Completes prompts.
        parameters: How to sample; a turn is never longer than the budget that is left.
        rules: Of the environment to be played in: only legal turns are sampled, never longer than the rules allow.
            None to sample freely.

    Raises:
        ConfigurationError: If the rules are of another codec, skip what is forced, or allow longer turns than the
            parameters.
    """

    def __init__(
        self,
        chat: Chat,
        sampler: Sampler,
        parameters: SamplingParameters | None = None,
        rules: TurnRules | None = None,
    ) -> None:
        self.chat, self.sampler, self.rules = chat, sampler, rules
        self.parameters = parameters or SamplingParameters()
        self.codec = chat.codec
        if rules is None:
            return
        if rules.codec is not chat.codec or rules.skip_forced:
            raise ConfigurationError("rules of an agent must be of its own codec, and skip nothing")
        if rules.max_turn_tokens > self.parameters.max_tokens:
            longest = f"the rules allow turns of {rules.max_turn_tokens} tokens"
            raise ConfigurationError(f"{longest}, {self.parameters.max_tokens} are sampled at most")

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
        """One completion per history; all are sampled together.

        Raises:
            ConfigurationError: If turns follow rules, and the tokens left do not hold an answer in each turn left.
        """
        left = max((history.budget.tokens for history in histories), default=1)
        parameters = replace(self.parameters, max_tokens=max(1, min(self.parameters.max_tokens, left)))
        prompts = [replace(self.chat.prompt(history), walk=self._walk(history)) for history in histories]
        actions = self.sampler.sample(prompts, parameters)
        return [_cut(action, history.budget.tokens) for action, history in zip(actions, histories, strict=True)]

    def _walk(self, history: History) -> Walk | None:
        """Makes the walk of the next turn: what it may be is decided by what was shown and what is left."""
        rules, budget = self.rules, history.budget
        if rules is None:
            return None
        if budget.tokens < budget.turns * rules.reserve:
            least = f"{budget.turns} turns of at least {rules.reserve} tokens"
            raise ConfigurationError(f"{least} do not fit into the {budget.tokens} tokens left")
        if history.answer_kind is None:
            raise ConfigurationError(f"it is not known what kind of answer {history.task_id} wants")
        extents = rules.extents(history.images)
        return partial(rules.turn, extents, history.answer_kind, **asdict(budget))


def _cut(action: Action, left: int) -> Action:
    """The action as far as its own budget goes: the longest one's decided how far all were sampled."""
    if len(action.ids) <= left:
        return action
    return replace(action, ids=action.ids[:left], logprobs=action.logprobs[:left], finish_reason="length")
