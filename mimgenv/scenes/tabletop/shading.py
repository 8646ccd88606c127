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

from mimgenv.scenes.tabletop.backdrop import Backdrop, Light
from mimgenv.scenes.tabletop.camera import Plane, Rays, Vector
from mimgenv.scenes.tabletop.floor import WHITE, Colour, linear, times
from mimgenv.scenes.tabletop.sight import FACES, Body, Seen, Sight, Window, middles, window
from mimgenv.scenes.tabletop.stage import doubled, floor_points
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


def shade_floor(bodies: Sequence[Body], scenery: Backdrop, floor: Plane) -> None:
    """Darkens the floor around things, and where they stand in the sun's way."""
    camera, slant = scenery.camera, scenery.light.slant
    parts = [(body, window(_darkened(body, scenery), camera.side)) for body in bodies if not body.thing.pasted]
    if not parts:
        return
    rows, columns = _around([part for _, part in parts])
    # Shadows are soft: one ray for two by two pixels will do.
    across, down = (np.arange(span.start + 1, span.stop + 1, 2, dtype=np.float32) for span in (columns, rows))
    ray_x, ray_y, ray_z = camera.rays(across[None, :], down[:, None])
    x, y, _ = floor_points(camera, ray_x, (ray_y, ray_z))
    taken, near = np.zeros((2, *x.shape), np.float32)
    for body, part in parts:
        part = _halved(part, (rows, columns))
        east, north = x[part] - np.float32(body.x), y[part[0]] - np.float32(body.y)
        np.maximum(taken[part], _shadow(body, east, north, slant), out=taken[part])
        np.maximum(near[part], _haze(body, east, north), out=near[part])
    floor = floor[rows, columns]
    floor *= doubled(_floor_light(taken, near, scenery.light))[: floor.shape[0], : floor.shape[1]]


