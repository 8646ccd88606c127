"""Temporal order: images of one place in shuffled order; in which order were they taken?

Either things are put there one after another and none is taken away, or one thing moves along a straight line and
Image-1 is said to be the first. Difficulty: which of the two, how many images there are, how far the thing moves from
one image to the next, and number, size and overlap of things (the world's).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Scene, Thing, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds
from mimgenv.tasks.program import nameless, only

Order: TypeAlias = tuple[int, ...]
"""Image numbers, the first taken first."""

LETTERS: Final = "ABCD"

FILLED: Final = Wording(
    (
        "Objects were added one after another and none was taken away. In which order were the images taken? {options}",
        "Nothing is ever removed here, things are only added. Put the images in order of time. {options}",
        "More and more objects stand in this place. Which order of the images is right? {options}",
    ),
    (
        "The place was empty once and was filled bit by bit. Which sequence of images shows this? {options}",
        "Sort the images from the earliest to the latest; objects only ever arrive. {options}",
    ),
)
MOVED: Final = Wording(
    (
        "Image-1 was taken first. One object moves in a straight line. In which order were the images taken? {options}",
        "From Image-1 on, one object moves straight ahead. Put the images in order of time. {options}",
        "One object goes straight on and never back; Image-1 is the first. Which order is right? {options}",
    ),
    (
        "It begins with Image-1. Follow the object that travels in a straight line. Which order is right? {options}",
        "Sort the images from the earliest, Image-1, to the latest; one object moves straight away. {options}",
    ),
)
RATIONALE: Final = "The order is {order}."
ROOM: Final = 0.55
"""Least distance of a moving thing from another, in the sum of their sizes."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes it hard.

    Attributes:
        images: Least and most images.
        moves: How likely it is that a thing moves; else things are put.
        step: Least and greatest distance between two moments of a mover, in sizes of it.
    """

    images: tuple[int, int]
    moves: float
    step: tuple[float, float] = (0.5, 1.0)


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((3, 3), 0),
    2: Knobs((3, 4), 0),
    3: Knobs((4, 4), 0.5, (0.6, 1.0)),
    4: Knobs((4, 4), 1, (0.5, 0.8)),
    5: Knobs((4, 4), 1, (0.35, 0.5)),
    None: Knobs((4, 4), 0.5),
}


@dataclass(frozen=True, slots=True)
class Filled:
    """The letter of the order in which each image shows all things of the one before, and more."""

    options: tuple[Order, ...]

    def execute(self, scenes: Sequence[Scene]) -> str:
        """See `Program`."""
        shown = [_looks(scene) for scene in scenes]
        order = sorted(range(len(scenes)), key=lambda place: len(shown[place]))
        if not all(shown[one] < shown[other] for one, other in pairwise(order)):
            raise TaskError("things were not only added")
        return _letter(self.options, order)


@dataclass(frozen=True, slots=True)
class Moved:
    """The letter of the order in which one thing goes straight away from its place in Image-1; all else stays."""

    options: tuple[Order, ...]

    def execute(self, scenes: Sequence[Scene]) -> str:
        """See `Program`."""
        still = frozenset.intersection(*map(_looks, scenes))
        movers = [only(tuple(_looks(scene) - still)) for scene in scenes]
        if len({replace(thing, position=(0.0, 0.0)) for thing in movers}) != 1:
            raise TaskError("not one thing moves")
        x, y = movers[0].position
        ways = [(thing.position[0] - x, thing.position[1] - y) for thing in movers]
        order = sorted(range(len(scenes)), key=lambda place: ways[place][0] ** 2 + ways[place][1] ** 2)
        for one, other in pairwise(order[1:]):
            if not _further(ways[one], ways[other]):
                raise TaskError("the thing does not move straight on")
        return _letter(self.options, order)


def _looks(scene: Scene) -> frozenset[Thing]:
    return frozenset(nameless(scene).things)


def _further(near: tuple[float, float], far: tuple[float, float]) -> bool:
    """Whether the second way goes in the direction of the first, which leads somewhere, and beyond it."""
    along = near[0] * far[0] + near[1] * far[1]
    aside = near[0] * far[1] - near[1] * far[0]
    return along > near[0] ** 2 + near[1] ** 2 and abs(aside) < 1e-6 * along


def _letter(options: tuple[Order, ...], order: Sequence[int]) -> str:
    right = tuple(place + 1 for place in order)
    return only([letter for letter, option in zip(LETTERS, options, strict=False) if option == right])


def temporal_order(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Three or four images of one place, and four orders to choose from, of which any may be the right one."""
    knobs = KNOBS[difficulty]
    images = int(rng.integers(knobs.images[0], knobs.images[1] + 1))
    moves = bool(rng.random() < knobs.moves)
    kinds = draw_kinds(rng, world.kinds, max(draw_count(world, rng, difficulty), images))
    scene = world.arrange(rng, kinds, difficulty)
    moments = _moved(rng, scene, images, knobs.step) if moves else _filled(rng, scene, images)
    orders = [order for order in permutations(range(1, images + 1)) if order[0] == 1 or not moves]
    options = tuple(orders[i] for i in rng.permutation(len(orders))[: len(LETTERS)])
    right = options[rng.integers(len(options))]
    scenes = tuple(moments[right.index(image)] for image in range(1, images + 1))
    fields = {"options": _in_words(options), "order": _listed(right)}
    if moves:
        return Draft(scenes, MOVED, Moved(options), RATIONALE, fields=fields)
    return Draft(scenes, FILLED, Filled(options), RATIONALE, fields=fields)


