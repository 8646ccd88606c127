"""The world of sprites: things that a person names at once, cut out of coloured paper and laid on a ground.

Implements `MovingWorld` (scene.py): its vocabulary, its ranges by difficulty, and the search for scenes that show all.
What is well seen and how things move is in crowd.py; what it all looks like is in drawings.py, cutouts.py, grounds.py
and collage.py. Positions and sizes are pixels of the picture as it is seen where `Scene.view` is None; a size is the
diameter of a disc that holds the thing; a turn is clockwise; a view is a pan to the right and down in pixels, and a
zoom about the middle. Of two things the later one lies on the earlier one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.scene import Frame, Kind, Scene, Thing
from mimgenv.scenes.sprites.collage import PALETTE, draw
from mimgenv.scenes.sprites.crowd import MARGIN, VISIBLE, Motion, apart, inside, least_seen, move
from mimgenv.scenes.sprites.drawings import DRAWINGS
from mimgenv.scenes.sprites.grounds import HELD_OUT, STILL
from mimgenv.scenes.tabletop.camera import sine_cosine

USES: Final[dict[str, str]] = {
    "mug": "drink from",
    "car": "drive along a road",
    "book": "read",
    "star": "see in the sky only at night",
    "hammer": "hit a nail with",
    "person": "have a chat with",
    "house": "live in",
    "tree": "plant in a park",
    "fish": "catch in a net",
    "key": "open a lock with",
    "umbrella": "keep the rain off with",
    "clock": "tell the time by",
    "chair": "sit down on at a table",
    "boat": "sail across a lake",
    "hat": "wear on one's head",
    "apple": "pick and eat",
}
"""What each shape is for, to complete "something one can ..."; each use is that of one shape only."""

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
"""Least and most things around a target that differ from it in shape or in colour only, by difficulty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How things are placed.

    Attributes:
        sizes: Least and greatest diameter in pixels of a picture of 224.
        apart: Least distance of the middles of two things, in sums of their radii; below 1 they may overlap.
    """

    sizes: tuple[int, int]
    apart: float


LAYOUTS: Final[dict[int, Layout]] = {
    1: Layout((64, 84), 1.06),
    2: Layout((60, 76), 1.04),
    3: Layout((52, 68), 1.02),
    4: Layout((48, 64), 0.78),
    5: Layout((44, 60), 0.68),
}
"""Harder scenes have smaller things, closer together, and from 4 on some overlap."""

MOTIONS: Final[dict[int, Motion]] = {
    1: Motion((0.030, 0.050), 0.1, 1.00),
    2: Motion((0.033, 0.057), 0.2, 0.90),
    3: Motion((0.037, 0.065), 0.3, 0.60),
    4: Motion((0.041, 0.072), 0.4, 0.30),
    5: Motion((0.045, 0.080), 0.5, 0.05),
}
"""Harder motions are wider and more bent, and things hide each other more."""


@dataclass(frozen=True, slots=True)
class Nudge:
    """Least and greatest change of a picture that shows the same.

    Attributes:
        pan: Distance in picture sides, in any direction.
        zoom: Share by which things are larger or smaller.
        noise: Grain, in grey levels.
    """

    pan: tuple[float, float]
    zoom: tuple[float, float]
    noise: tuple[int, int]


NUDGES: Final[dict[int, Nudge]] = {
    1: Nudge((0.010, 0.020), (0.00, 0.02), (2, 4)),
    2: Nudge((0.015, 0.030), (0.01, 0.03), (3, 6)),
    3: Nudge((0.020, 0.045), (0.02, 0.05), (4, 8)),
    4: Nudge((0.030, 0.060), (0.03, 0.07), (6, 12)),
    5: Nudge((0.040, 0.080), (0.05, 0.10), (8, 14)),
}
"""How far `disturb` goes, by difficulty."""

TURNS: Final[dict[bool, tuple[int, ...]]] = {False: (-15, -10, -5, 0, 5, 10, 15), True: (-25, -20, 20, 25)}
"""Degrees by which things may be turned, by whether the world is held out."""

_STEP: Final = 4  # Sizes are multiples of it, so that scenes share cut-outs.
_PLACES: Final = 60  # Places tried for one thing.
_ROUNDS: Final = 40  # Layouts, views or motions tried for one scene.
_SHRINK: Final = 0.98  # Each layout is a little smaller than the one before.


class Sprites:
    """Sixteen things in eight colours on paper.

    Of its kinds, those whose numbers of shape and colour (as in `DRAWINGS` and `PALETTE`) add up to a multiple of four
    are held out: a quarter of every colour and of every shape. So are checked grounds and greater turns: `TURNS`.

    Args:
        side: Width and height of its pictures in pixels.
        held_out: Whether it shows only what is held out, or never.

    Raises:
        ConfigurationError: If `side` is below 112: things would be too small to be recognised.
    """

    def __init__(self, side: int = 224, held_out: bool = False) -> None:
        if side < 112:
            raise ConfigurationError(f"a picture of sprites has sides of 112 pixels or more, not {side}")
        self._side, self._held_out = side, held_out
        self._kinds = tuple(
            Kind(shape, colour)
            for i, shape in enumerate(DRAWINGS)
            for j, colour in enumerate(PALETTE)
            if ((i + j) % 4 == 0) == held_out
        )

    @property
    def name(self) -> str:
        """As in task ids."""
        return "sprites"

    @property
    def side(self) -> int:
        """Width and height of its pictures in pixels."""
        return self._side

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every shape in every colour, but for what is held out; or just that."""
        return self._kinds

    @property
    def common_kinds(self) -> tuple[tuple[Kind, ...], ...]:
        """The kinds of each colour."""
        return tuple(tuple(kind for kind in self._kinds if kind.colour == colour) for colour in PALETTE)

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Two to four images."""
        return 2, 4

    @property
    def wordings(self) -> int | None:
        """All."""
        return None

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
            TaskError: If there are more things than the picture has room for.
        """
        self.counts(difficulty)  # Refuses a difficulty that does not exist.
        layout, shrink = LAYOUTS[_roomy(rng, len(kinds)) if difficulty is None else difficulty], 1.0
        for _ in range(_ROUNDS):
            things = self._place(rng, kinds, layout, shrink, first_identity)
            if things is not None:
                return Scene(things, int(rng.integers(HELD_OUT)) + self._held_out * HELD_OUT)
            shrink *= _SHRINK
        raise TaskError(f"no room in the picture for {len(kinds)} things at difficulty {difficulty}")

    def sees_well(self, scene: Scene) -> bool:
        """Whether every thing is inside the picture and at least three fifths of it are seen, whatever its kind.

        True of every arranged scene, of all that `disturb` returns, and of the last scene of all that `animate` does.
        """
        things = scene.things
        return all(inside(thing, scene.view, self._side) for thing in things) and least_seen(things) >= VISIBLE

    def disturb(self, rng: np.random.Generator, scene: Scene, difficulty: int | None) -> Scene:
        """The same things by another light, with grain, panned and zoomed: see `NUDGES`.

        Raises:
            TaskError: If no such picture shows every thing well.
        """
        nudge = NUDGES[_level(rng, difficulty)]
        for _ in range(_ROUNDS):
            pan_x, pan_y, zoom = scene.view or STILL
            reach, (sine, cosine) = rng.uniform(*nudge.pan) * self._side, sine_cosine(rng.uniform(-math.pi, math.pi))
            zoom *= 1 + rng.uniform(*nudge.zoom) * (1 if rng.integers(2) else -1)
            view = pan_x + reach * cosine, pan_y + reach * sine, zoom
            light, noise = int(rng.integers(1, 1 << 31)), int(rng.integers(nudge.noise[0], nudge.noise[1] + 1))
            nudged = replace(scene, view=view, light=light, noise=noise)
            if self.sees_well(nudged):
                return nudged
        raise TaskError(f"no disturbed view of {len(scene.things)} things at difficulty {difficulty}")

    def animate(self, rng: np.random.Generator, scene: Scene, frames: int, difficulty: int | None) -> tuple[Scene, ...]:
        """The scene, and `frames - 1` later moments of it; how things move is in `MOTIONS`.

        Things slide over each other, but stay inside the picture, and in the last scene all are seen well again.
        Between two moments a thing goes less than half as far as any other of its kind is away at the later one.

        Raises:
            TaskError: If no such motion was found.
        """
        motion = MOTIONS[_level(rng, difficulty)]
        for _ in range(_ROUNDS):
            moved = move(rng, scene, self._side, frames, motion)
            if moved is not None:
                return (scene, *(replace(scene, things=things) for things in moved[1:]))
        raise TaskError(f"no motion of {len(scene.things)} things over {frames} frames at difficulty {difficulty}")

    def render(self, scene: Scene) -> Frame:
        """Draws a scene: a pure function of it."""
        return draw(scene, self._side)

    def _place(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], layout: Layout, shrink: float, first: int
    ) -> tuple[Thing, ...] | None:
        """One attempt at a scene; None where a thing found no place."""
        things: list[Thing] = []
        for identity, kind in enumerate(kinds, first):
            for _ in range(_PLACES):
                thing = self._draw_thing(rng, kind, layout, shrink, identity)
                if apart(thing, things, layout.apart) and least_seen([*things, thing]) >= VISIBLE:
                    things.append(thing)
                    break
            else:
                return None
        return tuple(things)

    def _draw_thing(self, rng: np.random.Generator, kind: Kind, layout: Layout, shrink: float, identity: int) -> Thing:
        """A thing anywhere inside the picture."""
        scale = self._side / 224 * shrink
        low, high = (round(end * scale / _STEP) for end in layout.sizes)
        size = _STEP * int(rng.integers(low, high + 1))
        room = size / 2 + MARGIN * self._side
        x, y = (float(part) for part in rng.uniform(room, self._side - room, 2))
        turn = math.radians(TURNS[self._held_out][rng.integers(len(TURNS[self._held_out]))])
        return Thing(identity, kind, (x, y), float(size), turn)


def _roomy(rng: np.random.Generator, count: int) -> int:
    """One of the difficulties with as many things or more."""
    levels = [level for level in LAYOUTS if COUNTS[level][1] >= count] or [max(LAYOUTS)]
    return levels[rng.integers(len(levels))]


def _level(rng: np.random.Generator, difficulty: int | None) -> int:
    """The difficulty; where there is none, a middling one."""
    return int(rng.integers(2, 5)) if difficulty is None else difficulty
