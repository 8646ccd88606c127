"""All of a picture that no question asks about, from a seed: camera, light, floor and walls.

`backdrop` draws it; `stage` paints it without things and is cached, since the pictures of one task often share it. Colours in here are linear light in [0, 1]; a screen value is 255 times the square root. Array
maths is float32 in + - * / sqrt, floor, comparisons and integers, bit for bit the same on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.camera import Camera, Plane, Rays, Vector, look_at, sine_cosine
from mimgenv.scenes.scene import Viewpoint

Colour: TypeAlias = tuple[float, float, float]
"""Linear red, green and blue in [0, 1]."""

FLOORS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "check": (("8c9096", "c6c9cc"), ("a3937c", "d8cfbc"), ("7d8b99", "bcc8d2"), ("8f9a8a", "cdd3c4")),
    "wood": (("7e5f45", "b89772"), ("947a5c", "cbb491"), ("5f4d42", "97806d"), ("9a8f80", "cfc6b8")),
    "stone": (("85888a", "bfc2c3"), ("9c9284", "d3cabb"), ("74808a", "b0bcc4"), ("8a9484", "c2cab8")),
}
"""Dark and pale colour of each kind of floor; all are duller than any thing."""

WALLS: Final = ("c9d3dc", "d9d2c6", "c6d2c8", "d6cbd0", "b9c2cc")
SKY: Final = 0.38
"""Light from everywhere, for a surface that faces up, where a surface that faces the sun gets `SUN` besides."""
SUN: Final = 0.85

HELD_OUT: Final = 1 << 31
"""Seeds of backdrops below it are seen from ordinary viewpoints, seeds from it on from those that are held back."""
MIDDLE: Final[Vector] = (0.0, 0.0, 0.45)
"""What every camera has in the middle of its picture."""


@dataclass(frozen=True, slots=True)
class Views:
    """Ranges of viewpoints: (azimuth, elevation, distance) as `look_at` takes them.

    Attributes:
        aside: Azimuth's distance from -pi/2, to either side, in radians.
        elevation: In radians.
        distance: In world units.
    """

    aside: tuple[float, float]
    elevation: tuple[float, float]
    distance: tuple[float, float]


VIEWS: Final[dict[bool, Views]] = {
    False: Views((0.0, 0.8), (0.5, 0.72), (7.6, 8.8)),
    True: Views((0.95, 1.4), (0.74, 0.86), (7.6, 8.8)),
}
"""By whether they are held back."""

_FLAT: Final = -0.03  # Rays less steep than this count as meeting the floor where this one does.
_AWAY: Final = 1e4  # Floor coordinates for pixels that show no floor.
_TILE: Final = 512  # Side of the noise tile, in texels.
_TEXELS: Final = 64  # Per world unit.


def linear(code: str) -> Colour:
    """Linear light of a screen colour such as `ff8000`."""
    red, green, blue = ((int(code[i : i + 2], 16) / 255) ** 2 for i in (0, 2, 4))
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Floor:
    """A pattern between two colours.

    Attributes:
        kind: A key of `FLOORS`.
        dark: Colour where the tone is 0.
        pale: Colour where the tone is 1.
        pitch: Squares or planks per world unit.
        sine: Of the pattern's turn.
        cosine: Of the pattern's turn.
        shift: Offset of the pattern in world units, and of its noise in texels.
    """

    kind: str
    dark: Colour
    pale: Colour
    pitch: float
    sine: float
    cosine: float
    shift: float

    def tone(self, x: Plane, y: Plane, blur: Plane) -> Plane:
        """The pattern in [0, 1] at floor points, averaged over about `blur` world units."""
        u, v = x * self.cosine + y * self.sine + self.shift, y * self.cosine - x * self.sine + self.shift
        if self.kind == "check":
            width = np.maximum(blur * self.pitch, 1e-3)
            return 0.5 - 0.5 * _stripes(u * self.pitch, width) * _stripes(v * self.pitch, width)
        if self.kind == "wood":
            return _planks(u, v, self.pitch, blur)
        return 0.2 * _noise(u, v) + 0.8 * _noise(0.37 * v, 0.37 * u)

    def colour(self, tone: Plane) -> Rays:
        """Linear red, green and blue of tones."""
        red, green, blue = (dark + (pale - dark) * tone for dark, pale in zip(self.dark, self.pale, strict=True))
        return red, green, blue


@dataclass(frozen=True, slots=True)
class Wall:
    """A plain upright wall.

    Attributes:
        away: Level unit vector (x, y) from the table to the wall.
        distance: From the middle of the table.
    """

    away: tuple[float, float]
    distance: float


@dataclass(frozen=True, slots=True)
class Room:
    """Four walls around the table, each seen from inside only: a camera outside the room looks through them.

    Attributes:
        colour: Linear.
        walls: Each at a right angle to the one before.
    """

    colour: Colour
    walls: tuple[Wall, ...]


@dataclass(frozen=True, slots=True)
class Light:
    """Sun and sky.

    Attributes:
        sun: Unit vector towards the sun.
        strength: What a surface that faces the sun gets from it.
        sky: What a surface that faces up gets from everywhere.
        tint: Factors of red, green and blue in all that is seen.
    """

    sun: Vector
    strength: float
    sky: float
    tint: Colour

    @property
    def slant(self) -> tuple[float, float]:
        """How far the shadow of a point moves on the floor per unit of its height."""
        return -self.sun[0] / self.sun[2], -self.sun[1] / self.sun[2]

    @property
    def level(self) -> float:
        """What an open surface that faces up gets."""
        return self.sky + self.strength * self.sun[2]


@dataclass(frozen=True, slots=True)
class Ground:
    """What one seed stands for.

    Attributes:
        view: From where it is seen, unless a scene says otherwise: see `VIEWS`.
        light: Unless a scene says otherwise.
        floor: The table's top.
        room: Around it.
    """

    view: Viewpoint
    light: Light
    floor: Floor
    room: Room


@dataclass(frozen=True, slots=True)
class Backdrop:
    """All of a scene but its things.

    Attributes:
        camera: Where it is seen from.
        light: What falls on it.
        floor: The table's top.
        room: Around it.
    """

    camera: Camera
    light: Light
    floor: Floor
    room: Room


@dataclass(frozen=True, slots=True)
class Stage:
    """A backdrop painted without things; all arrays are (side, side), float32 and read-only.

    Attributes:
        rays: From the camera through the middle of each pixel.
        colour: Linear red, green and blue.
        x: Where the pixel's ray meets the floor; far away where it shows wall.
        y: As `x`.
    """

    rays: Rays
    colour: Rays
    x: Plane
    y: Plane


@lru_cache(maxsize=256)
def ground(seed: int) -> Ground:
    """Draws what a seed stands for; seeds from `HELD_OUT` on have the viewpoints that are held back."""
    rng = np.random.default_rng(seed)
    views = VIEWS[seed >= HELD_OUT]
    azimuth = -math.pi / 2 + rng.uniform(*views.aside) * _either(rng)
    view = azimuth, rng.uniform(*views.elevation), rng.uniform(*views.distance)
    # From the camera's side and from well above: lit faces are seen, and shadows are short and fall away.
    light = Light(_sun(rng, azimuth + rng.uniform(0.7, 1.45) * _either(rng)), SUN, SKY, (1.0, 1.0, 1.0))
    return Ground(view, light, _draw_floor(rng), _draw_room(rng, azimuth))


@lru_cache(maxsize=256)
def backdrop(seed: int, side: int, view: Viewpoint | None = None, light: int = 0) -> Backdrop:
    """All but the things of a scene, for pictures of `side` x `side` pixels; `view` and `light` are as in `Scene`."""
    made = ground(seed)
    camera = look_at(MIDDLE, *(view or made.view), side)
    return Backdrop(camera, _other_light(made, light) if light else made.light, made.floor, made.room)


def _other_light(made: Ground, seed: int) -> Light:
    """A light that comes from the camera's side too, but moves the shadows."""
    rng = np.random.default_rng(seed)
    own = math.atan2(made.light.sun[1], made.light.sun[0])
    while True:
        azimuth = made.view[0] + rng.uniform(-1.5, 1.5)
        if abs(math.remainder(azimuth - own, 2 * math.pi)) > 0.6:
            break
    warm, green = rng.uniform(-0.1, 0.1), rng.uniform(-0.02, 0.02)
    tint = 1 + warm, 1 + green, 1 - warm
    return Light(_sun(rng, azimuth), SUN * rng.uniform(0.7, 1.1), SKY * rng.uniform(0.8, 1.25), tint)


