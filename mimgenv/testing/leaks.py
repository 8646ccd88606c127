"""Where something shown to an agent tells the truth of its task.

A search, not a proof: it finds the truth's box in any frame, its label or its text, and anything that is not plain
data, anywhere in a structure of observations and infos.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mimgenv.geometry import BOX_FRAMES, View
from mimgenv.types import Grounding, Task

NEAR = 0.006
"""How far a number may be from a coordinate to tell it: coordinates are often written with two decimals."""


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value in a structure, and every key, with the way to it; a sequence comes before what is in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{path}/{key}(key)", key
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple | set | frozenset) or (isinstance(value, np.ndarray) and value.dtype == object):
        yield path, value
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{number}")
    else:
        yield path, value


def leaks(task: Task, shown: object, known: Iterable[str] = ()) -> list[str]:
    """Where `shown` tells the truth of `task`; empty if nowhere.

    Args:
        task: With its truth.
        shown: Any structure of mappings, sequences, arrays, numbers and texts.
        known: Texts that are the same whatever the truth, such as instructions: not searched.
    """
    own = (task.question, task.task_id, *known)
    return [found for path, value in leaves(shown) for found in _told(task, path, value, own)]


def _told(task: Task, path: str, value: object, own: tuple[str, ...]) -> Iterator[str]:
    plain = (bool, int, float, str, list, tuple, set, frozenset, np.ndarray, np.generic, type(None))
    if not isinstance(value, plain):
        yield f"{path}: a {type(value).__name__}"
    said = _without(value, own) if isinstance(value, str) else ""
    if isinstance(task.truth, Grounding):
        yield from (f"{path}: box" for box in _boxes(task, task.truth) if _holds(value, box))
        if task.truth.label not in task.question and _says(said, task.truth.label):
            yield f"{path}: label"
    elif _says(said, task.truth.text):
        yield f"{path}: answer"


def _says(said: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said) is not None


def _without(said: str, own: tuple[str, ...]) -> str:
    for text in own:
        said = said.replace(text, "")
    return re.sub(r"Image-\d+", "", said)


def _boxes(task: Task, truth: Grounding) -> Iterator[tuple[float, ...]]:
    """The true box in every frame, as shown full size and half size."""
    original = task.images[truth.image - 1]
    height, width = original.shape[:2]
    for shown in (original, original[::2, ::2]):
        view = View(shown, truth.image, (0.0, 0.0, float(width), float(height)))
        yield from (view.from_original(truth.box, frame) for frame in BOX_FRAMES)


def _holds(value: object, box: tuple[float, ...]) -> bool:
    """Whether a text, a sequence or an array holds the four numbers, one after another."""
    if isinstance(value, str):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", value)]
    elif isinstance(value, np.ndarray) and value.dtype != object and value.size < 1000:
        numbers = [float(number) for number in value.ravel()]
    elif isinstance(value, list | tuple):
        numbers = [float(n) if isinstance(n, int | float | np.number) else math.nan for n in value]
    else:
        return False
    return any(np.allclose(numbers[i : i + 4], box, atol=NEAR) for i in range(len(numbers) - 3))
