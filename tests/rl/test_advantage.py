"""Group-relative advantages, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rl.advantage import EPSILON, group_advantages


def advantages(
    rewards: Sequence[Sequence[float]], counted: Sequence[Sequence[bool]] | None = None, normalise: bool = True
) -> list[list[float]]:
    values = np.array(rewards, float)
    flags = np.ones(values.shape, bool) if counted is None else np.array(counted)
    result: list[list[float]] = group_advantages(values, flags, normalise).tolist()
    return result


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    (values,) = advantages([[1.0, 2.0, 3.0, 6.0]])  # mean 3, biased deviation √3.5
    scale = 3.5**0.5 + EPSILON
    assert values == pytest.approx([-2 / scale, -1 / scale, 0.0, 3 / scale], abs=1e-12)


def test_without_normalising_it_is_the_distance_itself() -> None:
    assert advantages([[1.0, 2.0, 3.0, 6.0]], normalise=False) == [[-2.0, -1.0, 0.0, 3.0]]


def test_every_group_is_measured_against_itself() -> None:
    both = advantages([[0.0, 1.0], [10.0, 14.0]], normalise=False)
    assert both == [[-0.5, 0.5], [-2.0, 2.0]]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.5, 0.1])
def test_a_group_without_variance_has_no_advantages(reward: float, normalise: bool) -> None:
    assert advantages([[reward] * 7], normalise=normalise) == [[0.0] * 7]


def test_rounding_errors_are_no_variance() -> None:
    assert advantages([[0.1 + 0.2, 0.3, 0.3]]) == [[0.0] * 3]
    (small,) = advantages([[1e-4, 0.0]], normalise=False)
    assert small == pytest.approx([5e-5, -5e-5])


def test_what_is_not_counted_moves_neither_mean_nor_deviation() -> None:
    (values,) = advantages([[1.0, 3.0, 100.0]], [[True, True, False]])
    assert values[:2] == pytest.approx([-1 / (1 + EPSILON), 1 / (1 + EPSILON)])
    (counting,) = advantages([[1.0, 3.0, 100.0]])
    assert counting[:2] != pytest.approx(values[:2])


def test_a_group_whose_counted_rewards_are_equal_has_no_advantages_whatever_the_others_got() -> None:
    assert advantages([[1.0, 1.0, 0.0]], [[True, True, False]]) == [[0.0] * 3]
    assert advantages([[1.0, 1.0, 0.0]]) != [[0.0] * 3]


def test_a_group_of_which_nothing_counts_has_no_advantages() -> None:
    assert advantages([[1.0, 2.0]], [[False, False]]) == [[0.0, 0.0]]
