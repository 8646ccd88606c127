"""The walk of one turn through its grammar that always comes to a good end within a number of tokens.

Owns how a mask is narrowed when tokens run out: a token is legal only if a way home is known from behind it that fits.
Knows the grammar by what it allows next, and of a turn's text its tags, quotes and the word tool. What a turn may hold
is said in grammar.py, how many tokens it may have in turn_rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.codec import Codec
from mimgenv.grammar import TurnMatcher

Mask: TypeAlias = npt.NDArray[np.bool_]
"""Which ids are legal, (V,)."""
Ids: TypeAlias = tuple[int, ...]

NEVER: Final = 2**31
"""More tokens than any turn has."""
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
            legal = np.flatnonzero(mask).tolist()
            ways = self._ways_from(legal, way)
            behind = [ways[index] for index in legal]
            known[place] = np.array([NEVER if each is None else len(each) for each in behind]), ways
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
        a_tag_may_come = any(texts[index].startswith("<") for index in legal)
        closer = "<" if a_tag_may_come else '"'  # of a thought or a text answer, or else of a label
        if not way or not texts[way[0]].startswith(closer):
            return []
        inside = _ids_without(self._codec, closer)
        return [index for index in legal if index in inside]

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


@lru_cache(maxsize=16)
def _ids_without(codec: Codec, closer: str) -> frozenset[int]:
    """Ids of text without this character and without unfinished ones."""
    return frozenset(index for index, text in enumerate(_texts(codec)) if text and not {closer, "\ufffd"} & set(text))


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
def shortest_turn(codec: Codec, grammar: str) -> Ids | None:
    """A turn of the grammar that says little; None if the codec cannot write it."""
    return BoundedTurn(codec, grammar, NEVER, (), 0).way_home()


@lru_cache(maxsize=256)
def longest_way(codec: Codec, grammar: str) -> int:
    """The most tokens of a way home from within the shortest turn; `NEVER` if the codec cannot spell that turn."""
    way = shortest_turn(codec, grammar)
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
