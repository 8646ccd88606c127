"""The solids of the table-top: where a ray meets each, its normals, and the outline of its shadow on the floor.

Every solid of diameter d stands on the floor at the origin of its own frame, inside the upright cylinder of diameter d
and height d: placing that cylinder places any of them. Knows nothing of colour, of pictures or of other solids. Array
maths is float32 in + - * / sqrt and comparisons, bit for bit the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.tabletop.camera import Plane, Rays, Vector, sine_cosine

Faces: TypeAlias = npt.NDArray[np.integer[Any]]
"""Which smooth part of a surface each ray meets, from 0; creases lie where it changes."""

Number = TypeVar("Number", float, Plane)


@dataclass(frozen=True, slots=True)
class Hit:
    """What rays meet.

    Attributes:
        met: Whether a ray meets the solid.
        distance: In lengths of the ray's direction; of no meaning where it misses.
        faces: As `Faces`; of no meaning where it misses.
    """

    met: npt.NDArray[np.bool_]
    distance: Plane
    faces: Faces


class Solid(Protocol):
    """One shape at one size and turn, in its own frame."""

    @property
    def hull(self) -> tuple[float, float]:
        """Radius and height of the narrowest upright cylinder around it."""
        ...

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """Follows rays downwards from `origin`, which lies outside and above the solid."""
        ...

    def normal(self, points: Rays, faces: Faces) -> Rays:
        """Unit vectors out of the surface at points of it."""
        ...

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """Distance from floor points to the edge of the shadow, in world units and negative inside it.

        Args:
            x: Floor coordinates.
            y: Floor coordinates; as `x`, or of a shape that goes with it.
            slant: How far the shadow of a point moves per unit of its height; (0, 0) gives the footprint.
        """
        ...


_ROUND: Final[Faces] = np.zeros((), np.int8)  # The faces of what has but one.


@dataclass(frozen=True, slots=True)
class Sphere:
    """A ball lying on the floor."""

    radius: float

    @property
    def hull(self) -> tuple[float, float]:
        """See `Solid`."""
        return self.radius, 2 * self.radius

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`."""
        (x, y, z), (dx, dy, dz) = (origin[0], origin[1], origin[2] - self.radius), rays
        a, b = dx * dx + (dy * dy + dz * dz), x * dx + (y * dy + z * dz)
        distance = _first_root(a, b, x * x + y * y + z * z - self.radius * self.radius)
        return Hit(distance > 0, distance, _ROUND)

    def normal(self, points: Rays, faces: Faces) -> Rays:
        """See `Solid`."""
        scale = 1 / self.radius
        return points[0] * scale, points[1] * scale, points[2] * scale - 1

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; measured across the light, where the outline is a circle."""
        scale = 1 / math.sqrt(slant[0] * slant[0] + slant[1] * slant[1] + 1)
        along = x * (slant[0] * scale) + (y * (slant[1] * scale) + self.radius * scale)
        across = x * x + (y * y + self.radius * self.radius) - along * along
        distance: Plane = np.sqrt(abs(across)) - self.radius  # Its least is 0, but for rounding.
        return distance


@dataclass(frozen=True, slots=True)
class Cube:
    """A cube on one face, turned about the vertical axis.

    Attributes:
        half: Half a side.
        sine: Of the turn.
        cosine: Of the turn.
    """

    half: float
    sine: float
    cosine: float

    @property
    def hull(self) -> tuple[float, float]:
        """See `Solid`."""
        return self.half * math.sqrt(2), 2 * self.half

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`; faces are 0 and 1 on the sides and 2 on top."""
        ox, oy = self._turned(origin[0], origin[1])
        dx, dy = self._turned(rays[0], rays[1])
        (enter_x, leave_x), (enter_y, leave_y) = _slab(ox, dx, self.half), _slab(oy, dy, self.half)
        enter_z, leave_z = (2 * self.half - origin[2]) / rays[2], -origin[2] / rays[2]
        side = np.maximum(enter_x, enter_y)
        near, far = np.maximum(side, enter_z), np.minimum(np.minimum(leave_x, leave_y), leave_z)
        faces = np.where(enter_z >= side, np.int8(2), enter_y > enter_x)
        return Hit((near < far) & (near > 0), near, faces)

    def normal(self, points: Rays, faces: Faces) -> Rays:
        """See `Solid`."""
        x, y = self._turned(points[0], points[1])
        level = (faces != 2).astype(np.float32)
        first = np.copysign(level * (faces == 0), x)
        second = np.copysign(level * (faces == 1), y)
        return first * self.cosine - second * self.sine, first * self.sine + second * self.cosine, 1 - level

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; the hull of two squares is a hexagon with three pairs of parallel sides."""
        x, y = self._turned(x, y)
        east, north = (2 * self.half * part for part in self._turned(slant[0], slant[1]))
        distance = np.maximum(
            abs(x - east / 2) - (abs(east) / 2 + self.half), abs(y - north / 2) - (abs(north) / 2 + self.half)
        )
        reach = math.sqrt(east * east + north * north)
        if reach == 0:
            return distance
        east, north = east / reach, north / reach
        return np.maximum(distance, abs(x * north - y * east) - self.half * (abs(east) + abs(north)))

    def _turned(self, x: Number, y: Number) -> tuple[Number, Number]:
        """x and y in the cube's own axes."""
        return x * self.cosine + y * self.sine, y * self.cosine - x * self.sine


