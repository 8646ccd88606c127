"""Who may look at whom in a packed row: a prefix and branches after it, which do not see each other.

Rows are told by their segments, (B, T) int64: 0 the prefix, b branch b (1-based), -1 padding. With P tokens of prefix
and branches of L tokens, attention costs P² / 2 + Σ L (P + L), not (P + Σ L)²: where SDPA runs, the prefix attends to
itself and then all branches attend in one batch, each to the prefix and to itself; FlexAttention skips the blocks that
nobody looks at. Knows no model: what is registered here is an attention that any transformers model can be loaded with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

BRANCHED: Final = "sdpa_packed"
"""SDPA by its name in transformers: in two passes where it is given `Branches`, as ever under any other mask."""
FLEX: Final = "flex_packed"
"""FlexAttention by its name in transformers: under a `BlockMask`; SDPA under any other mask."""


LONG: Final = 256
"""Tokens of a packed row from which on two passes are faster than one under a dense mask."""


@dataclass(frozen=True, slots=True)
class Branches:
    """The R branches of all rows, of L tokens at most, after prefixes of P tokens at most.

    Attributes:
        prefix: P.
        rows: (R,) int64: the row of each branch.
        places: (R, L) int64: where its tokens stand in the row; 0 beyond its end.
        real: (R, L) bool: which are tokens of it.
        mask: (R, 1, L, P + L) bool: True where a token of it may look.
        flat: (tokens of all branches,) int64: where they stand in the rows laid end to end.
    """

    prefix: int
    rows: Tensor
    places: Tensor
    real: Tensor
    mask: Tensor
    flat: Tensor


def find_branches(segments: Tensor) -> Branches:
    """The branches of packed rows, (B, T) int64; at least one is needed."""
    device, width = segments.device, segments.shape[1]
    laid = functional.pad(segments, (1, 0), value=-2).cpu().numpy()
    edges = np.argwhere(np.diff(laid, axis=1) != 0)  # where a prefix, a branch or padding begins
    ends = np.append(np.where(np.diff(edges[:, 0]) == 0, edges[1:, 1], width), width)
    inside = laid[edges[:, 0], edges[:, 1] + 1] > 0
    row_of, begins = edges[inside].T
    lengths = ends[inside] - begins
    prefixes = np.sum(laid == 0, axis=1)
    rows, steps = torch.from_numpy(row_of).to(device), torch.arange(int(lengths.max()), device=device)
    real = steps < torch.from_numpy(lengths).to(device)[:, None]
    places = torch.where(real, torch.from_numpy(begins).to(device)[:, None] + steps, 0)
    prefix = int(prefixes.max())
    shown = torch.arange(prefix, device=device) < torch.from_numpy(prefixes).to(device)[rows][:, None]
    causal = torch.ones(len(steps), len(steps), dtype=torch.bool, device=device).tril()
    mask = torch.cat([shown[:, None].expand(-1, len(steps), -1), causal.expand(len(rows), -1, -1)], dim=2)
    return Branches(prefix, rows, places, real, mask[:, None], (rows[:, None] * width + places)[real])


def dense_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T) bool: True where the row's token may look at the column's."""
    here, there = segments[:, :, None], segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (causal & ((there == here) | (there == 0)))[:, None]


def block_mask(segments: Tensor) -> BlockMask:
    """The same for FlexAttention: blocks in which nobody looks at anybody are neither held nor computed."""

    def looks(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        here, there = segments[row, query], segments[row, key]
        return (query >= key) & ((here == there) | (there == 0))

    rows, length = segments.shape
    return create_block_mask(looks, rows, None, length, length, device=str(segments.device))


@cache
def register() -> None:
    """Makes `BRANCHED` and `FLEX` known to transformers, whose own "flex_attention" the Qwen-VL families refuse."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for name in (BRANCHED, FLEX):
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, sdpa_mask)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    branches: Branches | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, heads, T, features) each to (B, T, heads, features)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if branches is not None:
        return _attend_branches(query, key, value, branches, scaling), None
    if query.shape[2] == 1:
        return _attend_last(query, key, value, attention_mask, scaling), None
    if not isinstance(attention_mask, BlockMask):
        seen: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return seen
    attend = flex_attention if query.device.type == "cpu" else _compiled()
    mixed: Tensor = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return mixed.transpose(1, 2).contiguous(), None


_sdpa: Callable[..., Tensor] = functional.scaled_dot_product_attention


def _attend_branches(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scaling: float) -> Tensor:
    """Prefixes causally, then every branch over its prefix and itself; zeros at padding."""
    rows, length, prefix = query.shape[0], query.shape[2], branches.prefix

    def own(states: Tensor) -> Tensor:
        """(R, heads, L, features) of the branches."""
        return states.transpose(1, 2)[branches.rows[:, None], branches.places].transpose(1, 2)

    def seen(states: Tensor) -> Tensor:
        """(R, heads, P + L, features): of the prefix, then of the branch."""
        return torch.cat([states[branches.rows, :, :prefix], own(states)], dim=2)

    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] > key.shape[1]}
    firsts = [states[:, :, :prefix] for states in (query, key, value)]
    shared = _sdpa(*firsts, is_causal=True, **options)
    mixed = _sdpa(own(query), seen(key), seen(value), attn_mask=branches.mask, **options)
    padded = functional.pad(shared.transpose(1, 2), (0, 0, 0, 0, 0, length - prefix)).flatten(0, 1)
    laid = padded.index_put((branches.flat,), mixed.transpose(1, 2)[branches.real])
    return laid.view(rows, length, *laid.shape[1:])


def _attend_last(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """One token over all before it: heads that share keys and values are rows of one query, so that these are not
    copied for each."""
    rows, heads, _, size = query.shape
    shared = query.view(rows, key.shape[1], heads // key.shape[1], size)
    return _sdpa(shared, key, value, attn_mask=mask, scale=scaling).flatten(1, 2)[:, None]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
