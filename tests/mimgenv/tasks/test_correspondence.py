"""Correspondence: a spot on an object, seen from two sides; where it is, or which letter it has."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.geometry import area, intersection
from mimgenv.scenes.picture import MIN_PATCH, pixel_of, surface
from mimgenv.scenes.picture import spot as seen_at
from mimgenv.scenes.scene import Kind, Mark, Point, Scene, Thing
from mimgenv.scenes.tabletop.world import Tabletop
from mimgenv.tasks.correspondence import (
    KNOBS,
    QUESTION,
    RADIUS,
    SPOTS,
    WHICH_LETTER,
    SameLetter,
    SameSpot,
    correspondence,
    seen_spots,
    visual_correspondence,
    with_room,
)
from mimgenv.tasks.draft import Draft, finish
from mimgenv.tasks.program import Part
from mimgenv.tasks.rendered import make_task
from mimgenv.types import Grounding, TextAnswer

WORLD = Tabletop()
TYPES = {"correspondence": correspondence, "visual_correspondence": visual_correspondence}
RED, BLUE = Kind("cube", "red", "rubber"), Kind("cube", "blue", "rubber")
HERE, THERE = (0.0, 0.0), (2.0, 1.0)
TOP, SIDE = (0.1, 0.2, 0.7), (0.3, 0.2, 0.7)


def draft(task_type: str, seed: int, difficulty: int | None = None) -> Draft:
    """A draft whose views and spots were found."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return TYPES[task_type](WORLD, rng, difficulty)
        except TaskError:
            continue


def made(*things: tuple[Kind, tuple[float, float]], marks: tuple[Mark, ...] = ()) -> Scene:
    return Scene(tuple(Thing(i, kind, place, 1.0) for i, (kind, place) in enumerate(things)), 0, marks=marks)


REFERENCE = made((RED, HERE), (BLUE, THERE), marks=(Mark(0, TOP, "REF"),))


# The spot


def test_the_part_is_around_the_very_point_on_the_thing_of_that_kind_and_place() -> None:
    other = made((BLUE, THERE), (RED, HERE))
    assert SameSpot(1, 2).execute((REFERENCE, other)) == Part(2, 1, TOP, RADIUS)


@pytest.mark.parametrize("things", [[(RED, THERE)], [(BLUE, HERE)], [(RED, HERE), (RED, HERE)]])
def test_a_part_of_no_thing_or_of_two_is_refused(things: list[tuple[Kind, tuple[float, float]]]) -> None:
    with pytest.raises(TaskError, match="not exactly one"):
        SameSpot(1, 2).execute((REFERENCE, made(*things)))


@pytest.mark.parametrize("marks", [(), (Mark(0),), (Mark(0, TOP), Mark(0, SIDE))])
def test_exactly_one_ring_must_be_in_the_reference(marks: tuple[Mark, ...]) -> None:
    scenes = replace(REFERENCE, marks=marks), made((RED, HERE), (BLUE, THERE), marks=(Mark(0, TOP, "A"),))
    for program in (SameSpot(1, 2), SameLetter(1, 2)):
        with pytest.raises(TaskError, match="not exactly one"):
            program.execute(scenes)


@pytest.mark.parametrize("task_type", TYPES)
def test_a_second_thing_like_the_target_at_its_place_is_refused(task_type: str) -> None:
    for seed in range(3):
        one = draft(task_type, seed)
        target = one.scenes[0].things[one.scenes[0].marks[0].thing]
        after = replace(one.scenes[1], things=(*one.scenes[1].things, target))
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute((one.scenes[0], after))


# The letter


@pytest.mark.parametrize(
    ("marks", "letter"),
    [
        ([(0, TOP, "A"), (0, SIDE, "B"), (1, TOP, "C")], "A"),
        ([(0, SIDE, "A"), (1, TOP, "B"), (0, TOP, "C")], "C"),
        ([(0, SIDE, "A"), (1, TOP, "B")], None),
        ([(0, TOP, "A"), (0, TOP, "B")], None),
    ],
)
def test_the_letter_is_that_of_the_same_point_on_the_same_thing_or_there_is_none(
    marks: list[tuple[int, Point, str]], letter: str | None
) -> None:
    scenes = REFERENCE, made((RED, HERE), (BLUE, THERE), marks=tuple(Mark(*mark) for mark in marks))
    if letter is not None:
        assert SameLetter(1, 2).execute(scenes) == letter
    else:
        with pytest.raises(TaskError, match="not exactly one"):
            SameLetter(1, 2).execute(scenes)


def test_a_second_right_letter_in_a_draft_is_refused() -> None:
    one = draft("visual_correspondence", 1)
    (reference,), options = one.scenes[0].marks, one.scenes[1].marks
    wrong = next(mark for mark in options if mark.point != reference.point)
    marks = [replace(reference, text=mark.text) if mark is wrong else mark for mark in options]
    with pytest.raises(TaskError, match="fits 2 things"):
        one.program.execute((one.scenes[0], replace(one.scenes[1], marks=tuple(marks))))