def _in_words(options: tuple[Order, ...]) -> str:
    pairs = zip(LETTERS, options, strict=False)
    return "; ".join(f"{letter}: {_listed(order)}" for letter, order in pairs) + ". Answer with the letter."


def _listed(order: Order) -> str:
    return ", ".join(map(str, order))


def _filled(rng: np.random.Generator, scene: Scene, images: int) -> tuple[Scene, ...]:
    """Moments of a place that ends as the scene: each shows the things of the one before, and more."""
    total = len(scene.things)
    arrival = rng.permutation(total)
    counts = (*(1 + np.sort(rng.permutation(total - 1)[: images - 1])), total)
    timed = list(zip(scene.things, arrival, strict=True))
    return tuple(replace(scene, things=tuple(thing for thing, when in timed if when < count)) for count in counts)


def _moved(rng: np.random.Generator, scene: Scene, images: int, step: tuple[float, float]) -> tuple[Scene, ...]:
    """Moments in which one thing moves towards the place of another, which is taken out.

    Both ends of the way are places where things are seen well, and so are in the picture with all that is between.

    Raises:
        TaskError: If no way is free and long enough.
    """
    pairs = list(permutations(range(len(scene.things)), 2))
    for pair in rng.permutation(len(pairs)):
        mover, goal = (scene.things[i] for i in pairs[pair])
        others = [thing for thing in scene.things if thing not in (mover, goal)]
        mover = replace(mover, size=min(mover.size, goal.size))
        way = np.subtract(goal.position, mover.position)
        length = float(np.hypot(*way))
        longest = min(step[1] * mover.size, length / (images - 1))
        if longest < step[0] * mover.size:
            continue
        stride = rng.uniform(step[0] * mover.size, longest) / length
        path = [mover.position, *(_along(mover, way, stride * moment) for moment in range(1, images))]
        if all(_apart(place, mover.size, other) for place in path for other in others):
            return tuple(replace(scene, things=(*others, replace(mover, position=place))) for place in path)
    raise TaskError(f"no free way for {images} images of a moving thing")


def _along(thing: Thing, way: npt.NDArray[np.float64], share: float) -> tuple[float, float]:
    return float(thing.position[0] + share * way[0]), float(thing.position[1] + share * way[1])


def _apart(place: tuple[float, float], size: float, other: Thing) -> bool:
    return float(np.hypot(*np.subtract(place, other.position))) > ROOM * (size + other.size)
