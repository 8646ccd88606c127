"""Which ids a turn may be written with: what the task and the budget leave, token by token.

Owns the rules of writing turns: which tools and answers may be written, in how many tokens, and what becomes of an id
that may not. Serves the masks of tokens.py, and any policy of single tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from mimgenv.bounded_turn import BoundedTurn, longest_way, shortest_turn
from mimgenv.codec import Codec
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import View
from mimgenv.grammar import ANSWERS, TurnLimits, turn_grammar
from mimgenv.tools import Tool
from mimgenv.types import Image

LIMITS: Final = TurnLimits()
CHARACTERS: Final = 8
"""Of a token, more than the tokens of a thought have on average."""
ODD_BYTES: Final = 4
"""A token may leave a character of UTF-8 unfinished: its last three bytes, and the token itself."""


class OpenTurn:
    """A turn being written: its ids so far, and which may come next.

    An id that is not legal is no error: it is written like any other, and then every id is legal to the end of the
    turn, since nothing can be promised any more.

    Args:
        walk: Of the turn, at its beginning.
        tokens: The longest that the turn may become.
        end_ids: Each of these ends the turn.
        skip_forced: Writes an id unasked where it is the only legal one; but never a whole turn.
    """

    def __init__(self, walk: BoundedTurn, tokens: int, end_ids: Collection[int], skip_forced: bool) -> None:
        self.ids: list[int] = []
        self.mask = walk.mask()
        self._walk: BoundedTurn | None = walk
        self._tokens, self._end_ids, self._skip_forced = tokens, frozenset(end_ids), skip_forced
        while skip_forced and self._forced is not None and self._forced not in self._end_ids:
            self._append(self._forced)

    @property
    def complete(self) -> bool:
        """Whether the turn has come to its end, or to its greatest length."""
        return len(self.ids) >= self._tokens or bool(self.ids and self.ids[-1] in self._end_ids)

    def write(self, index: int) -> None:
        """Writes an id, and what is forced after it."""
        self._append(index)
        while self._skip_forced and not self.complete and self._forced is not None:
            self._append(self._forced)

    @property
    def _forced(self) -> int | None:
        return int(np.argmax(self.mask)) if self.mask.sum() == 1 else None

    def _append(self, index: int) -> None:
        legal = 0 <= index < len(self.mask) and self.mask[index]
        self.ids.append(index)
        if self._walk is not None and legal:
            self._walk.consume(index)
            self.mask = self._walk.mask()
        else:
            self._walk, self.mask = None, np.ones_like(self.mask)


class TurnRules:
    """What may be written in an environment, turn by turn: as masks, and within the budget.

    Args:
        codec: Between ids and text.
        tools: By name.
        box_frame: How boxes are written.
        limits: The longest thought, label and text answer; None: thoughts as long as the tokens of a turn reach.
        max_turn_tokens: The longest turn in tokens, end-of-turn token included.
        skip_forced: See `OpenTurn`.

    Raises:
        ConfigurationError: If the codec can write no answer, or none within `max_turn_tokens`.
    """

    def __init__(
        self,
        codec: Codec,
        tools: Mapping[str, Tool],
        box_frame: str = "pixel",
        limits: TurnLimits | None = None,
        max_turn_tokens: int = 256,
        skip_forced: bool = False,
    ) -> None:
        limits = limits or TurnLimits(thought=max(LIMITS.thought, CHARACTERS * max_turn_tokens))
        self.codec, self.tools, self.box_frame, self.limits = codec, dict(tools), box_frame, limits
        self.max_turn_tokens, self.skip_forced = max_turn_tokens, skip_forced
        smallest = [(0.0, 0.0)]  # what can be written of one image without extent can be written of any images
        answers = {kind: self._grammar(smallest, (), (kind,)) for kind in ANSWERS}
        calls = [self._grammar(smallest, (name,), ()) for name in tools]
        shortest = {kind: shortest_turn(codec, grammar) for kind, grammar in answers.items()}
        self._shortest = {kind: way for kind, way in shortest.items() if way is not None}
        if not self._shortest:
            raise ConfigurationError(f"the codec's {codec.vocab_size} tokens can write no answer")
        self.reserve = max(map(len, self._shortest.values()))
        """The tokens of the shortest answer: what is kept for each later turn."""
        if self.reserve > max_turn_tokens:
            raise ConfigurationError(f"the shortest answer has {self.reserve} tokens, a turn {max_turn_tokens}")
        self._roomy = ODD_BYTES + max(longest_way(codec, grammar) for grammar in (*answers.values(), *calls))

    def extents(self, images: Sequence[Image]) -> list[tuple[float, float]]:
        """Largest x and y of each image as it is shown, for `turn`."""
        nowhere = (0.0, 0.0, 0.0, 0.0)  # what of an original an image shows does not matter here
        return [View(image, number, nowhere).extent(self.box_frame) for number, image in enumerate(images, 1)]

    def allowance(self, turns: int, tokens: int) -> int:
        """The most tokens of the next turn, with so many turns and tokens left in the episode."""
        return max(self.reserve, min(self.max_turn_tokens, tokens - self.reserve * (turns - 1)))

    def turn(
        self, extents: Sequence[tuple[float, float]], answer: str, *, turns: int, tokens: int, images: int
    ) -> OpenTurn:
        """The next turn; no tool may be called where no answer could follow, or no image come.

        Args:
            extents: Largest x and y of each image shown so far.
            answer: The kind that the question wants, of `mimgenv.grammar.ANSWERS`.
            turns: How many are left in the episode.
            tokens: How many are left in the episode.
            images: How many tools may still return.

        Raises:
            ConfigurationError: If the codec cannot write an answer of that kind.
        """
        if answer not in self._shortest:
            raise ConfigurationError(f"the codec's {self.codec.vocab_size} tokens can write no {answer} answer")
        names = self.tools if turns > 1 and images > 0 else ()
        grammar = self._grammar(extents, names, (answer,))
        longest = self.allowance(turns, tokens)
        walk = BoundedTurn(self.codec, grammar, longest, self._shortest[answer], self._roomy)
        return OpenTurn(walk, longest, self.codec.end_ids, self.skip_forced)

    def _grammar(self, extents: Sequence[tuple[float, float]], tools: Collection[str], answers: Sequence[str]) -> str:
        return turn_grammar(extents, {name: self.tools[name] for name in tools}, answers, self.box_frame, self.limits)
