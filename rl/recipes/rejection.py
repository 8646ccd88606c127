"""Sampling for data: an agent plays tasks several times, and a rule says what of it is kept.

One loop serves a cold start (keep a task where all attempts are right, arXiv 2507.00748: one right trajectory of it is
learned from), rejection sampling (drop what is always right and always wrong: there nothing can be learned from a
group's rewards) and trajectories built from annotations (one attempt by an oracle). Knows whether an attempt
succeeded, never how that is judged.

In the folder are `attempts.jsonl`, every episode (`mimgenv.records`); `trajectories.jsonl`, of each task that is kept
its first right attempt, or `tasks.jsonl`, those tasks (`mimgenv.datasets.selected`); and `counts.json`. A run that was
stopped goes on where it was, to the same files: what is sampled depends on the seed and the task alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from agents.types import Trajectory
from mimgenv.datasets.selected import Selected, write_selection
from mimgenv.records import EpisodeRecord, read_records, write_records
from rl.config import EnvSettings

POLICY: Final = "policy"
"""The agent that is the model of the stage before."""
TOGETHER: Final = 32
"""Tasks that are played, and written, at a time."""
TASKS_PER_SEED: Final = 2**24
"""Tasks of seed s begin at (s + 1) times this, as GRPO's do."""

ATTEMPTS: Final = "attempts.jsonl"
TRAJECTORIES: Final = "trajectories.jsonl"
TASKS: Final = "tasks.jsonl"
COUNTS: Final = "counts.json"
GIVES: Final[Mapping[str, str]] = {"trajectories": TRAJECTORIES, "tasks": TASKS}

KEEP: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "all_right": lambda right, attempts: right == attempts,
    "any_right": lambda right, attempts: right > 0,
    "varying": lambda right, attempts: 0 < right < attempts,
}
"""Whether a task is kept, from how many of its attempts are right."""


