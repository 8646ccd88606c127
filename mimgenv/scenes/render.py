"""The ray-caster of the table-top: from a scene to its pixels, its instance buffer and its boxes.

Draws things over a painted stage (backdrop.py): shadows on the floor, then each thing inside its own part of the
picture, then all edges again with four rays a pixel. Knows nothing of how scenes come about. Array maths is float32
in + - * / sqrt, comparisons and integers without float sums, so the same scene gives the same bytes on every
processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.backdrop import Backdrop, Colour, Stage, backdrop, linear, stage
from mimgenv.scenes.camera import Plane, Rays, Vector
from mimgenv.scenes.scene import Frame, Scene, Thing
from mimgenv.scenes.shapes import MISS, SOLIDS, Hit, Solid
from mimgenv.types import Box, Image

Codes: TypeAlias = npt.NDArray[np.int16]
Window: TypeAlias = tuple[slice, slice]
Indices: TypeAlias = npt.NDArray[np.intp]

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
MATERIALS: Final = ("rubber", "metal")

_FACES: Final = 4  # More than any solid has: a code is (number of the thing) * _FACES + face.
_OFFSETS: Final = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
_HAZE: Final = 0.35  # How far around a thing the floor is darkened, in diameters.


@dataclass(frozen=True, slots=True)
class Body:
    """A thing ready to be drawn.

    Attributes:
        thing: What the scene says.
        solid: Its shape.
        window: Rows and columns of the picture outside which it cannot be seen.
    """

    thing: Thing
    solid: Solid
    window: Window

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """Follows rays of the world."""
        x, y = self.thing.position
        return self.solid.hit((origin[0] - x, origin[1] - y, origin[2]), rays)

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """How much of the sun it takes from floor points, in [0, 1]; softer away from where it stands."""
        x, y = x - self.thing.position[0], y - self.thing.position[1]
        steep = slant[0] * slant[0] + slant[1] * slant[1]
        along = np.clip((x * slant[0] + y * slant[1]) * (1 / (max(steep, 1e-9) * self.thing.size)), 0, 1)
        width = (0.06 + 0.24 * along) * self.thing.size
        share = np.clip(0.5 - self.solid.shadow(x, y, slant) / width, 0, 1)
        return share * share * (3 - 2 * share)

    def haze(self, x: Plane, y: Plane) -> Plane:
        """How much of the sky's light it takes from floor points, in [0, 1]."""
        x, y = x - self.thing.position[0], y - self.thing.position[1]
        near = np.clip(1 - self.solid.shadow(x, y, (0.0, 0.0)) * (1 / (_HAZE * self.thing.size)), 0, 1)
        return near * near


def draw(scene: Scene, side: int) -> Frame:
    """Draws a scene as `side` x `side` pixels: a pure function of both."""
    seeds = scene.backdrop, side, scene.view, scene.light
    scenery, empty = backdrop(*seeds), stage(*seeds)
    bodies = [_body(thing, scenery) for thing in scene.things]
    colour = _shaded_floor(bodies, scenery, empty)
    codes = np.zeros((side, side), np.int16)
    bare = [plane.copy() for plane in colour]
    amodal = _paint(bodies, scenery, empty.rays, colour, codes)
    _smooth(bodies, scenery, bare, colour, codes)
    instances = codes // _FACES
    seen = [_seen(instances[body.window] == number, body.window) for number, body in enumerate(bodies, 1)]
    visibility = tuple(count / total if total else 0.0 for (_, count), total in zip(seen, amodal, strict=True))
    return Frame(
        _grained(_screen(colour, scenery.light.tint), scene), instances, tuple(box for box, _ in seen), visibility
    )


def seen_points(scene: Scene, side: int) -> npt.NDArray[np.float32]:
    """What each pixel shows: (side, side, 3) float32 points of the world, NaN where it shows no thing."""
    scenery, empty = (make(scene.backdrop, side, scene.view, scene.light) for make in (backdrop, stage))
    depth = np.full(side * side, MISS)
    for body in (_body(thing, scenery) for thing in scene.things):
        at = _pixels(body.window, side)
        depth[at] = np.minimum(depth[at], body.hit(scenery.camera.origin, _at(empty.rays, at)).distance)
    depth[depth == MISS] = np.nan
    flat = [start + ray.reshape(-1) * depth for start, ray in zip(scenery.camera.origin, empty.rays, strict=True)]
    return np.stack(flat, 1).reshape(side, side, 3)


