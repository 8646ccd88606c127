"""A step shared over ranks is the step of one process: statistics, masks, updates and what is logged."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from agents.qwen_vl import load_qwen_vl
from rl.tracker import read_metrics

HERE: Final = Path(__file__).parent
KINDS: Final = ("ddp", "fsdp2")


def torchrun(*words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def script() -> Any:
    spec = importlib.util.spec_from_file_location("updates_on_ranks", HERE / "updates_on_ranks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights and metrics of one process, and of two by kind."""
    folder = tmp_path_factory.mktemp("shared")
    torchrun(str(HERE / "updates_on_ranks.py"), str(folder), *KINDS)
    return {"alone": script().learn(folder, "ddp"), **{kind: torch.load(folder / f"{kind}.pt") for kind in KINDS}}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_from_their_shares_what_one_process_learns_from_all(
    outcomes: dict[str, Any], kind: str
) -> None:
    weights, _ = outcomes["alone"]
    shared, _ = outcomes[kind]
    start = load_qwen_vl("tiny").model.state_dict()
    assert weights.keys() == shared.keys()
    assert max(float((weights[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_log_what_one_process_logs(outcomes: dict[str, Any], kind: str) -> None:
    _, logged = outcomes["alone"]
    _, shared = outcomes[kind]
    assert [step["mask/groups_dropped"] for step in logged] == [1.0, 1.0]
    assert [step["mask/trajectories_masked"] for step in logged] == [2.0, 2.0]
    for ours, theirs in zip(shared, logged, strict=True):
        own = {name: value for name, value in theirs.items() if not name.startswith("sampler/")}  # of rank 0's tokens
        assert {name: ours[name] for name in own} == pytest.approx(own, rel=1e-3, abs=1e-5)


SETTINGS: Final = {
    "start": "tiny",
    "cold_start": "true",
    "sft_tasks": 6,
    "sft_questions": 2,
    "sft_rows": 3,
    "sft_steps": 2,
    "sft_probe_every": 2,
    "sft_probe_episodes": 3,
    "steps": 2,
    "prompts_per_step": 3,
    "group_size": 4,
    "eval_episodes": 3,
    "eval_every": 0,
    "save_every": 1,
    "show_every": 2,
}
"""A run from the command, in seconds."""


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("ddp", 0), pytest.param("fsdp2", 0, marks=pytest.mark.slow), pytest.param("fsdp2", 2, marks=pytest.mark.slow)],
)
def test_the_command_runs_on_two_ranks_and_resumes_on_one(tmp_path: Path, kind: str, rank: int) -> None:
    from rl.train import main

    words = [f"--{name}={value}" for name, value in (SETTINGS | {"lora_rank": rank}).items()]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    torchrun("-m", "--", "rl.train", *words, f"--output={shared}", f"--parallel={kind}")
    assert main([*words, f"--output={alone}"]) == 0
    cold, theirs = (load_qwen_vl(str(folder / "cold_start")).model.state_dict() for folder in (alone, shared))
    for name, value in cold.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=0, msg=name)
    rows, ours = read_metrics(alone), read_metrics(shared)
    assert [(row["phase"], row["step"]) for row in ours] == [(row["phase"], row["step"]) for row in rows]
    assert ours[0]["loss/sft"] == pytest.approx(rows[0]["loss/sft"], rel=1e-5)
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert main(["--resume", f"--output={shared}", "--steps=3"]) == 0
    assert read_metrics(shared)[-1]["step"] == 3
