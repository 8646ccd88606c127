"""Group-relative advantages, by hand and against TRL's and verl's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.advantage import EPSILON, difficulty_weights, group_advantages

GOLDEN = Path(__file__).parent / "golden"
STDS = ["group", "batch", "off"]


def advantages(
    rewards: Sequence[Sequence[float]], counted: Sequence[Sequence[bool]] | None = None, std: Any = "group"
) -> list[list[float]]:
    values = np.array(rewards, float)
    flags = np.ones(values.shape, bool) if counted is None else np.array(counted)
    result: list[list[float]] = group_advantages(values, flags, std).tolist()
    return result


# ---------------------------------------------------------------- against TRL and verl


@pytest.mark.parametrize("std", STDS)
def test_advantages_are_those_of_trl_which_leaves_out_what_has_no_reward(std: Any) -> None:
    stored = json.loads((GOLDEN / "trl.json").read_text())
    rewards = np.array(stored["rewards"], float)
    counted = ~np.isnan(rewards)
    found = group_advantages(np.nan_to_num(rewards, nan=7.0), counted, std)
    assert found[counted] == pytest.approx(np.array(stored["advantages"][std])[counted], rel=1e-6)


@pytest.mark.parametrize("std", ["group", "off"])
def test_advantages_are_those_of_verl_which_adds_less_to_the_deviation(std: Any) -> None:
    stored = json.loads((GOLDEN / "verl.json").read_text())
    rewards = np.array(stored["rewards"])
    found = group_advantages(rewards, np.ones(rewards.shape, bool), std, epsilon=1e-6)
    assert found.flatten() == pytest.approx(np.array(stored["advantages"][std]).flatten(), rel=1e-6)


# ---------------------------------------------------------------- by hand


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    (values,) = advantages([[1.0, 2.0, 3.0, 6.0]])  # mean 3, unbiased deviation √(14 / 3)
    scale = (14 / 3) ** 0.5 + EPSILON
    assert values == pytest.approx([-2 / scale, -1 / scale, 0.0, 3 / scale], abs=1e-12)


def test_the_batchs_deviation_is_that_of_all_rewards_around_their_one_mean() -> None:
    both = advantages([[0.0, 1.0], [10.0, 13.0]], std="batch")  # mean 6, squares 36 + 25 + 16 + 49
    scale = (126 / 3) ** 0.5 + EPSILON
    assert both == [pytest.approx([-0.5 / scale, 0.5 / scale]), pytest.approx([-1.5 / scale, 1.5 / scale])]


def test_without_a_deviation_it_is_the_distance_itself() -> None:
    assert advantages([[1.0, 2.0, 3.0, 6.0]], std="off") == [[-2.0, -1.0, 0.0, 3.0]]


def test_every_group_is_measured_against_itself() -> None:
    both = advantages([[0.0, 1.0], [10.0, 14.0]], std="off")
    assert both == [[-0.5, 0.5], [-2.0, 2.0]]


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("reward", [0.0, 1.5, 0.1])
def test_a_group_without_variance_has_no_advantages(reward: float, std: str) -> None:
    assert advantages([[reward] * 7, [0, 1, 2, 3, 4, 5, 6]], std=std)[0] == [0.0] * 7


def test_rounding_errors_are_no_variance() -> None:
    assert advantages([[0.1 + 0.2, 0.3, 0.3]]) == [[0.0] * 3]
    (small,) = advantages([[1e-4, 0.0]], std="off")
    assert small == pytest.approx([5e-5, -5e-5])


def test_what_is_not_counted_moves_neither_mean_nor_deviation() -> None:
    (values,) = advantages([[1.0, 3.0, 100.0]], [[True, True, False]])
    scale = 2**0.5 + EPSILON
    assert values[:2] == pytest.approx([-1 / scale, 1 / scale])
    (counting,) = advantages([[1.0, 3.0, 100.0]])
    assert counting[:2] != pytest.approx(values[:2])


def test_what_is_not_counted_does_not_move_the_batchs_deviation() -> None:
    rewards, counted = [[1.0, 3.0], [100.0, 101.0]], [[True, True], [False, False]]
    scale = 2**0.5 + EPSILON
    assert advantages(rewards, counted, "batch")[0] == pytest.approx([-1 / scale, 1 / scale])


@pytest.mark.parametrize("std", STDS)
def test_a_group_whose_counted_rewards_are_equal_has_no_advantages_whatever_the_others_got(std: str) -> None:
    rewards = [[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    assert advantages(rewards, [[True, True, False], [True] * 3], std)[0] == [0.0] * 3
    assert advantages(rewards, std=std)[0] != [0.0] * 3


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("counted", [[False, False], [True, False]])
def test_a_group_of_which_fewer_than_two_count_has_no_advantages(counted: Sequence[bool], std: str) -> None:
    with np.errstate(all="raise"):
        assert advantages([[1.0, 2.0]], [counted], std) == [[0.0, 0.0]]


def test_an_unknown_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match="std 'all' is not one of .*'batch'"):
        advantages([[1.0, 2.0]], std="all")


# ---------------------------------------------------------------- difficulty


def test_the_harder_a_task_the_more_its_advantages_weigh() -> None:
    weights = difficulty_weights(np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
    assert weights.tolist() == [[1.0], [pytest.approx(np.exp(0.5))], [pytest.approx(np.e)]]
