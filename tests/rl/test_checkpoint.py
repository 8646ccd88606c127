"""Checkpoints: everything comes back, and a kill at any moment leaves the last complete one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.checkpoint
from agents.qwen_vl import QwenVL
from rl.checkpoint import KEPT, Progress, checkpoints, load_checkpoint, restore_optimizer, save_checkpoint

SFT = Progress("sft", 4, 1, 2, {"locate": 0.25, "counting": 1.0})


def optimizer_of(qwen: QwenVL, seed: int = 0, steps: int = 2) -> torch.optim.AdamW:
    """An optimiser that has made some steps on made-up gradients."""
    optimizer = torch.optim.AdamW(qwen.model.parameters(), 1e-3, betas=(0.9, 0.95))
    step(qwen, optimizer, seed, steps)
    return optimizer


def step(qwen: QwenVL, optimizer: torch.optim.Optimizer, seed: int, steps: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in qwen.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def assert_same_weights(one: QwenVL, other: QwenVL) -> None:
    expected = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_weights_optimiser_and_progress_come_back_exactly(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    loaded, progress, tensors = load_checkpoint(save_checkpoint(tmp_path, qwen, optimizer, SFT), "cpu", "float32")
    assert progress == SFT
    assert_same_weights(loaded, qwen)
    fresh = torch.optim.AdamW(loaded.model.parameters(), 1e-3, betas=(0.9, 0.95))
    restore_optimizer(fresh, tensors)
    expected, found = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert found.keys() == expected.keys()
    assert len(expected) == len(list(qwen.model.parameters()))
    for index, values in expected.items():
        assert found[index].keys() == values.keys() >= {"step", "exp_avg", "exp_avg_sq"}
        for name, value in values.items():
            assert torch.equal(found[index][name], value)
            assert found[index][name].dtype == value.dtype


def test_going_on_from_a_checkpoint_is_going_on(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    loaded, _, tensors = load_checkpoint(save_checkpoint(tmp_path, qwen, optimizer, SFT), "cpu", "float32")
    restored, forgetful = (torch.optim.AdamW(loaded.model.parameters(), 1e-3, betas=(0.9, 0.95)) for _ in range(2))
    restore_optimizer(restored, tensors)
    step(qwen, optimizer, 5)
    step(loaded, restored, 5)
    assert_same_weights(loaded, qwen)
    step(qwen, optimizer, 6)
    step(loaded, forgetful, 6)
    with pytest.raises(AssertionError):
        assert_same_weights(loaded, qwen)


def test_an_optimiser_that_has_not_stepped_yet_has_nothing_to_restore(
    make_qwen: Callable[..., QwenVL], tmp_path: Path
) -> None:
    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen, steps=0), Progress("grpo", 0))
    assert load_checkpoint(path, "cpu", "float32")[1:] == (Progress("grpo", 0), {})


def test_a_checkpoint_is_a_model_directory(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen), SFT)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(path))
    assert torch.equal(model.lm_head.weight, qwen.model.lm_head.weight)


def test_the_newest_are_kept_in_the_order_of_the_run(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    assert names(tmp_path) == []
    seen = []
    for progress in (Progress("sft", 9), Progress("sft", 10), Progress("grpo", 2), Progress("grpo", 11)):
        save_checkpoint(tmp_path, qwen, optimizer, progress)
        seen.append(names(tmp_path))
    assert KEPT == 2
    assert seen == [
        ["0-sft-0000009"],
        ["0-sft-0000009", "0-sft-0000010"],
        ["0-sft-0000010", "1-grpo-0000002"],
        ["1-grpo-0000002", "1-grpo-0000011"],
    ]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == seen[-1]


def test_a_checkpoint_may_be_written_again(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    save_checkpoint(tmp_path, qwen, optimizer, SFT)
    step(qwen, optimizer, 8)
    path = save_checkpoint(tmp_path, qwen, optimizer, SFT)
    assert_same_weights(load_checkpoint(path, "cpu", "float32")[0], qwen)


@pytest.mark.parametrize("version", [0, 2, None])
def test_another_version_is_refused(make_qwen: Callable[..., QwenVL], tmp_path: Path, version: int | None) -> None:
    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen), SFT)
    state = json.loads((path / "progress.json").read_text())
    assert state.pop("version") == 1
    (path / "progress.json").write_text(json.dumps(state if version is None else state | {"version": version}))
    with pytest.raises(ValueError, match=f"{path} is of checkpoint version {version}, not 1"):
        load_checkpoint(path, "cpu", "float32")


# ---------------------------------------------------------------- kills


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def killed(*arguments: Any, **more: Any) -> Any:
    raise Killed


def half_saved(qwen: QwenVL, path: str) -> None:
    """A kill in the middle of writing the model."""
    Path(path, "model.safetensors").write_bytes(b"half")
    raise Killed


def half_written(self: Path, text: str) -> int:
    """A kill after the file was opened and before anything was in it."""
    self.open("w").close()
    raise Killed


KILLS = [
    (rl.checkpoint, "save_qwen_vl", half_saved),
    (rl.checkpoint, "save_file", killed),
    (Path, "write_text", half_written),
    (os, "replace", killed),
]


@pytest.mark.parametrize(("where", "name", "kill"), KILLS, ids=[kill[1] for kill in KILLS])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_while_a_checkpoint_is_written_leaves_what_was_there_before(
    make_qwen: Callable[..., QwenVL], tmp_path: Path, where: Any, name: str, kill: Callable[..., Any], earlier: bool
) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    if earlier:
        save_checkpoint(tmp_path, qwen, optimizer, SFT)
    before = {name: value.clone() for name, value in qwen.model.state_dict().items()}
    step(qwen, optimizer, 8)
    if where is Path:  # the tokenizer of transformers writes text too: let it
        real = Path.write_text

        def only_progress(self: Path, text: str, *rest: Any, **more: Any) -> int:
            return kill(self, text) if self.name == "progress.json" else real(self, text, *rest, **more)

        chosen: Callable[..., Any] = only_progress
    else:
        chosen = kill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, chosen)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, qwen, optimizer, Progress("sft", 6))
    assert names(tmp_path) == (["0-sft-0000004"] if earlier else [])
    if earlier:
        loaded, progress, _ = load_checkpoint(checkpoints(tmp_path)[-1], "cpu", "float32")
        assert progress == SFT
        for key, value in loaded.model.state_dict().items():
            assert torch.equal(value, before[key])
    path = save_checkpoint(tmp_path, qwen, optimizer, Progress("sft", 6))  # and the run goes on over the remains
    assert_same_weights(load_checkpoint(path, "cpu", "float32")[0], qwen)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_a_directory_without_its_last_file_is_no_checkpoint(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen), SFT)
    (path / "progress.json").unlink()
    assert names(tmp_path) == []
