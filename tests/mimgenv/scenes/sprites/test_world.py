"""Rules of the world of sprites: its vocabulary, that all is well seen, how things move, and what is held out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.geometry import iou
from mimgenv.scenes.scene import Kind, MovingWorld, Scene, Thing
from mimgenv.scenes.sprites.collage import PALETTE
from mimgenv.scenes.sprites.crowd import apart, inside, least_seen
from mimgenv.scenes.sprites.drawings import DRAWINGS
from mimgenv.scenes.sprites.grounds import HELD_OUT_FAMILY, ground
from mimgenv.scenes.sprites.world import COUNTS, LOOK_ALIKES, MOTIONS, NUDGES, USES, Sprites
from mimgenv.tasks.draft import draw_kinds

WORLD, HELD_OUT = Sprites(), Sprites(held_out=True)
LEVELS = [1, 2, 3, 4, 5]
GOLDEN = {1: "916e57a25725d73b", 3: "c833cecd32fbf69d", 5: "3f4f6b0c0c77f9f5"}


def _scene(seed: int, difficulty: int | None = None, world: Sprites = WORLD) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = world.counts(difficulty)
    return world.arrange(rng, draw_kinds(rng, world.kinds, int(rng.integers(low, high + 1))), difficulty)


def _paths(scenes: tuple[Scene, ...]) -> npt.NDArray[np.float64]:
    """(things, moments, 2)."""
    return np.array([[thing.position for thing in scene.things] for scene in scenes]).swapaxes(0, 1)


@pytest.mark.parametrize("difficulty", GOLDEN)
def test_what_is_arranged_moved_and_disturbed_from_a_seed_has_the_golden_bytes(difficulty: int) -> None:
    scene, digest = _scene(7, difficulty), hashlib.sha256()
    moved = WORLD.animate(np.random.default_rng(7), scene, 3, difficulty)
    for one in (*moved, WORLD.disturb(np.random.default_rng(7), scene, difficulty)):
        digest.update(WORLD.render(one).pixels.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[difficulty]


def test_sprites_are_a_moving_world() -> None:
    world: MovingWorld = WORLD
    assert (world.name, world.side, world.group_sizes, world.wordings) == ("sprites", 224, (2, 4), None)


def test_a_quarter_of_the_kinds_of_every_shape_and_colour_is_held_out() -> None:
    assert len(WORLD.kinds) == 96 and len(HELD_OUT.kinds) == 32
    assert set(WORLD.kinds) | set(HELD_OUT.kinds) == {Kind(shape, colour) for shape in DRAWINGS for colour in PALETTE}
    assert set(WORLD.kinds).isdisjoint(HELD_OUT.kinds)
    assert Kind("mug", "red") in HELD_OUT.kinds and Kind("car", "red") in WORLD.kinds
    for world, each in ((WORLD, 12), (HELD_OUT, 4)):
        assert [len(kinds) for kinds in world.common_kinds] == [each] * 8
        assert [{kind.colour for kind in kinds} for kinds in world.common_kinds] == [{colour} for colour in PALETTE]
        assert {sum(kind.shape == shape for kind in world.kinds) for shape in DRAWINGS} == {each // 2}


def test_every_shape_has_one_use_of_its_own() -> None:
    assert list(USES) == list(DRAWINGS)
    assert len(set(USES.values())) == len(USES) == 16


def test_no_use_is_told_by_its_words() -> None:
    assert all(shape not in use.split() for shape, use in USES.items())


def test_held_out_scenes_have_grounds_and_turns_that_others_never_have() -> None:
    turns: list[set[float]] = []
    for world, checked in ((WORLD, False), (HELD_OUT, True)):
        scenes = [_scene(seed, None, world) for seed in range(40)]
        assert all((ground(scene.backdrop).family == HELD_OUT_FAMILY) == checked for scene in scenes)
        turns.append({round(abs(math.degrees(thing.turn))) for scene in scenes for thing in scene.things})
    assert turns == [{0, 5, 10, 15}, {20, 25}]


def test_arranging_depends_on_the_generator_alone() -> None:
    assert _scene(3, 5) == _scene(3, 5) != _scene(4, 5)


@pytest.mark.parametrize("difficulty", [*LEVELS, None])
def test_every_arranged_thing_is_inside_and_at_least_three_fifths_of_it_are_seen(difficulty: int | None) -> None:
    for seed in range(30):
        scene = _scene(seed, difficulty)
        frame = WORLD.render(scene)
        assert WORLD.sees_well(scene)
        assert COUNTS[difficulty][0] <= len(scene.things) <= COUNTS[difficulty][1]
        assert min(frame.visibility) >= 0.6
        boxes = [box for box in frame.boxes if box]
        assert min(min(x1, y1, 224 - x2, 224 - y2) for x1, y1, x2, y2 in boxes) >= 4
        assert min(max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes) >= 30


@pytest.mark.parametrize("shape", DRAWINGS)
def test_every_thing_is_seen_well_when_all_become_any_one_shape_in_any_order(shape: str) -> None:
    for seed in range(8):
        scene = _scene(seed, 5)
        things = tuple(replace(thing, kind=Kind(shape, "red")) for thing in scene.things)
        for order in (things, things[::-1]):
            assert min(WORLD.render(replace(scene, things=order)).visibility) >= 0.6


def test_things_are_apart_up_to_difficulty_3_and_overlap_at_times_from_4_on() -> None:
    def least(difficulty: int) -> list[float]:
        return [min(WORLD.render(_scene(seed, difficulty)).visibility) for seed in range(25)]

    assert all(min(least(difficulty)) == 1 for difficulty in (1, 2, 3))
    assert all(sum(visibility < 1 for visibility in least(difficulty)) >= 3 for difficulty in (4, 5))


def test_things_are_smaller_the_harder_the_scene() -> None:
    sizes = [np.mean([thing.size for seed in range(25) for thing in _scene(seed, level).things]) for level in LEVELS]
    assert all(easier > harder for easier, harder in pairwise(sizes))
    assert 70 < sizes[0] < 80 and 48 < sizes[4] < 56


def test_no_constant_box_is_a_good_guess() -> None:
    boxes = [box for seed in range(60) for box in WORLD.render(_scene(seed)).boxes if box]
    guesses = [
        (x, y, x + side, y + side)
        for side in (50.0, 90.0, 224.0)
        for x in np.linspace(0, 224 - side, 5)
        for y in np.linspace(0, 224 - side, 5)
    ]
    assert max(float(np.mean([iou(guess, box) for box in boxes])) for guess in guesses) < 0.13


def test_no_difficulty_mixes_the_layouts_of_all_that_hold_as_many_things() -> None:
    alone = [WORLD.arrange(np.random.default_rng(seed), WORLD.kinds[:1], None).things[0].size for seed in range(60)]
    assert min(alone) < 50 and max(alone) > 76
    assert max(thing.size for thing in WORLD.arrange(np.random.default_rng(1), WORLD.kinds[:8], None).things) <= 60


def test_identities_count_up_from_the_first() -> None:
    scene = WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:3], 1, first_identity=5)
    assert [(thing.identity, thing.kind) for thing in scene.things] == list(zip((5, 6, 7), WORLD.kinds, strict=False))


def test_what_does_not_exist_or_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="difficulty 6 is not one of"):
        WORLD.counts(6)
    with pytest.raises(ConfigurationError, match="difficulty 0 is not one of"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:1], 0)
    with pytest.raises(TaskError, match="no room in the picture for 30 things at difficulty 1"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:30], 1)
    with pytest.raises(ConfigurationError, match="112 pixels or more, not 84"):
        Sprites(84)


def test_a_target_never_has_as_many_look_alikes_as_there_are_things() -> None:
    assert all(WORLD.look_alikes(level) == LOOK_ALIKES[level] for level in LOOK_ALIKES)
    assert all(LOOK_ALIKES[level][1] < COUNTS[level][0] for level in COUNTS)


def test_a_larger_picture_has_larger_things() -> None:
    large = Sprites(448)
    for seed in range(5):
        scene = _scene(seed, 5, large)
        frame = large.render(scene)
        assert frame.pixels.shape == (448, 448, 3)
        assert large.sees_well(scene) and min(frame.visibility) >= 0.6
        assert all(88 <= thing.size <= 120 for thing in scene.things)


@pytest.mark.parametrize("difficulty", [*LEVELS, None])
def test_things_move_along_smooth_ways_inside_the_picture_and_nothing_else_changes(difficulty: int | None) -> None:
    for seed in range(6):
        scene = replace(_scene(seed, difficulty), view=(3.0, -2.0, 0.97), light=4, noise=2)
        scenes = WORLD.animate(np.random.default_rng(seed), scene, 6, difficulty)
        assert len(scenes) == 6 and scenes[0] is scene
        assert all(WORLD.sees_well(one) for one in (scenes[0], scenes[-1]))
        paths = _paths(scenes)
        for one in scenes:
            assert all(inside(thing, scene.view, 224) for thing in one.things)
            still = tuple(replace(t, position=was.position) for t, was in zip(one.things, scene.things, strict=True))
            assert replace(one, things=still) == scene
        bend = np.diff(paths, n=2, axis=1)
        assert bend == pytest.approx(np.broadcast_to(bend[:, :1], bend.shape), abs=1e-9)  # parabolas


@pytest.mark.parametrize("difficulty", LEVELS)
def test_things_move_as_far_as_the_difficulty_says(difficulty: int) -> None:
    low, high = MOTIONS[difficulty].step
    for seed in range(6):
        scenes = WORLD.animate(np.random.default_rng(seed), _scene(seed, difficulty), 6, difficulty)
        ways = _paths(scenes)[:, -1] - _paths(scenes)[:, 0]
        lengths = np.hypot(*ways.T) / 5 / 224
        assert low - 1e-9 <= lengths.min() and lengths.max() <= high + 1e-9


@pytest.mark.parametrize("frames", [2, 6])
def test_a_step_is_less_than_half_of_the_way_to_any_other_thing_of_the_kind(frames: int) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scenes = WORLD.animate(rng, WORLD.arrange(rng, WORLD.kinds[:1] * 5, 4), frames, 4)
        for before, after in pairwise(scenes):
            for i, thing in enumerate(before.things):
                step = math.dist(thing.position, after.things[i].position)
                for other in (one for j, one in enumerate(after.things) if j != i):
                    assert 2 * step < math.dist(after.things[i].position, other.position)
                    assert 2 * step < math.dist(thing.position, other.position)


def test_things_hide_each_other_on_their_way_the_more_the_harder() -> None:
    least = []
    for difficulty in LEVELS:
        found = [1.0]
        for seed in range(10):
            scenes = WORLD.animate(np.random.default_rng(seed), _scene(seed, difficulty), 6, difficulty)
            found += [min(WORLD.render(scene).visibility) for scene in scenes[1:-1]]
        least.append(min(found))
        assert least[-1] >= MOTIONS[difficulty].visible - 0.06
    assert least[0] > 0.95 and least[2] > 0.55 and least[4] < 0.5


def test_motion_that_is_not_to_be_found_is_refused() -> None:
    huge = Scene((Thing(0, WORLD.kinds[0], (112.0, 112.0), 210.0),), 1)
    with pytest.raises(TaskError, match="no motion of 1 things over 4 frames at difficulty 2"):
        WORLD.animate(np.random.default_rng(0), huge, 4, 2)


@pytest.mark.parametrize("difficulty", [*LEVELS, None])
@pytest.mark.parametrize("world", [WORLD, HELD_OUT], ids=["known", "held out"])
def test_a_disturbed_scene_shows_the_same_things_well_in_another_way(world: Sprites, difficulty: int | None) -> None:
    for seed in range(10):
        scene = _scene(seed, difficulty, world)
        disturbed = world.disturb(np.random.default_rng(seed), scene, difficulty)
        assert world.sees_well(disturbed)
        assert min(world.render(disturbed).visibility) >= 0.6
        assert replace(disturbed, view=None, light=0, noise=0) == scene
        nudges = list(NUDGES.values()) if difficulty is None else [NUDGES[difficulty]]
        assert disturbed.view is not None and disturbed.light != 0
        x, y, zoom = disturbed.view
        pan = math.hypot(x, y) / 224
        assert min(nudge.pan[0] for nudge in nudges) - 1e-9 <= pan <= max(nudge.pan[1] for nudge in nudges) + 1e-9
        assert abs(zoom - 1) <= max(nudge.zoom[1] for nudge in nudges)
        assert min(n.noise[0] for n in nudges) <= disturbed.noise <= max(n.noise[1] for n in nudges)


def test_a_scene_is_disturbed_from_where_it_was_seen() -> None:
    scene = replace(_scene(1, 1), view=(-9.0, 5.0, 0.9))
    x, y, zoom = WORLD.disturb(np.random.default_rng(0), scene, 1).view or (0, 0, 0)
    assert math.hypot(x + 9, y - 5) <= 0.02 * 224
    assert zoom == pytest.approx(0.9, rel=0.021)


def test_a_scene_that_cannot_be_seen_well_cannot_be_disturbed() -> None:
    outside = Scene((Thing(0, WORLD.kinds[0], (500.0, 112.0), 50.0),), 1)
    assert not WORLD.sees_well(outside)
    with pytest.raises(TaskError, match="no disturbed view of 1 things at difficulty 1"):
        WORLD.disturb(np.random.default_rng(0), outside, 1)


def test_discs_tell_who_is_inside_apart_and_seen() -> None:
    one, other = (Thing(i, WORLD.kinds[0], (80.0 + 44 * i, 100.0), 40.0) for i in range(2))
    assert apart(one, (other,), 1.1) and not apart(one, (other,), 1.11)
    assert inside(replace(one, position=(25.0, 100.0)), None, 224)
    assert not inside(replace(one, position=(24.9, 100.0)), None, 224)
    assert not inside(replace(one, position=(27.0, 100.0)), (0.0, 0.0, 1.05), 224)
    assert not inside(replace(one, position=(27.0, 100.0)), (-3.0, 0.0, 1.0), 224)
    assert not inside(replace(one, position=(100.0, 197.0)), (0.0, 3.0, 1.0), 224)
    assert least_seen(()) == least_seen((one, other)) == 1.0
    assert least_seen((one, replace(other, position=one.position))) == 0.0
    closer = [least_seen((one, replace(other, position=(80.0 + way, 100.0)))) for way in (36, 30, 24)]
    assert 1 > closer[0] > closer[1] > closer[2] > 0


def test_what_discs_promise_holds_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        things = tuple(
            Thing(i, kind, (float(x), float(y)), 56.0, float(turn))
            for i, (kind, x, y, turn) in enumerate(
                zip(
                    draw_kinds(rng, WORLD.kinds, 3),
                    *rng.uniform(80, 140, (2, 3)),
                    rng.choice([-0.4, 0.0, 0.2], 3),
                    strict=True,
                )
            )
        )
        assert min(WORLD.render(Scene(things, 1)).visibility) >= least_seen(things) - 0.06
