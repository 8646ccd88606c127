"""A question as a small program over scenes, and the executor that proves its target.

The executor receives the program and the scenes and nothing else: not the intended target, not the pixels. A task
is served only if what it finds is exactly one thing (or one number). Image numbers are 1-based, as in the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing


@dataclass(frozen=True, slots=True)
class Found:
    """A thing and where it was found: 1-based image number, index into the scene's things."""

    image: int
    index: int


@dataclass(frozen=True, slots=True)
class Find:
    """All things in `images` that have the given attributes; an attribute that is None does not matter."""

    images: tuple[int, ...]
    shape: str | None = None
    colour: str | None = None
    material: str | None = None


@dataclass(frozen=True, slots=True)
class SameKind:
    """All things in image `target` that look like the only thing of image `reference`."""

    reference: int
    target: int


@dataclass(frozen=True, slots=True)
class Changed:
    """All things of image `after` that stand in image `before` neither as they are nor where they are."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class OddColour:
    """All things in `images` whose colour no other thing there has, where the others all share one colour."""

    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """How many things a query finds."""

    of: Query


@dataclass(frozen=True, slots=True)
class ImageOf:
    """The image in which a query finds its only thing."""

    of: Query


Query: TypeAlias = Find | SameKind | Changed | OddColour
Program: TypeAlias = Query | Count | ImageOf
T = TypeVar("T")


def _things(scenes: Sequence[Scene], images: tuple[int, ...]) -> list[tuple[Found, Thing]]:
    return [(Found(k, i), thing) for k in images for i, thing in enumerate(scenes[k - 1].things)]


def _matches(kind: Kind, query: Find) -> bool:
    wanted = ((query.shape, kind.shape), (query.colour, kind.colour), (query.material, kind.material))
    return all(want is None or want == have for want, have in wanted)


def find(query: Query, scenes: Sequence[Scene]) -> tuple[Found, ...]:
    """All things a query finds, in image order."""
    match query:
        case Find(images=images):
            return tuple(where for where, thing in _things(scenes, images) if _matches(thing.kind, query))
        case SameKind(reference, target):
            shown = only(tuple(_things(scenes, (reference,))))[1].kind
            return tuple(where for where, thing in _things(scenes, (target,)) if thing.kind == shown)
        case Changed(before, after):
            unchanged = {(thing.kind, thing.position, thing.size) for thing in scenes[before - 1].things}
            things = _things(scenes, (after,))
            return tuple(w for w, thing in things if (thing.kind, thing.position, thing.size) not in unchanged)
        case OddColour(images):
            things = _things(scenes, images)
            colours = Counter(thing.kind.colour for _, thing in things)
            if len(colours) != 2:
                return ()
            return tuple(where for where, thing in things if colours[thing.kind.colour] == 1)


def only(found: tuple[T, ...]) -> T:
    """The one element.

    Raises:
        TaskError: If there is none or more than one.
    """
    if len(found) != 1:
        raise TaskError(f"the question fits {len(found)} things, not exactly one")
    return found[0]


def execute(program: Program, scenes: Sequence[Scene]) -> Found | int:
    """The answer to a program: the one thing that it finds, a count, or an image number.

    Raises:
        TaskError: If a program that asks for one thing finds none or several.
    """
    match program:
        case Count(of):
            return len(find(of, scenes))
        case ImageOf(of):
            return only(find(of, scenes)).image
        case _:
            return only(find(program, scenes))
