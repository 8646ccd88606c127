"""LoRA: the reference lies under the adapter untouched, packing stays exact, and others can load what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from rl.batch import Sample, pack
from rl.log_probs import token_log_probs
from rl.lora import (
    adapter_off,
    add_lora,
    has_lora,
    load_adapter,
    merged_weights,
    save_adapter,
    save_merged,
)

IMAGE = 12
MakeQwen = Callable[..., QwenVL]


def group(seed: int, lengths: tuple[int, ...]) -> list[Sample]:
    """One image and some text in common, then as many trained tokens as told, with an advantage."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (56, 84, 3), np.uint8)
    prompt = (30, IMAGE, *rng.integers(20, 800, 5).tolist())
    return [
        Sample(
            (*prompt, *rng.integers(20, 800, length).tolist()),
            (False,) * len(prompt) + (True,) * length,
            (0.0,) * (len(prompt) + length),
            (picture,),
            float(rng.normal()),
        )
        for length in lengths
    ]


GROUPS = [group(1, (4, 7, 1)), group(2, (3,))]
ALL = [sample for some in GROUPS for sample in some]


def log_probs(qwen: QwenVL, groups: list[list[Sample]] = GROUPS) -> Tensor:
    with torch.no_grad():
        return token_log_probs(qwen, pack(groups, qwen))[0]


def weights(qwen: QwenVL) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in qwen.model.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


