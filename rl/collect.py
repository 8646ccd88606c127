"""From finished episodes to GRPO samples: groups, advantages, masks.

Knows trajectories and the two masks; knows no tensors. A group is the attempts at one task, in the order in which
they were started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.chat import Chat
from agents.types import Trajectory
from rl.advantage import group_advantages
from rl.batch import Sample
from rl.config import TrainConfig
from rl.masking import KEEP_STOPS, action_mask, keeps_trajectory

Group = Sequence[Trajectory]


@dataclass(frozen=True, slots=True)
class Collected:
    """What one update trains on.

    Attributes:
        rows: Samples by group; groups without reward variance and masked trajectories are left out.
        denominator: Tokens that the summed loss is divided by.
        metrics: What to log.
    """

    rows: list[list[Sample]]
    denominator: float
    metrics: dict[str, float]


def collect(groups: Sequence[Group], chat: Chat, config: TrainConfig) -> Collected:
    """Turns groups of equal size into samples."""
    table = {stop: stop in config.keep_stops for stop in KEEP_STOPS}
    kept = np.array([[keeps_trajectory(trajectory, table) for trajectory in group] for group in groups])
    rewards = np.array([[trajectory.reward for trajectory in group] for group in groups])
    counted = np.ones_like(kept) if config.count_masked else kept
    advantages = group_advantages(rewards, counted, config.normalise_advantages)
    varied = np.any(advantages != 0, axis=1)
    rows: list[list[Sample]] = []
    masked_tokens = 0
    for group, values, keeps in ((groups[i], advantages[i], kept[i]) for i in np.flatnonzero(varied)):
        row = [_sample(chat, trajectory, float(value), config) for trajectory, value in zip(group, values, strict=True)]
        rows.append([sample for sample, keep in zip(row, keeps, strict=True) if keep])
        masked_tokens += sum(sum(sample.mask) for sample, keep in zip(row, keeps, strict=True) if not keep)
    rows = [row for row in rows if row]
    trained = sum(sum(sample.mask) for row in rows for sample in row)
    metrics = _metrics([trajectory for group in groups for trajectory in group])
    metrics |= {
        "mask/tokens_trained": float(trained),
        "mask/trajectories_masked": float((~kept).sum()),
        "mask/groups_dropped": float((~varied).sum()),
        "reward/deviation": float(rewards.std(1).mean()),
    }
    return Collected(rows, float(trained + (masked_tokens if config.divide_by_masked else 0)), metrics)


def _sample(chat: Chat, trajectory: Trajectory, advantage: float, config: TrainConfig) -> Sample:
    record = chat.record(trajectory)
    mask = action_mask(record, trajectory, config.mask_invalid_actions)
    return Sample(record.ids, mask, record.logprobs, record.images, advantage)


def _metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over episodes; a reward part over those that have it."""
    metrics = {
        "reward/total": float(np.mean([t.reward for t in trajectories])),
        "episode/turns": float(np.mean([len(t.turns) for t in trajectories])),
        "episode/success": float(np.mean([t.success for t in trajectories])),
        "episode/errors": float(np.mean([sum(turn.error is not None for turn in t.turns) for t in trajectories])),
        "episode/tokens": float(np.mean([sum(len(turn.action.ids) for turn in t.turns) for t in trajectories])),
        "episode/images": float(np.mean([len(t.images) for t in trajectories])),
    }
    for name in sorted({name for t in trajectories for name in t.reward_parts}):
        values = [t.reward_parts[name] for t in trajectories if name in t.reward_parts]
        metrics[f"reward/{name}"] = float(np.mean(values))
    stops = Counter(t.stop for t in trajectories)
    return metrics | {f"stop/{stop}": count / len(trajectories) for stop, count in sorted(stops.items())}
