"""Referring grounding: Image-1 shows an object; find it among others in Image-2 (MIG-Bench `refer_grounding`)."""

import numpy as np

from mimgenv.scenes.scene import World
from mimgenv.tasks.draft import Draft, draw_count, draw_kinds
from mimgenv.tasks.program import SameKind

RATIONALE = "Image-1 shows a {label}, and Image-2 shows one too."


def referring(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Two images; only the kind carries over: place, size and backdrop differ."""
    kinds = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty))
    target = int(rng.integers(len(kinds)))
    shown = world.arrange(rng, (kinds[target],), difficulty, first_identity=target)
    searched = world.arrange(rng, kinds, difficulty)
    question = "Find in Image-2 the object of Image-1."
    return Draft((shown, searched), question, SameKind(1, 2), RATIONALE, named_image=2)
