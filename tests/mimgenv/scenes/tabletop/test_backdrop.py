"""Rules of backdrops and of the stage they are painted on."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from mimgenv.scenes.scene import Scene
from mimgenv.scenes.tabletop.backdrop import HELD_OUT, SKY, SUN, backdrop, ground
from mimgenv.scenes.tabletop.floor import FLOORS, WHITE
from mimgenv.scenes.tabletop.shapes import SOLIDS
from mimgenv.scenes.tabletop.stage import doubled, floor_points, stage
from mimgenv.scenes.tabletop.world import Tabletop

WORLD = Tabletop()


def test_backdrops_differ_in_camera_light_and_floor() -> None:
    drawn = [ground(seed) for seed in range(30)]
    assert len({one.view for one in drawn}) == len({one.light for one in drawn}) == 30
    assert {one.floor.kind for one in drawn} == set(FLOORS)
    assert len({WORLD.render(Scene((), seed)).pixels.tobytes() for seed in range(6)}) == 6


@pytest.mark.parametrize("first", [0, HELD_OUT])
def test_every_light_comes_from_the_cameras_side_and_from_above(first: int) -> None:
    for seed, light in product(range(first, first + 12), range(4)):
        made = backdrop(seed, 112, light=light).light
        x, y, z = made.sun
        assert x * x + y * y + z * z == pytest.approx(1)
        assert -y > -0.1 and z > 0.6  # In the camera's frame y leads away from it.


def test_another_light_comes_from_elsewhere_and_is_tinted() -> None:
    own = backdrop(3, 112).light
    assert (own.strength, own.sky, own.tint) == (SUN, SKY, (1.0, 1.0, 1.0))
    lights = [backdrop(3, 112, light=seed).light for seed in range(1, 20)]
    for other in lights:
        turn = math.atan2(other.sun[1], other.sun[0]) - math.atan2(own.sun[1], own.sun[0])
        assert abs(math.remainder(turn, 2 * math.pi)) > 0.6
    assert len({other.tint for other in lights}) == len({other.strength for other in lights}) == 19


def test_the_camera_turns_about_a_room_that_stays() -> None:
    for azimuth in (-2.4, -1.0, 0.3):
        seen = backdrop(8, 224, (azimuth, 0.6, 8.0))
        here, there = seen.camera, ground(8)
        for wall, own in zip(seen.room.walls, there.room.walls, strict=True):
            x, y = here.place(own.distance * own.away[0], own.distance * own.away[1])
            assert x * wall.away[0] + y * wall.away[1] == pytest.approx(wall.distance)
        x, y = here.turned(*there.light.sun[:2])
        assert (x, y, there.light.sun[2]) == pytest.approx(seen.light.sun)
        u, v, tone = (np.array([part], np.float32) for part in (1.2, -0.7, 0.05))
        p, q = (np.array([part], np.float32) for part in here.place(1.2, -0.7))
        assert seen.floor.tone(p, q, tone) == pytest.approx(there.floor.tone(u, v, tone), abs=0.02)


def test_there_is_a_wall_behind_the_table_from_all_around() -> None:
    for seed, turn in product(range(5), range(12)):
        empty = stage(seed, 112, (turn * math.pi / 6, 0.6, 8.2))
        assert 0 < empty.top <= empty.bottom < 70
        assert (empty.wall[: empty.top] > 0.4).all() and not empty.floor[: empty.top].any()
        assert not empty.wall[empty.bottom :].any() and (empty.floor[empty.bottom :] > 0.1).all()


def test_a_pixel_shows_wall_or_floor_but_for_the_line_between() -> None:
    for seed in range(6):
        for turn in (0, 1):
            empty = stage(seed, 224, (-1.6 + turn, 0.6, 8.0))
            both = (empty.wall > 0) & (empty.floor > 0)
            assert 1 <= both.sum(0).max() <= 4 and both.sum(0).mean() < 2.5


def test_scenery_is_never_brighter_than_white() -> None:
    for seed, light in product((*range(8), *range(HELD_OUT, HELD_OUT + 8)), range(4)):
        scenery, empty = backdrop(seed, 112, light=light), stage(seed, 112, light=light)
        assert empty.floor.min() >= 0 and empty.floor.max() * max(scenery.floor.pale) < WHITE
        assert empty.wall.min() >= 0 and empty.wall.max() * max(scenery.room.colour) < WHITE


def test_a_ramp_twice_as_wide_is_a_ramp() -> None:
    ramp = np.arange(10, dtype=np.float32)[:, None] * 4 + np.arange(6, dtype=np.float32) * 2
    wide = doubled(ramp)
    assert wide.shape == (20, 12)
    rows, columns = np.arange(20) * 2 - 1, np.arange(12) - 0.5
    assert np.array_equal(wide[1:-1, 1:-1], (rows[:, None] + columns)[1:-1, 1:-1].astype(np.float32))


def test_all_planes_are_single_precision() -> None:
    for seed in range(12):
        scenery, empty = backdrop(seed, 112), stage(seed, 112)
        rays = scenery.camera.picture
        x, y, reach = floor_points(scenery.camera, rays[0], (rays[1], rays[2]))
        planes = [*rays, empty.floor, empty.wall, x, y, reach, scenery.floor.tone(x, y, reach)]
        for make in SOLIDS.values():
            solid = make(1.2, 0.3)
            hit = solid.hit((0.0, -8.0, 5.0), rays)
            normal = solid.normal((x, x + y, y + 0 * x), np.broadcast_to(hit.faces, x.shape))
            planes += [hit.distance, *normal, solid.shadow(x, y, scenery.light.slant)]
        assert {plane.dtype for plane in planes} == {np.dtype(np.float32)}
