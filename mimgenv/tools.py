"""Visual tools: each takes numbered images and hands back a new one.

To add a tool, write a class with `name`, `parameters`, `description` and `__call__`, and pass an instance in the
environment's `tools`. A tool takes image numbers, never paths, and every image it returns is a `View`, so that boxes
on it map back to the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from mimgenv.errors import TurnError
from mimgenv.geometry import MAX_PIXELS, View, area, smart_resize
from mimgenv.parsing import read_box, read_image, read_label
from mimgenv.types import Box, Image

SIDE_MULTIPLE: Final = 28
"""Sides of shown images are multiples of this, so that no Qwen2-VL or Qwen2.5-VL image processor resizes them."""

MIN_CROP: Final = 4.0
"""Pixels of the original: a smaller region is widened to this before it is enlarged."""


def resize(pixels: Image, width: int, height: int) -> Image:
    """Resizes (H, W, 3) uint8; averages when shrinking, bicubic when enlarging. Same bytes on every CPU."""
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width):
        return pixels.copy()
    picture = PillowImage.fromarray(pixels)
    if rows % height == 0 and columns % width == 0:  # whole pixels to one: the same average, four times as fast
        return np.array(picture.reduce((columns // width, rows // height)))
    shrinks = height <= rows and width <= columns
    method = PillowImage.Resampling.BOX if shrinks else PillowImage.Resampling.BICUBIC
    return np.array(picture.resize((width, height), method))


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may see: the images so far, the full-resolution originals, and the box frame.

    Attributes:
        views: Image-1 first.
        originals: The task's images at full resolution.
        box_frame: How the agent writes boxes.
        max_pixels: An image with more is shown smaller.
    """

    views: Sequence[View]
    originals: Sequence[Image]
    box_frame: str
    max_pixels: int = MAX_PIXELS

    def view(self, number: object) -> View:
        """The image an agent named.

        Raises:
            TurnError: `bad_image_index`.
        """
        index = read_image(number)
        if not 1 <= index <= len(self.views):
            raise TurnError("bad_image_index", f"Images are numbered from 1 to {len(self.views)}.")
        return self.views[index - 1]

    def box(self, view: View, written: object) -> Box:
        """A box an agent wrote, cut to the image, in the box frame.

        Raises:
            TurnError: `bad_box`, also if it lies outside the image.
        """
        box = view.clip(read_box(written), self.box_frame)
        if area(box) <= 0:
            raise TurnError("bad_box")
        return box


@runtime_checkable
class Tool(Protocol):
    """One visual tool.

    Attributes:
        name: What the agent calls it.
        parameters: The arguments in order; each one of `image`, `bbox_2d`, `label`.
        description: What it does and when to use it; part of the instructions.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  described above
    @property
    def parameters(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        """Carries out a call whose keys are exactly `parameters`.

        Raises:
            TurnError: If a value is bad.
        """
        ...


class VisualReflection:
    """Puts an image before the agent again."""

    name = "visual_reflection"
    parameters = ("image",)
    description = "Shows an image again. Use it when your reasoning has become long and you want to look anew."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        """The same view, as a new image."""
        view = context.view(arguments["image"])
        return View(view.pixels.copy(), view.image, view.region)


class Zoom:
    """Returns a region at the resolution of the original, enlarged."""

    name = "zoom"
    parameters = ("image", "bbox_2d")
    description = "Enlarges a region of an image, at full resolution. Use it when what you look for is small."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        """The region, sides in multiples of 28.

        Its longer side is as long as the shown image's longer side, as far as `max_pixels` allows.
        """
        view = context.view(arguments["image"])
        box = context.box(view, arguments["bbox_2d"])
        original = context.originals[view.image - 1]
        x1, y1, x2, y2 = whole_pixels(view.to_original(box, context.box_frame), original)
        scale = max(view.size) / max(x2 - x1, y2 - y1)
        height, width = (max(SIDE_MULTIPLE, side * scale) for side in (y2 - y1, x2 - x1))
        rows, columns = smart_resize(height, width, min_pixels=SIDE_MULTIPLE**2, max_pixels=context.max_pixels)
        pixels = resize(original[y1:y2, x1:x2], columns, rows)
        return View(pixels, view.image, (float(x1), float(y1), float(x2), float(y2)))


def whole_pixels(box: Box, original: Image) -> tuple[int, int, int, int]:
    """A region in whole pixels inside the original, at least `MIN_CROP` wide and high."""
    sides = []
    for low, high, limit in ((box[0], box[2], original.shape[1]), (box[1], box[3], original.shape[0])):
        half = max(high - low, MIN_CROP) / 2
        middle = min(max((low + high) / 2, half), limit - half)
        sides.append((max(0, round(middle - half)), min(limit, round(middle + half))))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


class VisualConfirmation:
    """Returns an image with a box drawn on it, for a last look before answering."""

    name = "visual_confirmation"
    parameters = ("image", "bbox_2d", "label")
    description = "Shows an image with your box drawn on it. Use it before you answer, to confirm the box."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        """The view with the box outlined in red over white."""
        view = context.view(arguments["image"])
        read_label(arguments["label"])
        box = context.box(view, arguments["bbox_2d"])
        width, height = view.extent(context.box_frame)
        across, down = view.size
        corners = (box[0] * across / width, box[1] * down / height, box[2] * across / width, box[3] * down / height)
        picture = PillowImage.fromarray(view.pixels)
        _outline(picture, corners)
        return View(np.array(picture), view.image, view.region)


def _outline(picture: PillowImage.Image, box: Box) -> None:
    draw = ImageDraw.Draw(picture)
    x1, y1 = int(box[0]), int(box[1])
    x2, y2 = max(x1, int(box[2]) - 1), max(y1, int(box[3]) - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(255, 255, 255))
    draw.rectangle((x1, y1, x2, y2), outline=(255, 0, 0))


TOOLS: Final[dict[str, Callable[[], Tool]]] = {
    "visual_reflection": VisualReflection,
    "visual_confirmation": VisualConfirmation,
    "zoom": Zoom,
}


def call_tool(tools: dict[str, Tool], context: ToolContext, name: str, arguments: dict[str, Any]) -> View:
    """Carries out a call by name.

    Raises:
        TurnError: `unknown_tool`, `bad_arguments`, or what the tool refuses.
    """
    if name not in tools:
        raise TurnError("unknown_tool", f"Tools: {', '.join(tools) or 'none'}.")
    tool = tools[name]
    if set(arguments) != set(tool.parameters):
        raise TurnError("bad_arguments", f"{name} takes {', '.join(tool.parameters)}.")
    return tool(context, arguments)
