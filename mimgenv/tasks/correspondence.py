"""Correspondence: a spot on an object is ringed in one view; find it in another (MIG-Bench `correspondence`).

As a question with options: which of four lettered spots in the other view it is.

Difficulty: how far the camera goes around the table (the world's), which spots are asked for (`Spot.level`), on how
few objects the four options are, and number, size and overlap of things (the world's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.picture import spot
from mimgenv.scenes.scene import Mark, Point, Scene, SolidWorld, Thing
from mimgenv.scenes.tabletop.camera import sine_cosine
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds
from mimgenv.tasks.multi_view import SamePlace
from mimgenv.tasks.program import Part, only


@dataclass(frozen=True, slots=True)
class Spot:
    """A place on a solid that can be found again from another side. Lengths are in sizes of the thing.

    Attributes:
        level: 1 where it is the same from all sides, 2 at a corner, 3 where only the rest of the table tells it apart.
        height: Above the floor.
        away: From the vertical axis.
        quarters: Direction from there, in quarter turns beyond the turn of the thing.
    """

    level: int
    height: float
    away: float = 0.0
    quarters: float = 0.0


_TOP: Final = 0.8  # Of a cylinder.
_LID: Final = math.sqrt(0.5)  # Height of a cube, and its side.
SPOTS: Final[dict[str, tuple[Spot, ...]]] = {
    "cone": (Spot(1, 0.95),),
    "cylinder": (Spot(1, _TOP), *(Spot(3, _TOP, 0.32, quarters) for quarters in range(4))),
    "cube": (
        Spot(1, _LID),
        *(Spot(2, _LID, 0.42, quarters + 0.5) for quarters in range(4)),
        *(Spot(3, _LID, 0.29, quarters) for quarters in range(4)),
    ),
}
"""Spots that only another thing can hide: a hair below a tip, or on a top, in its middle or a hair from its rim."""

RADIUS: Final = 0.3
"""How far the area that is asked for reaches around the spot, in sizes of the thing."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes a spot hard to find.

    Attributes:
        level: Greatest level of a spot.
        holders: On how many things the options are.
    """

    level: int
    holders: int


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs(1, 4),
    2: Knobs(2, 3),
    3: Knobs(2, 3),
    4: Knobs(3, 2),
    5: Knobs(3, 2),
    None: Knobs(2, 3),
}
LETTERS: Final = "ABCD"
REFERENCE: Final = "REF"
ROOM: Final = 20, 14
"""Least distance of two lettered spots in pixels, across or down, so that rings and letters never touch."""
EDGE: Final = 16
"""Least distance of a lettered spot from the right edge: its letter is to the right of it."""
TRIES: Final = 10
"""How often options are drawn for one pair of views."""

QUESTION: Final = Wording(
    (
        "Image-1 and Image-2 show the same objects from two sides. A spot is ringed in red in Image-1. Find it in"
        " Image-2: box the spot and the part of the object around it, up to about a third of the object's size away.",
        "Which area of Image-2 shows the ringed spot of Image-1, and what lies around it on that object, up to about a"
        " third of its size away?",
        "A red ring marks a spot on an object in Image-1. Locate the same spot in Image-2, with the surface around it"
        " that is no farther away than about a third of the object's size.",
    ),
    (
        "Look at the red ring in Image-1, then at Image-2, taken from another side. Box the ringed part of the object"
        " there; it reaches about a third of the object's size in every direction.",
        "The same things again, from elsewhere. Where in Image-2 is the place that is ringed in Image-1? Box it, and as"
        " much of the object around it as is within a third of the object's size.",
    ),
)
WHICH_LETTER: Final = Wording(
    (
        "A spot is ringed and called REF in Image-1. Which of the ringed spots A, B, C and D of Image-2 is the same?"
        " Answer with its letter.",
        "Image-2 shows the objects of Image-1 from another side. Which letter marks the spot that is REF in Image-1?"
        " Answer with the letter.",
        "Four spots are lettered in Image-2. One of them is the spot REF of Image-1. Give its letter.",
    ),
    (
        "REF is a place on an object of Image-1. By which letter does it go in Image-2? Answer with the letter.",
        "Match the ring REF of Image-1 with one of the rings A to D of Image-2. Answer with one letter.",
    ),
)
RATIONALE: Final = "The ringed spot on the {label} of Image-1 is here, seen from the side of Image-2."


@dataclass(frozen=True, slots=True)
class SameSpot:
    """The surface around the spot in image `target` that is ringed in image `reference`."""

    reference: int
    target: int

    def execute(self, scenes: Sequence[Scene]) -> Part:
        """See `Program`."""
        found = SamePlace(self.reference, self.target).execute(scenes)
        radius = RADIUS * scenes[self.target - 1].things[found.index].size
        return Part(self.target, found.index, _ringed(scenes[self.reference - 1]), radius)


@dataclass(frozen=True, slots=True)
class SameLetter:
    """The letter in image `target` of the spot that is ringed in image `reference`."""

    reference: int
    target: int

    def execute(self, scenes: Sequence[Scene]) -> str:
        """See `Program`."""
        index = SamePlace(self.reference, self.target).execute(scenes).index
        point = _ringed(scenes[self.reference - 1])
        marks = scenes[self.target - 1].marks
        return only([mark.text for mark in marks if (mark.thing, mark.point) == (index, point)])


def _ringed(scene: Scene) -> Point:
    """Where the only ring of a scene is."""
    return only([mark.point for mark in scene.marks if mark.point is not None])


def correspondence(world: SolidWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Grounding: two views; the spot is on any thing, and seen in both."""
    views = _draw_views(world, rng, difficulty, least=1)
    marks = seen_spots(world, views, KNOBS[difficulty].level)
    if not marks:
        raise TaskError("no spot is seen from both sides")
    holders = sorted({mark.thing for mark in marks})
    holder = holders[rng.integers(len(holders))]
    there = [mark for mark in marks if mark.thing == holder]
    ringed = replace(views[0], marks=(there[rng.integers(len(there))],))
    return Draft((ringed, views[1]), QUESTION, SameSpot(1, 2), RATIONALE, named_image=2)


