"""What tools show is bounded: in its sides, its pixels and its number, whatever is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimgenv.env import MAX_SIDE, MultiImageEnv
from mimgenv.errors import TurnError
from mimgenv.geometry import View
from mimgenv.testing.hostile import answer, call
from mimgenv.tools import SIDE_MULTIPLE, TOOLS, ToolContext, Zoom
from mimgenv.types import Grounding, Image, Task

SIZES = ((1, 1), (3, 2), (28, 28), (224, 224), (640, 428), (30, 900), (3000, 50), (16_384, 61))
"""Width and height of originals, odd ones among them."""


class Served:
    """A source of one task, whose images have a size each."""

    task_types = ("made",)

    def __init__(self, *sizes: tuple[int, int]) -> None:
        images = tuple(np.full((height, width, 3), 90, np.uint8) for width, height in sizes)
        truth = Grounding(1, "mug", (0.0, 0.0, 1.0, 1.0))
        self.made = Task("made:1", "made", images, "Where?", truth, "why", tuple(() for _ in images))

    def __len__(self) -> int:
        return 1

    def task(self, seed: int) -> Task:
        return self.made


def environment(*sizes: tuple[int, int], **arguments: Any) -> MultiImageEnv:
    env = MultiImageEnv(source=Served(*(sizes or ((112, 84),))), **({"max_turns": 30} | arguments))
    env.reset(seed=0)
    return env


def zoom(env: MultiImageEnv, box: Sequence[float], image: int = 1) -> str | None:
    """The error of a zoom."""
    error: str | None = env.step(call("zoom", image=image, bbox_2d=list(box)))[4]["error"]
    return error


def assert_sane(view: View, env: MultiImageEnv, longest: int) -> None:
    """The bounds of a zoom: whole tiles, at least one; as long as what it was taken from; no more than may be shown."""
    width, height = view.size
    assert width % SIDE_MULTIPLE == height % SIDE_MULTIPLE == 0
    assert min(width, height) >= SIDE_MULTIPLE
    assert max(width, height) <= min(MAX_SIDE, longest + SIDE_MULTIPLE)
    assert width * height <= max(env.max_pixels, SIDE_MULTIPLE * max(width, height))
    original = env.source.task(0).images[view.image - 1]
    x1, y1, x2, y2 = view.region
    assert 0 <= x1 < x2 <= original.shape[1]
    assert 0 <= y1 < y2 <= original.shape[0]


PARTS = {
    "all of it": (0, 0, 1, 1),
    "more than all of it": (-9, -9, 9, 9),
    "a point": (0.5, 0.5, 0.50001, 0.50001),
    "a corner": (0.999, 0.999, 1, 1),
    "a sliver across": (0, 0.5, 1, 0.5001),
    "a sliver down": (0.5, 0, 0.5001, 1),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_pixels", [28 * 28, 200 * 200, 1280 * 28 * 28])
def test_a_zoom_of_a_zoom_of_a_zoom_is_a_sane_image_whatever_the_part(
    max_pixels: int, size: tuple[int, int], part: str
) -> None:
    env = environment(size, max_pixels=max_pixels)
    longest = max(env.views[0].size)
    for _ in range(3):
        width, height = env.views[-1].size
        x1, y1, x2, y2 = PARTS[part]
        assert zoom(env, (x1 * width, y1 * height, x2 * width, y2 * height), len(env.views)) is None
        assert_sane(env.views[-1], env, longest)
    assert len(env.views) == 4


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (5, 5, 9, 5), (5, 5, 5, 5), (9, 9, 5, 5), (112, 0, 113, 9), (-5, -5, 0, 9)]
)
def test_a_zoom_of_no_area_is_a_bad_box_and_costs_no_image(box: tuple[int, ...]) -> None:
    env = environment()
    assert zoom(env, box) == "bad_box"
    assert len(env.views) == 1


def test_a_pixel_and_a_sliver_are_shown_as_large_as_can_be_and_no_larger() -> None:
    env = environment((224, 224))
    for box in ((100, 100, 101, 101), (100, 0, 101, 200), (0, 100, 200, 101), (0, 0, 224, 224)):
        assert zoom(env, box) is None
    assert [view.size for view in env.views[1:]] == [(224, 224), (28, 224), (224, 28), (224, 224)]


def test_a_square_part_of_a_long_image_has_no_more_pixels_than_may_be_shown() -> None:
    """Its longer side would otherwise be that of the image: 16 384 pixels in both directions."""
    env = environment((16_384, 61))
    context = ToolContext(env.views, env.source.task(0).images, "pixel", env.max_pixels)
    assert Zoom()(context, {"image": 1, "bbox_2d": [0, 0, 61, 61]}).size == (980, 980)
    assert 980 * 980 <= env.max_pixels < 1008 * 1008
    assert zoom(env, (0, 0, 61, 61)) is None
    assert env.views[1].size == (980, 980)


_share = st.floats(-0.5, 1.5)


@given(st.sampled_from(SIZES), st.lists(st.tuples(_share, _share, _share, _share), min_size=1, max_size=4))
def test_any_chain_of_zooms_gives_sane_images_or_bad_boxes(
    size: tuple[int, int], parts: list[tuple[float, float, float, float]]
) -> None:
    env = environment(size, max_pixels=100 * 100)
    longest = max(env.views[0].size)
    for x1, y1, x2, y2 in parts:
        width, height = env.views[-1].size
        shown = len(env.views)
        if zoom(env, (x1 * width, y1 * height, x2 * width, y2 * height), shown) is None:
            assert_sane(env.views[-1], env, longest)
        else:
            assert len(env.views) == shown


# Tools of users


class Returns:
    """A tool that returns an image of a given size, or raises."""

    name = "returns"
    parameters = ("image",)
    description = "Returns what it was made with."

    def __init__(self, made: Image | Exception) -> None:
        self.made = made

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        if isinstance(self.made, Exception):
            raise self.made
        return View(self.made, 1, (0.0, 0.0, 112.0, 84.0))


def test_an_image_of_any_tool_is_shown_smaller_where_it_has_too_many_pixels_and_maps_back() -> None:
    env = environment(tools=(Returns(np.zeros((840, 1120, 3), np.uint8)),), max_pixels=280 * 280)
    observation, *_ = env.step(call("returns", image=1))
    assert observation["images"][0].shape == (224, 308, 3)
    assert math.prod(env.views[1].size) <= 280 * 280
    env.step(answer('{"image": 2, "label": "mug", "bbox_2d": [0, 0, 154, 112]}'))
    assert env.prediction == Grounding(1, "mug", (0.0, 0.0, 56.0, 42.0))


@pytest.mark.parametrize(
    "made", [np.zeros((1, MAX_SIDE + 1, 3), np.uint8), TurnError("a_code_of_its_own")], ids=["huge", "odd"]
)
def test_a_tool_that_returns_a_huge_image_or_refuses_without_a_known_code_ends_the_episode_not_the_run(
    made: Image | Exception,
) -> None:
    _, _, terminated, truncated, info = environment(tools=(Returns(made),)).step(call("returns", image=1))
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "env_error", None)


# How many


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("max_images", [1, 2, 5])
def test_an_episode_never_has_more_images_than_its_budget(name: str, max_images: int) -> None:
    env = environment(max_images=max_images)
    values = {"image": 1, "bbox_2d": [0, 0, 9, 9], "label": "a"}
    turn = call(name, **{key: values[key] for key in TOOLS[name]().parameters})
    shown = 1
    while True:
        observation, _, _, truncated, info = env.step(turn)
        shown += len(observation["images"])
        if truncated:
            break
    assert (shown, len(env.views), info["stop"], info["budget"]["images"]) == (max_images, max_images, "image_limit", 0)


BAD_CALLS = {
    "unknown_tool": call("made_up", image=1),
    "bad_arguments": call("zoom", image=1),
    "bad_image_index": call("visual_reflection", image=7),
    "bad_box": call("zoom", image=1, bbox_2d=[9, 9, 1, 1]),
    "bad_answer": call("visual_confirmation", image=1, bbox_2d=[0, 0, 9, 9], label=""),
}


@pytest.mark.parametrize("code", BAD_CALLS)
def test_a_call_that_could_not_be_carried_out_is_an_error_even_where_no_image_is_left(code: str) -> None:
    env = environment(max_images=1, max_turns=3)
    observation, _, terminated, truncated, info = env.step(BAD_CALLS[code])
    assert (terminated, truncated, info["stop"], info["error"]) == (False, False, None, code)
    assert observation["text"].startswith(f"Error ({code})")
    assert env.step(call("visual_reflection", image=1))[4]["stop"] == "image_limit"


def test_a_call_that_could_not_be_carried_out_is_void_in_the_last_turn() -> None:
    env = environment(max_images=1, max_turns=1)
    assert env.step(BAD_CALLS["unknown_tool"])[4]["stop"] == "void"


def test_a_tool_that_fails_where_no_image_is_left_is_one_image_too_many() -> None:
    env = environment(max_images=1, tools=(Returns(ZeroDivisionError()),))
    assert env.step(call("returns", image=1))[4]["stop"] == "image_limit"
