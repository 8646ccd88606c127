"""The cold start: supervised fine-tuning on the trajectories of an oracle, or on recorded ones.

An oracle's set is fixed: a number of tasks, played once. Each task brings some of its siblings, more questions about
the same images, and they share a packed row. A curriculum by measured skill, not by time: one object in one image,
then several, then the tasks themselves. Recorded episodes are played again, so that what is trained on is what the
environment shows, and shuffled anew in every pass over them. Which rows are trained on when is a pure function of
(seed, stage, update).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Final

import numpy as np
from torch import Tensor

from agents.chat import Chat
from agents.oracle import OracleAgent
from agents.replay import ReplayAgent
from agents.rollout import make_envs, run_episodes
from agents.types import Agent, Trajectory
from mimgenv import Task, siblings
from mimgenv.errors import ConfigurationError, DatasetError, MimgenvError
from mimgenv.records import EpisodeRecord, read_records
from rl.batch import Batch, Sample, pack, parts
from rl.config import TrainConfig
from rl.guards import check_finite
from rl.loss import sft_loss
from rl.masking import action_mask
from rl.policy import Policy

Rows = list[list[Sample]]

STAGE_IOU: Final = 0.55
"""An early stage ends when the probe's IoU on its own tasks reaches this. Boxing any of three objects scores 0.33."""
LEAST_SHARE: Final = 0.1
"""A type that is mastered is still shown this often, relative to one that is not at all."""
EASY_QUESTIONS: Final = 4
"""Questions about one image of an early stage: as many as there are things, and one more."""
HELD_OUT: Final = ("val", "test", "test_ood")
PLAYED_TOGETHER: Final = 64
EARLIER_SHARE: Final = 5
"""Every so many updates of a later stage, one is on rows of an earlier stage, so that its skill is kept."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the curriculum: what is asked of the environment, how many tasks, and most questions about each."""

    arguments: Mapping[str, Any]
    tasks: int
    questions: int


def sft_sample(chat: Chat, trajectory: Trajectory) -> Sample:
    """A trajectory as a training row: every token of its author is learned."""
    record = chat.record(trajectory)
    return Sample(record.ids, action_mask(record, trajectory), record.logprobs, record.images)


def play_rows(
    agent: Agent, chat: Chat, env: str, arguments: Mapping[str, Any], tasks: Iterable[Task], questions: int
) -> dict[str, Rows]:
    """Plays each task and its first `questions - 1` siblings: one row per task, by the task's type."""
    envs = make_envs(env, PLAYED_TOGETHER, **{"codec": chat.codec, **arguments})
    rows: dict[str, Rows] = {}
    stream = iter(tasks)
    while chunk := list(islice(stream, PLAYED_TOGETHER)):  # a few at a time, while their images are in the cache
        families = [[relative.task_id for relative in (task, *siblings(task))][:questions] for task in chunk]
        trajectories = run_episodes(agent, envs, [task_id for family in families for task_id in family])
        samples = iter([sft_sample(chat, trajectory) for trajectory in trajectories])
        for task, family in zip(chunk, families, strict=True):
            rows.setdefault(task.task_type, []).append([next(samples) for _ in family])
    return rows


