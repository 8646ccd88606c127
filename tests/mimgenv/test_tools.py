"""The visual tools: what they show, what they refuse, and that a box on what they return maps back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mimgenv
from mimgenv.env import MultiImageEnv
from mimgenv.errors import TURN_ERRORS, TurnError
from mimgenv.geometry import View
from mimgenv.tools import (
    MIN_CROP,
    SIDE_MULTIPLE,
    TOOLS,
    Tool,
    ToolContext,
    VisualReflection,
    Zoom,
    call_tool,
    resize,
)
from mimgenv.types import Box, Image

RED, WHITE = (255, 0, 0), (255, 255, 255)
ALL: dict[str, Tool] = {name: tool() for name, tool in TOOLS.items()}


def picture(width: int, height: int) -> Image:
    """Every pixel tells its own place: red is x, green is y (modulo 256), blue is 7."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, np.full_like(x, 7)], axis=2).astype(np.uint8)


def context(*originals: Image, shown: tuple[int, int] | None = None, box_frame: str = "pixel") -> ToolContext:
    views = []
    for number, original in enumerate(originals, 1):
        height, width = original.shape[:2]
        pixels = resize(original, *shown) if shown else original
        views.append(View(pixels, number, (0.0, 0.0, float(width), float(height))))
    return ToolContext(views, originals, box_frame)


def code(tool: str, of: ToolContext, **arguments: Any) -> str:
    with pytest.raises(TurnError) as caught:
        call_tool(ALL, of, tool, arguments)
    return caught.value.code


def zoom(of: ToolContext, box: list[float], image: int = 1) -> View:
    return call_tool(ALL, of, "zoom", {"image": image, "bbox_2d": box})


# Resizing


def test_shrinking_by_a_whole_factor_averages_blocks() -> None:
    pixels = np.array([[[0] * 3, [10] * 3], [[20] * 3, [30] * 3]], np.uint8)
    assert resize(pixels, 1, 1).tolist() == [[[15, 15, 15]]]


def test_resizing_to_the_same_size_gives_an_equal_copy() -> None:
    original = picture(5, 4)
    same = resize(original, 5, 4)
    np.testing.assert_array_equal(same, original)
    same[:] = 0
    np.testing.assert_array_equal(original, picture(5, 4))


@pytest.mark.parametrize(("width", "height"), [(28, 56), (56, 28), (100, 3), (5, 4), (7, 2)])
def test_resizing_gives_the_size_asked_for_and_keeps_a_plain_colour(width: int, height: int) -> None:
    plain = np.full((4, 5, 3), (9, 120, 250), np.uint8)
    resized = resize(plain, width, height)
    assert resized.shape == (height, width, 3)
    np.testing.assert_array_equal(resized, np.full((height, width, 3), (9, 120, 250)))


# Visual reflection


def test_visual_reflection_shows_the_same_pixels_again_in_an_array_of_its_own() -> None:
    of = context(picture(30, 20), picture(40, 50))
    again = call_tool(ALL, of, "visual_reflection", {"image": 2})
    assert (again.image, again.region) == (2, (0.0, 0.0, 40.0, 50.0))
    np.testing.assert_array_equal(again.pixels, picture(40, 50))
    again.pixels[:] = 0
    np.testing.assert_array_equal(of.originals[1], picture(40, 50))


# Zoom


def test_zoom_returns_native_pixels_where_the_shown_image_is_half_as_large() -> None:
    of = context(picture(168, 168), shown=(84, 84))
    view = zoom(of, [14, 28, 56, 70])
    np.testing.assert_array_equal(view.pixels, picture(168, 168)[56:140, 28:112])
    assert (view.image, view.region) == (1, (28.0, 56.0, 112.0, 140.0))


def test_zooming_a_42_by_42_region_of_the_tiny_world_returns_the_84_by_84_native_pixels() -> None:
    env = gym.make("MultiImageTinyZoom-v0")
    observation, info = env.reset(seed=3)
    native = mimgenv.load_task(info["task_id"]).images[1]
    assert (observation["images"][1].shape, native.shape) == ((84, 84, 3), (168, 168, 3))
    call = {"name": "zoom", "arguments": {"image": 2, "bbox_2d": [21, 0, 63, 42]}}
    turn = f"<think></think><tool_call>{json.dumps(call)}</tool_call>"
    observation, *_ = env.step(mimgenv.default_codec().encode_turn(turn))
    np.testing.assert_array_equal(observation["images"][0], native[0:84, 42:126])
    assert observation["text"] == "Image-3: <image>"


def test_the_longer_side_of_a_zoom_is_that_of_the_shown_image_and_the_aspect_is_kept_in_whole_tiles() -> None:
    of = context(picture(224, 112))
    assert zoom(of, [0, 0, 100, 50]).size == (224, 112)
    assert zoom(of, [0, 0, 50, 100]).size == (112, 224)
    assert zoom(of, [0, 0, 80, 50]).size == (224, 140)


