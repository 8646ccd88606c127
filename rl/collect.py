"""From finished episodes to GRPO samples: groups, advantages, masks.

Knows trajectories and the two masks; knows no models. A group is the attempts at one task, in the order in which they
were started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from agents.chat import Chat
from agents.sampling import legal_ids
from agents.types import Trajectory
from rl.advantage import difficulty_weights, group_advantages
from rl.batch import Bits, Sample
from rl.config import TrainConfig
from rl.loss import Totals
from rl.masking import KEEP_STOPS, action_mask, keeps_trajectory

Group = Sequence[Trajectory]
VARIES = 1e-6
"""A group whose rewards deviate by less teaches nothing."""


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """A group as an update sees it.

    Attributes:
        samples: The attempts that are trained on.
        masked: Tokens of the policy in each attempt that is masked.
    """

    samples: tuple[Sample, ...]
    masked: tuple[int, ...] = ()

    def tokens(self) -> int:
        """How many are trained on."""
        return sum(sum(sample.mask) for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Collected:
    """What the updates of one step train on.

    Attributes:
        groups: Those whose rewards vary, with at least one token that is not masked.
        metrics: What to log.
    """

    groups: list[SampleGroup]
    metrics: dict[str, float]


def varying(groups: Sequence[Group], config: TrainConfig) -> npt.NDArray[np.bool_]:
    """(groups,): whether a group's counted rewards vary and one of its attempts is trained on."""
    rewards, kept, counted = _tables(groups, config)
    spread = np.where(counted, rewards, -np.inf).max(1) - np.where(counted, rewards, np.inf).min(1)
    varied: npt.NDArray[np.bool_] = (spread > VARIES) & kept.any(1)
    return varied


def collect(groups: Sequence[Group], chat: Chat, config: TrainConfig) -> Collected:
    """Turns groups of equal size into samples; of more varying groups than a step has prompts, the first are taken."""
    rewards, kept, counted = _tables(groups, config)
    advantages = group_advantages(rewards, counted, config.objective().std)
    if config.difficulty_part is not None:
        advantages = advantages * difficulty_weights(_scores(groups, config.difficulty_part))
    varied = varying(groups, config)
    chosen = np.flatnonzero(varied)[: config.prompts_per_step]
    made = [_group(groups[i], advantages[i], kept[i], chat, config) for i in chosen]
    found = [group for group in made if group.tokens()]
    metrics = _metrics([trajectory for group in groups for trajectory in group])
    metrics |= {
        "mask/tokens_trained": float(sum(group.tokens() for group in found)),
        "mask/tokens_masked": float(sum(sum(group.masked) for group in found)),
        "mask/trajectories_masked": float((~kept).sum()),
        "mask/groups_dropped": float((~varied).sum()),
        "reward/deviation": float(rewards.std(1).mean()),
    }
    return Collected(found, metrics)


def totals(groups: Sequence[SampleGroup], count_masked: bool) -> Totals:
    """What the losses of one update are divided by; with `count_masked`, masked attempts too are divided by."""
    masked = [tokens for group in groups for tokens in group.masked] if count_masked else []
    tokens = sum(group.tokens() for group in groups) + sum(masked)
    return Totals(tokens, sum(len(group.samples) for group in groups) + len(masked))


def _tables(groups: Sequence[Group], config: TrainConfig) -> tuple[npt.NDArray[np.float64], ...]:
    """Rewards, which attempts are trained on, and which are counted in the group's statistics; (groups, G) each."""
    table = {stop: stop in config.keep_stops for stop in KEEP_STOPS}
    rewards = np.array([[trajectory.reward for trajectory in group] for group in groups])
    kept = np.array([[keeps_trajectory(trajectory, table) for trajectory in group] for group in groups])
    return rewards, kept, np.ones_like(kept) if config.count_masked else kept


def _scores(groups: Sequence[Group], part: str) -> npt.NDArray[np.float64]:
    """(groups, G): a reward part of each attempt; 1, which weighs nothing more, where its task is not paid in it."""
    return np.array([[trajectory.reward_parts.get(part, 1.0) for trajectory in group] for group in groups])


def _group(
    group: Group, advantages: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], chat: Chat, config: TrainConfig
) -> SampleGroup:
    samples = [_sample(chat, attempt, float(value), config) for attempt, value in zip(group, advantages, strict=True)]
    masked = [sum(sample.mask) for sample in compress(samples, ~kept)]
    return SampleGroup(tuple(compress(samples, kept)), tuple(masked))


def _sample(chat: Chat, trajectory: Trajectory, advantage: float, config: TrainConfig) -> Sample:
    record = chat.record(trajectory)
    mask = action_mask(record, trajectory, config.mask_invalid_actions)
    return Sample(record.ids, mask, record.logprobs, record.images, advantage, _legal(trajectory, record.turns, mask))


def _legal(trajectory: Trajectory, turns: Sequence[int], mask: Sequence[bool]) -> Bits | None:
    """Which ids were legal at each trained token, by walking its turn again; None where sampling was free."""
    if all(turn.action.walk is None for turn in trajectory.turns):
        return None
    walked = np.concatenate([np.packbits(legal_ids(turn.action), 1, "little") for turn in trajectory.turns])
    return walked[[on for on, turn in zip(mask, turns, strict=True) if turn]]


def _metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over episodes; a reward part over those that have it."""
    lengths = [sum(len(turn.action.ids) for turn in t.turns) for t in trajectories]
    metrics = {
        "reward/total": float(np.mean([t.reward for t in trajectories])),
        "episode/turns": float(np.mean([len(t.turns) for t in trajectories])),
        "episode/success": float(np.mean([t.success for t in trajectories])),
        "episode/errors": float(np.mean([sum(turn.error is not None for turn in t.turns) for t in trajectories])),
        "episode/tokens": float(np.mean(lengths)),
        "episode/longest": float(np.max(lengths)),
        "episode/images": float(np.mean([len(t.images) for t in trajectories])),
    }
    for name in sorted({name for t in trajectories for name in t.reward_parts}):
        values = [t.reward_parts[name] for t in trajectories if name in t.reward_parts]
        metrics[f"reward/{name}"] = float(np.mean(values))
    stops = Counter(t.stop for t in trajectories)
    return metrics | {f"stop/{stop}": count / len(trajectories) for stop, count in sorted(stops.items())}
