"""Where cut-outs lie, and how they move, so that each can be seen: discs that hold a thing of any shape, and specks.

Nothing in here draws. A thing of any shape is inside its disc however it is turned, and consists of the specks of its
shape; so what holds here holds in the picture, whatever kinds things have and in whatever order they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Scene, Thing, Viewpoint
from mimgenv.scenes.sprites.cutouts import FULL, cutout
from mimgenv.scenes.sprites.drawings import DRAWINGS
from mimgenv.scenes.sprites.grounds import STILL
from mimgenv.scenes.tabletop.camera import sine_cosine

Path: TypeAlias = npt.NDArray[np.float64]
"""Where the middles of things are at each moment, (..., moments, 2) in pixels."""

MARGIN: Final = 5 / 224
"""Least distance of a disc from the edge of the picture, in picture sides."""
VISIBLE: Final = 0.64
"""Least share of the specks of a thing that is seen well; what differs in pixels leaves 0.6 or more."""

_SPECKS: Final = 18  # Size of the cut-outs whose pixels are the specks.
_TRIES: Final = 60  # Paths tried for one thing.


@dataclass(frozen=True, slots=True)
class Motion:
    """How things move.

    Attributes:
        step: Least and greatest distance from one moment to the next, on average, in picture sides.
        bend: Greatest distance of a curve's control point from the straight way, in shares of that way.
        visible: Least share of a thing that is seen between the first moment and the last.
    """

    step: tuple[float, float]
    bend: float
    visible: float


def inside(thing: Thing, view: Viewpoint | None, side: int) -> bool:
    """Whether the disc of a thing is clear of the picture's edge."""
    return bool(_stays(np.array([thing.position]), thing.size, view, side))


def apart(thing: Thing, others: Sequence[Thing], least: float) -> bool:
    """Whether the middle of a thing is `least` sums of radii or more away from that of each other."""
    return all(math.dist(thing.position, one.position) >= least * (thing.size + one.size) / 2 for one in others)


def least_seen(things: Sequence[Thing]) -> float:
    """The least share that is seen of any thing, whatever its shape, if all discs that meet it lie on it."""
    places, radii = np.array([thing.position for thing in things]), np.array([thing.size / 2 for thing in things])
    return min((_seen_share(thing, i, places, radii) for i, thing in enumerate(things)), default=1.0)


def move(
    rng: np.random.Generator, scene: Scene, side: int, moments: int, motion: Motion
) -> tuple[tuple[Thing, ...], ...] | None:
    """One attempt: the things at each moment, the first as they are; None where one found no way."""
    things, settled = scene.things, np.empty((0, moments, 2))
    for count, thing in enumerate(things, 1):
        for path in _paths(rng, thing, side, moments, motion):
            paths = np.concatenate([settled, path[None]])
            if _stays(path, thing.size, scene.view, side) and _joins(things[:count], paths, motion):
                settled = paths
                break
        else:
            return None
    later = (zip(things, settled[:, moment].tolist(), strict=True) for moment in range(1, moments))
    return things, *(tuple(replace(thing, position=(x, y)) for thing, (x, y) in pairs) for pairs in later)


def _stays(path: Path, size: float, view: Viewpoint | None, side: int) -> bool:
    """Whether a disc is clear of the picture's edge wherever it comes."""
    pan_x, pan_y, zoom = view or STILL
    places = (path - side / 2) * zoom + (side / 2 + pan_x, side / 2 + pan_y)
    room = size * zoom / 2 + MARGIN * side
    return bool(places.min() >= room and places.max() <= side - room)


def _seen_share(thing: Thing, index: int, places: Path, radii: npt.NDArray[np.float64]) -> float:
    """The least share that is seen of a thing, whatever its shape, if it is at one of the places, under the others."""
    ways = places - places[index]
    near = (ways * ways).sum(1) < (radii + radii[index]) ** 2
    near[index] = False
    if not near.any():
        return 1.0
    specks, shapes = _specks(thing.size, thing.turn)
    away = specks[:, None] - ways[near]
    hidden = ((away * away).sum(2) < radii[near] ** 2).any(1)
    return 1 - float((np.bincount(shapes, hidden) / np.bincount(shapes)).max())


@lru_cache(maxsize=128)
def _specks(size: float, turn: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Spots all over each shape around its middle, (n, 2) in pixels, and the number of the shape of each, (n,)."""
    masks = np.stack([cutout(shape, _SPECKS, 0.0).alpha > FULL // 2 for shape in DRAWINGS])
    number, row, column = np.nonzero(masks)
    x, y = ((place + 0.5 - masks.shape[1] / 2) * (size / _SPECKS) for place in (column, row))
    sine, cosine = sine_cosine(turn)
    return np.stack([x * cosine - y * sine, x * sine + y * cosine], 1), number


def _paths(rng: np.random.Generator, thing: Thing, side: int, moments: int, motion: Motion) -> Path:
    """Parabolas from where a thing lies, (tries, moments, 2)."""
    reach = rng.uniform(*motion.step, _TRIES) * side * (moments - 1)
    angles = [sine_cosine(angle) for angle in rng.uniform(-math.pi, math.pi, _TRIES)]
    way = reach[:, None, None] * np.array([[(cosine, sine)] for sine, cosine in angles])
    bend = rng.uniform(-motion.bend, motion.bend, (_TRIES, 1, 1))
    control = way / 2 + bend * way[:, :, ::-1] * (-1, 1)
    times = np.linspace(0, 1, moments)[:, None]
    paths: Path = np.array(thing.position) + 2 * times * (1 - times) * control + times * times * way
    return paths


def _joins(things: Sequence[Thing], paths: Path, motion: Motion) -> bool:
    """Whether the last of the things can take its path among those that are already on theirs."""
    *others, new = things
    if not all(_told_apart(paths[-1], paths[i]) for i, other in enumerate(others) if other.kind == new.kind):
        return False
    radii, last = np.array([thing.size / 2 for thing in things]), paths.shape[1] - 1
    met = _length(paths - paths[-1]) < (radii + radii[-1])[:, None]
    for moment in (np.flatnonzero(met[:-1, 1:].any(0)) + 1).tolist():
        least = VISIBLE if moment == last else motion.visible
        touched = np.flatnonzero(met[:, moment]).tolist()
        if any(_seen_share(things[i], i, paths[:, moment], radii) < least for i in touched):
            return False
    return True


def _told_apart(one: Path, other: Path) -> bool:
    """Whether the next step of each is less than half of its way, before and after, to where the other is then."""
    step = np.maximum(_length(np.diff(one, axis=0)), _length(np.diff(other, axis=0)))
    pairs = (one[1:], other[1:]), (one[:-1], other[1:]), (other[:-1], one[1:])
    return all(bool((2 * step < _length(a - b)).all()) for a, b in pairs)


def _length(ways: Path) -> npt.NDArray[np.float64]:
    lengths: npt.NDArray[np.float64] = np.sqrt((ways * ways).sum(-1))
    return lengths
