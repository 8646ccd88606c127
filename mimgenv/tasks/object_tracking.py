"""Object tracking: six moments of things in motion; follow the marked one (MIG-Bench `object_tracking`).

Difficulty: how many twins, things of the very kind of the target, move around with it; how far and how bent things
move, and for how long they hide each other; number, size and overlap of things (the world's).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Mark, MovingWorld, Scene
from mimgenv.tasks.draft import Draft, Wording, draw_twins
from mimgenv.tasks.program import Found, Query, only

FRAMES: Final = 6
KNOBS: Final[dict[int | None, tuple[int, int]]] = {1: (1, 1), 2: (1, 2), 3: (2, 2), 4: (2, 3), 5: (3, 4), None: (1, 3)}
"""Least and most twins of the target, by difficulty."""
QUESTION: Final = Wording(
    (
        "The images show things in motion, one moment after the other. Find in Image-{last} the object in the red box"
        " in Image-1.",
        "Follow the object in the red box in Image-1 from image to image. Where is it in Image-{last}?",
        "Track the object that Image-1 shows in a red box, and locate it in Image-{last}.",
    ),
    (
        "Keep an eye on the object boxed in red in Image-1 while things move. Box it in Image-{last}.",
        "These are frames of a film. Which object of Image-{last} is the one in the red box of Image-1?",
    ),
)
RATIONALE: Final = "Followed from image to image, the {label} of Image-1 comes to this place in Image-{image}."


@dataclass(frozen=True, slots=True)
class Followed(Query):
    """The marked thing of the first image in image `last`: in each next image the nearest thing of its kind."""

    last: int

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`.

        Raises:
            TaskError: If nothing or more than one thing is marked, or in some image the second nearest thing is less
                than twice as far as the nearest.
        """
        index = only(scenes[0].marks).thing
        for image in range(2, self.last + 1):
            index = _nearest(scenes[image - 2], index, scenes[image - 1])
        return (Found(self.last, index),)


def _nearest(before: Scene, index: int, after: Scene) -> int:
    """The thing of a scene that is nearest to where one of its kind was the moment before."""
    followed = before.things[index]
    ways = sorted(
        (math.dist(followed.position, thing.position), place)
        for place, thing in enumerate(after.things)
        if thing.kind == followed.kind
    )
    if not ways or (len(ways) > 1 and ways[1][0] < 2 * ways[0][0]):
        raise TaskError(f"a {followed.kind.label} moves to one of {[round(way, 2) for way, _ in ways]} away")
    return ways[0][1]


def object_tracking(world: MovingWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Six images; the target is one of several things of a kind, has moved, and is asked for in any later image."""
    kinds, twin = draw_twins(world, rng, difficulty, KNOBS[difficulty])
    frames = world.animate(rng, world.arrange(rng, kinds, difficulty), FRAMES, difficulty)
    last = int(rng.integers(2, FRAMES + 1))
    moving = [i for i, thing in enumerate(frames[0].things) if thing.kind == twin and _moves(frames, i, last)]
    if not moving:
        raise TaskError(f"no {twin.label} moves before image {last}")
    marked = replace(frames[0], marks=(Mark(moving[rng.integers(len(moving))]),))
    scenes = marked, *frames[1:]
    return Draft(scenes, QUESTION, Followed(last), RATIONALE, last, fields={"last": last}, may_hide=True)


def _moves(frames: Sequence[Scene], index: int, last: int) -> bool:
    return frames[0].things[index].position != frames[last - 1].things[index].position
