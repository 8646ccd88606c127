"""Where the images come from that questions are written for: numbered sets of them.

Set n is a pure function of (source, seed, n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from mimgenv.datasets.coco import read_pixels
from mimgenv.errors import DatasetError
from mimgenv.geometry import MAX_PIXELS, smart_resize
from mimgenv.tasks.registry import open_source
from mimgenv.tasks.source import TaskSource
from mimgenv.tools import resize
from mimgenv.types import Image

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FOLDER: Final = "images:"
STRETCH: Final = 2**20
"""Tasks between the first sets of two seeds."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to ask about.

    Attributes:
        images: Each (H, W, 3) uint8.
        names: What they are called where they come from.
        task_id: Of the task whose images they are; empty where they are of none.
    """

    images: tuple[Image, ...]
    names: tuple[str, ...]
    task_id: str = ""


class ImageSets(Protocol):
    """Numbered sets of images.

    Attributes:
        fingerprint: Another one where the sets are others: answers about them must not be mixed.
    """

    fingerprint: str

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __call__(self, number: int) -> ImageSet:
        """Set `number`, from 0."""
        ...


class TaskSets:
    """The images of tasks, for whom the tasks' own questions may be taken over.

    Args:
        source: Any source of tasks.
        seed: Another stretch of the source's seeds for each.
    """

    def __init__(self, source: TaskSource, seed: int = 0) -> None:
        self.source, self._first = source, seed * STRETCH
        self.fingerprint = f"{len(source)} tasks of {', '.join(source.task_types)}, seed {seed}"

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, number: int) -> ImageSet:
        """The images of the task at place `number` of the stretch."""
        task = self.source.task(self._first + number)
        names = tuple(f"{task.task_id}#{place}" for place in range(1, len(task.images) + 1))
        return ImageSet(task.images, names, task.task_id)


class FolderSets:
    """Sets drawn from the images of a folder, each at most once in a set.

    An image of more than `MAX_PIXELS` is made smaller, and enters the curated set so: then everybody's pixels are the
    same.

    Args:
        folder: Holds the images.
        seed: Of what is drawn.
        least: Fewest images of a set.
        most: Most.

    Raises:
        DatasetError: If there are fewer than `least` images.
    """

    def __init__(self, folder: str | Path, seed: int = 0, least: int = 2, most: int = 4) -> None:
        self.folder, self.seed = Path(folder), seed
        try:
            self._paths = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise DatasetError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        if len(self._paths) < least:
            raise DatasetError(f"{folder}: {len(self._paths)} images, at least {least} needed")
        known = [(path.name, path.stat().st_size) for path in self._paths]
        digest = hashlib.sha256(repr(known).encode()).hexdigest()
        self.fingerprint = f"{len(known)} images {digest[:16]}, {least} to {most} a set, seed {seed}"
        self._sizes = range(least, min(most, len(self._paths)) + 1)

    def __len__(self) -> int:
        return 2**31

    def __call__(self, number: int) -> ImageSet:
        """Set `number`.

        Raises:
            DatasetError: If an image cannot be decoded.
        """
        rng = np.random.default_rng([self.seed, number])
        count = int(rng.choice(self._sizes))
        drawn = [self._paths[i] for i in rng.permutation(len(self._paths))[:count]]
        return ImageSet(tuple(_small(read_pixels(path)) for path in drawn), tuple(path.name for path in drawn))


def _small(pixels: Image) -> Image:
    height, width = pixels.shape[:2]
    if height * width <= MAX_PIXELS:
        return pixels
    rows, columns = smart_resize(height, width, max_pixels=MAX_PIXELS)
    return resize(pixels, columns, rows)


def open_sets(source: str, seed: int, world: str | None = None, tasks: str | Sequence[str] | None = None) -> ImageSets:
    """The sets that a source string names.

    Args:
        source: `rendered`, `images:/path/to/folder`, or a source of tasks such as `odinw:/path`.
        seed: Decides which sets there are.
        world: Of rendered tasks.
        tasks: Types of tasks, or a group of them; None for all.

    Raises:
        MimgenvError: If there is no such source.
    """
    if source.startswith(FOLDER):
        return FolderSets(source.removeprefix(FOLDER), seed)
    return TaskSets(open_source(None if source == "rendered" else source, world, tasks, "train", None), seed)