def visual_correspondence(world: SolidWorld, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Question answering: four spots are seen from both sides; any of them is asked for, so that none stands out."""
    knobs = KNOBS[difficulty]
    views = _draw_views(world, rng, difficulty, least=knobs.holders)
    options = _draw_options(world, rng, views, knobs)
    answer = options[rng.integers(len(options))]
    views[0] = replace(views[0], marks=(replace(answer, text=REFERENCE),))
    views[1] = replace(views[1], marks=tuple(replace(one, text=x) for one, x in zip(options, LETTERS, strict=True)))
    label = views[0].things[answer.thing].kind.label
    return Draft(tuple(views), WHICH_LETTER, SameLetter(1, 2), "The same spot on the {on}.", fields={"on": label})


def _draw_views(world: SolidWorld, rng: np.random.Generator, difficulty: int | None, least: int) -> list[Scene]:
    """Two views of at least so many things that have spots."""
    allowed = [kind for kind in world.kinds if kind.shape in SPOTS]
    count = max(least, draw_count(world, rng, difficulty))
    scene = world.arrange(rng, draw_kinds(rng, allowed, count), difficulty)
    return [scene, world.look_again(rng, scene, difficulty)]


def seen_spots(world: SolidWorld, views: Sequence[Scene], level: int) -> list[Mark]:
    """The spots of things that stand in all views, up to a level, that are seen in each."""
    marks = [
        Mark(index, _point(thing, place))
        for index, thing in enumerate(views[0].things)
        for place in SPOTS[thing.kind.shape]
        if place.level <= level
    ]
    return [mark for mark in marks if all(_pixel(world, view, mark) is not None for view in views)]


def _point(thing: Thing, place: Spot) -> Point:
    """Where a spot of a thing is in the world."""
    sine, cosine = sine_cosine(thing.turn + place.quarters * math.pi / 2)
    (x, y), away = thing.position, place.away * thing.size
    return x + away * cosine, y + away * sine, place.height * thing.size


def _pixel(world: SolidWorld, view: Scene, mark: Mark) -> tuple[int, int] | None:
    assert mark.point is not None
    return spot(world, view, mark.thing, mark.point)


def _draw_options(world: SolidWorld, rng: np.random.Generator, views: Sequence[Scene], knobs: Knobs) -> list[Mark]:
    """One spot per letter, in random order, with room for ring and letter in the second view."""
    marks = seen_spots(world, views, knobs.level)
    holders = sorted({mark.thing for mark in marks})
    for _ in range(TRIES):
        chosen = [holders[i] for i in rng.permutation(len(holders))[: knobs.holders]]
        pool = [mark for mark in marks if mark.thing in chosen]
        options = with_room(world, views[1], [pool[i] for i in rng.permutation(len(pool))])
        if len(options) >= len(LETTERS):
            return options[: len(LETTERS)]
    raise TaskError(f"no room for {len(LETTERS)} lettered spots on {knobs.holders} things")


def with_room(world: SolidWorld, view: Scene, marks: Sequence[Mark]) -> list[Mark]:
    """Those, from the first on, whose rings and letters do not touch the ones before."""
    kept: list[Mark] = []
    taken: list[tuple[int, int]] = []
    for mark in marks:
        pixel = _pixel(world, view, mark)
        if pixel is not None and pixel[0] < world.side - EDGE and all(_clear(pixel, other) for other in taken):
            kept.append(mark)
            taken.append(pixel)
    return kept


def _clear(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two lettered spots do not touch."""
    return abs(one[0] - other[0]) >= ROOM[0] or abs(one[1] - other[1]) >= ROOM[1]
