"""A task before it is drawn, and the step that draws and proves it.

A task type is a function `(world, rng, difficulty) -> Draft`. `finish` renders the scenes, runs the program, and
turns what it finds into the truth; a draft whose target is not unique or not well visible is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, cast

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.picture import patch_box, picture
from mimgenv.scenes.scene import Frame, Kind, Scene, SolidWorld, Thing, World
from mimgenv.tasks.program import Area, Found, Part, Program, Result
from mimgenv.types import Box, Grounding, Image, ObjectAnnotation, Task, TextAnswer

MIN_VISIBILITY: Final = 0.5
"""A thing less visible than this could be overlooked, so that no count or comparison would be fair."""


@dataclass(frozen=True, slots=True)
class Wording:
    """Ways to ask one question, with `{fields}` to fill in.

    Attributes:
        known: Those of train, val and test; a world for small models uses the first alone, in all splits.
        held_out: Those of `test_ood` in other worlds.
    """

    known: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """Scenes, the question in words and as a program, and why its answer is right.

    Attributes:
        scenes: One per image.
        question: What the agent reads.
        program: The same question in a form that can be executed; its result is the truth.
        rationale: Why, in a few words; `{label}` and `{image}` stand for the target's; of a text answer `{label}` is
            the text.
        named_image: The image the question names, if it does.
        fields: What to fill into the question and the rationale.
        may_hide: Whether things may be hardly visible; they are left out of the annotations. Never the target.
    """

    scenes: tuple[Scene, ...]
    question: str | Wording
    program: Program
    rationale: str = "{label}"
    named_image: int | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    may_hide: bool = False


TaskType: TypeAlias = Callable[[Any, np.random.Generator, int | None], Draft]
"""From a world (a `World`, `MovingWorld` or `SolidWorld`), a generator and a difficulty of 1 to 5 or None."""


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


def draw_lead(rng: np.random.Generator, count: int, lead: tuple[int, int], least: int, most: int) -> tuple[int, ...]:
    """`count` numbers from `least` to `most`, of which one, at a random place, leads all others.

    It leads the next by a number drawn from `lead`, as far as there is room; the others are close to each other.
    """
    ahead = min(int(rng.integers(lead[0], lead[1] + 1)), most - least)
    second = int(rng.integers(least, most - ahead + 1))
    others = rng.integers(max(least, second - 1), second + 1, size=count - 2)
    return tuple(int(number) for number in rng.permutation([second + ahead, second, *others]))


def draw_twins(
    world: World, rng: np.random.Generator, difficulty: int | None, twins: tuple[int, int], others: int = 0
) -> tuple[tuple[Kind, ...], Kind]:
    """The kinds of a scene in random order, and the one of them that several things may share.

    Args:
        world: Says which kinds there are, and how many things there are at a difficulty.
        rng: Draws all of it.
        difficulty: 1 to 5 or None.
        twins: Least and most things of the shared kind beside the first.
        others: Least things that are of kinds of their own.

    Raises:
        TaskError: If the world has fewer kinds.
    """
    count = int(rng.integers(twins[0], twins[1] + 1))
    own = max(others, draw_count(world, rng, difficulty) - 1 - count)
    shared, *rest = draw_kinds(rng, world.kinds, 1 + own)
    kinds = [shared] * (1 + count) + rest
    return tuple(kinds[i] for i in rng.permutation(len(kinds))), shared


def alike(one: Kind, other: Kind) -> bool:
    """Whether two kinds differ in exactly one attribute."""
    return (one.shape != other.shape) + (one.colour != other.colour) + (one.material != other.material) == 1


def with_look_alikes(
    world: World, rng: np.random.Generator, scene: Scene, target: Kind, difficulty: int | None
) -> Scene:
    """The scene with some things turned into look-alikes of a target kind, as the difficulty says.

    Things of the target kind stay, and no two kinds become equal. In a world without look-alikes nothing is drawn.
    """
    low, high = world.look_alikes(difficulty)
    if not high:
        return scene
    kinds = [thing.kind for thing in scene.things]
    near = [kind for kind in world.kinds if alike(kind, target) and kind not in kinds]
    others = [place for place, kind in enumerate(kinds) if kind != target]
    count = min(int(rng.integers(low, high + 1)), len(near), len(others))
    places, choice = rng.permutation(len(others))[:count], rng.permutation(len(near))[:count]
    for place, index in zip(places, choice, strict=True):
        kinds[others[place]] = near[index]
    things = (replace(thing, kind=kind) for thing, kind in zip(scene.things, kinds, strict=True))
    return replace(scene, things=tuple(things))


def draw_others(
    world: World, rng: np.random.Generator, target: Kind, barred: Collection[Kind], count: int, difficulty: int | None
) -> tuple[Kind, ...]:
    """`count` kinds, neither the target nor barred, of which as many look like the target as the difficulty says.

    Raises:
        TaskError: If there are too few.
    """
    allowed = [kind for kind in world.kinds if kind != target and kind not in barred]
    near = [kind for kind in allowed if alike(kind, target)]
    rest = [kind for kind in allowed if not alike(kind, target)]
    low, high = world.look_alikes(difficulty)
    alikes = min(int(rng.integers(low, high + 1)), len(near), count)
    return draw_kinds(rng, near, alikes) + draw_kinds(rng, rest, count - alikes)


def same_objects(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes with identities such that things of one kind are the same object in all of them."""
    numbers: dict[Kind, int] = {}
    named = (
        tuple(replace(thing, identity=numbers.setdefault(thing.kind, len(numbers))) for thing in scene.things)
        for scene in scenes
    )
    return tuple(replace(scene, things=things) for scene, things in zip(scenes, named, strict=True))


