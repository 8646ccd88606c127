"""Multi-view: the same things from other sides; the marked one is known by its kind and the place where it stands."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.picture import RED as RED_MARK
from mimgenv.scenes.scene import Kind, Mark, Scene, Thing
from mimgenv.scenes.tabletop.world import Tabletop
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.multi_view import KNOBS, LANDMARKS, QUESTION, SHIFT, SamePlace, multi_view
from mimgenv.tasks.program import Found
from mimgenv.tasks.rendered import make_task
from mimgenv.types import Grounding

WORLD = Tabletop()
RED, BLUE = Kind("cube", "red"), Kind("cube", "blue")
HERE, THERE = (0.0, 0.0), (2.0, 1.0)


def draft(seed: int, difficulty: int | None = None) -> Draft:
    """A draft whose views were found."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return multi_view(WORLD, rng, difficulty)
        except TaskError:
            continue


def made(*things: tuple[Kind, tuple[float, float]], marks: tuple[Mark, ...] = ()) -> Scene:
    return Scene(tuple(Thing(i, kind, place, 1.0) for i, (kind, place) in enumerate(things)), 0, marks=marks)


def found(one: Draft) -> Found:
    result = one.program.execute(one.scenes)
    assert isinstance(result, Found)
    return result


def test_the_thing_of_the_kind_and_place_of_the_marked_one_is_found_in_any_order() -> None:
    scenes = (made((RED, HERE), (RED, THERE), marks=(Mark(1),)), made((RED, THERE), (BLUE, HERE), (RED, HERE)))
    assert SamePlace(1, 2).execute(scenes) == Found(2, 0)
    assert SamePlace(1, 1).execute(scenes) == Found(1, 1)


@pytest.mark.parametrize(
    ("things", "matches"),
    [([(RED, THERE)], 0), ([(BLUE, HERE)], 0), ([(RED, HERE), (RED, HERE)], 2)],
)
def test_nothing_or_two_things_there_are_refused(things: list[tuple[Kind, tuple[float, float]]], matches: int) -> None:
    with pytest.raises(TaskError, match=f"fits {matches} things"):
        SamePlace(1, 2).execute((made((RED, HERE), marks=(Mark(0),)), made(*things)))


@pytest.mark.parametrize("marks", [(), (Mark(0), Mark(1))])
def test_exactly_one_thing_must_be_marked(marks: tuple[Mark, ...]) -> None:
    with pytest.raises(TaskError, match=f"fits {len(marks)} things"):
        SamePlace(1, 2).execute((made((RED, HERE), (RED, THERE), marks=marks), made((RED, HERE))))


def test_a_second_match_in_a_draft_is_refused() -> None:
    for seed in range(4):
        one = draft(seed)
        where = found(one)
        scenes = list(one.scenes)
        scene = scenes[where.image - 1]
        scenes[where.image - 1] = replace(scene, things=(*scene.things, scene.things[where.index]))
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute(scenes)


def test_identities_and_the_sides_it_is_seen_from_do_not_help_the_program() -> None:
    for seed in range(4):
        one = draft(seed)
        same = [
            replace(scene, view=None, things=tuple(replace(thing, identity=0) for thing in scene.things))
            for scene in one.scenes
        ]
        assert one.program.execute(same) == found(one)


@pytest.mark.parametrize("split", ["train", "test_ood"])
def test_the_truth_is_the_object_that_the_red_box_of_image_1_encloses(split: str) -> None:
    for number in range(5):
        task = make_task("tabletop", "multi_view", None, split, number)
        assert isinstance(task.truth, Grounding)
        rows, columns = np.nonzero((task.images[0] == RED_MARK).all(axis=2))
        box = columns.min() + 2, rows.min() + 2, columns.max() - 1, rows.max() - 1
        (marked,) = (thing for thing in task.objects[0] if thing.box == box)
        (there,) = (thing for thing in task.objects[task.truth.image - 1] if thing.identity == marked.identity)
        assert task.truth == Grounding(task.truth.image, marked.label, there.box)
        assert task.named_image == task.truth.image
        assert f"Image-{task.truth.image}" in task.question


@pytest.mark.parametrize("difficulty", [1, 3, 5, None])
def test_twins_are_as_many_as_the_difficulty_says_and_other_things_tell_them_apart(difficulty: int | None) -> None:
    for seed in range(4):
        one = draft(seed, difficulty)
        kinds = Counter(thing.kind for thing in one.scenes[0].things)
        target = one.scenes[0].things[one.scenes[0].marks[0].thing].kind
        low, high = KNOBS[difficulty]
        assert low <= kinds.pop(target) - 1 <= high
        assert len(kinds) >= LANDMARKS
        assert set(kinds.values()) == {1}


def test_harder_tasks_have_more_twins() -> None:
    ends = [KNOBS[difficulty] for difficulty in (1, 2, 3, 4, 5)]
    assert ends == sorted(ends)


@pytest.mark.parametrize("difficulty", [1, 5])
def test_nothing_moves_but_the_camera_and_no_two_views_are_nearly_the_same(difficulty: int) -> None:
    for seed in range(4):
        scenes = draft(seed, difficulty).scenes
        assert all(scene.things == scenes[0].things for scene in scenes)
        for one, other in combinations(scenes, 2):
            feet = [(*thing.position, 0.0) for thing in one.things]
            ways = [math.dist(WORLD.project(one, foot), WORLD.project(other, foot)) for foot in feet]
            assert max(ways) >= SHIFT * WORLD.side


def test_there_are_three_or_four_views_and_every_later_one_is_asked_for_about_as_often() -> None:
    asked = Counter((len(one.scenes), one.named_image) for one in (draft(seed, 1) for seed in range(200)))
    assert set(asked) == {(3, 2), (3, 3), (4, 2), (4, 3), (4, 4)}
    three = asked[3, 2] + asked[3, 3]
    assert three == pytest.approx(100, abs=30)
    assert asked[3, 2] == pytest.approx(three / 2, abs=20)
    assert min(asked[4, view] for view in (2, 3, 4)) >= 17


def test_there_are_several_wordings_and_all_name_both_images() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out)) >= 2
    assert not set(QUESTION.known) & set(QUESTION.held_out)
    for way in QUESTION.known + QUESTION.held_out:
        assert "Image-1" in way
        assert "Image-{view}" in way
