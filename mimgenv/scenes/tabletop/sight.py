"""What can be seen where: things in the camera's frame, and which of them each ray meets first.

Follows rays, through the middles of all pixels and again three to a pixel on outlines and creases. Knows nothing of
colour or light. Array maths is float32 in + - * / sqrt, comparisons and integers, bit for bit the same on every
processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Thing
from mimgenv.scenes.tabletop.camera import Camera, Plane, Rays
from mimgenv.scenes.tabletop.shapes import SOLIDS, Hit, Solid
from mimgenv.types import Box

Codes: TypeAlias = npt.NDArray[np.int16]
"""`FACES` * (index of a thing + 1) + face; 0 where no thing is seen."""

Window: TypeAlias = tuple[slice, slice]
Indices: TypeAlias = npt.NDArray[np.intp]

FACES: Final = 4
"""More than any solid has."""

SAMPLES: Final = ((-0.375, -0.125), (0.25, -0.375), (0.125, 0.375))
"""Where the rays of a pixel on an edge go through it besides that through its middle, from there."""


@dataclass(frozen=True, slots=True)
class Body:
    """A thing ready to be drawn.

    Attributes:
        thing: What the scene says.
        x: Where it stands in the camera's frame.
        y: Where it stands in the camera's frame.
        solid: Its shape.
        window: Rows and columns of the picture outside which it cannot be seen.
    """

    thing: Thing
    x: float
    y: float
    solid: Solid
    window: Window

    def hit(self, camera: Camera, rays: Rays) -> Hit:
        """Where the camera's rays meet it: distances are depths."""
        return self.solid.hit((-self.x, -self.y, camera.height), rays)


@dataclass(frozen=True, slots=True)
class Sight:
    """What the rays through the middles of pixels meet first.

    Attributes:
        codes: (side, side).
        depth: (side, side) float32; infinite where no thing is seen.
        whole: How many pixels each thing would have if it were alone.
    """

    codes: Codes
    depth: Plane
    whole: tuple[int, ...]


def embody(thing: Thing, camera: Camera) -> Body:
    """Places a thing in a camera's frame."""
    x, y = camera.place(*thing.position)
    solid = SOLIDS[thing.kind.shape](thing.size, thing.turn - camera.turn)
    return Body(thing, x, y, solid, window(camera.standing((x, y), *solid.hull), camera.side))


def window(extent: Box, side: int) -> Window:
    """The pixels that a box touches, and one more on each side, as far as they are in the picture."""
    left, top, right, bottom = (int(min(max(edge, -2.0), side + 2.0)) for edge in extent)
    return slice(max(0, top - 1), max(0, bottom + 2)), slice(max(0, left - 1), max(0, right + 2))


def look(bodies: Sequence[Body], camera: Camera) -> Sight:
    """Follows one ray a pixel."""
    codes = np.zeros((camera.side, camera.side), np.int16)
    depth, whole = np.full(codes.shape, np.inf, np.float32), []
    x, y, z = camera.picture
    for number, body in enumerate(bodies, 1):
        rows, columns = body.window
        hit = body.hit(camera, (x[:, columns], y[rows], z[rows]))
        _keep_nearest(depth[body.window], codes[body.window], hit, number)
        whole.append(int(np.count_nonzero(hit.met)))
    return Sight(codes, depth, tuple(whole))


def _keep_nearest(depth: Plane, codes: Codes, hit: Hit, number: int) -> None:
    """Enters what a thing's rays meet into buffers where it is nearer than what they hold."""
    nearer = (hit.distance < depth) & hit.met
    np.copyto(depth, hit.distance, where=nearer)
    np.copyto(codes, hit.faces + np.int16(number * FACES), where=nearer)


def edges(codes: Codes) -> Indices:
    """Places in the flattened picture of pixels with a neighbour of another thing or another face, row by row."""
    found = np.zeros(codes.shape, np.bool_)
    across, down = codes[:, 1:] != codes[:, :-1], codes[1:] != codes[:-1]
    found[:, 1:] = across
    found[:, :-1] |= across
    found[1:] |= down
    found[:-1] |= down
    return np.flatnonzero(found)


def look_closely(bodies: Sequence[Body], camera: Camera, at: Indices) -> Codes:
    """Follows as many rays as `SAMPLES` through each of some pixels, which are in order: (samples, pixels)."""
    offsets = np.array(SAMPLES, np.float32)[:, :, None]
    columns, rows = (axis.take(at) for axis in middles(camera.side))
    x, y, z = camera.rays(columns + offsets[:, 0], rows + offsets[:, 1])
    depth, codes = np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, np.int16)
    for number, body in enumerate(bodies, 1):
        near = slice(None), slice(*np.searchsorted(rows, (body.window[0].start, body.window[0].stop)))
        _keep_nearest(depth[near], codes[near], body.hit(camera, (x[near], y[near], z[near])), number)
    return codes


@dataclass(frozen=True, slots=True)
class Seen:
    """Where each thing is seen.

    Attributes:
        at: Places in the flattened picture, thing by thing and in order for each.
        parts: Which of these are a thing's.
    """

    at: Indices
    parts: tuple[slice, ...]


def seen(sight: Sight) -> Seen:
    """Collects the pixels of every thing."""
    at = np.flatnonzero(sight.codes != 0)
    numbers = sight.codes.take(at) // np.int16(FACES)
    ends = np.cumsum(np.bincount(numbers, minlength=len(sight.whole) + 1)).tolist()
    return Seen(at[np.argsort(numbers, kind="stable")], tuple(map(slice, ends[:-1], ends[1:])))


def extent(at: Indices, side: int) -> Box | None:
    """The box of some places in a picture, which are in order; None if there are none."""
    if not len(at):
        return None
    columns, half = middles(side)[0].take(at), 0.5
    return float(columns.min()) - half, float(at[0] // side), float(columns.max()) + half, float(at[-1] // side + 1)


@cache
def middles(side: int) -> tuple[Plane, Plane]:
    """x and y of the middles of all pixels of a flattened picture."""
    axis = np.arange(side, dtype=np.float32) + np.float32(0.5)
    x, y = np.tile(axis, side), np.repeat(axis, side)
    x.flags.writeable = y.flags.writeable = False
    return x, y
