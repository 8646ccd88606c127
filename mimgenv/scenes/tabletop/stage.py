"""Paints the floor and the walls of a backdrop, without things.

A stage is cached, since the pictures of one task often share it. Array maths is float32 in + - * /, floor, comparisons
and integers, bit for bit the same on every processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Viewpoint
from mimgenv.scenes.tabletop.backdrop import SKY, SUN, Backdrop, Room, backdrop
from mimgenv.scenes.tabletop.camera import Camera, Plane, Rays

_LEVEL: Final = np.float32(-0.03)  # Rays less steep than this count as meeting the floor where this one does.
_BEHIND: Final = 0.1  # Walls nearer than this, or behind the camera, are not seen.
_CORNER: Final = 1.6  # How far from a corner it is darker than elsewhere, in world units.


@dataclass(frozen=True, slots=True)
class Stage:
    """A backdrop without things; arrays are (side, side) float32 and read-only.

    A pixel's colour is `floor` times the floor's pale colour and `wall` times the wall's colour.

    Attributes:
        floor: How brightly the floor is seen.
        wall: How brightly a wall is seen.
        top: Number of the first row that shows any floor.
        bottom: Number of the first row below all wall.
    """

    floor: Plane
    wall: Plane
    top: int
    bottom: int


@lru_cache(maxsize=8)
def stage(seed: int, side: int, view: Viewpoint | None = None, light: int = 0) -> Stage:
    """Paints a backdrop; the arguments are those of `backdrop`."""
    scenery = backdrop(seed, side, view, light)
    camera = scenery.camera
    x, y, z = camera.picture
    top, bottom = _wall_rows(scenery.room, camera, (x, y, z))
    floor, wall = np.empty((side, side), np.float32), np.empty((side, side), np.float32)
    floor[:top], floor[top:] = 0, _floor(scenery, x, (y[top:], z[top:]))
    wall[:bottom], wall[bottom:] = _glow(scenery, bottom), 0
    share = _share(scenery, x, (y[top:bottom], z[top:bottom]))
    wall[top:bottom] *= share
    floor[top:bottom] *= 1 - share
    floor.flags.writeable = wall.flags.writeable = False
    return Stage(floor, wall, top, bottom)


def doubled(plane: Plane) -> Plane:
    """Twice as many rows and columns, blended: for what has no edges."""
    tall = np.empty((2 * plane.shape[0], plane.shape[1]), np.float32)
    wide = np.empty((2 * plane.shape[0], 2 * plane.shape[1]), np.float32)
    _blend(plane, tall)
    _blend(tall.T, wide.T)
    return wide


def _blend(plane: Plane, tall: Plane) -> None:
    """Fills twice as many rows."""
    near, far = 0.75 * plane, 0.25 * plane
    np.add(near[1:], far[:-1], out=tall[2::2])
    np.add(near[:-1], far[1:], out=tall[1:-1:2])
    tall[:1], tall[-1:] = plane[:1], plane[-1:]


def floor_points(camera: Camera, across: Plane, down: tuple[Plane, Plane]) -> tuple[Plane, Plane, Plane]:
    """Where rays, x apart from y and z, meet the floor: x of all, y by row, and the depth by row."""
    reach = camera.height / -np.minimum(down[1], _LEVEL)
    return across * reach, down[0] * reach, reach


def _walls_ahead(room: Room, across: Plane, down: Plane) -> list[tuple[Plane, Plane]]:
    """Of each wall that can be seen, one over the depth at which rays meet it, as a sum of row and column."""
    ahead = [wall for wall in room.walls if wall.distance > _BEHIND]  # The camera looks through those it is behind.
    parts = [(down * (wall.away[1] / wall.distance), across * (wall.away[0] / wall.distance)) for wall in ahead]
    return [(row, column) for row, column in parts if row.max() + column.max() > 0]


def _wall_rows(room: Room, camera: Camera, rays: Rays) -> tuple[int, int]:
    """How many rows from the top show nothing but wall, and how many show any."""
    parts = _walls_ahead(room, rays[0], rays[1])
    least = np.maximum.reduce([row + column.min() for row, column in parts]) * camera.height + rays[2]
    most = np.maximum.reduce([row + column.max() for row, column in parts]) * camera.height + rays[2]
    edge = camera.dip[1] / camera.focal
    floor, wall = np.flatnonzero(least < edge), np.flatnonzero(most > -edge)
    return int(floor[0]) if len(floor) else camera.side, int(wall[-1]) + 1 if len(wall) else 0


def _floor(scenery: Backdrop, across: Plane, down: tuple[Plane, Plane]) -> Plane:
    """How bright some rows are as if there were no wall."""
    camera, room = scenery.camera, scenery.room
    x, y, reach = floor_points(camera, across, down)
    light = scenery.floor.tone(x, y, reach * np.float32(1.3 / camera.focal / camera.dip[0]))
    # Light falls off from the middle of the table, as if by row and by column.
    aside, away = across * np.float32(camera.height / camera.dip[0]), y - np.float32(camera.place(0, 0)[1])
    level = np.float32(scenery.light.level) / (1 + np.float32(0.008) * (away * away))
    light *= np.float32(1 - scenery.floor.dark) * level
    light += np.float32(scenery.floor.dark) * level
    light *= 1 / (1 + np.float32(0.008) * (aside * aside))
    widest = np.maximum(abs(x[:, :1]), abs(x[:, -1:]))
    for wall in room.walls:
        if wall.distance > _BEHIND:
            gap = wall.distance - y * wall.away[1]
            rows = slice(int(np.count_nonzero(gap - widest * abs(wall.away[0]) < _CORNER)))  # Those nearest the wall.
            light[rows] *= 1 - 0.45 * _closeness(gap[rows] - x[rows] * wall.away[0])
    return light


def _glow(scenery: Backdrop, bottom: int) -> Plane:
    """How bright the walls are in the rows above one, as if there were no floor."""
    camera = scenery.camera
    # There are no edges in it: one ray for two by two pixels will do.
    rows, columns = (np.arange(1, end + 1, 2, dtype=np.float32) for end in (bottom, camera.side))
    x, y, z = camera.rays(columns[None, :], rows[:, None])
    near, other = _nearest_wall(scenery, x, y)
    height = camera.height + z / near
    corner = (other / near * 4 - 3).clip(0, 1)
    glow = (0.80 + 0.05 * height) * (1 - 0.45 * _closeness(height))
    glow *= (1 - 0.12 * corner * corner) * np.float32(scenery.light.level / (SKY + 0.7 * SUN))
    return doubled(glow)[:bottom, : camera.side]


def _share(scenery: Backdrop, across: Plane, down: tuple[Plane, Plane]) -> Plane:
    """How much of each pixel in some rows is wall."""
    camera = scenery.camera
    rise = _nearest_wall(scenery, across, down[0])[0]
    rise *= np.float32(camera.height)
    rise += down[1]
    rise *= np.float32(camera.focal / camera.dip[1])
    rise += np.float32(0.5)
    return rise.clip(0, 1, out=rise)


def _nearest_wall(scenery: Backdrop, across: Plane, down: Plane) -> tuple[Plane, Plane]:
    """One over the depth at which rays meet a wall, and at which they would meet the next behind it."""
    near = other = np.full((len(down), across.shape[1]), 1e-3, np.float32)
    for row, column in _walls_ahead(scenery.room, across, down):
        this = row + column
        near, other = np.maximum(near, this), np.maximum(other, np.minimum(near, this))
    return near, other


def _closeness(gap: Plane) -> Plane:
    """1 in a corner, 0 far from it."""
    near = abs(gap)
    near *= np.float32(-1 / _CORNER)
    near += 1
    near.clip(0, 1, out=near)
    near *= near
    near *= near
    return near
