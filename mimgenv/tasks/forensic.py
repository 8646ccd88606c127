"""Forensic: into one of several images an object was pasted afterwards, so it throws no shadow; which image is it?

Difficulty: how little of the picture the missing shadow would darken, the number of images, and number, size and
overlap of things (the world's).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds
from mimgenv.tasks.program import Found, ImageOf, Query, things_of


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes a pasted object hard to spot.

    Attributes:
        images: Least and most.
        shadow: Least share of the picture that the missing shadow would darken.
    """

    images: tuple[int, int]
    shadow: float


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((3, 3), 0.0060),
    2: Knobs((3, 3), 0.0050),
    3: Knobs((3, 4), 0.0040),
    4: Knobs((4, 4), 0.0030),
    5: Knobs((4, 4), 0.0025),
    None: Knobs((3, 4), 0.0030),
}
DARKER: Final = 24
"""By how many grey levels a shadow must darken a pixel to be seen there."""
QUESTION: Final = Wording(
    (
        "One of these images was edited: an object without a shadow was pasted into it. Which image is it? Answer with"
        " its number.",
        "In which image does one object throw no shadow, because it was added afterwards? Answer with the number of the"
        " image.",
        "One image is not genuine: one of its objects was inserted later and casts no shadow. Give its number.",
    ),
    (
        "Which image is a forgery, with an object that was put in afterwards? Answer with its number.",
        "Look at the shadows: one image has been tampered with. Give the number of that image.",
    ),
)


@dataclass(frozen=True, slots=True)
class Pasted(Query):
    """All things that throw no shadow."""

    images: tuple[int, ...]

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        return tuple(where for where, thing in things_of(scenes, self.images) if thing.pasted)


def forensic(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Images of different things; in one of them, whichever, one thing lacks a shadow that would be seen."""
    knobs = KNOBS[difficulty]
    images = int(rng.integers(knobs.images[0], knobs.images[1] + 1))
    scenes: list[Scene] = []
    for _ in range(images):
        kinds = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty))
        scenes.append(world.arrange(rng, kinds, difficulty, sum(len(scene.things) for scene in scenes)))
    edited = int(rng.integers(images))
    scenes[edited], label = _with_pasted(world, rng, scenes[edited], knobs.shadow)
    query = Pasted(tuple(range(1, images + 1)))
    return Draft(tuple(scenes), QUESTION, ImageOf(query), "The {pasted} throws no shadow.", fields={"pasted": label})


def _with_pasted(world: World, rng: np.random.Generator, scene: Scene, least: float) -> tuple[Scene, str]:
    """The scene without the shadow of one thing, and what that thing is called.

    It is drawn to see how much of the shadow would be seen: where light comes from only the world knows.
    """
    shown = world.render(scene).pixels
    for index in rng.permutation(len(scene.things)):
        things = list(scene.things)
        things[index] = replace(things[index], pasted=True)
        edited = replace(scene, things=tuple(things))
        darkened = (world.render(edited).pixels > shown.astype(np.int16) + DARKER).any(-1)
        if np.count_nonzero(darkened) >= least * darkened.size:
            return edited, things[index].kind.label
    raise TaskError(f"no shadow darkens {least:.2%} of the picture")
