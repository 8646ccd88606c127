"""The table-top world: its vocabulary, how many things, and where they stand so that each can be seen well.

Implements `World` (scene.py). Owns the placement; what it looks like is in render.py. Placing never draws: it compares
the boxes of upright cylinders that hold a thing of any shape, so a thing may later change its kind and still be seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.geometry import area, intersection
from mimgenv.scenes.backdrop import backdrop
from mimgenv.scenes.camera import Camera, Rays
from mimgenv.scenes.render import MATERIALS, PALETTE, draw
from mimgenv.scenes.scene import Frame, Kind, Scene, Thing
from mimgenv.scenes.shapes import MISS, SOLIDS, Cylinder, Solid
from mimgenv.types import Box

COUNTS: Final[dict[int | None, tuple[int, int]]] = {
    1: (2, 3),
    2: (3, 4),
    3: (4, 5),
    4: (5, 6),
    5: (6, 8),
    None: (3, 6),
}
"""Least and most things in a scene, by difficulty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How things are placed.

    Attributes:
        sizes: Least and greatest diameter in world units.
        overlap: Greatest share of a thing's box that the boxes of nearer things may cover.
        spread: Half a side of the square of table that is used, in world units.
    """

    sizes: tuple[float, float]
    overlap: float
    spread: float


LAYOUTS: Final[dict[int, Layout]] = {
    1: Layout((1.3, 1.7), 0.0, 2.8),
    2: Layout((1.2, 1.65), 0.15, 2.6),
    3: Layout((1.1, 1.6), 0.30, 2.4),
    4: Layout((1.0, 1.5), 0.45, 2.3),
    5: Layout((0.95, 1.4), 0.55, 2.2),
}
"""Harder scenes have smaller things, closer together, that hide each other more."""

MARGIN: Final = 5 / 224
"""Least distance from the edge of the picture, in picture sides."""
LEAST: Final = 26 / 224
"""Least side of the box that holds a thing of any shape, in picture sides; the thing itself fills 2/3 of it or more."""
SEEN: Final = 14 / 224
"""Least side of what is seen of a thing, in picture sides."""
VISIBLE: Final = 0.56
"""Least visibility of a thing."""

_GAP: Final = 0.12  # Least free floor between two things.
_TRIES: Final = 60  # Places tried for one thing.
_ROUNDS: Final = 40  # Layouts tried for one scene; each is a little smaller than the one before.
_SHRINK: Final = 0.98


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing and how it is seen.

    Attributes:
        thing: Where it stands.
        box: Pixels that hold a thing of any shape there.
        depth: Power of the camera's foot with respect to the thing's circle. Of two circles apart from each other the
            one of less power comes first along every ray that meets both.
    """

    thing: Thing
    box: Box
    depth: float


class Tabletop:
    """A table seen from above and aside, with solids of eight colours and two materials on it.

    Args:
        side: Width and height of its pictures in pixels.

    Raises:
        ConfigurationError: If `side` is below 112: things would be too small to tell apart.
    """

    def __init__(self, side: int = 224) -> None:
        if side < 112:
            raise ConfigurationError(f"a table-top picture has sides of 112 pixels or more, not {side}")
        self._side = side
        self._kinds = tuple(Kind(*parts) for parts in product(SOLIDS, PALETTE, MATERIALS))

    @property
    def name(self) -> str:
        """As in task ids."""
        return "tabletop"

    @property
    def side(self) -> int:
        """Width and height of its pictures in pixels."""
        return self._side

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every shape in every colour and material."""
        return self._kinds

    @property
    def common_colours(self) -> tuple[str, ...]:
        """Every colour: all things of a scene may share any."""
        return tuple(PALETTE)

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Two to four images."""
        return 2, 4

    def counts(self, difficulty: int | None) -> tuple[int, int]:
        """Least and most things in a scene at a difficulty of 1 to 5; None is the ordinary range, 3 to 6.

        Raises:
            ConfigurationError: If there is no such difficulty.
        """
        if difficulty not in COUNTS:
            raise ConfigurationError(f"difficulty {difficulty} is not one of {[d for d in COUNTS if d]} or None")
        return COUNTS[difficulty]

    def arrange(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, first_identity: int = 0
    ) -> Scene:
        """Places one thing per kind so that `sees_well` holds, whatever the kinds; identities count up.

        Raises:
            ConfigurationError: If there is no such difficulty.
            TaskError: If there are more things than the table has room for.
        """
        self.counts(difficulty)  # Refuses a difficulty that does not exist.
        layout, shrink = LAYOUTS[_draw_level(rng, len(kinds)) if difficulty is None else difficulty], 1.0
        for _ in range(_ROUNDS):
            seed = int(rng.integers(1 << 31))
            things = self._place(rng, kinds, seed, layout, shrink, first_identity)
            if things is not None:
                return Scene(things, seed)
            shrink *= _SHRINK
        raise TaskError(f"no room on the table for {len(kinds)} things at difficulty {difficulty}")

    def sees_well(self, scene: Scene) -> bool:
        """Whether every thing is inside the picture, large enough and hidden by less than half, whatever its kind.

        True of every arranged scene. To see the same things from elsewhere, look for a backdrop of which it is true.
        """
        camera = backdrop(scene.backdrop, self._side).camera
        placed = [_seen_from(camera, thing) for thing in scene.things]
        return all(self._fits(camera, placed[:i], one, 1.0) for i, one in enumerate(placed))

    def render(self, scene: Scene) -> Frame:
        """Draws a scene: a pure function of it."""
        return draw(scene, self._side)

    def _place(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], seed: int, layout: Layout, shrink: float, first: int
    ) -> tuple[Thing, ...] | None:
        """One attempt at a scene; None where a thing found no place."""
        camera = backdrop(seed, self._side).camera
        placed: list[Placed] = []
        for identity, kind in enumerate(kinds, first):
            for _ in range(_TRIES):
                thing = _draw_thing(rng, kind, layout, shrink, identity)
                one = _seen_from(camera, thing)
                if self._fits(camera, placed, one, layout.overlap):
                    placed.append(one)
                    break
            else:
                return None
        return tuple(one.thing for one in placed)

    def _fits(self, camera: Camera, placed: list[Placed], new: Placed, overlap: float) -> bool:
        """Whether a thing can join the placed ones so that all are seen well."""
        return _apart(new.thing, placed) and _inside(new.box, self._side) and _clear(camera, placed, new, overlap)


