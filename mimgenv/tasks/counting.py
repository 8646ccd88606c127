"""Counting across images: how many objects of a colour are there in all images together.

Difficulty: number, size and overlap of things (the world's).
"""

from typing import Final

import numpy as np

from mimgenv.scenes.scene import Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_images, draw_kinds
from mimgenv.tasks.program import Count, Find

QUESTION: Final = Wording(
    (
        "How many {colour} objects are there in all images together?",
        "Count the {colour} objects over all images.",
    ),
    ("What is the total number of {colour} objects that the images show?",),
)


def counting(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A group of images, each with at most one object of the colour; every count is as likely as any other."""
    images = draw_images(world, rng)
    colours = sorted({kind.colour for kind in world.kinds})
    colour = colours[rng.integers(len(colours))]
    wanted = [kind for kind in world.kinds if kind.colour == colour]
    others = [kind for kind in world.kinds if kind.colour != colour]
    holders = rng.permutation(images)[: rng.integers(images + 1)]
    scenes: list[Scene] = []
    for image in range(images):
        kinds = list(draw_kinds(rng, others, draw_count(world, rng, difficulty)))
        if image in holders:
            kinds[0] = wanted[rng.integers(len(wanted))]
        identity = sum(len(scene.things) for scene in scenes)
        scenes.append(world.arrange(rng, tuple(kinds), difficulty, identity))
    query = Find(tuple(range(1, images + 1)), colour=colour)
    counts = [[found.image for found in query.find(scenes)].count(image) for image in query.images]
    return Draft(tuple(scenes), QUESTION, Count(query), " + ".join(map(str, counts)), fields={"colour": colour})
