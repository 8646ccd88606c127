"""Rules of moving things: smooth paths that never meet, inside the picture, and who is who at every moment."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.scenes.tabletop.backdrop import backdrop
from mimgenv.scenes.tabletop.motion import MOTIONS, move
from mimgenv.scenes.tabletop.world import Tabletop

WORLD = Tabletop()
FRAMES = 6


def _scene(seed: int, difficulty: int, kinds: int = 48) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = WORLD.counts(difficulty)
    drawn = [WORLD.kinds[rng.integers(kinds)] for _ in range(rng.integers(low, high + 1))]
    return WORLD.arrange(rng, tuple(drawn), difficulty)


def _films(difficulty: int, count: int, kinds: int = 48, frames: int = FRAMES) -> list[tuple[Scene, ...]]:
    films = []
    for seed in range(count):
        try:
            films.append(
                WORLD.animate(np.random.default_rng(seed), _scene(seed, difficulty, kinds), frames, difficulty)
            )
        except TaskError:
            continue
    assert len(films) > count / 2
    return films


def _shift(film: tuple[Scene, ...], index: int) -> float:
    """How far a thing is seen to have moved, in pixels."""
    ends = (WORLD.project(scene, (*scene.things[index].position, 0.0)) for scene in (film[0], film[-1]))
    return math.dist(*ends)


@pytest.mark.parametrize("difficulty", MOTIONS)
def test_a_film_starts_with_its_scene_and_keeps_all_but_places(difficulty: int) -> None:
    scene = _scene(2, difficulty)
    film = WORLD.animate(np.random.default_rng(1), scene, FRAMES, difficulty)
    assert len(film) == FRAMES and film[0] == scene
    for later in film[1:]:
        back = tuple(replace(now, position=then.position) for now, then in zip(later.things, scene.things, strict=True))
        assert replace(later, things=back) == scene


def test_a_film_depends_on_the_generator_alone() -> None:
    first, same, other = (WORLD.animate(np.random.default_rng(seed), _scene(2, 3), 4, 3) for seed in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize("difficulty", MOTIONS)
def test_things_stay_inside_and_apart_and_all_are_seen_well_at_the_end(difficulty: int) -> None:
    for film in _films(difficulty, 6):
        assert WORLD.sees_well(film[0]) and WORLD.sees_well(film[-1])
        for scene in film:
            for one, other in combinations(scene.things, 2):
                assert math.dist(one.position, other.position) > (one.size + other.size) / 2
            for thing in scene.things:
                assert WORLD.sees_well(replace(scene, things=(thing,)))


def test_things_do_not_pass_through_each_other_between_two_pictures() -> None:
    for first, middle, last in _films(5, 12, frames=3):
        ways = [
            np.array([a.position, b.position, c.position])
            for a, b, c in zip(first.things, middle.things, last.things, strict=True)
        ]
        for (i, one), (j, other) in combinations(enumerate(ways), 2):
            start, half, end = one - other
            # The parabola through three points.
            gaps = [
                start + t * (4 * half - 3 * start - end) + t * t * 2 * (start - 2 * half + end)
                for t in np.linspace(0, 1, 50)
            ]
            least = (first.things[i].size + first.things[j].size) / 2
            assert min(float(np.linalg.norm(gap)) for gap in gaps) > least


def test_movers_move_by_pixels_and_others_not_at_all() -> None:
    still = 0
    for difficulty in (1, 3, 5):
        for film in _films(difficulty, 8):
            shifts = [_shift(film, index) for index in range(len(film[0].things))]
            assert all(shift == 0 or shift > 8 for shift in shifts)
            assert sum(shift > 8 for shift in shifts) >= MOTIONS[difficulty].movers * len(shifts)
            still += shifts.count(0.0)
    assert still > 5


@pytest.mark.parametrize("frames", [3, 6, 9])
def test_the_nearest_thing_of_its_kind_at_the_next_moment_is_itself(frames: int) -> None:
    for film in _films(4, 6, kinds=2, frames=frames):
        for before, after in pairwise(film):
            for now, then in zip(before.things, after.things, strict=True):
                step = math.dist(now.position, then.position)
                others = [thing for thing in after.things if thing.kind == now.kind and thing is not then]
                assert all(step < 0.5 * math.dist(then.position, other.position) for other in others)
                assert all(step < math.dist(now.position, other.position) for other in others)


def test_paths_are_smooth() -> None:
    for film in _films(5, 6):
        places = np.array([[thing.position for thing in scene.things] for scene in film])
        assert np.abs(np.diff(places, 3, axis=0)).max() < 1e-9  # Parabolas.


def test_things_hide_each_other_only_on_the_way_and_only_where_it_is_hard() -> None:
    def hidden(difficulty: int) -> float:
        return float(np.mean([not WORLD.sees_well(scene) for film in _films(difficulty, 20) for scene in film[1:-1]]))

    assert hidden(1) == hidden(2) == 0 < hidden(5)


def test_a_motion_that_may_hide_nothing_hides_nothing() -> None:
    moved = 0
    for seed in range(60):
        scene, open_ = _scene(seed, 5), replace(MOTIONS[5], hidden=0.0, travel=(0.5, 1.0))
        camera = backdrop(scene.backdrop, 224).camera
        for things in move(np.random.default_rng(seed), camera, scene.things, FRAMES, open_) or ():
            assert WORLD.sees_well(replace(scene, things=things))
            moved += 1
    assert moved >= 5 * FRAMES


def test_a_thing_that_fills_the_picture_cannot_be_moved() -> None:
    scene = Scene((Thing(0, Kind("cube", "red", "metal"), (0.0, 0.0), 4.5),), 5)
    with pytest.raises(TaskError, match="no motion of 1 things over 6 frames at difficulty 3"):
        WORLD.animate(np.random.default_rng(0), scene, FRAMES, 3)
