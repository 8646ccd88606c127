"""Advantages: how much better each attempt is than its group, as numbers. Knows rewards, no tensors and no tokens.

Formula by formula:
    group      A = (r − mean of the group) / std of the group      GRPO, arXiv 2402.03300, section 4.1.2
    batch      A = (r − mean of the group) / std of the batch      TRL's scale_rewards="batch"; arXiv 2508.08221
    off        A = r − mean of the group                           Dr.GRPO, arXiv 2503.20783, section 3.2
    difficulty A · exp(1 − mean score of the group)                UniVG-R1, arXiv 2505.14231
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Std = Literal["group", "batch", "off"]

EPSILON: Final = 1e-4
"""Added to a standard deviation, as in TRL and UniVG-R1; verl and Mini-o3 add 1e-6."""
NO_VARIANCE: Final = 1e-6
"""Rewards that deviate less than this are equal but for rounding."""


def group_advantages(rewards: Floats, counted: Flags, std: Std = "group", epsilon: float = EPSILON) -> Floats:
    """How much better each attempt is than its group.

    Standard deviations are unbiased (n − 1), as in TRL, verl, Mini-o3 and UniVG-R1; the papers leave it open.

    Args:
        rewards: (groups, G) of the whole batch, those of all processes.
        counted: (groups, G); attempts that enter means and standard deviations.
        std: What the distance from the group's mean is divided by: the deviation within the group, that of all counted
            rewards of the batch around their one mean, or nothing.
        epsilon: Added to the standard deviation.

    Returns:
        (groups, G); 0 for a whole group whose counted rewards are all equal.

    Raises:
        ValueError: If `std` is unknown.
    """
    if std not in get_args(Std):
        raise ValueError(f"std {std!r} is not one of {list(get_args(Std))}")
    mean, deviation = _mean_and_deviation(rewards, counted, axis=1)
    scale = {"group": deviation, "batch": _mean_and_deviation(rewards, counted)[1]}.get(std)
    advantages = (rewards - mean) / (1.0 if scale is None else scale + epsilon)
    return np.where(deviation > NO_VARIANCE, advantages, 0.0)


def difficulty_weights(scores: Floats) -> Floats:
    """What the advantages of a group are multiplied by: the harder the task, the more (UniVG-R1, arXiv 2505.14231).

    Args:
        scores: (groups, G) in [0, 1], the part of the reward that says how right an answer is, such as the IoU.

    Returns:
        (groups, 1) in [1, e].
    """
    weights: Floats = np.exp(1 - scores.mean(1, keepdims=True))
    return weights


def _mean_and_deviation(rewards: Floats, counted: Flags, axis: int | None = None) -> tuple[Floats, Floats]:
    """Mean and unbiased standard deviation of what counts; the latter is 0 for fewer than two rewards."""
    count = counted.sum(axis, keepdims=True)
    mean = np.where(counted, rewards, 0.0).sum(axis, keepdims=True) / np.maximum(count, 1)
    squares = np.where(counted, (rewards - mean) ** 2, 0.0).sum(axis, keepdims=True)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))
