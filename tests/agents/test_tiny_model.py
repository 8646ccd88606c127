"""Tiny models: what makes a family itself, in a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.tiny_model import mergers, tiny_qwen_vl

FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_is_one_of_its_family_with_less_than_a_million_weights(family: str) -> None:
    model = tiny_qwen_vl(0, family).model
    assert (type(model).__name__, model.config.model_type) == (FAMILIES[family], family)
    assert 300_000 < model.num_parameters() < 1_000_000
    assert not model.training


def test_without_a_family_it_is_a_qwen2_5_vl() -> None:
    ours, named = tiny_qwen_vl(5).model, tiny_qwen_vl(5, "qwen2_5_vl").model
    assert type(ours) is type(named)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, named.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights_and_nothing_else_does(family: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (tiny_qwen_vl(seed, family).model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("family", "count"), [("qwen2_vl", 1), ("qwen2_5_vl", 1), ("qwen3_vl", 3), ("qwen3_5", 1)])
def test_images_start_as_a_whisper_through_every_merger(twins: Callable[[str], Any], family: str, count: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    loud, _ = twins(family)  # the same weights without the whisper
    quiet = tiny_qwen_vl(0, family)
    assert len(mergers(quiet.model)) == count
    with torch.no_grad():
        (low,), (high,) = (qwen.encode_images([image]).values() for qwen in (quiet, loud))
    torch.testing.assert_close(low, 0.15 * high, atol=1e-5, rtol=1e-3)
    assert low.shape[1] == 64 * count
