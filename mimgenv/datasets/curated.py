"""A curated set: multi-image questions as JSON lines, with the images beside the file.

Owns the form of an item and its checks. `curated_files` reads and writes whole files of them, `curated_tasks` serves
them; nothing is known here of how questions are made or reviewed. One line per item, UTF-8, an object with these keys
and no others:

    version     1
    id          letters, digits, `.`, `_` and `-`; once in a file
    images      paths relative to the file's folder, `/` between names; never absolute, no `..`, no way out of it
    question    what the agent reads, without image markers
    task_type   lower-case letters, digits and `_`; the row of an evaluation table
    grounding   {"image": k, "bbox_2d": [x1, y1, x2, y2], "label": text}: k from 1, the box in pixels of that image
    answer      text; in place of `grounding`. With `options` it is the letter of the right one
    options     optional, beside `answer`: two to 26 texts, which the agent reads as `A. …`, `B. …` below the question
    provenance  optional: an object, kept as it is
    review      optional: {"verdict": "accepted", "rejected" or "edited", "by": name, "note": text}

Curation writes into `provenance`: `proposer` (name), `seed`, `sources` (names of the source images), `solvers` (a list
of {"solver", "images": whether it saw them, "attempt", "answer", "right"}) and `critic` ({"critic", "answerable",
"unique", "reason"}). Nothing is read from it here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import PIL.Image

from mimgenv.datasets.coco import FORMATS
from mimgenv.parsing import MAX_LABEL, MAX_TEXT_ANSWER, TAGS
from mimgenv.types import Answer, Grounding, TextAnswer

VERSION: Final = 1
"""Written to every line; bumped when a key is renamed, removed or means something else."""

VERDICTS: Final = ("accepted", "rejected", "edited")
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_SIDE: Final = 16_384
MAX_QUESTION: Final = 4000
"""Characters of a question with its options."""

_T = TypeVar("_T")

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TASK_TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED: Final = re.compile(r"<image>|<\|[^|<>]*\|>|" + "|".join(map(re.escape, TAGS)))
"""What belongs to the format of a conversation: image markers, special tokens, the tags of a turn."""
_NEEDED: Final[dict[str, type]] = {"id": str, "images": list, "question": str, "task_type": str}
_OPTIONAL: Final[dict[str, type]] = {
    "grounding": dict,
    "answer": str,
    "options": list,
    "provenance": dict,
    "review": dict,
}


@dataclass(frozen=True, slots=True)
class Review:
    """What a person decided about an item.

    Attributes:
        verdict: One of `VERDICTS`; a rejected item is kept but not served.
        by: Who.
        note: Why; may be empty.

    Raises:
        ValueError: If there is no such verdict, or nobody gave it.
    """

    verdict: str
    by: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"review verdict {self.verdict!r} is not one of {list(VERDICTS)}")
        if not self.by.strip():
            raise ValueError("a review needs who it is by")


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a curated set; what can be checked without the images is checked here.

    Attributes:
        id: Once in a file.
        images: Paths relative to the folder of the file.
        question: Without its options.
        task_type: The row of an evaluation table.
        truth: A box in pixels of an image, or a text; with options the letter of the right one.
        options: Texts to choose from; empty where the answer is free.
        provenance: Where the item comes from, as JSON; see the module.
        review: None where nobody has looked at it.

    Raises:
        ValueError: If a rule of the module's schema is broken.
    """

    id: str
    images: tuple[str, ...]
    question: str
    task_type: str
    truth: Answer
    options: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    review: Review | None = None

    def __post_init__(self) -> None:
        for name, value, pattern in (("id", self.id, _ID), ("task_type", self.task_type, _TASK_TYPE)):
            if pattern.fullmatch(value) is None:
                raise ValueError(f"{name} {value[:100]!r} does not fit {pattern.pattern}")
        if not self.images:
            raise ValueError("an item needs at least one image, it has none")
        for path in self.images:
            _check_path(path)
        _check_text("the question with its options", self.full_question, MAX_QUESTION)
        if isinstance(self.truth, Grounding):
            self._check_grounding(self.truth)
        else:
            self._check_answer(self.truth.text)

    @property
    def full_question(self) -> str:
        """What the agent reads: the question, then one line per option."""
        return "\n".join([self.question, *(f"{a}. {text}" for a, text in zip(LETTERS, self.options, strict=False))])

    def _check_grounding(self, truth: Grounding) -> None:
        if self.options:
            raise ValueError(f"{len(self.options)} options beside grounding; options are for a text answer")
        if not 1 <= truth.image <= len(self.images):
            raise ValueError(f"grounding is in image {truth.image} of {len(self.images)}")
        _check_text("the label", truth.label, MAX_LABEL)
        x1, y1, x2, y2 = truth.box
        if not all(map(math.isfinite, truth.box)) or not (0 <= x1 < x2 and 0 <= y1 < y2):
            raise ValueError(f"bbox_2d needs finite 0 <= x1 < x2 and 0 <= y1 < y2, not {list(truth.box)}")

    def _check_answer(self, answer: str) -> None:
        _check_text("the answer", answer, MAX_TEXT_ANSWER)
        if not self.options:
            return
        letters = LETTERS[: len(self.options)]
        if not 2 <= len(self.options) <= len(LETTERS) or not all(text.strip() for text in self.options):
            raise ValueError(f"options are 2 to {len(LETTERS)} texts, none empty, not {list(self.options)}")
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"with {len(self.options)} options the answer is one letter of {letters}, not {answer!r}")


