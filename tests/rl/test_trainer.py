"""Whole runs, very small: what they write, that they learn, that every option matters, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.trainer
from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from mimgenv.records import read_records
from rl.checkpoint import checkpoints
from rl.config import TrainConfig
from rl.tracker import read_metrics
from rl.trainer import GRPOTrainer, Result

SMALL: Mapping[str, Any] = {
    "sft_tasks": 6,
    "sft_rows": 2,
    "sft_steps": 4,
    "sft_probe_every": 2,
    "sft_probe_episodes": 2,
    "steps": 4,
    "prompts_per_step": 2,
    "group_size": 4,
    "max_turn_tokens": 5,
    "warmup": 1,
    "eval_every": 2,
    "eval_episodes": 2,
    "save_every": 2,
}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class KillAt:
    """Kills a run in a given update, after it was logged and before it is saved."""

    def __init__(self, phase: str, step: int) -> None:
        self.moment = phase, step

    def __call__(self, phase: str, step: int, most: int, metrics: Mapping[str, float]) -> None:
        if (phase, step) == self.moment:
            raise Killed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What two runs are compared by: everything but the clock."""

    weights: Mapping[str, Any]
    cold_start: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    result: Mapping[str, Any]

    def assert_same(self, other: Outcome) -> None:
        assert self.metrics == other.metrics
        assert self.result == other.result
        for mine, theirs in ((self.cold_start, other.cold_start), (self.weights, other.weights)):
            assert same(mine, theirs)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def small(folder: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, "output": str(folder), **settings})


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if not key.startswith("time/")} for row in read_metrics(folder)]


