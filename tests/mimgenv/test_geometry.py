"""Boxes: overlap, and the way between what an agent writes in a box frame and pixels of the original image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimgenv.geometry import BOX_FRAMES, View, area, intersection, iou, smart_resize
from mimgenv.types import Box

EIGHTHS = st.integers(0, 8000).map(lambda n: n / 8)  # exact in binary, so that shifts lose nothing
SIDES = st.integers(1, 8000).map(lambda n: n / 8)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(EIGHTHS), draw(EIGHTHS)
    return x, y, x + draw(SIDES), y + draw(SIDES)


def view(width: int, height: int, region: Box | None = None) -> View:
    return View(np.zeros((height, width, 3), np.uint8), 1, region or (0.0, 0.0, float(width), float(height)))


# Overlap


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((3, 4, 5, 6), (3, 4, 5, 6), 1.0),
    ],
)
def test_iou_is_the_common_area_over_the_area_of_both(a: Box, b: Box, expected: float) -> None:
    assert iou(a, b) == pytest.approx(expected, abs=1e-15)


def test_iou_has_no_plus_one_pixel() -> None:
    assert iou((0, 0, 1, 1), (0, 0, 2, 1)) == 0.5  # with "+1" it would be 4/6


@pytest.mark.parametrize("empty", [(1, 1, 1, 5), (1, 1, 5, 1), (5, 5, 1, 1), (1, 1, 1, 1)])
def test_an_empty_or_inverted_box_has_no_area_and_overlaps_nothing(empty: Box) -> None:
    assert area(empty) == 0.0
    assert iou(empty, (0, 0, 9, 9)) == iou((0, 0, 9, 9), empty) == iou(empty, empty) == 0.0


def test_a_box_inverted_on_both_axes_does_not_get_a_positive_area() -> None:
    assert area((5, 5, 1, 1)) == 0.0


@given(boxes(), boxes())
def test_iou_is_symmetric_and_from_0_to_1_and_1_only_for_equal_boxes(a: Box, b: Box) -> None:
    value = iou(a, b)
    assert value == iou(b, a)
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (a == b)


@given(boxes(), boxes(), EIGHTHS, EIGHTHS)
def test_iou_does_not_change_when_both_boxes_move(a: Box, b: Box, x: float, y: float) -> None:
    def moved(box: Box) -> Box:
        return box[0] + x, box[1] + y, box[2] + x, box[3] + y

    assert iou(moved(a), moved(b)) == iou(a, b)


@given(boxes(), boxes())
def test_an_intersection_lies_in_both_boxes_or_is_empty(a: Box, b: Box) -> None:
    common = intersection(a, b)
    assert area(common) == 0 or intersection(common, a) == intersection(common, b) == common
    assert (area(common) > 0) == (iou(a, b) > 0)


# The size that Qwen's image processors give an image


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((428, 640), (420, 644)),
        ((84, 84), (84, 84)),
        ((224, 448), (224, 448)),
        ((20, 20), (56, 56)),  # below the least number of pixels: enlarged
        ((10, 60), (28, 140)),  # the same, with the aspect kept as far as whole tiles allow
        ((10, 200), (28, 252)),  # a side that rounds to nothing counts as nothing
        ((3000, 5000), (2772, 4620)),  # above the greatest: 99 and 165 times 28
    ],
)
def test_smart_resize_gives_the_sizes_of_qwen2_vls_processor(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert smart_resize(*size) == resized


@given(st.integers(28, 3000), st.integers(28, 3000), st.integers(4, 400))
def test_resized_sides_are_multiples_of_28_and_within_the_greatest_number_of_pixels(
    height: int, width: int, tiles: int
) -> None:
    rows, columns = smart_resize(height, width, min_pixels=28 * 28, max_pixels=tiles * 28 * 28)
    assert rows % 28 == columns % 28 == 0
    assert min(rows, columns) >= 28
    # A side is never less than 28, so that very long images may stay above the bound.
    assert rows * columns <= tiles * 28 * 28 or min(rows, columns) == 28


def test_the_bounds_of_smart_resize_change_the_size() -> None:
    assert smart_resize(280, 280, max_pixels=140 * 140) == (140, 140)
    assert smart_resize(28, 28, min_pixels=28 * 28) == (28, 28)
    assert smart_resize(28, 28) == (56, 56)
    assert smart_resize(64, 96, factor=32) == (64, 96)


# Box frames


def test_the_reference_conversion_to_qwen2_5_coordinates_is_reproduced() -> None:
    """Image 640 x 428, absolute box to the 644 x 420 image that Qwen2.5-VL sees."""
    written = view(640, 428).from_original((146, 137, 615, 415), "qwen2_5_resized")
    assert tuple(round(v) for v in written) == (147, 134, 619, 407)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("pixel", (100, 50, 200, 100)),
        ("norm1000", (250, 250, 500, 500)),
        ("unit", (0.25, 0.25, 0.5, 0.5)),
        ("qwen2_5_resized", (98, 49, 196, 98)),  # 400 x 200 is resized to 392 x 196
    ],
)
def test_each_box_frame_writes_the_same_box_in_its_own_numbers(frame: str, expected: Box) -> None:
    box = (100.0, 50.0, 200.0, 100.0)
    shown = view(400, 200)
    assert shown.from_original(box, frame) == pytest.approx(expected)
    assert shown.to_original(expected, frame) == pytest.approx(box)


def test_every_declared_box_frame_differs_from_every_other() -> None:
    extents = {frame: view(400, 200).extent(frame) for frame in BOX_FRAMES}
    assert extents == {
        "pixel": (400.0, 200.0),
        "norm1000": (1000.0, 1000.0),
        "unit": (1.0, 1.0),
        "qwen2_5_resized": (392.0, 196.0),
    }


@given(st.sampled_from(sorted(BOX_FRAMES)), boxes(), boxes(), st.integers(28, 600), st.integers(28, 600), st.booleans())
def test_a_box_goes_to_every_frame_and_back(
    frame: str, box: Box, region: Box, width: int, height: int, there_first: bool
) -> None:
    shown = view(width, height, region)
    if there_first:
        back = shown.to_original(shown.from_original(box, frame), frame)
    else:
        back = shown.from_original(shown.to_original(box, frame), frame)
    assert back == pytest.approx(box, rel=1e-6, abs=1e-6 * max(map(abs, region)) / min(shown.extent(frame)))


def test_a_view_of_a_region_maps_its_corners_to_the_corners_of_the_region() -> None:
    zoomed = view(84, 84, (40.0, 60.0, 61.0, 102.0))
    assert zoomed.to_original((0, 0, 84, 84), "pixel") == (40.0, 60.0, 61.0, 102.0)
    assert zoomed.to_original((0, 42, 42, 84), "pixel") == (40.0, 81.0, 50.5, 102.0)
    assert zoomed.from_original((40.0, 60.0, 61.0, 102.0), "norm1000") == (0.0, 0.0, 1000.0, 1000.0)


@pytest.mark.parametrize(("frame", "width", "height"), [("pixel", 400, 200), ("norm1000", 1000, 1000), ("unit", 1, 1)])
def test_clipping_cuts_a_box_to_the_image_in_its_frame(frame: str, width: float, height: float) -> None:
    assert view(400, 200).clip((-5, -7, 5000, 6000), frame) == (0, 0, width, height)


def test_clipping_a_box_outside_the_image_leaves_nothing() -> None:
    assert area(view(400, 200).clip((400, 0, 500, 100), "pixel")) == 0
    assert area(view(400, 200).clip((-20, 0, 0, 100), "pixel")) == 0


def test_a_view_tells_width_before_height() -> None:
    assert view(30, 20).size == (30, 20)
