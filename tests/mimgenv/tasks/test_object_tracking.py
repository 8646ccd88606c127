"""Object tracking: things of one kind move, and only following them tells which one the marked one has become."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.picture import RED as RED_MARK
from mimgenv.scenes.scene import Kind, Mark, Scene, Thing
from mimgenv.tasks.draft import Draft, draw_twins
from mimgenv.tasks.object_tracking import FRAMES, KNOBS, QUESTION, Followed, object_tracking
from mimgenv.tasks.program import Found
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import Grounding

HOMES = [world for world in worlds_of("object_tracking") if world in WORLDS]
RED, BLUE = Kind("cube", "red"), Kind("cube", "blue")


def draft(world: str, seed: int, difficulty: int | None = None) -> Draft:
    """A draft whose motion was found."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return object_tracking(world_of(world), rng, difficulty)  # type: ignore[arg-type]
        except TaskError:
            continue


def row(*places: float, kinds: tuple[Kind, ...] = (RED, RED), marks: tuple[Mark, ...] = ()) -> Scene:
    """Things at these places along a line."""
    return plane(*((x, 0.0) for x in places), kinds=kinds, marks=marks)


def plane(*places: tuple[float, float], kinds: tuple[Kind, ...] = (RED, RED), marks: tuple[Mark, ...] = ()) -> Scene:
    """Things at these places."""
    things = tuple(Thing(i, kind, place, 1.0) for i, (place, kind) in enumerate(zip(places, kinds, strict=True)))
    return Scene(things, 0, marks=marks)


MARKED = (Mark(0),)


def test_the_marked_thing_is_followed_step_by_step_even_where_its_twin_takes_its_old_place() -> None:
    targets = (0.0, 0.0), (2.5, 0.0), (5.0, 0.0), (7.5, 0.0), (10.0, 0.0), (10.0, 0.0)
    twins = (10.0, 0.0), (10.0, 6.0), (8.0, 9.0), (4.0, 9.0), (0.0, 6.0), (0.0, 2.0)
    first, *others = (plane(*pair) for pair in zip(targets, twins, strict=True))
    scenes = (replace(first, marks=MARKED), *others)
    for last in (2, 3, 4, 5, 6):
        assert Followed(last).execute(scenes) == Found(last, 0)
    assert Followed(2).execute((scenes[0], scenes[-1])) == Found(2, 1)  # who looks at the ends only is fooled


def test_another_kind_never_takes_over_however_near() -> None:
    scenes = (row(0, 1, kinds=(RED, BLUE), marks=MARKED), row(9, 0, kinds=(RED, BLUE)))
    assert Followed(2).execute(scenes) == Found(2, 0)


@pytest.mark.parametrize(("second", "served"), [(2.1, True), (1.9, False), (-1.9, False), (-2.1, True)])
def test_the_second_nearest_must_be_twice_as_far(second: float, served: bool) -> None:
    scenes = (row(0, 50, marks=MARKED), row(1, second))
    if served:
        assert Followed(2).execute(scenes) == Found(2, 0)
    else:
        with pytest.raises(TaskError, match="moves to one of"):
            Followed(2).execute(scenes)


def test_a_thing_that_is_gone_cannot_be_followed() -> None:
    with pytest.raises(TaskError, match="moves to one of"):
        Followed(2).execute((row(0, 5, marks=MARKED), row(0, 5, kinds=(BLUE, BLUE))))


@pytest.mark.parametrize("marks", [(), (Mark(0), Mark(1))])
def test_exactly_one_thing_must_be_marked(marks: tuple[Mark, ...]) -> None:
    with pytest.raises(TaskError, match=f"fits {len(marks)} things"):
        Followed(2).execute((row(0, 9, marks=marks), row(0, 9)))


@pytest.mark.parametrize("world", HOMES)
def test_a_twin_beside_the_path_is_seen_and_refused(world: str) -> None:
    for seed in range(4):
        one = draft(world, seed)
        found = one.program.execute(one.scenes)
        assert isinstance(found, Found)
        twin = one.scenes[found.image - 1].things[found.index]
        scenes = [replace(scene, things=(*scene.things, twin)) for scene in one.scenes]
        with pytest.raises(TaskError, match="moves to one of"):
            one.program.execute(scenes)


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_object_that_the_red_box_of_image_1_encloses(world: str, split: str) -> None:
    for number in range(4):
        task = make_task(world, "object_tracking", None, split, number)
        assert isinstance(task.truth, Grounding)
        rows, columns = np.nonzero((task.images[0] == RED_MARK).all(axis=2))
        box = columns.min() + 2, rows.min() + 2, columns.max() - 1, rows.max() - 1
        (marked,) = (thing for thing in task.objects[0] if thing.box == box)
        (there,) = (thing for thing in task.objects[task.truth.image - 1] if thing.identity == marked.identity)
        assert task.truth == Grounding(task.truth.image, marked.label, there.box)
        assert task.named_image == task.truth.image
        assert f"Image-{task.truth.image}" in task.question
        assert len(task.images) == FRAMES


@pytest.mark.parametrize("world", HOMES)
def test_the_target_has_twins_and_has_moved(world: str) -> None:
    for difficulty in (1, 3, 5, None):
        for seed in range(3):
            one = draft(world, seed, difficulty)
            found = one.program.execute(one.scenes)
            assert isinstance(found, Found)
            target = one.scenes[found.image - 1].things[found.index]
            (mark,) = one.scenes[0].marks
            low, high = KNOBS[difficulty]
            assert low <= sum(thing.kind == target.kind for thing in one.scenes[0].things) - 1 <= high
            assert target.position != one.scenes[0].things[mark.thing].position
            assert not any(scene.marks for scene in one.scenes[1:])


def test_harder_tasks_have_more_twins() -> None:
    ends = [KNOBS[difficulty] for difficulty in (1, 2, 3, 4, 5)]
    assert ends == sorted(ends)
    assert ends[0][0] >= 1


@pytest.mark.parametrize("world", HOMES)
def test_every_later_image_is_asked_for_about_as_often(world: str) -> None:
    asked = Counter(draft(world, seed, 1).named_image for seed in range(150))
    assert set(asked) == {2, 3, 4, 5, 6}
    assert min(asked.values()) >= 13  # 30 expected; 3.5 standard errors


@pytest.mark.parametrize("world", HOMES)
def test_identities_do_not_help_the_program(world: str) -> None:
    for seed in range(3):
        one = draft(world, seed)
        same = [
            replace(scene, things=tuple(replace(thing, identity=0) for thing in scene.things)) for scene in one.scenes
        ]
        assert one.program.execute(same) == one.program.execute(one.scenes)


def test_there_are_several_wordings_and_all_name_both_images() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out)) >= 2
    assert not set(QUESTION.known) & set(QUESTION.held_out)
    for way in QUESTION.known + QUESTION.held_out:
        assert "Image-1" in way
        assert "Image-{last}" in way


@pytest.mark.parametrize("world", HOMES)
def test_twins_share_one_kind_and_the_others_have_kinds_of_their_own(world: str) -> None:
    places = Counter()
    for seed in range(60):
        kinds, twin = draw_twins(world_of(world), np.random.default_rng(seed), 4, (2, 3), others=3)
        counts = Counter(kinds)
        assert 3 <= counts.pop(twin) <= 4
        assert set(counts.values()) == {1}
        assert len(counts) >= 3
        places[kinds.index(twin)] += 1
    assert len(places) >= 3  # in random order