def curriculum(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run; photographs have no easier versions, so a source has one stage only."""
    own = Stage(config.env_arguments(), config.sft_tasks, config.sft_questions)
    if config.source is not None:
        return (own,)
    easier = {**config.env_arguments(), "tasks": ("locate",)}
    easy = [Stage({**easier, "difficulty": level}, config.sft_tasks // 3, EASY_QUESTIONS) for level in (1, 3)]
    return (*easy, own)


class ColdStart:
    """The fixed cold-start set of a run, by stage.

    Args:
        config: Of the run.
        chat: Of the model that learns.
    """

    def __init__(self, config: TrainConfig, chat: Chat) -> None:
        self.config, self.chat = config, chat
        self.stages = curriculum(config)

    @cached_property
    def pools(self) -> tuple[dict[str, Rows], ...]:
        """The rows of each stage by the type of their first task, played by the oracle."""
        return tuple(self._pool(number, stage) for number, stage in enumerate(self.stages))

    def _pool(self, number: int, stage: Stage) -> dict[str, Rows]:
        env: Any = make_envs(self.config.env, 1, **stage.arguments)[0].unwrapped
        source = env.source
        first = (self.config.seed * len(self.stages) + number) * self.config.sft_tasks
        count = min(stage.tasks, len(source))
        tasks = (source.task(first + index) for index in range(count))
        last = number == len(self.stages) - 1
        shares = {name: getattr(self.config, f"sft_{name}") if last else 0.0 for name in ("zoom", "reflect", "confirm")}
        oracle = OracleAgent.for_env(env, **shares, think=self.config.sft_think, seed=self.config.seed)
        return play_rows(oracle, self.chat, self.config.env, stage.arguments, tasks, stage.questions)

    def rows(self, stage: int, update: int, skills: Mapping[str, float] | None = None) -> Rows:
        """The rows of one update of a stage.

        Args:
            stage: Index into `stages`.
            update: Updates of this stage so far.
            skills: Score in [0, 1] by task type, as last measured: the less a type is mastered, the more it is shown.
        """
        turn, place = divmod(update, EARLIER_SHARE)
        if stage > 0 and place == EARLIER_SHARE - 1:
            stage, skills = turn % stage, None
        rng = np.random.default_rng([self.config.seed, stage, update])
        pool = self.pools[stage]
        types = list(pool)
        shares = np.array([max(1 - (skills or {}).get(name, 0.0), LEAST_SHARE) for name in types])
        drawn = rng.choice(len(types), self.config.sft_rows, p=shares / shares.sum())
        return [pool[types[index]][rng.integers(len(pool[types[index]]))] for index in drawn]


class RecordedSet:
    """A cold-start set of recorded episodes, in a single stage.

    Args:
        config: Of the run; `sft_data` names the file.
        chat: Of the model that learns.
    """

    def __init__(self, config: TrainConfig, chat: Chat) -> None:
        self.config, self.chat = config, chat
        self.stages = (Stage(config.env_arguments(), 0, 1),)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The episodes as training rows, in the order of the file.

        Raises:
            DatasetError: If the file breaks a rule or holds no episode, or if this environment shows or ends one
                otherwise.
            OSError: If it cannot be read.
        """
        path = str(self.config.sft_data)
        records = read_records(path)
        if not records:
            raise DatasetError(f"{path} holds no episodes")
        _check_split(path, records)
        envs = make_envs(self.config.env, PLAYED_TOGETHER, codec=self.chat.codec, **self.stages[0].arguments)
        found: dict[int, Sample] = {}
        for once in _rounds(records):
            try:
                played = _played_again([record for _, record in once], envs)
            except MimgenvError as error:
                raise DatasetError(f"{path}: {error}") from error
            found |= {place: sft_sample(self.chat, one) for (place, _), one in zip(once, played, strict=True)}
        return tuple(found[place] for place in range(len(records)))

    def rows(self, stage: int, update: int, skills: Mapping[str, float] | None = None) -> Rows:
        """The rows of one update: every episode once, in random order, then all of them again."""
        count = len(self.samples)
        places = range(update * self.config.sft_rows, (update + 1) * self.config.sft_rows)
        passes = sorted({place // count for place in places})
        orders = {number: np.random.default_rng([self.config.seed, number]).permutation(count) for number in passes}
        return [[self.samples[orders[place // count][place % count]]] for place in places]


def _check_split(path: str, records: Sequence[EpisodeRecord]) -> None:
    """Refuses episodes on rendered tasks that runs are measured on."""
    for split in HELD_OUT:
        held = sum(f"/{split}/" in record.task_id for record in records if record.task_id.startswith("rendered:"))
        if held:
            told = "runs are measured on them; record others (agents.evaluate --split train)"
            raise DatasetError(f"{path}: {held} of {len(records)} episodes are on tasks of {split}: {told}")


def _rounds(records: Sequence[EpisodeRecord]) -> list[list[tuple[int, EpisodeRecord]]]:
    """The records with their places, parted so that no task is played twice in a round."""
    rounds: list[list[tuple[int, EpisodeRecord]]] = []
    seen: Counter[str] = Counter()
    for place, record in enumerate(records):
        if seen[record.task_id] == len(rounds):
            rounds.append([])
        rounds[seen[record.task_id]].append((place, record))
        seen[record.task_id] += 1
    return rounds


def _played_again(records: Sequence[EpisodeRecord], envs: Sequence[Any]) -> list[Trajectory]:
    """The episodes, if the environment shows and ends them as they were recorded.

    Raises:
        MimgenvError: If it does not, or knows no such task.
    """
    agent = ReplayAgent(records, envs[0].unwrapped.box_frame)
    played = run_episodes(agent, envs, [record.task_id for record in records])
    for record, trajectory in zip(records, played, strict=True):
        now, then = ([turn.error for turn in one.turns] for one in (trajectory, record))
        if (now, trajectory.stop) != (then, record.stop):
            ends = f"errors {now} and the end {trajectory.stop}, recorded are {then} and {record.stop}"
            raise ConfigurationError(f"task {record.task_id}: played again there are {ends}")
    return played


def cold_start_set(config: TrainConfig, chat: Chat) -> ColdStart | RecordedSet:
    """What the cold start of a run learns from."""
    return ColdStart(config, chat) if config.sft_data is None else RecordedSet(config, chat)


def sft_step(
    policy: Policy, rows: Sequence[Sequence[Sample]], rows_per_forward: int = 0, number: int = 0
) -> dict[str, float]:
    """One update on packed rows, at most `rows_per_forward` of them at a time (0: all); returns what to log.

    Every rank is given all rows, and trains on its share.

    Raises:
        TrainingStopped: If the loss or the gradient is no number; the weights are then as they were.
    """
    tokens = sum(sum(sample.mask) for row in rows for sample in row)
    own = policy.world.share(rows)
    batches = [pack(some, policy.qwen) for some in parts(own, rows_per_forward or max(len(own), 1))]

    def loss(batch: Batch) -> Tensor:
        return sft_loss(policy.log_probs(batch)[0], tokens)

    metrics = {"loss/sft": policy.backward([partial(loss, batch) for batch in batches]), "gradient/norm": policy.clip()}
    check_finite(metrics, batches, policy.folder, number)
    policy.advance()
    return metrics | {"mask/tokens_trained": float(tokens)}
