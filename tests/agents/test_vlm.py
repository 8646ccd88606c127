"""The VLM agent: one completion per history, within the budget that is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.rollout import run_episodes
from agents.sampling import Prompt, SamplingParameters
from agents.types import Action, Budget, History, Message, codec_of
from agents.vlm import VLMAgent


class Counting:
    """A sampler whose completions are as long as they may be: 100, 101, … with log-probs -0, -1, …"""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Prompt, ...], SamplingParameters]] = []

    def sample(self, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Action]:
        self.calls.append((tuple(prompts), parameters))
        length = parameters.max_tokens
        return [Action(tuple(range(100, 100 + length)), tuple(-float(k) for k in range(length)), "stop")] * len(prompts)


def history(tokens: int, text: str = "Where?") -> History:
    return History("task", (), Message(text, ()), Budget(2, tokens, 1))


def test_every_history_gets_a_completion_and_all_are_sampled_in_one_call(qwen: QwenVL) -> None:
    sampler = Counting()
    agent = VLMAgent(qwen.chat, sampler, SamplingParameters(0.5, 3))
    actions = agent.act([history(64, "One?"), history(64, "Two?")])
    assert [action.ids for action in actions] == [(100, 101, 102)] * 2
    ((prompts, parameters),) = sampler.calls
    assert ["One?" in qwen.codec.decode(prompt.ids) for prompt in prompts] == [True, False]
    assert parameters == SamplingParameters(0.5, 3)


def test_no_history_is_no_action(qwen: QwenVL) -> None:
    assert VLMAgent(qwen.chat, HFSampler(qwen)).act([]) == []


def test_a_turn_is_never_longer_than_the_budget_that_is_left(qwen: QwenVL) -> None:
    agent = VLMAgent(qwen.chat, Counting(), SamplingParameters(1.0, 8))
    assert [len(action.ids) for action in agent.act([history(5)])] == [5]
    assert [len(action.ids) for action in agent.act([history(64), history(2), history(8), history(7)])] == [8, 2, 8, 7]


def test_a_turn_cut_by_the_budget_says_so_and_keeps_its_log_probs(qwen: QwenVL) -> None:
    whole, cut = VLMAgent(qwen.chat, Counting(), SamplingParameters(1.0, 8)).act([history(64), history(2)])
    assert cut == Action((100, 101), (0.0, -1.0), "length")
    assert whole.finish_reason == "stop"


def test_the_budget_costs_nothing_where_it_is_wider_than_the_longest_turn(qwen: QwenVL) -> None:
    sampler = Counting()
    VLMAgent(qwen.chat, sampler, SamplingParameters(1.0, 8)).act([history(64), history(9)])
    assert sampler.calls[0][1].max_tokens == 8


def test_its_codec_is_that_of_its_chat_so_that_the_environment_is_built_with_it(qwen: QwenVL) -> None:
    assert codec_of(VLMAgent(qwen.chat, Counting())) is qwen.codec


def test_loading_gives_the_agent_that_was_saved(qwen: QwenVL, tmp_path: Path) -> None:
    save_qwen_vl(qwen, str(tmp_path))
    loaded = VLMAgent.load(str(tmp_path), max_tokens=6)
    built = VLMAgent(qwen.chat, HFSampler(qwen), SamplingParameters(0.0, 6))
    assert loaded.parameters == built.parameters

    def played(agent: VLMAgent) -> list[Any]:
        return [turn.action for t in run_episodes(agent, "MultiImageTiny-v0", range(3)) for turn in t.turns]

    assert [action.ids for action in played(loaded)] == [action.ids for action in played(built)]
    assert len({action.ids for action in played(built)}) > 1


def test_loading_with_a_seed_decides_the_samples(qwen: QwenVL, tmp_path: Path) -> None:
    save_qwen_vl(qwen, str(tmp_path))

    def said(seed: int) -> tuple[int, ...]:
        (action,) = VLMAgent.load(str(tmp_path), temperature=1.0, max_tokens=8, seed=seed).act([history(64)])
        return action.ids

    assert said(1) == said(1) != said(2)


def test_loading_a_missing_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        VLMAgent.load(str(tmp_path / "none"))
