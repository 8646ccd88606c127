"""A task before it is drawn, and the step that draws and proves it.

A task type is a function `(world, rng, difficulty) -> Draft`. `finish` renders the scenes, runs the program, and
turns what it finds into the truth; a draft whose target is not unique or not well visible is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Frame, Kind, Scene, World
from mimgenv.tasks.program import Found, Program, execute
from mimgenv.types import Grounding, ObjectAnnotation, Task, TextAnswer

MIN_VISIBILITY: Final = 0.5
"""A thing less visible than this could be overlooked, so that no count or comparison would be fair."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Scenes, the question in words and as a program, and why its answer is right.

    Attributes:
        scenes: One per image.
        question: What the agent reads.
        program: The same question for the executor; its result is the truth.
        rationale: Why, in a few words; `{label}` and `{image}` stand for the target's.
        named_image: The image the question names, if it does.
    """

    scenes: tuple[Scene, ...]
    question: str
    program: Program
    rationale: str = "{label}"
    named_image: int | None = None


TaskType: TypeAlias = Callable[[World, np.random.Generator, int | None], Draft]


def draw_count(world: World, rng: np.random.Generator, difficulty: int | None) -> int:
    """How many things a scene gets."""
    low, high = world.counts(difficulty)
    return int(rng.integers(low, high + 1))


def draw_images(world: World, rng: np.random.Generator) -> int:
    """How many images a task over a group of them shows."""
    low, high = world.group_sizes
    return int(rng.integers(low, high + 1))


def draw_kinds(rng: np.random.Generator, allowed: Sequence[Kind], count: int) -> tuple[Kind, ...]:
    """`count` different kinds, of different colours as far as there are any.

    Raises:
        TaskError: If fewer kinds are allowed.
    """
    if count > len(allowed):
        raise TaskError(f"{count} kinds wanted, {len(allowed)} allowed")
    shuffled = [allowed[i] for i in rng.permutation(len(allowed))]
    first_of_colour = list({kind.colour: kind for kind in reversed(shuffled)}.values())[::-1]
    others = [kind for kind in shuffled if kind not in first_of_colour]
    return tuple((first_of_colour + others)[:count])


def _annotations(scene: Scene, frame: Frame) -> tuple[ObjectAnnotation, ...]:
    seen = zip(scene.things, frame.boxes, frame.visibility, strict=True)
    objects = []
    for thing, box, visibility in seen:
        if box is None or visibility < MIN_VISIBILITY:
            raise TaskError(f"{thing.kind.label} is {visibility:.0%} visible, at least {MIN_VISIBILITY:.0%} wanted")
        objects.append(ObjectAnnotation(thing.kind.label, box, thing.identity))
    return tuple(objects)


def finish(draft: Draft, world: World, task_id: str, task_type: str) -> Task:
    """Draws a draft and lets the executor find its truth.

    Raises:
        TaskError: If the target is not unique, or a thing is hardly visible.
    """
    frames = tuple(world.render(scene) for scene in draft.scenes)
    objects = tuple(_annotations(scene, frame) for scene, frame in zip(draft.scenes, frames, strict=True))
    result = execute(draft.program, draft.scenes)
    truth: Grounding | TextAnswer
    if isinstance(result, Found):
        target = objects[result.image - 1][result.index]
        truth = Grounding(result.image, target.label, target.box)
        rationale = draft.rationale.format(label=target.label, image=result.image)
    else:
        truth, rationale = TextAnswer(str(result)), draft.rationale
    images = tuple(frame.pixels for frame in frames)
    return Task(task_id, task_type, images, draft.question, truth, rationale, objects, draft.named_image)
