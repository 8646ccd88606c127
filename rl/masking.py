"""The two-level mask: which tokens of a trajectory are trained on, and which trajectories.

Action level: a token is trained on iff the policy emitted it; with `mask_invalid_actions`, not in a turn that the
environment refused. Trajectory level: a table from why an episode stopped to keep (True) or mask (False). The
environment sets the stop reason at its source; here it is only looked up. IMAgent (arXiv 2512.08980) names a
two-level mask without its formula: this is our reading, with Mini-o3's stop reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agents.chat import TokenRecord
from agents.types import Trajectory

KEEP_STOPS: Final[Mapping[str, bool]] = {
    "answered": True,
    "void": True,
    "turn_limit": False,
    "token_limit": False,
    "image_limit": False,
    "env_error": False,
}
"""The default table. `void` is kept, so that the format is learned; what a budget cut short is not judged."""


def action_mask(record: TokenRecord, trajectory: Trajectory, mask_invalid_actions: bool = False) -> tuple[bool, ...]:
    """One flag per compact id: True on the policy's own tokens."""
    refused = {number for number, turn in enumerate(trajectory.turns, 1) if turn.error is not None}
    untrained = {0} | (refused if mask_invalid_actions else set())
    return tuple(turn not in untrained for turn in record.turns)


def keeps_trajectory(trajectory: Trajectory, table: Mapping[str, bool] = KEEP_STOPS) -> bool:
    """Whether a trajectory is trained on at all.

    Raises:
        KeyError: If the table does not know the stop reason.
    """
    return table[trajectory.stop]
