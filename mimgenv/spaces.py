"""Gymnasium spaces that stock Gymnasium lacks: images of any size, any text, turns of token ids.

Stock `spaces.Text` rejects what is outside its character set, and `spaces.Box` has one fixed shape.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from mimgenv.types import Image


class ImageSpace(spaces.Space[Image]):
    """RGB images of any size up to a largest side.

    Args:
        max_side: Largest height and width in pixels.
        seed: Seed of `sample`.
    """

    def __init__(self, max_side: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=np.uint8, seed=seed)
        self.max_side = max_side

    @property
    def is_np_flattenable(self) -> bool:
        """False: images differ in size."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> Image:
        """A noise image of random size, at most 64 pixels a side."""
        height, width = self.np_random.integers(1, min(self.max_side, 64) + 1, 2)
        return self.np_random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """Whether `x` is (H, W, 3) uint8 with sides from 1 to `max_side`."""
        is_rgb = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3
        return is_rgb and min(x.shape[:2]) >= 1 and max(x.shape[:2]) <= self.max_side

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpace) and other.max_side == self.max_side

    def __repr__(self) -> str:
        return f"ImageSpace(max_side={self.max_side})"


class UnicodeText(spaces.Text):
    """Any `str` up to a length in characters; samples printable ASCII."""

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string of at most `max_length` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


class TokenTurn(spaces.Space[npt.NDArray[np.int64]]):
    """The token ids of one turn: 1-D int64 of any length from 0 to `max_tokens`, each in [0, vocab_size).

    Args:
        vocab_size: Size of the codec's vocabulary.
        max_tokens: Longest turn.
        seed: Seed of `sample`.
    """

    def __init__(self, vocab_size: int, max_tokens: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=np.int64, seed=seed)
        self.vocab_size, self.max_tokens = vocab_size, max_tokens

    @property
    def is_np_flattenable(self) -> bool:
        """False: turns differ in length."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> npt.NDArray[np.int64]:
        """Random ids; rarely a turn that parses."""
        length = self.np_random.integers(min(self.max_tokens, 32) + 1)
        return self.np_random.integers(0, self.vocab_size, length, dtype=np.int64)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a sequence of ids in range, not longer than a turn may be."""
        if isinstance(x, np.ndarray) and x.ndim != 1:
            return False
        if isinstance(x, str) or not hasattr(x, "__len__") or len(x) > self.max_tokens:
            return False
        return all(isinstance(i, int | np.integer) and 0 <= i < self.vocab_size for i in x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTurn) and (other.vocab_size, other.max_tokens) == (
            self.vocab_size,
            self.max_tokens,
        )

    def __repr__(self) -> str:
        return f"TokenTurn(vocab_size={self.vocab_size}, max_tokens={self.max_tokens})"
