"""From samples to tensors: rows that share their common prefix.

A sample is one trajectory as compact ids. Samples of one group that begin alike (the attempts at one task, the
questions about one set of images) are packed into one row: the common prefix once, then one branch per sample. A
branch sees the prefix and itself, and its positions go on from the prefix, so that every log-prob equals that of a
row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from agents.qwen_vl import Expanded, Ids, QwenVL, digest, expand
from mimgenv.types import Image


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row before packing.

    Attributes:
        ids: Compact ids: one placeholder per image.
        mask: One per id: whether it is trained on.
        logprobs: One per id: its log-probability when it was sampled; 0.0 where it was not.
        images: As many as there are placeholders.
        advantage: Of the whole trajectory; 1.0 in SFT.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    images: tuple[Image, ...]
    advantage: float = 1.0

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.mask) == len(self.logprobs):
            raise ValueError(f"{len(self.ids)} ids, {len(self.mask)} mask flags, {len(self.logprobs)} log-probs")
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
        old_logprobs: (N,) float32.
        advantages: (N,) float32: of the sample each token belongs to.
        samples: (N,) int64: number of that sample.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    images: tuple[Image, ...]
    sources: Tensor
    targets: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    samples: Tensor

    def mask(self) -> Tensor:
        """(B, 1, T, T) bool: True where the row's token may look at the column's."""
        here, there = self.segments[:, :, None], self.segments[:, None, :]
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        allowed = causal & ((there == here) | (there == 0))
        return allowed[:, None]

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
    """Packs each group into one row.

    Raises:
        ValueError: If a sample's placeholders and images differ in number.
    """
    rows = [_lay_out(group, qwen) for group in groups]
    lengths = [len(prefix.ids) + sum(len(branch.laid.ids) for branch in branches) for prefix, branches, _ in rows]
    shape = (len(rows), max(lengths))
    ids, segments = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    sources: list[Ids] = []
    targets: list[Ids] = []
    values: list[tuple[np.ndarray, float, int]] = []
    number = 0
    for row, (prefix, branches, _) in enumerate(rows):
        end = len(prefix.ids)
        ids[row, :end], positions[:, row, :end], segments[row, :end] = prefix.ids, prefix.positions, 0
        for branch_number, branch in enumerate(branches, 1):
            begin, laid = end, branch.laid
            end = begin + len(laid.ids)
            ids[row, begin:end], positions[:, row, begin:end] = laid.ids, laid.positions
            segments[row, begin:end] = branch_number
            trained = np.flatnonzero(np.asarray(branch.sample.mask[branch.kept], bool)[laid.origin])
            before = np.where(trained > 0, begin + trained - 1, len(prefix.ids) - 1)
            sources.append(row * shape[1] + before)
            targets.append(laid.ids[trained])
            old = np.asarray(branch.sample.logprobs[branch.kept], np.float32)[laid.origin[trained]]
            values.append((old, branch.sample.advantage, number))
            number += 1
    images = tuple(image for _, _, row_images in rows for image in row_images)
    counts = [len(old) for old, _, _ in values]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        images,
        torch.from_numpy(np.concatenate(sources)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate([old for old, _, _ in values])),
        torch.from_numpy(np.repeat(np.array([a for _, a, _ in values], np.float32), counts)),
        torch.from_numpy(np.repeat(np.array([n for _, _, n in values], np.int64), counts)),
    )


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
