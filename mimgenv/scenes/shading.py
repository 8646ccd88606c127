"""How things look and what they do to the light around them: rubber, metal, shadows on the floor and on other things.

Everything is in the camera's frame. Array maths is float32 in + - * / sqrt, floor, comparisons and integers, bit for
bit the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.backdrop import Backdrop, Light
from mimgenv.scenes.camera import Plane, Rays, Vector
from mimgenv.scenes.floor import WHITE, Colour, linear, times
from mimgenv.scenes.sight import FACES, Body, Indices, Seen, Sight, window
from mimgenv.scenes.stage import floor_points, picture_rays
from mimgenv.types import Box

PALETTE: Final[dict[str, Colour]] = {
    name: linear(code)
    for name, code in {
        "red": "d41f26",
        "orange": "fb8b12",
        "yellow": "fde233",
        "green": "2a9d3f",
        "cyan": "35d0d8",
        "blue": "2b50dc",
        "purple": "8a35bd",
        "gray": "9a9a9a",
    }.items()
}
_HAZE: Final = 0.35  # How far around a thing the floor is darkened, in diameters.


@dataclass(frozen=True, slots=True)
class Surface:
    """Points of things of one material, thing by thing; all arrays are float32 and have one number per point.

    Attributes:
        bodies: What they are points of.
        counts: How many points of each.
        point: Where they are.
        gaze: Directions from the camera to them, about of unit length.
        normal: Unit vectors out of the surface.
        taken: How much of the sun other things take from them, in [0, 1].
    """

    bodies: tuple[Body, ...]
    counts: tuple[int, ...]
    point: Rays
    gaze: Rays
    normal: Rays
    taken: Plane

    def each(self, values: Iterable[float]) -> Plane:
        """One number per point from one number per thing."""
        return np.repeat(np.array(list(values), np.float32), self.counts)


def shade_floor(bodies: Sequence[Body], scenery: Backdrop, wall: Plane, colour: Plane) -> None:
    """Darkens the floor around things, and where they stand in the sun's way; `wall` is that of `Stage`."""
    camera = scenery.camera
    rays = picture_rays(camera)
    x, y, _ = floor_points(camera, rays[0], (rays[1], rays[2]))
    taken, near = np.zeros((2, camera.side, camera.side), np.float32)
    windows = []
    for body in bodies:
        if not body.thing.pasted:
            part = window(_darkened(body, scenery), camera.side)
            east, north = x[part] - np.float32(body.x), y[part[0]] - np.float32(body.y)
            np.maximum(taken[part], _shadow(body, east, north, scenery.light.slant), out=taken[part])
            np.maximum(near[part], _haze(body, east, north), out=near[part])
            windows.append(part)
    if windows:
        rows = slice(min(part[0].start for part in windows), max(part[0].stop for part in windows))
        colour[:, rows] *= _floor_light(taken[rows], near[rows], scenery.light, wall[rows])


def shade_things(bodies: Sequence[Body], scenery: Backdrop, sight: Sight, found: Seen, colour: Plane) -> None:
    """Paints the middle of every pixel that shows a thing."""
    planes = colour.reshape(3, -1)
    for material, shader in SHADERS.items():
        chosen = [i for i, body in enumerate(bodies) if body.thing.kind.material == material]
        if not chosen:
            continue
        at = np.concatenate([found.at[found.parts[i]] for i in chosen])
        surface = _surface(bodies, chosen, scenery, sight, at)
        diffuse, white = shader(surface, scenery)
        inks = [times(PALETTE[body.thing.kind.colour], scenery.light.tint) for body in surface.bodies]
        for plane, ink, tint in zip(planes, zip(*inks, strict=True), scenery.light.tint, strict=True):
            plane[at] = np.clip(surface.each(ink) * diffuse + white * np.float32(WHITE * tint), 0, np.float32(WHITE))


