"""What cut-outs lie on, and the light they lie in, each from a seed.

`painted` draws a ground without things and is cached, since the pictures of one task often share it. Array maths is
float32 in + - * /, floor and comparisons, bit for bit the same on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Viewpoint
from mimgenv.scenes.tabletop.camera import sine_cosine
from mimgenv.types import Image

Plane: TypeAlias = npt.NDArray[Any]
"""(side, side) float32."""

FAMILIES: Final = ("plain", "paper", "gradient", "striped", "dotted")
HELD_OUT_FAMILY: Final = "checked"
HELD_OUT: Final = 1 << 31
"""Seeds from here on have the held-out family of grounds, seeds below the others."""

COLOURS: Final = (
    ("ded6c6", "cbc1ad"),
    ("cdd3d6", "b7c0c6"),
    ("d0d5c8", "bac2b0"),
    ("dacfcb", "c8b8b4"),
    ("c2bbb0", "ada597"),
    ("cfcad4", "bbb4c2"),
    ("b4bcbd", "9fa9ac"),
    ("e4e2dc", "d2cfc6"),
)
"""Pale and dark colour; all are duller than any thing."""

STILL: Final[Viewpoint] = (0.0, 0.0, 1.0)
"""Pan x, pan y in pixels, and zoom about the middle of the picture: as where nothing was said."""

_PATTERN: Final = 224  # Patterns are given in pixels of a picture of this side.
_TILE: Final = 256  # Side of the tile of grain, in texels.


@dataclass(frozen=True, slots=True)
class Ground:
    """A pattern between two colours.

    Attributes:
        family: One of `FAMILIES`, or `HELD_OUT_FAMILY`.
        pale: Red, green and blue in [0, 255] where the pattern is 0.
        dark: The same where it is 1.
        pitch: Period of the pattern in pixels.
        sine: Of the pattern's turn.
        cosine: Of the pattern's turn.
        grain: How coarse the paper is, in [0, 1].
    """

    family: str
    pale: tuple[int, ...]
    dark: tuple[int, ...]
    pitch: float
    sine: float
    cosine: float
    grain: float

    def pattern(self, x: Plane, y: Plane) -> Plane:
        """How dark the ground is at points around the middle of the picture, about 0 to 1."""
        u, v = x * self.cosine + y * self.sine, y * self.cosine - x * self.sine
        match self.family:
            case "gradient":
                return np.clip(0.5 + u * (1 / _PATTERN), 0, 1)
            case "striped":
                return _edge(_wave(u, self.pitch) - self.pitch / 4)
            case "dotted":
                across, along = _wave(u, self.pitch), _wave(v, self.pitch)
                half = self.pitch / 2
                near = np.minimum(across * across + along * along, (across - half) ** 2 + (along - half) ** 2)
                return _edge(((0.2 * self.pitch) ** 2 - near) * (1 / (0.4 * self.pitch)))
            case "checked":
                stripes = [_edge(_wave(axis, self.pitch) - self.pitch / 4) for axis in (u, v)]
                return 0.6 * (stripes[0] + stripes[1])
        return np.zeros_like(u)


@dataclass(frozen=True, slots=True)
class Light:
    """How things are lit.

    Attributes:
        shadow: Where a shadow falls, right and down, in sizes of the thing.
        darkness: What it takes of the light, in [0, 1].
        gain: Brightness of each channel in 256ths.
    """

    shadow: tuple[float, float]
    darkness: float
    gain: tuple[int, int, int] = (256, 256, 256)


@lru_cache(maxsize=256)
def ground(seed: int) -> Ground:
    """Draws what a seed stands for."""
    rng = np.random.default_rng(seed)
    pale, dark = (tuple(bytes.fromhex(code)) for code in COLOURS[rng.integers(len(COLOURS))])
    family = HELD_OUT_FAMILY if seed >= HELD_OUT else FAMILIES[rng.integers(len(FAMILIES))]
    turn, pitch, grain = rng.uniform(0, math.pi), rng.uniform(18, 34), rng.uniform(0.1, 0.4)
    return Ground(family, pale, dark, pitch, *sine_cosine(turn), 1.0 if family == "paper" else grain)


@lru_cache(maxsize=256)
def light(seed: int, other: int = 0) -> Light:
    """The light of a ground's seed; or, where `other` is not 0, another that throws shadows elsewhere."""
    rng = np.random.default_rng([seed, 1])
    own = rng.uniform(0.15 * math.pi, 0.85 * math.pi)
    if not other:
        return Light(_away(own, rng.uniform(0.07, 0.11)), rng.uniform(0.40, 0.50))
    rng = np.random.default_rng([other, 2])
    shadow = _away(own + rng.uniform(0.7, 2 * math.pi - 0.7), rng.uniform(0.05, 0.16))
    bright, warm = rng.uniform(0.80, 1.08), rng.uniform(-0.06, 0.06)
    red, green, blue = (int(256 * bright * tint) for tint in (1 + warm, 1, 1 - warm))
    return Light(shadow, rng.uniform(0.34, 0.56), (red, green, blue))


def _away(angle: float, length: float) -> tuple[float, float]:
    sine, cosine = sine_cosine(angle)
    return length * cosine, length * sine


@lru_cache(maxsize=32)
def painted(seed: int, side: int, view: Viewpoint = STILL) -> Image:
    """The ground of a seed at `side` x `side` pixels, (side, side, 3); read-only."""
    paper = ground(seed)
    x, y = (_points(side, pan, view[2]) for pan in view[:2])
    tone = paper.pattern(x[None, :], y[:, None])
    texel_x, texel_y = (np.floor(axis + _PATTERN / 2).astype(np.int32) & (_TILE - 1) for axis in (x, y))
    fade = (x * x)[None, :] + (y * y)[:, None]
    shine = 1 + np.float32(0.05 * paper.grain) * _grain()[texel_y[:, None], texel_x] - fade * np.float32(4e-6)
    pixels = np.empty((side, side, 3), np.uint8)
    for channel, (pale, dark) in enumerate(zip(paper.pale, paper.dark, strict=True)):
        pixels[:, :, channel] = (pale + (dark - pale) * tone) * shine
    pixels.flags.writeable = False
    return pixels


def _points(side: int, pan: float, zoom: float) -> Plane:
    """Where the middles of a row of pixels lie on the ground, from the middle of the picture at rest."""
    middles = np.arange(side, dtype=np.float32) + np.float32(0.5 - side / 2 - pan)
    points: Plane = middles * np.float32(_PATTERN / side / zoom)
    return points


def _wave(position: Plane, period: float) -> Plane:
    """Distance from the nearest multiple of a period."""
    turns = position * (1 / period)
    return abs(turns - np.floor(turns + 0.5)) * period


def _edge(distance: Plane) -> Plane:
    """0 to 1 across an edge, over about a pixel."""
    return np.clip(distance + 0.5, 0, 1)


@cache
def _grain() -> Plane:
    """Fibres of paper: noise in [-1.5, 1.5], partly drawn out along rows and columns; repeats without a seam."""
    rng = np.random.default_rng(0)
    dust, rows, columns = (rng.integers(-128, 129, (_TILE, _TILE)) for _ in range(3))
    along = sum(np.roll(rows, shift, 1) for shift in range(6)) + sum(np.roll(columns, shift, 0) for shift in range(6))
    tile: Plane = np.clip((2 * dust + along).astype(np.float32) * np.float32(1 / 512), -1.5, 1.5)
    return tile
