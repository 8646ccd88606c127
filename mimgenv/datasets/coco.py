"""A folder of photographs with COCO annotations, read with distrust.

Owns the checks between a user's folder and the records the task sources use: the JSON, the image files, the boxes.
Knows nothing of tasks. What makes a folder unreadable or ambiguous raises `DatasetError` at once; a single box that
cannot be used is left out and reported, and its class becomes doubtful in that photograph.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import PIL.Image

from mimgenv.errors import DatasetError
from mimgenv.geometry import area, intersection
from mimgenv.types import Box, Image, ObjectAnnotation

ANNOTATIONS: Final = "annotations_without_background.json"
"""The annotation file of an ODINW split; it lies beside the images."""

IMAGE_MARKER: Final = "<image>"
FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP")
"""The image formats read. Pillow's others are left out: some start external programs."""

CACHED_IMAGES: Final = 32

Row: TypeAlias = Mapping[str, Any]

_ID: Final = (int, str)
_IMAGE_KEYS: Final[Mapping[str, tuple[type, ...]]] = {"id": _ID, "file_name": (str,), "width": (int,), "height": (int,)}
_CATEGORY_KEYS: Final[Mapping[str, tuple[type, ...]]] = {"id": _ID, "name": (str,)}
_ANNOTATION_KEYS: Final[Mapping[str, tuple[type, ...]]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "bbox": (list,),
}


@dataclass(frozen=True, slots=True)
class Photograph:
    """One image file and what is known to be in it.

    Attributes:
        path: The file; its pixels are not rotated by EXIF, since the boxes are in raw pixels.
        objects: The usable annotations in the order of the JSON; boxes are clipped to the image.
        doubtful: Labels of annotations that were left out: how many such objects there are is not known.
    """

    path: Path
    objects: tuple[ObjectAnnotation, ...]
    doubtful: frozenset[str]


@dataclass(frozen=True, slots=True)
class CocoFolder:
    """A checked folder.

    Attributes:
        file: The annotation file, as an absolute path without symbolic links.
        photographs: In the order of the JSON.
        skipped: One sentence per annotation that was left out.
    """

    file: Path
    photographs: tuple[Photograph, ...]
    skipped: tuple[str, ...]


def read_coco(folder: str | Path, name: str = ANNOTATIONS) -> CocoFolder:
    """Reads `<folder>/<name>` and checks every image it names, to the last byte but at an eighth of the size.

    Damage inside a JPEG that leaves its length as it was cannot be seen: the decoder goes on without a word.

    Raises:
        DatasetError: If a file is missing, broken, outside the folder or not as the JSON says, or the JSON is invalid,
            lacks a key, or uses an id or a name twice or without declaring it.
    """
    file = _real_path(Path(folder), Path(folder)) / name
    images, categories, annotations = _tables(file)
    labels = _labels(categories, file)
    paths = _image_paths(images, file)
    _refuse_unknown(annotations, paths, labels, file)
    for row in images:
        _check_image(paths[row["id"]], (row["width"], row["height"]))
    by_image = _annotations_by_image(images, categories, annotations)
    skipped: list[str] = []
    photographs = [_photograph(row, paths[row["id"]], by_image[row["id"]], labels, skipped) for row in images]
    return CocoFolder(file, tuple(photographs), tuple(skipped))


@lru_cache(maxsize=CACHED_IMAGES)
def read_pixels(path: Path) -> Image:
    """The pixels of an image file, (H, W, 3) uint8 RGB, read-only. The last few are kept.

    Raises:
        DatasetError: If the file cannot be decoded any more.
    """
    with _decoding(path), PIL.Image.open(path, formats=FORMATS) as image:
        pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    pixels.flags.writeable = False  # it is shared by all tasks that show this photograph
    return pixels


def _tables(file: Path) -> tuple[list[Row], list[Row], list[Row]]:
    data = _load_json(file)
    images = _rows(data, "images", _IMAGE_KEYS, file)
    categories = _rows(data, "categories", _CATEGORY_KEYS, file)
    annotations = _rows(data, "annotations", _ANNOTATION_KEYS, file)
    for row in annotations:
        if len(row["bbox"]) != 4 or not all(_is_number(value) for value in row["bbox"]):
            raise DatasetError(f"{file}: the bbox of annotation {row['id']!r} is not four numbers")
    return images, categories, annotations


def _load_json(file: Path) -> object:
    if not file.is_file():
        raise DatasetError(f"{file}: the annotation file is missing")
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{file}: the annotation file cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: invalid JSON ({error})") from error


def _rows(data: object, table: str, keys: Mapping[str, tuple[type, ...]], file: Path) -> list[Row]:
    rows = data.get(table) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise DatasetError(f"{file}: there is no list {table!r}")
    for number, row in enumerate(rows):
        for key, types in keys.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), types):
                wanted = " or ".join(kind.__name__ for kind in types)
                raise DatasetError(f"{file}: {table}[{number}] has no {key!r} of type {wanted}")
    return rows


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**53  # a larger one is no exact float, or none at all
    return isinstance(value, float)


