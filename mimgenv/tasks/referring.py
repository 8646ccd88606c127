"""Referring grounding: Image-1 shows an object; find it among others in Image-2 (MIG-Bench `refer_grounding`).

Difficulty: number, size and overlap of things (the world's), and how many look-alikes stand around the target.
"""

from typing import Final

import numpy as np

from mimgenv.scenes.scene import World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, with_look_alikes
from mimgenv.tasks.program import SameKind

QUESTION: Final = Wording(
    (
        "Find in Image-2 the object of Image-1.",
        "Where in Image-2 is the object that Image-1 shows?",
        "Image-1 shows an object. Locate it in Image-2.",
    ),
    (
        "The thing in Image-1 appears once more, in Image-2. Box it there.",
        "Which part of Image-2 shows what Image-1 shows?",
    ),
)
RATIONALE: Final = "Image-1 shows a {label}, and Image-2 shows one too."


def referring(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Two images; only the kind carries over: place, size and backdrop differ."""
    kinds = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty))
    target = int(rng.integers(len(kinds)))
    shown = world.arrange(rng, (kinds[target],), difficulty, first_identity=target)
    searched = world.arrange(rng, kinds, difficulty)
    searched = with_look_alikes(world, rng, searched, kinds[target], difficulty)
    return Draft((shown, searched), QUESTION, SameKind(1, 2), RATIONALE, named_image=2)
