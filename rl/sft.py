"""The cold start: supervised fine-tuning on the trajectories of an oracle.

The set is fixed: a number of tasks, played once. Each task brings some of its siblings, more questions about the same
images, and they share a packed row. A curriculum by measured skill, not by time: one object in one image, then
several, then the tasks themselves. Which rows are trained on when is a pure function of (seed, stage, update).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Final

import numpy as np
from torch import Tensor

from agents.chat import Chat
from agents.oracle import OracleAgent
from agents.rollout import make_envs, run_episodes
from agents.types import Agent, Trajectory
from mimgenv import Task, siblings
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
        oracle = OracleAgent.for_env(env, zoom=self.config.sft_zoom if last else 0.0, seed=self.config.seed)
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
