"""From the text of a turn to what it asks for, in time linear in its length.

The grammar (grammar.py writes the same one for constrained sampling): `<think>…</think>`, then exactly one of
`<tool_call>{"name": …, "arguments": {…}}</tool_call>` or `<answer>…</answer>`, white space allowed between. Whatever
does not fit raises a `TurnError`; nothing else is ever raised here, whatever the text holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mimgenv.errors import TurnError
from mimgenv.types import Box

MAX_TEXT_ANSWER: Final = 1000
MAX_LABEL: Final = 200
MAX_JSON: Final = 4000
"""Characters. No legal answer or call comes near; longer JSON is refused before it is read."""

_NAMES: Final = ("think", "tool_call", "answer", "tool_response")
TAGS: Final = tuple(tag for name in _NAMES for tag in (f"<{name}>", f"</{name}>"))
"""None of these may stand inside a thought, a call or an answer; the last two belong to the conversation format."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as written: the arguments are checked by the tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerText:
    """The text between the answer tags."""

    text: str


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """A grounding answer as written: numbers in the environment's box frame, of the image as shown."""

    image: int | None
    label: str
    box: Box


Turn: TypeAlias = ToolCall | AnswerText


def parse_turn(text: str) -> Turn:
    """Reads a whole turn.

    Raises:
        TurnError: `bad_turn`, `bad_json` or `bad_arguments`.
    """
    text = text.strip()
    if not text.startswith("<think>"):
        raise TurnError("bad_turn")
    thought, closed, act = text.removeprefix("<think>").partition("</think>")
    act = act.strip()
    if not closed or any(tag in thought for tag in TAGS):
        raise TurnError("bad_turn")
    for tag in ("tool_call", "answer"):
        opening, closing = f"<{tag}>", f"</{tag}>"
        if act.startswith(opening) and act.endswith(closing):
            body = act[len(opening) : -len(closing)]
            if any(tag in body for tag in TAGS):
                raise TurnError("bad_turn")
            return _parse_call(body) if tag == "tool_call" else AnswerText(body.strip())
    raise TurnError("bad_turn")


def _parse_call(body: str) -> ToolCall:
    call = load_object(body)
    name, arguments = call.get("name"), call.get("arguments")
    if set(call) != {"name", "arguments"} or not isinstance(name, str) or not isinstance(arguments, dict):
        raise TurnError("bad_json", 'A call is {"name": ..., "arguments": {...}}.')
    return ToolCall(name, arguments)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise TurnError("bad_json", "A key occurs twice.")
    return dict(pairs)


def load_object(text: str) -> dict[str, Any]:
    """Reads one JSON object, with or without a ```json fence; duplicate keys are refused.

    Raises:
        TurnError: `bad_json`.
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) >= 6:
        text = text[3:-3].removeprefix("json").strip()
    if len(text) > MAX_JSON:
        raise TurnError("bad_json", f"It is longer than {MAX_JSON} characters.")
    try:
        value = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError):
        raise TurnError("bad_json") from None
    if not isinstance(value, dict):
        raise TurnError("bad_json", "It must be an object.")
    return value


def read_image(value: object) -> int:
    """An image number as written in JSON: a whole number, not a string, not true.

    Raises:
        TurnError: `bad_image_index`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TurnError("bad_image_index", "An image is named by its number, such as 1.")
    return value


def read_box(value: object) -> Box:
    """Four finite numbers with x1 < x2 and y1 < y2.

    Raises:
        TurnError: `bad_box`.
    """
    if not isinstance(value, list) or len(value) != 4:
        raise TurnError("bad_box")
    x1, y1, x2, y2 = (_read_number(number) for number in value)
    if x1 >= x2 or y1 >= y2:
        raise TurnError("bad_box")
    return x1, y1, x2, y2


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TurnError("bad_box")
    try:
        number = float(value)
    except OverflowError:
        raise TurnError("bad_box") from None
    if not math.isfinite(number):
        raise TurnError("bad_box")
    return number


def read_label(value: object) -> str:
    """A label: a string that is not empty and not overlong.

    Raises:
        TurnError: `bad_answer`.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_LABEL:
        raise TurnError("bad_answer", "A label is a short text.")
    return value


def parse_grounding(text: str) -> WrittenBox:
    """Reads the answer to a grounding question: `{"image": k, "label": …, "bbox_2d": [x1, y1, x2, y2]}`.

    Keys may come in any order; `image` may be missing (the environment knows whether the question names one).

    Raises:
        TurnError: `bad_json`, `bad_answer`, `bad_image_index` or `bad_box`.
    """
    answer = load_object(text)
    if not {"label", "bbox_2d"} <= set(answer) <= {"image", "label", "bbox_2d"}:
        raise TurnError("bad_answer", 'Answer {"image": ..., "label": ..., "bbox_2d": [...]}.')
    image = read_image(answer["image"]) if "image" in answer else None
    return WrittenBox(image, read_label(answer["label"]), read_box(answer["bbox_2d"]))


def parse_text_answer(text: str) -> str:
    """Reads the answer to a QA question.

    Raises:
        TurnError: `bad_answer`, if it is empty or overlong.
    """
    text = text.strip()
    if not text or len(text) > MAX_TEXT_ANSWER:
        raise TurnError("bad_answer", f"An answer has 1 to {MAX_TEXT_ANSWER} characters.")
    return text
