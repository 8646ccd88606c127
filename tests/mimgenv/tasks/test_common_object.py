"""Common object: exactly one label is in every image, and the box is its box in the image that is named."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.tasks.common_object import KNOBS, QUESTION, Common, common_object
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import Grounding

HOMES = [world for world in worlds_of("common_object") if world in WORLDS]
RED, BLUE, GREEN = (Kind("cube", colour) for colour in ("red", "blue", "green"))


def made(*kinds: Kind) -> Scene:
    return Scene(tuple(Thing(i, kind, (float(i), 0.0), 1.0) for i, kind in enumerate(kinds)), 0)


def draft(world: str, seed: int, difficulty: int | None = None, held_out: bool = False) -> Draft:
    return common_object(world_of(world, held_out), np.random.default_rng(seed), difficulty)


def kinds_of(one: Draft) -> list[set[Kind]]:
    return [{thing.kind for thing in scene.things} for scene in one.scenes]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_box_of_the_only_label_of_all_images(world: str, split: str) -> None:
    for number in range(6):
        task = make_task(world, "common_object", None, split, number)
        (label,) = set.intersection(*({thing.label for thing in things} for things in task.objects))
        (k,) = map(int, re.findall(r"Image-(\d)", task.question))
        (box,) = (thing.box for thing in task.objects[k - 1] if thing.label == label)
        assert task.truth == Grounding(k, label, box)
        assert task.named_image == k


@pytest.mark.parametrize("world", HOMES)
def test_the_common_object_is_the_same_in_all_images_and_the_others_are_where_their_kind_is(world: str) -> None:
    for seed in range(10):
        kinds: dict[int, set[Kind]] = {}
        things = [thing for scene in draft(world, seed).scenes for thing in scene.things]
        for thing in things:
            kinds.setdefault(thing.identity, set()).add(thing.kind)
        assert all(len(own) == 1 for own in kinds.values())
        assert len(kinds) == len({thing.kind for thing in things})


def test_the_program_finds_what_all_images_share_in_its_image() -> None:
    scenes = (made(RED, BLUE), made(GREEN, RED), made(BLUE, GREEN, RED))
    assert [Common(image).execute(scenes).index for image in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "scenes",
    [
        (made(RED, BLUE), made(GREEN)),  # nothing is common
        (made(RED, BLUE), made(BLUE, RED)),  # two kinds are
        (made(RED, BLUE, RED), made(GREEN, RED)),  # one is, but there are two of it in Image-1
    ],
)
def test_what_is_not_one_thing_is_refused(scenes: tuple[Scene, ...]) -> None:
    with pytest.raises(TaskError, match="not exactly one"):
        Common(1).execute(scenes)


@pytest.mark.parametrize("world", HOMES)
def test_a_second_common_kind_is_refused(world: str) -> None:
    for seed in range(5):
        one = draft(world, seed)
        new = next(kind for kind in world_of(world).kinds if not any(kind in kinds for kinds in kinds_of(one)))
        more = [replace(scene, things=(*scene.things, Thing(99, new, (0.0, 0.0), 1.0))) for scene in one.scenes]
        assert one.program.execute([*more[:-1], one.scenes[-1]]) == one.program.execute(one.scenes)
        with pytest.raises(TaskError, match="not exactly one"):
            one.program.execute(more)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_a_draft_is_right_at_once_so_that_nothing_is_drawn_in_vain(
    world: str, difficulty: int | None, held_out: bool
) -> None:
    for seed in range(15):
        one = draft(world, seed, difficulty, held_out)
        one.program.execute(one.scenes)


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
def test_the_number_of_images_is_that_of_the_difficulty(difficulty: int | None) -> None:
    low, high = KNOBS[difficulty].images
    assert {len(draft("tabletop", seed, difficulty).scenes) for seed in range(40)} == set(range(low, high + 1))
    assert {len(draft("tiny", seed, difficulty).scenes) for seed in range(10)} == {3}


def near_misses(difficulty: int) -> float:
    """Mean number of kinds that are in all images but one."""
    numbers = []
    for seed in range(20):
        kinds = kinds_of(draft("tabletop", seed, difficulty))
        numbers.append(sum(sum(kind in own for own in kinds) == len(kinds) - 1 for kind in set.union(*kinds)))
    return float(np.mean(numbers))


def look_alikes(difficulty: int) -> float:
    """Mean number of things of another colour or material, but of the target's shape, in an image."""
    numbers = []
    for seed in range(20):
        kinds = kinds_of(draft("tabletop", seed, difficulty))
        (target,) = set.intersection(*kinds)
        numbers += [
            sum(
                (one.shape != target.shape) + (one.colour != target.colour) + (one.material != target.material) == 1
                for one in own
            )
            for own in kinds
        ]
    return float(np.mean(numbers))


def test_harder_tasks_have_more_near_misses_and_look_alikes() -> None:
    assert near_misses(1) < 1 < near_misses(4) < near_misses(5)
    assert look_alikes(1) < 0.3 < 1 <= look_alikes(3) < 2 <= look_alikes(5)


def test_each_image_is_asked_for_equally_often() -> None:
    counts = Counter(draft("tiny", seed).named_image for seed in range(600))
    assert all(count == pytest.approx(200, abs=40) for count in (counts[1], counts[2], counts[3]))


def test_the_target_is_drawn_first_second_or_third_equally_often() -> None:
    places: Counter[int] = Counter()
    for seed in range(300):
        one = draft("tiny", seed, 3)
        places[one.program.execute(one.scenes).index] += 1  # type: ignore[union-attr]
    assert all(places[place] == pytest.approx(100, abs=35) for place in range(3))


def test_the_questions_of_test_ood_are_others_and_none_tells_what_to_look_for() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out) - set(QUESTION.known)) >= 2
    assert all(re.findall(r"{\w+}", way) == ["{k}"] for way in QUESTION.known + QUESTION.held_out)
