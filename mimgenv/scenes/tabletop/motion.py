"""How things move over the table from one picture to the next: along curves, clear of each other, inside the picture.

Works on things and a camera, like places.py; draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Thing
from mimgenv.scenes.tabletop.camera import Camera, sine_cosine
from mimgenv.scenes.tabletop.places import GAP, Placed, clear, inside, seen_from

Path: TypeAlias = npt.NDArray[np.float64]
"""Where a thing is at each instant, (instants, 2) in world units."""


@dataclass(frozen=True, slots=True)
class Motion:
    """How things move.

    Attributes:
        travel: Least and greatest distance between a mover's first and last place, in world units.
        movers: Least share of the things that move; there is always one.
        bend: Greatest distance of a curve's control point from the straight way, in shares of that way.
        hidden: Greatest share of the moments between first and last in which a thing on its way is badly seen, or
            makes another so.
    """

    travel: tuple[float, float]
    movers: float
    bend: float
    hidden: float


MOTIONS: Final[dict[int, Motion]] = {
    1: Motion((1.0, 1.7), 0.5, 0.1, 0.0),
    2: Motion((1.1, 1.9), 0.5, 0.2, 0.2),
    3: Motion((1.2, 2.2), 0.6, 0.3, 0.3),
    4: Motion((1.3, 2.5), 0.6, 0.4, 0.4),
    5: Motion((1.4, 2.8), 0.7, 0.5, 0.5),
}
"""Harder motions are wider and more bent, more things move, and they hide each other longer."""

_INSTANTS: Final = 24  # A path is looked at this often or more, so that nothing slips through another thing.
_TRIES: Final = 24  # Paths tried for one thing.


@dataclass(frozen=True, slots=True)
class Moving:
    """A thing on its way.

    Attributes:
        thing: As it is at first.
        path: At every instant.
        steps: Those instants of the path that become pictures: its moments.
        seen: The thing at every moment.
    """

    thing: Thing
    path: Path
    steps: Path
    seen: tuple[Placed, ...]


def move(
    rng: np.random.Generator, camera: Camera, things: tuple[Thing, ...], moments: int, motion: Motion
) -> tuple[tuple[Thing, ...], ...] | None:
    """One attempt: the things at each of two or more moments, the first as they are; None where one found no path."""
    low = max(1, math.ceil(motion.movers * len(things)))
    order = rng.permutation(len(things)).tolist()
    still = len(things) - int(rng.integers(low, len(things) + 1))
    settled: dict[int, Moving] = {}
    for place, index in enumerate(order):
        thing = things[index]
        ways = [_resting(thing, moments)] if place < still else _curves(rng, thing, moments, motion)
        joined = (_join(camera, list(settled.values()), thing, path, moments, motion) for path in ways)
        new = next((moving for moving in joined if moving is not None), None)
        if new is None:
            return None
        settled[index] = new
    return tuple(tuple(settled[i].seen[moment].thing for i in range(len(things))) for moment in range(moments))


def _times(moments: int) -> Path:
    """Instants from 0 to 1, (instants, 1); every moment is one of them."""
    stride = -(-_INSTANTS // (moments - 1))
    return (np.arange((moments - 1) * stride + 1) / ((moments - 1) * stride))[:, None]


def _resting(thing: Thing, moments: int) -> Path:
    return np.tile(np.array(thing.position), (len(_times(moments)), 1))


def _curves(rng: np.random.Generator, thing: Thing, moments: int, motion: Motion) -> Iterator[Path]:
    """Parabolas from where a thing stands."""
    times = _times(moments)
    for _ in range(_TRIES):
        sine, cosine = sine_cosine(rng.uniform(-math.pi, math.pi))
        reach, bend = rng.uniform(*motion.travel), rng.uniform(-motion.bend, motion.bend)
        way = np.array((reach * cosine, reach * sine))
        control = way / 2 + bend * np.array((-way[1], way[0]))
        yield np.array(thing.position) + 2 * times * (1 - times) * control + times * times * way


def _join(
    camera: Camera, settled: Sequence[Moving], thing: Thing, path: Path, moments: int, motion: Motion
) -> Moving | None:
    """A thing on its way among those already on theirs; None where that cannot be."""
    steps = path[:: (len(path) - 1) // (moments - 1)]
    if not all(_apart(thing, path, other) and _told_apart(thing, steps, other) for other in settled):
        return None
    places = [thing, *(replace(thing, position=(float(x), float(y))) for x, y in steps[1:])]
    seen = tuple(seen_from(camera, place) for place in places)
    if not all(inside(placed.box, camera.side) for placed in seen):
        return None
    spoilt = 0
    for moment, placed in enumerate(seen):
        if not clear(camera, [other.seen[moment] for other in settled], placed, 1.0):
            spoilt += 1
            if moment == moments - 1 or spoilt > motion.hidden * (moments - 2):
                return None
    return Moving(thing, path, steps, seen)


def _apart(thing: Thing, path: Path, other: Moving) -> bool:
    """Whether two things never come close."""
    gap = (thing.size + other.thing.size) / 2 + GAP
    return bool((_squared(path - other.path) >= gap * gap).all())


def _told_apart(thing: Thing, steps: Path, other: Moving) -> bool:
    """Whether the nearest thing of its kind at the next moment is always itself, by far."""
    if thing.kind != other.thing.kind:
        return True
    step = np.maximum(_squared(np.diff(steps, axis=0)), _squared(np.diff(other.steps, axis=0)))
    return bool((4 * step < _squared((steps - other.steps)[1:])).all())


def _squared(ways: Path) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = ways[:, 0] * ways[:, 0] + ways[:, 1] * ways[:, 1]
    return squares
