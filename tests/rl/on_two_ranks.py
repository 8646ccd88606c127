"""What test_distributed.py starts with torchrun: every rank trains, then this says what came of it.

    torchrun --nproc_per_node 2 on_two_ranks.py FOLDER CASE …

A case is `<kind>-<what is trained>`. Every rank writes `FOLDER/<case>.<rank>.pt`; `FOLDER/alone-<what is trained>.pt`
is what a process alone found.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL
from agents.rollout import run_episodes
from agents.sampling import SamplingParameters
from agents.tiny_model import tiny_qwen_vl
from agents.vlm import VLMAgent
from rl.batch import Sample, pack
from rl.distributed import Replicas, World
from rl.log_probs import token_log_probs
from rl.lora import adapter_off, add_lora, save_adapter, save_merged

IMAGE: Final = 12
STEPS: Final = 4
MOST: Final = 0.1
"""Gradients are clipped to this norm, which is below theirs."""
Group = list[Sample]


def sample_of(seed: int, branch: int, images: int, trained: int) -> Sample:
    """A sample whose prompt is decided by `seed` alone."""
    prompt, own = np.random.default_rng(seed), np.random.default_rng([seed, branch])
    pictures = tuple(prompt.integers(0, 256, (56, 28 * (1 + number), 3), np.uint8) for number in range(images))
    ids = (*prompt.integers(20, 800, 5).tolist(), *[IMAGE] * images, 30, *own.integers(20, 800, trained).tolist())
    mask = (False,) * (len(ids) - trained) + (True,) * trained
    return Sample(ids, mask, (0.0,) * len(ids), pictures, float(own.normal()))


def group_of(seed: int, sizes: list[int], images: int) -> Group:
    return [sample_of(seed, branch, images, trained) for branch, trained in enumerate(sizes)]


def groups_of(step: int) -> list[list[Group]]:
    """The groups of two ranks: uneven, without images on one of them, and with none at all on one of them."""
    seed = 10 * step
    seen = [group_of(seed, [3, 7], 2), group_of(seed + 1, [1, 2, 9], 1), group_of(seed + 2, [4], 1)]
    unseen = [group_of(seed + 3, [5, 2], 0)]
    return [[seen, unseen], [unseen, seen], [seen, []], [[], seen[:1]]][step % STEPS]


def learner(trains: str) -> QwenVL:
    qwen = tiny_qwen_vl(0)
    with torch.no_grad():
        qwen.model.model.visual.merger.mlp[2].weight.mul_(1 / 0.15)
    if trains == "lora":
        add_lora(qwen, 4, 8.0, seed=5)
    elif trains == "language":
        qwen.model.model.visual.requires_grad_(False)
    if trains == "recomputed":
        qwen.model.gradient_checkpointing_enable()
        qwen.model.train()
    return qwen


def optimizer_of(replicas: Replicas) -> torch.optim.Optimizer:
    return torch.optim.AdamW(replicas.trained(), 3e-3, betas=(0.9, 0.95), weight_decay=0.1)


def loss_of(qwen: QwenVL, group: Group, denominator: float) -> Tensor:
    batch = pack([group], qwen)
    logprobs, _ = token_log_probs(qwen, batch)
    return -(batch.advantages * logprobs).sum() / denominator


def train(replicas: Replicas, optimizer: torch.optim.Optimizer, steps: range) -> list[dict[str, float]]:
    """One update per step, one pass per group; alone, a process trains on the groups of both ranks."""
    world, logged = replicas.world, []
    for step in steps:
        ranks = groups_of(step)
        own = ranks[world.rank] if world.size > 1 else [group for groups in ranks for group in groups]
        tokens = world.total({"tokens": sum(sum(sample.mask) for group in own for sample in group)})["tokens"]
        loss = replicas.backward([partial(loss_of, replicas.qwen, group, tokens) for group in own])
        norm = replicas.clip(MOST)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        replicas.qwen.weights_changed()
        logged.append({"loss": world.total({"loss": loss})["loss"], "norm": norm, "tokens": tokens})
    return logged


def gradients(replicas: Replicas) -> dict[str, Tensor]:
    """Of the first step, whole, by name."""
    world, ranks = replicas.world, groups_of(0)
    own = ranks[world.rank] if world.size > 1 else [group for groups in ranks for group in groups]
    replicas.backward([partial(loss_of, replicas.qwen, group, 1.0) for group in own])
    named = {name: weight.grad for name, weight in replicas.qwen.model.named_parameters() if weight.grad is not None}
    whole = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in named.items()}
    found = {name: grad.clone() for name, grad in whole.items()}
    replicas.qwen.model.zero_grad(set_to_none=True)
    return found


def played(replicas: Replicas, rank: int) -> Any:
    """What was said, and its log-probs, in one episode after another: one more than the rank's number."""
    with replicas.whole() as qwen, torch.no_grad():
        qwen.model.eval()  # recomputing in training mode leaves no room for a cache
        agent = VLMAgent(qwen.chat, HFSampler(qwen, 3), SamplingParameters(1.0, 6))
        trajectories = [run_episodes(agent, "MultiImageTiny-v0", [seed])[0] for seed in range(rank + 1)]
        qwen.model.train()
        return [(turn.action.ids, turn.action.logprobs) for each in trajectories for turn in each.turns]


def referred(replicas: Replicas) -> Tensor:
    """Log-probs without the adapter."""
    with replicas.whole() as qwen, adapter_off(qwen), torch.no_grad():
        return token_log_probs(qwen, pack(groups_of(0)[0], qwen))[0]


def case(kind: str, trains: str, folder: Path, world: World) -> dict[str, Any]:
    found: dict[str, Any] = {"gradients": gradients(Replicas(learner(trains), world, kind))}
    replicas = Replicas(learner(trains), world, kind)
    optimizer = optimizer_of(replicas)
    found["fresh"] = replicas.optimizer_tensors(optimizer)
    found["reference"] = [referred(replicas)]
    found["logged"] = train(replicas, optimizer, range(STEPS // 2))
    found["played"] = played(replicas, world.rank)
    found["saved"] = clones(replicas.weights()), replicas.optimizer_tensors(optimizer)
    found["logged"] += train(replicas, optimizer, range(STEPS // 2, STEPS))
    found["reference"].append(referred(replicas))
    state = replicas.weights()
    found["weights"] = clones(state)
    found["only_trained"] = sorted(replicas.weights(only_trained=True))
    if world.is_main:
        save_merged(replicas.qwen, str(folder / f"merged-{kind}-{trains}-{world.size}"), state)
        if trains == "lora":
            save_adapter(replicas.qwen, str(folder / f"adapter-{kind}-{world.size}"), state)
    if world.size > 1:
        saved = torch.load(folder / f"alone-{trains}.pt")["saved"]
        found["resumed"] = resumed(kind, trains, saved, world)
    return found


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def resumed(kind: str, trains: str, saved: tuple[dict[str, Tensor], dict[str, Tensor]], world: World) -> Any:
    """The weights at the end of a run that goes on from what was saved half-way."""
    qwen = learner(trains)
    qwen.model.load_state_dict(saved[0])
    replicas = Replicas(qwen, world, kind)
    optimizer = optimizer_of(replicas)
    replicas.restore_optimizer(optimizer, saved[1], Path("half-way"))
    train(replicas, optimizer, range(STEPS // 2, STEPS))
    return clones(replicas.weights())


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with World.join(timeout=60) as world:
        for name in sys.argv[2:]:
            torch.save(case(*name.split("-"), folder, world), folder / f"{name}.{world.rank}.pt")


if __name__ == "__main__":
    main()
