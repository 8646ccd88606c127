"""From a drawing to pixels: a thing cut out of paper at some size and turn, in layers that await its colour.

Knows nothing of scenes. Array maths is + - * /, floor and whole numbers, without sums of floats, so the same cut-out
has the same bytes on every processor. Cut-outs are cached, since scenes share sizes and turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.sprites.drawings import DRAWINGS
from mimgenv.scenes.tabletop.camera import sine_cosine

Layer: TypeAlias = npt.NDArray[np.uint8]
"""(n, n), 0 to 255; the middle of the thing is in its middle."""

Plane: TypeAlias = npt.NDArray[Any]
"""(..., n, n) float32. (Numpy's type stubs wrongly make float32 times float a float64.)"""

FULL: Final = 255
"""A pixel that is covered all over."""

_GRID: Final = 64  # Steps per pixel to which corners are rounded.
_SCANS: Final = 8  # Lines per pixel along which outlines are followed.
_RIM: Final = 0.28  # How much darker a thing is at its edge.
_SLOPE: Final = (1.0, 0.84)  # Brightness at the top and at the bottom.
_SOFT: Final = 16  # Size over the reach of one of the two blurs of a shadow.


@dataclass(frozen=True, slots=True)
class Cutout:
    """A thing without its colour. All layers are read-only; `shadow` is larger than the other three.

    Attributes:
        alpha: How much of a pixel it covers.
        tone: How much of a pixel has its colour.
        grey: Grey levels that every channel gets beside it.
        shadow: Its blurred outline.
    """

    alpha: Layer
    tone: Layer
    grey: Layer
    shadow: Layer


@lru_cache(maxsize=2048)
def cutout(shape: str, size: int, turn: float) -> Cutout:
    """A thing that fits a circle of `size` pixels across, turned clockwise by `turn` radians."""
    side, patches = size + 2, DRAWINGS[shape]
    planes = np.zeros((3, side, side), np.float32)
    for patch, share in zip(patches, _covered(_edges(shape), size, turn), strict=True):
        paint = np.array([FULL, patch.paint.tone * FULL, patch.paint.grey], np.float32)[:, None, None]
        planes += (paint - planes) * share
    planes[1:] *= _shading(planes[0] * np.float32(1 / FULL))
    alpha, tone, grey = (planes + np.float32(0.5)).astype(np.uint8)
    layers = Cutout(alpha, tone, grey, _shadow(alpha, max(1, size // _SOFT)))
    for layer in (layers.alpha, layers.tone, layers.grey, layers.shadow):
        layer.flags.writeable = False
    return layers


@dataclass(frozen=True, slots=True)
class Edges:
    """All edges of all outlines of a drawing.

    Attributes:
        starts: (2, n), x and y.
        ends: (2, n).
        patch: Number of the patch of each, (n,).
    """

    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    patch: npt.NDArray[np.intp]


@cache
def _edges(shape: str) -> Edges:
    outlines = [(number, outline) for number, patch in enumerate(DRAWINGS[shape]) for outline in patch.outlines]
    starts, ends = (np.concatenate([np.roll(outline, -i, 0) for _, outline in outlines]).T for i in (0, 1))
    return Edges(starts, ends, np.concatenate([np.full(len(outline), number) for number, outline in outlines]))


def _covered(edges: Edges, size: int, turn: float) -> Plane:
    """How much of each pixel each patch covers, (patches, size + 2, size + 2) in [0, 1].

    Every line of the scan adds up, from left to right, how much of each pixel lies to the right of the edges that
    cross it: of one that goes up for, of one that goes down against. What lies between the two is covered.
    """
    (x, y), (end_x, end_y) = (_placed(spots, size, turn) for spots in (edges.starts, edges.ends))
    step, half = _GRID // _SCANS, _GRID // _SCANS // 2
    first, last = (-((half - level) // step) for level in (np.minimum(y, end_y), np.maximum(y, end_y)))
    slope = (end_x - x) / np.where(end_y == y, 1, end_y - y)
    edge = np.repeat(np.arange(len(x)), last - first)
    scan = np.arange(len(edge)) - (np.cumsum(last - first) - last)[edge]
    cross = np.floor((x + (half - y) * slope)[edge] + scan * (step * slope)[edge]).astype(np.intp)
    column, part = cross // _GRID, cross % _GRID
    side, patches = size + 2, int(edges.patch[-1]) + 1
    index = (edges.patch * side)[edge] * side + scan // _SCANS * side + column
    sign, length = np.sign(y - end_y)[edge], patches * side * side
    total = np.bincount(index, sign * (_GRID - part), length) + np.bincount(index + 1, sign * part, length)
    summed = np.cumsum(total.astype(np.int32).reshape(patches, side, side), axis=2)
    covered: Plane = np.clip(summed, 0, _GRID * _SCANS).astype(np.float32) * np.float32(1 / (_GRID * _SCANS))
    return covered


def _placed(spots: npt.NDArray[np.float64], size: int, turn: float) -> npt.NDArray[np.intp]:
    """Spots in steps of the grid, (2, n)."""
    sine, cosine = sine_cosine(turn)
    x, y = spots * (size / 2 * _GRID)
    places = np.stack([x * cosine - y * sine, x * sine + y * cosine]) + (size / 2 + 1) * _GRID
    return np.floor(places + 0.5).astype(np.intp)


def _shading(alpha: Plane) -> Plane:
    """Darker towards the bottom and along the edge."""
    inner = alpha.copy()
    for axis in (0, 1):
        for shift in (1, -1):
            np.minimum(inner, np.roll(alpha, shift, axis), out=inner)
    slope = np.linspace(*_SLOPE, len(alpha)).astype(np.float32)[:, None]
    light: Plane = slope * (1 - np.float32(_RIM) * (alpha - inner))
    return light


def _shadow(alpha: Layer, reach: int) -> Layer:
    """Twice the mean over (2 reach + 1) x (2 reach + 1) pixels, with room for it all around."""
    width, layer = 2 * reach + 1, np.pad(alpha, 4 * reach).astype(np.int32)
    for _ in range(2):
        sums = np.pad(layer.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
        rows = sums[width:] - sums[:-width]
        layer = (rows[:, width:] - rows[:, :-width]) // (width * width)
    return layer.astype(np.uint8)
