"""What test_shared_updates.py starts with torchrun: a policy learns from the same groups, shared over the ranks.

    torchrun --nproc_per_node 2 updates_on_ranks.py FOLDER KIND …

For every kind, `ddp` or `fsdp2`, rank 0 writes the weights and metrics to `FOLDER/<kind>.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from agents.types import Action, Message, Trajectory, Turn
from rl.collect import collect
from rl.config import TrainConfig
from rl.distributed import ALONE, World
from rl.policy import COLD_START, Policy
from rl.update import Updater

STEPS: Final = 2


def groups_of(step: int) -> list[list[Trajectory]]:
    """Five groups, of images and without: one does not vary, and some attempts are masked."""
    rng = np.random.default_rng(step)
    groups = []
    for number in range(5):
        images = tuple(rng.integers(0, 256, (28, 56, 3), np.uint8) for _ in range(number % 3))
        message = Message(f"Where is {number}?" + "<image>" * len(images), images)
        group = []
        for attempt in range(4):
            ids = tuple(rng.integers(20, 800, 3 + int(rng.integers(8))).tolist())
            action = Action(ids, tuple(-6 - rng.random(len(ids))))
            stop = "turn_limit" if (number, attempt) in ((1, 2), (4, 0)) else "answered"
            reward = 1.0 if number == 3 else float(rng.random())
            turns = (Turn(message, action, None),)
            group.append(Trajectory("task", "referring", turns, reward, {"iou": reward}, stop, False))
        groups.append(group)
    return groups


def learn(folder: Path, kind: str, world: World = ALONE) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights after some steps, on rank 0, and what was logged."""
    settings: dict[str, Any] = {"loss": "grpo", "std": "batch", "beta": 0.2, "recompute_old": True, "max_drift": 1e9}
    settings |= {"updates_per_step": 2, "rows_per_forward": 1, "divide_by_masked": True, "difficulty_part": "iou"}
    settings |= {"learning_rate": 1e-3, "prompts_per_step": 5, "group_size": 4, "max_grad_norm": 1e9}
    config = TrainConfig(start="tiny", output=str(folder / f"{kind}-{world.size}"), parallel=kind, **settings)
    policy = Policy.start(config, "grpo", world)
    policy.save_whole(Path(config.output) / COLD_START)
    policy.optimizer = torch.optim.SGD(policy.trained, 2e-3)  # which feels the length of a gradient, as Adam does not
    updater = Updater(policy, config, longest=24)
    logged = []
    for step in range(STEPS):
        collected = collect(world.share(groups_of(step)), policy.qwen.chat, config, world)
        logged.append(collected.metrics | updater.step(collected.groups, step))
    state = policy._state()
    weights = policy.qwen.model.state_dict() if state is None else state
    return {name: value.detach().clone() for name, value in weights.items()}, logged


if __name__ == "__main__":
    where, *kinds = sys.argv[1:]
    with World.join() as joined:
        for each in kinds:
            found = learn(Path(where), each, joined)
            if joined.is_main:
                torch.save(found, Path(where) / f"{each}.pt")
