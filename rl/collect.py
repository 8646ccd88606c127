"""From finished episodes to GRPO samples: groups, advantages, masks.

Knows trajectories and the two masks; knows no models. A group is the attempts at one task, in the order in which they
were started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from agents.chat import Chat
from agents.sampling import legal_ids
from agents.types import Trajectory
from mimgenv.errors import TurnError
from mimgenv.records import EpisodeTurn, called_tools
from rl.advantage import NO_VARIANCE, Flags, Floats, difficulty_weights, group_advantages
from rl.batch import Bits, Sample
from rl.config import TrainConfig
from rl.distributed import ALONE, World
from rl.errors import TrainingStopped
from rl.loss import Totals
from rl.masking import KEEP_STOPS, action_mask, keeps_trajectory

Group = Sequence[Trajectory]


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """A group as an update sees it.

    Attributes:
        samples: The attempts that are trained on.
        masked: Tokens of the policy in each attempt that is masked.
        number: Its place among the groups of a step, those of all ranks.
    """

    samples: tuple[Sample, ...]
    masked: tuple[int, ...] = ()
    number: int = 0

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


def varying(groups: Sequence[Group], config: TrainConfig, world: World = ALONE) -> npt.NDArray[np.bool_]:
    """(groups of all ranks,): whether counted rewards vary, and one of the attempts is trained on."""
    return _varying(*_tables(_everyones(groups, config, world)[0], config))


def collect(groups: Sequence[Group], chat: Chat, config: TrainConfig, world: World = ALONE) -> Collected:
    """Turns groups of equal size into samples; of more varying groups than a step has prompts, the first are taken.

    Args:
        groups: Those that this rank played.
        chat: Of the policy.
        config: Of the run.
        world: Statistics, and the choice of groups, are over the groups of all ranks.

    Returns:
        The samples of this rank, and the metrics of all.
    """
    everyones, places = _everyones(groups, config, world)
    rewards, kept, counted = tables = _tables(everyones, config)
    advantages = group_advantages(rewards, counted, config.objective().std)
    if config.difficulty_part is not None:
        advantages = advantages * difficulty_weights(_scores(everyones, f"reward/{config.difficulty_part}"))
    varied = _varying(*tables)
    chosen = {int(i): number for number, i in enumerate(np.flatnonzero(varied)[: config.prompts_per_step])}
    own = [(chosen[i], group, i) for group, i in zip(groups, places, strict=True) if i in chosen]
    found = [_group(number, group, advantages[i], kept[i], chat, config) for number, group, i in own]
    tokens = {"trained": sum(group.tokens() for group in found), "masked": sum(sum(g.masked) for g in found)}
    metrics = _means([attempt.figures for group in everyones for attempt in group])
    metrics |= _tool_use(groups, chat, world)
    metrics |= world.total({f"mask/tokens_{name}": float(count) for name, count in tokens.items()})
    metrics |= {
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


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What other ranks need to know of a trajectory.

    Attributes:
        kept: Whether it is trained on: not masked, and with a token that is not.
        figures: By metric.
    """

    kept: bool
    figures: Mapping[str, float]


