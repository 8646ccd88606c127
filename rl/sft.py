"""The cold start: supervised fine-tuning on the trajectories of an oracle.

The set is fixed: a number of tasks, played once. Each task brings some of its siblings, more questions about the same
images, and they share a packed row. A curriculum by measured skill, not by time: one object in one image, then
several, then the tasks themselves. Which rows are trained on when is a pure function of (seed, stage, update).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from agents.chat import Chat
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL
from agents.rollout import make_envs, run_episodes
from agents.types import Agent, Trajectory
from mimgenv import load_task, siblings
from rl.batch import Sample, pack
from rl.config import TrainConfig
from rl.loss import sft_loss
from rl.masking import action_mask
from rl.policy import token_log_probs

Rows = list[list[Sample]]

STAGE_IOU: Final = 0.5
"""An early stage ends when the probe's IoU on its own tasks reaches this."""
EASY_QUESTIONS: Final = 4
"""Questions about one image of an early stage: as many as there are things, and one more."""
PLAYED_TOGETHER: Final = 64
EARLIER_SHARE: Final = 5
"""Every so many updates of a later stage are on rows of the stage before it, so that its skill is kept."""


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
    agent: Agent, chat: Chat, env: str, arguments: Mapping[str, Any], task_ids: Sequence[str], questions: int
) -> Rows:
    """Plays each task and at most `questions - 1` of its siblings; one row of samples per task."""
    envs = make_envs(env, PLAYED_TOGETHER, **{"codec": chat.codec, **arguments})
    rows: Rows = []
    for begin in range(0, len(task_ids), PLAYED_TOGETHER):  # a few at a time, while their images are in the cache
        chunk = task_ids[begin : begin + PLAYED_TOGETHER]
        families = [[task_id, *_siblings(task_id, questions - 1)] for task_id in chunk]
        trajectories = run_episodes(agent, envs, [task_id for family in families for task_id in family])
        samples = iter([sft_sample(chat, trajectory) for trajectory in trajectories])
        rows += [[next(samples) for _ in family] for family in families]
    return rows


def _siblings(task_id: str, count: int) -> list[str]:
    family = siblings(load_task(task_id))
    order = np.random.default_rng(list(task_id.encode())).permutation(len(family))
    return [family[index].task_id for index in order[: max(count, 0)]]


def curriculum(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run; photographs have no easier versions, so a source has one stage only."""
    own = Stage(config.env_arguments(), config.sft_tasks, config.sft_questions)
    if config.source is not None:
        return (own,)
    easier = {**config.env_arguments(), "tasks": ("locate",)}
    first, second = ({**easier, "difficulty": difficulty} for difficulty in (1, None))
    return Stage(first, config.sft_tasks // 3, EASY_QUESTIONS), Stage(second, config.sft_tasks // 3, EASY_QUESTIONS), own


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
    def pools(self) -> tuple[Rows, ...]:
        """The rows of each stage, played by the oracle."""
        return tuple(self._pool(number, stage) for number, stage in enumerate(self.stages))

    def _pool(self, number: int, stage: Stage) -> Rows:
        env = make_envs(self.config.env, 1, **stage.arguments)[0].unwrapped
        source = env.source  # type: ignore[attr-defined]
        first = (self.config.seed * len(self.stages) + number) * self.config.sft_tasks
        count = min(stage.tasks, len(source))
        task_ids = [source.task(first + index).task_id for index in range(count)]
        can_zoom = "zoom" in env.tools  # type: ignore[attr-defined]
        oracle = OracleAgent(
            env.box_frame,  # type: ignore[attr-defined]
            think="label",
            grid=7 if self.config.source is None else 1,
            zoom=self.config.sft_zoom if can_zoom else 0.0,
            seed=self.config.seed,
        )
        return play_rows(oracle, self.chat, self.config.env, stage.arguments, task_ids, stage.questions)

    def rows(self, stage: int, update: int) -> Rows:
        """The rows of one update of a stage."""
        if stage > 0 and update % EARLIER_SHARE == EARLIER_SHARE - 1:
            return self._draw(stage - 1, update // EARLIER_SHARE, salt=1)
        return self._draw(stage, update, salt=0)

    def _draw(self, stage: int, update: int, salt: int) -> Rows:
        """Rows in a new random order every time the pool has been gone through."""
        pool = self.pools[stage]
        count = min(self.config.sft_rows, len(pool))
        per_epoch = len(pool) // count
        epoch, place = divmod(update, per_epoch)
        order = np.random.default_rng([self.config.seed, stage, salt, epoch]).permutation(len(pool))
        return [pool[index] for index in order[place * count : (place + 1) * count]]


def sft_step(
    qwen: QwenVL, optimizer: torch.optim.Optimizer, rows: Sequence[Sequence[Sample]], max_norm: float
) -> dict[str, float]:
    """One update on packed rows; returns what to log."""
    batch = pack(rows, qwen)
    loss = sft_loss(token_log_probs(qwen, batch))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(qwen.model.parameters(), max_norm)
    optimizer.step()
    return {"loss/sft": loss.item(), "gradient/norm": float(norm), "mask/tokens_trained": float(len(batch.targets))}
