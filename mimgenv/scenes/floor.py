"""The patterns of the table's top: checks, planks and stone, from floor points to a tone between dark and pale.

Colours in the scenes are counted as squares of screen values, 0 to `WHITE`: amounts of light, which may be added up.
Array maths is float32 in + - * /, floor, comparisons and integers, bit for bit the same on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.camera import Camera, Plane, sine_cosine

Colour: TypeAlias = tuple[float, float, float]
"""Light in red, green and blue, each in [0, `WHITE`]."""

WHITE: Final = 255.0**2

FLOORS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "check": (("8c9096", "c6c9cc"), ("a3937c", "d8cfbc"), ("7d8b99", "bcc8d2"), ("8f9a8a", "cdd3c4")),
    "wood": (("7e5f45", "b89772"), ("947a5c", "cbb491"), ("5f4d42", "97806d"), ("9a8f80", "cfc6b8")),
    "stone": (("85888a", "bfc2c3"), ("9c9284", "d3cabb"), ("74808a", "b0bcc4"), ("8a9484", "c2cab8")),
}
"""Dark and pale colour of each kind of floor; all are duller than any thing."""

_TILE: Final = 512  # Side of a tile of noise, in texels.
_FAR: Final = float(1 << 14)  # A whole number of tiles: keeps texels of all that is ever seen above 0.
_CLOUDS: Final = ((8, 0.4), (16, 0.25), (32, 0.2), (64, 0.15))  # Knots on a side of the tile, and their weight.
_STONE: Final = ((8, 0.32), (16, 0.2), (32, 0.19), (64, 0.17), (128, 0.12))
_TONES: Final[npt.NDArray[np.float32]] = ((np.arange(16) * 7919) & 15).astype(np.float32) * np.float32(0.3 / 15)


def linear(code: str) -> Colour:
    """The light of a screen colour such as `ff8000`."""
    red, green, blue = (float(int(code[i : i + 2], 16) ** 2) for i in (0, 2, 4))
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Axis:
    """One coordinate of a pattern: `east` * x + `north` * y + `shift` at a floor point."""

    east: float
    north: float
    shift: float

    def at(self, x: Plane, y: Plane) -> Plane:
        """The coordinate at floor points."""
        plane: Plane = x * self.east + (y * self.north + self.shift)
        return plane

    def seen_by(self, camera: Camera) -> Axis:
        """The same for points in a camera's frame."""
        shift = self.shift + self.east * camera.foot[0] + self.north * camera.foot[1]
        return Axis(*camera.turned(self.east, self.north), shift)


@dataclass(frozen=True, slots=True)
class Floor:
    """A pattern between two colours.

    Attributes:
        kind: A key of `FLOORS`.
        dark: Colour where the tone is 0.
        pale: Colour where the tone is 1.
        pitch: Squares or planks per world unit.
        along: Counts pairs of squares, or texels of noise.
        across: Counts pairs of squares, planks, or texels.
    """

    kind: str
    dark: Colour
    pale: Colour
    pitch: float
    along: Axis
    across: Axis

    def seen_by(self, camera: Camera, tint: Colour) -> Floor:
        """The same floor in a camera's frame and in tinted light."""
        along, across = self.along.seen_by(camera), self.across.seen_by(camera)
        return replace(self, dark=times(self.dark, tint), pale=times(self.pale, tint), along=along, across=across)

    def tone(self, x: Plane, y: Plane, blur: Plane) -> Plane:
        """The pattern, about in [0, 1], at floor points, averaged over about `blur` world units; shapes that go together."""
        u, v = self.along.at(x, y), self.across.at(x, y)
        if self.kind == "check":
            sharp = 1 / np.clip(blur * self.pitch, 1e-3, 1)
            return 0.5 - 0.5 * _stripes(u, sharp) * _stripes(v, sharp)
        if self.kind == "wood":
            return _planks(u, v, 0.03 + 0.5 * self.pitch * blur, 120 / self.pitch)
        return _noise(u, v, _STONE)


def draw_floor(rng: np.random.Generator) -> Floor:
    """Any kind, any of its colours, at any turn."""
    kind = tuple(FLOORS)[rng.integers(len(FLOORS))]
    dark, pale = (linear(code) for code in FLOORS[kind][rng.integers(len(FLOORS[kind]))])
    (sine, cosine), pitch, shift = sine_cosine(rng.uniform(0, math.pi)), rng.uniform(0.85, 1.3), rng.uniform(0, 50)
    (along, first), (across, second) = _scales(kind, pitch)
    u = Axis(cosine * along, sine * along, shift * along + first)
    v = Axis(-sine * across, cosine * across, shift * across + second)
    return Floor(kind, dark, pale, pitch, u, v)


def _scales(kind: str, pitch: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What a pattern's coordinates count per world unit, and a start that keeps them above 0: along and across."""
    squares, texels = (0.5 * pitch, 0.0), (24.0, _FAR)
    return {"check": (squares, squares), "wood": ((8.0, _FAR), (pitch, 64.0)), "stone": (texels, texels)}[kind]


def times(colour: Colour, tint: Colour) -> Colour:
    """A colour in tinted light."""
    return colour[0] * tint[0], colour[1] * tint[1], colour[2] * tint[2]


def _stripes(position: Plane, sharp: Plane) -> Plane:
    """A wave that is 1 and -1 over alternate halves, averaged over one over `sharp` halves."""
    part = abs(position - np.floor(position) - 0.5)
    return np.clip(part * (4 * sharp) - sharp, -1, 1)


def _planks(u: Plane, v: Plane, width: Plane, texels: float) -> Plane:
    """Boards along u with a grain, a tone of their own and a dark joint of a width in boards."""
    board = np.floor(v)
    tone = 0.7 * _noise(u + board * 109, v * texels, _CLOUDS) + _TONES.take(board.astype(np.int32) & 15)
    joint = np.clip((abs(v - board - 0.5) - 0.5) * (1 / width) + 1, 0, 1) * (0.03 / width)
    return tone - joint * (tone + 0.5)


def _noise(u: Plane, v: Plane, octaves: tuple[tuple[int, float], ...]) -> Plane:
    """Smooth noise in [0, 1] at texels of a tile that repeats without end."""
    row, column = v.astype(np.int32) & (_TILE - 1), u.astype(np.int32) & (_TILE - 1)
    tone: Plane = _tile(octaves).take(row * _TILE + column)
    return tone


@cache
def _tile(octaves: tuple[tuple[int, float], ...]) -> Plane:
    """Octaves of value noise on a torus, flattened."""
    texel = np.arange(_TILE, dtype=np.int32)
    total = np.zeros((_TILE, _TILE), np.float32)
    for cells, weight in octaves:
        size = _TILE // cells
        cell, part = texel // size, (texel % size).astype(np.float32) * (1 / size)
        part = part * part * (3 - 2 * part)
        knots = _hashed(cells)
        rows = knots[cell] * (1 - part[:, None]) + knots[(cell + 1) % cells] * part[:, None]
        total += weight * (rows[:, cell] * (1 - part) + rows[:, (cell + 1) % cells] * part)
    flat: Plane = np.clip(1.6 * total - 0.3, 0, 1).reshape(-1)
    flat.flags.writeable = False
    return flat


def _hashed(cells: int) -> npt.NDArray[np.float32]:
    """A (cells, cells) table of fixed numbers in [0, 1)."""
    return np.random.default_rng(cells).integers(1 << 16, size=(cells, cells)).astype(np.float32) * (1 / (1 << 16))
