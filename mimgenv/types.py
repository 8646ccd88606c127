"""The records of the environment: pictures, tasks, truths, answers and observations.

Owns the nouns every other module speaks in. Knows nothing of rendering, parsing, rewards or Gymnasium. Every record
is frozen and holds tuples, so a task can be cached and shared without being copied. The arrays inside a task are
read-only by convention; what the environment hands out is always a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]
"""Pixels, (H, W, 3) uint8, RGB."""

Box: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels; x to the right, y down; x2 and y2 are exclusive edges, so the area is (x2-x1)·(y2-y1)."""


class Observation(TypedDict):
    """What is new this turn: `images` are (H, W, 3) uint8, one per `<image>` marker in `text`, in order."""

    images: tuple[Image, ...]
    text: str


@dataclass(frozen=True, slots=True)
class ObjectAnnotation:
    """One annotated object in one image.

    Attributes:
        label: What a person would call it, such as `red circle`.
        box: Its visible extent in pixels of the original image.
        identity: Equal in two images of a task when it is the same object; None where that is not known.
    """

    label: str
    box: Box
    identity: int | None = None


@dataclass(frozen=True, slots=True)
class Grounding:
    """A place in one image: the truth of a grounding task, or an answer mapped back to the original image.

    Attributes:
        image: 1-based number of the original image.
        label: What is there.
        box: Where it is, in pixels of the original image.
    """

    image: int
    label: str
    box: Box


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The truth of, or the answer to, a question answered with text, a number or an option letter."""

    text: str


Answer: TypeAlias = Grounding | TextAnswer


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its images and its truth.

    Attributes:
        task_id: `mimgenv.load_task(task_id)` makes this very task again.
        task_type: Such as `referring`; the rows of an evaluation table.
        images: The original images at full resolution; the environment may show them smaller.
        question: The question alone, without image markers or instructions.
        truth: A `Grounding` or a `TextAnswer`; its type says how the task is answered.
        rationale: Why the truth is the truth, in few words made from the annotations.
        objects: The annotated objects of each image; one entry per image.
        named_image: The image the question names, if any: then an answer may leave `image` out.
        captions: What each image shows, in words; empty where nothing is annotated.

    Raises:
        ValueError: If the numbers of images and of object lists differ, or the truth is in no image.
    """

    task_id: str
    task_type: str
    images: tuple[Image, ...]
    question: str
    truth: Answer
    rationale: str
    objects: tuple[tuple[ObjectAnnotation, ...], ...] = field(repr=False)
    named_image: int | None = None
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.objects) != len(self.images):
            raise ValueError(f"{len(self.images)} images, {len(self.objects)} object lists")
        if isinstance(self.truth, Grounding) and not 1 <= self.truth.image <= len(self.images):
            raise ValueError(f"truth in image {self.truth.image} of {len(self.images)}")
