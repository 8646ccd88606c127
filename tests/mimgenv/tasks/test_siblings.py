"""Siblings: more questions about the images of a task, each with one answer and an id that loads it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import mimgenv
from mimgenv import load_task, siblings
from mimgenv.errors import TaskError
from mimgenv.tasks.rendered import TINY_TYPES, make_task
from mimgenv.types import Grounding, ObjectAnnotation, Task, TextAnswer

PIXELS = np.zeros((28, 28, 3), np.uint8)


def thing(label: str, x: float = 0.0) -> ObjectAnnotation:
    return ObjectAnnotation(label, (x, 0.0, x + 1.0, 1.0))


def task(*objects: tuple[ObjectAnnotation, ...]) -> Task:
    return Task("made:1", "made", (PIXELS,) * len(objects), "What?", TextAnswer("x"), "why", objects, named_image=1)


def told(of: Task) -> list[tuple[str, str, object, int | None]]:
    return [(s.task_type, s.question, s.truth, s.named_image) for s in siblings(of)]


def test_what_leaves_something_to_be_found_comes_before_what_names_image_and_object() -> None:
    mug, spoon, other_mug = thing("mug", 1), thing("spoon", 2), thing("mug", 3)
    found = told(task((mug, spoon), (other_mug,)))
    assert sorted(found[:2], key=str) == [
        ("group_grounding", "Find the image with the spoon, and where it is.", Grounding(1, "spoon", spoon.box), None),
        ("locate", "Find the object in Image-2.", Grounding(2, "mug", other_mug.box), 2),
    ]
    assert sorted(found[2:], key=str) == [
        ("locate", "Find the mug in Image-1.", Grounding(1, "mug", mug.box), 1),
        ("locate", "Find the mug in Image-2.", Grounding(2, "mug", other_mug.box), 2),
        ("locate", "Find the spoon in Image-1.", Grounding(1, "spoon", spoon.box), 1),
    ]


def test_the_order_is_drawn_from_the_id_so_that_tasks_differ_and_a_task_does_not() -> None:
    objects = tuple(thing(name, 2.0 * place) for place, name in enumerate("abcdefgh"))
    one, other = (replace(task(objects), task_id=f"made:{number}") for number in (1, 2))
    assert told(one) == told(one)
    assert told(one) != told(other)
    assert sorted(told(one), key=str) == sorted(told(other), key=str)


def test_objects_of_one_label_in_one_image_are_not_asked_for() -> None:
    assert told(task((thing("mug", 1), thing("mug", 2)))) == []
    assert {question for _, question, _, _ in told(task((thing("mug", 1), thing("mug", 2)), (thing("mug", 3),)))} == {
        "Find the object in Image-2.",
        "Find the mug in Image-2.",
    }


def test_in_a_single_image_nothing_is_grouped() -> None:
    assert [s.task_type for s in siblings(task((thing("mug"), thing("spoon", 5))))] == ["locate", "locate"]


def test_an_image_without_objects_has_no_questions() -> None:
    assert siblings(task((), ())) == ()


def test_siblings_share_images_and_annotations_and_are_numbered() -> None:
    base = task((thing("mug"), thing("spoon", 5)))
    family = siblings(base)
    assert [s.task_id for s in family] == ["made:1+0", "made:1+1"]
    assert all(s.images is base.images and s.objects is base.objects for s in family)


@pytest.mark.parametrize("task_type", TINY_TYPES)
@pytest.mark.parametrize(("world", "count"), [("tiny", 10), ("tabletop", 1)])
def test_siblings_of_rendered_tasks_ask_for_one_thing_each_and_load_again(
    world: str, count: int, task_type: str
) -> None:
    for number in range(count):
        base = make_task(world, task_type, None, "val", number)
        family = siblings(base)
        assert family
        for sibling in family:
            assert isinstance(sibling.truth, Grounding)
            label, image = sibling.truth.label, sibling.truth.image
            looked_at = [base.objects[image - 1]] if sibling.task_type == "locate" else base.objects
            assert Counter(o.label for objects in looked_at for o in objects)[label] == 1
            alone = sibling.question == f"Find the object in Image-{image}." and len(base.objects[image - 1]) == 1
            assert alone or label in sibling.question
            assert [o.box for o in base.objects[image - 1] if o.label == label] == [sibling.truth.box]
            again = load_task(sibling.task_id)
            assert (again.task_id, again.question, again.truth) == (sibling.task_id, sibling.question, sibling.truth)
            assert [i.tobytes() for i in again.images] == [i.tobytes() for i in base.images]


def test_a_sibling_that_is_not_there_is_refused() -> None:
    base = make_task("tiny", "referring", None, "train", 3)
    count = len(siblings(base))
    assert load_task(f"{base.task_id}+{count - 1}").task_id == f"{base.task_id}+{count - 1}"
    with pytest.raises(TaskError, match=f"has {count} siblings"):
        load_task(f"{base.task_id}+{count}")


def test_a_sibling_can_be_played() -> None:
    sibling = siblings(make_task("tiny", "odd_one_out_qa", None, "train", 3))[-1]
    assert isinstance(sibling.truth, Grounding)
    env = gym.make("MultiImageTiny-v0")
    observation, info = env.reset(options={"task_id": sibling.task_id})
    assert info["task_type"] == "locate"
    assert observation["text"].endswith(sibling.question)
    x1, y1, x2, y2 = (v / 2 for v in sibling.truth.box)  # shown at half size
    turn = f'<think></think><answer>{{"label": "it", "bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}</answer>'
    assert env.step(mimgenv.default_codec().encode_turn(turn))[1] == 1.5
