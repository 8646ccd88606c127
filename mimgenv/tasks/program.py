"""A question as a small program over scenes, which proves its target.

A program receives the scenes and nothing else: not the intended target, not the pixels. A task is served only if what
it finds is exactly one thing, place, number or option. Image numbers are 1-based, as in the question. Programs of one
task type live in that type's file; here are the contract and what several types share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Point, Scene, Thing
from mimgenv.types import Box

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A thing and where it was found: 1-based image number, index into the scene's things."""

    image: int
    index: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a thing's surface: what lies within `radius` world units of a point of it."""

    image: int
    index: int
    point: Point
    radius: float


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a picture, in its pixels, that shows a thing."""

    image: int
    index: int
    box: Box


Result: TypeAlias = Found | Part | Area | int | str
"""Something in an image, a number, or a word or option letter."""


class Program(Protocol):
    """A question, in a form that can be executed."""

    def execute(self, scenes: Sequence[Scene]) -> Result:
        """The answer.

        Raises:
            TaskError: If there is none, or more than one.
        """
        ...


class Query(ABC):
    """A program that looks for one thing."""

    @abstractmethod
    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """All things that it fits, in image order."""

    def execute(self, scenes: Sequence[Scene]) -> Found:
        """The one thing that it fits.

        Raises:
            TaskError: If there is none, or more than one.
        """
        return only(self.find(scenes))


def things_of(scenes: Sequence[Scene], images: Sequence[int]) -> list[tuple[Found, Thing]]:
    """All things of some images, and where they are."""
    return [(Found(k, i), thing) for k in images for i, thing in enumerate(scenes[k - 1].things)]


def nameless(scene: Scene) -> Scene:
    """The scene with identities that tell nothing: two scenes that look the same become equal."""
    return replace(scene, things=tuple(replace(thing, identity=0) for thing in scene.things))


def only(found: Sequence[T]) -> T:
    """The one element.

    Raises:
        TaskError: If there is none or more than one.
    """
    if len(found) != 1:
        raise TaskError(f"the question fits {len(found)} things, not exactly one")
    return found[0]


@dataclass(frozen=True, slots=True)
class Find(Query):
    """All things in `images` that have the given attributes; an attribute that is None does not matter."""

    images: tuple[int, ...]
    shape: str | None = None
    colour: str | None = None
    material: str | None = None

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        return tuple(where for where, thing in things_of(scenes, self.images) if self.fits(thing.kind))

    def fits(self, kind: Kind) -> bool:
        """Whether a kind has the attributes."""
        wanted = ((self.shape, kind.shape), (self.colour, kind.colour), (self.material, kind.material))
        return all(want is None or want == have for want, have in wanted)


@dataclass(frozen=True, slots=True)
class SameKind(Query):
    """All things in image `target` that look like the only thing of image `reference`."""

    reference: int
    target: int

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        shown = only(things_of(scenes, (self.reference,)))[1].kind
        return tuple(where for where, thing in things_of(scenes, (self.target,)) if thing.kind == shown)


@dataclass(frozen=True, slots=True)
class Count:
    """How many things a query finds."""

    of: Query

    def execute(self, scenes: Sequence[Scene]) -> int:
        """See `Program`."""
        return len(self.of.find(scenes))


@dataclass(frozen=True, slots=True)
class ImageOf:
    """The image in which a query finds its only thing."""

    of: Query

    def execute(self, scenes: Sequence[Scene]) -> int:
        """See `Program`."""
        return self.of.execute(scenes).image