def _around(windows: Sequence[Window]) -> Window:
    """A window that holds some others with a margin; it starts at an even row and column."""
    rows, columns = (
        slice(max(0, min(w[axis].start for w in windows) // 2 * 2 - 2), max(w[axis].stop for w in windows) + 2)
        for axis in (0, 1)
    )
    return rows, columns


def _halved(inner: Window, outer: Window) -> Window:
    """A window, counted in steps of two from the start of one around it."""
    rows, columns = (
        slice((i.start - o.start) // 2, (i.stop - o.start + 1) // 2) for i, o in zip(inner, outer, strict=True)
    )
    return rows, columns


def shade_things(bodies: Sequence[Body], scenery: Backdrop, sight: Sight, found: Seen) -> Plane:
    """Red, green and blue of all pixels whose middle shows a thing, in the order of `found`: (3, pixels)."""
    inks, tint = np.empty((3, len(found.at)), np.float32), scenery.light.tint
    bright = _column((WHITE, WHITE, WHITE), tint)
    for material, shader in SHADERS.items():
        chosen = [i for i, body in enumerate(bodies) if body.thing.kind.material == material]
        if chosen:
            surface = _surface(bodies, chosen, scenery, sight, found)
            own, white = shader(surface, scenery)
            begin = 0
            for body, part in zip(surface.bodies, (found.parts[i] for i in chosen), strict=True):
                here = slice(begin, begin := begin + part.stop - part.start)
                inks[:, part] = _column(PALETTE[body.thing.kind.colour], tint) * own[here] + bright * white[here]
    return inks.clip(0, np.float32(WHITE), out=inks)


def _column(colour: Colour, tint: Colour) -> Plane:
    return np.array(times(colour, tint), np.float32)[:, None]


def _surface(bodies: Sequence[Body], chosen: Sequence[int], scenery: Backdrop, sight: Sight, found: Seen) -> Surface:
    """What is seen of some of the things, one after another."""
    mine, places = tuple(bodies[i] for i in chosen), [found.at[found.parts[i]] for i in chosen]
    counts, at, camera = tuple(map(len, places)), np.concatenate(places), scenery.camera
    depth, faces = sight.depth.take(at), sight.codes.take(at) & np.int16(FACES - 1)
    normal, taken = np.empty((3, len(at)), np.float32), np.zeros(len(at), np.float32)
    gaze = camera.rays(*(axis.take(at) for axis in middles(camera.side)))
    point = gaze[0] * depth, gaze[1] * depth, gaze[2] * depth + np.float32(camera.height)
    begin = 0
    for body, count in zip(mine, counts, strict=True):
        part = slice(begin, begin := begin + count)
        x, y, z = (axis[part] for axis in point)
        normal[0, part], normal[1, part], normal[2, part] = body.solid.normal((x - body.x, y - body.y, z), faces[part])
        _shade_from(bodies, body, scenery.light.slant, (x, y, z), taken[part])
    return Surface(mine, counts, point, gaze, (normal[0], normal[1], normal[2]), _softened(taken))


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
    sunlit = _dot(surface.normal, light.sun).clip(0, 1) * (1 - surface.taken)
    # Light from above, and a little back from the floor; both are less in the narrow place by the floor.
    low = surface.point[2] * surface.each(6 / body.thing.size for body in surface.bodies)
    clear = 1 - 0.45 / (1 + low)
    return sunlit, (0.62 * light.sky + 0.38 * light.sky * surface.normal[2]) * clear + light.strength * sunlit, clear


def _gloss(surface: Surface, scenery: Backdrop, sunlit: Plane, squarings: int) -> Plane:
    """The sun's image: two to the power of `squarings` is the exponent. (No pow: its last bit differs by processor.)"""
    (sine, cosine), (x, y, z) = scenery.camera.dip, scenery.light.sun
    y, z = y - cosine, z + sine  # Half-way between the sun and the camera, which is far off.
    scale = 1 / math.sqrt(x * x + y * y + z * z)
    value = _dot(surface.normal, (x * scale, y * scale, z * scale)).clip(0, 1)
    for _ in range(squarings):
        value *= value
    value *= (4 * sunlit).clip(0, 1)
    return value


def _mirror(surface: Surface, scenery: Backdrop) -> tuple[Plane, Plane]:
    """How squarely each point is looked at, and how bright the floor or the room is that it mirrors."""
    (gx, gy, gz), (nx, ny, nz), (x, y, z) = surface.gaze, surface.normal, surface.point
    towards = gx * nx + gy * ny + gz * nz
    twice = 2 * towards
    up = gz - twice * nz
    reach = (z / (-up).clip(0.05, 2)).clip(0, 12)
    # The pattern alone: a dark floor would turn a yellow cone olive.
    tone = scenery.floor.tone(x + (gx - twice * nx) * reach, y + (gy - twice * ny) * reach, 0.02 + 0.03 * reach)
    floor = (0.42 + 0.34 * tone) / (1 + 0.02 * (reach * reach))
    room = 0.45 + 0.75 * up.clip(0, 1)
    return (-towards).clip(0, 1), floor + (room - floor) * (up * 12 + 0.5).clip(0, 1)


def _streaks(surface: Surface, scenery: Backdrop) -> Plane:
    """Two slanting bands of glare: what tells metal where a face is too flat to mirror more than one spot of floor."""
    (sine, cosine), (x, y, z), bodies = scenery.camera.dip, surface.point, surface.bodies
    # The picture's x and a little of its y, from the middle of the thing.
    middles = surface.each(body.x - 0.55 * (sine * body.y + 0.45 * cosine * body.thing.size) for body in bodies)
    slanting = (x - (0.55 * sine) * y - (0.55 * cosine) * z - middles) * surface.each(1 / b.thing.size for b in bodies)
    broad, narrow = (2 - abs(slanting + 0.10) * 28).clip(0, 1), (1.5 - abs(slanting - 0.06) * 50).clip(0, 1)
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
    width = (x * (east * scale) + y * (north * scale)).clip(0, 0.24 * body.thing.size) + 0.06 * body.thing.size
    share: Plane = 0.5 - body.solid.shadow(x, y, slant) / width
    return share


def _haze(body: Body, x: Plane, y: Plane) -> Plane:
    """How near floor points relative to it are to a thing, if cut to [0, 1]."""
    radius, reach = body.solid.hull[0], body.solid.hull[0] + _HAZE * body.thing.size
    scale = 1 / (reach * reach - radius * radius)
    near: Plane = (reach * reach * scale - y * y * scale) - x * x * scale
    return near


def _softened(share: Plane) -> Plane:
    share = share.clip(0, 1)
    soft: Plane = share * share * (3 - 2 * share)
    return soft


def _floor_light(taken: Plane, near: Plane, light: Light) -> Plane:
    """What is left of the floor's light."""
    sky, near = np.float32(light.sky / light.level), near.clip(0, 1)
    return sky * (1 - np.float32(0.6) * (near * near)) + (1 - sky) * (1 - _softened(taken))


def _shade_from(bodies: Sequence[Body], body: Body, slant: tuple[float, float], points: Rays, taken: Plane) -> None:
    """Enters how much of the sun other things take from points of one, if cut to [0, 1]."""
    for other in bodies:
        if other is not body and not other.thing.pasted and _may_shade(other, body, slant):
            x, y = (axis + step * points[2] for axis, step in zip(points, slant, strict=False))
            np.maximum(taken, _shadow(other, x - other.x, y - other.y, slant), out=taken)


def _may_shade(one: Body, other: Body, slant: tuple[float, float]) -> bool:
    """Whether the shadow of one thing can fall on another."""
    east, north = other.x - one.x, other.y - one.y
    along, across = east * slant[0] + north * slant[1], east * slant[1] - north * slant[0]
    steep = slant[0] * slant[0] + slant[1] * slant[1]
    length, reach = math.sqrt(steep), one.solid.hull[0] + other.solid.hull[0] + 0.15 * one.thing.size
    return 0 < along < length * (length * one.solid.hull[1] + reach) and abs(across) < length * reach


def _dot(rays: Rays, vector: Vector) -> Plane:
    return rays[0] * vector[0] + rays[1] * vector[1] + rays[2] * vector[2]
