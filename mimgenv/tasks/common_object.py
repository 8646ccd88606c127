"""Common object: all images share exactly one kind of object; find it in one of them (MIG-Bench `common_object`).

Difficulty: how many images there are, how many other kinds are in all of them but one, how many look-alikes of the
common object stand in each, and number, size and overlap of things (the world's).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds, draw_others, same_objects
from mimgenv.tasks.program import Found, Query, things_of

QUESTION: Final = Wording(
    (
        "One object is in every image. Find it in Image-{k}.",
        "All images have one object in common. Where is it in Image-{k}?",
        "Just one kind of object can be seen in all of these images. Locate it in Image-{k}.",
    ),
    (
        "Whatever image you look at, one object is always there. Box it in Image-{k}.",
        "Name what no image lacks, and give its bounding box in Image-{k}.",
    ),
)
RATIONALE: Final = "Every image shows a {label}, and nothing else is in all of them."


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes it hard.

    Attributes:
        images: Least and most images; no more than a group of the world's and one.
        near: Least and most other kinds that are in all images but one.
    """

    images: tuple[int, int]
    near: tuple[int, int]


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((3, 3), (0, 0)),
    2: Knobs((3, 4), (0, 1)),
    3: Knobs((3, 5), (1, 1)),
    4: Knobs((4, 5), (1, 2)),
    5: Knobs((5, 5), (2, 3)),
    None: Knobs((3, 5), (0, 2)),
}


@dataclass(frozen=True, slots=True)
class Common(Query):
    """All things in `image` of a kind that every image shows."""

    image: int

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        shared = set.intersection(*({thing.kind for thing in scene.things} for scene in scenes))
        return tuple(where for where, thing in things_of(scenes, (self.image,)) if thing.kind in shared)


def common_object(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Three to five images of different places; the same object is in each, once."""
    knobs = KNOBS[difficulty]
    images = min(int(rng.integers(knobs.images[0], knobs.images[1] + 1)), world.group_sizes[1] + 1)
    target, *near = draw_kinds(rng, world.kinds, 1 + int(rng.integers(knobs.near[0], knobs.near[1] + 1)))
    absent = rng.integers(images, size=len(near))
    shown: list[tuple[Kind, ...]] = []
    for image in range(images):
        count = draw_count(world, rng, difficulty)
        here = [kind for kind, without in zip(near, absent, strict=True) if without != image][: count - 1]
        barred = set(near) | (set.intersection(*map(set, shown)) if image == images - 1 else set())
        others = draw_others(world, rng, target, barred, count - 1 - len(here), difficulty)
        kinds = [target, *here, *others]
        shown.append(tuple(kinds[i] for i in rng.permutation(count)))
    scenes = same_objects(tuple(world.arrange(rng, kinds, difficulty) for kinds in shown))
    k = int(rng.integers(images)) + 1
    return Draft(scenes, QUESTION, Common(k), RATIONALE, named_image=k, fields={"k": k})
