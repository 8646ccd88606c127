"""Rules of what is seen where: edges, the pixels of a thing, and what a pixel's rays meet."""

from __future__ import annotations

import numpy as np

from mimgenv.scenes.scene import Kind, Thing
from mimgenv.scenes.tabletop.backdrop import backdrop
from mimgenv.scenes.tabletop.sight import SAMPLES, Sight, edges, embody, extent, look, look_closely, seen


def test_an_edge_has_a_neighbour_with_another_code() -> None:
    codes = np.zeros((6, 7), np.int16)
    codes[2:4, 2:5] = 4
    codes[3, 3] = 5
    padded = np.pad(codes, 1, mode="edge")
    expected = [
        row * 7 + column
        for row in range(6)
        for column in range(7)
        if {padded[row, column + 1], padded[row + 2, column + 1], padded[row + 1, column], padded[row + 1, column + 2]}
        != {codes[row, column]}
    ]
    assert edges(codes).tolist() == expected


def test_the_pixels_of_things_are_listed_thing_by_thing_and_in_order() -> None:
    codes = np.zeros((4, 5), np.int16)
    codes[1:3, 3] = 4
    codes[2, 0:2] = 12 + 1
    found = seen(Sight(codes, np.zeros((4, 5), np.float32), (2, 9, 2)))
    assert [found.at[part].tolist() for part in found.parts] == [[8, 13], [], [10, 11]]
    assert [extent(found.at[part], 5) for part in found.parts] == [(3, 1, 4, 3), None, (0, 2, 2, 3)]


def test_the_rays_of_a_pixel_meet_a_thing_in_about_the_share_that_it_covers() -> None:
    small, large = (backdrop(5, side).camera for side in (224, 224 * 8))
    thing = Thing(0, Kind("cylinder", "red", "metal"), (0.3, -0.2), 1.4, 0.3)
    sight = look([embody(thing, small)], small)
    at = edges(sight.codes)
    closely = look_closely([embody(thing, small)], small, at)
    assert closely.shape == (len(SAMPLES), len(at))
    share = (np.vstack((sight.codes.reshape(-1)[at], closely)) > 0).mean(0)
    fine = look([embody(thing, large)], large).codes > 0
    exact = fine.reshape(224, 8, 224, 8).mean((1, 3)).reshape(-1)[at]
    assert abs(share - exact).max() < 0.5
    assert abs(share - exact).mean() < 0.1
    assert share.mean() - exact.mean() < 0.03
