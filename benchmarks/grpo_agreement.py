"""Whether ours and TRL do the same work: loss and gradients of both on what TRL sampled.

python benchmarks/grpo_agreement.py (trl | ours) CASE_AS_JSON FILE

TRL plays one step at a learning rate of 0 and writes down completions, advantages, old log-probs (its own, moved by
noise, so that ratios differ from 1 and some are clipped), its loss and its gradients. Ours reads them and does as much.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from grpo_sides import qwen, settings, trl_trainer
from grpo_work import Case, region, shown, tokenizer
from torch import Tensor

NOISE: Final = 0.2
"""Standard deviation, in nats, of the old log-probs' distance from the policy's."""


def gradients(model: Any) -> npt.NDArray[np.float32]:
    """All of a model's, end to end, by name."""
    named = sorted((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return torch.cat([gradient.flatten() for _, gradient in named]).numpy()


def write_trl(case: Case, path: Path) -> None:
    """One step of TRL, and its loss and gradients on what it sampled."""
    trainer = trl_trainer(case, 1, rate=0.0)
    caught: list[dict[str, Any]] = []
    stock = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: caught.append(stock(inputs)) or dict(caught[-1])
    trainer.train()
    inputs = caught[0]
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        logprobs = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            **{name: inputs[name] for name in names if name in inputs},
        )[0]
    noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0))
    inputs["old_per_token_logps"] = logprobs + NOISE * noise
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    kept = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_per_token_logps")
    tensors = {name: inputs[name].numpy() for name in kept}
    trained = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    results = {"trained": trained.numpy(), "logprobs": logprobs.numpy(), "loss": loss.detach().numpy()}
    np.savez(path, **tensors, **results, gradients=gradients(trainer.model))


def samples(case: Case, found: Any, image_id: int) -> list[list[Any]]:
    """TRL's rows as our samples, by group."""
    from rl.batch import Sample

    made = []
    for row in range(case.rows):
        real = found["prompt_mask"][row].astype(bool), found["completion_mask"][row].astype(bool)
        ids = np.concatenate([found["prompt_ids"][row][real[0]], found["completion_ids"][row][real[1]]])
        before = np.zeros(real[0].sum())
        mask = np.concatenate([before, found["trained"][row][real[1]]]) > 0
        old = np.concatenate([before, found["old_per_token_logps"][row][real[1]]])
        compact = np.flatnonzero((ids != image_id) | (np.roll(ids, 1) != image_id))  # one placeholder an image
        images = shown(case, 0, row) + [region(case, row, turn) for turn in range(case.turns - 1)]
        columns = (tuple(column[compact].tolist()) for column in (ids, mask, old))
        made.append(Sample(*columns, tuple(images), float(found["advantages"][row])))
    return [made[begin : begin + case.group] for begin in range(0, case.rows, case.group)]


def compare_ours(case: Case, path: Path) -> dict[str, float]:
    """Our loss and gradients on what TRL sampled, beside its own."""
    from rl.batch import pack
    from rl.collect import SampleGroup, totals
    from rl.log_probs import token_log_probs
    from rl.loss import policy_loss, token_weights

    found = np.load(path)
    policy = qwen(case, tokenizer())
    groups = samples(case, found, policy.chat.image_id)
    batch, objective = pack(groups, policy), settings(case).objective()
    logprobs: Tensor = token_log_probs(policy, batch)[0]
    divided = totals([SampleGroup(tuple(group)) for group in groups], count_masked=False)
    weights = token_weights(batch.samples, objective.normaliser, divided, case.tokens)
    given = (logprobs, batch.sampled, batch.advantages, weights, batch.samples, batch.turns, objective)
    loss = policy_loss(*given, sampled=batch.sampled)
    loss.loss.backward()  # type: ignore[no-untyped-call]
    ours, theirs = gradients(policy.model), found["gradients"]
    difference = logprobs.detach().numpy() - found["logprobs"][found["trained"] > 0]
    return {
        "tokens": len(difference),
        "trl_tokens": int(found["trained"].sum()),
        "logprobs": float(np.abs(difference).max()),
        "loss": float(loss.loss),
        "trl_loss": float(found["loss"]),
        "norm": float(np.linalg.norm(ours)),
        "trl_norm": float(np.linalg.norm(theirs)),
        "gradients": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
    }


def main() -> None:
    side, case, path = sys.argv[1], Case(**json.loads(sys.argv[2])), Path(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes elsewhere
    torch.set_num_threads(1)
    result = compare_ours(case, path) if side == "ours" else write_trl(case, path)
    print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
