"""Group grounding: which of several images holds the described object, and where (MIG-Bench `group_grounding`)."""

import numpy as np

from mimgenv.scenes.scene import Scene, World
from mimgenv.tasks.draft import Draft, draw_count, draw_images, draw_kinds
from mimgenv.tasks.program import Find


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
        scenes.append(world.arrange(rng, tuple(kinds), difficulty, identity))
    query = Find(tuple(range(1, images + 1)), target.shape, target.colour, target.material)
    question = f"Find the image with the {target.label}, and where it is."
    return Draft(tuple(scenes), question, query, "Of these images only Image-{image} shows a {label}.")
