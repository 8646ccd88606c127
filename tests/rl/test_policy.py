"""The policy: what of a model is trained, what the reference is, what is saved, and that it goes on as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.attention import BRANCHED, FLEX
from agents.qwen_vl import QwenVL, load_qwen_vl
from rl.batch import Sample, pack
from rl.checkpoint import Progress, checkpoints
from rl.config import TrainConfig
from rl.errors import CheckpointError
from rl.log_probs import token_log_probs
from rl.policy import COLD_START, Policy
from rl.sft import sft_step

ADAPTED = {"lora_rank": 3, "lora_alpha": 6.0}


def rows() -> list[list[Sample]]:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (56, 56, 3), np.uint8)
    ids = [(30, 12, *rng.integers(20, 800, 6).tolist()) for _ in range(3)]
    return [[Sample(each, (False,) * 3 + (True,) * 5, (0.0,) * 8, (picture,)) for each in ids]]


def config_of(folder: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(**{"start": "tiny", "output": str(folder), "sft_learning_rate": 1e-2, **settings})


def said(qwen: QwenVL) -> torch.Tensor:
    with torch.no_grad():
        return token_log_probs(qwen, pack(rows(), qwen))[0]


def names(policy: Policy) -> set[str]:
    return {name for name, parameter in policy.qwen.model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("settings", "vision"),
    [({"start": "tiny"}, True), ({"start": "scratch"}, True), ({"start": "tiny", "train_vision": False}, False)],
)
def test_a_tiny_models_vision_learns_unless_told_otherwise(
    tmp_path: Path, settings: dict[str, Any], vision: bool
) -> None:
    policy = Policy.start(config_of(tmp_path, **settings), "sft")
    assert any("visual" in name for name in names(policy)) == vision
    assert any("language_model" in name for name in names(policy))
    assert len(policy.trained) == len(policy.optimizer.param_groups[0]["params"]) == len(names(policy))


@pytest.mark.parametrize("train_vision", [None, True])
def test_the_vision_of_any_other_model_is_frozen_unless_told_otherwise(
    tmp_path: Path, make_qwen: Callable[..., QwenVL], train_vision: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.policy.TINY", 100_000)  # parameters, of which it has more
    policy = Policy(make_qwen(), config_of(tmp_path, train_vision=train_vision), "grpo")
    assert any("visual" in name for name in names(policy)) == bool(train_vision)


def test_with_adapters_nothing_else_is_trained(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, **ADAPTED), "grpo")
    assert names(policy)
    assert all("lora_" in name and "language_model" in name for name in names(policy))


def test_the_rates_of_a_phase_are_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, sft_learning_rate=0.1, sft_weight_decay=0.2, learning_rate=0.3, weight_decay=0.4)
    for phase, expected in (("sft", (0.1, 0.2)), ("grpo", (0.3, 0.4))):
        (group,) = Policy.start(config, phase).optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == expected


def test_gradient_checkpointing_makes_layers_run_again_and_changes_nothing(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        policy = Policy.start(config_of(tmp_path, gradient_checkpointing=checkpointing), "grpo")
        calls: list[int] = []
        policy.qwen.model.model.language_model.layers[1].mlp.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        policy.log_probs(pack(rows(), policy.qwen))[0].sum().backward()
        assert not policy.qwen.model.training  # as the sampler needs it
        found.append((len(calls), torch.cat([p.grad.flatten() for p in policy.trained if p.grad is not None])))
    assert [calls for calls, _ in found] == [1, 2]
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("start", ["tiny", "scratch"])
def test_the_attention_is_the_one_asked_for(tmp_path: Path, start: str) -> None:
    for attention, name in (("sdpa", BRANCHED), ("flex_attention", FLEX)):
        policy = Policy.start(config_of(tmp_path, start=start, attention=attention), "grpo")
        assert policy.qwen.model.config.text_config._attn_implementation == name


def test_lora_alpha_is_how_much_adapters_add(tmp_path: Path) -> None:
    moved = []
    for alpha in (3.0, 12.0):
        policy = Policy.start(config_of(tmp_path, lora_rank=3, lora_alpha=alpha), "sft")
        before = said(policy.qwen)
        sft_step(policy, rows())
        moved.append(float((said(policy.qwen) - before).abs().max()))
    assert moved[1] > 2 * moved[0]


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("settings", [{}, ADAPTED, {"train_vision": False}], ids=["all", "adapters", "frozen vision"])
def test_the_reference_stays_what_grpo_began_with(tmp_path: Path, settings: dict[str, Any]) -> None:
    policy = Policy.start(config_of(tmp_path, **settings), "sft")
    sft_step(policy, rows())
    policy = policy.next_phase("grpo")
    began = said(policy.qwen)
    policy.set_rate(1e-2)
    for _ in range(2):
        sft_step(policy, rows())
    assert float((said(policy.qwen) - began).abs().max()) > 0.05
    with policy.reference() as reference:
        torch.testing.assert_close(said(reference), began, atol=1e-5, rtol=0)
    assert float((said(policy.qwen) - began).abs().max()) > 0.05


def test_a_frozen_vision_tower_encodes_for_the_reference_too(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, train_vision=False), "grpo")
    policy.save_whole(tmp_path / COLD_START)
    encoded: list[int] = []
    inner = policy.qwen.model.model.get_image_features
    policy.qwen.model.model.get_image_features = lambda *given, **more: (encoded.append(1), inner(*given, **more))[1]
    policy.log_probs(pack(rows(), policy.qwen))
    with policy.reference() as reference:
        reference.model.model.get_image_features = lambda *given, **more: pytest.fail("encoded again")
        said(reference)
    assert len(encoded) == 1


# ---------------------------------------------------------------- from phase to phase, and from a checkpoint


@pytest.mark.parametrize("settings", [{}, ADAPTED], ids=["all", "adapters"])
def test_the_next_phase_goes_on_from_what_was_learned(tmp_path: Path, settings: dict[str, Any]) -> None:
    policy = Policy.start(config_of(tmp_path, **settings), "sft")
    before = said(policy.qwen)
    sft_step(policy, rows())
    learned = said(policy.qwen)
    assert float((learned - before).abs().max()) > 0.05
    following = policy.next_phase("grpo")
    torch.testing.assert_close(said(following.qwen), learned, atol=1e-5, rtol=0)
    torch.testing.assert_close(said(load_qwen_vl(str(tmp_path / COLD_START))), learned, atol=1e-5, rtol=0)
    assert not following.optimizer.state


@pytest.mark.parametrize("settings", [{}, ADAPTED], ids=["all", "adapters"])
@pytest.mark.parametrize("phase", ["sft", "grpo"])
def test_a_policy_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path, settings: dict[str, Any], phase: str) -> None:
    policy = Policy.start(config_of(tmp_path, **settings), "sft")
    sft_step(policy, rows())
    if phase == "grpo":
        policy = policy.next_phase("grpo")
        sft_step(policy, rows())
    policy.checkpoint(tmp_path, Progress(phase, 1))
    (path,) = checkpoints(tmp_path)
    again = Policy.resume(policy.config, path)
    for each in (policy, again):
        sft_step(each, rows())
    states = [each.qwen.model.state_dict() for each in (policy, again)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_checkpoint_of_adapters_holds_them_alone(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, **ADAPTED), "grpo")
    policy.checkpoint(tmp_path, Progress("grpo", 1))
    (path,) = checkpoints(tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.name for file in path.iterdir()}
    assert not (path / "model.safetensors").exists()


def test_a_checkpoint_of_another_rank_is_refused(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, **ADAPTED), "grpo")
    policy.checkpoint(tmp_path, Progress("grpo", 1))
    (path,) = checkpoints(tmp_path)
    for settings in ({}, {"lora_rank": 0}):
        with pytest.raises(CheckpointError):
            Policy.resume(config_of(tmp_path, **settings), path)


def test_saving_whole_leaves_no_half_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.start(config_of(tmp_path), "sft")
    policy.save_whole(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def broken(qwen: Any, path: str, state: Any) -> None:
        Path(path, "config.json").write_text("{")
        raise OSError("the disk is full")

    monkeypatch.setattr("rl.policy.save_merged", broken)
    with pytest.raises(OSError, match="full"):
        policy.save_whole(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_adapters_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, **ADAPTED), "sft")
    policy.checkpoint(tmp_path, Progress("sft", 1))
    (path,) = checkpoints(tmp_path)
    for settings, said in (
        ({"lora_rank": 5, "lora_alpha": 6.0}, "lora_rank 5, but its adapters have 3"),
        ({"lora_rank": 3, "lora_alpha": 7.0}, "lora_alpha 7.0, but its adapters have 6.0"),
        ({"lora_rank": 0}, "it holds adapters, but lora_rank is 0"),
    ):
        with pytest.raises(CheckpointError, match=said):
            Policy.resume(config_of(tmp_path, **settings), path)


def test_adapters_are_not_put_on_another_model_where_their_own_is_gone(tmp_path: Path) -> None:
    policy = Policy.start(config_of(tmp_path, **ADAPTED), "sft").next_phase("grpo")
    policy.checkpoint(tmp_path, Progress("grpo", 1))
    shutil.rmtree(tmp_path / COLD_START)
    with pytest.raises(CheckpointError, match="cold_start, the model under its adapters, is gone"):
        Policy.resume(policy.config, checkpoints(tmp_path)[-1])
