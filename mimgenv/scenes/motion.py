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

from mimgenv.scenes.camera import Camera
from mimgenv.scenes.places import GAP, Placed, clear, inside, seen_from
from mimgenv.scenes.scene import Thing

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
    1: Motion((0.9, 1.6), 0.5, 0.1, 0.0),
    2: Motion((1.0, 1.9), 0.5, 0.2, 0.2),
    3: Motion((1.1, 2.2), 0.6, 0.3, 0.3),
    4: Motion((1.2, 2.5), 0.6, 0.4, 0.4),
    5: Motion((1.3, 2.8), 0.7, 0.5, 0.5),
}
"""Harder motions are wider and more bent, more things move, and they hide each other longer."""

_INSTANTS: Final = 24  # A path is looked at this often or more, so that nothing slips through another thing.
_SHIFT: Final = 10 / 224  # Least distance between a mover's first and last place in the picture, in picture sides.
_TRIES: Final = 24  # Paths tried for one thing.


@dataclass(frozen=True, slots=True)
class Moving:
    """A thing on its way.

    Attributes:
        thing: As it is at first.
        path: At every instant.
        seen: At every moment that becomes a picture.
    """

    thing: Thing
    path: Path
    seen: tuple[Placed, ...]

    @property
    def steps(self) -> Path:
        """Where it is at every moment, (moments, 2)."""
        return np.array([placed.thing.position for placed in self.seen])


def move(
    rng: np.random.Generator, camera: Camera, things: tuple[Thing, ...], moments: int, motion: Motion
) -> tuple[tuple[Thing, ...], ...] | None:
    """One attempt: the things at each of two or more moments, the first as they are; None where one found no path."""
    low = max(1, math.ceil(motion.movers * len(things)))
    order = rng.permutation(len(things))
    still = len(things) - int(rng.integers(low, len(things) + 1))
    settled: dict[int, Moving] = {}
    for place, index in enumerate(order.tolist()):
        resting = place < still
        ways = _resting(things[index], moments) if resting else _curves(rng, things[index], moments, motion)
        for path in ways:
            new = _moving(camera, things[index], path, moments)
            if (resting or _shifts(new, camera)) and _joins(camera, list(settled.values()), new, motion):
                settled[index] = new
                break
        else:
            return None
    return tuple(tuple(settled[i].seen[moment].thing for i in range(len(things))) for moment in range(moments))


def _times(moments: int) -> npt.NDArray[np.float64]:
    """Instants from 0 to 1; every moment is one of them."""
    return np.linspace(0, 1, (moments - 1) * -(-_INSTANTS // (moments - 1)) + 1)


def _resting(thing: Thing, moments: int) -> Iterator[Path]:
    yield np.tile(np.array(thing.position), (len(_times(moments)), 1))


def _curves(rng: np.random.Generator, thing: Thing, moments: int, motion: Motion) -> Iterator[Path]:
    """Parabolas from where a thing stands."""
    times, start = _times(moments)[:, None], np.array(thing.position)
    for _ in range(_TRIES):
        angle, reach = rng.uniform(-math.pi, math.pi), rng.uniform(*motion.travel)
        way = reach * np.array([math.cos(angle), math.sin(angle)])
        control = way / 2 + rng.uniform(-motion.bend, motion.bend) * np.array([-way[1], way[0]])
        yield start + 2 * times * (1 - times) * control + times * times * way


def _moving(camera: Camera, thing: Thing, path: Path, moments: int) -> Moving:
    """A thing at all moments; at the first exactly as it is."""
    stride = (len(path) - 1) // (moments - 1)
    places = [thing, *(replace(thing, position=(float(x), float(y))) for x, y in path[stride::stride])]
    return Moving(thing, path, tuple(seen_from(camera, place) for place in places))


def _shifts(new: Moving, camera: Camera) -> bool:
    """Whether it is seen to have moved."""
    (x, y), (later_x, later_y) = (camera.project((*new.seen[end].thing.position, 0.0)) for end in (0, -1))
    return math.hypot(later_x - x, later_y - y) >= _SHIFT * camera.side


def _joins(camera: Camera, settled: Sequence[Moving], new: Moving, motion: Motion) -> bool:
    """Whether a thing can go its way among those already on theirs."""
    if not all(inside(placed.box, camera.side) for placed in new.seen):
        return False
    if not all(_apart(new, other) and _told_apart(new, other) for other in settled):
        return False
    spoilt = [not clear(camera, [other.seen[i] for other in settled], one, 1.0) for i, one in enumerate(new.seen)]
    return not spoilt[-1] and sum(spoilt) <= motion.hidden * (len(spoilt) - 2)


def _apart(one: Moving, other: Moving) -> bool:
    """Whether two things never come close."""
    gap = (one.thing.size + other.thing.size) / 2 + GAP
    away = one.path - other.path
    return bool(((away * away).sum(1) >= gap * gap).all())


def _told_apart(one: Moving, other: Moving) -> bool:
    """Whether the nearest thing of its kind at the next moment is always itself, by far."""
    if one.thing.kind != other.thing.kind:
        return True
    step = np.maximum(*(np.hypot(*np.diff(moving.steps, axis=0).T) for moving in (one, other)))
    return bool((step < 0.5 * np.hypot(*(one.steps - other.steps)[1:].T)).all())