@dataclass(frozen=True, slots=True)
class Cylinder:
    """An upright cylinder."""

    radius: float
    height: float

    @property
    def hull(self) -> tuple[float, float]:
        """See `Solid`."""
        return self.radius, self.height

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`; face 0 is round, 1 is the top."""
        (x, y, z), (dx, dy, dz) = origin, rays
        a, b, c = dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - self.radius * self.radius
        with np.errstate(invalid="ignore"):  # Not a number where a ray passes by: no comparison holds there.
            root = np.sqrt(b * b - a * c)
        enter, leave = c / (root - b), (root - b) / a
        top, bottom = (self.height - z) / dz, -z / dz
        near = np.maximum(enter, top)
        met = (near < np.minimum(leave, bottom)) & (near > 0)
        return Hit(met, near, (top >= enter).view(np.int8))

    def normal(self, points: Rays, faces: Faces) -> Rays:
        """See `Solid`."""
        top = faces.astype(np.float32)
        scale = (1 - top) * (1 / self.radius)
        return points[0] * scale, points[1] * scale, top

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; a disc swept along a line."""
        east, north = slant[0] * self.height, slant[1] * self.height
        scale = 1 / max(east * east + north * north, 1e-9)
        share = (x * (east * scale) + y * (north * scale)).clip(0, 1)
        x, y = x - share * east, y - share * north
        distance: Plane = np.sqrt(x * x + y * y) - self.radius
        return distance


@dataclass(frozen=True, slots=True)
class Cone:
    """An upright cone; its base is never seen."""

    radius: float
    height: float

    @property
    def hull(self) -> tuple[float, float]:
        """See `Solid`."""
        return self.radius, self.height

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`."""
        (x, y, z), (dx, dy, dz) = (origin[0], origin[1], origin[2] - self.height), rays
        steep = (self.radius / self.height) ** 2
        a, b = dx * dx + (dy * dy - steep * (dz * dz)), x * dx + (y * dy - (steep * z) * dz)
        # Of the two roots of a double cone this is the one on its lower half, whatever the sign of `a`.
        distance = _first_root(a, b, x * x + y * y - steep * (z * z))
        height = z + dz * distance
        met = (height <= 0) & (height >= -self.height) & (distance > 0)
        return Hit(met, distance, _ROUND)

    def normal(self, points: Rays, faces: Faces) -> Rays:
        """See `Solid`."""
        slope = self.radius / self.height
        level = 1 / math.sqrt(1 + slope * slope)
        scale = level / np.sqrt(points[0] * points[0] + (points[1] * points[1] + np.float32(1e-9)))
        return points[0] * scale, points[1] * scale, np.full(scale.shape, slope * level, np.float32)

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; the hull of a disc and the tip's shadow."""
        east, north = slant[0] * self.height, slant[1] * self.height
        reach = math.sqrt(east * east + north * north)
        if reach <= self.radius:
            disc: Plane = np.sqrt(x * x + y * y) - self.radius
            return disc
        east, north, sine = east / reach, north / reach, self.radius / reach
        steep = sine / math.sqrt(1 - sine * sine)
        across, along = abs(x * north - y * east), x * east + y * north
        # The outline is that of discs along the way to the tip's shadow, which shrink to nothing.
        share = ((along - across * steep) * (1 / reach)).clip(0, 1)
        along -= share * reach
        distance: Plane = np.sqrt(across * across + along * along) + (share - 1) * self.radius
        return distance


def _first_root(a: Plane, b: Plane, c: float) -> Plane:
    """The root t of a·t² + 2·b·t + c that is -c over b - sqrt(b² - a·c); not a number where there is none."""
    with np.errstate(invalid="ignore"):
        root: Plane = c / (np.sqrt(b * b - a * c) - b)
    return root


def _slab(origin: float, direction: Plane, half: float) -> tuple[Plane, Plane]:
    """Distances at which rays enter and leave the space between two parallel planes around 0."""
    inverse = 1 / (direction + np.float32(1e-12))  # Never infinite.
    middle, reach = inverse * -origin, abs(inverse) * half
    return middle - reach, middle + reach


def _cube(size: float, turn: float) -> Solid:
    sine, cosine = sine_cosine(turn)
    return Cube(size / math.sqrt(8), sine, cosine)


SOLIDS: Final[dict[str, Callable[[float, float], Solid]]] = {
    "cube": _cube,
    "sphere": lambda size, turn: Sphere(0.48 * size),
    "cylinder": lambda size, turn: Cylinder(0.38 * size, 0.8 * size),
    "cone": lambda size, turn: Cone(0.46 * size, size),
}
"""Each shape from its diameter and its turn in radians; proportions are such that all look about equally large."""
