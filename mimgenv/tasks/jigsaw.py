"""Jigsaw: Image-1 has a hole, the other images are pieces; which piece fits?

The hole cuts through a thing, so that a piece that does not belong there breaks its outline or its colour: it shows
another thing, no thing, or another place. Difficulty: how many pieces there are, how far off the wrong places are, and
number, size and overlap of things (the world's).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Cut, Scene, World
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds
from mimgenv.tasks.program import nameless, only
from mimgenv.tasks.static_difference import with_kind
from mimgenv.types import Box

Mask: TypeAlias = npt.NDArray[np.bool_]

LETTERS: Final = "ABCD"
QUESTION: Final = Wording(
    (
        "A part of Image-1 is missing. Which piece, shown twice as large, fits? {options}",
        "Which of the pieces fills the grey hole of Image-1? They are shown at twice the size. {options}",
        "Image-1 is a puzzle that lacks one piece. Which one completes it? {options}",
    ),
    (
        "Something grey hides a square of Image-1. Which enlarged piece shows what is behind it? {options}",
        "Find the piece that continues Image-1 across the edges of its hole. {options}",
    ),
)

RATIONALE: Final = "The piece continues the {thing}."

HOLE: Final = 84
"""Side of the hole and of each piece, in pixels; twice as large, a multiple of 28."""

HIDDEN: Final = (0.35, 0.65)
"""Least and greatest share of the thing that the hole hides: both parts can be recognised."""

CROSSING: Final = 16
"""Least length of the hole's edge on the thing, and of where a piece from another place breaks it, in pixels."""

TRIES: Final = 50
"""Wrong places tried for one piece."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What makes it hard.

    Attributes:
        pieces: Least and most pieces.
        wrong: What wrong pieces may show.
        off: Least and greatest distance of a wrong place, in pixels, sideways and up or down.
    """

    pieces: tuple[int, int]
    wrong: tuple[str, ...]
    off: tuple[int, int]


KNOBS: Final[dict[int | None, Knobs]] = {
    1: Knobs((2, 2), ("nothing", "elsewhere"), (56, 140)),
    2: Knobs((2, 3), ("nothing", "other", "elsewhere"), (42, 112)),
    3: Knobs((3, 4), ("nothing", "other", "elsewhere"), (28, 84)),
    4: Knobs((4, 4), ("other", "elsewhere"), (21, 42)),
    5: Knobs((4, 4), ("other", "elsewhere", "elsewhere"), (14, 28)),
    None: Knobs((2, 4), ("nothing", "other", "elsewhere"), (21, 84)),
}


@dataclass(frozen=True, slots=True)
class Fits:
    """The letter of the piece that shows the very place that is hidden in Image-1; Image-2 is A."""

    def execute(self, scenes: Sequence[Scene]) -> str:
        """See `Program`."""
        puzzle, *pieces = map(nameless, scenes)
        whole = replace(puzzle, hole=None)
        fitting = [piece.cut is not None and piece.cut.box == puzzle.hole for piece in pieces]
        same = [replace(piece, cut=None) == whole for piece in pieces]
        return only([letter for letter, *proofs in zip(LETTERS, fitting, same, strict=False) if all(proofs)])


def jigsaw(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A scene with a hole and two to four pieces, of which any may be the right one."""
    knobs = KNOBS[difficulty]
    scene = world.arrange(rng, draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty)), difficulty)
    instances = world.render(scene).instances
    cut = draw_hole(rng, instances, len(scene.things))
    count = int(rng.integers(knobs.pieces[0], knobs.pieces[1] + 1))
    pieces = [replace(scene, cut=cut)]
    while len(pieces) < count:
        piece = _draw_wrong(world, rng, pieces[0], cut, instances == cut.about + 1, knobs)
        if piece not in pieces:
            pieces.append(piece)
    shuffled = (pieces[i] for i in rng.permutation(count))
    options = ", ".join(f"{letter}: Image-{image}" for image, letter in enumerate(LETTERS[:count], 2))
    fields = {"options": f"{options}. Answer with the letter.", "thing": scene.things[cut.about].kind.label}
    return Draft((replace(scene, hole=cut.box), *shuffled), QUESTION, Fits(), RATIONALE, fields=fields)


def draw_hole(rng: np.random.Generator, instances: npt.NDArray[np.int16], things: int) -> Cut:
    """A square that hides a part of one of the things; all such squares are as likely as each other.

    Raises:
        TaskError: If no thing can be cut through so that both parts can be recognised.
    """
    for about in rng.permutation(things):
        mask = instances == about + 1
        hidden = _windows(mask, HOLE)
        crossing = hidden - _windows(mask, HOLE - 2)[1:-1, 1:-1]
        share = hidden / max(1, mask.sum())
        places = np.argwhere((share >= HIDDEN[0]) & (share <= HIDDEN[1]) & (crossing >= CROSSING))
        if len(places):
            y, x = map(float, places[rng.integers(len(places))])
            return Cut((x, y, x + HOLE, y + HOLE), int(about))
    raise TaskError("no thing can be cut through")


def _windows(mask: Mask, side: int) -> npt.NDArray[np.int64]:
    """How many pixels of a mask each square of some side holds, by its upper left corner."""
    sums = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = sums[side:] - sums[:-side]
    squares: npt.NDArray[np.int64] = rows[:, side:] - rows[:, :-side]
    return squares


def _draw_wrong(world: World, rng: np.random.Generator, right: Scene, cut: Cut, mask: Mask, knobs: Knobs) -> Scene:
    """A piece that does not fit; `mask` is what is seen of the thing that the hole cuts through."""
    old = right.things[cut.about].kind
    match knobs.wrong[rng.integers(len(knobs.wrong))]:
        case "nothing":
            things = tuple(thing for index, thing in enumerate(right.things) if index != cut.about)
            return replace(right, things=things, cut=Cut(cut.box, 0))
        case "other":
            kinds = [kind for kind in world.kinds if kind.colour != old.colour]
            return with_kind(right, cut.about, kinds[rng.integers(len(kinds))])
        case _:
            return replace(right, cut=Cut(draw_elsewhere(rng, mask, cut.box, knobs.off), cut.about))


def draw_elsewhere(rng: np.random.Generator, mask: Mask, hole: Box, off: tuple[int, int]) -> Box:
    """A square as far from the hole as `off` says, where what is seen of the thing would not meet what is in the hole.

    Raises:
        TaskError: If none was found.
    """
    edge, last = _edge(mask, hole), len(mask) - HOLE
    for _ in range(TRIES):
        x, y = (int(way + part) for way, part in zip(rng.integers(-off[1], off[1] + 1, 2), hole[:2], strict=True))
        box = float(x), float(y), float(x + HOLE), float(y + HOLE)
        far = max(abs(x - hole[0]), abs(y - hole[1])) >= off[0]
        if far and min(x, y) >= 0 and max(x, y) <= last and np.count_nonzero(_edge(mask, box) != edge) >= CROSSING:
            return box
    raise TaskError("no other place breaks the outline of the thing")


def _edge(mask: Mask, box: Box) -> Mask:
    """A mask along the edge of a box, just inside it."""
    x1, y1, x2, y2 = map(int, box)
    return np.concatenate([mask[y1, x1:x2], mask[y2 - 1, x1:x2], mask[y1:y2, x1], mask[y1:y2, x2 - 1]])