def _body(thing: Thing, scenery: Backdrop) -> Body:
    window = _window(scenery.camera.standing(thing.position, thing.size), scenery.camera.side)
    return Body(thing, SOLIDS[thing.kind.shape](thing.size, thing.turn), window)


def _window(extent: Box, side: int) -> Window:
    """The pixels that a box touches, and one more on each side, as far as they are in the picture."""
    left, top, right, bottom = (min(max(edge, -2.0), side + 2.0) for edge in extent)
    return slice(max(0, int(top) - 1), max(0, int(bottom) + 2)), slice(max(0, int(left) - 1), max(0, int(right) + 2))


def _shaded_floor(bodies: Sequence[Body], scenery: Backdrop, empty: Stage) -> list[Plane]:
    """The stage with the shadow of each thing on it."""
    taken = np.zeros_like(empty.x)
    dimmed = np.ones_like(empty.x)
    for body in bodies:
        if body.thing.pasted:
            continue
        window = _window(_shadow_extent(body.thing, scenery), scenery.camera.side)
        x, y = empty.x[window], empty.y[window]
        np.maximum(taken[window], body.shadow(x, y, scenery.light.slant), out=taken[window])
        dimmed[window] *= 1 - 0.6 * body.haze(x, y)
    sun = 1 - scenery.light.sky / scenery.light.level
    factor = (1 - sun) * dimmed + sun * (1 - taken)
    return [plane * factor for plane in empty.colour]


def _shadow_extent(thing: Thing, scenery: Backdrop) -> Box:
    """A box in pixels that holds all that a thing darkens on the floor."""
    (x, y), (east, north) = thing.position, scenery.light.slant
    near, far = thing.size * (0.5 + _HAZE), thing.size * 0.7
    tip = (x + east * thing.size, y + north * thing.size, 0.0)
    return scenery.camera.extent((((x, y, 0.0), near), (tip, far)))


def _paint(bodies: Sequence[Body], scenery: Backdrop, rays: Rays, colour: Sequence[Plane], codes: Codes) -> list[int]:
    """Draws each thing where it is nearest, one ray a pixel, and counts the pixels it would have if it were alone."""
    depth, amodal = np.full(codes.size, MISS), []
    inks, numbers = [plane.reshape(-1) for plane in colour], codes.reshape(-1)
    for number, body in enumerate(bodies, 1):
        at = _pixels(body.window, scenery.camera.side)
        hit, met = _cast(body, bodies, scenery, _at(rays, at), at, depth, inks)
        numbers[at[met]] = number * _FACES + hit.face[met]
        amodal.append(int(np.count_nonzero(hit.distance < MISS)))
    return amodal


def _smooth(
    bodies: Sequence[Body], scenery: Backdrop, floor: Sequence[Plane], colour: Sequence[Plane], codes: Codes
) -> None:
    """Draws the pixels on outlines and creases again as the mean of four rays."""
    rows, columns = np.nonzero(_edges(codes))
    inks = [np.tile(plane[rows, columns], len(_OFFSETS)) for plane in floor]
    depth = np.full(inks[0].size, MISS)
    offsets = np.array(_OFFSETS, np.float32)[:, :, None] + 0.5
    xs, ys = (
        (columns.astype(np.float32) + offsets[:, 0]).reshape(-1),
        (rows.astype(np.float32) + offsets[:, 1]).reshape(-1),
    )
    for body in bodies:
        down, across = body.window
        near = (rows >= down.start) & (rows < down.stop) & (columns >= across.start) & (columns < across.stop)
        at = np.flatnonzero(np.tile(near, len(_OFFSETS)))
        _cast(body, bodies, scenery, scenery.camera.rays(xs[at], ys[at]), at, depth, inks)
    for plane, ink in zip(colour, inks, strict=True):
        one, two, three, four = np.clip(ink, 0, 1).reshape(len(_OFFSETS), -1)
        plane[rows, columns] = (one + two + three + four) * 0.25


