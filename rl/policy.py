"""Log-probs of a batch under a model, one forward over packed rows, and the step down a loss made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.qwen_vl import QwenVL, digest
from rl.batch import Batch


def token_log_probs(qwen: QwenVL, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(N,) float32: the log-prob of each trained token, from the hidden states before it.

    The vocabulary is only touched at those N places.
    """
    batch = batch.to(qwen.device)
    features = qwen.encode_images(batch.images)
    images = torch.cat([features[digest(image)] for image in batch.images]) if batch.images else None
    hidden = qwen.hidden_states(batch.ids, batch.positions, batch.mask(), images)
    distribution = qwen.log_probs(hidden.flatten(0, 1)[batch.sources], temperature)
    return distribution.gather(1, batch.targets[:, None])[:, 0]


def descend(qwen: QwenVL, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> float:
    """One optimiser step down `loss`, gradients clipped to `max_norm`; returns their norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(qwen.model.parameters(), max_norm)
    optimizer.step()
    return float(norm)
