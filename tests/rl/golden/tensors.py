"""The batch that all golden losses are computed on: six trajectories, padded to rows, one of them fully masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LENGTHS = (11, 9, 5, 3, 11, 7)
MASKED = 5
"""The trajectory of which nothing is trained."""
TOOL = slice(2, 4)
"""Columns that a tool wrote."""
DIGITS = 12


def draw() -> dict[str, Tensor]:
    """Log-probs, advantages and mask by name; (B, T) float64 but for the advantages (B,)."""
    rng = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    normal = [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(4)]
    old = -0.5 - normal[0].abs()
    batch = {"old": old, "logprobs": old + 0.4 * normal[1], "reference": old + 0.2 * normal[2]}
    batch["sampled"] = old + 0.3 * normal[3]
    batch["advantages"] = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.6, 2.0], dtype=torch.float64)
    batch["logprobs"][1, 0] = old[1, 0] + 1.5  # a ratio above 3 and a bad action: where a dual clip would bite
    mask = (torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]).double()
    mask[:, TOOL], mask[MASKED] = 0, 0
    return batch | {"mask": mask}


def rounded(values: Tensor) -> Any:
    """As nested lists, for JSON."""
    return [rounded(row) for row in values] if values.ndim > 1 else [round(float(value), DIGITS) for value in values]


def result(loss: Tensor, logprobs: Tensor, mask: Tensor) -> dict[str, Any]:
    """A loss and its gradient by the trained tokens, row by row; elsewhere the gradient must be 0."""
    (gradient,) = torch.autograd.grad(loss, logprobs)
    if bool((gradient[mask == 0] != 0).any()):
        raise ValueError("a masked token has a gradient")
    return {"loss": round(loss.item(), DIGITS), "gradient": rounded(gradient[mask > 0])}
