"""The table-top world: its vocabulary, its ranges by difficulty, and the search for scenes that show all.

Implements `SolidWorld` (scene.py). What is well seen is in places.py, how things move in motion.py, and what it all
looks like in render.py and backdrop.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.scene import Frame, Kind, Point, Scene, Thing, Viewpoint
from mimgenv.scenes.tabletop.backdrop import HELD_OUT, VIEWS, Backdrop, backdrop, ground
from mimgenv.scenes.tabletop.motion import MOTIONS, move
from mimgenv.scenes.tabletop.places import LAYOUTS, Layout, Placed, all_fit, draw_thing, join
from mimgenv.scenes.tabletop.render import draw, seen_points
from mimgenv.scenes.tabletop.shading import PALETTE, SHADERS
from mimgenv.scenes.tabletop.shapes import SOLIDS

COUNTS: Final[dict[int | None, tuple[int, int]]] = {
    1: (2, 3),
    2: (3, 4),
    3: (4, 5),
    4: (5, 6),
    5: (6, 8),
    None: (3, 6),
}
"""Least and most things in a scene, by difficulty."""

LOOK_ALIKES: Final[dict[int | None, tuple[int, int]]] = {
    1: (0, 0),
    2: (0, 1),
    3: (1, 1),
    4: (1, 2),
    5: (2, 3),
    None: (0, 2),
}
"""Least and most things around a target that differ from it in one attribute only, by difficulty."""


@dataclass(frozen=True, slots=True)
class Nudge:
    """Least and greatest change of a picture that shows the same.

    Attributes:
        turn: Of the azimuth, in radians, to either side.
        rise: Of the elevation, in radians, up or down.
        step: Of the distance, in world units, nearer or farther.
        noise: Grain, in grey levels.
    """

    turn: tuple[float, float]
    rise: tuple[float, float]
    step: tuple[float, float]
    noise: tuple[int, int]


NUDGES: Final[dict[int, Nudge]] = {
    1: Nudge((0.03, 0.06), (0.010, 0.020), (0.05, 0.15), (2, 4)),
    2: Nudge((0.05, 0.09), (0.015, 0.030), (0.10, 0.20), (3, 6)),
    3: Nudge((0.08, 0.13), (0.020, 0.040), (0.15, 0.30), (4, 8)),
    4: Nudge((0.11, 0.17), (0.030, 0.050), (0.20, 0.45), (6, 12)),
    5: Nudge((0.15, 0.22), (0.040, 0.060), (0.30, 0.60), (8, 14)),
}
"""How far `disturb` goes, by difficulty."""

TURNS: Final[dict[int | None, tuple[float, float]]] = {
    1: (25, 35),
    2: (30, 45),
    3: (35, 55),
    4: (45, 65),
    5: (55, 70),
    None: (25, 70),
}
"""Degrees by which `look_again` goes around the table, by difficulty."""

_PLACES: Final = 60  # Places tried for one thing.
_ROUNDS: Final = 40  # Layouts, viewpoints or motions tried for one scene.
_SHRINK: Final = 0.98  # Each layout is a little smaller than the one before.


class Tabletop:
    """A table seen from above and aside, with solids of eight colours and two materials on it.

    Of its kinds, those whose numbers of shape and colour (as in `SOLIDS` and `PALETTE`) add up to a multiple of four
    are held out: one shape of every colour, in both materials. So are high viewpoints from well aside: `VIEWS`.

    Args:
        side: Width and height of its pictures in pixels.
        held_out: Whether it shows only what is held out, or never.

    Raises:
        ConfigurationError: If `side` is below 112: things would be too small to tell apart.
    """

    def __init__(self, side: int = 224, held_out: bool = False) -> None:
        if side < 112:
            raise ConfigurationError(f"a table-top picture has sides of 112 pixels or more, not {side}")
        self._side, self._held_out = side, held_out
        pairs = product(enumerate(SOLIDS), enumerate(PALETTE))
        allowed = [(shape, colour) for (i, shape), (j, colour) in pairs if ((i + j) % 4 == 0) == held_out]
        self._kinds = tuple(Kind(*pair, material) for pair in allowed for material in SHADERS)

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
        """Every shape in every colour and material, but for what is held out; or just that."""
        return self._kinds

    @property
    def common_kinds(self) -> tuple[tuple[Kind, ...], ...]:
        """The kinds of each colour."""
        return tuple(tuple(kind for kind in self._kinds if kind.colour == colour) for colour in PALETTE)

    @property
    def wordings(self) -> int | None:
        """All."""
        return None

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

    def look_alikes(self, difficulty: int | None) -> tuple[int, int]:
        """Least and most things around a target that differ from it in one attribute; fewer than `counts` allows."""
        return LOOK_ALIKES[difficulty]

    def arrange(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, first_identity: int = 0
    ) -> Scene:
        """Places one thing per kind so that `sees_well` holds, whatever the kinds; identities count up.

        Raises:
            ConfigurationError: If there is no such difficulty.
            TaskError: If there are more things than the table has room for.
        """
        self.counts(difficulty)  # Refuses a difficulty that does not exist.
        layout, shrink = LAYOUTS[_roomy(rng, len(kinds)) if difficulty is None else difficulty], 1.0
        for _ in range(_ROUNDS):
            seed = int(rng.integers(HELD_OUT)) + self._held_out * HELD_OUT
            things = self._place(rng, kinds, seed, layout, shrink, first_identity)
            if things is not None:
                return Scene(things, seed)
            shrink *= _SHRINK
        raise TaskError(f"no room on the table for {len(kinds)} things at difficulty {difficulty}")

    def sees_well(self, scene: Scene) -> bool:
        """Whether every thing is inside the picture, large enough and hidden by less than half, whatever its kind.

        True of every arranged scene, and of all that `disturb` and `look_again` return.
        """
        return all_fit(self._backdrop(scene).camera, scene.things)

    def disturb(self, rng: np.random.Generator, scene: Scene, difficulty: int | None) -> Scene:
        """The same things by another light, with grain, seen by a camera that was nudged: see `NUDGES`.

        Raises:
            TaskError: If no such picture shows every thing well.
        """
        nudge = NUDGES[_level(rng, difficulty)]
        for _ in range(_ROUNDS):
            view = _nudged(rng, self._view(scene), nudge, scene.backdrop)
            light, noise = int(rng.integers(1, 1 << 31)), int(rng.integers(nudge.noise[0], nudge.noise[1] + 1))
            seen = replace(scene, view=view, light=light, noise=noise)
            if self.sees_well(seen):
                return seen
        raise TaskError(f"no disturbed view of {len(scene.things)} things at difficulty {difficulty}")

    def look_again(self, rng: np.random.Generator, scene: Scene, difficulty: int | None) -> Scene:
        """The same things by the same light, without grain, from farther around the table: see `TURNS`.

        Raises:
            TaskError: If no such viewpoint was found.
        """
        views = VIEWS[scene.backdrop >= HELD_OUT]
        for _ in range(_ROUNDS):
            turn = math.radians(rng.uniform(*TURNS[difficulty])) * (1 if rng.integers(2) else -1)
            view = self._view(scene)[0] + turn, rng.uniform(*views.elevation), rng.uniform(*views.distance)
            seen = replace(scene, view=view, noise=0)
            if self.sees_well(seen):
                return seen
        raise TaskError(f"no second view of {len(scene.things)} things at difficulty {difficulty}")

    def animate(self, rng: np.random.Generator, scene: Scene, frames: int, difficulty: int | None) -> tuple[Scene, ...]:
        """The scene, and `frames - 1` later moments of it; how things move is in `MOTIONS`.

        Things keep clear of each other and inside the picture, and in the last scene all are seen well again. Between
        two moments a thing goes less than half as far as any other of its kind is away at the later one.

        Raises:
            TaskError: If no such motion was found.
        """
        motion = MOTIONS[_level(rng, difficulty)]
        for _ in range(_ROUNDS):
            moved = move(rng, self._backdrop(scene).camera, scene.things, frames, motion)
            if moved is not None:
                return (scene, *(replace(scene, things=things) for things in moved[1:]))
        raise TaskError(f"no motion of {len(scene.things)} things over {frames} frames at difficulty {difficulty}")

    def render(self, scene: Scene) -> Frame:
        """Draws a scene: a pure function of it."""
        return draw(scene, self._side)

    def points(self, scene: Scene) -> npt.NDArray[np.float32]:
        """What each pixel shows, as points of the world: (side, side, 3); NaN where it shows no thing."""
        return seen_points(scene, self._side)

    def project(self, scene: Scene, point: Point) -> tuple[float, float]:
        """Where a point lands in the picture, x and y in pixels, whether or not something hides it."""
        return self._backdrop(scene).camera.project(point)

    def _backdrop(self, scene: Scene) -> Backdrop:
        return backdrop(scene.backdrop, self._side, scene.view, scene.light)

    def _view(self, scene: Scene) -> Viewpoint:
        return scene.view or ground(scene.backdrop).view

    def _place(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], seed: int, layout: Layout, shrink: float, first: int
    ) -> tuple[Thing, ...] | None:
        """One attempt at a scene; None where a thing found no place."""
        camera = backdrop(seed, self._side).camera
        placed: list[Placed] = []
        for identity, kind in enumerate(kinds, first):
            for _ in range(_PLACES):
                one = join(camera, placed, draw_thing(rng, kind, layout, shrink, identity), layout.overlap)
                if one is not None:
                    placed.append(one)
                    break
            else:
                return None
        return tuple(one.thing for one in placed)


def _roomy(rng: np.random.Generator, count: int) -> int:
    """One of the difficulties with as many things or more."""
    levels = [level for level in LAYOUTS if COUNTS[level][1] >= count] or [max(LAYOUTS)]
    return levels[rng.integers(len(levels))]


def _level(rng: np.random.Generator, difficulty: int | None) -> int:
    """The difficulty; where there is none, a middling one."""
    return int(rng.integers(2, 5)) if difficulty is None else difficulty


def _nudged(rng: np.random.Generator, view: Viewpoint, nudge: Nudge, seed: int) -> Viewpoint:
    """A viewpoint nearby, as high and as far as those of the seed's sort may be."""
    views = VIEWS[seed >= HELD_OUT]
    azimuth = view[0] + _either_way(rng, 0.0, nudge.turn, (-math.pi, math.pi))
    elevation = _either_way(rng, view[1], nudge.rise, views.elevation)
    return azimuth, elevation, _either_way(rng, view[2], nudge.step, views.distance)


def _either_way(
    rng: np.random.Generator, value: float, change: tuple[float, float], bounds: tuple[float, float]
) -> float:
    """A value changed up or down, so that it stays within bounds that are at least twice as wide as the change."""
    amount = rng.uniform(*change) * (1 if rng.integers(2) else -1)
    return value + amount if bounds[0] <= value + amount <= bounds[1] else value - amount
