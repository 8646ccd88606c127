"""Rules of the table-top world: its vocabulary, where things stand, what a new view or light leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.scene import Frame, Kind, Scene, SolidWorld, Thing
from mimgenv.scenes.tabletop.backdrop import ground
from mimgenv.scenes.tabletop.shading import PALETTE
from mimgenv.scenes.tabletop.shapes import SOLIDS
from mimgenv.scenes.tabletop.world import COUNTS, TURNS, Tabletop
from mimgenv.tasks.draft import draw_kinds

WORLD, HELD_OUT = Tabletop(), Tabletop(held_out=True)
DIFFICULTIES = (1, 2, 3, 4, 5, None)


def _scene(seed: int, difficulty: int | None = None, world: Tabletop = WORLD) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = world.counts(difficulty)
    return world.arrange(rng, draw_kinds(rng, world.kinds, int(rng.integers(low, high + 1))), difficulty)


def _view(scene: Scene) -> tuple[float, float, float]:
    return scene.view or ground(scene.backdrop).view


def _thing(kind: Kind, x: float = 0.0, y: float = 0.0, size: float = 1.4) -> Thing:
    return Thing(0, kind, (x, y), size, 0.4)


def _clear_of_edge(frame: Frame) -> int:
    """Least distance in pixels of a box from the edge of the picture."""
    boxes = [box for box in frame.boxes if box]
    return int(min(min(x1, y1, 224 - x2, 224 - y2) for x1, y1, x2, y2 in boxes))


def test_the_table_top_is_a_world_of_solids() -> None:
    world: SolidWorld = WORLD
    assert (world.name, world.side, world.wordings) == ("tabletop", 224, None)


def test_ordinary_and_held_out_kinds_are_all_kinds_and_share_none() -> None:
    ordinary, held_out = set(WORLD.kinds), set(HELD_OUT.kinds)
    assert (len(WORLD.kinds), len(HELD_OUT.kinds)) == (48, 16)
    assert ordinary | held_out == {Kind(s, c, m) for s in SOLIDS for c in PALETTE for m in ("rubber", "metal")}
    assert not ordinary & held_out
    for colour in PALETTE:
        assert len({kind.shape for kind in held_out if kind.colour == colour}) == 1


def test_common_kinds_are_those_of_one_colour() -> None:
    for world, count in ((WORLD, 6), (HELD_OUT, 2)):
        assert [len(kinds) for kinds in world.common_kinds] == [count] * len(PALETTE)
        assert [{kind.colour for kind in kinds} for kinds in world.common_kinds] == [{colour} for colour in PALETTE]
        assert {kind for kinds in world.common_kinds for kind in kinds} == set(world.kinds)


def test_there_is_room_for_a_target_among_its_look_alikes() -> None:
    for difficulty in DIFFICULTIES:
        low, high = WORLD.look_alikes(difficulty)
        assert 0 <= low <= high < COUNTS[difficulty][0]


def test_ordinary_and_held_out_viewpoints_never_meet() -> None:
    for world, (least, most), (low, high) in ((WORLD, (0.0, 0.8), (0.5, 0.72)), (HELD_OUT, (0.95, 1.4), (0.74, 0.86))):
        rng = np.random.default_rng(0)
        for seed in range(20):
            scene = _scene(seed, 2, world)
            azimuth, elevation, _ = _view(scene)
            assert least <= abs(azimuth + math.pi / 2) <= most and low <= elevation <= high
            assert low <= _view(world.disturb(rng, scene, 4))[1] <= high
            assert low <= _view(world.look_again(rng, replace(scene, things=scene.things[:1]), 3))[1] <= high


def test_arranging_depends_on_the_generator_alone() -> None:
    assert _scene(3, 5) == _scene(3, 5) != _scene(4, 5)


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_every_arranged_thing_is_inside_large_enough_and_mostly_visible(difficulty: int) -> None:
    for seed in range(40):
        scene = _scene(seed, difficulty)
        frame = WORLD.render(scene)
        assert WORLD.sees_well(scene)
        assert _clear_of_edge(frame) >= 4
        assert min(frame.visibility) >= 0.55
        assert min(min(box[2] - box[0], box[3] - box[1]) for box in frame.boxes if box) >= 14


@pytest.mark.parametrize("shape", SOLIDS)
def test_every_thing_stays_visible_when_all_become_any_one_shape(shape: str) -> None:
    for seed in range(10):
        scene = _scene(seed, 5)
        things = tuple(replace(thing, kind=replace(thing.kind, shape=shape)) for thing in scene.things)
        frame = WORLD.render(replace(scene, things=things))
        assert min(frame.visibility) >= 0.55
        assert _clear_of_edge(frame) >= 4


def test_things_hide_each_other_only_where_the_difficulty_lets_them() -> None:
    easy, hard = ([min(WORLD.render(_scene(seed, level)).visibility) for seed in range(40)] for level in (1, 5))
    assert min(easy) == 1.0
    assert sum(visibility < 0.97 for visibility in hard) >= 10


def test_harder_scenes_have_more_and_smaller_things() -> None:
    easy, hard = ([_scene(seed, level).things for seed in range(20)] for level in (1, 5))
    assert max(map(len, easy)) < min(map(len, hard))
    assert np.mean([t.size for things in easy for t in things]) > np.mean([t.size for things in hard for t in things])


def test_things_do_not_touch() -> None:
    for seed in range(40):
        things = _scene(seed, 5).things
        for i, one in enumerate(things):
            for other in things[:i]:
                assert math.dist(one.position, other.position) > (one.size + other.size) / 2


def test_identities_count_up_from_the_first() -> None:
    scene = WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:3], 3, first_identity=5)
    assert [thing.identity for thing in scene.things] == [5, 6, 7]
    assert tuple(thing.kind for thing in scene.things) == WORLD.kinds[:3]


def test_things_of_one_kind_can_be_arranged_together() -> None:
    scene = WORLD.arrange(np.random.default_rng(0), (WORLD.kinds[0],) * 6, 4)
    assert len({thing.position for thing in scene.things}) == 6


def test_more_things_than_the_table_holds_are_refused() -> None:
    with pytest.raises(TaskError, match="no room on the table for 48 things at difficulty 3"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds, 3)


def test_a_thing_near_the_edge_or_behind_a_larger_one_is_not_seen_well() -> None:
    kind, seed = Kind("cube", "red", "metal"), _scene(0).backdrop
    azimuth = ground(seed).view[0]
    towards = math.cos(azimuth), math.sin(azimuth)
    behind = replace(_thing(kind, -0.7 * towards[0], -0.7 * towards[1]), size=0.9)
    before = replace(_thing(kind, 0.9 * towards[0], 0.9 * towards[1]), size=1.6)
    assert WORLD.sees_well(Scene((behind,), seed))
    assert not WORLD.sees_well(Scene((behind, before), seed))
    assert not WORLD.sees_well(Scene((_thing(kind, 5.0),), seed))


def test_what_is_seen_well_stays_visible_whatever_the_kinds() -> None:
    rng = np.random.default_rng(0)
    for seed in range(25):
        scene = _scene(seed, 5)
        for _ in range(2):
            kinds = [WORLD.kinds[rng.integers(len(WORLD.kinds))] for _ in scene.things]
            things = tuple(replace(thing, kind=kind) for thing, kind in zip(scene.things, kinds, strict=True))
            assert min(WORLD.render(replace(scene, things=things)).visibility) >= 0.55


def test_a_disturbed_picture_shows_the_same_things_by_another_light_with_grain() -> None:
    for difficulty in DIFFICULTIES:
        scene = _scene(5, difficulty)
        other = WORLD.disturb(np.random.default_rng(1), scene, difficulty)
        assert (other.things, other.backdrop) == (scene.things, scene.backdrop)
        assert other.light > 0 and other.noise > 0
        assert WORLD.sees_well(other)


def test_a_nudge_moves_things_by_pixels_and_by_more_where_it_is_harder() -> None:
    def shift(difficulty: int) -> float:
        ways = []
        for seed in range(12):
            scene = _scene(seed, 1)
            other = WORLD.disturb(np.random.default_rng(seed), scene, difficulty)
            feet = [(*thing.position, 0.0) for thing in scene.things]
            ways.append(max(math.dist(WORLD.project(scene, foot), WORLD.project(other, foot)) for foot in feet))
        return float(np.median(ways))

    assert 2 < shift(1) < 8 < shift(5) < 40


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_second_look_is_from_25_to_70_degrees_aside_and_shows_all(difficulty: int | None) -> None:
    low, high = TURNS[difficulty]
    assert 25 <= low < high <= 70
    for world in (WORLD, HELD_OUT):
        scene = replace(_scene(10, 2, world), noise=9, light=3)
        other = world.look_again(np.random.default_rng(2), scene, difficulty)
        turn = abs(math.degrees(_view(other)[0] - _view(scene)[0]))
        assert low <= turn <= high
        assert replace(other, view=scene.view, noise=scene.noise) == scene
        assert other.noise == 0
        assert world.sees_well(other)


def test_both_sides_are_looked_from_and_both_ways_nudged() -> None:
    scene = _scene(3, 1)
    seen = [WORLD.look_again(np.random.default_rng(seed), scene, 1) for seed in range(12)]
    nudged = [WORLD.disturb(np.random.default_rng(seed), scene, 1) for seed in range(12)]
    for views in ([_view(one) for one in seen], [_view(one) for one in nudged]):
        assert min(view[0] for view in views) < _view(scene)[0] < max(view[0] for view in views)
    assert min(_view(one)[1] for one in nudged) < _view(scene)[1] < max(_view(one)[1] for one in nudged)


def test_what_cannot_be_seen_well_cannot_be_disturbed_or_seen_again() -> None:
    scene = Scene((_thing(Kind("cube", "red", "metal"), 9.0, 9.0),), 5)
    with pytest.raises(TaskError, match="no disturbed view of 1 things at difficulty 2"):
        WORLD.disturb(np.random.default_rng(0), scene, 2)
    with pytest.raises(TaskError, match="no second view of 1 things at difficulty 2"):
        WORLD.look_again(np.random.default_rng(0), scene, 2)


def test_the_points_of_pixels_land_in_them_from_any_viewpoint() -> None:
    for seed, world in enumerate((WORLD, HELD_OUT, WORLD)):
        scene = _scene(seed, 3, world)
        for seen in (scene, world.disturb(np.random.default_rng(0), scene, 3)):
            points, instances = world.points(seen), world.render(seen).instances
            assert points.shape == (224, 224, 3) and points.dtype == np.float32
            assert np.array_equal(np.isnan(points).any(2), instances == 0)
            for row, column in np.argwhere(instances)[::97]:
                x, y, z = map(float, points[row, column])
                assert world.project(seen, (x, y, z)) == pytest.approx((column + 0.5, row + 0.5), abs=0.02)


def test_the_points_of_a_thing_lie_on_it() -> None:
    scene = _scene(4, 4)
    points, instances = WORLD.points(scene), WORLD.render(scene).instances
    for number, thing in enumerate(scene.things, 1):
        x, y, z = points[instances == number].T
        away = np.hypot(x - thing.position[0], y - thing.position[1])
        assert away.max() <= thing.size / 2 + 1e-3
        assert z.min() >= -1e-3 and z.max() <= thing.size + 1e-3


@pytest.mark.parametrize("count", [1, 4, 8, 20, 48])
def test_drawn_kinds_are_distinct_and_of_different_colours_as_far_as_there_are_any(count: int) -> None:
    for seed in range(5):
        kinds = draw_kinds(np.random.default_rng(seed), WORLD.kinds, count)
        assert len(set(kinds)) == count
        assert len({kind.colour for kind in kinds}) == min(count, 8)


def test_every_kind_is_drawn_sooner_or_later() -> None:
    rng = np.random.default_rng(0)
    assert {kind for _ in range(300) for kind in draw_kinds(rng, WORLD.kinds, 4)} == set(WORLD.kinds)


def test_more_kinds_than_there_are_are_refused() -> None:
    with pytest.raises(TaskError, match="49 kinds wanted, 48 allowed"):
        draw_kinds(np.random.default_rng(0), WORLD.kinds, 49)


def test_an_unknown_difficulty_and_a_tiny_side_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="difficulty 6 is not one of"):
        WORLD.counts(6)
    with pytest.raises(ConfigurationError, match="difficulty 0 is not one of"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:1], 0)
    with pytest.raises(ConfigurationError, match="112 pixels or more, not 84"):
        Tabletop(84)


def test_no_difficulty_mixes_the_layouts_of_all_that_hold_as_many_things() -> None:
    alone = [WORLD.arrange(np.random.default_rng(seed), WORLD.kinds[:1], None).things[0].size for seed in range(60)]
    assert min(alone) < 1.0 and max(alone) > 1.6
    many = [thing.size for seed in range(5) for thing in _many(seed)]
    assert max(many) <= 1.4


def _many(seed: int) -> tuple[Thing, ...]:
    return WORLD.arrange(np.random.default_rng(seed), WORLD.kinds[:8], None).things
