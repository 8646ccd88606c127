"""Wrappers change the form of actions, never what they do."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mimgenv
from mimgenv import TextActions
from mimgenv.env import CHARACTERS_PER_TOKEN, MultiImageEnv
from mimgenv.spaces import UnicodeText

CODEC = mimgenv.default_codec()
ENV_ID = "MultiImageTinyZoom-v0"
ZOOM = (
    '<think>small</think><tool_call>{"name": "zoom", "arguments": {"image": 2, "bbox_2d": [0, 0, 42, 42]}}</tool_call>'
)
ANSWER = '<think>é漢</think><answer>{"image": 3, "label": "red circle", "bbox_2d": [0, 0, 42, 42]}</answer>'


def text_env(**arguments: Any) -> TextActions:
    return TextActions(gym.make(ENV_ID, **arguments))


@pytest.mark.parametrize("turns", [(ZOOM, ANSWER), (ANSWER,), ("nonsense", ZOOM), (ZOOM, ZOOM), ("", "")])
def test_a_turn_as_text_does_what_its_ids_do(turns: tuple[str, ...]) -> None:
    with_ids, with_text = gym.make(ENV_ID, max_tokens=200), text_env(max_tokens=200)
    with_ids.reset(seed=5)
    with_text.reset(seed=5)
    for turn in turns:
        seen, *paid, info = with_ids.step(CODEC.encode_turn(turn))
        seen_too, *paid_too, info_too = with_text.step(turn)
        assert seen["text"] == seen_too["text"]
        assert [a.tobytes() for a in seen["images"]] == [a.tobytes() for a in seen_too["images"]]
        assert paid == paid_too
        assert {k: v for k, v in info.items() if k != "budget"} == {k: v for k, v in info_too.items() if k != "budget"}


def test_text_is_charged_a_token_per_four_characters_begun() -> None:
    env = text_env(max_tokens=64, max_turns=3)
    env.reset(seed=0)
    for text, left in (("", 64), ("a", 63), ("b" * 9, 60)):
        *_, info = env.step(text)
        assert info["budget"]["tokens"] == left
    assert CHARACTERS_PER_TOKEN == 4


def test_the_length_of_text_is_checked_before_anything_is_read() -> None:
    env = text_env(max_tokens=64)
    env.reset(seed=0)
    good = "<think></think><answer>" + " " * 300 + "1</answer>"
    *_, info = env.step(good)
    assert (info["error"], info["stop"]) == ("too_long", "void")


def test_text_of_exactly_the_tokens_left_is_not_too_long() -> None:
    env = text_env(max_tokens=64)
    env.reset(seed=0)
    *_, info = env.step(ANSWER.ljust(64 * CHARACTERS_PER_TOKEN))
    assert (info["error"], info["budget"]["tokens"]) == ("bad_image_index", 0)


def test_the_action_space_holds_the_longest_text_that_is_not_too_long() -> None:
    env = text_env(max_tokens=50)
    assert env.action_space == UnicodeText(50 * CHARACTERS_PER_TOKEN)
    assert env.observation_space == env.unwrapped.observation_space


def test_the_constructor_is_recorded_so_that_a_spec_makes_the_wrapped_environment_again() -> None:
    env = text_env(max_turns=1)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert isinstance(again, TextActions)
    assert isinstance(again.unwrapped, MultiImageEnv)
    assert again.unwrapped.max_turns == 1
    first, second = env.reset(seed=3)[0], again.reset(seed=3)[0]
    assert first["text"] == second["text"]
    np.testing.assert_array_equal(first["images"][0], second["images"][0])


def test_gymnasium_has_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = text_env()
        env.reset(seed=0)
        env.step(ZOOM)
        env.step(json.dumps({"not": "a turn"}))
