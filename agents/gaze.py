"""How much of a model's attention goes to image tokens while the policy writes, token by token.

Owns the measure and its summary over episodes. IMAgent (arXiv 2512.08980) starts from it: the longer a model reasons,
the less it looks at its images. Finished trajectories are read again in one pass each, so that two models can be
measured on their own episodes or on the same ones. Attention is reduced layer by layer, at the queries asked for: what
is held at a time is a block of one layer's. Knows no tasks, rewards or plots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.positions import Expanded, expand
from agents.qwen_vl import QwenVL, digest
from agents.types import Trajectory

WATCHED: Final = "sdpa_watched"
"""SDPA by its name in transformers that also adds up attention, where it is given a `_Watch`."""
BLOCK_SCORES: Final = 2**25
"""Most attention scores held at a time, 128 MiB in float32, and as much again for their softmax."""
LEAST_EPISODES: Final = 10
"""Episodes that a position of the summary needs: a mean of fewer says little."""

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ImageAttention:
    """Of one trajectory, for each of the n tokens that the policy emitted, in order, over all its turns.

    Attributes:
        first: (n,) float64 in [0, 1]: share of the attention on image tokens of the first message.
        returned: (n,) float64 in [0, 1]: share on image tokens that tools returned.
        even: (n,) float64 in [0, 1]: share of image tokens among all tokens in view, which is what attention spread
            evenly would give them. It falls as text is added and rises with each new image.

    Raises:
        ValueError: If lengths differ.
    """

    first: FloatArray
    returned: FloatArray
    even: FloatArray

    def __post_init__(self) -> None:
        if not len(self.first) == len(self.returned) == len(self.even):
            raise ValueError(f"{len(self.first)}, {len(self.returned)} and {len(self.even)} shares of one trajectory")

    @property
    def share(self) -> FloatArray:
        """(n,) float64 in [0, 1]: share of the attention on all image tokens."""
        return self.first + self.returned


@dataclass(frozen=True, slots=True)
class AttentionCurve:
    """Means over episodes, by position: the index of a token among those that the policy emitted.

    Later positions are those of longer episodes only: `counts` says of how many, and `even` what to expect of them.

    Attributes:
        positions: 0, 1, …, P - 1: those that at least `least` episodes reach.
        share: Mean share of attention on image tokens, at each position.
        error: Standard error of that mean.
        first: The part of `share` on images of the first message.
        returned: The part on images that tools returned.
        even: Mean share that attention spread evenly would give.
        counts: Episodes that reach the position.
        episodes: All episodes.
        longest: Tokens of the longest: positions P to `longest` - 1 are left out.
    """

    positions: tuple[int, ...]
    share: tuple[float, ...]
    error: tuple[float, ...]
    first: tuple[float, ...]
    returned: tuple[float, ...]
    even: tuple[float, ...]
    counts: tuple[int, ...]
    episodes: int
    longest: int


def image_attention(
    qwen: QwenVL, trajectories: Sequence[Trajectory], block_scores: int = BLOCK_SCORES
) -> list[ImageAttention]:
    """Measures the attention by which each token was chosen: of the position before it, from which it is predicted.

    Shares are means over the heads and layers of the language model, or over its layers of softmax attention where it
    has others. The model is left as it was.

    Args:
        qwen: The model.
        trajectories: Finished episodes, in ids of its tokenizer.
        block_scores: Most attention scores to hold at a time.

    Returns:
        One record per trajectory.
    """
    with torch.no_grad():
        return [_measure(qwen, trajectory, block_scores) for trajectory in trajectories]


def attention_by_position(measured: Sequence[ImageAttention], least: int = LEAST_EPISODES) -> AttentionCurve:
    """Summarises trajectories; positions that fewer than `least` of them reach are left out.

    Raises:
        ValueError: If `least` is below 2: one episode has no standard error.
    """
    if least < 2:
        raise ValueError(f"a standard error needs 2 episodes or more, not {least}")
    lengths = sorted((len(one.share) for one in measured), reverse=True)
    positions = range(lengths[least - 1] if len(lengths) >= least else 0)

    def column(rows: Sequence[FloatArray]) -> list[FloatArray]:
        return [np.array([row[position] for row in rows if len(row) > position]) for position in positions]

    def means(rows: Sequence[FloatArray]) -> tuple[float, ...]:
        return tuple(float(values.mean()) for values in column(rows))

    shares = column([one.share for one in measured])
    return AttentionCurve(
        positions=tuple(positions),
        share=tuple(float(values.mean()) for values in shares),
        error=tuple(float(values.std(ddof=1) / len(values) ** 0.5) for values in shares),
        first=means([one.first for one in measured]),
        returned=means([one.returned for one in measured]),
        even=means([one.even for one in measured]),
        counts=tuple(len(values) for values in shares),
        episodes=len(measured),
        longest=max(lengths, default=0),
    )


def _measure(qwen: QwenVL, trajectory: Trajectory, block_scores: int) -> ImageAttention:
    record = qwen.chat.record(trajectory)
    laid = expand(record.ids, [qwen.grid(image) for image in record.images], qwen.chat.image_id)
    own = np.flatnonzero(np.asarray(record.turns, np.int64)[laid.origin])
    if not len(own):
        return ImageAttention(np.empty(0), np.empty(0), np.empty(0))
    kinds = _kinds(laid, len(trajectory.turns[0].message.images), qwen.chat.image_id)
    encoded = qwen.encode_images(record.images)
    features = torch.cat([encoded[digest(image)] for image in record.images]) if record.images else None
    ids, positions = torch.from_numpy(laid.ids)[None], torch.from_numpy(laid.positions)[:, None]
    sources = torch.from_numpy(own - 1).to(qwen.device)
    watch = _Watch(sources, torch.from_numpy(kinds).to(qwen.device), block_scores, [])
    with _watching(qwen.model.model.language_model, watch):
        qwen.hidden_states(ids.to(qwen.device), positions.to(qwen.device), None, features)
    first, returned = torch.stack(watch.layers).mean(0).double().cpu().numpy().T
    return ImageAttention(first, returned, kinds.sum(1).cumsum()[own - 1] / own)


def _kinds(laid: Expanded, first: int, image_id: int) -> npt.NDArray[np.float32]:
    """(T, 2) float32: 1 at image tokens, of the `first` images on the left and of later ones on the right."""
    starts = np.diff(laid.origin, prepend=-1) > 0
    shown = laid.ids == image_id
    number = np.cumsum(shown & starts)
    return np.stack([shown & (number <= first), shown & (number > first)], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Watch:
    """Which attention is added up, and what was found.

    Attributes:
        sources: (n,) int64: where the queries stand.
        kinds: (T, k) float32: 1 where a key is of the kind.
        block_scores: Most attention scores to hold at a time.
        layers: (n, k) float32 of each layer so far: shares, averaged over heads.
    """

    sources: Tensor
    kinds: Tensor
    block_scores: int
    layers: list[Tensor]


@contextmanager
def _watching(language_model: Any, watch: _Watch) -> Iterator[None]:
    """Gives the watch to every layer of attention, as a model hands on what its call does not know by name."""
    _register()
    config = language_model.config
    usual = config._attn_implementation
    hook = language_model.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, "watch": watch}), with_kwargs=True
    )
    try:
        config._attn_implementation = WATCHED
        yield
    finally:
        config._attn_implementation = usual
        hook.remove()


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(WATCHED, _attend)  # without a mask of that name: SDPA is causal where it has none


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, watch: _Watch, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA as ever, of one row: (1, heads, T, features) each to (1, T, heads, features)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    watch.layers.append(_shares(query[0], key[0], scaling, watch))
    mixed: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    return mixed


def _shares(query: Tensor, key: Tensor, scaling: float, watch: _Watch) -> Tensor:
    """(n, k) shares of causal attention by kind, from (heads, T, features) and (key heads, T, features)."""
    heads, (key_heads, length, size) = len(query), key.shape
    keys = key.float().transpose(1, 2)
    places = torch.arange(length, device=key.device)
    blocks = []
    for sources in torch.split(watch.sources, max(1, watch.block_scores // (heads * length))):
        asked = query[:, sources].float().reshape(key_heads, -1, size)  # heads that share keys are rows of one query
        scores = (asked * scaling @ keys).view(heads, -1, length)
        scores.masked_fill_(places > sources[:, None], float("-inf"))
        blocks.append((scores.softmax(-1) @ watch.kinds).mean(0))
    return torch.cat(blocks)
