"""Similarity: Image-1 is the reference; which other image shows most of the same objects?

Difficulty: by how many shared objects the best image leads, how many images there are, and number, size and overlap of
things (the world's).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, draw_lead, same_objects
from mimgenv.tasks.program import only

QUESTION: Final = Wording(
    (
        "Which other image shows most of the objects of Image-1? Answer with its number.",
        "Count how many objects of Image-1 each other image shows too. Which shows the most? Answer with its number.",
        "Which image has the most objects in common with Image-1? Answer with its number.",
    ),
    (
        "Of the images after the first, one repeats more objects of Image-1 than any other. Give its number.",
        "Give the number of the image whose objects are most like those of Image-1.",
    ),
)
RATIONALE: Final = "shared objects: {shared}"


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes it hard.

    Attributes:
        choices: Least and most images to choose from; no more than a group of the world's.
        lead: Least and most shared objects by which the best image leads, as far as there are so many.
    """

    choices: tuple[int, int]
    lead: tuple[int, int]


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((2, 2), (2, 3)),
    2: Knobs((2, 3), (2, 3)),
    3: Knobs((3, 3), (1, 2)),
    4: Knobs((3, 4), (1, 2)),
    5: Knobs((4, 4), (1, 1)),
    None: Knobs((2, 4), (1, 3)),
}


@dataclass(frozen=True, slots=True)
class MostShared:
    """The number of the image, from Image-2 on, that has most objects in common with Image-1."""

    def execute(self, scenes: Sequence[Scene]) -> int:
        """See `Program`."""
        shared = shared_with_first(scenes)
        return only([image for image, count in enumerate(shared, 2) if count == max(shared)])


def shared_with_first(scenes: Sequence[Scene]) -> list[int]:
    """How many things of the first scene each of the others shows too."""
    first, *others = (Counter(thing.kind for thing in scene.things) for scene in scenes)
    return [(first & other).total() for other in others]


def similarity(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A reference and images to choose from, all with equally many objects, no two of one kind in an image."""
    knobs = KNOBS[difficulty]
    choices = min(int(rng.integers(knobs.choices[0], knobs.choices[1] + 1)), world.group_sizes[1])
    count = draw_count(world, rng, difficulty)
    shared = draw_lead(rng, choices, knobs.lead, 0, count)
    reference = draw_kinds(rng, world.kinds, count)
    shown = [reference, *(_kinds(world, rng, reference, number) for number in shared)]
    scenes = same_objects(tuple(world.arrange(rng, kinds, difficulty) for kinds in shown))
    return Draft(scenes, QUESTION, MostShared(), RATIONALE, fields={"shared": ", ".join(map(str, shared))})


def _kinds(world: World, rng: np.random.Generator, reference: tuple[Kind, ...], shared: int) -> tuple[Kind, ...]:
    """As many kinds as the reference has, in any order, `shared` of them the same."""
    missing = len(reference) - shared
    others = [kind for kind in world.kinds if kind not in reference]
    plain = [kind for kind in others if not any(_twins(kind, one) for one in reference)]
    kinds = [reference[i] for i in rng.permutation(len(reference))[:shared]]
    kinds += draw_kinds(rng, plain if len(plain) >= missing else others, missing)
    return tuple(kinds[i] for i in rng.permutation(len(kinds)))


def _twins(one: Kind, other: Kind) -> bool:
    """Whether two kinds differ in material only: to count them as different, one must look closely."""
    return (one.shape, one.colour) == (other.shape, other.colour)
