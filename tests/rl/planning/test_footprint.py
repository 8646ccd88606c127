"""What a policy holds, counted without weights: as its tensors are, and near what a real pass keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agents.shapes import ModelShape, model_shape, random_model
from rl.config import TrainConfig
from rl.planning.footprint import Held, blank_policy, held, kept_per_token
from rl.policy import Policy

TINY = model_shape("tiny")
FULL = TrainConfig(start="tiny", train_vision=False)
ADAPTERS = TrainConfig(start="tiny", lora_rank=4, dtype="bfloat16")


@pytest.mark.parametrize("config", [FULL, ADAPTERS, replace(FULL, beta=0.1)])
def test_a_policy_without_weights_counts_as_one_with_them(config: TrainConfig) -> None:
    real = Policy(random_model(TINY, config.dtype), config, "grpo")
    assert held(blank_policy(config, TINY)) == held(real)
    assert next(blank_policy(config, TINY).qwen.model.parameters()).device.type == "meta"


def test_all_that_learns_has_a_gradient_and_two_moments_and_a_counter() -> None:
    policy = blank_policy(FULL, TINY)
    learning = sum(p.numel() for p in policy.qwen.model.parameters() if p.requires_grad)
    assert 0 < learning < policy.qwen.model.num_parameters()
    assert held(policy).gradients == 4 * learning
    assert held(policy).optimizer == 8 * learning + 4 * len(policy.trained)


def test_adapters_are_float32_under_a_model_in_half_precision() -> None:
    policy = blank_policy(ADAPTERS, TINY)
    numbers = sum(p.numel() for p in policy.trained)
    found = held(policy)
    assert found == Held(found.weights, 4 * numbers, 4 * numbers, 8 * numbers + 4 * len(policy.trained), 0)
    assert found.weights == 2 * sum(p.numel() for p in policy.qwen.model.parameters() if not p.requires_grad)


def test_a_reference_is_a_copy_of_what_learns_and_adapters_need_none() -> None:
    policy = blank_policy(replace(FULL, beta=0.1), TINY)
    tower = sum(p.nbytes for p in policy.qwen.model.model.visual.parameters())
    assert held(policy).reference == held(policy).weights - tower
    assert held(blank_policy(replace(FULL, beta=0.1, train_vision=True), TINY)).reference == held(policy).weights
    assert held(blank_policy(FULL, TINY)).reference == 0
    assert held(blank_policy(replace(ADAPTERS, beta=0.1), TINY)).reference == 0


def kept_in_truth(config: TrainConfig, shape: ModelShape, layers: int, tokens: int) -> int:
    """Bytes that a real pass on this machine keeps for the backward pass, beside the weights."""
    policy = Policy(random_model(shape, config.dtype, layers=layers), config, "grpo")
    weights = {p.untyped_storage().data_ptr() for p in policy.qwen.model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        policy.qwen.hidden_states(ids, torch.arange(tokens).expand(3, 1, tokens), None, None)
    return sum(t.untyped_storage().nbytes() for place, t in found.items() if place not in weights)


@pytest.mark.parametrize("config", [FULL, ADAPTERS])
def test_what_a_layer_keeps_of_a_token_is_no_less_than_in_truth_and_little_more(config: TrainConfig) -> None:
    one, two = (kept_in_truth(config, TINY, layers, 128) for layers in (1, 2))
    truth = (two - one) / 128
    assert truth <= kept_per_token(config, TINY) <= 1.15 * truth


def test_what_a_layer_keeps_of_a_token_does_not_depend_on_how_many_there_are() -> None:
    assert kept_per_token(ADAPTERS, TINY, 32) == kept_per_token(ADAPTERS, TINY, 100)