@pytest.mark.parametrize("task_type", TYPES)
def test_identities_and_the_sides_it_is_seen_from_do_not_help_the_program(task_type: str) -> None:
    for seed in range(3):
        one = draft(task_type, seed)
        same = [
            replace(scene, view=None, things=tuple(replace(thing, identity=0) for thing in scene.things))
            for scene in one.scenes
        ]
        assert one.program.execute(same) == one.program.execute(one.scenes)


# Spots


@pytest.mark.parametrize("shape", SPOTS)
def test_every_spot_lies_on_the_surface_and_is_seen_from_all_sides(shape: str) -> None:
    rng = np.random.default_rng(0)
    for turn in (0.0, 0.4, 1.2):
        scene = WORLD.arrange(rng, (Kind(shape, "red", "rubber"),), 1)
        scene = replace(scene, things=(replace(scene.things[0], turn=turn),))
        for view in (scene, WORLD.look_again(rng, scene, 1), WORLD.look_again(rng, scene, 5)):
            for mark in every_spot(view):
                assert mark.point is not None
                pixel = seen_at(WORLD, view, 0, mark.point)
                assert pixel is not None
                shown = surface(WORLD, view)[pixel[1], pixel[0]]
                assert np.abs(shown - np.array(mark.point)).max() < 0.08 * scene.things[0].size


def every_spot(scene: Scene) -> list[Mark]:
    marks = seen_spots(WORLD, (scene,), 3)
    assert len(marks) == sum(len(SPOTS[thing.kind.shape]) for thing in scene.things)
    return marks


def test_a_spot_behind_a_nearer_thing_is_out_of_sight() -> None:
    scene = WORLD.arrange(np.random.default_rng(3), (RED,), 1)
    x, y = scene.things[0].position
    top = every_spot(scene)[0].point
    assert top is not None
    hidden = []
    assert top in [mark.point for mark in seen_spots(WORLD, (scene, scene), 1)]
    for angle in np.arange(0, 2 * np.pi, np.pi / 8):
        wall = Thing(1, Kind("cylinder", "blue", "rubber"), (x + 2.2 * np.cos(angle), y + 2.2 * np.sin(angle)), 2.6)
        veiled = replace(scene, things=(*scene.things, wall))
        hidden.append(seen_at(WORLD, veiled, 0, top) is None)
        assert (top in [mark.point for mark in seen_spots(WORLD, (scene, veiled), 1)]) == (not hidden[-1])
    assert seen_at(WORLD, scene, 0, top) is not None
    assert 1 <= sum(hidden) <= 6  # only where the wall stands on the camera's side


def test_a_point_outside_the_picture_is_out_of_sight() -> None:
    scene = WORLD.arrange(np.random.default_rng(3), (RED,), 1)
    assert seen_at(WORLD, scene, 0, (40.0, 0.0, 0.0)) is None


@pytest.mark.parametrize("task_type", TYPES)
@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_what_is_ringed_is_as_hard_as_the_difficulty_allows_and_seen_in_both_views(
    task_type: str, difficulty: int
) -> None:
    for seed in range(3):
        one = draft(task_type, seed, difficulty)
        (mark,) = one.scenes[0].marks
        thing = one.scenes[0].things[mark.thing]
        assert mark.point is not None
        x, y, height = (part / thing.size for part in np.subtract(mark.point, (*thing.position, 0.0)))
        (place,) = (
            place
            for place in SPOTS[thing.kind.shape]
            if abs(place.height - height) < 1e-6
            and abs(place.away - np.hypot(x, y)) < 1e-6
            and (place.away == 0 or np.cos(np.arctan2(y, x) - thing.turn - place.quarters * np.pi / 2) > 0.999)
        )
        assert place.level <= KNOBS[difficulty].level
        for scene in one.scenes:
            assert seen_at(WORLD, scene, mark.thing, mark.point) is not None


# Tasks


@pytest.mark.parametrize("split", ["train", "test_ood"])
def test_the_truth_is_a_part_of_one_object_of_image_2_large_enough_to_be_boxed(split: str) -> None:
    for number in range(6):
        task = make_task("tabletop", "correspondence", None, split, number)
        assert isinstance(task.truth, Grounding)
        x1, y1, x2, y2 = task.truth.box
        assert task.truth.image == task.named_image == 2
        assert min(x2 - x1, y2 - y1) >= MIN_PATCH
        (whole,) = (thing for thing in task.objects[1] if thing.label == task.truth.label)
        assert intersection(whole.box, task.truth.box) == task.truth.box
        assert area(task.truth.box) < 0.6 * area(whole.box)


