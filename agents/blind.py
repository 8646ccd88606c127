"""Agents that never look, and agents that peek: what a score is worth is seen beside theirs.

A blind policy gets what one knows who reads the question without looking (habits.py): not a pixel, nothing of the truth
of the task it plays. A peeking policy reads the annotations: it is no floor, but says how far objects alone lead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from agents.habits import Asked, Habits
from agents.types import History
from mimgenv import load_task
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import View
from mimgenv.types import Answer, Box, Grounding, Task, TextAnswer

CENTRE_SHARE: Final = 0.4
"""Side of the centre box as a share of the image's."""

NOTHING: Final = "?"
"""Stands where a thought, a label or an answer must stand and none is meant."""

_LOW: Final = 0.5 - CENTRE_SHARE / 2
CENTRE: Final[Box] = (_LOW, _LOW, 1 - _LOW, 1 - _LOW)
WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)
LATTICE: Final = 16
"""A random box has its edges at multiples of a side's 16th."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Answers a question without looking. Boxes are in fractions of an image, those of answers in its pixels.

    Attributes:
        asked: The task, as far as it is known.
        habits: From other tasks.
        rng: Draws what is left to chance.
    """

    asked: Asked
    habits: Habits
    rng: np.random.Generator

    def place(self, box: Box, image: int | None = None) -> Answer:
        """A box, in the image that the question names where none is given; in a random one where it names none."""
        image = image or self.asked.named_image or int(self.rng.integers(1, len(self.asked.sizes) + 1))
        (width, height), (x1, y1, x2, y2) = self.asked.sizes[image - 1], box
        return Grounding(image, NOTHING, (x1 * width, y1 * height, x2 * width, y2 * height))

    def random_box(self) -> Box:
        """Corners drawn evenly from a lattice."""
        (x1, x2), (y1, y2) = (np.sort(self.rng.permutation(LATTICE + 1)[:2]) / LATTICE for _ in range(2))
        return float(x1), float(y1), float(x2), float(y2)

    def usual_box(self, by_question: bool = False) -> Box:
        """The best constant box."""
        boxes = self.habits.boxes
        return next((boxes[key] for key in self.asked.keys(by_question) if key in boxes), CENTRE)

    def usual_place(self, by_question: bool = False) -> Answer:
        """The best constant box, in the image that the question names or else in the most frequent one."""
        images = self.habits.images
        usual = next((images[key] for key in self.asked.keys(by_question) if key in images), 1)
        image = self.asked.named_image or min(usual, len(self.asked.sizes))
        return self.place(self.usual_box(by_question), image)

    def usual_texts(self, by_question: bool = False) -> tuple[str, ...]:
        """Answers that were right before, the most frequent first."""
        answers = self.habits.answers
        return next((answers[key] for key in self.asked.keys(by_question) if key in answers), (NOTHING,))

    def copied_place(self) -> Answer:
        """The first box that the question mentions, or a whole image; in the first image that it mentions."""
        image = next(iter(self.asked.mentioned), 1)
        written = re.search(r"\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]", self.asked.question)
        if written is None:
            return self.place(WHOLE, image)
        x1, y1, x2, y2 = map(float, written.groups())
        return Grounding(image, NOTHING, (x1, y1, x2, y2))

    def copied_text(self) -> str:
        """The first option, or the first number, or all words of the question."""
        number = re.search(r"\d+", self.asked.question)
        return self.asked.options[:1] or (number[0] if number else self.asked.question)


BLIND_PLACES: Final[dict[str, Callable[[Reader], Answer]]] = {
    "whole_image": lambda reader: reader.place(WHOLE),
    "centre_box": lambda reader: reader.place(CENTRE),
    "constant": lambda reader: reader.usual_place(),
    "question": lambda reader: reader.usual_place(by_question=True),
    "random": lambda reader: reader.place(reader.random_box()),
    "image_1": lambda reader: reader.place(reader.usual_box(), 1),
    "format": lambda reader: reader.place((0.0, 0.0, 0.02, 0.02), 1),
    "copy": lambda reader: reader.copied_place(),
}
"""Every policy, and how it answers with a box. `constant` is the best constant answer to tasks that are alike,
`question` that to tasks with the very same question."""

