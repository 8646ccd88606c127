"""The VLM agent: one completion per history, within the budget that is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agents.hf_sampler
from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.rollout import make_envs, run_episodes
from agents.sampling import Prompt, SamplingParameters, legal_ids
from agents.types import Action, Budget, History, Message, Trajectory, codec_of
from agents.vlm import VLMAgent
from mimgenv.bounded_turn import _known_places
from mimgenv.codec import default_codec
from mimgenv.errors import ConfigurationError
from mimgenv.grammar import TurnLimits
from mimgenv.tools import TOOLS
from mimgenv.turn_rules import TurnRules


class Counting:
    """A sampler whose completions are as long as they may be: 100, 101, … with log-probs -0, -1, …"""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Prompt, ...], SamplingParameters]] = []

    def sample(self, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Action]:
        self.calls.append((tuple(prompts), parameters))
        length = parameters.max_tokens
        return [Action(tuple(range(100, 100 + length)), tuple(-float(k) for k in range(length)), "stop")] * len(prompts)

    def sync(self) -> None:
        raise AssertionError("no weights have changed")


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


# ---------------------------------------------------------------- legal turns only


def ruled(qwen: QwenVL, tokens: int = 96, seed: int = 0, box_frame: str = "pixel") -> VLMAgent:
    """An agent that plays legal turns only, with all tools."""
    tools, limits = {name: make() for name, make in TOOLS.items()}, TurnLimits(thought=24, label=16, text=16)
    rules = TurnRules(qwen.codec, tools, box_frame, limits, tokens)
    return VLMAgent(qwen.chat, HFSampler(qwen, seed), SamplingParameters(3.0, tokens), rules)


def play(agent: VLMAgent, env: str, count: int, **arguments: Any) -> list[Trajectory]:
    made = {"tools": tuple(TOOLS), "instructions": "none", "codec": agent.codec, **arguments}
    return run_episodes(agent, make_envs(env, min(count, 32), **made), range(count))


@pytest.mark.parametrize("box_frame", ["pixel", "norm1000", "unit", "qwen2_5_resized"])
def test_under_rules_every_turn_of_an_untrained_model_can_be_carried_out(qwen: QwenVL, box_frame: str) -> None:
    agent = ruled(qwen, box_frame=box_frame)
    played = play(agent, "MultiImageTiny-v0", 40, box_frame=box_frame)
    turns = [turn for trajectory in played for turn in trajectory.turns]
    assert len(turns) > 70
    assert {turn.error for turn in turns} <= {None, "bad_box"}
    assert {turn.action.finish_reason for turn in turns} == {"stop"}
    assert {trajectory.stop for trajectory in played} <= {"answered", "void"}
    texts = [qwen.codec.decode(turn.action.ids) for turn in turns]
    assert sum(any(f'"{name}"' in text for text in texts) for name in TOOLS) >= 2
    assert {"grounding" if '"bbox_2d"' in text else "text" for text in texts if "<answer>" in text} == {
        "grounding",
        "text",
    }


def test_without_rules_hardly_any_can(qwen: QwenVL) -> None:
    free = VLMAgent(qwen.chat, HFSampler(qwen), SamplingParameters(1.0, 64))
    played = play(free, "MultiImageTiny-v0", 8)
    assert all(turn.error for trajectory in played for turn in trajectory.turns)
    assert all(turn.action.walk is None for trajectory in played for turn in trajectory.turns)


def test_walking_a_turn_again_finds_the_ids_that_were_legal(qwen: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = []
    legal = agents.hf_sampler._legal

    def noted(turns: Any, width: int) -> Any:
        masks.append([None if turn is None or turn.complete else turn.mask.copy() for turn in turns])
        return legal(turns, width)

    monkeypatch.setattr(agents.hf_sampler, "_legal", noted)
    for episode in range(6):
        masks.clear()
        histories = [t.turns[0] for t in play(ruled(qwen, 48, episode), "MultiImageTiny-v0", 1)]
        (action,) = [turn.action for turn in histories]
        _known_places.cache_clear()  # what another process has not seen either
        again = legal_ids(action)
        assert again.shape == (len(action.ids), qwen.codec.vocab_size)
        np.testing.assert_array_equal(again, [mask for (mask,) in masks[: len(action.ids)]])


def test_rules_know_the_budget_of_each_history(qwen: QwenVL) -> None:
    agent = ruled(qwen)
    assert agent.rules is not None
    message = Message("Image-1: <image>", (np.zeros((56, 84, 3), np.uint8),))
    last = History("task", (), message, Budget(1, 512, 3), "grounding")
    for action in agent.act([last] * 20):
        assert "<answer>" in qwen.codec.decode(action.ids)
    free = History("task", (), message, Budget(3, 512, 3), "grounding")
    assert any("<tool_call>" in qwen.codec.decode(action.ids) for action in agent.act([free] * 20))


def test_boxes_end_where_the_image_that_is_named_does(qwen: QwenVL) -> None:
    images = np.zeros((28, 84, 3), np.uint8), np.zeros((84, 28, 3), np.uint8)
    asked = History("task", (), Message("Image-1: <image>\nImage-2: <image>", images), Budget(1, 512, 3), "grounding")
    largest = {1: [0, 0], 2: [0, 0]}
    for action in ruled(qwen).act([asked] * 60):
        written = json.loads(qwen.codec.decode_turn(action.ids).partition("<answer>")[2].removesuffix("</answer>"))
        most, (x1, y1, x2, y2) = largest[written["image"]], written["bbox_2d"]
        most[:] = max(most[0], x1, x2), max(most[1], y1, y2)
    assert largest[1][0] > 28 >= largest[1][1]
    assert largest[2][1] > 28 >= largest[2][0]


def test_a_question_of_unknown_kind_is_refused_under_rules(qwen: QwenVL) -> None:
    with pytest.raises(ConfigurationError, match="not known what kind of answer task wants"):
        ruled(qwen).act([history(64)])


def test_tokens_that_hold_no_answer_in_each_turn_left_are_refused(qwen: QwenVL) -> None:
    agent = ruled(qwen)
    assert agent.rules is not None
    reserve = agent.rules.reserve
    with pytest.raises(ConfigurationError, match=f"2 turns of at least {reserve} .* the {2 * reserve - 1} tokens left"):
        agent.act([history(2 * reserve - 1)])


def test_rules_that_do_not_fit_the_agent_are_refused(qwen: QwenVL) -> None:
    with pytest.raises(ConfigurationError, match="shortest answer"):
        ruled(qwen, 5)
    longer = TurnRules(qwen.codec, {}, max_turn_tokens=65)
    with pytest.raises(ConfigurationError, match="turns of 65 tokens, 64 are sampled at most"):
        VLMAgent(qwen.chat, HFSampler(qwen), SamplingParameters(1.0, 64), longer)
    for other in (TurnRules(default_codec(), {}), TurnRules(qwen.codec, {}, skip_forced=True)):
        with pytest.raises(ConfigurationError, match="of its own codec, and skip nothing"):
            VLMAgent(qwen.chat, HFSampler(qwen), SamplingParameters(1.0, 512), other)