def _draw_level(rng: np.random.Generator, count: int) -> int:
    """One of the difficulties with as many things or more."""
    levels = [level for level in LAYOUTS if COUNTS[level][1] >= count] or [max(LAYOUTS)]
    return levels[rng.integers(len(levels))]


def _draw_thing(rng: np.random.Generator, kind: Kind, layout: Layout, shrink: float, identity: int) -> Thing:
    """A thing anywhere in the square around the used part of the table."""
    x, y, size, turn = (float(part) for part in rng.random(4))
    low, high = layout.sizes
    position = (2 * x - 1) * layout.spread, (2 * y - 1) * layout.spread
    return Thing(identity, kind, position, shrink * (low + (high - low) * size), turn * math.pi / 2)


def _seen_from(camera: Camera, thing: Thing) -> Placed:
    (x, y), radius = thing.position, thing.size / 2
    east, north = x - camera.origin[0], y - camera.origin[1]
    return Placed(thing, camera.standing(thing.position, thing.size), east * east + north * north - radius * radius)


def _inside(box: Box, side: int) -> bool:
    """Whether a box is large enough and clear of the picture's edge."""
    margin, least = MARGIN * side, LEAST * side
    large = box[2] - box[0] >= least and box[3] - box[1] >= least
    return large and min(box[0], box[1]) >= margin and max(box[2], box[3]) <= side - margin


def _apart(thing: Thing, placed: list[Placed]) -> bool:
    """Whether a thing stands clear of the placed ones."""
    for other in placed:
        east, north = thing.position[0] - other.thing.position[0], thing.position[1] - other.thing.position[1]
        gap = (thing.size + other.thing.size) / 2 + _GAP
        if east * east + north * north < gap * gap:
            return False
    return True


def _clear(camera: Camera, placed: list[Placed], new: Placed, overlap: float) -> bool:
    """Whether the new thing and those behind it can be seen well; `overlap` is that of `Layout`."""
    everything = [*placed, new]
    behind = [new, *(one for one in placed if _covers(new, one))]
    veiled = [(one, before) for one in behind if (before := [other for other in everything if _covers(other, one)])]
    for one, before in veiled:
        if sum(area(intersection(one.box, other.box)) for other in before) > overlap * area(one.box):
            return False
    return all(_seen_behind(camera, one, before) for one, before in veiled)


def _covers(one: Placed, other: Placed) -> bool:
    """Whether one thing may hide a part of another."""
    return one.depth < other.depth and area(intersection(one.box, other.box)) > 0


def _seen_behind(camera: Camera, one: Placed, before: list[Placed]) -> bool:
    """Whether enough of a thing of any shape is seen behind nearer ones of any shape.

    Follows the very rays the renderer will, so what holds here holds in the picture.
    """
    left, top, right, bottom = (int(edge) for edge in one.box)
    xs, ys = np.arange(left, right + 1, dtype=np.float32), np.arange(top, bottom + 1, dtype=np.float32)
    rays = camera.rays(xs[None, :] + 0.5, ys[:, None] + 0.5)
    hidden = np.zeros(rays[0].shape, np.bool_)
    for other in before:
        hidden |= _meets(camera, other.thing, Cylinder(other.thing.size / 2, other.thing.size), rays)
    for solid in SOLIDS.values():
        whole = _meets(camera, one.thing, solid(one.thing.size, one.thing.turn), rays)
        seen = whole & ~hidden
        if np.count_nonzero(seen) < VISIBLE * np.count_nonzero(whole) or _least_side(seen) < SEEN * camera.side:
            return False
    return True


def _meets(camera: Camera, thing: Thing, solid: Solid, rays: Rays) -> npt.NDArray[np.bool_]:
    """Which rays meet a solid that stands where a thing does."""
    (x, y), (east, north, up) = thing.position, camera.origin
    return solid.hit((east - x, north - y, up), rays).distance < MISS


def _least_side(mask: npt.NDArray[np.bool_]) -> int:
    """The smaller side of a mask's extent, in pixels."""
    return min((int(np.ptp(np.flatnonzero(mask.any(axis)))) + 1 if mask.any() else 0) for axis in (0, 1))