def test_a_zoom_of_a_zoom_starts_from_the_original_again() -> None:
    of = context(picture(224, 224))
    first = zoom(of, [112, 112, 224, 224])
    both = ToolContext([*of.views, first], of.originals, "pixel")
    second = zoom(both, [0, 0, 56, 56], image=2)
    assert (second.image, second.region, second.size) == (1, (112.0, 112.0, 140.0, 140.0), (224, 224))
    np.testing.assert_array_equal(second.pixels, resize(picture(224, 224)[112:140, 112:140], 224, 224))


def test_a_region_beyond_the_border_is_cut_to_the_image() -> None:
    assert zoom(context(picture(224, 224)), [-50, 168, 56, 999]).region == (0.0, 168.0, 56.0, 224.0)


@pytest.mark.parametrize(
    ("box", "region"),
    [
        ([100, 100, 101, 101], (98, 98, 102, 102)),
        ([0, 0, 1, 1], (0, 0, 4, 4)),
        ([223, 223, 224, 224], (220, 220, 224, 224)),
        ([50, 10, 50.001, 90], (48, 10, 52, 90)),
    ],
)
def test_a_region_of_a_pixel_or_less_is_widened_inside_the_image(box: list[float], region: Box) -> None:
    assert zoom(context(picture(224, 224)), box).region == region


def test_a_region_of_an_image_smaller_than_the_least_crop_is_the_whole_image() -> None:
    assert MIN_CROP > 3
    assert zoom(context(picture(3, 2)), [0, 0, 1, 1]).region == (0.0, 0.0, 3.0, 2.0)


_corner = st.integers(-160, 2080).map(lambda n: n / 8)


@given(_corner, _corner, _corner, _corner, st.integers(1, 300), st.integers(1, 300))
def test_every_zoom_lies_inside_the_original_and_is_no_larger_than_a_shown_image(
    x1: float, y1: float, x2: float, y2: float, width: int, height: int
) -> None:
    of = context(np.zeros((height, width, 3), np.uint8))
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        assert code("zoom", of, image=1, bbox_2d=[x1, y1, x2, y2]) == "bad_box"
        return
    view = zoom(of, [x1, y1, x2, y2])
    left, top, right, bottom = view.region
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= min(MIN_CROP, width)
    assert bottom - top >= min(MIN_CROP, height)
    assert all(side % SIDE_MULTIPLE == 0 for side in view.size)
    assert max(view.size) <= max(width, height) + SIDE_MULTIPLE


@pytest.mark.parametrize(("frame", "box"), [("norm1000", [250, 500, 500, 1000]), ("unit", [0.25, 0.5, 0.5, 1])])
def test_a_zoom_reads_its_box_in_the_frame_of_the_environment(frame: str, box: list[float]) -> None:
    assert zoom(context(picture(224, 112), box_frame=frame), box).region == (56.0, 56.0, 112.0, 112.0)


# Visual confirmation


def confirm(of: ToolContext, box: Sequence[float]) -> View:
    return call_tool(ALL, of, "visual_confirmation", {"image": 1, "bbox_2d": list(box), "label": "mug"})


def test_visual_confirmation_draws_the_box_in_red_over_white_and_nothing_else() -> None:
    before = np.zeros((40, 40, 3), np.uint8)
    view = confirm(context(before), [10, 12, 20, 30])
    changed = {tuple(map(int, p)) for p in np.argwhere((view.pixels != 0).any(axis=2))}
    red = {(y, x) for y in range(12, 30) for x in range(10, 20) if y in (12, 29) or x in (10, 19)}
    white = {(y, x) for y in range(11, 31) for x in range(9, 21) if y in (11, 30) or x in (9, 20)}
    assert changed == red | white
    assert {tuple(view.pixels[p]) for p in red} == {RED}
    assert {tuple(view.pixels[p]) for p in white} == {WHITE}
    assert (view.image, view.region) == (1, (0.0, 0.0, 40.0, 40.0))


def test_visual_confirmation_leaves_the_image_it_draws_on_alone() -> None:
    before = picture(40, 40)
    confirm(context(before), [10, 12, 20, 30])
    np.testing.assert_array_equal(before, picture(40, 40))


@pytest.mark.parametrize(
    "box", [[0, 0, 1, 1], [39, 39, 40, 40], [0, 0, 40, 40], [5.2, 5.2, 5.3, 5.3], [-9, -9, 99, 99]]
)
def test_a_box_of_a_pixel_or_at_the_border_can_be_drawn(box: list[float]) -> None:
    view = confirm(context(picture(40, 40)), box)
    assert view.pixels.shape == (40, 40, 3)
    assert (view.pixels == RED).all(axis=2).any()


def test_a_box_is_drawn_where_it_lies_in_the_shown_image_whatever_the_frame() -> None:
    in_pixels = confirm(context(picture(400, 200)), [100, 50, 200, 100])
    for frame, box in (
        ("norm1000", [250, 250, 500, 500]),
        ("unit", [0.25, 0.25, 0.5, 0.5]),
        ("qwen2_5_resized", [98, 49, 196, 98]),
    ):
        view = confirm(context(picture(400, 200), box_frame=frame), box)
        np.testing.assert_array_equal(view.pixels, in_pixels.pixels)


