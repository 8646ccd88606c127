"""Rules of the cut-outs: that outlines cover the pixels they should, and what the layers of one hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimgenv.scenes.sprites.cutouts import Cutout, cutout
from mimgenv.scenes.sprites.drawings import DRAWINGS, _drawing


def _cut(monkeypatch: pytest.MonkeyPatch, text: str, size: int, turn: float = 0.0) -> Cutout:
    name = f"{text} at {size}"  # a name of its own: cut-outs are cached
    monkeypatch.setitem(DRAWINGS, name, _drawing(text))
    return cutout(name, size, turn)


@pytest.mark.parametrize("turn", [0.0, 0.3, -1.1])
def test_a_square_covers_its_area_however_it_is_turned(monkeypatch: pytest.MonkeyPatch, turn: float) -> None:
    layers = _cut(monkeypatch, "body polygon 0 0  10 0  10 10  0 10", 41, turn)
    assert layers.alpha.sum() / 255 == pytest.approx(41 * 41 / 2, rel=0.003)  # its diagonal is the circle's


def test_a_pixel_that_is_covered_by_a_part_gets_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # The square of diagonal 40 reaches 14.142 pixels from the middle, which is at 21: from 6.858 to 35.142.
    alpha = _cut(monkeypatch, "body polygon 0 0  10 0  10 10  0 10", 40).alpha
    assert alpha[21].tolist() == [0] * 6 + [36] + [255] * 28 + [36] + [0] * 6
    assert np.abs(alpha[:, 21].astype(int) - alpha[21]).max() <= 8  # down a column, in steps of an eighth


def test_what_is_cut_out_is_not_covered_and_what_overlaps_is_covered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = _cut(monkeypatch, "body circle 0 0 20 without circle 0 0 10", 60).alpha
    assert ring[31, 31] == 0
    assert ring.sum() / 255 == pytest.approx(math.pi * (30**2 - 15**2), rel=0.02)
    both = _cut(monkeypatch, "body circle 0 0 20 and circle 0 0 10", 60).alpha
    assert both.max() == 255
    assert both.sum() / 255 == pytest.approx(math.pi * 30**2, rel=0.02)


def test_later_patches_lie_on_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "body circle 0 0 20\n white circle 0 0 8"
    layers = _cut(monkeypatch, text, 60)
    assert layers.tone[31, 31] < 20 and layers.grey[31, 31] > 200
    assert layers.tone[31, 6] > 200 and layers.grey[31, 6] == 0


def test_a_positive_turn_is_clockwise(monkeypatch: pytest.MonkeyPatch) -> None:
    upright, turned = cutout("key", 60, 0.0), cutout("key", 60, math.pi / 2)
    assert np.abs(np.rot90(upright.alpha, -1).astype(int) - turned.alpha).max() <= 40


@pytest.mark.parametrize("shape", DRAWINGS)
def test_every_patch_of_a_drawing_can_be_told_at_a_usual_size(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cutout(shape, 84, 0.0)
    for number in range(len(DRAWINGS[shape])):
        rest = tuple(patch for i, patch in enumerate(DRAWINGS[shape]) if i != number)
        monkeypatch.setitem(DRAWINGS, f"{shape} but {number}", rest)
        without = cutout(f"{shape} but {number}", 84, 0.0)
        change = sum(
            np.abs(getattr(whole, layer).astype(int) - getattr(without, layer)) for layer in ("alpha", "tone", "grey")
        )
        assert np.count_nonzero(change > 20) >= 3


@pytest.mark.parametrize("shape", DRAWINGS)
def test_a_cut_out_stays_in_its_circle_and_no_pixel_is_brighter_than_it_is_covered(shape: str) -> None:
    for size, turn in ((40, 0.0), (63, 0.4), (84, -0.3)):
        layers = cutout(shape, size, turn)
        rows, columns = np.nonzero(layers.alpha > 127)
        middle = (len(layers.alpha) - 1) / 2
        assert np.hypot(rows - middle, columns - middle).max() <= size / 2 + 0.5
        assert (layers.tone.astype(int) + layers.grey <= layers.alpha.astype(int) + 1).all()
        assert len(rows) > 0.15 * size * size


@pytest.mark.parametrize("shape", ["mug", "star", "key"])
def test_a_shadow_is_as_large_as_the_thing_but_soft(shape: str) -> None:
    layers = cutout(shape, 60, 0.1)
    assert layers.shadow.sum() == pytest.approx(layers.alpha.sum(), rel=0.05)
    assert np.count_nonzero(layers.shadow) > 1.3 * np.count_nonzero(layers.alpha)
    assert not layers.shadow[0].any() and not layers.shadow[:, -1].any()
    room = (len(layers.shadow) - len(layers.alpha)) // 2
    rows, columns = (np.average(np.arange(len(layers.shadow)), weights=layers.shadow.sum(axis)) for axis in (1, 0))
    own = [np.average(np.arange(len(layers.alpha)), weights=layers.alpha.sum(axis)) + room for axis in (1, 0)]
    assert (rows, columns) == pytest.approx(own, abs=0.2)


def test_a_cached_cut_out_cannot_be_written_to() -> None:
    layers = cutout("hat", 48, 0.0)
    for layer in (layers.alpha, layers.tone, layers.grey, layers.shadow):
        with pytest.raises(ValueError, match="read-only"):
            layer[0, 0] = 1