def finish(draft: Draft, world: World, task_id: str, task_type: str, held_out: bool = False) -> Task:
    """Draws a draft and lets its program find the truth.

    Args:
        draft: Of the task type.
        world: Draws it.
        task_id: Of the task; also decides how the question is worded.
        task_type: As in the table of types.
        held_out: Whether the question is asked in a held-out way.

    Raises:
        TaskError: If the target is not unique, or a thing is hardly visible.
    """
    bare = [replace(scene, marks=(), hole=None, cut=None) for scene in draft.scenes]
    drawn = {scene: world.render(scene) for scene in dict.fromkeys(bare)}
    frames = [drawn[scene] for scene in bare]
    objects = tuple(_annotations(scene, frame, draft) for scene, frame in zip(draft.scenes, frames, strict=True))
    images = tuple(picture(world, scene, frame) for scene, frame in zip(draft.scenes, frames, strict=True))
    truth = _truth(draft, world, frames)
    for image in images:
        image.flags.writeable = False  # tasks are cached and shared
    found = {"label": truth.label, "image": truth.image} if isinstance(truth, Grounding) else {"label": truth.text}
    return Task(
        task_id=task_id,
        task_type=task_type,
        images=images,
        question=_question(draft, world, task_id, held_out),
        truth=truth,
        rationale=draft.rationale.format(**{**draft.fields, **found}),
        objects=objects,
        named_image=draft.named_image,
        captions=tuple(_caption(each, image) for each, image in zip(objects, images, strict=True)),
    )


def _annotations(scene: Scene, frame: Frame, draft: Draft) -> tuple[ObjectAnnotation, ...]:
    if scene.cut is not None:
        return ()
    objects = []
    for thing, box, visibility in zip(scene.things, frame.boxes, frame.visibility, strict=True):
        if box is None or visibility < MIN_VISIBILITY:
            if draft.may_hide:
                continue
            raise _hidden(thing, visibility)
        if scene.hole is None or not _overlap(box, scene.hole):
            objects.append(ObjectAnnotation(thing.kind.label, box, thing.identity))
    return tuple(objects)


def _hidden(thing: Thing, visibility: float) -> TaskError:
    return TaskError(f"{thing.kind.label} is {visibility:.0%} visible, at least {MIN_VISIBILITY:.0%} wanted")


def _overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def _truth(draft: Draft, world: World, frames: Sequence[Frame]) -> Grounding | TextAnswer:
    result = draft.program.execute(draft.scenes)
    if isinstance(result, int | str):
        return TextAnswer(str(result))
    thing = draft.scenes[result.image - 1].things[result.index]
    box = _box(result, draft.scenes[result.image - 1], world, frames[result.image - 1])
    if box is None or frames[result.image - 1].visibility[result.index] < MIN_VISIBILITY:
        raise _hidden(thing, frames[result.image - 1].visibility[result.index])
    return Grounding(result.image, thing.kind.label, box)


def _box(result: Result, scene: Scene, world: World, frame: Frame) -> Box | None:
    match result:
        case Area(box=box):
            return box
        case Part(index=index, point=point, radius=radius):
            return patch_box(cast(SolidWorld, world), scene, frame, index, point, radius)
        case Found(index=index):
            return frame.boxes[index]
    return None


def _question(draft: Draft, world: World, task_id: str, held_out: bool) -> str:
    if isinstance(draft.question, str):
        return draft.question
    knows_one = world.wordings == 1  # whoever has read one way only cannot read another
    ways = draft.question.held_out if held_out and not knows_one else draft.question.known[: world.wordings]
    rng = np.random.default_rng(list(task_id.encode()))
    return ways[rng.integers(len(ways))].format(**draft.fields)


def _caption(objects: Sequence[ObjectAnnotation], image: Image) -> str:
    """What an image shows, in words, from left to right."""
    labels = [thing.label for thing in sorted(objects, key=lambda thing: thing.box[0] + thing.box[2])]
    return f"{len(labels)} objects: {', '.join(labels)}." if labels else "A detail."
