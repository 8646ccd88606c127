"""Who may look at whom in a packed row: a prefix and branches after it, which do not see each other.

Rows are told by their segments, (B, T) int64: 0 the prefix, b branch b (1-based), -1 padding. Knows no model: what is
registered here is an attention that any transformers model can be loaded with.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

FLEX: Final = "flex_packed"
"""The attention, by its name in transformers: FlexAttention under a `BlockMask`, SDPA under any other mask."""


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
    """Makes `FLEX` known to transformers: its own "flex_attention" is refused by the Qwen-VL families."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(FLEX, _attend)
    AttentionMaskInterface.register(FLEX, sdpa_mask)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """(B, heads, T, features) each to (B, T, heads, features)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, BlockMask):
        seen: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return seen
    attend = flex_attention if query.device.type == "cpu" else _compiled()
    mixed: Tensor = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return mixed.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
