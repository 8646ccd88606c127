"""Group grounding: which of several images holds the described object, and where (MIG-Bench `group_grounding`).

Difficulty: number, size and overlap of things (the world's), and how many look-alikes each image holds.
"""

from typing import Final

import numpy as np

from mimgenv.scenes.scene import Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_images, draw_kinds, with_look_alikes
from mimgenv.tasks.program import Find

QUESTION: Final = Wording(
    (
        "Find the image with the {target}, and where it is.",
        "Which image shows the {target}? Find it there.",
        "Locate the {target}: in which image is it, and where?",
    ),
    ("Only one image shows the {target}. Box it in that image.", "Search all images for the {target}."),
)
RATIONALE: Final = "Of these images only Image-{image} shows a {label}."


def group_grounding(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A group of images; the target's kind is in one of them, once."""
    images = draw_images(world, rng)
    target = world.kinds[rng.integers(len(world.kinds))]
    others = [kind for kind in world.kinds if kind.colour != target.colour]
    holder = int(rng.integers(images))
    scenes: list[Scene] = []
    for image in range(images):
        kinds = list(draw_kinds(rng, others, draw_count(world, rng, difficulty)))
        if image == holder:
            kinds[0] = target
        identity = sum(len(scene.things) for scene in scenes)
        scene = world.arrange(rng, tuple(kinds), difficulty, identity)
        scenes.append(with_look_alikes(world, rng, scene, target, difficulty))
    query = Find(tuple(range(1, images + 1)), target.shape, target.colour, target.material)
    return Draft(tuple(scenes), QUESTION, query, RATIONALE, fields={"target": target.label})
