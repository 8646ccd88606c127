"""The replay: plays recorded episodes again, turn by turn.

Owns the comparison of what the environment says now with what it said then: a recorded turn is played only as the
answer to the same message. Knows nothing of how the turns came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from agents.types import History, Message
from mimgenv.errors import ConfigurationError
from mimgenv.records import EpisodeRecord

_BEFORE, _AFTER = 20, 60
"""Characters that an error shows around the place where two messages part."""


class ReplayAgent:
    """Plays recorded episodes again.

    A record holds no pixels: messages are compared by their texts and by the sizes of their images. Nor does an agent
    see the end of an episode: one that ends sooner than its record shows in the number of turns and in the reward.

    Args:
        records: One per task id.
        box_frame: The environment's, to be compared too, since messages need not tell it; None where it is known to be
            that of the records.

    Raises:
        ValueError: If two records are of one task.
        ConfigurationError: If a record is of another box frame.
    """

    def __init__(self, records: Iterable[EpisodeRecord], box_frame: str | None = None) -> None:
        self._records: Final[dict[str, EpisodeRecord]] = {}
        for record in records:
            if record.task_id in self._records:
                raise ValueError(f"two records are of the task {record.task_id}, one can be played")
            if None not in (box_frame, record.box_frame) and record.box_frame != box_frame:
                frames = f"boxes are written as {record.box_frame}, the environment's as {box_frame}"
                raise ConfigurationError(f"in the record of {record.task_id} {frames}")
            self._records[record.task_id] = record

    def act(self, histories: Sequence[History]) -> list[str]:
        """The next turn of each episode, as recorded.

        Raises:
            ConfigurationError: If there is no record of the task or no such turn in it, or the environment's message
                differs from the recorded one.
        """
        return [self._turn(history) for history in histories]

    def _turn(self, history: History) -> str:
        if history.task_id not in self._records:
            raise ConfigurationError(f"no record of the task {history.task_id} among {len(self._records)}")
        record, number = self._records[history.task_id], len(history.turns)
        where = f"task {history.task_id}, turn {number + 1}"
        if number >= len(record.turns):
            raise ConfigurationError(f"{where}: the record ends after {len(record.turns)} turns, the episode goes on")
        difference = _difference(record, number, history.message)
        if difference:
            hint = "it was recorded with another env, tools, instructions or max_pixels"
            raise ConfigurationError(f"{where}: {difference}; {hint}")
        return record.turns[number].action


def _difference(record: EpisodeRecord, number: int, message: Message) -> str:
    """In what a message differs from the recorded one; empty where in nothing."""
    turn = record.turns[number]
    if message.text != turn.message:
        texts = message.text, turn.message
        place = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        now, then = (text[max(0, place - _BEFORE) : place + _AFTER] for text in texts)
        return f"the environment says {now!r}, the record {then!r}, from character {place} on"
    first = sum(earlier.images for earlier in record.turns[:number])
    views = islice(record.views, first, first + turn.images)
    sizes, recorded = [image.shape[1::-1] for image in message.images], [(view.width, view.height) for view in views]
    return "" if sizes == recorded else f"images of {sizes} pixels, recorded are {recorded}"
