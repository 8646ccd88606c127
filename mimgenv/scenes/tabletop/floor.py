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

from mimgenv.scenes.tabletop.camera import Camera, Plane, sine_cosine

Colour: TypeAlias = tuple[float, float, float]
"""Light in red, green and blue, each in [0, `WHITE`]."""

WHITE: Final = 255.0**2

FLOORS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "check": (("8c9096", "c6c9cc"), ("a3937c", "d8cfbc"), ("7d8b99", "bcc8d2"), ("8f9a8a", "cdd3c4")),
    "wood": (("7e5f45", "b89772"), ("947a5c", "cbb491"), ("5f4d42", "97806d"), ("9a8f80", "cfc6b8")),
    "stone": (("85888a", "bfc2c3"), ("9c9284", "d3cabb"), ("74808a", "b0bcc4"), ("8a9484", "c2cab8")),
}
"""Dark and pale colour of each kind of floor; all are duller than any thing."""

_TILE: Final = 256  # Side of a tile of noise, in texels.
_FAR: Final = float(1 << 14)  # A whole number of tiles: keeps texels of all that is ever seen above 0.
_CLOUDS: Final = ((4, 0.4), (8, 0.25), (16, 0.2), (32, 0.15))  # Knots on a side of the tile, and their weight.
_STONE: Final = ((4, 0.32), (8, 0.2), (16, 0.19), (32, 0.17), (64, 0.12))


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
        plane: Plane = x * np.float32(self.east)
        plane += y * np.float32(self.north) + np.float32(self.shift)
        return plane

    def seen_by(self, camera: Camera) -> Axis:
        """The same for points in a camera's frame."""
        shift = self.shift + self.east * camera.foot[0] + self.north * camera.foot[1]
        return Axis(*camera.turned(self.east, self.north), shift)


@dataclass(frozen=True, slots=True)
class Floor:
    """A pattern in one colour, paler and darker.

    Attributes:
        kind: A key of `FLOORS`.
        pale: Colour where the tone is 1.
        dark: Share of it where the tone is 0.
        pitch: Squares or planks per world unit.
        along: Counts pairs of squares, or texels of noise.
        across: Counts pairs of squares, planks, or texels.
    """

    kind: str
    pale: Colour
    dark: float
    pitch: float
    along: Axis
    across: Axis

    def seen_by(self, camera: Camera, tint: Colour) -> Floor:
        """The same floor in a camera's frame and in tinted light."""
        along, across = self.along.seen_by(camera), self.across.seen_by(camera)
        return replace(self, pale=times(self.pale, tint), along=along, across=across)

    def tone(self, x: Plane, y: Plane, blur: Plane) -> Plane:
        """The pattern, about in [0, 1], at floor points, averaged over about `blur` world units.

        The shapes of the arguments need only go together.
        """
        u, v = self.along.at(x, y), self.across.at(x, y)
        if self.kind == "check":
            sharp = 4 / (blur * self.pitch).clip(1e-3, 1)
            tone = _stripes(u, sharp)
            tone *= _stripes(v, sharp)
            tone *= np.float32(-0.5)
            tone += np.float32(0.5)
            return tone
        if self.kind == "wood":
            return _planks(u, v, 0.03 + 0.5 * self.pitch * blur, 120 / self.pitch)
        tone = _noise(u, v, _STONE)
        tone *= np.float32(1 / 255)
        return tone


def draw_floor(rng: np.random.Generator) -> Floor:
    """Any kind, any of its colours, at any turn."""
    kind = tuple(FLOORS)[rng.integers(len(FLOORS))]
    dark, pale = (linear(code) for code in FLOORS[kind][rng.integers(len(FLOORS[kind]))])
    (along, first), (across, second) = _scales(kind, pitch := rng.uniform(0.85, 1.3))
    (sine, cosine), shift = sine_cosine(rng.uniform(0, math.pi)), rng.uniform(0, 50)
    u = Axis(cosine * along, sine * along, shift * along + first)
    v = Axis(-sine * across, cosine * across, shift * across + second)
    return Floor(kind, pale, sum(dark) / sum(pale), pitch, u, v)


def _scales(kind: str, pitch: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What a pattern's coordinates count per world unit, and a start that keeps them above 0: along and across."""
    squares, texels = (0.5 * pitch, 0.0), (24.0, _FAR)
    return {"check": (squares, squares), "wood": ((8.0, _FAR), (pitch, 64.0)), "stone": (texels, texels)}[kind]


def times(colour: Colour, tint: Colour) -> Colour:
    """A colour in tinted light."""
    return colour[0] * tint[0], colour[1] * tint[1], colour[2] * tint[2]


def _stripes(position: Plane, sharp: Plane) -> Plane:
    """A wave that is 1 and -1 over alternate halves, averaged over four over `sharp` halves."""
    part = position
    part -= np.rint(position)
    np.abs(part, out=part)
    part -= np.float32(0.25)
    part *= sharp
    return part.clip(-1, 1, out=part)


def _planks(u: Plane, v: Plane, width: Plane, texels: float) -> Plane:
    """Boards along u with a grain, a tone of their own and a dark joint of a width in boards."""
    board = np.floor(v)
    tone = _noise(u + board * 109, v * texels, _CLOUDS)
    tone *= np.float32(0.7 / 255)
    own = board * np.float32(0.618)
    own -= np.floor(own)
    own *= np.float32(0.3)
    tone += own
    joint = v
    joint -= board
    joint -= np.float32(0.5)
    np.abs(joint, out=joint)
    joint *= 1 / width
    joint -= 0.5 / width - 1
    joint.clip(0, 1, out=joint)
    joint *= 0.03 / width
    tone -= joint * (tone + np.float32(0.5))
    return tone


def _noise(u: Plane, v: Plane, octaves: tuple[tuple[int, float], ...]) -> Plane:
    """Smooth noise in [0, 255] at texels of a tile that repeats without end."""
    row, column = v.astype(np.int32), u.astype(np.int32)
    row &= _TILE - 1
    row *= _TILE
    column &= _TILE - 1
    row += column
    tone: Plane = _tile(octaves).take(row).astype(np.float32)
    return tone


@cache
def _tile(octaves: tuple[tuple[int, float], ...]) -> npt.NDArray[np.uint8]:
    """Octaves of value noise on a torus, flattened; small enough to stay in a processor's cache."""
    texel = np.arange(_TILE, dtype=np.int32)
    total = np.zeros((_TILE, _TILE), np.float32)
    for cells, weight in octaves:
        size = _TILE // cells
        cell, part = texel // size, (texel % size).astype(np.float32) * (1 / size)
        part = part * part * (3 - 2 * part)
        knots = _hashed(cells)
        rows = knots[cell] * (1 - part[:, None]) + knots[(cell + 1) % cells] * part[:, None]
        total += weight * (rows[:, cell] * (1 - part) + rows[:, (cell + 1) % cells] * part)
    flat = ((1.6 * total - 0.3).clip(0, 1) * 255).astype(np.uint8).reshape(-1)
    flat.flags.writeable = False
    return flat


def _hashed(cells: int) -> npt.NDArray[np.float32]:
    """A (cells, cells) table of fixed numbers in [0, 1)."""
    return np.random.default_rng(cells).integers(1 << 16, size=(cells, cells)).astype(np.float32) * (1 / (1 << 16))
