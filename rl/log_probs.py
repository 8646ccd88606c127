"""Log-probs of a batch under a model: one forward over packed rows, and the vocabulary only where a token is trained.

Logits are made from the hidden states of the N trained tokens alone, in chunks that are made again in the backward
pass: however long the rows and however many the tokens, no more than one chunk of logits is held.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.qwen_vl import QwenVL, digest
from rl.batch import Batch

CHUNK_LOGITS: Final = 2**24
"""Most logits held at a time, 64 MiB in float32."""


def token_log_probs(
    qwen: QwenVL, batch: Batch, temperature: float = 1.0, chunk_logits: int = CHUNK_LOGITS
) -> tuple[Tensor, Tensor]:
    """Log-probs of the trained tokens, from the hidden states before them, and the entropies there.

    Args:
        qwen: The model.
        batch: On any device.
        temperature: Of the distribution, above 0.
        chunk_logits: Most logits to hold at a time.

    Returns:
        (N,) float32 log-probs of the distribution sampled from: of the legal ids where sampling was constrained; and
        (N,) float32 entropies in nats, without gradient.
    """
    batch = batch.to(qwen.device)
    features = qwen.encode_images(batch.images)
    images = torch.cat([features[digest(image)] for image in batch.images]) if batch.images else None
    mask = qwen.packed_mask(batch.segments)
    hidden = qwen.hidden_states(batch.ids, batch.positions, mask, images).flatten(0, 1)[batch.sources]
    size = max(1, chunk_logits // qwen.codec.vocab_size)
    if len(hidden) <= size:
        return _vocabulary(qwen, hidden, batch.targets, batch.legal, temperature)
    columns = zip(*(column.split(size) for column in (hidden, batch.targets)), strict=True)
    legal = batch.legal.split(size) if batch.legal is not None else [None] * -(-len(hidden) // size)
    chunks = [
        checkpoint(_vocabulary, qwen, *column, bits, temperature, use_reentrant=False)
        for column, bits in zip(columns, legal, strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in chunks]), torch.cat([entropies for _, entropies in chunks])


def _vocabulary(
    qwen: QwenVL, hidden: Tensor, targets: Tensor, legal: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs (n,) and entropies (n,) from hidden states (n, hidden)."""
    distribution = qwen.log_probs(hidden, temperature)
    if legal is not None:
        distribution = distribution.masked_fill(~unpacked(legal, distribution.shape[-1]), float("-inf"))
        distribution = distribution.log_softmax(-1)
    with torch.no_grad():
        entropies = torch.special.entr(distribution.exp()).sum(-1)
    return distribution.gather(1, targets[:, None])[:, 0], entropies


def unpacked(bits: Tensor, count: int) -> Tensor:
    """(n, ⌈count / 8⌉) uint8 of little-endian bits to (n, count) bool; the columns beyond the bits are False."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flags = ((bits[:, :, None] >> places) & 1).flatten(1).bool()[:, :count]
    return torch.nn.functional.pad(flags, (0, count - flags.shape[1]))
