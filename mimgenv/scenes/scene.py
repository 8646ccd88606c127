"""What is in a picture, before any pixel: things, scenes, and the `World` that places, draws and names them.

Task types are written once against these records; a world brings the vocabulary, the ranges and the renderer. A
program (tasks/program.py) reads scenes, never pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mimgenv.types import Box, Image


@dataclass(frozen=True, slots=True)
class Kind:
    """What a thing looks like. Two things of one kind can only be told apart by where they are."""

    shape: str
    colour: str
    material: str = ""

    @property
    def label(self) -> str:
        """What a person would call it, such as `red circle` or `red metal cube`."""
        return " ".join(word for word in (self.colour, self.material, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene.

    Attributes:
        identity: Equal in two scenes when it is the same object.
        kind: How it looks.
        position: Where it stands, (x, y) in the world's own units.
        size: Side or diameter, in the world's own units.
        turn: Rotation about the vertical axis, in radians; 0 where the world has none.
    """

    identity: int
    kind: Kind
    position: tuple[float, float]
    size: float
    turn: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Things, and a seed for all that no question asks about (floor, light, camera, noise)."""

    things: tuple[Thing, ...]
    backdrop: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A scene as seen.

    Attributes:
        pixels: (H, W, 3) uint8.
        instances: (H, W) int16; 0 for the backdrop, i + 1 where `things[i]` is what one sees.
        boxes: Visible extent of each thing in pixels; None for a thing that cannot be seen.
        visibility: Visible pixels over all pixels of each thing, in [0, 1].
    """

    pixels: Image
    instances: np.ndarray[tuple[int, int], np.dtype[np.int16]]
    boxes: tuple[Box | None, ...]
    visibility: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.boxes) != len(self.visibility):
            raise ValueError(f"{len(self.boxes)} boxes, {len(self.visibility)} visibilities")


class World(Protocol):
    """A vocabulary, ranges and a renderer. Every random choice comes from the generator passed in."""

    @property
    def name(self) -> str:
        """As in task ids, such as `tabletop`."""
        ...

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds a thing can have."""
        ...

    @property
    def common_colours(self) -> tuple[str, ...]:
        """Colours that all things of an odd-one-out task but one may share."""
        ...

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Least and most images of a task that looks through a group of them."""
        ...

    def counts(self, difficulty: int | None) -> tuple[int, int]:
        """Least and most things in a scene at a difficulty of 1 to 5; None is the world's ordinary range."""
        ...

    def arrange(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, first_identity: int = 0
    ) -> Scene:
        """Places one thing per kind so that each can be seen well; identities count up from `first_identity`."""
        ...

    def render(self, scene: Scene) -> Frame:
        """Draws a scene: a pure function of it."""
        ...
