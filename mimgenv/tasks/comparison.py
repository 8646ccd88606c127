"""Comparison: which image shows the most, or the fewest, objects of a colour, of a shape, or in all?

Difficulty: by how many objects the answer leads, how many images there are, and number, size and overlap of things
(the world's).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, draw_lead
from mimgenv.tasks.program import only

QUESTION: Final = Wording(
    (
        "Which image shows the {extreme} {what}? Answer with its number.",
        "Compare the images: which one has the {extreme} {what}? Answer with its number.",
        "Count the {what} in each image. Where are there the {extreme}? Answer with the number of the image.",
    ),
    (
        "Give the number of the image that holds the {extreme} {what}.",
        "One image beats all others: it shows the {extreme} {what}. What is its number?",
    ),
)
PLURALS: Final = {"person": "people", "fish": "fish"}
RATIONALE: Final = "counts: {counts}"


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes it hard.

    Attributes:
        images: Least and most images; no more than a group of the world's.
        lead: Least and most objects by which the answer leads, as far as there are so many.
    """

    images: tuple[int, int]
    lead: tuple[int, int]


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((2, 2), (2, 3)),
    2: Knobs((2, 3), (2, 3)),
    3: Knobs((3, 3), (1, 2)),
    4: Knobs((3, 4), (1, 2)),
    5: Knobs((4, 4), (1, 1)),
    None: Knobs((2, 4), (1, 3)),
}


@dataclass(frozen=True, slots=True)
class Extreme:
    """The number of the image that shows the most, or the fewest, objects of a colour or shape; None is any."""

    colour: str | None
    shape: str | None
    fewest: bool

    def execute(self, scenes: Sequence[Scene]) -> int:
        """See `Program`."""
        counts = self.counts(scenes)
        extreme = min(counts) if self.fewest else max(counts)
        return only([image for image, count in enumerate(counts, 1) if count == extreme])

    def counts(self, scenes: Sequence[Scene]) -> list[int]:
        """How many objects of the sort each scene shows."""
        return [sum(self.fits(thing.kind) for thing in scene.things) for scene in scenes]

    def fits(self, kind: Kind) -> bool:
        """Whether things of a kind are counted."""
        return self.colour in (None, kind.colour) and self.shape in (None, kind.shape)


def comparison(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A group of images; where a colour or shape is asked for, all of them show equally many objects."""
    knobs = KNOBS[difficulty]
    images = min(int(rng.integers(knobs.images[0], knobs.images[1] + 1)), world.group_sizes[1])
    program, what = _question(world, rng)
    least = int(what == "objects")
    most = max(draw_count(world, rng, difficulty), least + 1)
    counts = draw_lead(rng, images, knobs.lead, least, most)
    if program.fewest:
        counts = tuple(least + most - count for count in counts)
    scenes: list[Scene] = []
    for count in counts:
        kinds = _kinds(world, rng, program, count, most if least == 0 else count)
        identity = sum(len(scene.things) for scene in scenes)
        scenes.append(world.arrange(rng, kinds, difficulty, identity))
    fields = {"extreme": "fewest" if program.fewest else "most", "what": what, "counts": ", ".join(map(str, counts))}
    return Draft(tuple(scenes), QUESTION, program, RATIONALE, fields=fields)


def _question(world: World, rng: np.random.Generator) -> tuple[Extreme, str]:
    """What is counted, as a program and in words."""
    fewest = bool(rng.integers(2))
    kind = world.kinds[rng.integers(len(world.kinds))]
    return (
        (Extreme(kind.colour, None, fewest), f"{kind.colour} objects"),
        (Extreme(None, kind.shape, fewest), PLURALS.get(kind.shape, f"{kind.shape}s")),
        (Extreme(None, None, fewest), "objects"),
    )[rng.integers(3)]


def _kinds(world: World, rng: np.random.Generator, program: Extreme, count: int, total: int) -> tuple[Kind, ...]:
    """`total` kinds in any order, of which `count` are of the sort that is counted; those may repeat."""
    wanted = [kind for kind in world.kinds if program.fits(kind)]
    others = [kind for kind in world.kinds if not program.fits(kind)]
    order = rng.permutation(len(wanted))
    kinds = [*(wanted[order[i % len(wanted)]] for i in range(count)), *draw_kinds(rng, others, total - count)]
    return tuple(kinds[i] for i in rng.permutation(total))
