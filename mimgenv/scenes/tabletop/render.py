"""The ray-caster of the table-top: from a scene to its pixels, its instance buffer and its boxes.

Paints the stage, the shadows on it, and each thing where one ray a pixel meets it first; then outlines and creases
again, as the mean of what several rays a pixel meet. The same scene gives the same bytes on every processor: each room
it calls keeps to arithmetic that does.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.scene import Frame, Scene
from mimgenv.scenes.tabletop.backdrop import Backdrop, backdrop
from mimgenv.scenes.tabletop.camera import Plane
from mimgenv.scenes.tabletop.shading import shade_floor, shade_things
from mimgenv.scenes.tabletop.sight import FACES, Codes, Indices, Seen, edges, embody, extent, look, look_closely, seen
from mimgenv.scenes.tabletop.stage import Stage, stage
from mimgenv.types import Image

# The C library keeps freed memory for the next array up to the size of the largest block freed so far: without this,
# it hands back the pages of temporaries and fetches them again in every picture.
np.empty(1 << 22, np.uint8)


def draw(scene: Scene, side: int) -> Frame:
    """Draws a scene as `side` x `side` pixels: a pure function of both."""
    seeds = scene.backdrop, side, scene.view, scene.light
    scenery, empty = backdrop(*seeds), stage(*seeds)
    bodies = [embody(thing, scenery.camera) for thing in scene.things]
    sight = look(bodies, scenery.camera)
    found, outline = seen(sight), edges(sight.codes)
    floor = empty.floor.copy()
    shade_floor(bodies, scenery, floor)
    inks = shade_things(bodies, scenery, sight, found)
    levels = _scenery_levels(scenery, empty, floor)
    planes = levels.reshape(3, -1)
    _enter(planes, found.at, inks)
    ground = _ground(scenery, floor.reshape(-1)[outline], empty.wall.reshape(-1)[outline])
    samples = np.vstack((sight.codes.reshape(-1)[outline], look_closely(bodies, scenery.camera, outline)))
    source = _sources(sight.codes, outline, samples, found)
    _enter(planes, outline, _means(np.concatenate((inks, ground), axis=1), source))
    places = [found.at[part] for part in found.parts]
    visibility = tuple(len(at) / total if total else 0.0 for at, total in zip(places, sight.whole, strict=True))
    boxes = tuple(extent(at, side) for at in places)
    return Frame(_grained(_interleaved(levels), scene), sight.codes // FACES, boxes, visibility)


def seen_points(scene: Scene, side: int) -> npt.NDArray[np.float32]:
    """What each pixel shows: (side, side, 3) float32 points of the world, NaN where it shows no thing."""
    camera = backdrop(scene.backdrop, side, scene.view, scene.light).camera
    depth = look([embody(thing, camera) for thing in scene.things], camera).depth
    depth[depth == np.inf] = np.nan
    x, y, z = camera.picture
    return np.stack(camera.world((x * depth, y * depth, z * depth + np.float32(camera.height))), axis=-1)


def _sources(codes: Codes, at: Indices, samples: Codes, found: Seen) -> Indices:
    """Which pixel each sample of some pixels takes its colour from.

    Args:
        codes: What the middle of each pixel shows.
        at: Places of the pixels in the flattened picture.
        samples: What each sample of each of them shows, (samples, pixels).
        found: Where the pixels are whose middles show things.

    Returns:
        Places in `found.at`; after its end, places in `at`, for samples that show the scenery there.
    """
    flat, side, things = codes.reshape(-1), codes.shape[1], len(found.at)
    slot = np.zeros(flat.size, np.int32)
    slot[found.at] = np.arange(things, dtype=np.int32)
    source = np.where(samples, slot[at], np.arange(things, things + len(at), dtype=np.int32))
    odd = np.flatnonzero((samples != 0) & (samples != flat[at]))
    wanted, middle = samples.reshape(-1)[odd], at[odd % len(at)]
    for step in (-1, 1, -side, side):  # The same face is seen in the middle of a pixel beside.
        beside = (middle + step).clip(0, flat.size - 1)
        fits = np.flatnonzero(flat[beside] == wanted)
        source.reshape(-1)[odd[fits]] = slot[beside[fits]]
    return source


def _means(inks: Plane, source: Indices) -> Plane:
    """The mean light of the samples of each pixel, (3, pixels)."""
    means = np.empty((3, source.shape[1]), np.float32)
    for mean, ink in zip(means, inks, strict=True):
        one, two, three, four = ink.take(source)
        np.add(one + two, three + four, out=mean)
    means *= np.float32(0.25)
    return means


def _ground(scenery: Backdrop, floor: Plane, wall: Plane) -> Plane:
    """The light of scenery, (3, ...), from how brightly floor and wall are seen."""
    colours = np.array((scenery.floor.pale, scenery.room.colour), np.float32).reshape(2, 3, *(1,) * floor.ndim)
    light: Plane = floor * colours[0] + wall * colours[1]
    return light


def _scenery_levels(scenery: Backdrop, empty: Stage, floor: Plane) -> npt.NDArray[np.uint8]:
    """The picture without things, (3, H, W): roots are taken of brightness, before colour, as far as possible."""
    levels, mixed = np.empty((3, *floor.shape), np.uint8), slice(empty.top, empty.bottom)
    for rows, plane, colours in (
        (slice(empty.top), empty.wall, scenery.room.colour),
        (slice(empty.bottom, None), floor, scenery.floor.pale),
    ):
        root = np.sqrt(plane[rows])
        for level, colour in zip(levels, colours, strict=True):
            np.multiply(root, np.float32(math.sqrt(colour)), out=level[rows], casting="unsafe")
    levels[:, mixed] = np.sqrt(_ground(scenery, floor[mixed], empty.wall[mixed]))
    return levels


def _enter(planes: npt.NDArray[np.uint8], at: Indices, inks: Plane) -> None:
    """Shows light at some places of flattened planes."""
    for plane, level in zip(planes, np.sqrt(inks).astype(np.uint8), strict=True):
        plane[at] = level


def _interleaved(levels: npt.NDArray[np.uint8]) -> Image:
    """(3, H, W) as (H, W, 3)."""
    pixels = np.empty((*levels.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(levels):
        pixels[:, :, channel] = plane
    return pixels


def _grained(pixels: Image, scene: Scene) -> Image:
    """The picture with grain of at most `scene.noise` grey levels."""
    if not scene.noise:
        return pixels
    rng = np.random.default_rng([scene.backdrop, scene.light, scene.noise])
    grain = rng.integers(-scene.noise, scene.noise + 1, (*pixels.shape[:2], 1), np.int16)
    grained: Image = (pixels + grain).clip(0, 255).astype(np.uint8)
    return grained
