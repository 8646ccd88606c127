"""Similarity: one image shares more objects with Image-1 than any other, by the lead of its difficulty."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.tasks.similarity import KNOBS, QUESTION, MostShared, similarity
from mimgenv.types import TextAnswer

HOMES = [world for world in worlds_of("similarity") if world in WORLDS]
RED, BLUE, GREEN, PINK = (Kind("cube", colour) for colour in ("red", "blue", "green", "pink"))


def made(*kinds: Kind) -> Scene:
    return Scene(tuple(Thing(i, kind, (float(i), 0.0), 1.0) for i, kind in enumerate(kinds)), 0)


def draft(world: str, seed: int, difficulty: int | None = None, held_out: bool = False) -> Draft:
    return similarity(world_of(world, held_out), np.random.default_rng(seed), difficulty)


def shared(one: Draft) -> list[int]:
    """How many kinds of Image-1 each other image shows, most first."""
    first, *others = ({thing.kind for thing in scene.things} for scene in one.scenes)
    return sorted((len(first & other) for other in others), reverse=True)


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_image_with_most_labels_of_image_1(world: str, split: str) -> None:
    for number in range(6):
        task = make_task(world, "similarity", None, split, number)
        first, *others = (Counter(thing.label for thing in things) for things in task.objects)
        common = {image: (first & other).total() for image, other in enumerate(others, 2)}
        (best,) = (image for image, count in common.items() if count == max(common.values()))
        assert task.truth == TextAnswer(str(best))


@pytest.mark.parametrize("world", HOMES)
def test_a_shared_object_is_the_same_one_and_others_are_not(world: str) -> None:
    for seed in range(10):
        first, *others = draft(world, seed).scenes
        names = {thing.kind: thing.identity for thing in first.things}
        for thing in (thing for other in others for thing in other.things):
            assert names.get(thing.kind, thing.identity) == thing.identity
            assert (thing.kind in names) == (thing.identity in names.values())


def test_the_program_counts_each_object_once() -> None:
    assert MostShared().execute((made(RED, BLUE), made(RED), made(BLUE, GREEN, RED))) == 3
    assert MostShared().execute((made(RED, BLUE, GREEN), made(RED, RED, RED), made(GREEN, BLUE))) == 3


@pytest.mark.parametrize(
    "scenes",
    [
        (made(RED, BLUE), made(RED, GREEN), made(PINK, BLUE)),
        (made(RED), made(GREEN), made(BLUE)),
    ],
)
def test_a_tie_is_refused(scenes: tuple[Scene, ...]) -> None:
    with pytest.raises(TaskError, match="fits 2 things"):
        MostShared().execute(scenes)


@pytest.mark.parametrize("world", HOMES)
def test_a_copy_of_the_best_image_is_refused(world: str) -> None:
    one = draft(world, 1)
    best = one.program.execute(one.scenes)
    assert isinstance(best, int)
    with pytest.raises(TaskError, match="fits 2 things"):
        one.program.execute((*one.scenes, one.scenes[best - 1]))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_the_best_image_leads_as_the_difficulty_says_and_all_show_equally_many_objects(
    world: str, difficulty: int | None, held_out: bool
) -> None:
    low, high = KNOBS[difficulty].lead
    for seed in range(15):
        one = draft(world, seed, difficulty, held_out)
        (count,) = {len(scene.things) for scene in one.scenes}
        best, second, *_ = shared(one)
        assert min(low, count) <= best - second <= high


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
def test_there_are_as_many_images_to_choose_from_as_the_difficulty_says(difficulty: int | None) -> None:
    low, high = KNOBS[difficulty].choices
    assert {len(draft("tabletop", seed, difficulty).scenes) - 1 for seed in range(30)} == set(range(low, high + 1))
    assert {len(draft("tiny", seed, difficulty).scenes) for seed in range(5)} == {3}


def test_an_object_that_is_not_shared_differs_in_more_than_its_material() -> None:
    for seed in range(20):
        first, *others = ({thing.kind for thing in scene.things} for scene in draft("tabletop", seed, 4).scenes)
        looks = {(kind.shape, kind.colour) for kind in first}
        assert not [kind for other in others for kind in other - first if (kind.shape, kind.colour) in looks]


@pytest.mark.parametrize(("world", "difficulty"), [("tiny", None), ("tiny", 1), ("tabletop", 2)])
def test_every_image_is_the_answer_equally_often(world: str, difficulty: int | None) -> None:
    answers: dict[int, Counter[object]] = {}
    for seed in range(300):
        one = draft(world, seed, difficulty)
        answers.setdefault(len(one.scenes), Counter())[one.program.execute(one.scenes)] += 1
    for images, counts in answers.items():
        expected = counts.total() / (images - 1)
        assert all(counts[image] == pytest.approx(expected, abs=4 * expected**0.5) for image in range(2, images + 1))


def test_the_questions_of_test_ood_are_others() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out) - set(QUESTION.known)) >= 2