def _check_path(path: str) -> None:
    pure = PurePosixPath(path)
    odd = not path.isprintable() or "\\" in path or ":" in path or str(pure) != path
    if odd or pure.is_absolute() or ".." in pure.parts or path in ("", "."):
        raise ValueError(f"an image path is relative, plain and inside the folder of the file; {path!r} is not")


def _check_text(what: str, text: str, longest: int) -> None:
    if not text.strip() or len(text) > longest:
        raise ValueError(f"{what} needs 1 to {longest} characters, not {len(text.strip())}")
    match = _RESERVED.search(text)
    if match:
        raise ValueError(f"{what} holds {match[0]!r}, which belongs to the format of a conversation")
    if not text.isascii():
        text.encode("utf-8")  # a lone surrogate has none: its UnicodeEncodeError is a ValueError


def image_path(folder: str | Path, name: str) -> Path:
    """The file of an image: absolute, without symbolic links.

    Args:
        folder: Of the JSON lines.
        name: One of an item's `images`.

    Raises:
        ValueError: If it is not a plain relative path, leads out of the folder, or is no file.
    """
    _check_path(name)
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
        raise ValueError(f"an image must lie in the folder of the file, {name!r} does not")
    if not path.is_file():
        raise ValueError(f"the image {name!r} is missing")
    return path


def check_images(item: Item, folder: str | Path) -> None:
    """Checks what needs the images: they are there, can be decoded, and hold the true box.

    Raises:
        ValueError: If one is missing, broken or not of 8 bits a channel, or the box reaches out of its image.
    """
    sizes = [_image_size(image_path(folder, name), name) for name in item.images]
    if isinstance(item.truth, Grounding):
        width, height = sizes[item.truth.image - 1]
        if item.truth.box[2] > width or item.truth.box[3] > height:
            raise ValueError(f"bbox_2d {list(item.truth.box)} reaches out of its image of {width}x{height} pixels")


