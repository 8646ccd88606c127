"""Masks of packed rows, dense and in blocks, and an attention that takes either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

from agents.attention import FLEX, block_mask, dense_mask
from agents.qwen_vl import load_qwen_vl, save_qwen_vl
from agents.tiny_model import tiny_qwen_vl

SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 3, 3]])


def test_a_token_looks_at_its_prefix_and_its_own_branch_up_to_itself() -> None:
    first, second = (["".join(".x"[on] for on in line) for line in row[0].tolist()] for row in dense_mask(SEGMENTS))
    assert first == ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx...x"]
    assert second == ["x.....", "xx....", "xxx...", "x..x..", "x...x.", "x...xx"]


def long_segments(rng: np.random.Generator, length: int = 300) -> torch.Tensor:
    """Rows that end within a block, with branches that begin within one."""
    ends = np.sort(rng.choice(np.arange(20, length - 20), 4, replace=False))
    row = np.searchsorted(ends, np.arange(length), side="right")
    return torch.from_numpy(np.where(np.arange(length) > length - 9, -1, row)[None])


def test_the_blocks_say_the_same_as_the_dense_mask() -> None:
    segments = torch.cat([long_segments(np.random.default_rng(seed)) for seed in range(2)])
    made = block_mask(segments)
    written = create_mask(made.mask_mod, 2, 1, 300, 300, device="cpu")
    assert torch.equal(written, dense_mask(segments))


def test_blocks_that_nobody_looks_at_are_left_out() -> None:
    segments = torch.arange(8).repeat_interleave(128)[None]
    looked = block_mask(segments).to_dense()[0, 0].bool()
    expected = torch.eye(8, dtype=torch.bool)
    expected[:, 0] = True
    assert torch.equal(looked, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_flex_attention_gives_the_states_of_sdpa(family: str, tmp_path: Path) -> None:
    """Its gradients can be had on a GPU only."""
    save_qwen_vl(tiny_qwen_vl(0, family), str(tmp_path))
    dense, flex = (load_qwen_vl(str(tmp_path), attention=name) for name in ("sdpa", "flex_attention"))
    rng = np.random.default_rng(0)
    segments = long_segments(rng)
    ids = torch.from_numpy(rng.integers(20, 800, (1, 300)))
    positions = torch.arange(300).expand(3, 1, -1)
    assert isinstance(flex.packed_mask(segments), BlockMask)
    assert torch.equal(dense.packed_mask(segments), dense_mask(segments))
    with torch.no_grad():
        expected, found = (q.hidden_states(ids, positions, q.packed_mask(segments), None) for q in (dense, flex))
        plain = flex.hidden_states(ids, positions, dense_mask(torch.zeros_like(segments)), None)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert float((plain - expected).abs().max()) > 0.1


def test_a_model_loaded_for_flex_attention_takes_dense_masks_too() -> None:
    """Such as those of a sampler."""
    dense, flex = (load_qwen_vl("tiny", attention=name) for name in ("sdpa", "flex_attention"))
    assert flex.model.config.text_config._attn_implementation == FLEX
    ids, positions = torch.arange(30, 70)[None], torch.arange(40).expand(3, 1, -1)
    causal = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    with torch.no_grad():
        for mask, part in ((causal, slice(None)), (None, slice(0, 1))):
            expected, found = (q.hidden_states(ids[:, part], positions[..., part], mask, None) for q in (dense, flex))
            torch.testing.assert_close(found, expected)