def _everyones(groups: Sequence[Group], config: TrainConfig, world: World) -> tuple[list[list[_Attempt]], list[int]]:
    """The groups of all ranks, round by round and in each rank by rank, and where this rank's are among them."""
    ranks = world.gather([[_attempt(trajectory, config) for trajectory in group] for group in groups])
    rounds = max(1, sum(map(len, ranks)) // config.prompts_per_step)
    order = sorted((n * rounds // len(own), rank, n) for rank, own in enumerate(ranks) for n in range(len(own)))
    places = [place for place, (_, rank, _) in enumerate(order) if rank == world.rank]
    return [ranks[rank][number] for _, rank, number in order], places


def _attempt(trajectory: Trajectory, config: TrainConfig) -> _Attempt:
    table = {stop: stop in config.keep_stops for stop in KEEP_STOPS}
    learned = [turn for turn in trajectory.turns if not (config.mask_invalid_actions and turn.error)]
    said = any(turn.action.ids for turn in learned)
    return _Attempt(keeps_trajectory(trajectory, table) and said, _figures(trajectory))


def _tables(groups: Sequence[Sequence[_Attempt]], config: TrainConfig) -> tuple[Floats, Flags, Flags]:
    """Rewards, which attempts are trained on, and which are counted in the group's statistics; (groups, G) each."""
    rewards = np.array([[attempt.figures["reward/total"] for attempt in group] for group in groups])
    kept = np.array([[attempt.kept for attempt in group] for group in groups])
    return rewards, kept, np.ones_like(kept) if config.count_masked else kept


def _scores(groups: Sequence[Sequence[_Attempt]], name: str) -> Floats:
    """(groups, G): a figure of each attempt; 1, which weighs nothing more, where it has none.

    Raises:
        TrainingStopped: If no attempt has it.
    """
    if not any(name in attempt.figures for group in groups for attempt in group):
        known = sorted({key for group in groups for attempt in group for key in attempt.figures if "reward/" in key})
        raise TrainingStopped(f"difficulty_part is a reward part of some episodes, such as {name}", parts=known)
    return np.array([[attempt.figures.get(name, 1.0) for attempt in group] for group in groups])


def _varying(rewards: Floats, kept: Flags, counted: Flags) -> Flags:
    spread = np.where(counted, rewards, -np.inf).max(1) - np.where(counted, rewards, np.inf).min(1)
    varied: Flags = (spread > NO_VARIANCE) & kept.any(1)
    return varied


def _group(number: int, group: Group, advantages: Floats, kept: Flags, chat: Chat, config: TrainConfig) -> SampleGroup:
    samples = [_sample(chat, attempt, float(value), config) for attempt, value in zip(group, advantages, strict=True)]
    masked = [sum(sample.mask) for sample in compress(samples, ~kept)]
    return SampleGroup(tuple(compress(samples, kept)), tuple(masked), number)


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


def _figures(trajectory: Trajectory) -> dict[str, float]:
    """The metrics of one episode."""
    turns = trajectory.turns
    return {
        "reward/total": trajectory.reward,
        "episode/turns": float(len(turns)),
        "episode/success": float(trajectory.success),
        "episode/errors": float(sum(turn.error is not None for turn in turns)),
        "episode/tokens": float(sum(len(turn.action.ids) for turn in turns)),
        "episode/images": float(len(trajectory.images)),
        f"stop/{trajectory.stop}": 1.0,
        **{f"reward/{name}": value for name, value in trajectory.reward_parts.items()},
    }


def _tool_use(groups: Sequence[Group], chat: Chat, world: World) -> dict[str, float]:
    """Calls per episode of each tool that was called, over all ranks."""
    episodes = [trajectory for group in groups for trajectory in group]
    calls = Counter(f"tool/{name}" for trajectory in episodes for name in _called(trajectory, chat))
    found = world.total({"episodes": float(len(episodes)), **calls})
    return {name: found[name] / found["episodes"] for name in sorted(found.keys() - {"episodes"})}


def _called(trajectory: Trajectory, chat: Chat) -> Iterator[str]:
    """Names of the tools that were called, in order."""
    for turn in trajectory.turns:
        with suppress(TurnError):  # not every refused turn decodes, and an environment may let pass what does not parse
            said = chat.codec.decode_turn(turn.action.ids)
            yield from called_tools([EpisodeTurn("", said, turn.error, 0)])


def _means(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over episodes: of a reward part over those that are paid in it, of a stop over all."""
    names = sorted({name for figures in episodes for name in figures})
    values = {name: [figures[name] for figures in episodes if name in figures] for name in names}
    means = {
        name: sum(found) / (len(episodes) if name.startswith("stop/") else len(found)) for name, found in values.items()
    }
    return means | {"episode/longest": max(values["episode/tokens"])}
