"""Multi-view: three or four views of one table; find the marked object in another view (MIG-Bench `multi_view`).

Difficulty: how far the camera goes around the table (the world's), how many twins, things of the very kind of the
target, are told apart only by where they stand, and number, size and overlap of things (the world's).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Mark, Scene, SolidWorld
from mimgenv.tasks.draft import Draft, Wording, draw_twins
from mimgenv.tasks.program import Found, Query, only, things_of

VIEWS: Final = (3, 4)
"""Least and most images."""
KNOBS: Final[dict[int | None, tuple[int, int]]] = {1: (0, 0), 2: (1, 1), 3: (1, 1), 4: (1, 2), 5: (2, 3), None: (0, 2)}
"""Least and most twins of the target, by difficulty."""
LANDMARKS: Final = 2
"""Least things of other kinds: without them no one could say which twin is which."""
SHIFT: Final = 1 / 28
"""Least way over the picture, in picture sides, of the thing that moves most from any view to another."""
TRIES: Final = 10
"""How many views are looked at for one task."""
QUESTION: Final = Wording(
    (
        "The images show the same objects from different sides. Find in Image-{view} the object in the red box in"
        " Image-1.",
        "The camera went around the table. Where in Image-{view} is the object that Image-1 shows in a red box?",
        "One object has a red box around it in Image-1. Locate the very same object in Image-{view}.",
    ),
    (
        "These are several views of one scene. Box in Image-{view} what is boxed in red in Image-1.",
        "Seen from elsewhere, in Image-{view}: where is the object marked with a red box in Image-1?",
    ),
)
RATIONALE: Final = "This is where the {label} of Image-1 stands, seen from the side of Image-{image}."


@dataclass(frozen=True, slots=True)
class SamePlace(Query):
    """All things of image `target` of the kind, and at the place, of the marked thing of image `reference`."""

    reference: int
    target: int

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`.

        Raises:
            TaskError: If nothing or more than one thing is marked.
        """
        reference = scenes[self.reference - 1]
        marked = reference.things[only(reference.marks).thing]
        things = things_of(scenes, (self.target,))
        return tuple(w for w, thing in things if (thing.kind, thing.position) == (marked.kind, marked.position))


def multi_view(world: SolidWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """The view with the mark, and others at the same difficulty; the target is asked for in any of these."""
    kinds, twin = draw_twins(world, rng, difficulty, KNOBS[difficulty], LANDMARKS)
    images = int(rng.integers(VIEWS[0], VIEWS[1] + 1))
    first, *others = _draw_views(world, rng, kinds, difficulty, images)
    twins = [index for index, kind in enumerate(kinds) if kind == twin]
    marked = replace(first, marks=(Mark(twins[rng.integers(len(twins))]),))
    view = int(rng.integers(2, images + 1))
    return Draft((marked, *others), QUESTION, SamePlace(1, view), RATIONALE, view, fields={"view": view})


def _draw_views(
    world: SolidWorld, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, images: int
) -> list[Scene]:
    """A scene, and others that show it from farther around; no two of them are nearly the same picture."""
    views = [world.arrange(rng, kinds, difficulty)]
    for _ in range(TRIES):
        new = world.look_again(rng, views[0], difficulty)
        if all(_shift(world, new, view) >= SHIFT * world.side for view in views):
            views.append(new)
        if len(views) == images:
            return views
    raise TaskError(f"{len(views)} different views found, {images} wanted")


def _shift(world: SolidWorld, one: Scene, other: Scene) -> float:
    """Greatest way of a thing's foot over the picture from one view to another, in pixels."""
    feet = [(*thing.position, 0.0) for thing in one.things]
    return max(math.dist(world.project(one, foot), world.project(other, foot)) for foot in feet)
