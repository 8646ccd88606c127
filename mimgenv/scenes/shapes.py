"""The solids of the table-top: where a ray meets each, and the outline of the shadow each casts on the floor.

Every solid of diameter d stands on the floor at the origin of its own frame, inside the upright cylinder of diameter d
and height d: placing that cylinder places any of them. Knows nothing of colour, of pictures or of other solids. Array
maths is float32 in + - * / sqrt and comparisons, bit for bit the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.camera import Plane, Rays, Vector, sine_cosine

MISS: Final = np.float32(np.inf)

Number = TypeVar("Number", float, Plane)


@dataclass(frozen=True, slots=True)
class Hit:
    """What rays meet first.

    Attributes:
        distance: In lengths of the ray's direction; `MISS` where it meets nothing.
        normal: Unit vectors out of the surface; of no meaning where the ray missed.
        face: Which smooth part of the surface it is, from 0; creases lie where it changes.
    """

    distance: Plane
    normal: Rays
    face: npt.NDArray[np.int16]


class Solid(Protocol):
    """One shape at one size and turn, in its own frame."""

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """Follows rays from `origin`, which lies outside and above the solid."""
        ...

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """Distance from floor points to the edge of the shadow, in world units and negative inside it.

        Args:
            x: Floor coordinates.
            y: Floor coordinates, of the same shape.
            slant: How far the shadow of a point moves per unit of its height; (0, 0) gives the footprint.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sphere:
    """A ball lying on the floor."""

    radius: float

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`."""
        (x, y, z), (dx, dy, dz) = (origin[0], origin[1], origin[2] - self.radius), rays
        a, b = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz
        under_root = b * b - a * (x * x + y * y + z * z - self.radius * self.radius)
        distance = np.where(under_root > 0, (-b - np.sqrt(np.maximum(under_root, 0))) / a, MISS)
        reached = np.where(under_root > 0, distance, 0)
        scale = 1 / self.radius
        normal = (x + dx * reached) * scale, (y + dy * reached) * scale, (z + dz * reached) * scale
        return Hit(distance, normal, np.zeros(a.shape, np.int16))

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; measured across the light, where the outline is a circle."""
        length = math.sqrt(slant[0] * slant[0] + slant[1] * slant[1] + 1)
        along = (x * slant[0] + y * slant[1] + self.radius) * (1 / length)
        across = x * x + y * y + self.radius * self.radius - along * along
        distance: Plane = np.sqrt(np.maximum(across, 0)) - self.radius
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

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`; faces are 0 and 1 on the sides and 2 on top."""
        ox, oy = self._turned(origin[0], origin[1])
        dx, dy = self._turned(rays[0], rays[1])
        slabs = (ox, dx, -self.half), (oy, dy, -self.half), (origin[2], rays[2], 0.0)
        nears, fars = zip(*(_slab(o, d, low, low + 2 * self.half) for o, d, low in slabs), strict=True)
        near = np.maximum(np.maximum(nears[0], nears[1]), nears[2])
        met = (near < np.minimum(np.minimum(fars[0], fars[1]), fars[2])) & (near > 0)
        face = np.where(nears[2] == near, 2, np.where(nears[1] == near, 1, 0)).astype(np.int16)
        east, north = math.copysign(1, ox), math.copysign(1, oy)
        normals = np.array(
            [[east * self.cosine, -north * self.sine, 0], [east * self.sine, north * self.cosine, 0], [0, 0, 1]],
            np.float32,
        )
        return Hit(np.where(met, near, MISS), (normals[0][face], normals[1][face], normals[2][face]), face)

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; the hull of two squares is a hexagon with three pairs of parallel sides."""
        x, y = self._turned(x, y)
        east, north = (2 * self.half * part for part in self._turned(slant[0], slant[1]))
        distance = np.maximum(abs(x - east / 2) - abs(east) / 2, abs(y - north / 2) - abs(north) / 2) - self.half
        reach = math.sqrt(east * east + north * north)
        if reach == 0:
            return distance
        east, north = east / reach, north / reach
        return np.maximum(distance, abs(x * north - y * east) - self.half * (abs(east) + abs(north)))

    def _turned(self, x: Number, y: Number) -> tuple[Number, Number]:
        """World x and y in the cube's own axes."""
        return x * self.cosine + y * self.sine, y * self.cosine - x * self.sine


