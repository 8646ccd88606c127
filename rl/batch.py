"""From samples to tensors: rows that share their common prefix.

A sample is one trajectory as compact ids. Samples of one group that begin alike (the attempts at one task, the
questions about one set of images) are packed into one row: the common prefix once, then one branch per sample. A
branch sees the prefix and itself, and its positions go on from the prefix, so that every log-prob equals that of a
row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.qwen_vl import Expanded, Ids, QwenVL, digest, expand
from mimgenv.types import Image

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row before packing.

    Attributes:
        ids: Compact ids: one placeholder per image.
        mask: One per id: whether it is trained on.
        logprobs: One per id: its log-probability when it was sampled; 0.0 where it was not.
        images: As many as there are placeholders.
        advantage: Of the whole trajectory; 1.0 in SFT.
        legal: (trained ids, ⌈V / 8⌉) uint8, little-endian bits of the ids that sampling was constrained to; None where
            it was free.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    images: tuple[Image, ...]
    advantage: float = 1.0
    legal: Bits | None = None

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.mask) == len(self.logprobs):
            raise ValueError(f"{len(self.ids)} ids, {len(self.mask)} mask flags, {len(self.logprobs)} log-probs")
        if self.legal is not None and len(self.legal) != sum(self.mask):
            raise ValueError(f"{sum(self.mask)} trained ids, {len(self.legal)} rows of legal ids")
        if self.mask[:1] == (True,):
            raise ValueError("the first token has nothing before it to be predicted from")


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, and the N trained tokens in them.

    Attributes:
        ids: (B, T) int64, expanded, 0 at padding.
        positions: (3, B, T) int64.
        segments: (B, T) int64: 0 prefix, b branch b (1-based), -1 padding.
        images: One per placeholder, rows first.
        sources: (N,) int64: flat index into (B, T) of the token before each trained token.
        targets: (N,) int64: the trained tokens.
        sampled: (N,) float32: log-probs when they were sampled.
        advantages: (N,) float32: of the sample each token belongs to.
        samples: (N,) int64: number of that sample.
        turns: (N,) int64: number of the turn each token belongs to, counted over the whole batch.
        legal: (N, ⌈V / 8⌉) uint8, see `Sample.legal`; None where all sampling was free.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    images: tuple[Image, ...]
    sources: Tensor
    targets: Tensor
    sampled: Tensor
    advantages: Tensor
    samples: Tensor
    turns: Tensor
    legal: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()}
        return Batch(**moved)


@dataclass(frozen=True, slots=True)
class _Branch:
    """A sample after its row's prefix, expanded."""

    sample: Sample
    laid: Expanded
    kept: slice


def common_prefix(samples: Sequence[Sample], image_id: int) -> int:
    """How many leading compact ids the samples share, images included, before the first trained token."""
    limit = min(min((i for i, on in enumerate(s.mask) if on), default=len(s.ids) - 1) for s in samples)
    first = samples[0]
    for index in range(limit):
        if any(sample.ids[index] != first.ids[index] for sample in samples):
            limit = index
            break
    images = 0
    for index in range(limit):
        if first.ids[index] == image_id:
            if any(digest(sample.images[images]) != digest(first.images[images]) for sample in samples):
                return index
            images += 1
    return limit


def pack(groups: Sequence[Sequence[Sample]], qwen: QwenVL) -> Batch:
    """Packs each group into one row; a model that cannot share a prompt gets one row per sample.

    Raises:
        ValueError: If a sample's placeholders and images differ in number.
    """
    if not qwen.shares_prompts:
        groups = [[sample] for group in groups for sample in group]
    rows = [_lay_out(group, qwen) for group in groups]
    lengths = [len(prefix.ids) + sum(len(branch.laid.ids) for branch in branches) for prefix, branches, _ in rows]
    shape = (len(rows), max(lengths))
    ids, segments = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    trained: list[_Trained] = []
    for row, (prefix, branches, _) in enumerate(rows):
        end = len(prefix.ids)
        ids[row, :end], positions[:, row, :end], segments[row, :end] = prefix.ids, prefix.positions, 0
        for number, branch in enumerate(branches, 1):
            begin, laid = end, branch.laid
            end = begin + len(laid.ids)
            ids[row, begin:end], positions[:, row, begin:end] = laid.ids, laid.positions
            segments[row, begin:end] = number
            trained.append(_trained(branch, row * shape[1], begin, len(prefix.ids)))
    images = tuple(image for _, _, row_images in rows for image in row_images)
    samples = [branch.sample for _, branches, _ in rows for branch in branches]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        images,
        *_tokens(samples, trained),
        _legal(samples, qwen.codec.vocab_size),
    )


@dataclass(frozen=True, slots=True)
class _Trained:
    """The trained tokens of a branch: where each is predicted from, which it is, its log-prob, whether it goes on a
    turn that the one before it belongs to."""

    sources: Ids
    targets: Ids
    sampled: npt.NDArray[np.float32]
    goes_on: npt.NDArray[np.bool_]


def _trained(branch: _Branch, row_begin: int, begin: int, prefix: int) -> _Trained:
    laid, kept = branch.laid, branch.kept
    where = np.flatnonzero(np.asarray(branch.sample.mask[kept], bool)[laid.origin])
    before = np.where(where > 0, begin + where - 1, prefix - 1)
    sampled = np.asarray(branch.sample.logprobs[kept], np.float32)[laid.origin[where]]
    return _Trained(row_begin + before, laid.ids[where], sampled, np.diff(where, prepend=-2) == 1)


def _tokens(samples: Sequence[Sample], trained: Sequence[_Trained]) -> tuple[Tensor, ...]:
    """`sources`, `targets`, `sampled`, `advantages`, `samples` and `turns` of a batch."""
    counts = [len(tokens.targets) for tokens in trained]
    columns = (
        np.concatenate([tokens.sources for tokens in trained]),
        np.concatenate([tokens.targets for tokens in trained]),
        np.concatenate([tokens.sampled for tokens in trained]),
        np.repeat(np.array([sample.advantage for sample in samples], np.float32), counts),
        np.repeat(np.arange(len(samples)), counts),
        np.cumsum(~np.concatenate([tokens.goes_on for tokens in trained])) - 1,
    )
    return tuple(torch.from_numpy(column) for column in columns)


def _legal(samples: Sequence[Sample], vocab_size: int) -> Tensor | None:
    if all(sample.legal is None for sample in samples):
        return None
    width = -(-vocab_size // 8)
    free = [np.full((sum(s.mask), width), 255, np.uint8) if s.legal is None else s.legal for s in samples]
    return torch.from_numpy(np.concatenate(free))


def _lay_out(group: Sequence[Sample], qwen: QwenVL) -> tuple[Expanded, list[_Branch], list[Image]]:
    """Prefix, branches and images of one row."""
    image_id = qwen.chat.image_id
    for sample in group:
        if sample.ids.count(image_id) != len(sample.images):
            raise ValueError(f"{sample.ids.count(image_id)} image placeholders, {len(sample.images)} images")
    cut = common_prefix(group, image_id)
    shared = group[0].ids[:cut].count(image_id)
    images = list(group[0].images[:shared])
    prefix = expand(group[0].ids[:cut], [qwen.grid(image) for image in images], image_id)
    branches = []
    for sample in group:
        own = sample.images[shared:]
        laid = expand(sample.ids[cut:], [qwen.grid(image) for image in own], image_id, prefix.next_position)
        branches.append(_Branch(sample, laid, slice(cut, None)))
        images += own
    return prefix, branches, images


def parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` in order, in parts of `size`, the last of which may be shorter."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
