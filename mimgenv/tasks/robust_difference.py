"""Robust difference: camera and light changed, and one object was replaced; find that (MIG-Bench `view_diff`).

As a question with a yes or a no as its answer: whether there is a real difference at all.

Difficulty: how far camera, light and grain change, number, size and overlap of things (the world's), and from 3 on the
new object differs from the old one in one attribute only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.scene import MovingWorld, Scene
from mimgenv.tasks.draft import Draft, Wording
from mimgenv.tasks.static_difference import Changed, draw_change

QUESTION: Final = Wording(
    (
        "Between Image-1 and Image-2 the camera and the light changed, and one object was replaced. Find the new object"
        " in Image-2.",
        "Image-2 shows the scene of Image-1 in another light and from a slightly different view. Find the one object in"
        " it that is not the same.",
        "Apart from view, light and grain, what is different in Image-2? Locate the object that was not in Image-1.",
    ),
    (
        "The camera was nudged and the lighting is new, but that is not the real change from Image-1 to Image-2. Box"
        " what is.",
        "Somebody swapped one object before Image-2 was taken. Ignore view and lighting, and point out the new object"
        " in Image-2.",
    ),
)
WHETHER: Final = Wording(
    (
        "Image-2 shows the scene of Image-1 from a slightly different view and in another light. Is one of the objects"
        " different? Answer with yes or no.",
        "Apart from view, light and grain, is there a difference between Image-1 and Image-2? Answer with yes or no.",
        "The camera and the light changed between Image-1 and Image-2. Was an object replaced too? Answer with yes or"
        " no.",
    ),
    (
        "Do Image-1 and Image-2 show the very same objects, or is one of them another? Answer with yes if one is"
        " another, else with no.",
        "Ignore view and lighting. Did any object change from Image-1 to Image-2? Answer with yes or no.",
    ),
)
RATIONALE: Final = "Image-2 shows a {label} where Image-1 shows something else."


@dataclass(frozen=True, slots=True)
class Differs:
    """`yes` if something stands in one of two images and not in the other, else `no`."""

    one: int
    other: int

    def execute(self, scenes: Sequence[Scene]) -> str:
        """See `Program`."""
        ways = (self.one, self.other), (self.other, self.one)
        return "yes" if any(Changed(*way).find(scenes) for way in ways) else "no"


def robust_difference(world: MovingWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Grounding: where the new object is. Places and kinds are compared, not pixels: these differ everywhere."""
    before, after = draw_change(world, rng, difficulty)
    disturbed = world.disturb(rng, after, difficulty)
    return Draft((before, disturbed), QUESTION, Changed(1, 2), RATIONALE, named_image=2)


def robust_difference_qa(world: MovingWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Question answering: half of the scenes are only disturbed."""
    before, after = draw_change(world, rng, difficulty)
    changed = rng.random() < 0.5
    disturbed = world.disturb(rng, after if changed else before, difficulty)
    rationale = "One object is another one." if changed else "All objects are the same."
    return Draft((before, disturbed), WHETHER, Differs(1, 2), rationale)