def train(qwen: QwenVL, steps: int = 3) -> None:
    learned = [parameter for parameter in qwen.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(qwen, GROUPS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def loss(qwen: QwenVL, groups: list[list[Sample]]) -> Tensor:
    batch = pack(groups, qwen)
    return -(batch.advantages * token_log_probs(qwen, batch)[0]).sum()


@pytest.fixture
def adapted(make_qwen: MakeQwen) -> QwenVL:
    """With an adapter that has learned nothing yet."""
    qwen = make_qwen()
    add_lora(qwen, 4, 8.0, seed=3)
    return qwen


@pytest.fixture
def trained(adapted: QwenVL) -> QwenVL:
    train(adapted)
    return adapted


@pytest.fixture
def base(make_qwen: MakeQwen) -> QwenVL:
    """What the adapted model was made from."""
    return make_qwen()


# ---------------------------------------------------------------- the adapter and the reference


def test_an_adapter_that_has_learned_nothing_changes_no_bit(adapted: QwenVL, base: QwenVL) -> None:
    on = log_probs(adapted)
    with adapter_off(adapted):
        off = log_probs(adapted)
    assert torch.equal(on, off)
    assert torch.equal(on, log_probs(base))


def test_training_changes_the_policy_and_no_bit_of_the_reference(adapted: QwenVL) -> None:
    before = log_probs(adapted)
    train(adapted)
    with adapter_off(adapted):
        assert torch.equal(log_probs(adapted), before)
    assert float((log_probs(adapted) - before).abs().max()) > 0.1


def test_the_adapter_is_on_again_after_the_reference_even_where_that_fails(trained: QwenVL) -> None:
    before = log_probs(trained)
    flags = [parameter.requires_grad for parameter in trained.model.parameters()]
    with adapter_off(trained):
        assert [parameter.requires_grad for parameter in trained.model.parameters()] == flags
    with pytest.raises(KeyError), adapter_off(trained):
        raise KeyError
    assert torch.equal(log_probs(trained), before)
    assert [parameter.requires_grad for parameter in trained.model.parameters()] == flags


def test_every_linear_layer_of_the_language_model_learns_and_nothing_else(adapted: QwenVL) -> None:
    loss(adapted, GROUPS).backward()  # type: ignore[no-untyped-call]
    moved = {name for name, parameter in adapted.model.named_parameters() if parameter.grad is not None}
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    layers = [*attention, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    assert moved == {
        f"model.language_model.layers.{number}.{layer}.lora_{factor}.default.weight"
        for number in range(4)
        for layer in layers
        for factor in "AB"
    }
    assert moved == {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}


def test_the_seed_decides_the_factors_and_no_other_randomness_is_used(make_qwen: MakeQwen) -> None:
    made = [make_qwen() for _ in range(3)]
    torch.manual_seed(0)
    expected = torch.rand(1)
    for qwen, seed in zip(made, (1, 1, 2), strict=True):
        torch.manual_seed(0)
        add_lora(qwen, 2, 2.0, seed=seed)
        assert torch.equal(torch.rand(1), expected)
    states = [weights(qwen) for qwen in made]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_alpha_over_rank_scales_what_the_adapter_adds(make_qwen: MakeQwen, trained: QwenVL) -> None:
    doubled = make_qwen()
    add_lora(doubled, 4, 16.0, seed=3)
    halves = {name: v / 2 if ".lora_B." in name else v for name, v in weights(trained).items()}
    doubled.model.load_state_dict(halves)
    torch.testing.assert_close(log_probs(doubled), log_probs(trained), atol=1e-5, rtol=0)


def test_factors_are_float32_on_a_model_that_is_not(make_qwen: MakeQwen) -> None:
    qwen = make_qwen()
    qwen.model.bfloat16()
    add_lora(qwen, 2, 2.0, seed=0)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in qwen.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    loss(qwen, GROUPS).backward()  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_a_packed_group_is_exact_under_an_adapter(trained: QwenVL, recomputed: bool) -> None:
    """Log-probs and gradients are those of one row per sample, with activations kept or made again."""
    alone = torch.cat([log_probs(trained, [[sample]]) for sample in ALL])
    learned = [parameter for parameter in trained.model.parameters() if parameter.requires_grad]
    separate = torch.autograd.grad(torch.stack([loss(trained, [[sample]]) for sample in ALL]).sum(), learned)
    calls: list[int] = []
    if recomputed:
        trained.model.gradient_checkpointing_enable()
        trained.model.train()
        trained.model.model.language_model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    packed = torch.autograd.grad(loss(trained, GROUPS), learned)
    assert len(calls) == 2 * recomputed  # once forward, once more on the way back
    torch.testing.assert_close(log_probs(trained), alone, atol=1e-5, rtol=0)
    for ours, theirs in zip(packed, separate, strict=True):
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())


# ---------------------------------------------------------------- merged


def test_a_merged_model_says_the_same_in_stock_transformers(trained: QwenVL, base: QwenVL, tmp_path: Path) -> None:
    save_merged(trained, str(tmp_path / "merged"))
    save_qwen_vl(base, str(tmp_path / "base"))
    merged, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base"))
    assert {name: value.shape for name, value in merged.items()} == {name: v.shape for name, v in plain.items()}
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == sorted(
        path.name for path in (tmp_path / "base").iterdir()
    )
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[30, 200, 300, 400, 500]])
    with torch.no_grad():
        expected = trained.model(input_ids=ids).logits
        torch.testing.assert_close(stock(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
        assert float((base.model(input_ids=ids).logits - expected).abs().max()) > 0.1
    loaded = load_qwen_vl(str(tmp_path / "merged"))
    assert not has_lora(loaded)
    torch.testing.assert_close(log_probs(loaded), log_probs(trained), atol=1e-5, rtol=0)


def test_merging_leaves_the_model_alone_to_the_last_bit(make_qwen: MakeQwen, tmp_path: Path) -> None:
    straight, stopped = make_qwen(), make_qwen()
    for qwen in (straight, stopped):
        add_lora(qwen, 4, 8.0, seed=3)
        train(qwen, 2)
    before = weights(stopped)
    save_merged(stopped, str(tmp_path))
    assert same(weights(stopped), before)
    for qwen in (straight, stopped):
        train(qwen, 1)
    assert same(weights(stopped), weights(straight))


def test_a_model_without_an_adapter_is_merged_already(base: QwenVL) -> None:
    assert same(merged_weights(base), weights(base))


def test_weights_may_be_given_where_the_model_does_not_hold_them(trained: QwenVL, tmp_path: Path) -> None:
    state = weights(trained)
    expected = merged_weights(trained, {name: value.clone() for name, value in state.items()})
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.zero_()
    assert same(merged_weights(trained, state), expected)
    save_adapter(trained, str(tmp_path), state)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 4 * 7 * 2 and all(float(value.norm()) > 0 for value in saved.values())


# ---------------------------------------------------------------- the adapter alone


def test_peft_loads_the_adapter_on_a_stock_model(trained: QwenVL, base: QwenVL, tmp_path: Path) -> None:
    save_adapter(trained, str(tmp_path / "adapter"))
    save_qwen_vl(base, str(tmp_path / "base"))
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    loaded = PeftModel.from_pretrained(stock, tmp_path / "adapter")
    ids = torch.tensor([[30, 200, 300, 400, 500]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, trained.model(input_ids=ids).logits)


def test_the_adapter_is_saved_as_vllm_reads_it(trained: QwenVL, tmp_path: Path) -> None:
    """It takes the names of modules from the tensors, and rank and alpha from the configuration."""
    save_adapter(trained, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found: dict[str, Any] = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (found["peft_type"], found["r"], found["lora_alpha"], found["bias"]) == ("LORA", 4, 8.0, "none")
    assert not found["use_dora"] and not found["use_rslora"] and found["modules_to_save"] is None
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.model.language_model.layers.3.mlp.down_proj.lora_A.weight"].shape == (4, 192)
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in tensors)


def test_a_loaded_adapter_goes_on_learning_as_it_was(trained: QwenVL, base: QwenVL, tmp_path: Path) -> None:
    save_adapter(trained, str(tmp_path))
    load_adapter(base, str(tmp_path))
    assert same(weights(base), weights(trained))
    for qwen in (base, trained):
        train(qwen, 1)
    assert same(weights(base), weights(trained))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (-1, 1.0), (1, 0.0)])
def test_what_cannot_be_an_adapter_is_refused(make_qwen: MakeQwen, rank: int, alpha: float) -> None:
    qwen = make_qwen()
    with pytest.raises(ValueError, match=f"rank of 1 or more.*not {rank} and {alpha}"):
        add_lora(qwen, rank, alpha, seed=0)
    assert not has_lora(qwen)


def test_a_second_adapter_is_refused(adapted: QwenVL, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(adapted, 2, 2.0, seed=0)
    save_adapter(adapted, str(tmp_path))
    with pytest.raises(ValueError, match="has an adapter already"):
        load_adapter(adapted, str(tmp_path))


def test_what_is_no_adapter_or_another_models_is_refused(adapted: QwenVL, base: QwenVL, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: adapter_config.json, adapter_model.safetensors"):
        load_adapter(base, str(tmp_path))
    save_adapter(adapted, str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.popitem()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="an adapter for another model: 55 factors, 56 here"):
        load_adapter(base, str(tmp_path))
