"""Odd one out: all objects of all images share a colour but one; find it, or say which image it is in."""

from dataclasses import replace

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, draw_count
from mimgenv.tasks.program import ImageOf, OddColour

IMAGES = 3
RATIONALE = "All other objects share a colour; the {label} in Image-{image} does not."


def _scenes(world: World, rng: np.random.Generator, difficulty: int | None) -> tuple[Scene, ...]:
    """Images of things in one common colour; one thing, in a random image, in another colour."""
    common = world.common_colours[rng.integers(len(world.common_colours))]
    plain = sorted({replace(kind, colour=common) for kind in world.kinds}, key=lambda kind: kind.label)
    coloured = [kind for kind in world.kinds if kind.colour != common]
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
    question = "Find the one object whose colour is odd."
    return Draft(_scenes(world, rng, difficulty), question, OddColour(images), RATIONALE)


def odd_one_out_qa(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Question answering: the number of the image."""
    images = tuple(range(1, IMAGES + 1))
    question = "Which image holds the one object whose colour is odd? Answer with its number."
    return Draft(_scenes(world, rng, difficulty), question, ImageOf(OddColour(images)), "odd colour")
