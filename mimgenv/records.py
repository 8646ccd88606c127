"""The JSON form of a played episode: one line of JSON per episode, with a version.

Owns the names and types on disk, so that an evaluation can be scored again or looked at long after it ran. Holds
texts, numbers and boxes, no pixels: `mimgenv.load_task(task_id)` makes the task's images again, `ViewRecord` says
which part of them was shown, and the turns say what a tool drew. Knows nothing of agents or of how a reward is
computed.

The file is pure ASCII, so that whatever an agent wrote survives: control characters, markup and lone surrogates are
JSON escapes. (A high surrogate followed by a low one comes back as the one character that the two stand for.) Keys
that the reader does not know are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from mimgenv.errors import DatasetError
from mimgenv.geometry import BOX_FRAMES
from mimgenv.parsing import ToolCall, parse_turn
from mimgenv.types import Answer, Box, Grounding, TextAnswer

VERSION: Final = 1
"""Written to every line; bumped when a key is renamed, removed or means something else."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EpisodeTurn:
    """One message of the environment and the agent's turn that answered it.

    Attributes:
        message: What the environment said, with one `<image>` marker per image.
        action: The agent's turn as text, exactly as decoded.
        error: The code of what was wrong with the turn, a key of `mimgenv.errors.TURN_ERRORS`, or None.
        images: How many new images came with the message.

    Raises:
        ValueError: If that number is negative.
    """

    message: str
    action: str
    error: str | None
    images: int

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"{self.images} images; there cannot be fewer than none")


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """One image as shown: a region of an original, at the size it was shown in.

    Attributes:
        image: 1-based number of the original image.
        region: The part shown, in pixels of that original.
        width: Width as shown, in pixels.
        height: Height as shown, in pixels.

    Raises:
        ValueError: If the region is empty or not finite, or a side or the number is below 1.
    """

    image: int
    region: Box
    width: int
    height: int

    def __post_init__(self) -> None:
        _check_finite("region", *self.region)
        if self.region[0] >= self.region[2] or self.region[1] >= self.region[3]:
            raise ValueError(f"a region needs x1 < x2 and y1 < y2, not {self.region}")
        if min(self.image, self.width, self.height) < 1:
            raise ValueError(f"image {self.image} shown as {self.width}x{self.height}; each must be at least 1")


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        task_id: `mimgenv.load_task` makes the task again, with its images and truth.
        task_type: Such as `referring`.
        agent: Who played.
        question: The question alone.
        turns: What was said and done.
        reward: Total reward.
        reward_parts: Unweighted parts by name, such as `iou` and `format`.
        stop: Why the episode ended, such as `answered`.
        success: Whether the answer counts as right.
        tool_calls: Names of the tools that were called, in order.
        truth: The right answer, boxes in pixels of the original.
        prediction: The agent's answer, boxes in pixels of the original; None where it gave none that parsed.
        views: One per image shown, in order: Image-1 first.
        box_frame: How the boxes in the turns are written; None where the record does not say.
        version: Version of this form.

    Raises:
        ValueError: If turns and views disagree on the number of images, a number is not finite, or there is no such
            box frame.
    """

    task_id: str
    task_type: str
    agent: str
    question: str
    turns: tuple[EpisodeTurn, ...]
    reward: float
    reward_parts: Mapping[str, float]
    stop: str
    success: bool
    tool_calls: tuple[str, ...]
    truth: Answer
    prediction: Answer | None
    views: tuple[ViewRecord, ...]
    box_frame: str | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        shown = sum(turn.images for turn in self.turns)
        if shown != len(self.views):
            raise ValueError(f"{shown} images in the turns, {len(self.views)} views")
        _check_finite("reward", self.reward, *self.reward_parts.values())
        for answer in (self.truth, self.prediction):
            if isinstance(answer, Grounding):
                _check_finite("box", *answer.box)
        if self.box_frame is not None and self.box_frame not in BOX_FRAMES:
            raise ValueError(f"box_frame {self.box_frame!r} is not one of {list(BOX_FRAMES)}")


def write_records(path: str | Path, records: Iterable[EpisodeRecord], *, append: bool = False) -> None:
    """Writes one line per record, or adds the lines to the file.

    All lines are made before the file is opened: a record that cannot be written leaves the file as it was.

    Raises:
        ValueError: If a record is of another version than this module writes.
    """
    text = "".join(_line(record) + "\n" for record in records)
    with open(path, "a" if append else "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def iterate_records(path: str | Path) -> Iterator[EpisodeRecord]:
    """Reads what `write_records` wrote, line by line; empty lines are passed over.

    Raises:
        DatasetError: If a line is no record of a known version; the message names the file and the line.
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_line(path, number, line.removesuffix(b"\n"))


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """All that `iterate_records` gives, with its errors."""
    return list(iterate_records(path))


