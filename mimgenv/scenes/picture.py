"""What is done to a rendered frame before anyone sees it: marks, a hole, a cut; and where a part of a surface shows.

Owns everything that is drawn over a picture, for all worlds alike. Knows nothing of questions. Marks are integers and
fixed bitmaps, so the same scene gives the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Frame, Mark, Point, Scene, SolidWorld, World
from mimgenv.tools import resize
from mimgenv.types import Box, Image

RED: Final = (255, 0, 0)
WHITE: Final = (255, 255, 255)
GREY: Final = (128, 128, 128)
"""The colour of a hole."""

ENLARGED: Final = 2
"""How many times larger a cut is shown."""

RING: Final = 5
"""Radius of the ring around a point, in pixels."""

MIN_PATCH: Final = 8
"""Least side of a part of a surface that can be asked for, in pixels."""

LETTERS: Final[dict[str, tuple[int, ...]]] = {
    "A": (0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "B": (0b11110, 0b10001, 0b10001, 0b11110, 0b10001, 0b10001, 0b11110),
    "C": (0b01111, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b01111),
    "D": (0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110),
    "E": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111),
    "F": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b10000),
    "R": (0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001),
}
"""Seven rows of five pixels each."""


def picture(world: World, scene: Scene, frame: Frame) -> Image:
    """The picture an agent is shown: the frame with its marks and hole, or the cut of it, enlarged.

    Raises:
        TaskError: If a mark is on something that cannot be seen.
    """
    pixels = frame.pixels.copy()
    for mark in scene.marks:
        _draw_mark(pixels, world, scene, frame, mark)
    if scene.hole is not None:
        x1, y1, x2, y2 = map(int, scene.hole)
        pixels[y1:y2, x1:x2] = GREY
    if scene.cut is None:
        return pixels
    x1, y1, x2, y2 = map(int, scene.cut.box)
    return resize(pixels[y1:y2, x1:x2], ENLARGED * (x2 - x1), ENLARGED * (y2 - y1))


def surface(world: SolidWorld, scene: Scene) -> npt.NDArray[np.float32]:
    """`World.points` of a scene, whatever is drawn over it: a picture is asked for several spots in a row."""
    return _surface(cast(Hashable, world), replace(scene, marks=(), hole=None, cut=None))


@lru_cache(maxsize=4)
def _surface(world: SolidWorld, scene: Scene) -> npt.NDArray[np.float32]:
    return world.points(scene)


def spot(world: SolidWorld, scene: Scene, thing: int, point: Point) -> tuple[int, int] | None:
    """Column and row of the pixel in which a point of a thing's surface is seen; None where it is out of sight."""
    x, y = world.project(scene, point)
    column, row = int(np.floor(x)), int(np.floor(y))
    if not (0 <= column < world.side and 0 <= row < world.side):
        return None
    seen = surface(world, scene)[row, column].astype(np.float64)
    away = float(np.abs(seen - np.array(point)).max())  # NaN where there is no thing
    return (column, row) if away < scene.things[thing].size / 8 else None


def pixel_of(world: SolidWorld, scene: Scene, frame: Frame, thing: int, point: Point) -> tuple[int, int] | None:
    """As `spot`, in a frame that is drawn: also None where another thing is so close that it hides the point."""
    seen = spot(world, scene, thing, point)
    return seen if seen is not None and frame.instances[seen[1], seen[0]] == thing + 1 else None


def patch_box(world: SolidWorld, scene: Scene, frame: Frame, thing: int, point: Point, radius: float) -> Box | None:
    """Extent in pixels of what is seen of a thing within `radius` world units of a point.

    None where the point is out of sight, or less than `MIN_PATCH` pixels wide or high are seen.
    """
    if pixel_of(world, scene, frame, thing, point) is None:
        return None
    away = surface(world, scene).astype(np.float64) - np.array(point)
    near = (away * away).sum(-1) < radius * radius  # False where there is no thing
    rows, columns = np.nonzero(near & (frame.instances == thing + 1))
    if len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) + 1 < MIN_PATCH:
        return None
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def _draw_mark(pixels: Image, world: World, scene: Scene, frame: Frame, mark: Mark) -> None:
    box = frame.boxes[mark.thing]
    if mark.point is None:
        if box is None:
            raise TaskError("a mark is on a thing that cannot be seen")
        x1, y1, x2, y2 = map(int, box)
        _frame(pixels, (x1 - 2, y1 - 2, x2 + 2, y2 + 2))
        return
    seen = pixel_of(cast(SolidWorld, world), scene, frame, mark.thing, mark.point)
    if seen is None:
        raise TaskError("a mark is on a point that cannot be seen")
    _ring(pixels, seen)
    _write(pixels, mark.text, seen)


def _frame(pixels: Image, box: tuple[int, int, int, int]) -> None:
    """A red rectangle two pixels wide, as far as it is in the picture."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    for inner in (0, 1):
        top, bottom, left, right = y1 + inner, y2 - 1 - inner, x1 + inner, x2 - 1 - inner
        pixels[top, left : right + 1] = pixels[bottom, left : right + 1] = RED
        pixels[top : bottom + 1, left] = pixels[top : bottom + 1, right] = RED


def _ring(pixels: Image, centre: tuple[int, int]) -> None:
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    away = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    pixels[(away <= (RING + 1) ** 2) & (away > (RING - 2) ** 2)] = WHITE
    pixels[(away <= RING**2) & (away > (RING - 2) ** 2)] = RED


def _write(pixels: Image, text: str, centre: tuple[int, int]) -> None:
    """Letters in red on white beside a ring, on the side where there is room."""
    if not text:
        return
    bits = np.pad(np.concatenate([_letter(letter) for letter in text], axis=1), ((1, 1), (1, 0)))
    rows, columns = bits.shape
    height, width = pixels.shape[:2]
    left = centre[0] + RING + 2 if centre[0] + RING + 2 + columns <= width else centre[0] - RING - 1 - columns
    top = min(max(0, centre[1] - rows // 2), height - rows)
    pixels[top : top + rows, left : left + columns] = np.where(
        bits[..., None], np.array(RED, np.uint8), np.array(WHITE, np.uint8)
    )


def _letter(letter: str) -> npt.NDArray[np.bool_]:
    rows = [[bool(row >> (4 - place) & 1) for place in range(5)] + [False] for row in LETTERS[letter]]
    return np.array(rows, np.bool_)
