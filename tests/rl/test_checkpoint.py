"""Checkpoints: everything comes back, a kill at any moment leaves the last complete one, a bad one is one error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from rl.checkpoint import (
    KEPT,
    OPTIMIZER,
    PROGRESS,
    CheckpointError,
    Progress,
    Tensors,
    checkpoints,
    optimizer_tensors,
    read_checkpoint,
    reading,
    restore_optimizer,
    write_checkpoint,
)

SFT = Progress("sft", 4, 1, 2, {"locate": 0.25, "counting": 1.0}, 3)


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


def save_checkpoint(folder: Path, qwen: QwenVL, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """A checkpoint of the whole model, as a trainer saves it."""
    return write_checkpoint(folder, progress, optimizer_tensors(optimizer), partial(_save, qwen))


def load_checkpoint(path: Path) -> tuple[QwenVL, Progress, Tensors]:
    """The same back, as a trainer loads it."""
    progress, tensors = read_checkpoint(path)
    with reading(path):
        return load_qwen_vl(str(path)), progress, tensors


def _save(qwen: QwenVL, path: Path) -> None:
    save_qwen_vl(qwen, str(path))


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


# ---------------------------------------------------------------- everything comes back


def test_weights_optimiser_and_progress_come_back_exactly(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    qwen = make_qwen()
    optimizer = optimizer_of(qwen)
    loaded, progress, tensors = load_checkpoint(save_checkpoint(tmp_path, qwen, optimizer, SFT))
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
    loaded, _, tensors = load_checkpoint(save_checkpoint(tmp_path, qwen, optimizer, SFT))
    restored, forgetful = (torch.optim.AdamW(loaded.model.parameters(), 1e-3, betas=(0.9, 0.95)) for _ in range(2))
    restore_optimizer(restored, tensors)
    step(qwen, optimizer, 5)
    step(loaded, restored, 5)
    assert_same_weights(loaded, qwen)
    step(qwen, optimizer, 6)
    step(loaded, forgetful, 6)
    with pytest.raises(AssertionError):
        assert_same_weights(loaded, qwen)


def test_the_state_of_bfloat16_weights_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16())]
    optimizer = torch.optim.AdamW(weights)
    weights[0].grad = torch.full_like(weights[0], 0.1)
    optimizer.step()
    path = write_checkpoint(tmp_path, SFT, optimizer_tensors(optimizer), lambda folder: None)
    fresh = torch.optim.AdamW(weights)
    restore_optimizer(fresh, read_checkpoint(path)[1])
    for name, value in optimizer.state[weights[0]].items():
        assert torch.equal(fresh.state[weights[0]][name], value)
        assert fresh.state[weights[0]][name].dtype == value.dtype


def test_an_optimiser_that_has_not_stepped_yet_has_no_state_to_restore(
    make_qwen: Callable[..., QwenVL], tmp_path: Path
) -> None:
    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen, steps=0), Progress("grpo", 0))
    _, progress, tensors = load_checkpoint(path)
    assert progress == Progress("grpo", 0)
    assert list(tensors) == ["AdamW.sizes"]
    fresh = optimizer_of(qwen, steps=0)
    restore_optimizer(fresh, tensors)
    assert fresh.state_dict()["state"] == {}


def test_a_checkpoint_is_a_model_directory(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    qwen = make_qwen()
    path = save_checkpoint(tmp_path, qwen, optimizer_of(qwen), SFT)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(path))
    assert torch.equal(model.lm_head.weight, qwen.model.lm_head.weight)


def test_what_is_kept_of_the_model_is_what_the_caller_writes(tmp_path: Path) -> None:
    def save_adapter(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "base.txt").write_text("a hub name")

    path = write_checkpoint(tmp_path, SFT, {"SGD.sizes": torch.tensor([2])}, save_adapter)
    kept = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert kept == ["adapter/base.txt", OPTIMIZER, PROGRESS]
    assert read_checkpoint(path) == (SFT, {"SGD.sizes": torch.tensor([2])})
    (path / "adapter" / "base.txt").write_text("a")
    with pytest.raises(CheckpointError, match="adapter/base.txt is of 1 bytes, 10 were written"):
        read_checkpoint(path)


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


def test_a_step_that_is_saved_again_is_the_newest_and_takes_nothing_away(tmp_path: Path) -> None:
    for number, step in enumerate((4, 4, 4, 5)):
        path = small(tmp_path, step, number)
        assert checkpoints(tmp_path)[-1] == path
        assert read_checkpoint(path)[1]["SGD.sizes"].tolist() == [number]
    assert names(tmp_path) == ["0-sft-0000004++", "0-sft-0000005"]


# ---------------------------------------------------------------- one clear error


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_qwen: Callable[..., QwenVL]) -> Path:
    """A checkpoint of a tiny model, to be copied."""
    qwen = make_qwen()
    return save_checkpoint(tmp_path_factory.mktemp("good"), qwen, optimizer_of(qwen), SFT)


@pytest.fixture
def spoilt(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "spoilt"))


def refused(path: Path, reason: str) -> None:
    """Asserts that loading gives one error, which names the checkpoint and the reason in a line."""
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"checkpoint {path}: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    OPTIMIZER,
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_missing_is_named(spoilt: Path, name: str) -> None:
    size = (spoilt / name).stat().st_size
    os.truncate(spoilt / name, size // 2)
    refused(spoilt, f"{name} is of {size // 2} bytes, {size} were written")
    (spoilt / name).unlink()
    refused(spoilt, f"{name} is missing")


def test_the_files_that_are_cut_off_above_are_all_there_are(good: Path) -> None:
    assert sorted(path.name for path in good.iterdir()) == sorted([*FILES, PROGRESS])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_progress_that_is_cut_off_is_no_checkpoint(spoilt: Path, share: float) -> None:
    os.truncate(spoilt / PROGRESS, int((spoilt / PROGRESS).stat().st_size * share))
    refused(spoilt, "progress.json is cut off or no checkpoint's")


@pytest.mark.parametrize("version", [0, 1, 3, None])
def test_another_version_is_refused(spoilt: Path, version: int | None) -> None:
    state = json.loads((spoilt / PROGRESS).read_text())
    assert state.pop("version") == 2
    (spoilt / PROGRESS).write_text(json.dumps(state if version is None else state | {"version": version}))
    refused(spoilt, f"of checkpoint version {version}, not 2")


def test_a_checkpoint_of_the_form_before_is_of_another_version(spoilt: Path) -> None:
    (spoilt / PROGRESS).write_text(
        '{"version": 1, "phase": "sft", "step": 4, "stage": 0, "stage_step": 0, "skills": {}}'
    )
    refused(spoilt, "of checkpoint version 1, not 2")


@pytest.mark.parametrize("text", ["[]", "3", "null", '["a"]', "{}"])
def test_json_of_something_else_is_refused(spoilt: Path, text: str) -> None:
    (spoilt / PROGRESS).write_text(text)
    refused(spoilt, "no checkpoint's|of checkpoint version None")


@pytest.mark.parametrize("change", [{"phase": "sft"}, {"phase": "sft", "step": 1, "speed": 2}, 7])
def test_progress_of_another_program_is_refused(spoilt: Path, change: Any) -> None:
    state = json.loads((spoilt / PROGRESS).read_text())
    (spoilt / PROGRESS).write_text(json.dumps(state | {"progress": change}))
    refused(spoilt, "TypeError")


def test_a_random_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    refused(tmp_path, "no progress.json, so it is no checkpoint")
    refused(tmp_path / "nowhere", "no progress.json")


def test_damage_that_leaves_the_length_is_refused_where_a_file_cannot_be_read(spoilt: Path) -> None:
    for name in ("model.safetensors", OPTIMIZER):
        kept = (spoilt / name).read_bytes()
        (spoilt / name).write_bytes(b"\xff" * len(kept))
        refused(spoilt, "Safetensor")
        (spoilt / name).write_bytes(kept)
    load_checkpoint(spoilt)


def test_a_model_of_other_shapes_under_this_configuration_is_refused(spoilt: Path) -> None:
    config = (spoilt / "config.json").read_text()
    other = config.replace('"intermediate_size": 192', '"intermediate_size": 128')
    assert other != config
    (spoilt / "config.json").write_text(other)
    refused(spoilt, "RuntimeError.*size mismatch|mismatch")


def test_the_optimiser_of_another_model_is_refused(good: Path) -> None:
    tensors = read_checkpoint(good)[1]
    shapes = [tensors[f"AdamW.{index}.exp_avg"].shape for index in range(len(tensors["AdamW.sizes"]))]
    fewer, longer, turned = list(shapes[:-1]), [*shapes[:-1], (7,)], [shapes[1], shapes[0], *shapes[2:]]
    assert shapes[0] != shapes[1]
    for changed in (fewer, longer, turned):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(shape)) for shape in changed])
        with pytest.raises(CheckpointError, match=f"{good}: another model: it has [0-9]+ numbers in {len(shapes)} par"):
            restore_optimizer(optimizer, tensors, good)
        assert not optimizer.state
    same = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes])
    restore_optimizer(same, tensors, good)
    assert len(same.state) == len(shapes)


def test_the_state_of_another_optimiser_is_refused(qwen: QwenVL, good: Path) -> None:
    with pytest.raises(CheckpointError, match=f"checkpoint {good}: the optimiser is SGD, the saved one AdamW"):
        restore_optimizer(torch.optim.SGD(qwen.model.parameters()), read_checkpoint(good)[1], good)
    with pytest.raises(CheckpointError, match="the saved one none"):
        restore_optimizer(torch.optim.SGD(qwen.model.parameters()), {})


def test_an_optimiser_that_keeps_more_than_tensors_cannot_be_saved() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight]["note"] = 3
    with pytest.raises(TypeError, match="SGD keeps note as int; only tensors can be saved"):
        optimizer_tensors(optimizer)


def test_whatever_goes_wrong_while_a_model_is_read_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^checkpoint {tmp_path}: KeyError: 'base'$"), reading(tmp_path):
        raise KeyError("base")
    with pytest.raises(CheckpointError, match="^checkpoint x: mine$"), reading(tmp_path):
        raise CheckpointError("x", "mine")
    with pytest.raises(KeyboardInterrupt), reading(tmp_path):
        raise KeyboardInterrupt


# ---------------------------------------------------------------- kills


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


STEPS = (
    (os, "fsync"),
    (os, "replace"),
    (os, "open"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "write_bytes"),
)
"""What changes the disk in a save; `shutil` goes through `os`."""


def small(folder: Path, step: int, value: int) -> Path:
    """A checkpoint of a few bytes that holds `value` in each of its parts."""

    def save_model(path: Path) -> None:
        (path / "sub").mkdir()
        (path / "sub" / "model.bin").write_bytes(bytes([value]) * 1000)

    return write_checkpoint(folder, Progress("sft", step, value), {"SGD.sizes": torch.tensor([value])}, save_model)


def held(path: Path) -> set[int]:
    """The values that a checkpoint holds in its parts."""
    progress, tensors = read_checkpoint(path)
    return {progress.stage, int(tensors["SGD.sizes"]), *(path / "sub" / "model.bin").read_bytes()}


def killed_at(number: int, save: Callable[[], Any]) -> list[str]:
    """Runs a save until the `number`-th step that changes the disk, which is not done; returns the steps begun."""
    begun: list[str] = []

    def stopping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **more: Any) -> Any:
            begun.append(name)
            if len(begun) > number:
                raise Killed
            return real(*arguments, **more)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for where, name in STEPS:
            patch.setattr(where, name, stopping(name, getattr(where, name)))
        save()
    return begun


@pytest.mark.parametrize(
    ("earlier", "later"),
    [((), 6), ((4,), 6), ((3, 4), 6), ((4,), 4), ((3, 4), 4)],
    ids=["the first", "the second", "one that drops another", "the same step again", "again, dropping another"],
)
def test_a_kill_at_any_step_of_a_save_leaves_the_one_before_usable(
    tmp_path: Path, earlier: Sequence[int], later: int
) -> None:
    kinds: list[str] = []
    for number in range(200):
        folder = tmp_path / str(number)
        for order, step in enumerate(earlier, 1):
            small(folder, step, order)
        try:
            kinds = killed_at(number, lambda: small(folder, later, 9))  # noqa: B023
        except Killed:
            usable = checkpoints(folder)
            assert [held(path) in ({9}, {len(earlier)}) for path in usable[-1:]] == [True] * bool(usable)
            assert usable or not earlier
            for path in usable:
                assert len(held(path)) == 1
            small(folder, later, 8)  # and the run goes on over the remains
            assert held(checkpoints(folder)[-1]) == {8}
            assert not list((folder / "checkpoints").glob(".*"))
        else:
            assert held(checkpoints(folder)[-1]) == {9}
            break
    assert {"fsync", "replace", "mkdir", "write_text"} <= set(kinds)
    assert number > 12


def test_an_old_checkpoint_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        (path / "sub" / "model.bin").unlink()
        raise Killed

    for step in range(KEPT):
        small(tmp_path, step, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            small(tmp_path, KEPT, 1)
    assert names(tmp_path) == ["0-sft-0000001", "0-sft-0000002"]
    small(tmp_path, KEPT + 1, 1)
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


def test_files_and_directories_are_forced_to_the_disk_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(str(Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path / "checkpoints")))
        sync(handle)

    def replaced(source: Path, target: Path) -> None:
        done.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    small(tmp_path, 4, 1)
    partial = ".0-sft-0000004.partial"
    files = [f"{partial}/{name}" for name in (OPTIMIZER, PROGRESS, "sub/model.bin", "sub")]
    assert sorted(done[:5]) == sorted([*files, partial])
    assert done[5:] == [f"{partial} -> 0-sft-0000004", "."]


def test_a_process_killed_at_random_moments_of_its_saves_leaves_a_usable_checkpoint(
    make_qwen: Callable[..., QwenVL], tmp_path: Path
) -> None:
    """With real kills of a child that saves without end, each checkpoint's parts all holding its step."""
    qwen, random = make_qwen(), np.random.default_rng(11)
    remains = 0
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        child = os.fork()
        if child == 0:  # saves until it is killed, and never comes back to pytest
            for number in range(1, 10_000):
                with torch.no_grad():
                    for parameter in qwen.model.parameters():
                        parameter.fill_(number)
                tensors = {"SGD.sizes": torch.tensor([number])}
                write_checkpoint(folder, Progress("sft", number), tensors, partial(_save, qwen))
            os._exit(1)
        try:
            while not checkpoints(folder):
                time.sleep(0.01)
            time.sleep(float(random.uniform(0, 0.5)))
        finally:
            os.kill(child, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        for path in checkpoints(folder):
            progress, tensors = read_checkpoint(path)
            assert int(tensors["SGD.sizes"]) == progress.step
            for value in load_file(path / "model.safetensors").values():
                assert bool((value == progress.step).all())
        load_checkpoint(checkpoints(folder)[-1])
        remains += len(list((folder / "checkpoints").glob(".*")))
    assert remains >= 1  # or no kill fell into a save, and this test says nothing


def test_a_directory_without_its_last_file_is_no_checkpoint(spoilt: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "0-sft-0000004"
    shutil.copytree(spoilt, place)
    assert names(tmp_path) == ["0-sft-0000004"]
    (place / PROGRESS).unlink()
    assert names(tmp_path) == []


def test_other_things_in_the_folder_are_no_checkpoints(spoilt: Path, tmp_path: Path) -> None:
    for name in ("best", "0-sft-4", ".0-sft-0000004.partial", "0-sft-0000004-copy"):
        shutil.copytree(spoilt, tmp_path / "checkpoints" / name)
    assert names(tmp_path) == []


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.SGD(weights)
    for index, weight in enumerate(weights):
        optimizer.state[weight]["momentum_buffer"] = whole[index::2]
    tensors = optimizer_tensors(optimizer)
    save_file(tensors, tmp_path / "state")
    assert tensors["SGD.1.momentum_buffer"].tolist() == [1.0, 3.0, 5.0]
