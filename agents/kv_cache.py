"""Keys and values of conversations that go on, so that a later turn computes only what is new.

Owns the tensors behind a transformers cache: which columns hold a token of which row, how rows are taken out and put
together, and which of them are kept, within a number of bytes. Knows no prompts, images or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

ROOM: Final = 64
"""Tokens that there is room for before tensors are made anew."""

Conversation: TypeAlias = tuple[tuple[int, ...], tuple[bytes, ...]]
"""Compact ids, and the digests of the images among them."""


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of a batch of rows.

    Attributes:
        layers: The keys and the values of each layer, (R, heads, T, features) each.
        real: (R, T) bool: which columns hold a token of the row, in order; the others mean nothing.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    real: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)

    def rows(self, index: Tensor) -> KeyValues:
        """Copies of the rows (R',), each once or more, without gaps: their tokens end together."""
        real = self.real[index]
        length = int(real.sum(1).max())
        columns = real.to(torch.uint8).argsort(dim=1, stable=True)[:, real.shape[1] - length :]

        def taken(tensor: Tensor) -> Tensor:
            wanted = columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            return tensor[index].gather(2, wanted)

        return KeyValues(tuple((taken(k), taken(v)) for k, v in self.layers), real.gather(1, columns))

    def cache(self, config: Any) -> Any:
        """A transformers cache that holds them, to be extended; `config` is that of the language model."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache(config=config)
        for layer in cache.layers:
            if type(layer) is DynamicLayer:  # not those of linear attention
                layer.update = _Growing(layer)
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, number)
        return cache


class _Growing:
    """How a layer of a transformers cache takes what is new: beside what it has, in tensors with room for more.

    Stock layers copy all they have for every token.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._room: tuple[Tensor, ...] = ()
        self._shown: tuple[Tensor, ...] = ()

    def __call__(self, *new: Tensor | None, **_: Any) -> tuple[Tensor, ...]:
        layer, states = self._layer, [state for state in new[:2] if state is not None]
        had = layer.get_seq_length()
        length = had + states[0].shape[2]
        old = (layer.keys, layer.values) if had else tuple(state[:, :, :0] for state in states)
        taken_out = had == 0 or any(one is not other for one, other in zip(old, self._shown, strict=False))
        if taken_out or length > self._room[0].shape[2]:
            shape = old[0].shape
            self._room = tuple(state.new_empty(shape[0], shape[1], length + ROOM, shape[3]) for state in states)
            for room, has in zip(self._room, old, strict=True):
                room[:, :, :had] = has
        for room, state in zip(self._room, states, strict=True):
            room[:, :, had:length] = state
        if not layer.is_initialized:
            layer.lazy_initialization(*states)
        layer.keys, layer.values = self._shown = tuple(room[:, :, :length] for room in self._room)
        return self._shown


def key_values(cache: Any, real: Tensor) -> KeyValues:
    """What a transformers cache holds."""
    return KeyValues(tuple((layer.keys, layer.values) for layer in cache.layers), real)


def stacked(parts: Sequence[KeyValues]) -> KeyValues:
    """The rows of all parts, their ends side by side."""
    if len(parts) == 1:
        return parts[0]
    length = max(part.real.shape[1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))

    layers = zip(*(part.layers for part in parts), strict=True)
    real = [torch.nn.functional.pad(part.real, (length - part.real.shape[1], 0)) for part in parts]
    return KeyValues(
        tuple((torch.cat([padded(k) for k, _ in each]), torch.cat([padded(v) for _, v in each])) for each in layers),
        torch.cat(real),
    )


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A row that a longer conversation begins with.

    Attributes:
        length: How many of the conversation's compact ids it holds.
        source: Where it is.
        row: Which row of `source`.
    """

    length: int
    source: KeyValues
    row: int


class KeptRows:
    """Rows to go on from, as many as fit.

    Args:
        room: The most bytes of keys and values to hold.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: dict[Conversation, KeptRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum({id(kept.source): kept.source.nbytes for kept in self._rows.values()}.values())

    def keep(self, conversations: Sequence[Conversation], source: KeyValues) -> None:
        """Keeps what stands for these conversations, the first of them where not all fit."""
        count = min(len(conversations), (self._room - self.nbytes) // (source.nbytes // len(conversations)))
        if count < len(conversations):
            source = source.rows(torch.arange(count, device=source.real.device)) if count else source
        for row, (ids, images) in enumerate(conversations[:count]):
            self._rows[ids, images] = KeptRow(len(ids), source, row)

    def find(self, conversation: Conversation) -> KeptRow | None:
        """The longest row that the conversation goes on from: its last id, at least, is new."""
        ids, images = conversation
        for length, count in sorted({(len(i), len(m)) for i, m in self._rows}, reverse=True):
            if length < len(ids) and (kept := self._rows.get((ids[:length], images[:count]))):
                return kept
        return None