def _surface(bodies: Sequence[Body], chosen: list[int], scenery: Backdrop, sight: Sight, at: Indices) -> Surface:
    """What is seen at some places, which show the chosen things one after another."""
    camera, codes, depth = scenery.camera, sight.codes.take(at), sight.depth.take(at)
    rows = at // camera.side
    half = np.float32(0.5)
    gaze = camera.rays((at - rows * camera.side).astype(np.float32) + half, rows.astype(np.float32) + half)
    point = gaze[0] * depth, gaze[1] * depth, gaze[2] * depth + np.float32(camera.height)
    faces, normal, taken = codes % FACES, np.empty((3, len(at)), np.float32), np.zeros(len(at), np.float32)
    counts = np.bincount(codes // FACES, minlength=len(bodies) + 1)
    begin = 0
    for index in chosen:
        part = slice(begin, begin := begin + int(counts[index + 1]))
        x, y, z = (axis[part] for axis in point)
        body = bodies[index]
        normal[0, part], normal[1, part], normal[2, part] = body.solid.normal((x - body.x, y - body.y, z), faces[part])
        _shade_from(bodies, body, scenery.light.slant, (x, y, z), taken[part])
    mine = tuple(bodies[index] for index in chosen)
    return Surface(mine, tuple(counts[[i + 1 for i in chosen]].tolist()), point, gaze, tuple(normal), taken)


def _rubber(surface: Surface, scenery: Backdrop) -> tuple[Plane, Plane]:
    """How much of its own colour each point shows, and how much white."""
    sunlit, light, _ = _lit(surface, scenery)
    return light, 0.05 * _gloss(surface, scenery, sunlit, 5)


def _metal(surface: Surface, scenery: Backdrop) -> tuple[Plane, Plane]:
    """How much of its own colour each point shows, and how much white."""
    sunlit, light, clear = _lit(surface, scenery)
    facing, world = _mirror(surface, scenery)
    rim = (1 - facing) * (1 - facing) * (0.10 * world)
    glare = rim + _streaks(surface, scenery) * (0.25 + 0.75 * sunlit)
    mirrored = (0.36 * light + 0.85 * (world * clear)) * (1 - glare)
    return mirrored + 0.65 * glare, 0.35 * glare + 1.6 * _gloss(surface, scenery, sunlit, 7)


SHADERS: Final[dict[str, Callable[[Surface, Backdrop], tuple[Plane, Plane]]]] = {"rubber": _rubber, "metal": _metal}
"""What makes a material."""


def _lit(surface: Surface, scenery: Backdrop) -> tuple[Plane, Plane, Plane]:
    """How squarely the sun meets each point, all light on it, and how open it lies to the sky."""
    light = scenery.light
    sunlit = np.clip(_dot(surface.normal, light.sun), 0, 1) * (1 - surface.taken)
    # Light from above, and a little back from the floor; both are less in the narrow place by the floor.
    low = surface.point[2] * surface.each(6 / body.thing.size for body in surface.bodies)
    clear = 1 - 0.45 / (1 + low)
    return sunlit, (0.62 * light.sky + 0.38 * light.sky * surface.normal[2]) * clear + light.strength * sunlit, clear


def _gloss(surface: Surface, scenery: Backdrop, sunlit: Plane, squarings: int) -> Plane:
    """The sun's image: two to the power of `squarings` is the exponent. (No pow: its last bit differs by processor.)"""
    (sine, cosine), (x, y, z) = scenery.camera.dip, scenery.light.sun
    y, z = y - cosine, z + sine  # Half-way between the sun and the camera, which is far off.
    scale = 1 / math.sqrt(x * x + y * y + z * z)
    value = np.clip(_dot(surface.normal, (x * scale, y * scale, z * scale)), 0, 1)
    for _ in range(squarings):
        value *= value
    value *= np.clip(4 * sunlit, 0, 1)
    return value


def _mirror(surface: Surface, scenery: Backdrop) -> tuple[Plane, Plane]:
    """How squarely each point is looked at, and how bright the floor or the room is that it mirrors."""
    (gx, gy, gz), (nx, ny, nz), (x, y, z) = surface.gaze, surface.normal, surface.point
    towards = gx * nx + gy * ny + gz * nz
    twice = 2 * towards
    up = gz - twice * nz
    reach = np.clip(z / np.clip(-up, 0.05, 2), 0, 12)
    # The pattern alone: a dark floor would turn a yellow cone olive.
    tone = scenery.floor.tone(x + (gx - twice * nx) * reach, y + (gy - twice * ny) * reach, 0.02 + 0.03 * reach)
    floor = (0.42 + 0.34 * tone) / (1 + 0.02 * (reach * reach))
    room = 0.45 + 0.75 * np.clip(up, 0, 1)
    return np.clip(-towards, 0, 1), floor + (room - floor) * np.clip(up * 12 + 0.5, 0, 1)


def _streaks(surface: Surface, scenery: Backdrop) -> Plane:
    """Two slanting bands of glare: what tells metal where a face is too flat to mirror more than one spot of floor."""
    (sine, cosine), (x, y, z), bodies = scenery.camera.dip, surface.point, surface.bodies
    # The picture's x and a little of its y, from the middle of the thing.
    middles = surface.each(body.x - 0.55 * (sine * body.y + 0.45 * cosine * body.thing.size) for body in bodies)
    slanting = (x - (0.55 * sine) * y - (0.55 * cosine) * z - middles) * surface.each(1 / b.thing.size for b in bodies)
    broad, narrow = np.clip(2 - abs(slanting + 0.10) * 28, 0, 1), np.clip(1.5 - abs(slanting - 0.06) * 50, 0, 1)
    return 0.55 * broad + 0.40 * narrow


def _darkened(body: Body, scenery: Backdrop) -> Box:
    """A box in pixels that holds all that a thing darkens on the floor."""
    (radius, height), (east, north), size = body.solid.hull, scenery.light.slant, body.thing.size
    tip = body.x + east * height, body.y + north * height, 0.0
    return scenery.camera.extent((((body.x, body.y, 0.0), radius + _HAZE * size), (tip, radius + 0.15 * size)))


def _shadow(body: Body, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
    """How much of the sun a thing takes from floor points relative to it, if cut to [0, 1]; softer away from it."""
    east, north = slant
    scale = 0.24 / max(east * east + north * north, 1e-9)
    width = np.clip(x * (east * scale) + y * (north * scale), 0, 0.24 * body.thing.size) + 0.06 * body.thing.size
    share: Plane = 0.5 - body.solid.shadow(x, y, slant) / width
    return share


def _haze(body: Body, x: Plane, y: Plane) -> Plane:
    """How near floor points relative to it are to a thing, if cut to [0, 1]."""
    radius, scale = body.solid.hull[0], 1 / (_HAZE * body.thing.size)
    near: Plane = (1 + radius * scale) - np.sqrt(x * x + y * y) * scale
    return near


def _softened(share: Plane) -> Plane:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def _floor_light(taken: Plane, near: Plane, light: Light, wall: Plane) -> Plane:
    """What is left of the floor's light; all of it where there is wall."""
    sky, near = light.sky / light.level, np.clip(near, 0, 1)
    left = sky * (1 - 0.6 * (near * near)) + (1 - sky) * (1 - _softened(taken))
    left[: len(wall)] += (1 - left[: len(wall)]) * wall
    return left


def _shade_from(bodies: Sequence[Body], body: Body, slant: tuple[float, float], points: Rays, taken: Plane) -> None:
    """Enters how much of the sun other things take from points of one."""
    for other in bodies:
        if other is not body and not other.thing.pasted and _may_shade(other, body, slant):
            x, y = (axis + step * points[2] for axis, step in zip(points, slant, strict=False))
            np.maximum(taken, _softened(_shadow(other, x - other.x, y - other.y, slant)), out=taken)


def _may_shade(one: Body, other: Body, slant: tuple[float, float]) -> bool:
    """Whether the shadow of one thing can fall on another."""
    east, north = other.x - one.x, other.y - one.y
    along, across = east * slant[0] + north * slant[1], east * slant[1] - north * slant[0]
    steep = slant[0] * slant[0] + slant[1] * slant[1]
    reach = (0.7 * (one.thing.size + other.thing.size)) ** 2 * steep
    return along > 0 and across * across < reach and along * along < (one.thing.size * steep + reach**0.5) ** 2


def _dot(rays: Rays, vector: Vector) -> Plane:
    return rays[0] * vector[0] + rays[1] * vector[1] + rays[2] * vector[2]