@dataclass(frozen=True, slots=True)
class Cylinder:
    """An upright cylinder."""

    radius: float
    height: float

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`; face 0 is round, 1 is the top."""
        (x, y, z), (dx, dy, dz) = origin, rays
        a, b, c = dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - self.radius * self.radius
        under_root = b * b - a * c
        side = (-b - np.sqrt(np.maximum(under_root, 0))) / a
        height = z + dz * side
        on_side = (under_root > 0) & (height >= 0) & (height <= self.height)
        top = (self.height - z) / np.minimum(dz, -1e-6)
        on_top = c + (2 * b + a * top) * top <= 0
        distance = np.where(on_top, top, np.where(on_side, side, MISS))
        reached, round_ = np.where(on_side, side, 0), np.where(on_top, np.float32(0), np.float32(1 / self.radius))
        normal = (x + dx * reached) * round_, (y + dy * reached) * round_, on_top.astype(np.float32)
        return Hit(distance, normal, on_top.astype(np.int16))

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; a disc swept along a line."""
        east, north = slant[0] * self.height, slant[1] * self.height
        share = np.clip((x * east + y * north) * (1 / max(east * east + north * north, 1e-9)), 0, 1)
        x, y = x - share * east, y - share * north
        distance: Plane = np.sqrt(x * x + y * y) - self.radius
        return distance


@dataclass(frozen=True, slots=True)
class Cone:
    """An upright cone; its base is never seen."""

    radius: float
    height: float

    def hit(self, origin: Vector, rays: Rays) -> Hit:
        """See `Solid`."""
        (x, y, z), (dx, dy, dz) = (origin[0], origin[1], origin[2] - self.height), rays
        slope = self.radius / self.height
        steep = slope * slope
        a, b = dx * dx + dy * dy - steep * (dz * dz), x * dx + y * dy - (steep * z) * dz
        a = np.where(abs(a) < 1e-6, np.float32(1e-6), a)
        under_root = b * b - a * (x * x + y * y - steep * z * z)
        root = np.sqrt(np.maximum(under_root, 0))
        # The equation is that of a double cone: the nearer of its two roots may lie on the half above the tip.
        one, other = (-b - root) / a, (-b + root) / a
        near, far = np.minimum(one, other), np.maximum(one, other)
        distance = np.where(self._holds(z + dz * near, near), near, np.where(self._holds(z + dz * far, far), far, MISS))
        distance = np.where(under_root > 0, distance, MISS)
        reached = np.where(distance < MISS, distance, 0)
        east, north, level = x + dx * reached, y + dy * reached, 1 / math.sqrt(1 + steep)
        scale = level / np.maximum(np.sqrt(east * east + north * north), 1e-6)
        normal = east * scale, north * scale, np.full(a.shape, slope * level, np.float32)
        return Hit(distance, normal, np.zeros(a.shape, np.int16))

    def shadow(self, x: Plane, y: Plane, slant: tuple[float, float]) -> Plane:
        """See `Solid`; the hull of a disc and the tip's shadow."""
        east, north = slant[0] * self.height, slant[1] * self.height
        reach = math.sqrt(east * east + north * north)
        disc = np.sqrt(x * x + y * y) - self.radius
        if reach <= self.radius:
            distance: Plane = disc
            return distance
        across, along = abs(x * north - y * east) * (1 / reach), (x * east + y * north) * (1 / reach)
        sine = self.radius / reach
        cosine = math.sqrt(1 - sine * sine)
        flank = across * cosine + along * sine - self.radius
        beyond, behind = along - reach, along * cosine - across * sine
        tip = np.sqrt(across * across + beyond * beyond)
        return np.where(behind < 0, disc, np.where(behind > cosine * reach, tip, flank))

    def _holds(self, height: Plane, distance: Plane) -> npt.NDArray[np.bool_]:
        """Which points in front of the camera lie between tip and floor; heights are measured from the tip."""
        return (height <= 0) & (height >= -self.height) & (distance > 0)


def _slab(origin: float, direction: Plane, low: float, high: float) -> tuple[Plane, Plane]:
    """Distances at which rays enter and leave the space between two parallel planes."""
    inverse = 1 / np.where(abs(direction) < 1e-7, np.float32(1e-7), direction)
    one, other = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(one, other), np.maximum(one, other)


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
