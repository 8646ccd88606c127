"""Locate: find the described object in the one image there is."""

import numpy as np

from mimgenv.scenes.scene import World
from mimgenv.tasks.draft import Draft, draw_count, draw_kinds
from mimgenv.tasks.program import Find


def locate(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """One image; the object is named by its kind, or, where it stands alone, sometimes just called the object."""
    kinds = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty))
    scene = world.arrange(rng, kinds, difficulty)
    kind = kinds[rng.integers(len(kinds))]
    if len(kinds) == 1 and rng.random() < 0.6:  # so that an agent must see what it is, not copy it
        question, query = "Find the object in Image-1.", Find((1,))
        return Draft((scene,), question, query, "Image-1 shows one object, a {label}.", named_image=1)
    query = Find((1,), kind.shape, kind.colour, kind.material)
    return Draft((scene,), f"Find the {kind.label} in Image-1.", query, "Image-1 shows one {label}.", named_image=1)