def _refuse_twice(values: Iterable[Hashable], what: str, file: Path) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise DatasetError(f"{file}: {times} {what} {value!r}, 1 allowed")


def _labels(categories: list[Row], file: Path) -> dict[Hashable, str]:
    for row in categories:
        name = row["name"]
        if not name.strip() or not name.isprintable() or IMAGE_MARKER in name:
            rule = f"must be printable text without {IMAGE_MARKER}, which stands for an image"
            raise DatasetError(f"{file}: a category name {rule}, not {name!r}")
    _refuse_twice((row["id"] for row in categories), "categories with the id", file)
    _refuse_twice((row["name"] for row in categories), "categories with the name", file)
    return {row["id"]: row["name"] for row in categories}


def _image_paths(images: list[Row], file: Path) -> dict[Hashable, Path]:
    paths = [_image_path(row["file_name"], file) for row in images]
    _refuse_twice((row["id"] for row in images), "images with the id", file)
    _refuse_twice((str(path) for path in paths), "images in the file", file)
    return {row["id"]: path for row, path in zip(images, paths, strict=True)}


def _image_path(name: str, file: Path) -> Path:
    if IMAGE_MARKER in name:
        raise DatasetError(f"{file}: a file name must not hold {IMAGE_MARKER}, which stands for an image: {name!r}")
    path = _real_path(file.parent / name, file)
    if Path(name).is_absolute() or not path.is_relative_to(file.parent):
        raise DatasetError(f"{file}: an image must lie in the folder of the JSON, {name!r} does not")
    if not path.is_file():
        raise DatasetError(f"{file}: the image file {name!r} is missing")
    return path


def _real_path(path: Path, file: Path) -> Path:
    try:
        real = Path(os.path.realpath(path))
        real.exists()  # a name may also be too long to ask for
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(file)!r}: {str(path)!r} is no path ({error})") from error
    return real


def _refuse_unknown(
    annotations: list[Row], images: Mapping[Hashable, Path], labels: Mapping[Hashable, str], file: Path
) -> None:
    for row in annotations:
        if row["image_id"] not in images:
            raise DatasetError(f"{file}: annotation {row['id']!r} names the unknown image id {row['image_id']!r}")
        if row["category_id"] not in labels:
            raise DatasetError(f"{file}: annotation {row['id']!r} names the unknown category id {row['category_id']!r}")


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each of Pillow's decoders raises what its format's code raises
        raise DatasetError(f"{path}: the image cannot be decoded ({error})") from error


def _check_image(path: Path, size: tuple[int, int]) -> None:
    with _decoding(path), PIL.Image.open(path, formats=FORMATS) as image:
        found, mode = image.size, image.mode
        image.verify()
    if found != size:
        raise DatasetError(f"{path}: the image has {found[0]}x{found[1]} pixels, the JSON says {size[0]}x{size[1]}")
    if mode.startswith(("I", "F")):
        raise DatasetError(f"{path}: an image must have 8 bits a channel, its mode is {mode}")
    with _decoding(path), PIL.Image.open(path, formats=FORMATS) as image:
        image.draft("RGB", (size[0] // 8 or 1, size[1] // 8 or 1))  # reads all of a JPEG, but computes few pixels
        image.load()


def _annotations_by_image(
    images: list[Row], categories: list[Row], annotations: list[Row]
) -> Mapping[Hashable, list[Row]]:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    index: Mapping[Hashable, list[Row]] = coco.imgToAnns
    return index


def _photograph(
    image: Row, path: Path, annotations: list[Row], labels: Mapping[Hashable, str], skipped: list[str]
) -> Photograph:
    objects, doubtful = [], set()
    for row in annotations:
        label, box = labels[row["category_id"]], _box(row["bbox"], image["width"], image["height"])
        problem = _problem(row, box)
        if problem:
            doubtful.add(label)
            skipped.append(f"annotation {row['id']} of {image['file_name']}: {problem}")
        else:
            objects.append(ObjectAnnotation(label, box))
    return Photograph(path, tuple(objects), frozenset(doubtful))


def _box(bbox: list[float], width: int, height: int) -> Box:
    x, y, w, h = (float(value) for value in bbox)
    return intersection((x, y, x + w, y + h), (0.0, 0.0, float(width), float(height)))


def _problem(annotation: Row, clipped: Box) -> str:
    """Why an annotation cannot be used; empty if it can."""
    bbox = annotation["bbox"]
    if annotation.get("iscrowd"):
        return f"box {bbox} is a crowd, not one object"
    if not all(math.isfinite(value) for value in bbox):
        return f"box {bbox} is not finite"
    if bbox[2] <= 0 or bbox[3] <= 0:
        return f"box {bbox} has no area"
    return "" if area(clipped) > 0 else f"box {bbox} has no area inside the image"
