"""Reasoning from annotations says all that is annotated, nothing else, and its check finds every fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from agents.annotated_reasoning import check_places, check_reasoning, places, reasoning
from mimgenv import load_task
from mimgenv.datasets.odinw import OdinwTasks
from mimgenv.errors import TaskError
from mimgenv.tasks.rendered import HELD_OUT, TASK_TYPES, make_task, worlds_of
from mimgenv.types import Box, Grounding, ObjectAnnotation, Task, TextAnswer

PLACES: Final[tuple[Box, ...]] = tuple((40.0 * i, 90.0 - 30 * i, 40.0 * i + 20, 110.0 - 30 * i) for i in range(4))
HOMES: Final = [(world, name) for name in TASK_TYPES for world in worlds_of(name)]


def things(*labels: str, identities: Sequence[int | None] | None = None) -> tuple[ObjectAnnotation, ...]:
    """Things from left to right, each an object of its own unless identities are given."""
    numbers = [None] * len(labels) if identities is None else identities
    return tuple(map(ObjectAnnotation, labels, PLACES, numbers))


def task(*objects: tuple[ObjectAnnotation, ...], target: str | None = None, image: int = 2) -> Task:
    truth = TextAnswer("2") if target is None else Grounding(image, target, PLACES[0])
    pixels = np.zeros((28, 28, 3), np.uint8)
    return Task("some:id", "any", (pixels,) * len(objects), "Which?", truth, "", objects)


SEEN: Final = task(
    things("red circle", "blue square", identities=(0, 1)),
    things("red circle", "red circle", "cyan star", identities=(0, 2, 3)),
    things("red circle", "cyan star", identities=(0, 3)),
    target="cyan star",
)
SAID: Final = (
    "Image-1: red circle, blue square\n"
    "Image-2: 2 red circle, cyan star\n"
    "Image-3: red circle, cyan star\n"
    "Image-1 = Image-2 = Image-3: red circle\n"
    "Image-2 = Image-3: cyan star\n"
    "cyan: cyan star"
)
MUTATIONS: Final = {
    "an object that is not in the image": ("Image-1: red", "Image-1: green star, red", "Image-1: 1 green star said, 0"),
    "an object left out": (", blue square", "", "Image-1: 0 blue square said, 1 annotated"),
    "another label": ("blue square", "blue star", "Image-1: 1 blue star said, 0 annotated"),
    "one more of a kind": ("2 red circle", "3 red circle", "Image-2: 3 red circle said, 2 annotated"),
    "one less of a kind": ("2 red circle", "red circle", "Image-2: 1 red circle said, 2 annotated"),
    "an image left out": ("Image-3: red circle, cyan star\n", "", "Image-3: 0 cyan star said, 1 annotated"),
    "an image twice": ("Image-3", "Image-1: red circle\nImage-3", "Image-1: 2 red circle said, 1 annotated"),
    "images swapped": ("Image-1: ", "Image-3: ", "Image-3: 1 blue square said, 0 annotated"),
    "a link of different objects": ("3: cyan star\nc", "3: cyan star, red circle\nc", "3: 1 red circle said, 0"),
    "a link to another image": ("\nImage-2 =", "\nImage-1 =", "Image-1 = Image-3: 1 cyan star said, 0 annotated"),
    "a link too short": ("Image-1 = Image-2 = ", "Image-2 = ", "Image-1 = Image-2 = Image-3: 0 red circle said, 1"),
    "a link left out": ("Image-2 = Image-3: cyan star\n", "", "Image-2 = Image-3: 0 cyan star said, 1 annotated"),
    "a link twice to one image": ("Image-3: cyan", "Image-2: cyan", "Image-2 = Image-2: 1 cyan star said, 0"),
    "an image above the last": ("Image-3: ", "Image-4: ", "Image-4 is said, there are images 1 to 3"),
    "an image below the first": ("Image-1: ", "Image-0: ", "Image-0 is said, there are images 1 to 3"),
    "a link to no image": ("Image-3: cyan", "Image-7: cyan", "Image-2 = Image-7 is said, there are images 1 to 3"),
    "another target": ("cyan: cyan star", "red: red circle", "targets ['red: red circle'] said, ['cyan: cyan star']"),
    "another first word": ("cyan: cyan", "red: cyan", "targets ['red: cyan star'] said, ['cyan: cyan star'] true"),
    "no target": ("\ncyan: cyan star", "", "targets [] said, ['cyan: cyan star'] true"),
    "two targets": ("cyan: c", "cyan: cyan star\ncyan: c", "targets ['cyan: cyan star', 'cyan: cyan star'] said"),
    "a sentence of another form": (
        "cyan:",
        "So it is clear.\ncyan:",
        "'So it is clear.' is a sentence of no known form",
    ),
    "an empty line": ("\ncyan:", "\n\ncyan:", "'' is a sentence of no known form"),
    "none of a kind": ("blue square", "blue square, 0 red star", "0 red star' is a sentence of no known form"),
    "a number beyond reason": (
        "2 red",
        "99999 red",
        "'Image-2: 99999 red circle, cyan star' is a sentence of no known",
    ),
    "an image of too many digits": ("Image-3: ", "Image-" + 5000 * "9" + ": ", " is a sentence of no known form"),
}


def test_it_lists_every_image_links_what_is_shared_and_ends_with_the_target() -> None:
    assert reasoning(SEEN) == SAID
    assert check_reasoning(SAID, SEEN) == []


@pytest.mark.parametrize(("old", "new", "fault"), MUTATIONS.values(), ids=MUTATIONS)
def test_the_check_finds(old: str, new: str, fault: str) -> None:
    mutated = SAID.replace(old, new, 1)
    assert mutated != SAID
    assert any(fault in found for found in check_reasoning(mutated, SEEN))


def test_a_fault_is_told_once() -> None:
    assert check_reasoning(SAID.replace("2 red circle", "3 red circle"), SEEN) == [
        "Image-2: 3 red circle said, 2 annotated"
    ]


def test_the_order_in_which_things_are_said_is_free() -> None:
    lines = SAID.replace("red circle, blue square", "blue square, red circle").split("\n")
    assert check_reasoning("\n".join(reversed(lines)), SEEN) == []


def test_what_is_said_of_one_task_is_full_of_faults_in_another() -> None:
    swapped = replace(SEEN, objects=SEEN.objects[::-1])
    assert len(check_reasoning(SAID, swapped)) >= 4


def test_objects_are_listed_from_left_to_right() -> None:
    shown = task(things("red circle", "blue square")[::-1])
    assert reasoning(shown) == "Image-1: red circle, blue square"


def test_an_object_of_unknown_identity_is_never_shared() -> None:
    assert reasoning(task(things("cat"), things("cat"))) == "Image-1: cat\nImage-2: cat"


def test_what_has_another_label_is_not_said_to_be_the_same() -> None:
    renamed = task(things("cat", identities=[1]), things("dog", identities=[1]))
    assert reasoning(renamed) == "Image-1: cat\nImage-2: dog"


def test_two_shared_objects_of_one_kind_are_counted() -> None:
    pair = things("cat", "cat", identities=(1, 2))
    assert reasoning(task(pair, pair)) == "Image-1: 2 cat\nImage-2: 2 cat\nImage-1 = Image-2: 2 cat"


def test_an_image_without_annotations_is_passed_over() -> None:
    detail = task((), things("red circle"), (), target="red circle")
    assert reasoning(detail) == "Image-2: red circle\nred: red circle"
    assert check_reasoning("Image-1: red circle\n" + reasoning(detail), detail) == [
        "Image-1: 1 red circle said, 0 annotated"
    ]


def test_without_annotations_only_the_target_is_left_to_say() -> None:
    assert reasoning(task((), (), target="red circle")) == "red: red circle"
    assert reasoning(task((), ())) == ""
    assert check_reasoning("red: red circle", task(())) == ["targets ['red: red circle'] said, [] true"]


def test_a_target_that_its_annotated_image_does_not_hold_is_refused() -> None:
    with pytest.raises(TaskError, match="some:id: no reasoning without a fault: the target 'dog' is not annotated in"):
        reasoning(task(things("dog"), things("cat"), target="dog"))


@pytest.mark.parametrize(
    "label",
    ["red, cell", "2 cats", "Image-1", "Image-1: cat", 'a "b"', "a = b", "a\nb", "x\\", "cat: cat", " cat", "猫 2"],
)
def test_a_label_that_could_be_read_as_something_else_is_quoted(label: str) -> None:
    shown = task(
        things("cat", label, identities=(0, 1)), things(label, "cat", label, identities=(1, 0, 2)), target=label
    )
    text = reasoning(shown)
    assert len(text.split("\n")) == 4
    assert text.startswith('Image-1: cat, "')
    assert check_reasoning(text.replace("cat, ", "", 1), shown) == ["Image-1: 0 cat said, 1 annotated"]


@pytest.mark.parametrize("label", ["jack-o-lantern", "WBC", "café", "猫", "traffic_light"])
def test_a_label_of_words_is_written_as_it_is(label: str) -> None:
    assert reasoning(task(things(label))) == f"Image-1: {label}"


def words_of(one: Task) -> tuple[list[list[str]], list[str]]:
    """The labels of each annotated image, and the last line, read from a rendered task's reasoning by hand."""
    lines = reasoning(one).split("\n")
    listed = [line.partition(": ")[2].split(", ") for line in lines if line.startswith("Image-") and "=" not in line]
    return listed, lines[-1].split(": ")