def weights(folder: Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = load_qwen_vl(str(folder)).model.state_dict()
    return state


def outcome(config: TrainConfig, result: Result) -> Outcome:
    folder = Path(config.output)
    return Outcome(weights(folder / "model"), weights(folder / "cold_start"), timeless(folder), asdict(result))


def run(config: TrainConfig) -> Outcome:
    return outcome(config, GRPOTrainer(config).train())


def kill(config: TrainConfig, phase: str, step: int, resume: bool = False) -> None:
    with pytest.raises(Killed):
        GRPOTrainer(config, resume=resume, on_step=KillAt(phase, step)).train()


def resumed(config: TrainConfig) -> Outcome:
    return outcome(config, GRPOTrainer(config, resume=True).train())


@pytest.fixture(scope="module")
def straight(whims: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that nothing interrupts."""
    return run(small(tmp_path_factory.mktemp("straight"), env=whims))


# ---------------------------------------------------------------- what a run leaves behind


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run on the environment that the defaults train on."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    config = small(folder, steps=3, prompts_per_step=3, group_size=2, sft_tasks=12, eval_episodes=7)
    return folder, GRPOTrainer(config).train()


def test_a_run_writes_its_models_its_figures_and_its_page(tiny_run: tuple[Path, Result]) -> None:
    folder, result = tiny_run
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "episodes.html").read_text("utf-8")
    assert load_qwen_vl(str(folder / "model")).model.num_parameters() > 100_000
    assert not same(weights(folder / "cold_start"), weights(folder / "model")) or result.before == result.after
    for when, greedy, sampled in (
        ("before", result.before, result.before_sampled),
        ("after", result.after, result.after_sampled),
    ):
        assert json.loads((folder / f"{when}.json").read_text()) == {"greedy": greedy, "sampled": sampled}
        assert len(read_records(folder / f"{when}.jsonl")) == 7
        assert {"reward/total", "reward/iou", "reward/format", "iou/referring", "answer/counting"} <= greedy.keys()
    assert json.loads((folder / "config.json").read_text())["sft_tasks"] == 12
    assert (folder / "tensorboard").is_dir()


def test_a_run_logs_every_update_and_the_probes_and_evaluations_between(tiny_run: tuple[Path, Result]) -> None:
    rows = read_metrics(tiny_run[0])
    assert [(row["phase"], row["step"]) for row in rows] == [
        *[("sft", step) for step in (1, 2, 3, 4)],
        *[("grpo", step) for step in (1, 2, 3)],
    ]
    assert [row["step"] for row in rows if "probe/reward/iou" in row] == [2, 4]
    assert [row["step"] for row in rows if "held_out/reward/iou" in row] == [2]
    assert all({"loss/sft", "gradient/norm", "mask/tokens_trained", "time/update"} <= row.keys() for row in rows[:4])
    assert all({"reward/total", "reward/deviation", "mask/groups_dropped"} <= row.keys() for row in rows[4:])


def test_on_step_is_told_of_every_update(whims: str, tmp_path: Path) -> None:
    told = []
    config = small(tmp_path, env=whims, sft_steps=2, steps=1)
    GRPOTrainer(config, on_step=lambda phase, step, most, metrics: told.append((phase, step, most, metrics))).train()
    assert [call[:3] for call in told] == [("sft", 1, 2), ("sft", 2, 2), ("grpo", 1, 1)]
    assert [{"phase": call[0], "step": call[1], **call[3]} for call in told] == read_metrics(tmp_path)


def test_a_group_is_attempts_at_one_task_and_the_next_update_takes_the_next_tasks(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[str]]] = []
    real = rl.trainer.collect

    def watched(groups: Any, *rest: Any) -> Any:
        seen.append([[trajectory.task_id.rsplit("/")[-1] for trajectory in group] for group in groups])
        return real(groups, *rest)

    monkeypatch.setattr(rl.trainer, "collect", watched)
    run(small(tmp_path, env=whims, cold_start=False, steps=2, group_size=3))
    assert seen == [[["0"] * 3, ["1"] * 3], [["2"] * 3, ["3"] * 3]]


# ---------------------------------------------------------------- learning


def test_the_cold_start_learns_what_the_oracle_says(tmp_path: Path) -> None:
    config = small(tmp_path, steps=0, sft_steps=40, sft_rows=4, sft_probe_every=100, sft_learning_rate=3e-3)
    rows = run(config).metrics
    assert rows[-1]["loss/sft"] < 0.5 * rows[0]["loss/sft"]


def test_grpo_raises_a_reward_that_it_can_raise(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, cold_start=False, steps=25, group_size=8, learning_rate=5e-3, eval_every=0)
    found = run(replace(config, keep_stops=("void", "turn_limit"), final_learning_rate=1.0, save_every=100))
    rewards = [row["reward/total"] for row in found.metrics]
    assert sum(rewards[:3]) / 3 < 0.6
    assert sum(rewards[-3:]) / 3 > 0.8
    assert found.result["after_sampled"]["reward/total"] > 0.8


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_trained_on_is_as_likely_to_the_trainer_as_to_the_sampler(
    whims: str, tmp_path: Path, temperature: float
) -> None:
    rows = run(small(tmp_path, env=whims, cold_start=False, steps=2, temperature=temperature)).metrics
    for row in rows:
        assert abs(row["loss/drift"]) < 1e-5
        assert row["loss/clip_fraction"] == 0


def test_an_update_of_which_nothing_is_kept_leaves_the_weights_alone(whims: str, tmp_path: Path) -> None:
    found = run(small(tmp_path, env=whims, cold_start=False, steps=2, keep_stops=("answered",)))
    assert same(found.weights, found.cold_start)
    assert [row["mask/tokens_trained"] for row in found.metrics] == [0, 0]
    assert not any("loss/policy" in row for row in found.metrics)


def test_the_kl_is_measured_from_the_cold_started_model(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, steps=4, beta=0.1, learning_rate=3e-3)
    rows = [row for row in run(config).metrics if row["phase"] == "grpo"]
    assert rows[0]["loss/kl"] == pytest.approx(0.0, abs=1e-7)
    assert min(row["loss/kl"] for row in rows[1:]) > 1e-4


def test_without_beta_no_kl_is_measured(straight: Outcome) -> None:
    assert {row["loss/kl"] for row in straight.metrics if row["phase"] == "grpo"} == {0.0}


def test_beta_holds_the_policy_back(whims: str, tmp_path: Path) -> None:
    def distance(beta: float) -> float:
        found = run(small(tmp_path / str(beta), env=whims, cold_start=False, learning_rate=3e-3, beta=beta))
        return sum(float((found.weights[n] - found.cold_start[n]).square().sum()) for n in found.weights)

    assert distance(100.0) < 0.9 * distance(0.0)


def test_the_learning_rate_warms_up_and_comes_down_to_a_share(whims: str, tmp_path: Path) -> None:
    def rates(**settings: Any) -> list[float]:
        chosen = {"env": whims, "cold_start": False, "steps": 5, "learning_rate": 1.0, "keep_stops": (), **settings}
        rows = run(small(tmp_path / f"{settings}", **chosen)).metrics
        return [row["learning_rate"] for row in rows]

    assert rates(warmup=0, final_learning_rate=0.5) == pytest.approx([1.0, 0.8, 0.6, 0.5, 0.5])
    assert rates(warmup=2, final_learning_rate=0.1) == pytest.approx([0.5, 0.8, 0.6, 0.4, 0.2])


# ---------------------------------------------------------------- where a run starts


def test_a_run_from_a_directory_starts_with_its_weights_and_without_a_cold_start(
    whims: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    qwen = make_qwen(seed=7)
    save_qwen_vl(qwen, str(tmp_path / "start"))
    found = run(small(tmp_path / "run", env=whims, start=str(tmp_path / "start"), steps=1))
    assert same(found.cold_start, qwen.model.state_dict())
    assert {row["phase"] for row in found.metrics} == {"grpo"}
    forced = run(small(tmp_path / "cold", env=whims, start=str(tmp_path / "start"), steps=1, cold_start=True))
    assert [row["phase"] for row in forced.metrics] == ["sft"] * 4 + ["grpo"]


def test_scratch_starts_with_a_cold_start_unless_told_otherwise(straight: Outcome, whims: str, tmp_path: Path) -> None:
    assert {row["phase"] for row in straight.metrics} == {"sft", "grpo"}
    found = run(small(tmp_path, env=whims, cold_start=False, steps=1))
    assert {row["phase"] for row in found.metrics} == {"grpo"}


@pytest.mark.parametrize("start", ["scratch", "directory"])
def test_the_type_of_the_weights_is_that_of_the_configuration(
    tmp_path: Path, make_qwen: Callable[..., QwenVL], start: str
) -> None:
    if start == "directory":
        start = str(tmp_path / "start")
        save_qwen_vl(make_qwen(), start)
    trainer = GRPOTrainer(small(tmp_path / "run", start=start, dtype="bfloat16"))
    assert trainer.qwen.model.dtype == torch.bfloat16
    assert GRPOTrainer(small(tmp_path / "run", start=start)).qwen.model.dtype == torch.float32


@pytest.mark.parametrize("start", ["scratch", "directory"])
def test_the_model_is_on_the_device_of_the_configuration(
    tmp_path: Path, make_qwen: Callable[..., QwenVL], start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.trainer, "HFSampler", lambda *given: None)  # which would draw on the device
    if start == "directory":
        start = str(tmp_path / "start")
        save_qwen_vl(make_qwen(), start)
    assert GRPOTrainer(small(tmp_path / "run", start=start, device="meta")).qwen.device.type == "meta"


def test_a_folder_that_holds_a_run_is_refused_without_resume(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, steps=1)
    kill(config, "sft", 3)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds a run: pass --resume, or another --output"):
        GRPOTrainer(config)


def test_resuming_without_a_checkpoint_is_refused(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no complete checkpoint"):
        GRPOTrainer(config, resume=True)
    kill(config, "sft", 1)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        GRPOTrainer(config, resume=True)


# ---------------------------------------------------------------- seeds and kills


def test_the_same_seed_gives_the_same_run(straight: Outcome, whims: str, tmp_path: Path) -> None:
    run(small(tmp_path, env=whims)).assert_same(straight)
    assert not same(straight.weights, straight.cold_start)  # and something was learned in it


def test_another_seed_gives_another_run_from_its_first_update_on(straight: Outcome, whims: str, tmp_path: Path) -> None:
    other = run(small(tmp_path, env=whims, seed=1))
    assert not same(other.weights, straight.weights)
    for phase in ("sft", "grpo"):
        first, theirs = (next(r for r in o.metrics if r["phase"] == phase) for o in (other, straight))
        assert first != theirs


def test_another_seed_gives_other_samples_of_the_same_model(
    whims: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    start = str(tmp_path / "start")
    save_qwen_vl(make_qwen(), start)
    found = [run(small(tmp_path / f"{n}", env=whims, start=start, steps=1, seed=n)) for n in (0, 1)]
    assert same(found[0].cold_start, found[1].cold_start)
    assert not same(found[0].weights, found[1].weights)


@pytest.mark.parametrize(
    ("phase", "step"), [("sft", 3), ("sft", 4), ("grpo", 1), ("grpo", 2), ("grpo", 3), ("grpo", 4)]
)
def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(
    straight: Outcome, whims: str, tmp_path: Path, phase: str, step: int
) -> None:
    config = small(tmp_path, env=whims)
    kill(config, phase, step)
    resumed(config).assert_same(straight)


def test_so_does_one_that_is_killed_again_and_again(straight: Outcome, whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    kill(config, "sft", 3)
    for moment in (("sft", 3), ("grpo", 1), ("grpo", 3), ("grpo", 3)):
        kill(config, *moment, resume=True)
    resumed(config).assert_same(straight)


@pytest.mark.parametrize("moment", ["save_qwen_vl", "replace", "evaluate"])
def test_so_does_one_that_is_killed_between_two_updates(
    straight: Outcome, whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While the second checkpoint is written, while it is renamed, and while the model is evaluated before GRPO."""
    config = small(tmp_path, env=whims)
    calls = iter(range(100))
    where = {"save_qwen_vl": rl.checkpoint, "replace": os, "evaluate": GRPOTrainer}[moment]
    real = getattr(where, moment)

    def second(*given: Any, **more: Any) -> Any:
        if next(calls) == (2 if moment == "evaluate" else 1):
            raise Killed
        return real(*given, **more)

    monkeypatch.setattr(where, moment, second)
    with pytest.raises(Killed):
        GRPOTrainer(config).train()
    monkeypatch.undo()
    resumed(config).assert_same(straight)


@pytest.mark.parametrize("step", [1, 3])
def test_a_cold_start_that_was_done_is_not_gone_on_with(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(rl.trainer, "STAGE_IOU", -1.0)  # each probe ends a stage, the third one the cold start
    least: Mapping[str, Any] = {"sft_stop_iou": 0.0, "sft_stop_type_iou": 0.0, "sft_stop_format": 0.0}
    done = run(small(tmp_path / "straight", env=whims, sft_steps=20, **least))
    assert [row["stage"] for row in done.metrics if row["phase"] == "sft"] == [0, 0, 1, 1, 2, 2]
    config = small(tmp_path / "killed", env=whims, sft_steps=20, **least)
    kill(config, "grpo", step)
    resumed(config).assert_same(done)


def test_resuming_a_finished_run_gives_its_result_again(straight: Outcome, whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    run(config)
    resumed(config).assert_same(straight)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_and_resumed_equals_one_that_is_not(whims: str, tmp_path: Path) -> None:
    """With real kills, each a little later than the one before, until the run comes to its end."""
    registers = Path(__file__).with_name("conftest.py")
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); from rl.train import main; sys.exit(main(sys.argv[2:]))"
    settings = {**SMALL, "env": whims, "sft_steps": 30, "steps": 30, "save_every": 3, "sft_probe_every": 5}
    words = [f"--{name}={value}" for name, value in settings.items()]

    def start(folder: Path, resume: bool) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(registers), *words, f"--output={folder}", *["--resume"] * resume]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, False).wait(300) == 0
    kills = 0
    for lines in range(4, 400, 7):
        process = start(broken, bool(checkpoints(broken)))
        while process.poll() is None and len(read_metrics(broken)) < lines:
            time.sleep(0.01)
        time.sleep(0.013 * (lines % 5))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 6
    assert timeless(broken) == timeless(whole)
    assert same(weights(broken / "model"), weights(whole / "model"))
    assert same(weights(broken / "cold_start"), weights(whole / "cold_start"))
    for when in ("before.json", "after.json"):
        assert (broken / when).read_text() == (whole / when).read_text()


# ---------------------------------------------------------------- every option matters

BASE: Mapping[str, Any] = {**SMALL, "sft_steps": 2, "steps": 2, "eval_every": 0, "tools": ("zoom",), "save_every": 100}
"""A run in which every option has something to act on."""

OPTIONS: Mapping[str, Any] = {
    "env": "MultiImageTiny-v0",
    "tasks": ("locate",),
    "difficulty": 1,
    "tools": (),
    "instructions": "brief",
    "reward": "accuracy",
    "seed": 1,
    "cold_start": False,
    "sft_tasks": 9,
    "sft_rows": 3,
    "sft_steps": 1,
    "sft_learning_rate": 1e-3,
    "sft_weight_decay": 0.5,
    "steps": 1,
    "prompts_per_step": 3,
    "group_size": 3,
    "temperature": 0.5,
    "max_turn_tokens": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.5,
    "warmup": 2,
    "final_learning_rate": 0.9,
    "beta": 0.5,
    "normalise_advantages": False,
    "mask_invalid_actions": True,
    "keep_stops": ("void", "turn_limit"),
    "count_masked": False,
    "divide_by_masked": True,
    "max_grad_norm": 0.1,
}


@pytest.fixture(scope="module")
def base(whims: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return run(TrainConfig(**{**BASE, "env": whims, "output": str(tmp_path_factory.mktemp("base"))})).weights


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "reward"])
def test_an_option_changes_what_is_learned(
    base: Mapping[str, Any], whims: str, tmp_path: Path, option: str
) -> None:
    settings = {**BASE, "env": whims, "output": str(tmp_path), option: OPTIONS[option]}
    assert not same(run(TrainConfig(**settings)).weights, base)
