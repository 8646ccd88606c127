"""Sampling for data: an agent plays tasks several times, and a rule says what of it is kept.

One loop serves a cold start (keep a task where all attempts are right, arXiv 2507.00748: one right trajectory of it is
learned from), rejection sampling (drop what is always right and always wrong: there nothing can be learned from a
group's rewards) and trajectories built from annotations (one attempt by an oracle). Knows whether an attempt
succeeded, never how that is judged.

In the folder are `attempts.jsonl`, every episode (`mimgenv.records`); `trajectories.jsonl`, of each task that is kept
its first right attempt, or `tasks.jsonl`, those tasks (`mimgenv.datasets.selected`); and `counts.json`. Attempts are
added in portions and never written again, nor are they held in memory. A run that was stopped goes on behind the last
whole portion, to the same files: what is sampled depends on the seed and the place of the task alone, as far as a
server samples by the seed that it is sent. A request to a server that fails costs that attempt; if it is more than a
tenth of a portion, the stage stops, and that portion is played again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from agents.api_agent import APIAgent, EndpointError
from agents.types import Trajectory
from mimgenv.datasets.selected import Selected, write_selection
from mimgenv.errors import DatasetError
from mimgenv.records import EpisodeRecord, iterate_records, write_records
from rl.config import TASKS_PER_SEED, EnvSettings, check_least

POLICY: Final = "policy"
"""The agent that is the model of the stage before."""
TOGETHER: Final = 32
"""Tasks that are played, and written, at a time."""

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
        start: A directory or a hub name. The model that is to learn: an agent without tokens of its own plays in its.
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
        check_least(self, {"count": 1, "attempts": 1, "first": 0, "seed": 0, "max_turn_tokens": 1})
        for name, allowed in (("keep", tuple(KEEP)), ("gives", tuple(GIVES))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {list(allowed)}")
        if self.keep == "varying" and self.attempts < 2:
            raise ValueError(f"attempts {self.attempts}: one attempt cannot vary")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the tasks, and of the attempts at them.

    Attributes:
        tasks: That were played.
        attempts: At each of them.
        kept, all_right, all_wrong: Tasks of which that is so.
        failed: Attempts with an empty turn: a request failed, or the agent said nothing.
        unanswered: Attempts that ended without an answer: its turns were cut, did not parse, or were too many.
    """

    tasks: int
    attempts: int
    kept: int
    all_right: int
    all_wrong: int
    failed: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is remembered of the attempts at one task: which of them were right, and how many came to nothing."""

    task_id: str
    task_type: str
    by: str
    marks: tuple[bool, ...]
    failed: int
    unanswered: int

    @property
    def right(self) -> int:
        return sum(self.marks)


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
        DatasetError: If what is in the folder cannot be read, or holds other attempts than these.
        EndpointError: If a server refuses all requests, or fails at more than a tenth of a portion.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    done = _played(folder / ATTEMPTS, config)
    player = cache(lambda: _Player(config))  # made only if there is something left to play
    for begin in range(len(done), config.count, TOGETHER):
        on_tasks(begin, config.count)
        records = player().play(range(begin, min(begin + TOGETHER, config.count)))
        write_records(folder / ATTEMPTS, records, append=True)
        _sync(folder / ATTEMPTS)
        done += _judged(folder / ATTEMPTS, records, config.attempts)
        del records  # or it would be held while the next ones are played
    on_tasks(config.count, config.count)
    return _write(folder, config, done)


def _played(path: Path, config: SampleConfig) -> list[_Judged]:
    """The whole portions of tasks that an earlier run wrote; what lies behind them is cut off."""
    if not path.exists():
        return []
    portion, most = TOGETHER * config.attempts, config.count * config.attempts
    lines = place = whole = whole_lines = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # torn
                break
            lines += bool(line.strip())
            place += len(line)
            if lines % portion == 0 or lines == most:
                whole, whole_lines = place, lines
    if lines > most:
        raise DatasetError(f"{path}: {lines} attempts, not {config.attempts} at each of {config.count} tasks")
    judged = list(_judged(path, islice(iterate_records(path), lines), config.attempts))
    os.truncate(path, whole)
    _sync(path)
    return judged[: whole_lines // config.attempts]


def _judged(path: Path, records: Iterable[EpisodeRecord], attempts: int) -> Iterator[_Judged]:
    records = iter(records)
    while group := list(islice(records, attempts)):
        ids = {record.task_id for record in group}
        if len(ids) > 1:
            found = ", ".join(sorted(ids))
            raise DatasetError(f"{path}: {attempts} attempts at one task lie behind each other, not some at {found}")
        failed = sum(any(not turn.action for turn in record.turns) for record in group)
        unanswered = sum(record.stop != "answered" for record in group)
        first, marks = group[0], tuple(map(is_right, group))
        yield _Judged(first.task_id, first.task_type, first.agent, marks, failed, unanswered)


def _write(folder: Path, config: SampleConfig, tasks: Sequence[_Judged]) -> Counts:
    rights = [task.right for task in tasks]
    kept = [(place, task) for place, task in enumerate(tasks) if KEEP[config.keep](task.right, config.attempts)]
    counts = Counts(
        tasks=len(tasks),
        attempts=config.attempts,
        kept=len(kept),
        all_right=rights.count(config.attempts),
        all_wrong=rights.count(0),
        failed=sum(task.failed for task in tasks),
        unanswered=sum(task.unanswered for task in tasks),
    )
    (folder / COUNTS).write_text(json.dumps({name: getattr(counts, name) for name in Counts.__slots__}, indent=1))
    if not kept:
        raise ValueError(f"{folder}: of {len(tasks)} tasks none is kept ({config.keep}); {counts.all_wrong} all wrong")
    if config.gives == "trajectories":
        first_right = {place * config.attempts + task.marks.index(True) for place, task in kept}
        _copy_lines(folder / ATTEMPTS, folder / TRAJECTORIES, first_right)
    else:
        chosen = [Selected(task.task_id, task.task_type, config.attempts, task.right, task.by) for _, task in kept]
        write_selection(folder / TASKS, chosen)
    return counts


def _copy_lines(path: Path, to: Path, numbers: Collection[int]) -> None:
    """Puts some lines of a file, counted from 0 without the empty ones, in the place of another, in one step."""
    beside = to.with_name(to.name + ".new")
    with open(path, "rb") as lines, open(beside, "wb") as file:
        file.writelines(line for number, line in enumerate(filter(bytes.strip, lines)) if number in numbers)
    _sync(beside)
    os.replace(beside, to)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class _Player:
    """An agent and the environments it plays in."""

    def __init__(self, config: SampleConfig) -> None:
        from agents.by_name import agent_by_name
        from agents.qwen_vl import load_codec
        from agents.rollout import make_envs
        from agents.types import codec_of

        self.config = config
        self.errors: list[EndpointError] = []
        name = f"vlm:{config.start}" if config.agent == POLICY else config.agent
        arguments = config.env_arguments() | {"codec": load_codec(config.start)}
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
        if isinstance(self.agent, APIAgent):
            self.agent.on_error = self._count_error
        codec = codec_of(self.agent)
        arguments |= {"source": inner.source} | ({"codec": codec} if codec else {})
        self.envs = make_envs(config.env, min(TOGETHER, config.count) * config.attempts, **arguments)

    def play(self, places: range) -> list[EpisodeRecord]:
        """All attempts at some tasks, the attempts at one behind each other."""
        from agents.evaluate import record_of
        from agents.rollout import run_episodes

        config = self.config
        self.errors.clear()
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
        words = np.random.SeedSequence([self.config.seed, self.config.first, place])
        if isinstance(self.agent, APIAgent):
            self.agent.seeds = np.random.default_rng(words)
        sampler = getattr(self.agent, "sampler", None)
        if sampler is not None:
            sampler.generator.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)

    def _count_error(self, error: EndpointError) -> None:
        self.errors.append(error)
        failed, portion = len(self.errors), len(self.envs)
        if 10 * failed > portion:
            raise EndpointError(f"{failed} of {portion} attempts failed, at most a tenth may; the last: {error}")
