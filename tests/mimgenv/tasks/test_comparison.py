"""Comparison: the answer is the one image with the most, or the fewest, of what is counted."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.tasks.comparison import KNOBS, PLURALS, QUESTION, Extreme, comparison
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import Task, TextAnswer

HOMES = [world for world in worlds_of("comparison") if world in WORLDS]
RED, BLUE, BALL = Kind("cube", "red"), Kind("cube", "blue"), Kind("sphere", "red")


def made(*kinds: Kind) -> Scene:
    return Scene(tuple(Thing(i, kind, (float(i), 0.0), 1.0) for i, kind in enumerate(kinds)), 0)


def draft(world: str, seed: int, difficulty: int | None = None, held_out: bool = False) -> Draft:
    return comparison(world_of(world, held_out), np.random.default_rng(seed), difficulty)


def counted(task: Task) -> tuple[str, list[int]]:
    """`most` or `fewest`, and the counts, from the question and the labels."""
    (extreme,) = re.findall(r"most|fewest", task.question)
    colours = {label.split()[0] for things in task.objects for label in (thing.label for thing in things)}
    named = [word for word in re.findall(r"\w+", task.question) if word in colours]
    singular = {plural: shape for shape, plural in PLURALS.items()}
    shapes = {thing.label.split()[-1] for things in task.objects for thing in things}
    words = [singular.get(word, word.removesuffix("s")) for word in re.findall(r"\w+", task.question)]
    formed = [word for word in words if word in shapes]
    wanted = (named or formed or [""])[0]
    return extreme, [sum(wanted in f" {thing.label} ".split(" ") for thing in things) for things in task.objects]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_image_with_the_extreme_count(world: str, split: str) -> None:
    for number in range(9):
        task = make_task(world, "comparison", None, split, number)
        extreme, counts = counted(task)
        best = max(counts) if extreme == "most" else min(counts)
        assert counts.count(best) == 1
        assert task.truth == TextAnswer(str(counts.index(best) + 1))


def test_the_program_counts_the_things_of_its_colour_or_shape() -> None:
    scenes = (made(RED, BALL), made(RED, BLUE, BLUE), made(BALL))
    assert Extreme("red", None, False).execute(scenes) == 1
    assert Extreme(None, "cube", False).execute(scenes) == 2
    assert Extreme(None, "cube", True).execute(scenes) == 3
    assert Extreme(None, None, False).execute(scenes) == 2
    assert Extreme(None, None, True).execute(scenes) == 3


@pytest.mark.parametrize("fewest", [False, True])
def test_a_tie_is_refused(fewest: bool) -> None:
    with pytest.raises(TaskError, match="fits 2 things"):
        Extreme("red", None, fewest).execute((made(RED, BLUE), made(BALL)))


@pytest.mark.parametrize("world", HOMES)
def test_a_copy_of_the_right_image_is_refused(world: str) -> None:
    for seed in range(5):
        one = draft(world, seed)
        best = one.program.execute(one.scenes)
        assert isinstance(best, int)
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute((*one.scenes, one.scenes[best - 1]))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_the_answer_leads_as_the_difficulty_says(world: str, difficulty: int | None, held_out: bool) -> None:
    low, high = KNOBS[difficulty].lead
    for seed in range(15):
        one = draft(world, seed, difficulty, held_out)
        assert isinstance(one.program, Extreme)
        counts = sorted(one.program.counts(one.scenes), reverse=not one.program.fewest)
        most = max(map(len, (scene.things for scene in one.scenes)))
        assert min(low, most - 1) <= abs(counts[0] - counts[1]) <= high


@pytest.mark.parametrize("world", HOMES)
def test_the_number_of_all_objects_does_not_tell_where_most_of_a_sort_are(world: str) -> None:
    for seed in range(30):
        one = draft(world, seed)
        assert isinstance(one.program, Extreme)
        sizes = {len(scene.things) for scene in one.scenes}
        assert (len(sizes) == 1) == (one.program.colour is not None or one.program.shape is not None)


def test_no_two_things_of_a_task_are_the_same_object() -> None:
    for seed in range(20):
        names = [thing.identity for scene in draft("tiny", seed).scenes for thing in scene.things]
        assert len(set(names)) == len(names)


def test_colours_shapes_and_all_objects_most_and_fewest_are_asked_for_equally_often() -> None:
    sorts: Counter[tuple[bool, bool, bool]] = Counter()
    for seed in range(600):
        program = draft("tiny", seed).program
        assert isinstance(program, Extreme)
        sorts[program.colour is None, program.shape is None, program.fewest] += 1
    assert len(sorts) == 6
    assert all(count == pytest.approx(100, abs=40) for count in sorts.values())


@pytest.mark.parametrize(("world", "difficulty"), [("tiny", None), ("tiny", 5), ("tabletop", 2)])
def test_every_image_is_the_answer_equally_often(world: str, difficulty: int | None) -> None:
    answers: dict[int, Counter[object]] = {}
    for seed in range(300):
        one = draft(world, seed, difficulty)
        answers.setdefault(len(one.scenes), Counter())[one.program.execute(one.scenes)] += 1
    for images, counts in answers.items():
        expected = counts.total() / images
        assert all(counts[image] == pytest.approx(expected, abs=4 * expected**0.5) for image in range(1, images + 1))


def test_the_questions_of_test_ood_are_others_and_all_name_what_is_counted() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out) - set(QUESTION.known)) >= 2
    assert all("{what}" in way and "{extreme}" in way for way in QUESTION.known + QUESTION.held_out)
