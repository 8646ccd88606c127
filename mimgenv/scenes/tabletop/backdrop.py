"""All of a picture that no question asks about, from seeds: camera, light, floor and walls.

A seed stands for a `Ground`, in the world. A `Backdrop` is the same in the frame of the camera that sees it, which is
where everything is drawn: stage.py paints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Viewpoint
from mimgenv.scenes.tabletop.camera import Camera, Vector, look_at, sine_cosine
from mimgenv.scenes.tabletop.floor import Colour, Floor, draw_floor, linear, times

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


@dataclass(frozen=True, slots=True)
class Wall:
    """A plain upright wall, in the world or in a camera's frame.

    Attributes:
        away: Level unit vector (x, y) from the table to the wall.
        distance: From the origin of the frame.
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
    """Sun and sky, in the world or in a camera's frame.

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
    """All of a scene but its things, in its camera's frame and its light.

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


@lru_cache(maxsize=256)
def ground(seed: int) -> Ground:
    """Draws what a seed stands for; seeds from `HELD_OUT` on have the viewpoints that are held back."""
    rng = np.random.default_rng(seed)
    views = VIEWS[seed >= HELD_OUT]
    azimuth = -math.pi / 2 + rng.uniform(*views.aside) * _either(rng)
    view = azimuth, rng.uniform(*views.elevation), rng.uniform(*views.distance)
    # From the camera's side and from well above: lit faces are seen, and shadows are short and fall away.
    light = Light(_sun(rng, azimuth + rng.uniform(0.7, 1.45) * _either(rng)), SUN, SKY, (1.0, 1.0, 1.0))
    return Ground(view, light, draw_floor(rng), _draw_room(rng, azimuth))


@lru_cache(maxsize=256)
def backdrop(seed: int, side: int, view: Viewpoint | None = None, light: int = 0) -> Backdrop:
    """All but the things of a scene, for pictures of `side` x `side` pixels; `view` and `light` are as in `Scene`."""
    made = ground(seed)
    camera, shine = look_at(MIDDLE, *(view or made.view), side), _other_light(made, light) if light else made.light
    shine = replace(shine, sun=(*camera.turned(*shine.sun[:2]), shine.sun[2]))
    walls = tuple(
        Wall(camera.turned(*wall.away), wall.distance - wall.away[0] * camera.foot[0] - wall.away[1] * camera.foot[1])
        for wall in made.room.walls
    )
    room = Room(times(made.room.colour, shine.tint), walls)
    return Backdrop(camera, shine, made.floor.seen_by(camera, shine.tint), room)


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
    return Light(_sun(rng, azimuth), SUN * rng.uniform(0.7, 1.0), SKY * rng.uniform(0.8, 1.15), tint)


def _either(rng: np.random.Generator) -> int:
    """1 or -1."""
    return 1 if rng.integers(2) else -1


def _sun(rng: np.random.Generator, azimuth: float) -> Vector:
    (sine, cosine), (rise, reach) = sine_cosine(azimuth), sine_cosine(rng.uniform(0.66, 0.9))
    return reach * cosine, reach * sine, rise


def _draw_room(rng: np.random.Generator, azimuth: float) -> Room:
    colour = linear(WALLS[rng.integers(len(WALLS))])
    sine, cosine = sine_cosine(azimuth + rng.uniform(-0.3, 0.3))
    near, far, left, right = (rng.uniform(4.6, 5.6) for _ in range(4))
    sides = ((cosine, sine), near), ((-cosine, -sine), far), ((-sine, cosine), left), ((sine, -cosine), right)
    return Room(colour, tuple(Wall(*side) for side in sides))