def assert_told_right(one: Task) -> None:
    listed, target = words_of(one)
    annotated = [objects for objects in one.objects if objects]
    assert [{words.lstrip("0123456789 ") for words in image} for image in listed] == [
        {thing.label for thing in objects} for objects in annotated
    ]
    if isinstance(one.truth, Grounding):
        assert target == [one.truth.label.split()[0], one.truth.label]
    assert check_reasoning(reasoning(one), one) == []


@pytest.mark.parametrize(("world", "task_type"), HOMES)
def test_every_task_type_of_every_world_is_told_without_a_fault(world: str, task_type: str) -> None:
    for number, split in enumerate(("train", HELD_OUT)):
        assert_told_right(make_task(world, task_type, None, split, number))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "task_type"), HOMES)
def test_forty_tasks_of_every_type_and_world_are_told_without_a_fault(world: str, task_type: str) -> None:
    for number in range(40):
        assert_told_right(make_task(world, task_type, (None, 5)[number % 2], "train", number))


def test_a_rendered_task_reads_like_this() -> None:
    assert reasoning(load_task("rendered:tiny/static_difference/any/train/2")) == (
        "Image-1: cyan diamond, purple diamond, yellow circle\n"
        "Image-2: green circle, purple diamond, yellow circle\n"
        "Image-1 = Image-2: purple diamond, yellow circle\n"
        "green: green circle"
    )


