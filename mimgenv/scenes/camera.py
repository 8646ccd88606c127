"""A pinhole camera above the table: where a point of the world lands in the picture, and what a pixel looks along.

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
"""x, y and z of one direction per ray; not of unit length."""

FOCAL: Final = 1.2
"""Focal length in picture sides: 45 degrees of view."""

_NEAREST: Final = 0.05  # Points closer than this, or behind, count as this far in front: finite, if not exact.
_CORNERS: Final = 12


def sine_cosine(angle: float) -> tuple[float, float]:
    """Sine and cosine of an angle in radians, to nine digits.

    C libraries differ in the last bit of both; rounding hides it.
    """
    return round(math.sin(angle), 9), round(math.cos(angle), 9)


# Corners of a polygon around the unit circle, so that nothing round sticks out between them.
_AROUND: Final = tuple(
    (cosine / math.cos(math.pi / _CORNERS), sine / math.cos(math.pi / _CORNERS))
    for sine, cosine in (sine_cosine(2 * math.pi * corner / _CORNERS) for corner in range(_CORNERS))
)


@dataclass(frozen=True, slots=True)
class Camera:
    """A square picture and the frame it is taken from.

    Attributes:
        origin: Where the camera is.
        right: Unit vector towards growing pixel x.
        down: Unit vector towards growing pixel y.
        forward: Unit vector through the middle of the picture.
        side: Width and height of the picture in pixels.
    """

    origin: Vector
    right: Vector
    down: Vector
    forward: Vector
    side: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return FOCAL * self.side

    def project(self, point: Vector) -> tuple[float, float]:
        """Where a point lands, x and y in pixels; pixel (0, 0) covers [0, 1) x [0, 1)."""
        u, v, depth = self._seen_from(point)
        scale, middle = self.focal / max(_NEAREST, depth), self.side / 2
        return middle + scale * u, middle + scale * v

    def rays(self, xs: Plane, ys: Plane) -> Rays:
        """Directions through picture coordinates `xs`, `ys`, in pixels: a pixel's middle is at a half."""
        u, v = (xs - self.side / 2) * (1 / self.focal), (ys - self.side / 2) * (1 / self.focal)
        x, y, z = (
            (forward + u * right + v * down).astype(np.float32)
            for forward, right, down in zip(self.forward, self.right, self.down, strict=True)
        )
        return x, y, z

    def extent(self, rounds: tuple[tuple[Vector, float], ...]) -> Box:
        """A box in pixels that holds the hull of some level discs, each a centre and a radius.

        Two discs are an upright cylinder. The box is loose by at most four per cent and may leave the picture.
        """
        (ex, ey, _), (sx, sy, _), (fx, fy, _) = self.right, self.down, self.forward
        xs, ys = [], []
        for centre, radius in rounds:
            u, v, depth = self._seen_from(centre)
            for a, b in _AROUND:
                scale = self.focal / max(_NEAREST, depth + radius * (a * fx + b * fy))
                xs.append(scale * (u + radius * (a * ex + b * ey)))
                ys.append(scale * (v + radius * (a * sx + b * sy)))
        middle = self.side / 2
        return middle + min(xs), middle + min(ys), middle + max(xs), middle + max(ys)

    def standing(self, position: tuple[float, float], size: float) -> Box:
        """A box in pixels that holds whatever is inside an upright cylinder of diameter and height `size`."""
        (x, y), radius = position, size / 2
        return self.extent((((x, y, 0.0), radius), ((x, y, size), radius)))

    def _seen_from(self, point: Vector) -> Vector:
        """A point in the camera's own axes: right, down and forward of it."""
        x, y, z = self.origin
        offset = point[0] - x, point[1] - y, point[2] - z
        return _dot(offset, self.right), _dot(offset, self.down), _dot(offset, self.forward)


def look_at(target: Vector, azimuth: float, elevation: float, distance: float, side: int) -> Camera:
    """A level camera that sees `target` in the middle of its picture.

    Args:
        target: Any point of the world.
        azimuth: Direction from the target to the camera about the vertical axis, in radians; at -pi/2 the picture's x
            is the world's x and the world's y leads away.
        elevation: How high the camera stands above the target, in radians, below pi/2.
        distance: From the target to the camera.
        side: Width and height of the picture in pixels.
    """
    (sine, cosine), (rise, reach) = sine_cosine(azimuth), sine_cosine(elevation)
    forward = (-reach * cosine, -reach * sine, -rise)
    right = (-sine, cosine, 0.0)
    down = (forward[1] * right[2] - forward[2] * right[1], forward[2] * right[0] - forward[0] * right[2], -reach)
    x, y, z = (a - distance * b for a, b in zip(target, forward, strict=True))
    return Camera((x, y, z), right, down, forward, side)


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
