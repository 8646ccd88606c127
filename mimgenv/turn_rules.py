"""Which ids a turn may be written with, so that it always comes to a good end within its tokens.

Owns the rules of writing a turn token by token: the grammar of grammar.py, which tools and answers the task and the
budget leave, and that the turn can still be finished. Serves the masks of tokens.py, and any policy of single tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.codec import Codec
from mimgenv.errors import ConfigurationError
from mimgenv.grammar import ANSWERS, TurnLimits, TurnMatcher, turn_grammar
from mimgenv.tools import Tool

Mask: TypeAlias = npt.NDArray[np.bool_]
"""Which ids are legal, (V,)."""
Ids: TypeAlias = tuple[int, ...]

LIMITS: Final = TurnLimits()
NEVER: Final = 2**31
"""More tokens than any turn has."""
ODD_BYTES: Final = 4
"""A token may leave a character of UTF-8 unfinished: its last three bytes, and the token itself."""
REMEMBERED: Final = 4096
"""Places of a grammar that are kept."""

_Ahead: TypeAlias = "tuple[npt.NDArray[np.int64], dict[int, Ids | None]]"
"""Behind each legal id: how many tokens the way home has, and the way."""


class BoundedTurn(TurnMatcher):
    """The walk of one turn that ends within a number of tokens: whatever the masks allow, the turn can be finished.

    While many tokens are left the masks are the grammar's. With few left, a token is legal if the grammar allows it
    and a short way home is known from behind it that fits into what is left.

    Args:
        codec: Between ids and text.
        grammar: From `turn_grammar`.
        tokens: The most ids of the turn, end-of-turn token included.
        way: A turn of the grammar, no longer than `tokens`.
        roomy: With so many tokens left, any token that the grammar allows may be written.
    """

    def __init__(self, codec: Codec, grammar: str, tokens: int, way: Ids, roomy: int) -> None:
        super().__init__(codec, grammar)
        self._arguments = codec, grammar, tokens, way, roomy
        self._ids: list[int] = []
        self._left, self._roomy = tokens, roomy
        self._way: Ids | None = way
        self._ways_behind: dict[int, Ids | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _walked, (self._arguments, tuple(self._ids))

    def mask(self) -> Mask:
        """Which ids may come next, (V,) bool; none after the end-of-turn token."""
        mask = super().mask()
        if self._left < self._roomy and not self._ended:
            way = self._way if self._way and self._may_take(*self._way) else self.way_home() or ()
            mask[[*way[:1]]] = True
            needed, self._ways_behind = self._look_ahead(mask, way)
            mask[mask] = needed < self._left
        return mask

    def consume(self, index: int) -> None:
        """Takes the next id.

        Raises:
            ValueError: If it may not come next; the walk is then over.
        """
        super().consume(index)
        self._ids.append(index)
        self._left -= 1
        self._way, self._ways_behind = self._ways_behind.get(index), {}

    def way_home(self) -> Ids | None:
        """A short end of the turn: closes what is open and answers with little. None if the codec cannot write it."""
        walk, ids = self._copy(), list[int]()
        while (mask := TurnMatcher.mask(walk)).any():
            ids.append(int(np.argmax(np.where(mask, _eagerness(self._codec), -1))))
            if not walk._may_take(ids[-1]):
                return None
            TurnMatcher.consume(walk, ids[-1])
        if not walk._ended:
            return None
        respelled = self._codec.encode_turn(self._codec.decode(ids[:-1]))
        return respelled if len(respelled) < len(ids) and self._may_take(*respelled) else tuple(ids)

    def _may_take(self, *ids: int) -> bool:
        """Whether these ids may come next: where the text is forced, masks hold one way to write it, and may err."""
        taken: int = self._matcher.validate_tokens(ids)
        return taken == len(ids) or (ids == self._codec.end_ids[:1] and self.done)

    def _look_ahead(self, mask: Mask, way: Ids) -> _Ahead:
        """What lies behind each id of the mask; kept for other turns where the words of the thought do not matter."""
        _, closed, act = self._codec.decode(self._ids).partition("</think>")
        wordless = self._codec.decode(way[:1]).startswith("<")  # a way that takes nothing of what a thought may hold
        known = _known_places(self._codec, self._arguments[1]) if closed or wordless else {}
        place = mask.tobytes(), way, act
        if place not in known:
            if len(known) >= REMEMBERED:
                known.clear()
            ways = self._ways_from(np.flatnonzero(mask).tolist(), way)
            known[place] = np.array([NEVER if way is None else len(way) for way in ways.values()]), ways
        return known[place]

    def _ways_from(self, legal: Sequence[int], way: Ids) -> dict[int, Ids | None]:
        """The way home from behind each id: a known one, the last that fitted first, or else a new one."""
        known = [way[start:] for start in range(len(way))]
        ways: dict[int, Ids | None] = dict.fromkeys(self._within_text(legal, way), way)
        for index in legal:
            if index in ways:
                continue
            fitting = next((number for number, each in enumerate(known) if self._may_take(index, *each)), None)
            if way[:1] == (index,):
                ways[index] = way[1:]
            elif fitting is not None:
                known.insert(0, known.pop(fitting))
                ways[index] = known[0]
            else:
                ways[index] = found = self._way_behind(index)
                known[:0] = [found] if found else []
        return ways

    def _within_text(self, legal: Sequence[int], way: Ids) -> list[int]:
        """The ids behind which the same way leads home, as far as can be told without trying: a free text goes on."""
        texts = _texts(self._codec)
        tag_may_come = any(texts[index].startswith("<") for index in legal)
        closer = "<" if tag_may_come else '"'  # of a thought or a text answer, or else of a label
        if not way or not texts[way[0]].startswith(closer):
            return []
        return [index for index in legal if texts[index] and not set(texts[index]) & {closer, "\ufffd"}]

    def _way_behind(self, index: int) -> Ids | None:
        if not self._may_take(index):
            return None
        walk = self._copy()
        TurnMatcher.consume(walk, index)
        return walk.way_home()

    def _copy(self) -> Self:
        walk = object.__new__(type(self))
        walk.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy())
        return walk


def _walked(arguments: tuple[Any, ...], ids: Ids) -> BoundedTurn:
    walk = BoundedTurn(*arguments)
    walk.mask()  # it remembers ways home, on which later masks depend
    for index in ids:
        walk.consume(index)
        walk.mask()
    return walk


@lru_cache(maxsize=256)
def _known_places(codec: Codec, grammar: str) -> dict[tuple[bytes, Ids, str], _Ahead]:
    return {}


@lru_cache(maxsize=8)
def _texts(codec: Codec) -> list[str]:
    """The text of each id."""
    return [codec.decode([index]) for index in range(codec.vocab_size)]


@lru_cache(maxsize=8)
def _eagerness(codec: Codec) -> npt.NDArray[np.int64]:
    """How soon a turn ends if a token is written where it may be, (V,): no tool, then tags, quotes, the longest."""
    texts = _texts(codec)

    def eager(index: int) -> tuple[bool, bool, bool, int, int]:
        text = texts[index]
        return "tool" not in text, text.startswith("<"), text.startswith('"'), len(text), -ord(text[:1] or "\0")

    order = sorted(range(codec.vocab_size), key=eager)
    return np.argsort(np.array(order))


@lru_cache(maxsize=256)
def _shortest_turn(codec: Codec, grammar: str) -> Ids | None:
    return BoundedTurn(codec, grammar, NEVER, (), 0).way_home()


@lru_cache(maxsize=256)
def _longest_way(codec: Codec, grammar: str) -> int:
    """The most tokens of a way home from within the shortest turn; `NEVER` if the codec cannot spell that turn."""
    way = _shortest_turn(codec, grammar)
    text, longest = codec.decode_turn(way or ()), 0
    for end in range(len(text)):
        walk = BoundedTurn(codec, grammar, NEVER, (), 0)
        ids = codec.encode(text[:end])
        if codec.decode(ids) != text[:end]:
            return NEVER
        for index in ids:
            walk.consume(index)
        longest = max(longest, len(walk.way_home() or ()))
    return longest if way else NEVER


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
        limits: The longest thought, label and text answer.
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
        limits: TurnLimits = LIMITS,
        max_turn_tokens: int = 256,
        skip_forced: bool = False,
    ) -> None:
        self.codec, self.tools, self.box_frame, self.limits = codec, dict(tools), box_frame, limits
        self.max_turn_tokens, self.skip_forced = max_turn_tokens, skip_forced
        smallest = [(0.0, 0.0)]  # what can be written of one image without extent can be written of any images
        answers = {kind: self._grammar(smallest, (), (kind,)) for kind in ANSWERS}
        calls = [self._grammar(smallest, (name,), ()) for name in tools]
        shortest = {kind: _shortest_turn(codec, grammar) for kind, grammar in answers.items()}
        self._shortest = {kind: way for kind, way in shortest.items() if way is not None}
        if not self._shortest:
            raise ConfigurationError(f"the codec's {codec.vocab_size} tokens can write no answer")
        self.reserve = max(map(len, self._shortest.values()))
        """The tokens of the shortest answer: what is kept for each later turn."""
        if self.reserve > max_turn_tokens:
            raise ConfigurationError(f"the shortest answer has {self.reserve} tokens, a turn {max_turn_tokens}")
        self._roomy = ODD_BYTES + max(_longest_way(codec, grammar) for grammar in (*answers.values(), *calls))

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
