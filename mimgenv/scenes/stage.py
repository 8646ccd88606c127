"""Paints the floor and the walls of a backdrop, without things.

A stage is cached, since the pictures of one task often share it. Array maths is float32 in + - * /, floor, comparisons
and integers, bit for bit the same on every processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from mimgenv.scenes.backdrop import SKY, SUN, Backdrop, Room, backdrop
from mimgenv.scenes.camera import Camera, Plane, Rays
from mimgenv.scenes.scene import Viewpoint

_LEVEL: Final = np.float32(-0.03)  # Rays less steep than this count as meeting the floor where this one does.
_CORNER: Final = 1.6  # How far from a corner it is darker than elsewhere, in world units.


@dataclass(frozen=True, slots=True)
class Stage:
    """A backdrop painted without things; all arrays are float32 and read-only.

    Attributes:
        colour: Light in red, green and blue: (3, side, side).
        wall: How much of each pixel is wall, in [0, 1], in the upper rows of the picture; below there is none.
    """

    colour: Plane
    wall: Plane


@lru_cache(maxsize=8)
def stage(seed: int, side: int, view: Viewpoint | None = None, light: int = 0) -> Stage:
    """Paints a backdrop; the arguments are those of `backdrop`."""
    scenery = backdrop(seed, side, view, light)
    camera, colour = scenery.camera, np.empty((3, side, side), np.float32)
    rays = picture_rays(camera)
    pure, mixed = _wall_rows(scenery.room, camera, rays)
    _paint_floor(scenery, rays[0], (rays[1][pure:], rays[2][pure:]), colour[:, pure:])
    wall = _paint_walls(scenery, rays[0], (rays[1][:mixed], rays[2][:mixed]), colour[:, :mixed], pure)
    for plane in (colour, wall):
        plane.flags.writeable = False
    return Stage(colour, wall)


def picture_rays(camera: Camera) -> Rays:
    """Through the middles of all pixels: x as (1, side), y and z as (side, 1)."""
    middles = np.arange(camera.side, dtype=np.float32) + np.float32(0.5)
    return camera.rays(middles[None, :], middles[:, None])


def floor_points(camera: Camera, across: Plane, down: tuple[Plane, Plane]) -> tuple[Plane, Plane, Plane]:
    """Where rays, x apart from y and z, meet the floor: x of all, y by row, and the depth by row."""
    reach = camera.height / -np.minimum(down[1], _LEVEL)
    return across * reach, down[0] * reach, reach


def _walls_ahead(room: Room, across: Plane, down: Plane) -> list[tuple[Plane, Plane]]:
    """Of each wall that can be seen, one over the depth at which rays meet it, as a sum of row and column."""
    ahead = [wall for wall in room.walls if wall.distance > 0.1]  # The camera looks through those it is behind.
    parts = [(down * (wall.away[1] / wall.distance), across * (wall.away[0] / wall.distance)) for wall in ahead]
    return [(row, column) for row, column in parts if row.max() + column.max() > 0]


def _wall_rows(room: Room, camera: Camera, rays: Rays) -> tuple[int, int]:
    """How many rows from the top show nothing but wall, and how many show any."""
    parts = _walls_ahead(room, rays[0], rays[1])
    least, most = (
        np.max([row[:, 0] + end(column) for row, column in parts], axis=0) * camera.height + rays[2][:, 0]
        for end in (np.min, np.max)
    )
    edge = camera.dip[1] / camera.focal
    floor, wall = np.flatnonzero(least < edge), np.flatnonzero(most > -edge)
    return int(floor[0]) if len(floor) else camera.side, int(wall[-1]) + 1 if len(wall) else 0


def _paint_floor(scenery: Backdrop, across: Plane, down: tuple[Plane, Plane], colour: Plane) -> None:
    """Fills some rows as if there were no wall."""
    x, y, reach = floor_points(scenery.camera, across, down)
    tone = scenery.floor.tone(x, y, reach * np.float32(1.3 / scenery.camera.focal / scenery.camera.dip[0]))
    light = _floor_light(scenery, x, y)
    tone *= light
    for plane, dark, pale in zip(colour, scenery.floor.dark, scenery.floor.pale, strict=True):
        np.multiply(tone, np.float32(pale - dark), out=plane)
        plane += light * np.float32(dark)


def _floor_light(scenery: Backdrop, x: Plane, y: Plane) -> Plane:
    """Light that falls off from the middle of the table, and is less in the corners by the walls."""
    middle = scenery.camera.place(0, 0)[1]
    light = scenery.light.level / (x * x * np.float32(0.008) + (1 + 0.008 * (y - middle) * (y - middle)))
    gaps = [wall.distance - y * wall.away[1] - x * wall.away[0] for wall in scenery.room.walls if wall.distance > 0.1]
    gap = gaps[0]
    for other in gaps[1:]:
        gap = np.minimum(gap, other)
    light *= 1 - 0.45 * _closeness(gap)
    return light


def _closeness(gap: Plane) -> Plane:
    """1 in a corner, 0 far from it."""
    near = np.clip(1 - abs(gap) * np.float32(1 / _CORNER), 0, 1)
    near *= near
    near *= near
    return near


def _paint_walls(scenery: Backdrop, across: Plane, down: tuple[Plane, Plane], colour: Plane, pure: int) -> Plane:
    """Paints the walls over some rows, of which the first `pure` show nothing else; returns their share of each pixel."""
    camera = scenery.camera
    near = other = np.zeros((len(down[0]), camera.side), np.float32)
    for row, column in _walls_ahead(scenery.room, across, down[0]):
        this = row + column
        near, other = np.maximum(near, this), np.maximum(other, np.minimum(near, this))
    rise = camera.height * near + down[1]
    share = np.clip(rise * np.float32(camera.focal / camera.dip[1]) + np.float32(0.5), 0, 1)
    near = np.clip(near, 0.01, 10)
    height, corner = rise / near, np.clip(other / near * 4 - 3, 0, 1)
    glow = (0.80 + 0.05 * height) * (1 - 0.45 * _closeness(height)) * (1 - 0.12 * corner * corner)
    glow *= np.float32(scenery.light.level / (SKY + 0.7 * SUN))
    mixed = share[pure:]
    glow[pure:] *= mixed
    for plane, tint in zip(colour, scenery.room.colour, strict=True):
        plane[pure:] *= 1 - mixed
        plane[:pure] = 0
        plane += glow * np.float32(tint)
    return share
