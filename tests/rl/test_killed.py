"""A run that is killed with SIGKILL at a random moment and resumed equals one that is not, bit for bit.

Through the command, and judged by the files that it leaves alone. A moment is a number of logged updates plus a share
of the next one, drawn from a seeded generator.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from agents.qwen_vl import load_qwen_vl
from rl.checkpoint import checkpoints, read_checkpoint
from rl.tracker import read_metrics
from rl.train import main

STEPS = 6
COMMON: Mapping[str, Any] = {
    "start": "tiny",
    "group_size": 4,
    "prompts_per_step": 2,
    "max_turn_tokens": 24,
    "eval_every": 0,
    "eval_episodes": 1,
    "sft_probe_every": 4,
    "sft_probe_episodes": 1,
    "sft_stop_format": 1.1,
    "sft_tasks": 6,
    "sft_rows": 2,
    "seed": 3,
}
PHASES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"cold_start": True, "sft_steps": STEPS, "steps": 0},
    "grpo": {"cold_start": False, "steps": STEPS},
    "both": {"cold_start": True, "sft_steps": STEPS, "steps": STEPS},
}

Start = Callable[[Sequence[str]], int]
"""Begins the command with some words in a process of its own, and returns that process's id."""


def command(words: Sequence[str]) -> int:
    """`python -m rl.train`, as a person starts it."""
    silent = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, silent, 1), (os.POSIX_SPAWN_CLOSE, silent)]
    arguments = [sys.executable, "-m", "rl.train", *words]
    try:
        return os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)
    finally:
        os.close(silent)


def forked(words: Sequence[str]) -> int:
    """The same in a copy of this process, which has what takes seconds to import."""
    for slow in ("rl.report", "rl.trainer", "matplotlib.pyplot", "torch.utils.tensorboard"):
        import_module(slow)
    load_qwen_vl("tiny")  # transformers imports a model's code only now

    child = os.fork()
    if child == 0:  # never comes back to pytest
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = main(words)
        finally:
            os._exit(code)
    return child


def words_of(folder: Path, phase: str, save_every: int) -> list[str]:
    settings = {**COMMON, **PHASES[phase], "save_every": save_every, "output": folder}
    return [f"--{name}={value}" for name, value in settings.items()]


def finish(child: int) -> None:
    """Waits until the command has come to its end by itself."""
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def ended(child: int) -> bool:
    """Whether the process has ended by itself, and well; it is not waited for."""
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        assert os.waitstatus_to_exitcode(status) == 0
    return bool(found)


def kill(child: int, folder: Path, moment: float) -> bool:
    """Kills the run once so many updates are logged and a share of the next is done; False where it ends before."""
    updates, share = math.floor(moment), moment % 1
    seen = len(read_metrics(folder))
    began, update = time.monotonic(), 0.05
    while len(read_metrics(folder)) < updates:
        if ended(child):
            return False
        if len(read_metrics(folder)) != seen:
            seen, now = len(read_metrics(folder)), time.monotonic()
            began, update = now, now - began
        time.sleep(0.002)
    time.sleep(share * min(update, 1.0))
    if ended(child):
        return False
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return True


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on kills: metrics but for times, weights, results."""
    rows = [{key: row[key] for key in row if not key.startswith("time/")} for row in read_metrics(folder)]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(rows)
    found: dict[str, Any] = {"metrics": rows}
    for when in ("before", "after"):
        found[when] = json.loads((folder / f"{when}.json").read_text())
        found[f"{when} episodes"] = (folder / f"{when}.jsonl").read_text()
    for model in ("model", "cold_start"):
        found[model] = {n: v.tolist() for n, v in load_file(folder / model / "model.safetensors").items()}
    progress, tensors = read_checkpoint(checkpoints(folder)[-1])
    return found | {"progress": progress, "optimizer": {name: value.tolist() for name, value in tensors.items()}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Start], dict[str, Any]]:
    """What a run of a phase leaves that is never killed, however often it is saved."""
    known: dict[str, dict[str, Any]] = {}

    def found(phase: str, start: Start) -> dict[str, Any]:
        if phase not in known:
            folder = tmp_path_factory.mktemp(phase)
            finish(start(words_of(folder, phase, 2)))
            known[phase] = left(folder)
        return known[phase]

    return found


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Equal part by part, so that a failure names the part."""
    assert found.keys() == expected.keys()
    for row, other in zip(found["metrics"], expected["metrics"]):
        assert row == other
    for part, value in expected.items():
        assert found[part] == value, part


@pytest.mark.parametrize(("phase", "save_every", "seed"), [("sft", 2, 0), ("grpo", 3, 1)])
def test_six_updates_equal_three_and_a_kill_and_the_rest(
    straight: Callable[[str, Start], dict[str, Any]], tmp_path: Path, phase: str, save_every: int, seed: int
) -> None:
    moment = 3 + float(np.random.default_rng(seed).random())
    expected = straight(phase, forked)
    assert len(expected["metrics"]) == STEPS
    words = words_of(tmp_path, phase, save_every)
    assert kill(forked(words), tmp_path, moment)
    assert len(read_metrics(tmp_path)) < STEPS
    finish(forked([*words, "--resume"]) if checkpoints(tmp_path) else forked(words))
    assert_equal(left(tmp_path), expected)


def test_both_phases_learn_something_that_a_kill_could_lose(
    straight: Callable[[str, Start], dict[str, Any]],
) -> None:
    for phase in ("sft", "grpo"):
        steps = [row["step"] for row in straight(phase, forked)["metrics"]]
        assert steps == list(range(1, STEPS + 1))
    grpo = straight("grpo", forked)
    assert grpo["model"] != grpo["cold_start"]


def test_a_checkpoint_that_is_cut_off_is_one_line_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(tmp_path, "sft", 1)
    assert kill(forked(words), tmp_path, 4.5)
    newest = checkpoints(tmp_path)[-1]
    size = (newest / "model.safetensors").stat().st_size
    os.truncate(newest / "model.safetensors", size - 1)
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said == f"rl.train: checkpoint {newest}: model.safetensors is of {size - 1} bytes, {size} were written\n"
    shutil.rmtree(newest)  # as a person would, who reads that
    finish(forked([*words, "--resume"]))


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [1, 3])
def test_the_command_may_be_killed_again_and_again(
    straight: Callable[[str, Start], dict[str, Any]], tmp_path: Path, save_every: int
) -> None:
    words, random = words_of(tmp_path, "both", save_every), np.random.default_rng(save_every)
    for moment in np.sort(random.uniform(0, 2 * STEPS, 5)):
        child = command([*words, "--resume"] if checkpoints(tmp_path) else words)
        if not kill(child, tmp_path, float(moment)):
            break
    finish(command([*words, "--resume"] if checkpoints(tmp_path) else words))
    assert_equal(left(tmp_path), straight("both", command))