def _image_size(path: Path, name: str) -> tuple[int, int]:
    try:
        with PIL.Image.open(path, formats=FORMATS) as image:
            size, mode, format_ = image.size, image.mode, image.format
            image.verify()
        if format_ != "PNG":  # a PNG's checksums say that it is whole; others must be read
            with PIL.Image.open(path, formats=FORMATS) as image:
                image.draft("RGB", (size[0] // 8 or 1, size[1] // 8 or 1))  # all of a JPEG, but few pixels
                image.load()
    except Exception as error:  # each of Pillow's decoders raises what its format's code raises
        raise ValueError(f"the image {name!r} cannot be decoded ({error})") from error
    if max(size) > MAX_SIDE:
        raise ValueError(f"the image {name!r} has sides of {size} pixels, at most {MAX_SIDE} can be shown")
    if mode.startswith(("I", "F")):
        raise ValueError(f"the image {name!r} must have 8 bits a channel, its mode is {mode}")
    return size


def item_of(value: object) -> Item:
    """The item of a parsed line.

    Raises:
        ValueError: If it breaks a rule of the module's schema; the images are not looked at.
        TypeError: If a value is of another type than the schema says.
    """
    row = _typed("a line", value, dict)
    version = row.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"unknown version {version!r}; this reader knows {VERSION}")
    _check_keys("the item", row, {"version", *_NEEDED, *_OPTIONAL}, {"version", *_NEEDED})
    for key, kind in (_NEEDED | _OPTIONAL).items():
        if key in row:
            _typed(key, row[key], kind)
    if ("grounding" in row) == ("answer" in row):
        raise ValueError("an item has exactly one of 'grounding' and 'answer'")
    return Item(
        id=row["id"],
        images=tuple(_typed("an entry of images", name, str) for name in row["images"]),
        question=row["question"],
        task_type=row["task_type"],
        truth=_grounding(row["grounding"]) if "grounding" in row else TextAnswer(row["answer"]),
        options=tuple(_typed("an entry of options", text, str) for text in row.get("options", ())),
        provenance=row.get("provenance", {}),
        review=_review(row["review"]) if "review" in row else None,
    )


def item_json(item: Item) -> dict[str, Any]:
    """The object of an item's line; what is empty is left out."""
    row: dict[str, Any] = {"version": VERSION, "id": item.id, "images": list(item.images)}
    row |= {"question": item.question, "task_type": item.task_type}
    if isinstance(item.truth, Grounding):
        box = [float(side) for side in item.truth.box]
        row["grounding"] = {"image": int(item.truth.image), "bbox_2d": box, "label": item.truth.label}
    else:
        row["answer"] = item.truth.text
    if item.options:
        row["options"] = list(item.options)
    if item.provenance:
        row["provenance"] = dict(item.provenance)
    if item.review is not None:
        row["review"] = {"verdict": item.review.verdict, "by": item.review.by, "note": item.review.note}
    return row


def _check_keys(what: str, row: Mapping[str, Any], known: Set[str], needed: Set[str]) -> None:
    for key in sorted(needed - row.keys()):
        raise ValueError(f"{what} lacks the key {key!r}")
    for key in sorted(row.keys() - known):
        raise ValueError(f"{what} has the unknown key {key!r}; what has no key of its own goes into 'provenance'")


def _typed(what: str, value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _grounding(row: dict[str, Any]) -> Grounding:
    keys = {"image", "bbox_2d", "label"}
    _check_keys("the grounding", row, keys, keys)
    if type(row["image"]) is not int:  # true is no number of an image
        raise TypeError(f"image must be a whole number, not {row['image']!r}")
    box = _typed("bbox_2d", row["bbox_2d"], list)
    if len(box) != 4 or not all(type(side) in (int, float) for side in box):
        raise TypeError("bbox_2d must be four numbers [x1, y1, x2, y2]")
    x1, y1, x2, y2 = map(float, box)
    return Grounding(row["image"], _typed("label", row["label"], str), (x1, y1, x2, y2))


def _review(row: dict[str, Any]) -> Review:
    _check_keys("the review", row, {"verdict", "by", "note"}, {"verdict", "by"})
    return Review(*(_typed(key, row.get(key, ""), str) for key in ("verdict", "by", "note")))
