"""Masks of packed rows, dense and in blocks, and an attention that takes either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

from agents.attention import FLEX, LONG, Branches, block_mask, dense_mask, find_branches
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


def test_branches_by_hand() -> None:
    found = find_branches(SEGMENTS)
    assert found.prefix == 2
    assert found.rows.tolist() == [0, 0, 1, 1, 1]
    assert found.places.tolist() == [[2, 3], [4, 0], [1, 2], [3, 0], [4, 5]]
    assert found.real.tolist() == [[True, True], [True, False], [True, True], [True, False], [True, True]]
    assert found.flat.tolist() == [2, 3, 4, 7, 8, 9, 10, 11]
    lines = ["".join(".x"[on] for on in line) for line in found.mask[:, 0].flatten(0, 1).tolist()]
    assert lines[:4] == ["xxx.", "xxxx", "xxx.", "xxxx"]
    assert lines[4:6] == ["x.x.", "x.xx"]  # the second row's prefix is one token shorter


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_branches_in_a_pass_of_their_own_give_the_states_and_gradients_of_the_dense_mask(family: str) -> None:
    qwen = tiny_qwen_vl(0, family)
    rng = np.random.default_rng(1)
    short = torch.cat([torch.zeros(5), torch.ones(250), 2 * torch.ones(1), -torch.ones(44)]).long()[None]
    segments = torch.cat([long_segments(rng), short])
    ids = torch.from_numpy(rng.integers(20, 800, (2, 300)))
    positions = torch.arange(300).expand(3, 2, -1)
    found = []
    for mask in (dense_mask(segments), find_branches(segments)):
        qwen.model.zero_grad()
        states = qwen.hidden_states(ids, positions, mask, None)[segments >= 0]
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in qwen.model.parameters() if p.grad is not None])
        found.append((states.detach(), grads / grads.norm()))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-5, rtol=0)


def test_short_rows_have_a_dense_mask() -> None:
    qwen, segments = tiny_qwen_vl(), torch.cat([torch.zeros(9), torch.ones(LONG - 9)]).long()[None]
    assert torch.equal(qwen.packed_mask(segments[:, 1:]), dense_mask(segments[:, 1:]))
    assert isinstance(qwen.packed_mask(segments), Branches)


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
    with torch.no_grad():
        expected, found = (q.hidden_states(ids, positions, q.packed_mask(segments), None) for q in (dense, flex))
        plain = flex.hidden_states(ids, positions, dense_mask(torch.zeros_like(segments)), None)
    real = segments >= 0  # what padding says is nobody's business
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=0)
    assert float((plain - expected)[real].abs().max()) > 0.1


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