def _cast(
    body: Body,
    bodies: Sequence[Body],
    scenery: Backdrop,
    rays: Rays,
    at: Indices,
    depth: Plane,
    inks: Sequence[Plane],
) -> tuple[Hit, Indices]:
    """Draws one thing into flat buffers where it is nearer than what they hold.

    Args:
        body: What to draw.
        bodies: All there is: what may shade it.
        scenery: Camera, light and what metal mirrors.
        rays: One-dimensional.
        at: Where in the buffers each ray belongs.
        depth: Nearest distances so far; written.
        inks: Linear red, green and blue so far; written.

    Returns:
        What the rays meet, and which of them are now drawn.
    """
    hit = body.hit(scenery.camera.origin, rays)
    met = np.flatnonzero(hit.distance < depth.take(at))
    where, distance = at.take(met), hit.distance.take(met)
    depth[where] = distance
    shade = _shade(body, bodies, scenery, distance, _at(rays, met), _at(hit.normal, met))
    for ink, part in zip(inks, shade, strict=True):
        ink[where] = part
    return hit, met


def _at(rays: Rays, where: Indices) -> Rays:
    """Some of the rays, counted as if flattened."""
    return rays[0].take(where), rays[1].take(where), rays[2].take(where)


def _pixels(window: Window, side: int) -> Indices:
    """Places in a flattened picture of the pixels in a window."""
    rows, columns = (np.arange(span.start, min(span.stop, side)) for span in window)
    return (rows[:, None] * side + columns).reshape(-1)


