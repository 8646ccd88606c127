"""The codec: the only place where token ids and text meet.

Wraps any `tokenizers.Tokenizer`; the default is the small byte-fallback one in `assets/`. An agent that speaks
another tokenizer has the environment built with its own codec, so that ids are never translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from tokenizers import Tokenizer

from mimgenv.errors import ConfigurationError, TurnError

END_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")
"""Tokens that may end a turn; the first that the vocabulary holds is the one that `encode_turn` appends."""


class Codec:
    """Turns ids into text and back, and refuses the ids that no turn may hold.

    Special tokens (roles, image placeholders) belong to the conversation format. One end-of-turn token may close a
    turn; any other special token in a turn is a `bad_token`.

    Args:
        tokenizer: Any tokenizer whose vocabulary holds an end-of-turn token.

    Raises:
        ConfigurationError: If it holds none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
        ends = [tokenizer.token_to_id(token) for token in END_TOKENS]
        self.end_ids = tuple(index for index in ends if index is not None)
        if not self.end_ids:
            raise ConfigurationError(f"the tokenizer has none of the end-of-turn tokens {list(END_TOKENS)}")
        special = {index: token.content for index, token in added.items() if token.special}
        self.special_ids = frozenset(special)
        self.special_tokens = tuple(special.values())

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that a turn may not hold anywhere; a sampler should never draw them."""
        return self.special_ids - set(self.end_ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Text to ids; characters that UTF-8 cannot write (lone surrogates) become `?`."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return tuple(self.tokenizer.encode(clean, add_special_tokens=False).ids)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The ids of a whole turn: text, then the end-of-turn token."""
        return (*self.encode(text), self.end_ids[0])

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def decode_turn(self, ids: Sequence[int]) -> str:
        """The text of a turn, without the end-of-turn token that closes it.

        Raises:
            TurnError: `bad_token`, if an id is out of range or belongs to the conversation format.
        """
        if len(ids) and ids[-1] in self.end_ids:
            ids = ids[:-1]
        for index in ids:
            if not 0 <= index < self.vocab_size or index in self.special_ids:
                raise TurnError("bad_token")
        return self.decode(ids)


@cache
def default_codec() -> Codec:
    """The codec of the tokenizer that ships with the package."""
    return Codec(Tokenizer.from_str(files("mimgenv").joinpath("assets/tokenizer.json").read_text("utf-8")))
