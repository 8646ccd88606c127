"""Boxes and coordinate frames: overlap, clipping, and the way between what an agent writes and original pixels.

Inside the package a box is float xyxy in pixels of the original image. Outside it is in the one `box_frame` that the
environment declares. `View` is the bridge: one numbered image as shown, and the region of an original that it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mimgenv.types import Box, Image

BOX_FRAMES: Final[dict[str, str]] = {
    "pixel": "pixels of the image as shown",
    "norm1000": "thousandths of the image's width and height, from 0 to 1000",
    "unit": "fractions of the image's width and height, from 0 to 1",
    "qwen2_5_resized": "pixels of the image after Qwen2.5-VL's resizing to multiples of 28",
}

MAX_PIXELS: Final = 1280 * 28 * 28
"""The most pixels of a shown image, unless the environment is told another number."""


def area(box: Box) -> float:
    """Area in square pixels; 0 for an inverted or empty box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a: Box, b: Box) -> Box:
    """The common region; inverted where there is none."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 where either box is empty.

    Plain continuous coordinates, without the "+1 pixel" of some older evaluation code.
    """
    common = area(intersection(a, b))
    union = area(a) + area(b) - common
    return common / union if union > 0 else 0.0


def smart_resize(
    height: float, width: float, *, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 12_845_056
) -> tuple[int, int]:
    """The size (height, width) that Qwen2-VL's image processor gives an image: multiples of `factor`, aspect kept.

    Source: transformers, `smart_resize` of Qwen2-VL's image processor; the default bounds are those of Qwen2.5-VL's
    checkpoints.
    """
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return rows, columns


@dataclass(frozen=True, slots=True)
class View:
    """One numbered image of an episode, and where it comes from.

    Attributes:
        pixels: The image as shown, (H, W, 3) uint8.
        image: 1-based number of the original image it shows a part of.
        region: The part it shows, in pixels of that original.
    """

    pixels: Image
    image: int
    region: Box

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def extent(self, box_frame: str) -> tuple[float, float]:
        """Width and height of the whole image in `box_frame`: the largest x and y a box may hold."""
        if box_frame == "norm1000":
            return 1000.0, 1000.0
        if box_frame == "unit":
            return 1.0, 1.0
        width, height = self.size
        if box_frame == "qwen2_5_resized":
            height, width = smart_resize(height, width)
        return float(width), float(height)

    def to_original(self, box: Box, box_frame: str) -> Box:
        """Maps a box from `box_frame` of this view to pixels of the original."""
        x, y, (width, height) = self.region[0], self.region[1], self.extent(box_frame)
        sx, sy = (self.region[2] - x) / width, (self.region[3] - y) / height
        return x + box[0] * sx, y + box[1] * sy, x + box[2] * sx, y + box[3] * sy

    def from_original(self, box: Box, box_frame: str) -> Box:
        """Maps a box from pixels of the original to `box_frame` of this view; it may lie outside the view."""
        x, y, (width, height) = self.region[0], self.region[1], self.extent(box_frame)
        sx, sy = width / (self.region[2] - x), height / (self.region[3] - y)
        return (box[0] - x) * sx, (box[1] - y) * sy, (box[2] - x) * sx, (box[3] - y) * sy

    def clip(self, box: Box, box_frame: str) -> Box:
        """Cuts a box in `box_frame` to the image; empty or inverted where it lies outside."""
        width, height = self.extent(box_frame)
        return intersection(box, (0.0, 0.0, width, height))