def test_the_truth_holds_exactly_the_pixels_of_the_thing_that_are_near_the_point() -> None:
    for seed in range(5):
        one = draft("correspondence", seed)
        part = one.program.execute(one.scenes)
        assert isinstance(part, Part)
        frame = WORLD.render(one.scenes[1])
        away = np.sqrt(((WORLD.points(one.scenes[1]) - np.array(part.point)) ** 2).sum(axis=2))
        rows, columns = np.nonzero((away < part.radius) & (frame.instances == part.index + 1))
        try:
            truth = finish(one, WORLD, "made:1", "correspondence").truth
        except TaskError:
            assert min(np.ptp(rows), np.ptp(columns)) + 1 < MIN_PATCH
            continue
        assert isinstance(truth, Grounding)
        assert truth.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("split", ["train", "test_ood"])
def test_the_answer_is_one_of_four_letters(split: str) -> None:
    for number in range(4):
        task = make_task("tabletop", "visual_correspondence", None, split, number)
        assert isinstance(task.truth, TextAnswer)
        assert task.truth.text in "ABCD"
        assert task.named_image is None


@pytest.mark.parametrize("difficulty", [1, 3, 5, None])
def test_rings_and_letters_of_options_do_not_overlap_and_mark_what_is_seen(difficulty: int | None) -> None:
    for seed in range(4):
        one = draft("visual_correspondence", seed, difficulty)
        scene = one.scenes[1]
        assert "".join(mark.text for mark in scene.marks) == "ABCD"
        frame = WORLD.render(scene)
        boxes = []
        for mark in scene.marks:
            assert mark.point is not None
            pixel = pixel_of(WORLD, scene, frame, mark.thing, mark.point)
            assert pixel is not None
            boxes.append((pixel[0] - 6.0, pixel[1] - 6.0, pixel[0] + 14.0, pixel[1] + 7.0))
        assert all(box[2] <= WORLD.side for box in boxes)
        assert not [1 for pair in combinations(boxes, 2) if area(intersection(*pair))]


class Plan:
    """A world that shows its points at their own x and y."""

    side = 224

    def project(self, scene: Scene, point: Point) -> tuple[float, float]:
        return point[0], point[1]

    def points(self, scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        rows, columns = np.mgrid[0:224, 0:224]
        return np.stack([columns, rows, 0 * rows], axis=2).astype(np.float32)


@pytest.mark.parametrize(
    ("place", "served"),
    [
        ((119, 100), False),
        ((120, 100), True),
        ((80, 100), True),
        ((100, 113), False),
        ((110, 86), True),
        ((207, 50), True),
        ((208, 50), False),
        ((2, 50), True),
    ],
)
def test_an_option_needs_room_beside_the_others_and_at_the_right_edge(place: tuple[int, int], served: bool) -> None:
    scene = Scene((Thing(0, RED, HERE, 16.0),), 0)
    first, second = Mark(0, (100.0, 100.0, 0.0)), Mark(0, (float(place[0]), float(place[1]), 0.0))
    kept = with_room(Plan(), scene, [first, second])  # type: ignore[arg-type]
    assert kept == ([first, second] if served else [first])


@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_options_are_on_as_few_things_as_the_difficulty_says_and_all_are_seen_in_both_views(difficulty: int) -> None:
    for seed in range(4):
        one = draft("visual_correspondence", seed, difficulty)
        assert len({mark.thing for mark in one.scenes[1].marks}) <= KNOBS[difficulty].holders
        for mark in one.scenes[1].marks:
            assert mark.point is not None
            assert all(seen_at(WORLD, scene, mark.thing, mark.point) is not None for scene in one.scenes)


def test_every_letter_is_right_equally_often() -> None:
    drafts = [draft("visual_correspondence", seed, 1) for seed in range(120)]
    letters = Counter(one.program.execute(one.scenes) for one in drafts)
    assert set(letters) == set("ABCD")
    assert sum((count - 30) ** 2 for count in letters.values()) / 30 < 16.3  # chi-square, p = 0.001


def test_harder_tasks_have_options_on_fewer_things_and_spots_that_are_harder_to_find() -> None:
    knobs = [KNOBS[difficulty] for difficulty in (1, 2, 3, 4, 5)]
    assert [k.level for k in knobs] == sorted(k.level for k in knobs)
    assert [k.holders for k in knobs] == sorted((k.holders for k in knobs), reverse=True)


@pytest.mark.parametrize("wording", [QUESTION, WHICH_LETTER])
def test_there_are_several_wordings_and_all_name_both_images(wording: object) -> None:
    known, held_out = wording.known, wording.held_out  # type: ignore[attr-defined]
    assert len(set(known)) >= 3
    assert len(set(held_out)) >= 2
    assert not set(known) & set(held_out)
    for way in known + held_out:
        assert "Image-1" in way
        assert "Image-2" in way