@dataclass(frozen=True, slots=True)
class SampleConfig(EnvSettings):
    """What is sampled, and what is kept of it.

    Attributes:
        agent: `policy`, the model `start`, or an agent by its name as in `python -m agents.evaluate`.
        start: A directory or a hub name.
        output: Folder to write to.
        seed: Of tasks and sampling.
        first: Tasks of the seed that are passed over, so that two stages see different ones.
        count: Tasks to play.
        attempts: At each of them.
        keep: A rule of `KEEP`. An attempt is right if it succeeds and each of its turns is well formed.
        gives: `trajectories` or `tasks`.
        temperature, max_turn_tokens: Of sampling.
        constrain_actions: Sample under the turn grammar.
        device, dtype: Of the model.
    """

    agent: str = POLICY
    start: str = "tiny"
    output: str = "runs/sample"
    seed: int = 0
    first: int = 0
    count: int = 500
    attempts: int = 4
    keep: str = "all_right"
    gives: str = "trajectories"
    temperature: float = 1.0
    max_turn_tokens: int = 24
    constrain_actions: bool = False
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("attempts", 1), ("first", 0), ("seed", 0), ("max_turn_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")
        for name, allowed in (("keep", tuple(KEEP)), ("gives", tuple(GIVES))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {list(allowed)}")
        if self.keep == "varying" and self.attempts < 2:
            raise ValueError(f"attempts {self.attempts}: one attempt cannot vary")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the tasks."""

    tasks: int
    attempts: int
    kept: int
    all_right: int
    all_wrong: int


def is_right(record: EpisodeRecord) -> bool:
    """Whether an attempt may serve as an example: it succeeded, and every turn of it was well formed."""
    return record.success and all(turn.error is None for turn in record.turns)


def sample(config: SampleConfig, on_tasks: Callable[[int, int], None] = lambda done, most: None) -> Counts:
    """Plays what has not been played yet, and writes what is kept.

    Args:
        config: What and where.
        on_tasks: Called with the tasks played so far and all of them.

    Raises:
        ValueError: If nothing is kept: there is nothing to go on with.
        DatasetError: If what is in the folder cannot be read.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    done = _played(folder / ATTEMPTS, config)
    player = cache(lambda: _Player(config))  # made only if there is something left to play
    for begin in range(len(done) // config.attempts, config.count, TOGETHER):
        on_tasks(begin, config.count)
        records = player().play(range(begin, min(begin + TOGETHER, config.count)))
        write_records(folder / ATTEMPTS, records, append=True)
        _sync(folder / ATTEMPTS)
        done += records
    on_tasks(config.count, config.count)
    return _write(folder, config, list(_groups(done, config.attempts)))


def _played(path: Path, config: SampleConfig) -> list[EpisodeRecord]:
    """The whole portions of tasks that an earlier run wrote; the rest is taken away."""
    if not path.exists():
        return []
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line without its newline was torn
    records = read_records(path)
    portion = TOGETHER * config.attempts
    whole = len(records) if len(records) == config.count * config.attempts else len(records) // portion * portion
    if whole < len(records):
        write_records(path, records[:whole])
    return records[:whole]


def _groups(records: Sequence[EpisodeRecord], size: int) -> Iterator[Sequence[EpisodeRecord]]:
    return (records[begin : begin + size] for begin in range(0, len(records), size))


def _write(folder: Path, config: SampleConfig, groups: Sequence[Sequence[EpisodeRecord]]) -> Counts:
    rights = [sum(map(is_right, group)) for group in groups]
    kept = [
        (group, right) for group, right in zip(groups, rights, strict=True) if KEEP[config.keep](right, config.attempts)
    ]
    counts = Counts(len(groups), config.attempts, len(kept), rights.count(config.attempts), rights.count(0))
    (folder / COUNTS).write_text(json.dumps({name: getattr(counts, name) for name in Counts.__slots__}, indent=1))
    if not kept:
        raise ValueError(f"{folder}: of {len(groups)} tasks none is kept ({config.keep}); {counts.all_wrong} all wrong")
    if config.gives == "trajectories":
        write_records(folder / TRAJECTORIES, [next(filter(is_right, group)) for group, _ in kept])
    else:
        by, attempts = kept[0][0][0].agent, config.attempts
        chosen = [Selected(group[0].task_id, group[0].task_type, attempts, right, by) for group, right in kept]
        write_selection(folder / TASKS, chosen)
    return counts


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class _Player:
    """An agent and the environments it plays in."""

    def __init__(self, config: SampleConfig) -> None:
        from agents.by_name import agent_by_name
        from agents.rollout import make_envs
        from agents.types import codec_of

        self.config = config
        name = f"vlm:{config.start}" if config.agent == POLICY else config.agent
        arguments = config.env_arguments()
        (first,) = make_envs(config.env, 1, **arguments)
        inner: Any = first.unwrapped
        self.agent: Any = agent_by_name(
            name,
            inner,
            seed=config.seed,
            temperature=config.temperature,
            max_tokens=config.max_turn_tokens,
            device=config.device,
            dtype=config.dtype,
            constrain=config.constrain_actions,
        )
        codec = codec_of(self.agent)
        arguments |= {"source": inner.source} | ({"codec": codec} if codec else {})
        self.envs = make_envs(config.env, min(TOGETHER, config.count) * config.attempts, **arguments)

    def play(self, places: range) -> list[EpisodeRecord]:
        """All attempts at some tasks, the attempts at one behind each other."""
        from agents.evaluate import record_of
        from agents.rollout import run_episodes

        config = self.config
        self._reseed(places.start)
        records: dict[int, EpisodeRecord] = {}

        def finish(index: int, env: Any, trajectory: Trajectory) -> None:
            records[index] = record_of(trajectory, env.unwrapped, config.agent)

        first = (config.seed + 1) * TASKS_PER_SEED + config.first
        starts = [first + place for place in places for _ in range(config.attempts)]
        run_episodes(self.agent, self.envs, starts, on_finish=finish)
        return [records[index] for index in range(len(starts))]

    def _reseed(self, place: int) -> None:
        """What a model samples from here on depends on the seed and the place alone."""
        sampler = getattr(self.agent, "sampler", None)
        if sampler is not None:
            words = np.random.SeedSequence([self.config.seed, self.config.first, place])
            sampler.generator.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
