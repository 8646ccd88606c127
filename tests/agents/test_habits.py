"""What a reader knows without looking, and what he learns from other tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.habits import ENOUGH, Asked, best_box, learn_habits, mean_iou, training_tasks
from mimgenv.geometry import iou
from mimgenv.tasks.rendered import RenderedTasks, make_task
from mimgenv.types import Answer, Box, Grounding, ObjectAnnotation, Task, TextAnswer

BOX = (10.0, 40.0, 30.0, 60.0)  # of an image 40 wide and 80 high: 0.25, 0.5, 0.75, 0.75


def task(
    truth: Answer,
    question: str = "Find it.",
    images: int = 2,
    named: int | None = None,
    kind: str = "t",
    wide: int = 40,
) -> Task:
    pixels = tuple(np.zeros((80, wide, 3), np.uint8) for _ in range(images))
    return Task("made:0", kind, pixels, question, truth, "why", ((),) * images, named)


def asked(question: str, images: int = 4) -> Asked:
    return Asked.of(task(TextAnswer("1"), question, images))


def test_neither_pixels_nor_truth_nor_annotations_reach_the_reader() -> None:
    true = make_task("tiny", "referring", None, "test", 3)
    assert isinstance(true.truth, Grounding)
    other = replace(
        true,
        task_id="another",
        images=tuple(255 - image for image in true.images),
        truth=Grounding(1, "x", (0.0, 0.0, 1.0, 1.0)),
        rationale="x",
        objects=((ObjectAnnotation("x", (0.0, 0.0, 1.0, 1.0)),),) * len(true.images),
    )
    assert Asked.of(other) == Asked.of(true)


def test_the_reader_knows_question_type_sizes_kind_of_answer_and_the_image_that_is_named() -> None:
    known = Asked.of(task(Grounding(2, "x", BOX), "Where?", 2, named=2, kind="referring"))
    assert known == Asked("referring", "Where?", ((40, 80), (40, 80)), True, 2)
    assert not Asked.of(task(TextAnswer("2"))).grounding


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? A: 1, 2; B: 2, 1; C: 1, 1. Answer with the letter.", "ABC"),
        ("Which of A, B, C and D is it?", "ABCD"),
        ("A red cube stands here. Where?", ""),
        ("Is it B or C?", ""),
        ("Which image? Answer with its number.", ""),
    ],
)
def test_options_are_the_letters_from_a_on(question: str, options: str) -> None:
    assert asked(question).options == options


def test_images_are_mentioned_in_the_order_of_the_question_and_must_be_there() -> None:
    assert asked("Is what Image-3 shows in Image-1, or in Image-9?").mentioned == (3, 1)


def test_tasks_are_alike_that_leave_the_same_choice() -> None:
    same = [asked("Is it in Image-1?"), asked("Look at Image-2.")]
    assert same[0].group == same[1].group
    others = [asked("Which?"), asked("Is it in Image-1?", 3), asked("A or B in Image-1?")]
    others += [Asked.of(task(TextAnswer("1"), "Is it in Image-1?", 4, wide=50))]
    others += [replace(same[0], task_type="u")]
    assert len({same[0].group, *(other.group for other in others)}) == 6


def test_mean_iou_is_the_mean_over_boxes() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((2, 7, 2, 2)), axis=2).reshape(2, 7, 4)
    means = mean_iou(corners[0], corners[1])
    expected = [np.mean([iou(tuple(a), tuple(b)) for b in corners[1]]) for a in corners[0]]
    assert means == pytest.approx(expected)


@pytest.mark.parametrize("box", [(0.13, 0.27, 0.34, 0.91), (0.0, 0.0, 1.0, 1.0), (0.96, 0.4, 0.99, 0.43)])
def test_the_best_box_for_boxes_all_alike_is_that_box(box: Box) -> None:
    assert iou(best_box(np.array([box] * 3)), box) > 0.9


def test_the_best_box_is_better_than_any_of_a_finer_grid() -> None:
    rng = np.random.default_rng(1)
    low = rng.random((60, 2)) * 0.7
    boxes = np.concatenate([low, low + 0.1 + 0.2 * rng.random((60, 2))], axis=1)
    edges = np.linspace(0, 1, 15)
    spans = [(a, b) for a in edges for b in edges if a < b]
    grid = np.array([(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans])
    assert mean_iou(np.array([best_box(boxes)]), boxes)[0] >= mean_iou(grid, boxes).max()


def test_habits_are_the_commonest_image_and_answer_and_the_best_box_in_fractions() -> None:
    boxes = [task(Grounding(image, "x", BOX)) for image in [2] * ENOUGH + [1] * (ENOUGH - 1)]
    texts = [task(TextAnswer(text), kind="u") for text in ["no"] * ENOUGH + ["yes"] * (ENOUGH + 1)]
    habits = learn_habits(iter(boxes + texts))
    for key in Asked.of(boxes[0]).keys(by_question=True):
        assert iou(habits.boxes[key], (0.25, 0.5, 0.75, 0.75)) > 0.95
        assert habits.images[key] == 2
    assert [habits.answers[key] for key in Asked.of(texts[0]).keys(by_question=True)] == [("yes", "no")] * 3


def test_a_habit_for_a_question_needs_enough_tasks_with_that_question() -> None:
    tasks = [task(TextAnswer("red"), "What?")] * (ENOUGH - 1) + [task(TextAnswer("blue"), "Which?")] * ENOUGH
    habits = learn_habits(tasks)
    by_question, by_group, by_type = Asked.of(tasks[0]).keys(by_question=True)
    assert by_question not in habits.answers
    boxes = [task(Grounding(1, "x", BOX), "Where?")] * (ENOUGH - 1) + [task(Grounding(2, "x", BOX), "Here?")]
    few = learn_habits(boxes)
    assert Asked.of(boxes[0]).keys(by_question=True)[0] not in {**few.boxes, **few.images}
    assert Asked.of(boxes[0]).group in few.boxes
    assert habits.answers[by_group] == habits.answers[by_type] == ("blue", "red")
    assert habits.answers[Asked.of(tasks[-1]).keys(by_question=True)[0]] == ("blue",)
    assert Asked.of(tasks[0]).keys(by_question=False) == (by_group, by_type)


def test_habits_are_learned_from_the_train_split_in_equal_shares_of_the_types() -> None:
    source = RenderedTasks("tiny", ("locate", "counting"), "test", 2)
    ids = [task.task_id.removeprefix("rendered:tiny/") for task in training_tasks(source, 2)]
    assert ids == ["locate/2/train/0", "counting/2/train/1", "locate/2/train/2", "counting/2/train/3"]


def test_a_source_without_splits_is_its_own_training_set_and_read_once() -> None:
    class Two:
        task_types = ("t",)

        def __len__(self) -> int:
            return 2

        def task(self, seed: int) -> Task:
            return task(TextAnswer(str(seed)))

    assert [learned.truth for learned in training_tasks(Two(), 5)] == [TextAnswer("0"), TextAnswer("1")]
