"""Kept keys and values: rows taken out, put together and found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.kv_cache import ROOM, Conversation, KeptRows, KeyValues, key_values, stacked
from agents.qwen_vl import load_qwen_vl

REAL = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]).bool()


def made(real: Tensor = REAL, first: float = 0.0) -> KeyValues:
    """Two layers of two heads and three features; a token's values are 100 times its row plus its column."""
    rows, columns = real.shape
    token = first + 100 * torch.arange(rows)[:, None] + torch.arange(columns)
    keys = token[:, None, :, None] + torch.zeros(1, 2, 1, 3)
    return KeyValues(((keys, -keys), (keys + 0.5, -keys - 0.5)), real)


def tokens(values: KeyValues) -> list[list[float]]:
    """The tokens that each row holds, by its first keys."""
    real = values.real
    first = values.layers[0][0][:, 0, :, 0]
    for number, (keys, others) in enumerate(values.layers):
        held = keys.permute(0, 2, 1, 3)[real]
        assert torch.equal(others.permute(0, 2, 1, 3)[real], -held)
        assert torch.equal(held, (first[real] + 0.5 * number)[:, None, None].expand_as(held))
    return [row[columns].tolist() for row, columns in zip(first, real, strict=True)]


def test_rows_taken_out_keep_their_tokens_in_order_and_end_together() -> None:
    taken = made().rows(torch.tensor([2, 0, 0]))
    assert tokens(taken) == [[202], [1, 2, 4], [1, 2, 4]]
    assert taken.real.tolist() == [[False, False, True], [True] * 3, [True] * 3]


def test_stacked_rows_keep_their_tokens_and_end_together() -> None:
    both = stacked([made(), made(torch.ones(1, 7, dtype=torch.bool), 1000)])
    assert tokens(both) == [[1, 2, 4], [100, 101, 102, 103, 104], [202], [1000 + k for k in range(7)]]
    assert both.real[0].tolist() == [False, False, False, True, True, False, True]


def test_a_transformers_cache_holds_them_and_goes_on(qwen: object) -> None:
    config = qwen.model.config.get_text_config()  # type: ignore[attr-defined]
    cache = made().cache(config)
    new = torch.full((3, 2, 1, 3), 7.0)
    for number, share in enumerate((0, 0.5)):
        keys, values = cache.update(new + share, -new - share, number)
        assert keys.shape == values.shape == (3, 2, 6, 3)
    grown = KeyValues(key_values(cache, REAL).layers[:2], torch.cat([REAL, torch.ones(3, 1, dtype=torch.bool)], 1))
    assert tokens(grown) == [[1, 2, 4, 7], [100, 101, 102, 103, 104, 7], [202, 7]]


def of(*ids: int, images: str = "") -> Conversation:
    return ids, tuple(image.encode() for image in images)


def test_the_longest_row_that_a_conversation_goes_on_from_is_found() -> None:
    kept = KeptRows(2**20)
    kept.keep([of(1, 2), of(1, 2, 3), of(1, 9, 9, 9)], made())
    found = kept.find(of(1, 2, 3, 4))
    assert found is not None
    assert (found.length, found.row) == (3, 1)
    shorter = kept.find(of(1, 2, 4, 4))
    assert shorter is not None
    assert (shorter.length, shorter.row) == (2, 0)
    assert kept.find(of(2, 2, 3, 4)) is None


def test_a_conversation_with_nothing_new_goes_on_from_less() -> None:
    kept = KeptRows(2**20)
    kept.keep([of(1, 2), of(1, 2, 3), of(5)], made())
    found = kept.find(of(1, 2, 3))
    assert found is not None
    assert found.length == 2
    assert kept.find(of(5)) is None


def test_images_are_part_of_a_conversation() -> None:
    kept = KeptRows(2**20)
    kept.keep([of(1, 0, 2, images="a"), of(1, 0, 2, images="b"), of(7)], made())
    for images, row in (("a", 0), ("ba", 1), ("ab", 0)):
        found = kept.find(of(1, 0, 2, 3, 0, images=images))
        assert found is not None
        assert found.row == row
    assert kept.find(of(1, 0, 2, 3, images="c")) is None


@pytest.mark.parametrize(("room", "rows"), [(0, 0), (479, 0), (480, 1), (1439, 2), (1440, 3), (1920, 4), (9000, 6)])
def test_as_many_rows_are_kept_as_there_is_room_for(room: int, rows: int) -> None:
    kept = KeptRows(room)
    kept.keep([of(1), of(2), of(3)], made())
    kept.keep([of(4), of(5), of(6)], made())
    assert len(kept) == rows
    assert kept.nbytes <= room
    assert kept.find(of(1, 1)) is not None or not rows


def test_a_cache_with_room_holds_what_a_stock_cache_holds() -> None:
    """Token by token beyond the room, and after rows were taken out."""
    from transformers import DynamicCache

    config = load_qwen_vl("tiny").model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    stock, ours = DynamicCache(config=config), KeyValues((), torch.zeros(3, 0, dtype=torch.bool)).cache(config)
    moved = 0
    for step in range(ROOM + 9):
        if step == 5:
            for cache in (stock, ours):
                cache.reorder_cache(torch.tensor([2, 0]))
        rows, length = (3 if step < 5 else 2), (7 if step == 0 else 1)
        new = [torch.randn(rows, 2, length, 16, generator=generator) for _ in range(2)]
        before = ours.layers[0].keys
        expected, found = (cache.update(*new, 0) for cache in (stock, ours))
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
        assert ours.get_seq_length() == stock.get_seq_length()
        moved += before is None or before.data_ptr() != ours.layers[0].keys.data_ptr()
    assert moved == 3  # at the beginning, after the rows were taken out, and when the room was full
