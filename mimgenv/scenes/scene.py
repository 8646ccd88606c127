"""What is in a picture, before any pixel: things, scenes, and the `World` that places, draws and names them.

Task types are written once against these records; a world brings the vocabulary, the ranges and the renderer. A
program (tasks/program.py) reads scenes, never pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.types import Box, Image

Point: TypeAlias = tuple[float, float, float]
"""A point on the surface of something, in the world's own units."""

Viewpoint: TypeAlias = tuple[float, float, float]
"""From where a scene is seen; what the three numbers mean is the world's own affair."""


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
        pasted: Whether it was put into the picture afterwards: it throws no shadow.
    """

    identity: int
    kind: Kind
    position: tuple[float, float]
    size: float
    turn: float = 0.0
    pasted: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A red mark drawn on a picture: a box around what is seen of a thing, or a ring around a point of its surface.

    Attributes:
        thing: Index into the scene's things.
        point: None for a box around the thing.
        text: A letter or two beside a ring; empty for none.
    """

    thing: int
    point: Point | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a picture, shown alone and enlarged.

    Attributes:
        box: Which part, in pixels of the whole picture.
        about: Index of the thing it shows.
    """

    box: Box
    about: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Things, all that no question asks about, and what is done to the finished picture.

    Attributes:
        things: What a question can be about.
        backdrop: Seed of floor, wall, light and viewpoint.
        view: From where it is seen, where that is not the backdrop's own viewpoint.
        light: Seed of another light than the backdrop's own; 0 for that one.
        noise: Greatest change of a pixel by grain, in grey levels; 0 for none.
        marks: Drawn over the picture.
        hole: A part of the picture that is painted over, in pixels.
        cut: The part of the picture that is shown; None for all of it.
    """

    things: tuple[Thing, ...]
    backdrop: int
    view: Viewpoint | None = None
    light: int = 0
    noise: int = 0
    marks: tuple[Mark, ...] = ()
    hole: Box | None = None
    cut: Cut | None = None


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
    """A vocabulary, ranges and a renderer. Every random choice comes from the generator passed in.

    A world is made with `held_out=False` or `True`. Worlds of the first sort never show what those of the second hold
    back for `test_ood`: combinations of attributes, and ranges of viewpoints or grounds.
    """

    @property
    def name(self) -> str:
        """As in task ids, such as `tabletop`."""
        ...

    @property
    def side(self) -> int:
        """Width and height of its pictures in pixels."""
        ...

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds a thing can have."""
        ...

    @property
    def common_kinds(self) -> tuple[tuple[Kind, ...], ...]:
        """Sets of kinds that share their colour: all things of an odd-one-out task but one are of one set."""
        ...

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Least and most images of a task that looks through a group of them."""
        ...

    @property
    def wordings(self) -> int | None:
        """How many of the wordings of a question are used, from the first on; None for all. 1: in `test_ood` too."""
        ...

    def counts(self, difficulty: int | None) -> tuple[int, int]:
        """Least and most things in a scene at a difficulty of 1 to 5; None is the world's ordinary range."""
        ...

    def look_alikes(self, difficulty: int | None) -> tuple[int, int]:
        """Least and most things around a target that differ from it in one attribute only."""
        ...

    def arrange(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, first_identity: int = 0
    ) -> Scene:
        """Places one thing per kind so that each can be seen well; identities count up from `first_identity`."""
        ...

    def render(self, scene: Scene) -> Frame:
        """Draws things, light and grain: a pure function of the scene. Marks, hole and cut are not its business."""
        ...


class MovingWorld(World, Protocol):
    """A world whose things can move, and whose pictures can be disturbed."""

    def animate(self, rng: np.random.Generator, scene: Scene, frames: int, difficulty: int | None) -> tuple[Scene, ...]:
        """The scene, and `frames - 1` later moments of it in which things have moved along smooth paths.

        Viewpoint and light stay. Things may hide each other for a while; in the first scene all are seen well.

        Raises:
            TaskError: If no such motion was found.
        """
        ...

    def disturb(self, rng: np.random.Generator, scene: Scene, difficulty: int | None) -> Scene:
        """The same things a moment later: the camera was nudged, the light has changed, the picture has grain.

        Raises:
            TaskError: If no such picture shows every thing well.
        """
        ...


class SolidWorld(MovingWorld, Protocol):
    """A world of solids, seen by cameras."""

    def look_again(self, rng: np.random.Generator, scene: Scene, difficulty: int | None) -> Scene:
        """The same things, where they are, from well aside; every thing is seen well.

        Raises:
            TaskError: If no such viewpoint was found.
        """
        ...

    def points(self, scene: Scene) -> npt.NDArray[np.float32]:
        """What each pixel shows, as points of the world: (H, W, 3) float32; NaN where it shows no thing."""
        ...

    def project(self, scene: Scene, point: Point) -> tuple[float, float]:
        """Where a point lands in the picture, x and y in pixels, whether or not something hides it."""
        ...
