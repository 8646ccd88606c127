"""Region locating: the truth is the very part of Image-1 that is shown, and nothing else looks like it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.geometry import intersection, iou
from mimgenv.scenes.scene import Cut, Kind, Scene, Thing
from mimgenv.tasks.draft import Draft, alike
from mimgenv.tasks.program import Area
from mimgenv.tasks.region_locating import PARTS, QUESTION, SIDES, PartOf, region_locating
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.tools import resize
from mimgenv.types import Box, Grounding, Image, Task

HOMES = [world for world in worlds_of("region_locating") if world in WORLDS]
RED, BLUE = Kind("cube", "red"), Kind("cube", "blue")
BOX = (28.0, 14.0, 84.0, 70.0)


def draft(world: str, seed: int, difficulty: int | None = None) -> Draft:
    return region_locating(world_of(world), np.random.default_rng(seed), difficulty)


def found(one: Draft) -> Area:
    result = one.program.execute(one.scenes)
    assert isinstance(result, Area)
    return result


def asked(task: Task) -> int:
    """The number of the part that the question is about."""
    return int(next(k for k in re.findall(r"Image-(\d)", task.question) if k != "1"))


def crop(image: Image, box: Box) -> Image:
    x1, y1, x2, y2 = map(int, box)
    return image[y1:y2, x1:x2]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_part_is_what_image_1_shows_in_the_true_box_at_twice_the_size(world: str, split: str) -> None:
    for number in range(6):
        task = make_task(world, "region_locating", None, split, number)
        assert isinstance(task.truth, Grounding)
        part = crop(task.images[0], task.truth.box)
        enlarged = resize(part, 2 * part.shape[1], 2 * part.shape[0])
        np.testing.assert_array_equal(task.images[asked(task) - 1], enlarged)
        assert task.truth.image == task.named_image == 1
        assert all(side % 28 == 0 for side in enlarged.shape[:2])


@pytest.mark.parametrize("world", HOMES)
def test_no_other_place_of_image_1_looks_like_the_part(world: str) -> None:
    for number in range(3):
        task = make_task(world, "region_locating", 5, "train", number)
        assert isinstance(task.truth, Grounding)
        part = crop(task.images[0], task.truth.box)[::3, ::3].astype(np.int16)
        high, wide = part.shape[0] * 3, part.shape[1] * 3
        for y in range(0, task.images[0].shape[0] - high, 2):
            for x in range(0, task.images[0].shape[1] - wide, 2):
                if max(abs(x - task.truth.box[0]), abs(y - task.truth.box[1])) > 8:
                    here = task.images[0][y : y + high : 3, x : x + wide : 3]
                    assert np.abs(here - part).mean() > 4


@pytest.mark.parametrize("world", HOMES)
def test_the_part_shows_most_of_the_object_that_the_label_names(world: str) -> None:
    for number in range(10):
        task = make_task(world, "region_locating", None, "train", number)
        assert isinstance(task.truth, Grounding)
        (box,) = (thing.box for thing in task.objects[0] if thing.label == task.truth.label)
        shown = intersection(box, task.truth.box)
        for low in (0, 1):
            least = min(0.75 * (box[low + 2] - box[low]), SIDES[-1])  # look-alikes may hide other parts of it
            assert shown[low + 2] - shown[low] >= least - 1


def scenes_with(*kinds: Kind) -> tuple[Scene, Scene]:
    scene = Scene(tuple(Thing(i, kind, (float(i), 0.0), 1.0) for i, kind in enumerate(kinds)), 0)
    return scene, replace(scene, cut=Cut(BOX, 0))


def test_the_program_finds_the_box_of_the_cut_and_the_thing_it_is_about() -> None:
    assert PartOf(2, 1).execute(scenes_with(RED, BLUE)) == Area(1, 0, BOX)


def test_a_second_thing_of_the_kind_is_refused() -> None:
    with pytest.raises(TaskError, match="fits 2 things"):
        PartOf(2, 1).execute(scenes_with(RED, BLUE, RED))


def test_a_part_of_another_scene_and_a_whole_scene_are_refused() -> None:
    scene, part = scenes_with(RED, BLUE)
    for other in (replace(part, backdrop=1), scenes_with(RED)[1], scene):
        with pytest.raises(TaskError, match="no part of Image-1"):
            PartOf(2, 1).execute((scene, other))


@pytest.mark.parametrize("world", HOMES)
def test_a_twin_of_what_the_part_shows_is_refused(world: str) -> None:
    for seed in range(4):
        one = draft(world, seed)
        kind = one.scenes[0].things[found(one).index].kind
        twin = Thing(99, kind, (0.0, 0.0), 1.0)
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute([replace(scene, things=(*scene.things, twin)) for scene in one.scenes])


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_there_are_as_many_parts_as_the_difficulty_says_each_about_another_thing(
    world: str, difficulty: int | None
) -> None:
    low, high = PARTS[difficulty]
    numbers = set()
    for seed in range(12):
        one = draft(world, seed, difficulty)
        cuts = [scene.cut for scene in one.scenes[1:]]
        numbers.add(len(cuts))
        assert len({cut.about for cut in cuts if cut}) == len(cuts)
        assert all(cut and min(cut.box) >= 0 and max(cut.box) <= world_of(world).side for cut in cuts)
        found(one)
    assert numbers == set(range(low, high + 1))


def test_harder_tasks_have_look_alikes_of_what_the_part_shows() -> None:
    def near(difficulty: int) -> float:
        numbers = []
        for seed in range(15):
            one = draft("tabletop", seed, difficulty)
            target = one.scenes[0].things[found(one).index].kind
            kinds = [thing.kind for thing in one.scenes[0].things]
            numbers.append(sum(alike(kind, target) for kind in kinds))
        return float(np.mean(numbers))

    assert near(1) < 0.7
    assert near(5) >= 2


def test_each_part_is_asked_for_equally_often() -> None:
    counts = Counter(draft("tabletop", seed, 1).program.part for seed in range(200))  # type: ignore[attr-defined]
    assert counts[2] == pytest.approx(100, abs=28)
    assert counts[2] + counts[3] == 200


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", [1, 3, 5])
@pytest.mark.parametrize("world", HOMES)
def test_no_constant_box_is_a_good_answer(world: str, difficulty: int) -> None:
    boxes = [found(draft(world, seed, difficulty)).box for seed in range(250)]
    sides = range(42, 127, 14)
    constant = [
        (float(x), float(y), float(x + wide), float(y + high))
        for wide in sides
        for high in sides
        for x in range(0, 224 - wide, 28)
        for y in range(0, 224 - high, 28)
    ]
    assert max(float(np.mean([iou(box, truth) for truth in boxes])) for box in constant) < 0.15


def test_the_questions_of_test_ood_are_others_and_all_name_the_part() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out) - set(QUESTION.known)) >= 2
    assert all("Image-{k}" in way for way in QUESTION.known + QUESTION.held_out)
