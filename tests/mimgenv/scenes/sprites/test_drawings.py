"""Rules of the drawings: what a line of text stands for, and that every drawing fits its circle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mimgenv.scenes.sprites.drawings import DRAWINGS, OUTLINES, Drawing, _drawing


def _area(outline: npt.NDArray[np.float64]) -> float:
    """Positive where the outline runs clockwise on the screen."""
    x, y = outline.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _corners(drawing: Drawing) -> npt.NDArray[np.float64]:
    return np.concatenate([outline for patch in drawing for outline in patch.outlines])


@pytest.mark.parametrize("shape", DRAWINGS)
def test_a_drawing_just_fits_the_circle_and_is_in_its_middle(shape: str) -> None:
    corners = _corners(DRAWINGS[shape])
    assert np.sqrt((corners**2).sum(1)).max() == pytest.approx(1)
    assert corners.min(0) + corners.max(0) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", DRAWINGS)
def test_a_drawing_has_room_for_its_colour_and_a_paint_is_no_brighter_than_white(shape: str) -> None:
    paints = [patch.paint for patch in DRAWINGS[shape]]
    assert any(paint.tone == 1 and paint.grey == 0 for paint in paints)
    assert all(paint.tone == 1 or 255 * paint.tone + paint.grey < 254 for paint in paints)


def test_outlines_run_clockwise_and_what_is_cut_out_runs_the_other_way() -> None:
    (patch,) = _drawing("body circle 0 0 50 without polygon 0 0  0 20  20 20  20 0 and polygon 80 0  80 20  100 20")
    assert [np.sign(_area(outline)) for outline in patch.outlines] == [1, -1, 1]


def test_the_first_line_may_turn_the_whole_drawing_clockwise() -> None:
    upright, turned = _drawing("body polygon -40 0  40 0  0 90"), _drawing("tilt 90\n body polygon -40 0  40 0  0 90")
    x, y = upright[0].outlines[0].T
    assert turned[0].outlines[0] == pytest.approx(np.stack([-y, x], 1), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "numbers", "area"),
    [
        ("polygon", (0, 0, 40, 0, 40, 30), 600),
        ("panel", (-10, -20, 30, 40, 0), 2400),
        ("panel", (-10, -20, 30, 40, 10), 2400 - (4 - np.pi) * 100),
        ("circle", (5, 5, 20), np.pi * 400),
        ("ellipse", (5, 5, 20, 10, 30), np.pi * 200),
        ("line", (10, 0, 0, 60, 0), 600 + np.pi * 25),
        (
            "curve",
            (20, 0, 14.142, 14.142, 0, 20, -14.142, 14.142, -20, 0, -14.142, -14.142, 0, -20, 14.142, -14.142),
            1257,
        ),
    ],
)
def test_each_kind_of_outline_encloses_the_area_it_should(name: str, numbers: tuple[float, ...], area: float) -> None:
    assert abs(_area(OUTLINES[name](*numbers))) == pytest.approx(area, rel=0.02)


def test_a_curve_and_a_line_go_through_their_spots() -> None:
    spots = [(0.0, -46.0), (36.0, -60.0), (76.0, -38.0), (24.0, 88.0)]
    numbers = [part for spot in spots for part in spot]
    curve, line = OUTLINES["curve"](*numbers), OUTLINES["line"](2, *numbers)
    for spot in spots:
        assert np.abs(curve - spot).sum(1).min() < 1e-9
    middles = (line[:19] + line[26:45][::-1]) / 2  # 3 splines of 6 steps and the last spot, on either side
    for spot in spots:
        assert np.abs(middles - spot).sum(1).min() < 1e-9


def test_an_unknown_paint_or_outline_is_refused() -> None:
    with pytest.raises(KeyError, match="gold"):
        _drawing("gold circle 0 0 5")
    with pytest.raises(KeyError, match="blob"):
        _drawing("body blob 0 0 5")
