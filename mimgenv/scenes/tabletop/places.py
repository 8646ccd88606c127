"""Where things stand on the table so that each can be seen well.

Nothing in here draws: it compares the boxes of upright cylinders that hold a thing of any shape, and counts rays where
boxes meet, so a thing may later change its kind and still be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mimgenv.geometry import area, intersection
from mimgenv.scenes.scene import Kind, Thing
from mimgenv.scenes.tabletop.camera import Camera, Rays
from mimgenv.scenes.tabletop.shapes import Cylinder
from mimgenv.types import Box


@dataclass(frozen=True, slots=True)
class Layout:
    """How things are placed.

    Attributes:
        sizes: Least and greatest diameter in world units.
        overlap: Greatest share of a thing's box that the boxes of nearer things may cover.
        spread: Half a side of the square of table that is used, in world units.
    """

    sizes: tuple[float, float]
    overlap: float
    spread: float


LAYOUTS: Final[dict[int, Layout]] = {
    1: Layout((1.3, 1.7), 0.0, 2.8),
    2: Layout((1.2, 1.65), 0.15, 2.6),
    3: Layout((1.1, 1.6), 0.30, 2.4),
    4: Layout((1.0, 1.5), 0.45, 2.3),
    5: Layout((0.95, 1.4), 0.55, 2.2),
}
"""Harder scenes have smaller things, closer together, that hide each other more."""

MARGIN: Final = 5 / 224
"""Least distance from the edge of the picture, in picture sides."""
LEAST: Final = 26 / 224
"""Least side of the box that holds a thing of any shape, in picture sides; the thing itself fills 2/3 of it or more."""
HIDDEN: Final = 0.36
"""Greatest share of the cylinder that holds a thing of any shape that such cylinders before it may hide."""
GAP: Final = 0.12
"""Least free floor between two things, in world units."""

_GRAZED: Final = 0.28  # If nearer boxes cover no more than this share of a box, no more than `HIDDEN` is hidden.


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing and how it is seen.

    Attributes:
        thing: What it is.
        place: Where it stands in the camera's frame.
        box: Pixels that hold a thing of any shape there.
        depth: Power of the camera's foot with respect to the thing's circle. Of two circles apart from each other the
            one of less power comes first along every ray that meets both.
    """

    thing: Thing
    place: tuple[float, float]
    box: Box
    depth: float


def draw_thing(rng: np.random.Generator, kind: Kind, layout: Layout, shrink: float, identity: int) -> Thing:
    """A thing anywhere in the square around the used part of the table."""
    x, y, size, turn = (float(part) for part in rng.random(4))
    low, high = layout.sizes
    position = (2 * x - 1) * layout.spread, (2 * y - 1) * layout.spread
    return Thing(identity, kind, position, shrink * (low + (high - low) * size), turn * math.pi / 2)


def seen_from(camera: Camera, thing: Thing) -> Placed:
    """A thing as a camera sees it."""
    (x, y), radius = camera.place(*thing.position), thing.size / 2
    return Placed(thing, (x, y), camera.standing((x, y), radius, thing.size), x * x + y * y - radius * radius)


def join(camera: Camera, placed: Sequence[Placed], thing: Thing, overlap: float) -> Placed | None:
    """A thing placed among others so that all are seen well; None where that is not so."""
    if not apart(thing, placed):
        return None
    new = seen_from(camera, thing)
    return new if inside(new.box, camera.side) and clear(camera, placed, new, overlap) else None


def all_fit(camera: Camera, things: Sequence[Thing]) -> bool:
    """Whether every thing is inside the picture, large enough and hidden by less than half, whatever its kind."""
    placed: list[Placed] = []
    for thing in things:
        new = join(camera, placed, thing, 1.0)
        if new is None:
            return False
        placed.append(new)
    return True


def inside(box: Box, side: int) -> bool:
    """Whether a box is large enough and clear of the picture's edge."""
    margin, least = MARGIN * side, LEAST * side
    large = box[2] - box[0] >= least and box[3] - box[1] >= least
    return large and min(box[0], box[1]) >= margin and max(box[2], box[3]) <= side - margin


def apart(thing: Thing, placed: Sequence[Placed]) -> bool:
    """Whether a thing stands clear of the placed ones."""
    for other in placed:
        east, north = thing.position[0] - other.thing.position[0], thing.position[1] - other.thing.position[1]
        gap = (thing.size + other.thing.size) / 2 + GAP
        if east * east + north * north < gap * gap:
            return False
    return True


def clear(camera: Camera, placed: Sequence[Placed], new: Placed, overlap: float) -> bool:
    """Whether the new thing and those behind it can be seen well; `overlap` is that of `Layout`."""
    everything = [*placed, new]
    behind = [new, *(one for one in placed if _covers(new, one))]
    veiled = [(one, before) for one in behind if (before := [other for other in everything if _covers(other, one)])]
    for one, before in veiled:
        covered = sum(area(intersection(one.box, other.box)) for other in before) / area(one.box)
        if covered > overlap or (covered > _GRAZED and not _seen_behind(camera, one, before)):
            return False
    return True


def _covers(one: Placed, other: Placed) -> bool:
    """Whether one thing may hide a part of another."""
    return one.depth < other.depth and area(intersection(one.box, other.box)) > 0


def _seen_behind(camera: Camera, one: Placed, before: Sequence[Placed]) -> bool:
    """Whether nearer things hide little of one, by every second pixel of every second row."""
    left, top, right, bottom = map(int, one.box)
    xs, ys = np.arange(left, right + 1, 2, dtype=np.float32), np.arange(top, bottom + 1, 2, dtype=np.float32)
    rays = camera.rays(xs[None, :] + np.float32(0.5), ys[:, None] + np.float32(0.5))
    whole = _held(camera, one, rays)
    hidden = np.zeros_like(whole)
    for other in before:
        hidden |= _held(camera, other, rays)
    return bool(np.count_nonzero(whole & hidden) <= HIDDEN * np.count_nonzero(whole))


def _held(camera: Camera, placed: Placed, rays: Rays) -> npt.NDArray[np.bool_]:
    """Which rays meet the cylinder that holds a thing of any shape."""
    cylinder = Cylinder(placed.thing.size / 2, placed.thing.size)
    return cylinder.hit((-placed.place[0], -placed.place[1], camera.height), rays).met
