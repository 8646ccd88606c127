"""Where the tokens of images stand: as transformers lays them out, in one piece or in several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.positions import expand

Grid = tuple[int, int]
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
TEXT = 100
"""The id of an ordinary token."""


def conversation(image_id: int, images: int) -> list[int]:
    """Text and placeholders in turn, with text at both ends."""
    ids = [TEXT, TEXT + 1]
    for number in range(images):
        ids += [image_id, TEXT + 2 + number, TEXT + 3 + number]
    return ids


@pytest.mark.parametrize(
    "grids", [[], [(3, 3)], [(2, 5)], [(5, 2), (1, 1), (3, 4)], [(1, 7), (7, 1)], [(4, 4), (4, 4), (2, 6), (6, 2)]]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_transformers(twins: Callable[[str], Any], family: str, grids: list[Grid]) -> None:
    qwen, stock = twins(family)
    laid = expand(conversation(qwen.chat.image_id, len(grids)), grids, qwen.chat.image_id)
    ids = torch.from_numpy(laid.ids)[None]
    thw = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids]) if grids else None
    positions, delta = stock.model.get_rope_index(ids, (ids == qwen.chat.image_id).int(), image_grid_thw=thw)
    np.testing.assert_array_equal(laid.positions, positions[:, 0].numpy())
    assert laid.next_position == int(delta) + len(laid.ids)


def test_an_image_takes_rows_times_columns_tokens_and_advances_by_its_longer_side() -> None:
    laid = expand([7, 9, 7], [(2, 3)], image_id=9)
    assert laid.ids.tolist() == [7, 9, 9, 9, 9, 9, 9, 7]
    assert laid.positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert laid.next_position == 5


def test_origin_moves_a_mask_along() -> None:
    laid = expand([7, 9, 8, 9, 6], [(1, 2), (2, 1)], image_id=9)
    mask = np.array([False, True, False, False, True])
    assert laid.ids.tolist() == [7, 9, 9, 8, 9, 9, 6]
    assert mask[laid.origin].tolist() == [False, True, True, False, False, False, True]
    assert np.array([7, 9, 8, 9, 6])[laid.origin].tolist() == laid.ids.tolist()


@pytest.mark.parametrize("grids", [[], [(1, 1)], [(1, 1)] * 3])
def test_placeholders_and_grids_are_counted(grids: list[Grid]) -> None:
    with pytest.raises(ValueError, match=f"2 image placeholders, {len(grids)} image grids"):
        expand([7, 9, 9, 7], grids, image_id=9)


@pytest.mark.parametrize("cut", range(9))
def test_a_continuation_goes_on_where_the_whole_would(cut: int) -> None:
    ids, grids = [7, 9, 8, 9, 9, 6, 5, 9], [(2, 3), (4, 1), (1, 1), (3, 3)]
    whole = expand(ids, grids, image_id=9)
    images = ids[:cut].count(9)
    before = expand(ids[:cut], grids[:images], image_id=9)
    after = expand(ids[cut:], grids[images:], image_id=9, start=before.next_position)
    assert [*before.ids, *after.ids] == whole.ids.tolist()
    np.testing.assert_array_equal(np.concatenate([before.positions, after.positions], axis=1), whole.positions)
    assert after.next_position == whole.next_position
