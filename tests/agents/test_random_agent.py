"""The random agent: well-formed, reproducible, and worth next to nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from agents.random_agent import RandomAgent
from agents.rollout import run_episodes
from agents.types import Budget, History, Message, Trajectory, Turn
from mimgenv.codec import default_codec
from mimgenv.parsing import ToolCall, parse_turn
from mimgenv.tools import TOOLS

CODEC = default_codec()
BLANK = np.zeros((28, 56, 3), np.uint8)
HISTORY = History("rendered:x:1", (), Message("Image-1: <image>", (BLANK,)), Budget(turns=6, tokens=4096, images=3))


def names_called(trajectories: list[Trajectory]) -> list[str]:
    turns = [parse_turn(CODEC.decode_turn(turn.action.ids)) for each in trajectories for turn in each.turns]
    return [turn.name for turn in turns if isinstance(turn, ToolCall)]


def text_of(agent: RandomAgent, history: History = HISTORY) -> str:
    return CODEC.decode_turn(agent.act([history])[0].ids)


@pytest.mark.parametrize(("env_id", "tools"), [("MultiImageTiny-v0", ()), ("MultiImageTinyZoom-v0", ("zoom",))])
def test_every_turn_can_be_carried_out_but_for_inverted_boxes_and_few_boxes_are_right(
    env_id: str, tools: tuple[str, ...]
) -> None:
    trajectories = run_episodes(RandomAgent(tools), env_id, range(50))
    errors = {turn.error for trajectory in trajectories for turn in trajectory.turns}
    assert None in errors
    assert errors <= {None, "bad_box"}
    assert all(turn.action.ids[-1] == CODEC.end_ids[0] for each in trajectories for turn in each.turns)
    assert np.mean([trajectory.reward_parts.get("iou", 0.0) for trajectory in trajectories]) < 0.05
    assert set(names_called(trajectories)) == set(tools)


@pytest.mark.parametrize("box_frame", ["pixel", "norm1000", "unit", "qwen2_5_resized"])
def test_it_plays_any_frame_with_any_tools(box_frame: str) -> None:
    agent = RandomAgent(tuple(TOOLS), box_frame, tool_rate=0.8)
    trajectories = run_episodes(
        agent, "MultiImageTiny-v0", range(30), box_frame=box_frame, tools=tuple(TOOLS), max_turns=5, max_tokens=400
    )
    errors = [turn.error for each in trajectories for turn in each.turns]
    assert set(errors) <= {None, "bad_box"}
    assert errors.count("bad_box") < 0.1 * len(errors)
    assert set(names_called(trajectories)) == set(TOOLS)


def test_the_same_seed_plays_the_same_turn_whatever_is_played_beside_it() -> None:
    other = replace(HISTORY, task_id="rendered:x:2")
    alone, (beside, different) = RandomAgent().act([HISTORY])[0], RandomAgent().act([HISTORY, other])
    assert alone == beside != different
    assert RandomAgent(seed=1).act([HISTORY])[0] != alone


def test_it_does_not_repeat_a_turn_that_was_refused() -> None:
    first = RandomAgent().act([HISTORY])[0]
    later = replace(HISTORY, turns=(Turn(HISTORY.message, first, "bad_box"),), message=Message("Error", ()))
    assert RandomAgent().act([later])[0] != first


def test_boxes_stay_within_the_image_they_name_and_reach_over_it() -> None:
    small, large = BLANK, np.zeros((448, 224, 3), np.uint8)
    message = Message("Image-1: <image>\nImage-2: <image>", (small, large))
    corners: dict[int, list[list[float]]] = {1: [], 2: []}
    for seed in range(150):
        text = text_of(RandomAgent(seed=seed), replace(HISTORY, message=message))
        answer = json.loads(text.partition("<answer>")[2].removesuffix("</answer>"))
        corners[answer["image"]] += np.reshape(answer["bbox_2d"], (2, 2)).tolist()
    width, height = np.max(corners[1], axis=0)
    assert 49 <= width <= 56
    assert 21 <= height <= 28
    width, height = np.max(corners[2], axis=0)
    assert 200 <= width <= 224
    assert 400 <= height <= 448


def test_it_calls_a_tool_at_its_rate_and_only_within_the_budget() -> None:
    budgets = {"free": HISTORY.budget, "last turn": Budget(1, 4096, 3), "no image left": Budget(6, 4096, 0)}
    called = {
        (name, rate): sum(
            "<tool_call>" in text_of(RandomAgent(("zoom",), seed=seed, tool_rate=rate), history) for seed in range(60)
        )
        for name, budget in budgets.items()
        for history in [replace(HISTORY, budget=budget)]
        for rate in (0.0, 0.5, 1.0)
    }
    assert called["free", 0.0] == 0
    assert 15 < called["free", 0.5] < 45
    assert called["free", 1.0] == 60
    assert not any(count for (name, _), count in called.items() if name != "free")


def test_few_tokens_left_make_a_shorter_turn() -> None:
    lengths = {
        tokens: np.mean(
            [
                len(RandomAgent(seed=seed).act([replace(HISTORY, budget=Budget(1, tokens, 3))])[0].ids)
                for seed in range(60)
            ]
        )
        for tokens in (8, 4096)
    }
    assert lengths[8] < lengths[4096] - 1


def test_an_image_that_a_tool_returned_may_be_named() -> None:
    env = gym.make("MultiImageTinyZoom-v0", disable_env_checker=True, max_turns=4, max_tokens=400)
    trajectories = run_episodes(RandomAgent(("zoom",), tool_rate=0.7), [env], range(60))
    answers = [CODEC.decode_turn(each.turns[-1].action.ids) for each in trajectories if each.stop == "answered"]
    originals = [len(each.turns[0].message.images) for each in trajectories if each.stop == "answered"]
    numbers = [int(answer.split('"image": ')[1].split(",")[0]) for answer in answers]
    assert any(number > original for number, original in zip(numbers, originals, strict=True))
