"""Region locating: Image-1 is a scene, the other images are enlarged parts of it; where is one of them (MIG-Bench
`region`)?

Difficulty: how many parts there are, how many look-alikes of what the part shows stand in the scene,
and number, size and overlap of things (the world's).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Cut, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, with_look_alikes
from mimgenv.tasks.program import Area, nameless, only
from mimgenv.types import Box

QUESTION: Final = Wording(
    (
        "Image-{k} is a part of another image, shown twice as large. Find that part in Image-1.",
        "All images but the first are parts of it, at twice the size. Where in Image-1 is Image-{k}?",
        "Locate in Image-1 what Image-{k} shows at twice the size.",
    ),
    (
        "Someone enlarged a piece of the first picture twofold: Image-{k}. Box the whole piece in Image-1.",
        "Image-{k} was cut out and doubled in size. Give the bounding box it had in Image-1.",
    ),
)
RATIONALE: Final = "Image-{k} shows the surroundings of the {label} in Image-1."

SIDES: Final = (42, 56, 70, 84)
"""Sides of a part in pixels; each is the least that suits the thing. Twice as large, they are multiples of 28."""

SHOWN: Final = 0.85
"""Least share of a thing's width, and of its height, that a part about it shows, as far as the greatest side allows."""

PARTS: Final[dict[int | None, tuple[int, int]]] = {1: (2, 2), 2: (2, 3), 3: (3, 3), 4: (3, 4), 5: (4, 4), None: (2, 4)}
"""Least and most parts, by difficulty."""


@dataclass(frozen=True, slots=True)
class PartOf:
    """The part of image `whole` that image `part` shows; the thing it is about must be the only one of its kind."""

    part: int
    whole: int

    def execute(self, scenes: Sequence[Scene]) -> Area:
        """See `Program`."""
        shown, whole = scenes[self.part - 1], scenes[self.whole - 1]
        if shown.cut is None or nameless(replace(shown, cut=None)) != nameless(whole):
            raise TaskError(f"Image-{self.part} is no part of Image-{self.whole}")
        kind = shown.things[shown.cut.about].kind
        index = only([index for index, thing in enumerate(whole.things) if thing.kind == kind])
        return Area(self.whole, index, shown.cut.box)


def region_locating(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A scene and two to four parts of it, each about another thing, which is anywhere in the part."""
    low, high = PARTS[difficulty]
    parts = int(rng.integers(low, high + 1))
    kinds = draw_kinds(rng, world.kinds, max(draw_count(world, rng, difficulty), parts))
    scene = world.arrange(rng, kinds, difficulty)
    boxes = {index: box for index, box in enumerate(world.render(scene).boxes) if box is not None}
    cuts: list[Cut] = []
    while boxes and len(cuts) < parts:
        cuts.append(_draw_cut(rng, boxes, world.side))
        del boxes[cuts[-1].about]
    scene = with_look_alikes(world, rng, scene, kinds[cuts[0].about], difficulty)
    order = rng.permutation(len(cuts))
    scenes = (scene, *(replace(scene, cut=cuts[place]) for place in order))
    k = 2 + int(np.flatnonzero(order == 0)[0])
    return Draft(scenes, QUESTION, PartOf(k, 1), RATIONALE, named_image=1, fields={"k": k})


def _draw_cut(rng: np.random.Generator, boxes: Mapping[int, Box], side: int) -> Cut:
    """A part about one of the things with these boxes, as near as can be to a place drawn from the whole picture.

    Things stand towards the middle. Were the thing drawn first, one box in the middle would often be a good answer.
    """
    aim = rng.uniform(0, side, 2)
    cuts = [Cut(_around(aim, box, side), index) for index, box in boxes.items()]
    return min(cuts, key=lambda cut: float(((np.reshape(cut.box, (2, 2)).mean(axis=0) - aim) ** 2).sum()))


def _around(aim: npt.NDArray[np.float64], seen: Box, side: int) -> Box:
    """The part that shows most of a box and whose middle is nearest to `aim`."""
    (x1, x2), (y1, y2) = (_stretch(aim[axis], seen[axis], seen[axis + 2], side) for axis in (0, 1))
    return float(x1), float(y1), float(x2), float(y2)


def _stretch(aim: float, low: float, high: float, limit: int) -> tuple[int, int]:
    """The stretch between 0 and `limit` that holds most of `low` to `high` and whose middle is nearest to `aim`."""
    length = next((length for length in SIDES if length >= SHOWN * (high - low)), SIDES[-1])
    held = min(SHOWN * (high - low), length)
    first, last = max(0, math.ceil(low + held - length)), min(limit - length, math.floor(high - held))
    start = min(max(first, round(aim - length / 2)), last)
    return start, start + length