def _either(rng: np.random.Generator) -> int:
    """1 or -1."""
    return 1 if rng.integers(2) else -1


def _sun(rng: np.random.Generator, azimuth: float) -> Vector:
    (sine, cosine), (rise, reach) = sine_cosine(azimuth), sine_cosine(rng.uniform(0.66, 0.9))
    return reach * cosine, reach * sine, rise


def _draw_floor(rng: np.random.Generator) -> Floor:
    kind = tuple(FLOORS)[rng.integers(len(FLOORS))]
    dark, pale = (linear(code) for code in FLOORS[kind][rng.integers(len(FLOORS[kind]))])
    sine, cosine = sine_cosine(rng.uniform(0, math.pi))
    return Floor(kind, dark, pale, rng.uniform(0.85, 1.3), sine, cosine, rng.uniform(0, 50))


def _draw_room(rng: np.random.Generator, azimuth: float) -> Room:
    colour = linear(WALLS[rng.integers(len(WALLS))])
    sine, cosine = sine_cosine(azimuth + rng.uniform(-0.3, 0.3))
    near, far, left, right = (rng.uniform(4.6, 5.6) for _ in range(4))
    sides = ((cosine, sine), near), ((-cosine, -sine), far), ((-sine, cosine), left), ((sine, -cosine), right)
    return Room(colour, tuple(Wall(*side) for side in sides))


