"""What every tool promises: a sane image or a coded error, the same each time, and boxes that map back."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mimgenv.env import MAX_SIDE
from mimgenv.errors import TURN_ERRORS, TurnError
from mimgenv.geometry import BOX_FRAMES, View, iou
from mimgenv.spaces import ImageSpace
from mimgenv.tools import Tool, ToolContext, call_tool, resize
from mimgenv.types import Box, Image

SIZES: Final = ((112, 112), (168, 84), (5, 90), (1, 1))
"""Width and height of the originals that a tool is tried on; the second is shown at half its size."""

BOXES: Final = ((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.5), (0.5, 0.5, 0.501, 0.501), (0, 0.5, 1, 0.505), (-1, -1, 2, 0.5))
"""Boxes that may be called with, in shares of the image: all of it, a part, a point, a sliver, one that is cut."""

OVERLONG: Final = "<image>" * 1000

BAD_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "image": (0, -1, 99, 10**400, 1.0, True, None, "1", "Image-2", [1], float("nan")),
    "bbox_2d": ([], [0, 0, 0, 9], [9, 9, 1, 1], [0, 0, float("inf"), 9], [0, 0, 10**400, 9], "all", None, [None] * 4),
    "label": ("", " ", OVERLONG, None, 7, ["mug"]),
}
"""By parameter: what a tool need not understand, and must not crash on."""

NEAR: Final = 0.4
"""IoU from which two boxes count as the same place: a small thing is blurred by enlarging."""


def check_tool(tool: Tool) -> None:
    """Calls a tool on images of several sizes, in every box frame, with good and bad values.

    Raises:
        AssertionError: If a rule is broken; the message states it.
    """
    _is_described(tool)
    for box_frame in BOX_FRAMES:
        context = _context(box_frame)
        for arguments in _good_calls(tool, context):
            _check_good_call(tool, context, arguments)
        for arguments in _bad_calls(tool, context):
            _check_bad_call(tool, context, arguments)
        if "image" in tool.parameters:
            _check_place(tool, box_frame)


def _is_described(tool: Tool) -> None:
    assert isinstance(tool, Tool), f"a tool has a name, parameters, a description and a call: {tool!r}"
    assert re.fullmatch(r"\w+", tool.name, re.ASCII), f"a tool's name is letters, digits and underscores: {tool.name!r}"
    known = set(tool.parameters) <= set(BAD_VALUES) and len(set(tool.parameters)) == len(tool.parameters)
    assert isinstance(tool.parameters, tuple) and known, f"parameters are a tuple out of {[*BAD_VALUES]}, each once"
    plain = tool.description.strip() and not re.search(r"[<>\n]", tool.description)
    assert plain, f"a description is one line without tags: {tool.description!r}"


def _picture(width: int, height: int) -> Image:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, np.full_like(x, 7)], axis=2).astype(np.uint8)


def _context(box_frame: str, *originals: Image) -> ToolContext:
    """The originals, the second at half its size, and a part of the first as a tool would have returned it."""
    originals = originals or tuple(_picture(*size) for size in SIZES)
    views = []
    for number, original in enumerate(originals, 1):
        height, width = original.shape[:2]
        shown = resize(original, width // 2, height // 2) if number == 2 else original
        views.append(View(shown, number, (0.0, 0.0, float(width), float(height))))
    height, width = originals[0].shape[:2]
    part = originals[0][height // 4 : 3 * height // 4, : width // 2]
    views.append(View(part.copy(), 1, (0.0, height / 4, width / 2, 3 * height / 4)))
    return ToolContext(tuple(views), originals, box_frame)


def _good_calls(tool: Tool, context: ToolContext) -> Iterator[dict[str, Any]]:
    for number, view in enumerate(context.views, 1):
        width, height = view.extent(context.box_frame)
        for x1, y1, x2, y2 in BOXES:
            box = [x1 * width, y1 * height, x2 * width, y2 * height]
            values: dict[str, Any] = {"image": number, "bbox_2d": box, "label": "red mug"}
            yield {name: values[name] for name in tool.parameters}


def _bad_calls(tool: Tool, context: ToolContext) -> Iterator[dict[str, Any]]:
    good = next(_good_calls(tool, context))
    for name in tool.parameters:
        for value in BAD_VALUES[name]:
            yield good | {name: value}


def _call(tool: Tool, context: ToolContext, arguments: dict[str, Any]) -> View | TurnError:
    """What a call gives; asserts that it leaves the context and the arguments as they are."""
    before, given = copy.deepcopy(context), copy.deepcopy(arguments)
    try:
        result: View | TurnError = call_tool({tool.name: tool}, context, tool.name, arguments)
    except TurnError as error:
        result = error
    except Exception as error:
        raise AssertionError(f"a tool raises nothing but TurnError: {error!r} for {_short(given)}") from error
    assert _same(context, before), f"a tool leaves the images as they are: {tool.name} changed one"
    assert repr(arguments) == repr(given), f"a tool leaves its arguments as they are: {_short(given)}"
    return result


def _same(a: ToolContext, b: ToolContext) -> bool:
    images = [[*(view.pixels for view in each.views), *each.originals] for each in (a, b)]
    places = [[(view.image, view.region) for view in each.views] for each in (a, b)]
    return places[0] == places[1] and all(map(np.array_equal, *images)) and len(images[0]) == len(images[1])


def _short(arguments: dict[str, Any]) -> str:
    return f"{arguments!r:.200}"


def _check_good_call(tool: Tool, context: ToolContext, arguments: dict[str, Any]) -> None:
    view, again = (_carried_out(tool, context, arguments) for _ in range(2))
    _check_view(view, context)
    same = (view.image, view.region) == (again.image, again.region) and np.array_equal(view.pixels, again.pixels)
    assert same, f"the same call gives the same image: {tool.name}"


def _carried_out(tool: Tool, context: ToolContext, arguments: dict[str, Any]) -> View:
    result = _call(tool, context, dict(arguments))
    assert isinstance(result, View), f"a call that fits gives a View: {result!r} for {_short(arguments)}"
    return result


def _check_view(view: View, context: ToolContext) -> None:
    space = ImageSpace(MAX_SIDE)
    assert space.contains(view.pixels), f"a tool returns an image in {space}"
    height, width = view.pixels.shape[:2]
    most = context.max_pixels
    assert width * height <= most, f"a tool returns at most {most} pixels, not {width} x {height}"
    assert 1 <= view.image <= len(context.originals), f"a view is of an original, not of number {view.image}"
    rows, columns = context.originals[view.image - 1].shape[:2]
    x1, y1, x2, y2 = view.region
    assert 0 <= x1 < x2 <= columns and 0 <= y1 < y2 <= rows, f"a region {view.region} lies in its {columns} x {rows}"


def _check_bad_call(tool: Tool, context: ToolContext, arguments: dict[str, Any]) -> None:
    result = _call(tool, context, arguments)
    if isinstance(result, View):
        _check_view(result, context)
        return
    assert result.code in TURN_ERRORS, f"an error has a code of {[*TURN_ERRORS]}, not {result.code!r}"
    own = "<" not in result.detail and OVERLONG not in result.detail
    assert own, f"an error does not repeat the turn and holds no tags: {result.detail!r:.200}"


def _check_place(tool: Tool, box_frame: str) -> None:
    """A block is painted into the original; where the result changes must map back to where the block is."""
    plain = np.full((112, 112, 3), 40, np.uint8)
    block: Box = (70.0, 28.0, 98.0, 56.0)
    painted = plain.copy()
    painted[28:56, 70:98] = 220
    contexts = [_context(box_frame, original) for original in (plain, painted)]
    width, height = contexts[0].views[0].extent(box_frame)
    values = {"image": 1, "bbox_2d": [width / 4, 0, width, height / 2], "label": "block"}
    arguments = {name: values[name] for name in tool.parameters}
    without, view = (_carried_out(tool, context, arguments) for context in contexts)
    if without.pixels.shape != view.pixels.shape:
        return
    found = _changed(view.pixels, without.pixels)
    if found is not None:
        place = View(view.pixels, view.image, view.region).to_original(found, "pixel")
        assert iou(place, block) > NEAR, f"a box on what a tool returns maps back: {block} is found at {place}"


def _changed(a: Image, b: Image) -> Box | None:
    """The box of the pixels that differ by at least half of the largest difference; None if none does."""
    difference: npt.NDArray[np.int64] = np.abs(a.astype(np.int64) - b.astype(np.int64)).max(axis=2)
    if not difference.any():
        return None
    y, x = np.nonzero(difference * 2 >= difference.max())
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)