def _edges(codes: Codes) -> npt.NDArray[np.bool_]:
    """Which pixels have a neighbour of another thing or another face."""
    edges = np.zeros(codes.shape, np.bool_)
    across, down = codes[:, 1:] != codes[:, :-1], codes[1:] != codes[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def _shade(
    body: Body, bodies: Sequence[Body], scenery: Backdrop, distance: Plane, gaze: Rays, normal: Rays
) -> tuple[Plane, ...]:
    """Linear red, green and blue of points of a thing, at a distance along rays, with their normals."""
    x, y, z = (start + step * distance for start, step in zip(scenery.camera.origin, gaze, strict=True))
    sunlit = np.maximum(_dot(normal, scenery.light.sun), 0) * (1 - _shadow_on(body, bodies, scenery, x, y, z))
    # Light from above, and a little back from the floor; both are less in the narrow place by the floor.
    open_ = 1 - 0.45 / (1 + z * (6 / body.thing.size))
    soft = (scenery.light.sky * (0.62 + 0.38 * normal[2])) * open_
    base, metal = PALETTE[body.thing.kind.colour], body.thing.kind.material == "metal"
    mirrored, facing = _mirrored(normal, gaze)
    gloss = _power(np.maximum(_dot(mirrored, scenery.light.sun), 0), 5 if metal else 3) * np.minimum(4 * sunlit, 1)
    if not metal:
        return tuple(part * (soft + scenery.light.strength * sunlit) + 0.05 * gloss for part in base)
    world = _mirror_world(scenery, (x, y, z), mirrored)
    light = 0.36 * (soft + scenery.light.strength * sunlit) + 0.85 * world * open_
    rim = 0.10 * (1 - facing) * (1 - facing) * world
    glare = rim + _streaks(body.thing, scenery, (x, y, z)) * (0.25 + 0.75 * sunlit)
    return tuple(part * light * (1 - glare) + glare * (0.35 + 0.65 * part) + 1.6 * gloss for part in base)


def _mirrored(normal: Rays, gaze: Rays) -> tuple[Rays, Plane]:
    """Unit directions in which a surface mirrors what looks at it, and the cosine at which it is looked at."""
    scale = 1 / np.sqrt(gaze[0] * gaze[0] + gaze[1] * gaze[1] + gaze[2] * gaze[2])
    x, y, z = (part * scale for part in gaze)
    towards = x * normal[0] + y * normal[1] + z * normal[2]
    twice = 2 * towards
    return (x - twice * normal[0], y - twice * normal[1], z - twice * normal[2]), np.clip(-towards, 0, 1)


def _mirror_world(scenery: Backdrop, point: Rays, direction: Rays) -> Plane:
    """Brightness of the floor or the room, seen from points of a mirror."""
    up = direction[2]
    reach = np.minimum(point[2] / np.maximum(-up, 0.05), 12)
    x, y = point[0] + direction[0] * reach, point[1] + direction[1] * reach
    # The pattern alone: a dark floor would turn a yellow cone olive.
    floor = (0.42 + 0.34 * scenery.floor.tone(x, y, 0.02 + 0.03 * reach)) / (1 + 0.02 * reach * reach)
    room = 0.45 + 0.75 * np.maximum(up, 0)
    share = np.clip(up * 12 + 0.5, 0, 1)
    return floor * (1 - share) + room * share


def _streaks(thing: Thing, scenery: Backdrop, point: Rays) -> Plane:
    """Two slanting bands of glare: what tells metal where a face is too flat to mirror more than one spot of floor."""
    right, down = scenery.camera.right, scenery.camera.down
    x, y, z = (part - at for part, at in zip(point, (*thing.position, 0.45 * thing.size), strict=True))
    slanting = (_dot((x, y, z), right) + 0.55 * _dot((x, y, z), down)) * (1 / thing.size)
    broad, narrow = np.clip(2 - abs(slanting + 0.10) * 28, 0, 1), np.clip(1.5 - abs(slanting - 0.06) * 50, 0, 1)
    return 0.55 * broad + 0.40 * narrow


def _shadow_on(body: Body, bodies: Sequence[Body], scenery: Backdrop, x: Plane, y: Plane, z: Plane) -> Plane:
    """How much of the sun other things take from points of one."""
    slant, taken = scenery.light.slant, np.zeros_like(x)
    floor_x, floor_y = x + slant[0] * z, y + slant[1] * z
    for other in bodies:
        if other is not body and not other.thing.pasted and _may_shade(other.thing, body.thing, slant):
            np.maximum(taken, other.shadow(floor_x, floor_y, slant), out=taken)
    return taken


def _may_shade(one: Thing, other: Thing, slant: tuple[float, float]) -> bool:
    """Whether the shadow of one thing can fall on another."""
    east, north = other.position[0] - one.position[0], other.position[1] - one.position[1]
    along, across = east * slant[0] + north * slant[1], east * slant[1] - north * slant[0]
    steep = slant[0] * slant[0] + slant[1] * slant[1]
    reach = (0.7 * (one.size + other.size)) ** 2 * steep
    return along > 0 and across * across < reach and along * along < (one.size * steep + reach**0.5) ** 2


def _power(value: Plane, squarings: int) -> Plane:
    """Two to the power of `squarings` is the exponent: no call of pow, whose last bit differs between processors."""
    for _ in range(squarings):
        value = value * value
    return value


def _dot(rays: Rays, vector: Vector) -> Plane:
    return rays[0] * vector[0] + rays[1] * vector[1] + rays[2] * vector[2]


def _seen(mask: npt.NDArray[np.bool_], window: Window) -> tuple[Box | None, int]:
    """Tight extent of a mask that lies at a window of the picture, and its number of pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None, 0
    top, left = window[0].start, window[1].start
    box = float(left + columns[0]), float(top + rows[0]), float(left + columns[-1] + 1), float(top + rows[-1] + 1)
    return box, int(np.count_nonzero(mask))


def _screen(colour: Sequence[Plane], tint: Colour) -> Image:
    """Linear planes as (H, W, 3) uint8."""
    pixels = np.empty((*colour[0].shape, 3), np.uint8)
    for channel, (plane, factor) in enumerate(zip(colour, tint, strict=True)):
        pixels[:, :, channel] = np.sqrt(np.clip(plane * factor, 0, 1)) * 255 + 0.5
    return pixels


def _grained(pixels: Image, scene: Scene) -> Image:
    """The picture with grain of at most `scene.noise` grey levels."""
    if not scene.noise:
        return pixels
    rng = np.random.default_rng([scene.backdrop, scene.light, scene.noise])
    grain = rng.integers(-scene.noise, scene.noise + 1, (*pixels.shape[:2], 1), np.int16)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)