def test_photographs_with_many_objects_are_told_in_short_lines(bccd: str) -> None:
    tasks = OdinwTasks(bccd.removeprefix("odinw:"))
    told = [tasks.task(seed) for seed in range(len(tasks))]
    assert max(len(objects) for one in told for objects in one.objects) > 20
    for one in told:
        assert_told_right(one)
        assert max(map(len, reasoning(one).split("\n"))) < 60


# ---------------------------------------------------------------- only what is sought

WHERE: Final = "cyan star: Image-2, Image-3\ncyan: cyan star"
MISPLACED: Final = {
    "an image left out": (", Image-3", "", "Image-3: cyan star is annotated alone"),
    "an image that does not show it": ("Image-2", "Image-1, Image-2", "Image-1: cyan star is said alone"),
    "an image above the last": ("Image-3", "Image-3, Image-4", "Image-4: cyan star is said alone"),
    "an image twice": ("Image-2, ", "Image-2, Image-2, ", "images [2, 2, 3] of cyan star are not in order"),
    "another thing": (
        "cyan star: Image-2, Image-3",
        "blue square: Image-1",
        "{'blue square': 1} said, {'cyan star': 1}",
    ),
    "the sentence left out": ("cyan star: Image-2, Image-3\n", "", "places of {} said, {'cyan star': 1} is sought"),
    "the sentence twice": (
        "cyan star: Image",
        "cyan star: Image-2, Image-3\ncyan star: Image",
        "{'cyan star': 2} said",
    ),
    "another target": ("\ncyan: cyan star", "\nblue: blue square", "targets ['blue: blue square'] said"),
    "no target": ("\ncyan: cyan star", "", "targets [] said"),
    "a sentence of no form": (
        "\ncyan: ",
        "\nIt is hidden.\ncyan: ",
        "targets ['It is hidden.', 'cyan: cyan star'] said",
    ),
}


def test_places_say_which_images_show_what_is_sought() -> None:
    assert places(SEEN) == WHERE
    assert check_places(WHERE, SEEN) == []
    assert places(replace(SEEN, truth=TextAnswer("2"))) == ""


@pytest.mark.parametrize(("old", "new", "fault"), MISPLACED.values(), ids=MISPLACED)
def test_the_check_of_places_finds(old: str, new: str, fault: str) -> None:
    assert WHERE.count(old) == 1
    assert any(fault in found for found in check_places(WHERE.replace(old, new), SEEN))


def test_where_nothing_is_annotated_the_place_is_the_truths() -> None:
    bare = replace(SEEN, objects=((), (), ()), truth=Grounding(3, "cyan star", PLACES[0]))
    assert places(bare) == "cyan star: Image-3\ncyan: cyan star"
    assert check_places("cyan star: Image-2\ncyan: cyan star", bare) != []


def test_places_of_a_target_that_its_image_does_not_hold_are_refused() -> None:
    with pytest.raises(TaskError, match="some:id: no reasoning without a fault"):
        places(replace(SEEN, truth=Grounding(1, "cyan star", PLACES[0])))


@pytest.mark.parametrize(("world", "task_type"), HOMES)
def test_places_of_every_task_type_of_every_world_are_without_a_fault(world: str, task_type: str) -> None:
    for number in range(2):
        found = make_task(world, task_type, None, "train", number)
        assert check_places(places(found), found) == []
