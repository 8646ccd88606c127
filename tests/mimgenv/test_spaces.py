"""The spaces: what they hold, what they refuse, and why stock ones would not do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mimgenv.spaces import ImageSpace, TokenTurn, UnicodeText

# Images


@pytest.mark.parametrize("shape", [(1, 1, 3), (84, 84, 3), (100, 7, 3), (100, 100, 3)])
def test_an_image_of_any_size_up_to_the_largest_side_is_held(shape: tuple[int, ...]) -> None:
    assert ImageSpace(100).contains(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "not_an_image",
    [
        np.zeros((101, 5, 3), np.uint8),
        np.zeros((5, 101, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        [[[0, 0, 0]]],
        None,
    ],
)
def test_what_is_no_rgb_image_of_a_legal_size_is_refused(not_an_image: Any) -> None:
    assert not ImageSpace(100).contains(not_an_image)


def test_sampled_images_lie_in_the_space_and_differ_in_size() -> None:
    space = ImageSpace(100, seed=0)
    images = [space.sample() for _ in range(20)]
    assert all(image in space for image in images)
    assert len({image.shape for image in images}) > 10


def test_sampled_images_are_small_even_where_large_ones_are_legal() -> None:
    assert max(max(ImageSpace(4096, seed=seed).sample().shape) for seed in range(30)) <= 64


# Text


@pytest.mark.parametrize("text", ["", "a", "é漢字🎉", "\ud800", "\x00\n", "x" * 50])
def test_any_text_up_to_its_length_is_held(text: str) -> None:
    assert UnicodeText(50).contains(text)


@pytest.mark.parametrize("not_text", ["x" * 51, b"bytes", None, 5, ["a"]])
def test_overlong_text_and_what_is_no_text_is_refused(not_text: Any) -> None:
    assert not UnicodeText(50).contains(not_text)


def test_the_stock_text_space_would_refuse_what_ours_holds() -> None:
    assert "é" in UnicodeText(50)
    assert "é" not in spaces.Text(50)


def test_sampled_text_lies_in_the_space() -> None:
    space = UnicodeText(9, seed=1)
    texts = [space.sample() for _ in range(30)]
    assert all(text in space for text in texts)
    assert len(set(texts)) > 20


# Turns


@pytest.mark.parametrize(
    "turn", [[], [0], (9, 0, 3), np.array([1, 2], np.int64), np.array([1], np.int32), np.array([], np.int64), [5] * 8]
)
def test_a_sequence_of_ids_in_range_is_a_turn(turn: Any) -> None:
    assert TokenTurn(10, 8).contains(turn)


@pytest.mark.parametrize(
    "not_a_turn",
    [
        [10],
        [-1],
        [5] * 9,
        [1.0],
        np.array([1.0]),
        ["a"],
        "12",
        5,
        None,
        np.array(5),
        np.array([[1, 2]]),
        [2**70],
    ],
)
def test_ids_out_of_range_overlong_turns_and_what_is_no_sequence_of_ids_is_refused(not_a_turn: Any) -> None:
    assert not TokenTurn(10, 8).contains(not_a_turn)


def test_sampled_turns_lie_in_the_space_and_differ_in_length() -> None:
    space = TokenTurn(10, 8, seed=0)
    turns = [space.sample() for _ in range(50)]
    assert all(turn in space for turn in turns)
    assert {len(turn) for turn in turns} == set(range(9))
    assert {int(index) for turn in turns for index in turn} == set(range(10))


# All of them


@pytest.mark.parametrize(
    "make", [lambda s: ImageSpace(9, s), lambda s: UnicodeText(9, s), lambda s: TokenTurn(9, 9, s)]
)
def test_the_same_seed_samples_the_same(make: Any) -> None:
    first, again, other = make(3), make(3), make(4)
    several = [[space.sample() for _ in range(5)] for space in (first, again, other)]
    for a, b in zip(several[0], several[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(several[0], several[2], strict=True))


@pytest.mark.parametrize(
    ("space", "equal", "others"),
    [
        (ImageSpace(9), ImageSpace(9), [ImageSpace(8), UnicodeText(9)]),
        (UnicodeText(9), UnicodeText(9), [UnicodeText(8), spaces.Text(9), ImageSpace(9)]),
        (TokenTurn(9, 4), TokenTurn(9, 4), [TokenTurn(8, 4), TokenTurn(9, 3), ImageSpace(9)]),
    ],
)
def test_spaces_are_equal_when_they_hold_the_same(space: Any, equal: Any, others: list[Any]) -> None:
    assert space == equal
    assert all(space != other for other in others)
    assert repr(space) == repr(equal) not in map(repr, others)


@pytest.mark.parametrize("space", [ImageSpace(9), TokenTurn(9, 4)])
def test_spaces_of_varying_size_do_not_claim_to_flatten(space: Any) -> None:
    assert not space.is_np_flattenable
