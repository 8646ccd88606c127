"""Writes verl.json: losses, gradients and advantages of verl's own `core_algos`.

In a virtual environment with verl 0.9 and what its import needs (numpy, torch, tensordict, ray, transformers), from
the repository root:

    python tests/rl/golden/make_verl.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensors import draw, result, rounded
from verl import __version__
from verl.trainer.ppo.core_algos import agg_loss, compute_grpo_outcome_advantage, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import FSDPActorConfig

LONGEST = 16
CAP = 1.2
NO_DUAL_CLIP = 1e9
TOKEN, SEQUENCE, CONSTANT = "token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"
CASES: dict[str, dict[str, Any]] = {
    "vanilla token": {"high": 0.28},
    "vanilla sequence": {"aggregate": SEQUENCE},
    "vanilla constant": {"aggregate": CONSTANT},
    "vanilla dual clip": {"dual": 3.0},
    "vanilla k1": {"kl": "k1"},
    "vanilla k2": {"kl": "k2", "aggregate": SEQUENCE},
    "vanilla k3": {"kl": "k3", "aggregate": CONSTANT},
    "gspo token": {"name": "gspo", "low": 0.05, "high": 0.1},
    "gspo sequence": {"name": "gspo", "low": 0.05, "high": 0.1, "aggregate": SEQUENCE},
    "gspo constant": {"name": "gspo", "low": 0.05, "high": 0.1, "aggregate": CONSTANT},
    "cispo token": {"name": "cispo", "low": 0.2, "high": 0.3},
    "cispo sequence": {"name": "cispo", "low": 0.2, "high": 0.3, "aggregate": SEQUENCE},
    "cispo constant": {"name": "cispo", "low": 1.0, "high": 4.0, "aggregate": CONSTANT},
    "vanilla token correction": {"correction": "token", "kl": "k3"},
    "vanilla sequence correction": {"correction": "sequence", "aggregate": SEQUENCE},
    "cispo token correction": {"name": "cispo", "correction": "token"},
    "gspo sequence correction": {"name": "gspo", "correction": "sequence", "aggregate": SEQUENCE},
    "gspo token correction": {"name": "gspo", "correction": "token", "aggregate": SEQUENCE},
}
BETA = 0.1
REWARDS = [[0.1, 0.9, 0.4, 1.5], [0.0, 0.0, 0.0, 0.3], [1.5, 0.2, 0.7, 1.1]]


def compute(
    name: str = "vanilla",
    low: float = 0.2,
    high: float = 0.2,
    aggregate: str = TOKEN,
    dual: float = NO_DUAL_CLIP,
    kl: str | None = None,
    correction: str | None = None,
) -> dict[str, Any]:
    batch = draw()
    logprobs, mask = batch["logprobs"].requires_grad_(), batch["mask"]
    info = {"loss_scale_factor": LONGEST}
    config = FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual,
        global_batch_info=info,
    )
    weights = None
    if correction is not None:
        weights, _ = compute_rollout_correction_weights(batch["old"] - batch["sampled"], mask, correction, CAP)
    loss, _ = get_policy_loss_fn(name)(
        old_log_prob=batch["old"],
        log_prob=logprobs,
        advantages=batch["advantages"][:, None].expand_as(mask),
        response_mask=mask,
        loss_agg_mode=aggregate,
        config=config,
        rollout_is_weights=weights,
    )
    if kl is not None:
        estimates = kl_penalty(logprobs, batch["reference"], kl)
        loss = loss + BETA * agg_loss(estimates, mask, aggregate, **info)
    return result(loss, logprobs, mask)


def advantages(by_std: bool) -> list[list[float]]:
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    groups = np.repeat(np.arange(len(REWARDS)), len(REWARDS[0]))
    given = rewards.reshape(-1, 1)
    values, _ = compute_grpo_outcome_advantage(given, torch.ones_like(given), groups, norm_adv_by_std_in_grpo=by_std)
    return rounded(values.reshape(rewards.shape))


def main() -> None:
    golden = {
        "version": __version__,
        "batch": {name: rounded(values) for name, values in draw().items()},
        "longest": LONGEST,
        "cap": CAP,
        "beta": BETA,
        "losses": {name: compute(**options) for name, options in CASES.items()},
        "rewards": REWARDS,
        "advantages": {"group": advantages(True), "off": advantages(False)},
    }
    Path(__file__).with_name("verl.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
