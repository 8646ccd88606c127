"""A pinhole camera above the table: where a point of the world lands in the picture, and what a pixel looks along.

All that is drawn is drawn in the camera's level frame: x to the right, y ahead, z up, the origin on the floor below the
camera. There a ray's x depends on its column alone and its y and z on its row alone, which saves most of the work.

Knows nothing of things, light or colour. Set-up is scalar double arithmetic; what works on arrays is float32 in + - *
only, so that the same camera gives the same bits on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.types import Box

Vector: TypeAlias = tuple[float, float, float]
"""x, y, z in world units; z is up and the floor is z = 0."""

Plane: TypeAlias = npt.NDArray[Any]
"""One float32 number per ray, of any shape. (Numpy's type stubs wrongly make float32 times float a float64.)"""

Rays: TypeAlias = tuple[Plane, Plane, Plane]
"""x, y and z of one direction or point per ray, of shapes that go together; directions are not of unit length."""

FOCAL: Final = 1.2
"""Focal length in picture sides: 45 degrees of view."""

NOWHERE: Final[Box] = (0.0, 0.0, 0.0, 0.0)
"""The extent of what is not before the camera."""

_NEAREST: Final = 0.05  # Points closer than this, or behind, count as this far in front: finite, if not exact.


def sine_cosine(angle: float) -> tuple[float, float]:
    """Sine and cosine of an angle in radians, to nine digits.

    C libraries differ in the last bit of both; rounding hides it.
    """
    return round(math.sin(angle), 9), round(math.cos(angle), 9)


@dataclass(frozen=True, slots=True)
class Camera:
    """A square picture and the level frame it is taken in.

    Attributes:
        foot: The floor's point below the camera, in the world.
        height: Of the camera above the floor.
        turn: Angle from the world's x to the frame's, in radians.
        right: The frame's x as a level unit vector of the world.
        dip: Sine and cosine of the angle by which the camera looks down.
        side: Width and height of the picture in pixels.
    """

    foot: tuple[float, float]
    height: float
    turn: float
    right: tuple[float, float]
    dip: tuple[float, float]
    side: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return FOCAL * self.side

    def turned(self, x: float, y: float) -> tuple[float, float]:
        """A level vector of the world in the camera's frame."""
        east, north = self.right
        return x * east + y * north, y * east - x * north

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the world's floor in the camera's frame."""
        return self.turned(x - self.foot[0], y - self.foot[1])

    def world(self, points: Rays) -> Rays:
        """Points of the camera's frame in the world."""
        (x, y, z), (east, north) = points, self.right
        return self.foot[0] + (x * east - y * north), self.foot[1] + (x * north + y * east), z

    def project(self, point: Vector) -> tuple[float, float]:
        """Where a point of the world lands, x and y in pixels; pixel (0, 0) covers [0, 1) x [0, 1)."""
        (x, y), (sine, cosine), below = self.place(point[0], point[1]), self.dip, self.height - point[2]
        scale, middle = self.focal / max(_NEAREST, y * cosine + below * sine), self.side / 2
        return middle + scale * x, middle + scale * (below * cosine - y * sine)

    def rays(self, xs: Plane, ys: Plane) -> Rays:
        """Directions through picture coordinates in pixels, in the camera's frame: x is as `xs`, y and z are as `ys`.

        A pixel's middle is at a half. The camera looks along rays of depth 1: a point's distance is its depth.
        """
        (sine, cosine), middle, scale = self.dip, np.float32(self.side / 2), np.float32(1 / self.focal)
        x, v = (xs - middle) * scale, (ys - middle) * scale
        return x, cosine - sine * v, -sine - cosine * v

    @property
    def picture(self) -> Rays:
        """Directions through the middles of all pixels: x as (1, side), y and z as (side, 1)."""
        middles = np.arange(self.side, dtype=np.float32) + np.float32(0.5)
        return self.rays(middles[None, :], middles[:, None])

    def extent(self, discs: tuple[tuple[Vector, float], ...]) -> Box:
        """The box in pixels that holds some level discs, each a centre in the camera's frame and a radius.

        Two discs are an upright cylinder. The box may leave the picture; it is `NOWHERE` where a disc is not before it.
        """
        (sine, cosine), xs, ys = self.dip, [], []
        for (x, y, z), radius in discs:
            below, deep, low = self.height - z, radius * cosine, radius * sine
            depth, down = y * cosine + below * sine, below * cosine - y * sine
            if depth - deep < _NEAREST:
                return NOWHERE
            # Of all k with a point of the circle at x = k · depth, the least and the greatest.
            a, b = depth * depth - deep * deep, x * depth
            root = math.sqrt(max(0.0, b * b - a * (x * x - radius * radius)))
            xs += [(b - root) / a, (b + root) / a]
            ys += [(down - low) / (depth + deep), (down + low) / (depth - deep)]
        middle, focal = self.side / 2, self.focal
        return middle + focal * min(xs), middle + focal * min(ys), middle + focal * max(xs), middle + focal * max(ys)

    def standing(self, place: tuple[float, float], radius: float, height: float) -> Box:
        """The box in pixels that holds an upright cylinder on the floor, at a place in the camera's frame."""
        x, y = place
        return self.extent((((x, y, 0.0), radius), ((x, y, height), radius)))


def look_at(target: Vector, azimuth: float, elevation: float, distance: float, side: int) -> Camera:
    """A level camera that sees `target` in the middle of its picture.

    Args:
        target: Any point of the world.
        azimuth: Direction from the target to the camera about the vertical axis, in radians; at -pi/2 the picture's x
            is the world's x and the world's y leads away.
        elevation: How high the camera stands above the target, in radians, between 0 and pi/2.
        distance: From the target to the camera.
        side: Width and height of the picture in pixels.
    """
    (sine, cosine), dip = sine_cosine(azimuth), sine_cosine(elevation)
    reach = distance * dip[1]
    foot = target[0] + reach * cosine, target[1] + reach * sine
    return Camera(foot, target[2] + distance * dip[0], azimuth + math.pi / 2, (-sine, cosine), dip, side)