@lru_cache(maxsize=8)
def stage(seed: int, side: int, view: Viewpoint | None = None, light: int = 0) -> Stage:
    """Paints a backdrop without things; the arguments are those of `backdrop`."""
    scenery = backdrop(seed, side, view, light)
    camera = scenery.camera
    middles = np.arange(side, dtype=np.float32) + 0.5
    rays = camera.rays(middles[None, :], middles[:, None])
    reach = camera.origin[2] / np.maximum(-rays[2], -_FLAT)
    x, y = camera.origin[0] + rays[0] * reach, camera.origin[1] + rays[1] * reach
    blur = reach * (1.3 / camera.focal / -camera.forward[2])
    floor = scenery.floor.colour(scenery.floor.tone(x, y, blur))
    shine = _pool(x, y, scenery.room) * scenery.light.level
    share, glow = _wall_share(camera, scenery.room, rays)
    glow = glow * (scenery.light.level / (SKY + 0.7 * SUN))
    red, green, blue = (
        plane * shine * (1 - share) + tint * glow * share
        for plane, tint in zip(floor, scenery.room.colour, strict=True)
    )
    x, y = np.where(share > 0.5, np.float32(_AWAY), x), np.where(share > 0.5, np.float32(_AWAY), y)
    for plane in (*rays, red, green, blue, x, y):
        plane.flags.writeable = False
    return Stage(rays, (red, green, blue), x, y)


def _pool(x: Plane, y: Plane, room: Room) -> Plane:
    """Falling light away from the middle of the table, and darkness in the corner by a wall."""
    light = 1 / (1 + 0.008 * (x * x + y * y))
    for wall in room.walls:
        light = light * (1 - 0.45 / (1 + 4 * abs(wall.distance - x * wall.away[0] - y * wall.away[1])))
    return light


def _wall_share(camera: Camera, room: Room, rays: Rays) -> tuple[Plane, Plane]:
    """How much of each pixel is wall, and how bright the wall is there."""
    near = np.zeros(rays[0].shape, np.float32)  # One over the way to the nearest wall, in lengths of the ray.
    for wall in room.walls:
        gap = wall.distance - camera.origin[0] * wall.away[0] - camera.origin[1] * wall.away[1]
        if gap > 0.1:
            near = np.maximum(near, (rays[0] * wall.away[0] + rays[1] * wall.away[1]) * (1 / gap))
    reach = 1 / np.maximum(near, 0.02)
    height = camera.origin[2] + rays[2] * reach
    x, y = camera.origin[0] + rays[0] * reach, camera.origin[1] + rays[1] * reach
    glow = (0.80 + 0.05 * np.clip(height, 0, 5)) * (1 - 0.45 / (1 + 4 * abs(height)))
    for wall in room.walls:
        corner = np.maximum(wall.distance - x * wall.away[0] - y * wall.away[1], 0)
        glow = glow * (1 - 0.1 / (1 + 2 * corner))
    return np.clip(0.5 - height * (camera.focal / camera.down[2]) / reach, 0, 1), glow


def _stripes(position: Plane, width: Plane) -> Plane:
    """A wave that is 1 and -1 over alternate units, averaged over `width` units."""
    return (_ramp(position + 0.5 * width) - _ramp(position - 0.5 * width)) / width


def _ramp(position: Plane) -> Plane:
    """The integral of a wave that is 1 and -1 over alternate units."""
    half = position * 0.5
    return 1 - abs(2 * (half - np.floor(half)) - 1)


def _planks(u: Plane, v: Plane, pitch: float, blur: Plane) -> Plane:
    """Boards along u with a grain, a tone of their own and a dark joint."""
    across = v * pitch
    board = np.floor(across)
    number = board.astype(np.int32)
    grain = _noise(0.13 * u + board * 1.7, 1.9 * v)
    own = ((number * 7919) & 15).astype(np.float32) * (1 / 15)
    joint = np.minimum(across - board, board + 1 - across)
    width = 0.03 + 0.5 * pitch * blur
    line = np.maximum(1 - joint / width, 0) * (0.03 / width)
    return (0.7 * grain + 0.3 * own) * (1 - line) - 0.5 * line


def _noise(u: Plane, v: Plane) -> Plane:
    """Smooth noise in [0, 1], with a period of eight world units."""
    row, column = (np.floor(axis * _TEXELS).astype(np.int32) & (_TILE - 1) for axis in (v, u))
    tone: Plane = _tile()[row * _TILE + column]
    return tone


@cache
def _tile() -> Plane:
    """Four octaves of value noise on a torus, flattened."""
    texel = np.arange(_TILE, dtype=np.int32)
    total = np.zeros((_TILE, _TILE), np.float32)
    for cells, weight in ((8, 0.4), (16, 0.25), (32, 0.2), (64, 0.15)):
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
