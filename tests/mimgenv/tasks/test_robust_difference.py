"""Robust difference: everything looks a little different, one thing is another one, and only that counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.rendered import TASK_TYPES, WORLDS, make_task, world_of, worlds_of
from mimgenv.tasks.robust_difference import QUESTION, WHETHER, Differs
from mimgenv.types import Grounding, Task, TextAnswer

HOMES = [world for world in worlds_of("robust_difference") if world in WORLDS]
RED, BLUE = Kind("cube", "red"), Kind("cube", "blue")


def draft(world: str, task_type: str, seed: int, difficulty: int | None = None) -> Draft:
    """A draft that could be disturbed."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return TASK_TYPES[task_type](world_of(world), rng, difficulty)
        except TaskError:
            continue


def labels(task: Task, image: int) -> Counter[str]:
    return Counter(thing.label for thing in task.objects[image - 1])


def new_labels(task: Task) -> list[str]:
    return list((labels(task, 2) - labels(task, 1)).elements())


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_one_object_of_image_2_that_image_1_does_not_show(world: str, split: str) -> None:
    for number in range(6):
        task = make_task(world, "robust_difference", None, split, number)
        (label,) = new_labels(task)
        (new,) = (thing for thing in task.objects[1] if thing.label == label)
        assert task.truth == Grounding(2, label, new.box)
        assert task.named_image == 2
        assert new.identity not in {thing.identity for thing in task.objects[0]}


@pytest.mark.parametrize("world", HOMES)
def test_nearly_all_pixels_change_and_no_place(world: str) -> None:
    for seed in range(3):
        before, after = draft(world, "robust_difference", seed).scenes
        one, other = (world_of(world).render(scene).pixels for scene in (before, after))
        assert (one != other).any(axis=2).mean() > 0.7
        assert [thing.position for thing in before.things] == [thing.position for thing in after.things]


@pytest.mark.parametrize("task_type", ["robust_difference", "robust_difference_qa"])
@pytest.mark.parametrize("world", HOMES)
def test_the_program_sees_neither_identities_nor_view_nor_light(world: str, task_type: str) -> None:
    for seed in range(4):
        one = draft(world, task_type, seed)
        other = [
            replace(
                scene,
                backdrop=5,
                view=None,
                light=0,
                noise=0,
                things=tuple(replace(thing, identity=0) for thing in scene.things),
            )
            for scene in one.scenes
        ]
        assert one.program.execute(other) == one.program.execute(one.scenes)


@pytest.mark.parametrize("world", HOMES)
def test_a_second_real_difference_is_refused(world: str) -> None:
    for seed in range(4):
        one = draft(world, "robust_difference", seed)
        before, after = one.scenes
        found = one.program.execute(one.scenes)
        assert not isinstance(found, int | str)
        other = (found.index + 1) % len(after.things)
        kind = next(kind for kind in world_of(world).kinds if kind != after.things[other].kind)
        things = list(after.things)
        things[other] = replace(things[other], kind=kind)
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute((before, replace(after, things=tuple(things))))


@pytest.mark.parametrize("difficulty", [3, 5])
def test_from_difficulty_3_on_the_new_object_differs_in_one_attribute_on_the_table_top(difficulty: int) -> None:
    for seed in range(10):
        before, after = draft("tabletop", "robust_difference", seed, difficulty).scenes
        pairs = [(a.kind, b.kind) for a, b in zip(before.things, after.things, strict=True) if a.kind != b.kind]
        ((old, new),) = pairs
        assert (old.shape != new.shape) + (old.colour != new.colour) + (old.material != new.material) == 1


def test_the_harder_the_more_the_view_changes() -> None:
    turned = []
    for difficulty in (1, 3, 5):
        scenes = [draft("tabletop", "robust_difference", seed, difficulty).scenes for seed in range(12)]
        feet = [(pair, (*pair[0].things[0].position, 0.0)) for pair in scenes]
        world = world_of("tabletop")
        ways = [np.subtract(*(world.project(scene, foot) for scene in pair)) for pair, foot in feet]  # type: ignore[attr-defined]
        turned.append(np.mean([np.hypot(*way) for way in ways]))
    assert turned[0] < turned[1] < turned[2]


# Yes or no


def thing(kind: Kind, x: float) -> Thing:
    return Thing(0, kind, (x, 0.0), 1.0)


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        ((thing(RED, 0), thing(BLUE, 2)), (thing(RED, 0), thing(BLUE, 2)), "no"),
        ((thing(RED, 0), thing(BLUE, 2)), (thing(BLUE, 2), thing(RED, 0)), "no"),
        ((thing(RED, 0), thing(BLUE, 2)), (thing(RED, 0), thing(RED, 2)), "yes"),
        ((thing(RED, 0), thing(BLUE, 2)), (thing(RED, 0), thing(BLUE, 3)), "yes"),
        ((thing(RED, 0), thing(BLUE, 2)), (thing(RED, 0),), "yes"),
        ((thing(RED, 0),), (thing(RED, 0), thing(BLUE, 2)), "yes"),
    ],
)
def test_scenes_differ_by_kinds_and_places_in_either_direction(
    before: tuple[Thing, ...], after: tuple[Thing, ...], answer: str
) -> None:
    assert Differs(1, 2).execute((Scene(before, 1), Scene(after, 2, light=7, noise=3))) == answer


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_the_answer_is_yes_exactly_if_the_images_show_different_objects(world: str, split: str) -> None:
    for number in range(6):
        task = make_task(world, "robust_difference_qa", None, split, number)
        assert task.truth == TextAnswer("yes" if new_labels(task) else "no")


@pytest.mark.parametrize("world", HOMES)
def test_half_of_the_answers_are_yes(world: str) -> None:
    answers = [draft(world, "robust_difference_qa", seed, 1) for seed in range(200)]
    yes = sum(one.program.execute(one.scenes) == "yes" for one in answers)
    assert yes == pytest.approx(100, abs=28)  # four standard errors


@pytest.mark.parametrize("wording", [QUESTION, WHETHER])
def test_there_are_several_wordings_and_none_is_both_known_and_held_out(wording: object) -> None:
    known, held_out = wording.known, wording.held_out  # type: ignore[attr-defined]
    assert len(set(known)) >= 3
    assert len(set(held_out)) >= 2
    assert not set(known) & set(held_out)
    assert all("Image-2" in way for way in known + held_out)
