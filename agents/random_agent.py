"""The random agent: well-formed turns that mean nothing. The floor of every table.

Walks at random under the grammar that also masks a policy (mimgenv/grammar.py), over the default codec. It sees only
the sizes of the images: it neither reads the question nor knows what kind of answer it wants, and always names a box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from agents.types import Action, History
from mimgenv.codec import default_codec
from mimgenv.geometry import View
from mimgenv.grammar import TurnLimits, TurnMatcher, turn_grammar
from mimgenv.tools import TOOLS, Tool

LIMITS: Final = TurnLimits(thought=16, label=16)
"""A free walk seldom ends a text before its limit: short ones leave tokens for the box."""
WALKS: Final = 16
"""Most walks for one turn: a walk that ends in an inverted box is walked again."""


class RandomAgent:
    """Plays random turns; the same turn for the same history, seed and number of turns played.

    A turn keeps to an equal share of the tokens left, as far as a whole turn fits into it. Coordinates are random
    token by token, hence not uniform.

    Args:
        tools: Names in `mimgenv.tools.TOOLS` or instances, as the environment's.
        box_frame: The environment's.
        seed: Of all its choices, together with the task and the number of turns played; from 0.
        tool_rate: How often it calls a tool where the budget allows one, in [0, 1].
    """

    def __init__(
        self, tools: Sequence[str | Tool] = (), box_frame: str = "pixel", seed: int = 0, tool_rate: float = 0.5
    ) -> None:
        instances = [TOOLS[tool]() if isinstance(tool, str) else tool for tool in tools]
        self.tools: dict[str, Tool] = {tool.name: tool for tool in instances}
        self.box_frame, self.seed, self.tool_rate = box_frame, seed, tool_rate

    def act(self, histories: Sequence[History]) -> list[Action]:
        """The next turn of each episode."""
        return [Action(self._ids(history)) for history in histories]

    def _ids(self, history: History) -> tuple[int, ...]:
        budget = history.budget
        rng = np.random.default_rng([self.seed, *history.task_id.encode(), len(history.turns)])
        calls = bool(self.tools) and budget.turns > 1 and budget.images > 0 and rng.random() < self.tool_rate
        tools, answers = (self.tools, ()) if calls else ({}, ("grounding",))
        grammar = turn_grammar(self._extents(history), tools, answers, self.box_frame, LIMITS)
        for _ in range(WALKS):
            ids = _walk(grammar, budget.tokens // max(1, budget.turns), rng)
            if _is_upright(default_codec().decode(ids)):
                break
        return ids

    def _extents(self, history: History) -> list[tuple[float, float]]:
        messages = [*(turn.message for turn in history.turns), history.message]
        shown = [View(image, 1, (0, 0, 1, 1)) for message in messages for image in message.images]
        return [view.extent(self.box_frame) for view in shown]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The first character of each token and how many it has, (V,) each."""

    first: npt.NDArray[np.str_]
    length: npt.NDArray[np.int64]


@cache
def _tokens() -> _Tokens:
    codec = default_codec()
    texts = [codec.decode([index]) for index in range(codec.vocab_size)]
    return _Tokens(np.array([text[:1] for text in texts]), np.array([len(text) for text in texts]))


def _is_upright(text: str) -> bool:
    """Whether a box in the turn has x1 < x2 and y1 < y2: the one thing that the grammar cannot say."""
    boxes = re.findall(r'"bbox_2d": \[([\d., ]+)\]', text.rpartition("</think>")[2])
    corners = [[float(number) for number in box.split(",")] for box in boxes]
    return all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in corners)


def _walk(grammar: str, allowance: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The ids of a random turn, end-of-turn token included, of at most about `allowance`."""
    matcher = TurnMatcher(default_codec(), grammar)
    ids: list[int] = []
    while not matcher.done:
        hurried = len(ids) >= allowance // 2
        ids.append(_draw(np.flatnonzero(matcher.mask()), hurried, rng))
        matcher.consume(ids[-1])
    return (*ids, int(np.flatnonzero(matcher.mask())[0]))


def _draw(allowed: npt.NDArray[np.int64], hurried: bool, rng: np.random.Generator) -> int:
    """Any digit, or the longest token that begins like any other; the longest of all where the tokens run out.

    Numbers must be free, while tags, keys and words spelled out letter by letter would use up a small budget.
    """
    tokens = _tokens()
    drawn = int(rng.choice(allowed))
    if not hurried:
        if tokens.first[drawn].isdigit():
            return drawn
        allowed = allowed[tokens.first[allowed] == tokens.first[drawn]]
    length = tokens.length[allowed]
    return int(rng.choice(allowed[length == length.max()]))
