"""The flat little world: coloured shapes on a lattice, small and plain enough for a 0.3 M-parameter model on a CPU.

An image is 168 × 168 pixels, meant to be shown at half that size: 84 × 84, nine tokens of a Qwen2.5-VL. The full size
stays behind it for the zoom tool. A thing is one of four shapes in one of six colours (black where a task wants
things that look alike); it stands in a cell of its own on a 3 × 3 grid, its box on a lattice of 14 pixels (7 as
shown), so that every coordinate is one of 13 numbers. Small things, difficulty 4 and 5, stand on a lattice of 7.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.scene import Frame, Kind, Scene, Thing
from mimgenv.types import Box, Image

SIDE: Final = 168
CELL: Final = 56
NOISE: Final = 6
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 180),
    "cyan": (50, 200, 210),
    "black": (25, 25, 25),
}
HELD_OUT_COLOUR: Final = "black"
"""Outside `test_ood` nothing that is asked for is black."""
SHAPES: Final = ("circle", "square", "triangle", "diamond")
GROUNDS: Final[dict[bool, tuple[int, int]]] = {False: (205, 246), True: (150, 200)}
"""Grey levels of the ground, the second exclusive, by whether `Scene.light` is set."""
COUNTS: Final[dict[int | None, tuple[int, int]]] = {None: (1, 3), 1: (1, 1), 2: (2, 2), 3: (3, 3), 4: (1, 2), 5: (3, 3)}
LATTICE: Final[dict[bool, tuple[int, tuple[int, ...]]]] = {False: (14, (28, 42, 56)), True: (7, (14, 21, 28))}
"""Lattice step and sides in pixels, by whether things are small."""


@cache
def _mask(shape: str, side: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which pixels of a side × side box a shape covers; every shape touches all four edges."""
    y, x = np.mgrid[0:side, 0:side] * 2 + 1 - side  # odd or even integers in (-side, side): exact on every CPU
    shapes: dict[str, np.ndarray[tuple[int, int], np.dtype[np.bool_]]] = {
        "circle": x * x + y * y <= side * side,
        "square": np.ones((side, side), bool),
        "triangle": 2 * np.abs(x) <= y + side + 1,
        "diamond": np.abs(x) + np.abs(y) <= side,
    }
    return shapes[shape]


def _box(thing: Thing) -> tuple[int, int, int, int]:
    x, y, side = int(thing.position[0]), int(thing.position[1]), int(thing.size)
    return x, y, x + side, y + side


class Flat:
    """The world of `MultiImageTiny-v0`; see the module's docstring.

    Args:
        held_out: Whether things may be black, on a darker ground.
    """

    name = "tiny"
    side = SIDE
    group_sizes = (2, 2)
    wordings = 1

    def __init__(self, held_out: bool = False) -> None:
        colours = [colour for colour in COLOURS if held_out or colour != HELD_OUT_COLOUR]
        self.kinds = tuple(Kind(shape, colour) for colour in colours for shape in SHAPES)
        self.common_kinds = (tuple(Kind(shape, HELD_OUT_COLOUR) for shape in sorted(SHAPES)),)
        self._held_out = held_out

    def look_alikes(self, difficulty: int | None) -> tuple[int, int]:
        """None: a small model has enough to learn from colours."""
        return 0, 0

    def counts(self, difficulty: int | None) -> tuple[int, int]:
        """Difficulty 1, 2, 3: as many things. 4: one or two small things. 5: three small things. None: 1 to 3."""
        if difficulty not in COUNTS:
            raise ConfigurationError(f"difficulty {difficulty} is not one of {[d for d in COUNTS if d]} or None")
        return COUNTS[difficulty]

    def arrange(
        self, rng: np.random.Generator, kinds: tuple[Kind, ...], difficulty: int | None, first_identity: int = 0
    ) -> Scene:
        """One cell per kind, at random; side and place within the cell on the lattice."""
        per_row = SIDE // CELL
        if len(kinds) > per_row * per_row:
            raise TaskError(f"{len(kinds)} things, {per_row * per_row} cells")
        step, sides = LATTICE[difficulty in (4, 5)]
        cells = rng.permutation(per_row * per_row)[: len(kinds)]
        things = []
        for number, (kind, cell) in enumerate(zip(kinds, cells, strict=True), first_identity):
            side = sides[rng.integers(len(sides))]
            x, y = (int(rng.integers((CELL - side) // step + 1)) * step for _ in range(2))
            corner = (float(cell % per_row * CELL + x), float(cell // per_row * CELL + y))
            things.append(Thing(number, kind, corner, float(side)))
        return Scene(tuple(things), backdrop=int(rng.integers(2**31)), light=int(self._held_out))

    def render(self, scene: Scene) -> Frame:
        """Things on a light grey ground with a little noise, drawn in order; boxes never overlap."""
        rng = np.random.default_rng(scene.backdrop)
        pixels: Image = np.full((SIDE, SIDE, 3), rng.integers(*GROUNDS[scene.light != 0]), np.uint8)
        instances = np.zeros((SIDE, SIDE), np.int16)
        boxes: list[Box | None] = []
        for number, thing in enumerate(scene.things, 1):
            x1, y1, x2, y2 = box = _box(thing)
            covered = _mask(thing.kind.shape, x2 - x1)
            pixels[y1:y2, x1:x2][covered] = COLOURS[thing.kind.colour]
            instances[y1:y2, x1:x2][covered] = number
            boxes.append(tuple(map(float, box)))  # type: ignore[arg-type]
        pixels += rng.integers(0, 2 * NOISE + 1, (SIDE, SIDE, 1), dtype=np.uint8)
        pixels -= np.uint8(NOISE)  # every colour is NOISE away from 0 and from 255, so nothing wraps
        return Frame(pixels, instances, tuple(boxes), (1.0,) * len(boxes))
