"""What every task type promises: the same task for the same seed, and one truth that its program proves."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Scene, World
from mimgenv.tasks.draft import MIN_VISIBILITY, Draft, TaskType, Wording, finish
from mimgenv.tasks.program import Area, Found, ImageOf, Part, Result
from mimgenv.tasks.registry import load_task
from mimgenv.tasks.rendered import ATTEMPTS, SPLITS, TASK_TYPES, make_task, world_of, worlds_of
from mimgenv.types import Box, Grounding, Image, Task, TextAnswer

DIFFICULTIES: Final = (None, 1, 2, 3, 4, 5)


def check_task_type(
    task_type: str | TaskType, worlds: Sequence[str] | None = None, seeds: Sequence[int] = (0, 1)
) -> None:
    """Makes tasks in every difficulty, known and held out, and asserts that each keeps the contract.

    Args:
        task_type: A name in `TASK_TYPES`, whose ids are then loaded as well; or the function itself.
        worlds: Names in `WORLDS`; None for those in which the named type is at home, or for `tabletop`.
        seeds: Of the tasks; six are made of each.

    Raises:
        AssertionError: If a rule is broken; the message states it.
    """
    make = TASK_TYPES[task_type] if isinstance(task_type, str) else task_type
    if worlds is None:
        worlds = worlds_of(task_type) if isinstance(task_type, str) else ("tabletop",)
    for world in worlds:
        for held_out in (False, True):
            for seed in seeds:
                _check_seed(make, world_of(world, held_out), held_out, seed)
        if isinstance(task_type, str):
            _check_ids(world, task_type, seeds)


@dataclass(frozen=True, slots=True)
class _Made:
    """A task, and what it was made from."""

    draft: Draft
    task: Task
    world: World


def _check_seed(make: TaskType, world: World, held_out: bool, seed: int) -> None:
    for place, difficulty in enumerate(DIFFICULTIES):
        number = seed * len(DIFFICULTIES) + place
        before = _global_states()
        made = _make(make, world, held_out, number, difficulty)
        assert _global_states() == before, "every random choice comes from the generator passed in"
        if difficulty is None:
            again = _make(make, world, held_out, number, difficulty)
            assert same_task(made.task, again.task), f"the same seed makes the same task: {made.task.task_id}"
        for rule in (_check_wordings, _check_question, _check_objects, _check_truth, _check_one_target):
            rule(made)


def _global_states() -> str:
    return repr((random.getstate(), np.random.get_state()))  # noqa: NPY002  to see that nobody uses it


def _make(make: TaskType, world: World, held_out: bool, number: int, difficulty: int | None) -> _Made:
    rng = np.random.default_rng([number, held_out])
    task_id = f"{world.name}, held_out={held_out}, difficulty={difficulty}, number={number}"
    reason: TaskError | None = None
    for _ in range(ATTEMPTS):
        try:
            draft = make(world, rng, difficulty)
            return _Made(draft, finish(draft, world, task_id, "checked", held_out), world)
        except TaskError as error:
            reason = error
        except Exception as error:
            raise AssertionError(f"a task type raises nothing but TaskError: {error!r} for {task_id}") from error
    raise AssertionError(f"a task comes about in {ATTEMPTS} attempts at every difficulty: {task_id}: {reason}")


def same_task(one: Task, other: Task) -> bool:
    """Whether two tasks are equal in everything, pixel for pixel."""
    rest = [field.name for field in fields(Task) if field.name != "images"]
    if any(getattr(one, name) != getattr(other, name) for name in rest) or len(one.images) != len(other.images):
        return False
    return all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))


def _check_wordings(made: _Made) -> None:
    """Every way to ask, whether or not this world uses it."""
    question = made.draft.question
    for way in (*question.known, *question.held_out) if isinstance(question, Wording) else ():
        try:
            way.format(**made.draft.fields)
        except (LookupError, ValueError) as error:
            raise AssertionError(f"every wording can be filled in: {error!r} in {way!r}") from error


def _check_question(made: _Made) -> None:
    task, said = made.task, made.task.question
    assert said.strip() and not re.search(r"[<>{}]", said), f"a question is plain text, filled in: {said!r}"
    named = {int(number) for number in re.findall(r"Image-(\d+)", said)}
    there = set(range(1, len(task.images) + 1))
    assert named <= there, f"a question names images that exist: {sorted(named)} of {len(task.images)} in {said!r}"
    if task.named_image is not None:
        assert task.named_image in named, f"a question names the image it is said to name: {task.named_image}, {said!r}"
        right = not isinstance(task.truth, Grounding) or task.truth.image == task.named_image
        assert right, f"the truth is in the image that is named: {task.truth}, {task.named_image}"


def _check_objects(made: _Made) -> None:
    task = made.task
    for image, objects in zip(task.images, task.objects, strict=True):
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, "an image is (H, W, 3) uint8"
        for each in objects:
            assert _inside(each.box, image), f"an annotated object lies in its image: {each}, {image.shape}"


def _inside(box: Box, image: Image) -> bool:
    height, width = image.shape[:2]
    return bool(0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height)


def _check_truth(made: _Made) -> None:
    task, draft = made.task, made.draft
    result = draft.program.execute(draft.scenes)
    if isinstance(result, int | str):
        assert task.truth == TextAnswer(str(result)), f"the program's answer is the truth: {result}, {task.truth}"
        assert str(result).strip(), "an answer is not empty"
        return
    assert isinstance(task.truth, Grounding), f"the program's answer is the truth: {result}, {task.truth}"
    thing = draft.scenes[result.image - 1].things[result.index]
    found, told = (result.image, thing.kind.label), (task.truth.image, task.truth.label)
    assert found == told, f"the program's answer is the truth: {found}, {told}"
    assert _inside(task.truth.box, task.images[result.image - 1]), f"the truth lies in its image: {task.truth}"
    _check_visible(made, result, task.truth)


def _check_visible(made: _Made, result: Found | Part | Area, truth: Grounding) -> None:
    scene = replace(made.draft.scenes[result.image - 1], marks=(), hole=None, cut=None)
    frame = made.world.render(scene)
    x1, y1, x2, y2 = (round(value) for value in truth.box)
    shown = (frame.instances[y1:y2, x1:x2] == result.index + 1).any()
    seen = frame.visibility[result.index]
    assert shown and seen >= MIN_VISIBILITY, f"the truth is where its thing is seen: {truth}, {seen:.0%} visible"


def _check_one_target(made: _Made) -> None:
    """A second thing, like the target in all respects, must make the program refuse."""
    draft = made.draft
    program = draft.program.of if isinstance(draft.program, ImageOf) else draft.program
    result = program.execute(draft.scenes)
    if isinstance(result, int | str):
        return
    scenes = with_second(draft.scenes, result)
    try:
        again: Result = draft.program.execute(scenes)
    except TaskError:
        return
    raise AssertionError(f"a program refuses a second match: it still finds {again} by {draft.program}")


def with_second(scenes: Sequence[Scene], result: Found | Part | Area) -> tuple[Scene, ...]:
    """The scenes with the thing of a result twice; a picture that shows it as a whole shows both."""
    changed = list(scenes)
    scene = scenes[result.image - 1]
    changed[result.image - 1] = replace(scene, things=(*scene.things, scene.things[result.index]))
    return tuple(changed)


def _check_ids(world: str, task_type: str, seeds: Sequence[int]) -> None:
    for split in SPLITS:
        for seed in seeds:
            made = make_task.__wrapped__(world, task_type, None, split, seed)
            loaded = load_task(made.task_id)
            assert same_task(made, loaded), f"an id loads the task that it was given: {made.task_id}"
