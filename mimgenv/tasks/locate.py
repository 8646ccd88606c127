"""Locate: find the described object in the one image there is.

Difficulty: number, size and overlap of things (the world's), and how many look-alikes stand around the target.
"""

from typing import Final

import numpy as np

from mimgenv.scenes.scene import World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, with_look_alikes
from mimgenv.tasks.program import Find

QUESTION: Final = Wording(
    ("Find the {target} in Image-1.", "Where is the {target} in Image-1?", "Locate the {target} in Image-1."),
    ("Point out the {target} in Image-1.", "Give the bounding box of the {target} in Image-1."),
)


def locate(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """One image; the object is named by its kind, or, where it stands alone, sometimes just called the object."""
    kinds = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty))
    scene = world.arrange(rng, kinds, difficulty)
    kind = kinds[rng.integers(len(kinds))]
    if len(kinds) == 1 and rng.random() < 0.6:  # so that an agent must see what it is, not copy it
        rationale, fields = "Image-1 shows one object, a {label}.", {"target": "object"}
        return Draft((scene,), QUESTION, Find((1,)), rationale, named_image=1, fields=fields)
    scene = with_look_alikes(world, rng, scene, kind, difficulty)
    query = Find((1,), kind.shape, kind.colour, kind.material)
    return Draft((scene,), QUESTION, query, "Image-1 shows one {label}.", named_image=1, fields={"target": kind.label})
