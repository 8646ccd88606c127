"""Group-relative advantages (GRPO: DeepSeekMath, arXiv 2402.03300, section 4.1.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
EPSILON = 1e-4


def group_advantages(rewards: Floats, counted: npt.NDArray[np.bool_], normalise: bool = True) -> Floats:
    """How much better each attempt is than its group.

    Args:
        rewards: (groups, G).
        counted: (groups, G); attempts that enter the group's mean and standard deviation.
        normalise: Divide by the group's (biased) standard deviation; False is Dr.GRPO (arXiv 2503.20783).

    Returns:
        (groups, G); 0 for a whole group whose counted rewards are all equal.
    """
    counts = np.maximum(counted.sum(1, keepdims=True), 1)
    mean = (rewards * counted).sum(1, keepdims=True) / counts
    deviation = np.sqrt((((rewards - mean) * counted) ** 2).sum(1, keepdims=True) / counts)
    advantages = (rewards - mean) / (deviation + EPSILON if normalise else 1.0)
    return np.where(deviation > 1e-6, advantages, 0.0)
