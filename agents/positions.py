"""Where the tokens of images stand: placeholders expanded, and the positions of multimodal RoPE.

Owns the layout of ids. Knows no model: the families supported lay out still images alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Expanded:
    """Ids with every placeholder repeated to the number of tokens its image takes.

    Attributes:
        ids: (T,) int64.
        positions: (3, T) int64: time, height and width of multimodal RoPE.
        origin: (T,) int64: index into the compact ids, so that `mask[origin]` moves a mask along.
        next_position: Where the text after it goes on.
    """

    ids: Ids
    positions: Ids
    origin: Ids
    next_position: int


def expand(ids: Sequence[int], grids: Sequence[tuple[int, int]], image_id: int, start: int = 0) -> Expanded:
    """Expands compact ids and lays out their positions (Qwen2-VL, arXiv 2409.12191, section 2.1: M-RoPE).

    Args:
        ids: Compact ids: one `image_id` per image.
        grids: Rows and columns of tokens of each image, in order.
        image_id: The placeholder.
        start: The first position, for ids that continue others.

    Raises:
        ValueError: If the numbers of placeholders and grids differ.
    """
    compact = np.asarray(ids, np.int64)
    where = np.flatnonzero(compact == image_id)
    if len(where) != len(grids):
        raise ValueError(f"{len(where)} image placeholders, {len(grids)} image grids")
    repeats = np.ones(len(compact), np.int64)
    repeats[where] = [rows * columns for rows, columns in grids]
    origin = np.repeat(np.arange(len(compact)), repeats)
    advance = np.ones(len(compact), np.int64)
    advance[where] = [max(grid) for grid in grids]
    first = start + np.concatenate([[0], np.cumsum(advance)])
    positions = np.repeat(first[:-1][origin][None], 3, axis=0)
    begins = np.cumsum(repeats) - repeats
    for index, (rows, columns) in zip(where, grids, strict=True):
        span = slice(begins[index], begins[index] + rows * columns)
        down, across = np.divmod(np.arange(rows * columns), columns)
        positions[1, span] += down
        positions[2, span] += across
    return Expanded(compact[origin], positions, origin, int(first[-1]))
