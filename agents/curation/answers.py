"""What the roles answered: from the text of a proposer, a solver or a critic to what it says.

Every function takes any text whatever and raises `BadAnswerError` alone. The JSON object may stand among other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimgenv.datasets.curated import VERSION, Item, item_of
from mimgenv.errors import MimgenvError, TurnError
from mimgenv.parsing import load_object, parse_text_answer, read_box, read_image, read_label
from mimgenv.rewards import Outcome, succeeded
from mimgenv.types import Answer, Grounding, Image, TextAnswer

MAX_REASON: Final = 500
"""Characters of a critic's reason that are kept."""


class BadAnswerError(MimgenvError):
    """An answer of a role that says nothing that can be used."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a critic says of an item.

    Attributes:
        answerable: Whether all that is asked about can be seen, and the truth is right.
        unique: Whether no other answer is as good.
        reason: In a few words.
    """

    answerable: bool
    unique: bool
    reason: str


def read_proposal(text: str, item_id: str, names: Sequence[str], images: Sequence[Image]) -> Item:
    """The item that a proposer wrote; keys that an item does not have are passed over.

    Args:
        text: The proposer's.
        item_id: Of the item.
        names: Paths of its images.
        images: What they hold, each (H, W, 3) uint8.
    """
    row = _object(text)
    row = {key: row[key] for key in ("question", "task_type", "grounding", "answer", "options") if key in row}
    if "answer" in row:
        row["answer"] = _plain(row["answer"])
    try:
        item = item_of({"version": VERSION, "id": item_id, "images": list(names), **row})
    except (ValueError, TypeError, OverflowError) as error:
        raise BadAnswerError(str(error)) from error
    if isinstance(item.truth, Grounding):
        height, width = images[item.truth.image - 1].shape[:2]
        if item.truth.box[2] > width or item.truth.box[3] > height:
            raise BadAnswerError(f"box {item.truth.box} reaches out of an image of {width}x{height}")
    return item


def read_solution(text: str, grounding: bool) -> Answer:
    """A solver's answer to a question that wants a box, or a text."""
    row = _object(text)
    try:
        if grounding:
            label = read_label(row.get("label", "unnamed"))
            return Grounding(read_image(row.get("image")), label, read_box(row.get("bbox_2d")))
        return TextAnswer(parse_text_answer(_plain(row.get("answer"))))
    except TurnError as error:
        raise BadAnswerError(error.text) from error


def read_verdict(text: str) -> Verdict:
    """A critic's verdict."""
    row = _object(text)
    reason = row.get("reason", "")
    if not isinstance(row.get("answerable"), bool) or not isinstance(row.get("unique"), bool):
        raise BadAnswerError('a verdict needs "answerable" and "unique", each true or false')
    return Verdict(row["answerable"], row["unique"], reason[:MAX_REASON] if isinstance(reason, str) else "")


def is_right(item: Item, answer: Answer) -> bool:
    """Whether an answer counts as right, by the environment's own rule."""
    return succeeded(Outcome(item.truth, answer, True, 0))


def _object(text: str) -> dict[str, Any]:
    text = text.rpartition("</think>")[2]  # what a model thought may hold braces, too
    start, end = text.find("{"), text.rfind("}")
    try:
        return load_object(text[start : end + 1] if start >= 0 else "")
    except TurnError as error:
        raise BadAnswerError(error.text) from error


def _plain(value: object) -> str:
    """A text, or a number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadAnswerError(f"an answer is a text or a number, not {type(value).__name__}")
    return str(value)