def test_a_box_on_a_zoomed_image_is_drawn_on_it() -> None:
    of = context(np.zeros((224, 224, 3), np.uint8))
    crop = zoom(of, [0, 0, 112, 112])
    both = ToolContext([*of.views, crop], of.originals, "pixel")
    view = call_tool(ALL, both, "visual_confirmation", {"image": 2, "bbox_2d": [0, 0, 112, 112], "label": "a"})
    assert view.region == (0.0, 0.0, 112.0, 112.0)
    assert tuple(view.pixels[0, 0]) == tuple(view.pixels[111, 111]) == RED


# Refusals, the same for all tools


@pytest.mark.parametrize("image", [0, -1, 3, 10**400, "1", "Image-2", 1.0, True, None, [1]])
@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_that_is_not_there_is_a_bad_index(tool: str, image: object) -> None:
    arguments = {"image": image, "bbox_2d": [1, 1, 9, 9], "label": "a"}
    of = context(picture(30, 20), picture(30, 20))
    assert code(tool, of, **{name: arguments[name] for name in ALL[tool].parameters}) == "bad_image_index"


@pytest.mark.parametrize(
    "box", [[30, 0, 40, 9], [-9, 0, 0, 9], [0, 20, 9, 30], [5, 5, 5, 9], [9, 5, 5, 9], "a", None, []]
)
@pytest.mark.parametrize("tool", ["zoom", "visual_confirmation"])
def test_a_box_outside_the_image_or_without_area_is_a_bad_box(tool: str, box: object) -> None:
    arguments = {"image": 1, "bbox_2d": box, "label": "a"}
    of = context(picture(30, 20))
    assert code(tool, of, **{name: arguments[name] for name in ALL[tool].parameters}) == "bad_box"


def test_a_confirmation_without_a_label_is_a_bad_answer() -> None:
    assert (
        code("visual_confirmation", context(picture(30, 20)), image=1, bbox_2d=[1, 1, 9, 9], label="") == "bad_answer"
    )


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("zoom", {}),
        ("zoom", {"image": 1}),
        ("zoom", {"image": 1, "bbox_2d": [1, 1, 9, 9], "label": "a"}),
        ("zoom", {"image": 1, "bbox": [1, 1, 9, 9]}),
        ("visual_reflection", {"image": 1, "bbox_2d": [1, 1, 9, 9]}),
        ("visual_confirmation", {"image": 1, "bbox_2d": [1, 1, 9, 9]}),
    ],
)
def test_missing_and_further_arguments_are_bad_arguments(tool: str, arguments: dict[str, Any]) -> None:
    assert code(tool, context(picture(30, 20)), **arguments) == "bad_arguments"


@pytest.mark.parametrize("name", ["", "Zoom", "crop", "__class__", "x" * 3000])
def test_a_tool_that_is_not_there_is_unknown_and_its_name_is_not_repeated(name: str) -> None:
    with pytest.raises(TurnError) as caught:
        call_tool({"zoom": Zoom(), "look": VisualReflection()}, context(picture(30, 20)), name, {})
    assert caught.value.code == "unknown_tool"
    assert caught.value.text == f"Error (unknown_tool): {TURN_ERRORS['unknown_tool']} Tools: zoom, look."


def test_without_tools_every_tool_is_unknown() -> None:
    with pytest.raises(TurnError, match="none"):
        call_tool({}, context(picture(30, 20)), "zoom", {})


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_is_a_tool_under_its_own_name(name: str) -> None:
    assert isinstance(ALL[name], Tool)
    assert ALL[name].name == name
    assert set(ALL[name].parameters) <= {"image", "bbox_2d", "label"}


# A tool of one's own: this is all it takes.


class Mirror:
    """Shows an image mirrored."""

    name = "mirror"
    parameters = ("image",)
    description = "Shows an image mirrored."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        view = context.view(arguments["image"])
        return View(view.pixels[:, ::-1], view.image, view.region)


def test_a_tool_of_ones_own_is_one_class() -> None:
    env = gym.make("MultiImageTiny-v0", tools=("zoom", Mirror()), instructions="full")
    observation, _ = env.reset(seed=1)
    assert "- mirror(image): Shows an image mirrored." in observation["text"]
    shown = len(observation["images"])
    turn = '<think></think><tool_call>{"name": "mirror", "arguments": {"image": 1}}</tool_call>'
    answer, _, _, _, info = env.step(mimgenv.default_codec().encode_turn(turn))
    assert info["error"] is None
    assert answer["text"] == f"Image-{shown + 1}: <image>"
    np.testing.assert_array_equal(answer["images"][0], observation["images"][0][:, ::-1])
    assert isinstance(env.unwrapped, MultiImageEnv)
    assert set(env.unwrapped.tools) == {"zoom", "mirror"}