def called_tools(turns: Iterable[EpisodeTurn]) -> Iterator[str]:
    """Names of the tools that were called without an error, in order."""
    for turn in turns:
        if turn.error is None:  # so the environment has parsed it, and knows the tool
            parsed = parse_turn(turn.action)
            if isinstance(parsed, ToolCall):
                yield parsed.name


def answer_json(answer: Answer) -> dict[str, Any]:
    """`{"image": k, "label": …, "box": [x1, y1, x2, y2]}` in pixels of the original, or `{"text": …}`."""
    if isinstance(answer, TextAnswer):
        return {"text": answer.text}
    return {"image": int(answer.image), "label": answer.label, "box": [float(side) for side in answer.box]}


def _check_finite(name: str, *values: float) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


def _line(record: EpisodeRecord) -> str:
    if record.version != VERSION:
        raise ValueError(f"version {record.version}; this module writes {VERSION}")
    return json.dumps(_record_json(record), ensure_ascii=True, allow_nan=False)


def _record_json(record: EpisodeRecord) -> dict[str, Any]:
    return {
        "version": record.version,
        "task_id": record.task_id,
        "task_type": record.task_type,
        "agent": record.agent,
        "question": record.question,
        "turns": [
            {"message": turn.message, "action": turn.action, "error": turn.error, "images": int(turn.images)}
            for turn in record.turns
        ],
        # NumPy's numbers are what an environment hands out, and json does not know them.
        "reward": float(record.reward),
        "reward_parts": {name: float(value) for name, value in record.reward_parts.items()},
        "stop": record.stop,
        "success": bool(record.success),
        "tool_calls": list(record.tool_calls),
        "truth": answer_json(record.truth),
        "prediction": None if record.prediction is None else answer_json(record.prediction),
        "views": [_view_json(view) for view in record.views],
        "box_frame": record.box_frame,
    }


def _view_json(view: ViewRecord) -> dict[str, Any]:
    region = [float(side) for side in view.region]
    return {"image": int(view.image), "region": region, "width": int(view.width), "height": int(view.height)}


def _read_line(path: str | Path, number: int, line: bytes) -> EpisodeRecord:
    try:
        return _record(_Fields(json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)))
    # A line may hold anything: a huge number overflows, deep nesting exhausts the stack.
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{path}, line {number}: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, not {name}")


class _Fields:
    """A JSON object whose fields are asked for by name and type; the error names the field that does not fit."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise TypeError(f"an object is needed here, not {type(value).__name__}")
        self._value = value

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __call__(self, key: str, kind: type[_T]) -> _T:
        if key not in self._value:
            raise ValueError(f"key {key!r} is missing")
        return _typed(key, self._value[key], kind)

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        return None if key in self and self._value[key] is None else self(key, kind)

    def tuple(self, key: str, make: Callable[[Any], _T]) -> tuple[_T, ...]:
        return tuple(make(item) for item in self(key, list))

    def number(self, key: str) -> float:
        return _number(key, self(key, object))

    def box(self, key: str) -> Box:
        sides = self.tuple(key, lambda side: _number(key, side))
        if len(sides) != 4:
            raise ValueError(f"key {key!r} needs 4 numbers, not {len(sides)}")
        return sides[0], sides[1], sides[2], sides[3]


def _typed(key: str, value: object, kind: type[_T]) -> _T:
    # bool is a subclass of int: `true` is neither a count nor a number of an image.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"key {key!r} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"key {key!r} must be a number, not {type(value).__name__}")
    return float(value)


def _record(fields: _Fields) -> EpisodeRecord:
    version = fields("version", int)
    if version != VERSION:
        raise ValueError(f"unknown version {version}; this reader knows {VERSION}")
    parts = fields("reward_parts", dict)
    prediction = fields.optional("prediction", dict)
    return EpisodeRecord(
        task_id=fields("task_id", str),
        task_type=fields("task_type", str),
        agent=fields("agent", str),
        question=fields("question", str),
        turns=fields.tuple("turns", _turn),
        reward=fields.number("reward"),
        reward_parts={name: _number(name, value) for name, value in parts.items()},
        stop=fields("stop", str),
        success=fields("success", bool),
        tool_calls=fields.tuple("tool_calls", lambda name: _typed("tool_calls", name, str)),
        truth=_answer(fields("truth", dict)),
        prediction=None if prediction is None else _answer(prediction),
        views=fields.tuple("views", _view),
        box_frame=fields.optional("box_frame", str) if "box_frame" in fields else None,
        version=version,
    )


def _turn(value: object) -> EpisodeTurn:
    fields = _Fields(value)
    error = fields.optional("error", str)
    return EpisodeTurn(fields("message", str), fields("action", str), error, fields("images", int))


def _answer(value: object) -> Answer:
    fields = _Fields(value)
    if "text" in fields:
        return TextAnswer(fields("text", str))
    return Grounding(fields("image", int), fields("label", str), fields.box("box"))


def _view(value: object) -> ViewRecord:
    fields = _Fields(value)
    return ViewRecord(fields("image", int), fields.box("region"), fields("width", int), fields("height", int))