BLIND_TEXTS: Final[dict[str, Callable[[Reader], str]]] = {
    "constant": lambda reader: reader.usual_texts()[0],
    "question": lambda reader: reader.usual_texts(by_question=True)[0],
    "random": lambda reader: str(reader.rng.choice(reader.usual_texts())),
    "image_1": lambda reader: "1",
    "format": lambda reader: NOTHING,
    "copy": lambda reader: reader.copied_text(),
}
"""How policies answer with text; the others say `NOTHING`."""

LEARNING: Final = ("constant", "question", "random", "image_1")
"""Policies that need habits."""


Peek: TypeAlias = Callable[[Task, Grounding], Sequence[int]]

PEEKING: Final[dict[str, Peek]] = {
    "visible_object": lambda task, truth: (truth.image,),
    "any_object": lambda task, truth: range(1, len(task.images) + 1),
}
"""Policies that answer with any annotated object of these images; all of one where none is annotated there."""


def guess(name: str, task: Task, habits: Habits, rng: np.random.Generator) -> Answer:
    """What a policy of `BLIND_PLACES` or `PEEKING` answers, boxes in pixels of the original."""
    reader = Reader(Asked.of(task), habits, rng)
    if name in PEEKING and isinstance(task.truth, Grounding):
        return _peeked(task, PEEKING[name](task, task.truth), reader)
    if reader.asked.grounding:
        return BLIND_PLACES[name](reader)
    return TextAnswer(BLIND_TEXTS.get(name, BLIND_TEXTS["format"])(reader))


def _peeked(task: Task, images: Sequence[int], reader: Reader) -> Answer:
    seen = [image for image in images if task.objects[image - 1]]
    if not seen:
        return reader.place(WHOLE, images[0])
    image = seen[reader.rng.integers(len(seen))]
    thing = task.objects[image - 1][reader.rng.integers(len(task.objects[image - 1]))]
    return Grounding(image, thing.label, thing.box)


class BlindAgent:
    """Plays a policy.

    Args:
        name: Of `BLIND_PLACES` or `PEEKING`.
        habits: What `learn_habits` returned; needed by those in `LEARNING`.
        box_frame: The environment's.
        seed: Of all its choices, together with the task.

    Raises:
        ConfigurationError: If there is no such policy.
    """

    def __init__(self, name: str, habits: Habits | None = None, box_frame: str = "pixel", seed: int = 0) -> None:
        if name not in BLIND_PLACES and name not in PEEKING:
            raise ConfigurationError(f"blind policy {name!r} is not one of {[*BLIND_PLACES, *PEEKING]}")
        self.name, self.habits, self.box_frame, self.seed = name, habits or Habits(), box_frame, seed

    def act(self, histories: Sequence[History]) -> list[str]:
        """The answer to each episode."""
        return [self._turn(history) for history in histories]

    def _turn(self, history: History) -> str:
        task = load_task(history.task_id)
        answer = guess(self.name, task, self.habits, np.random.default_rng([self.seed, *task.task_id.encode()]))
        text = answer.text if isinstance(answer, TextAnswer) else self._written(answer, task, history)
        return f"<think>{NOTHING}</think><answer>{text}</answer>"

    def _written(self, answer: Grounding, task: Task, history: History) -> str:
        """In whole numbers of the box frame, so that it is short; thousandths where the frame ends at 1."""
        height, width = task.images[answer.image - 1].shape[:2]
        first = history.turns[0].message if history.turns else history.message
        view = View(first.images[answer.image - 1], answer.image, (0.0, 0.0, float(width), float(height)))
        digits = 3 if view.extent(self.box_frame)[0] <= 1 else None
        box = [round(side, digits) for side in view.from_original(answer.box, self.box_frame)]
        return json.dumps({"image": answer.image, "label": answer.label, "bbox_2d": box}, ensure_ascii=False)
