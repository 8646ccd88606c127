"""Rules of the camera: where points land, what pixels look along, and the boxes of discs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimgenv.scenes.tabletop.camera import NOWHERE, look_at

CAMERA = look_at((0.0, 0.0, 0.5), -1.2, 0.6, 8.0, 224)


def test_a_camera_projects_what_its_rays_look_at() -> None:
    assert CAMERA.project((0.0, 0.0, 0.5)) == pytest.approx((112, 112))
    x, y, z = CAMERA.rays(np.array([30.5], np.float32), np.array([180.5], np.float32))
    level = 7 * x, 7 * y, 7 * z + np.float32(CAMERA.height)
    point = tuple(float(axis[0]) for axis in CAMERA.world(level))
    assert CAMERA.project((point[0], point[1], point[2])) == pytest.approx((30.5, 180.5), abs=1e-3)
    assert CAMERA.project((0.0, 0.0, 2.0))[1] < 112 < CAMERA.project((1.0, 0.0, 0.5))[0]


def test_the_camera_stands_where_it_was_told() -> None:
    x, y, z = CAMERA.foot[0], CAMERA.foot[1], CAMERA.height - 0.5
    assert math.sqrt(x * x + y * y + z * z) == pytest.approx(8)
    assert math.atan2(y, x) == pytest.approx(-1.2)
    assert math.asin(z / 8) == pytest.approx(0.6)


def test_a_place_in_the_frame_is_the_same_in_the_world() -> None:
    assert CAMERA.place(*CAMERA.foot) == (0, 0)
    x, y = CAMERA.place(0.7, -1.9)
    there = CAMERA.world((np.array(x), np.array(y), np.array(0.3)))
    assert [float(axis) for axis in there] == pytest.approx([0.7, -1.9, 0.3])
    assert CAMERA.place(0, 0)[0] == pytest.approx(0, abs=1e-8)
    assert CAMERA.place(0, 0)[1] == pytest.approx(8 * math.cos(0.6))


def test_the_box_of_a_disc_is_the_extent_of_its_circle() -> None:
    for x, y, z, radius in ((0.3, 6.0, 0.0, 0.8), (-2.0, 5.0, 1.2, 1.4), (1.5, 9.0, 0.4, 0.3)):
        seen = []
        for angle in np.linspace(0, 2 * math.pi, 2001):
            level = [np.array(axis) for axis in (x + radius * math.cos(angle), y + radius * math.sin(angle), z)]
            point = [float(axis) for axis in CAMERA.world((level[0], level[1], level[2]))]
            seen.append(CAMERA.project((point[0], point[1], point[2])))
        xs, ys = zip(*seen, strict=True)
        box = CAMERA.extent((((x, y, z), radius),))
        assert box == pytest.approx((min(xs), min(ys), max(xs), max(ys)), abs=0.01)


def test_what_is_behind_the_camera_is_nowhere() -> None:
    assert CAMERA.standing((0.0, -9.0), 0.5, 1.0) == NOWHERE
