"""Odd one out: all objects of all images share a colour but one; find it, or say which image it is in.

Difficulty: number, size and overlap of things (the world's).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count
from mimgenv.tasks.program import Found, ImageOf, Query, things_of

IMAGES: Final = 3
QUESTION: Final = Wording(
    (
        "Find the one object whose colour is odd.",
        "All objects in these images but one have the same colour. Find that one.",
    ),
    ("Which object does not have the colour of all others? Box it.",),
)
WHICH_IMAGE: Final = Wording(
    (
        "Which image holds the one object whose colour is odd? Answer with its number.",
        "All objects but one have the same colour. In which image is that one? Answer with its number.",
    ),
    ("One object does not have the colour of all others. Give the number of its image.",),
)
RATIONALE: Final = "All other objects share a colour; the {label} in Image-{image} does not."


@dataclass(frozen=True, slots=True)
class OddColour(Query):
    """All things in `images` whose colour no other thing there has, where the others all share one colour."""

    images: tuple[int, ...]

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        things = things_of(scenes, self.images)
        colours = Counter(thing.kind.colour for _, thing in things)
        if len(colours) != 2:
            return ()
        return tuple(where for where, thing in things if colours[thing.kind.colour] == 1)


def _scenes(world: World, rng: np.random.Generator, difficulty: int | None) -> tuple[Scene, ...]:
    """Images of things in one common colour; one thing, in a random image, in another colour."""
    plain = world.common_kinds[rng.integers(len(world.common_kinds))]
    coloured = [kind for kind in world.kinds if kind.colour != plain[0].colour]
    odd_image = int(rng.integers(IMAGES))
    scenes: list[Scene] = []
    for image in range(IMAGES):
        count = min(draw_count(world, rng, difficulty), len(plain))
        kinds: list[Kind] = [plain[i] for i in rng.permutation(len(plain))[:count]]
        if image == odd_image:
            kinds[0] = coloured[rng.integers(len(coloured))]
        identity = sum(len(scene.things) for scene in scenes)
        scenes.append(world.arrange(rng, tuple(kinds), difficulty, identity))
    return tuple(scenes)


def odd_one_out(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Grounding: which image, and where."""
    images = tuple(range(1, IMAGES + 1))
    return Draft(_scenes(world, rng, difficulty), QUESTION, OddColour(images), RATIONALE)


def odd_one_out_qa(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Question answering: the number of the image."""
    images = tuple(range(1, IMAGES + 1))
    return Draft(_scenes(world, rng, difficulty), WHICH_IMAGE, ImageOf(OddColour(images)), "odd colour")
