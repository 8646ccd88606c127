"""Writes trl.json: losses and gradients of TRL's own `GRPOTrainer._compute_loss`, called with a stub for the trainer.

In a virtual environment with trl 1.16 and torch, from the repository root:

    python tests/rl/golden/make_trl.py

Only the truncated weights between sampler and trainer are computed here, as TRL does that amid generating.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from tensors import draw, result, rounded
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

LONGEST = 16
CAP = 1.2
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo k3": {"loss_type": "grpo", "beta": 0.1, "unbiased": False},
    "grpo unbiased k3": {"loss_type": "grpo", "beta": 0.1},
    "bnpo": {"loss_type": "bnpo", "epsilon_high": 0.28},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo k3": {"loss_type": "dapo", "beta": 0.1, "unbiased": False},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dr_grpo k3": {"loss_type": "dr_grpo", "beta": 0.1, "unbiased": False},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "cispo unbiased k3": {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1},
    "gspo": {"loss_type": "grpo", "level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1},
    "gspo unbiased k3": {"loss_type": "grpo", "level": "sequence", "beta": 0.1},
    "gspo by token": {"loss_type": "dapo", "level": "sequence"},
    "dapo token correction": {"loss_type": "dapo", "correction_level": "token"},
    "grpo sequence correction": {"loss_type": "grpo", "correction_level": "sequence", "beta": 0.1, "unbiased": False},
    "cispo sequence correction": {"loss_type": "cispo", "epsilon_high": 1.3, "correction_level": "sequence"},
    "gspo token correction": {"loss_type": "grpo", "level": "sequence", "correction_level": "token"},
}
REWARDS = [[0.1, 0.9, 0.4, 1.5], [0.0, 0.0, 0.0, 0.3], [1.5, 0.2, float("nan"), 1.1]]
"""TRL leaves out what is NaN, as ours leaves out what is not counted."""


def correction(batch: dict[str, Tensor], level: str) -> Tensor:
    """exp(trainer − sampler), of a token (B, T) or of the product over a sequence (B, 1), at most CAP."""
    difference = (batch["old"] - batch["sampled"]) * batch["mask"]
    return (difference.sum(-1, keepdim=True) if level == "sequence" else difference).exp().clamp(max=CAP)


def compute(
    loss_type: str,
    level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
    unbiased: bool = True,
    correction_level: str | None = None,
) -> dict[str, Any]:
    batch = draw()
    logprobs = batch["logprobs"].requires_grad_()
    mask = batch["mask"].long()
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=SimpleNamespace(use_bias_correction_kl=unbiased, delta=None, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_high=epsilon_high,
        epsilon_low=epsilon,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=LONGEST,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=correction_level is not None,
        vllm_importance_sampling_correction=correction_level is not None,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["old"],
        "ref_per_token_logps": batch["reference"],
        "num_items_in_batch": mask.sum(),
    }
    if correction_level is not None:
        inputs["importance_sampling_ratio"] = correction(batch, correction_level)
    return result(GRPOTrainer._compute_loss(trainer, None, inputs), logprobs, mask)


def advantages(scale: str) -> list[list[float]]:
    """With TRL's `nanstd` and its constant 1e-4."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    std = nanstd(rewards, dim=1, keepdim=True) if scale == "group" else nanstd(rewards)
    values = (rewards - rewards.nanmean(1, keepdim=True)) / (std + 1e-4 if scale != "off" else 1.0)
    return rounded(values.nan_to_num())


def main() -> None:
    golden = {
        "version": trl.__version__,
        "batch": {name: rounded(values) for name, values in draw().items()},
        "longest": LONGEST,
        "cap": CAP,
        "losses": {name: compute(**options) for name, options in CASES.items()},
        "rewards": [[None if value != value else value for value in row] for row in REWARDS],
        "advantages": {scale: advantages(scale) for scale in ("group", "batch", "off")},
    }
    Path(__file__).with_name("trl.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
