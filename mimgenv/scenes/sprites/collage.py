"""The renderer of cut-outs: from a scene to its pixels, its instance buffer and its boxes.

Lays things on a painted ground (grounds.py) in their order, each with its soft shadow on all that lies below it, then
sets the light and adds grain. Knows nothing of how scenes come about. Pixels are whole numbers all along, so the same
scene gives the same bytes on every processor.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Frame, Scene, Thing, Viewpoint
from mimgenv.scenes.sprites.cutouts import FULL, Cutout, cutout
from mimgenv.scenes.sprites.grounds import STILL, Light, light, painted
from mimgenv.types import Box, Image

Window: TypeAlias = tuple[slice, slice]
"""Rows and columns."""

PALETTE: Final[dict[str, tuple[int, ...]]] = {
    name: tuple(bytes.fromhex(code))
    for name, code in {
        "red": "e8353b",
        "orange": "fb8d1e",
        "yellow": "ffdb2c",
        "green": "35ad53",
        "cyan": "2fcbd8",
        "blue": "3568dc",
        "purple": "9148c8",
        "pink": "fa86b8",
    }.items()
}


def seen(thing: Thing, view: Viewpoint | None, side: int) -> tuple[float, float, float]:
    """Where the middle of a thing is in the picture, x and y, and its size there; all in pixels."""
    pan_x, pan_y, zoom = view or STILL
    (x, y), middle = thing.position, side / 2
    return (x - middle) * zoom + middle + pan_x, (y - middle) * zoom + middle + pan_y, thing.size * zoom


def draw(scene: Scene, side: int) -> Frame:
    """Draws a scene as `side` x `side` pixels: a pure function of both."""
    pixels = painted(scene.backdrop, side, scene.view or STILL).copy()
    instances = np.zeros((side, side), np.int16)
    lamp = light(scene.backdrop, scene.light)
    laid = [_lay(pixels, instances, scene, index, lamp) for index in range(len(scene.things))]
    extents = [_extent(instances, window, number) for number, (window, _) in enumerate(laid, 1)]
    visibility = tuple(count / total if total else 0.0 for (_, count), (_, total) in zip(extents, laid, strict=True))
    return Frame(_finished(pixels, scene, lamp), instances, tuple(box for box, _ in extents), visibility)


def _lay(pixels: Image, instances: npt.NDArray[np.int16], scene: Scene, index: int, lamp: Light) -> tuple[Window, int]:
    """Lays down one thing; returns where, and how many pixels of it there are if nothing hides any."""
    thing, side = scene.things[index], len(pixels)
    x, y, size = seen(thing, scene.view, side)
    layers = cutout(thing.kind.shape, 2 * max(1, round(size / 2)), thing.turn)  # even: fewer sizes are shared by more
    if not thing.pasted:
        _shade(pixels, layers, x + lamp.shadow[0] * size, y + lamp.shadow[1] * size, lamp.darkness)
    place, part = _windows(x, y, layers.alpha, side)
    alpha, tone, grey = (layer[part][:, :, None] for layer in (layers.alpha, layers.tone, layers.grey))
    colour = np.array(PALETTE[thing.kind.colour], np.uint16)
    pixels[place] = ((FULL - alpha) * pixels[place].astype(np.uint16) + tone * colour) // FULL + grey
    mask = layers.alpha > FULL // 2
    instances[place][mask[part]] = index + 1
    return place, int(np.count_nonzero(mask))


def _shade(pixels: Image, layers: Cutout, x: float, y: float, darkness: float) -> None:
    """Lays down one shadow."""
    place, part = _windows(x, y, layers.shadow, len(pixels))
    left = 256 - (layers.shadow[part][:, :, None] * np.uint16(256 * darkness) >> 8)
    pixels[place] = pixels[place] * left >> 8


def _windows(x: float, y: float, layer: npt.NDArray[np.uint8], side: int) -> tuple[Window, Window]:
    """Which part of the picture a layer around a point covers, and which part of the layer that is."""
    starts = (int(np.floor(middle - len(layer) / 2 + 0.5)) for middle in (y, x))
    (rows, own_rows), (columns, own_columns) = (_span(start, len(layer), side) for start in starts)
    return (rows, columns), (own_rows, own_columns)


def _span(start: int, length: int, side: int) -> tuple[slice, slice]:
    low, high = (min(max(0, end), side) for end in (start, start + length))
    return slice(low, high), slice(low - start, high - start)


def _extent(instances: npt.NDArray[np.int16], window: Window, number: int) -> tuple[Box | None, int]:
    """Tight extent of what is seen of a thing in its window, and its number of pixels."""
    mask = instances[window] == number
    rows, columns = np.flatnonzero(mask.any(1)) + window[0].start, np.flatnonzero(mask.any(0)) + window[1].start
    if not len(rows):
        return None, 0
    box = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    return box, int(np.count_nonzero(mask))


def _finished(pixels: Image, scene: Scene, lamp: Light) -> Image:
    """The picture in its light, with its grain; what would be above 255 or below 0 stays there."""
    if scene.light:
        pixels = np.minimum(pixels * np.array(lamp.gain, np.uint32) >> 8, 255).astype(np.uint8)
    if scene.noise:
        rng = np.random.default_rng([scene.backdrop, scene.light])
        grain = rng.integers(-scene.noise, scene.noise + 1, (*pixels.shape[:2], 1), np.int16)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return pixels
