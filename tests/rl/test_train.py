"""The command: runs, resumes, and says in one line what is wrong."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.tiny_model import tiny_qwen_vl
from rl.checkpoint import checkpoints
from rl.config import TrainConfig
from rl.tracker import read_metrics
from rl.train import ProgressBars, main, usage

SIZES = {
    "sft_tasks": 6,
    "sft_rows": 2,
    "sft_steps": 2,
    "sft_probe_every": 2,
    "sft_probe_episodes": 2,
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_turn_tokens": 5,
    "eval_episodes": 7,
    "save_every": 1,
}
SMALL = [f"--{name}={value}" for name, value in SIZES.items()]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it does not run: one line."""
    assert main(words) == 2
    found = capsys.readouterr()
    assert found.err.startswith("rl.train: ")
    assert found.err.count("\n") == 1
    assert found.err.endswith("\n")
    assert "Traceback" not in found.out + found.err
    return found.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command."""
    folder = tmp_path_factory.mktemp("command") / "run"
    assert main([*SMALL, f"--output={folder}", "--learning_rate=0.001"]) == 0
    return folder


def test_a_run_ends_with_its_held_out_figures_in_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", f"--output={finished}"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"held-out iou \d\.\d\d -> \d\.\d\d, reward \d\.\d\d -> \d\.\d\d", lines[-1])
    before, after = (json.loads((finished / f"{when}.json").read_text())["greedy"] for when in ("before", "after"))
    shown = [(f"{before[key]:.2f}", f"{after[key]:.2f}") for key in ("reward/iou", "reward/total")]
    assert re.findall(r"(\d\.\d\d) -> (\d\.\d\d)", lines[-1]) == shown
    assert any(line.startswith("iou/referring: ") for line in lines)
    assert any(line.startswith("answer/counting: ") for line in lines)
    assert any("curve.png" in line for line in lines)


def test_a_run_leaves_its_files_where_it_was_told_to(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"model", "cold_start", "curve.png", "episodes.html", "metrics.jsonl", "config.json"} <= names


def test_a_resumed_run_keeps_its_settings_unless_they_are_given_anew(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    assert json.loads((finished / "config.json").read_text())["learning_rate"] == 0.001
    assert main(["--resume", f"--output={copy}", "--steps=3", "--eval_episodes=1"]) == 0
    config = json.loads((copy / "config.json").read_text())
    assert (config["learning_rate"], config["sft_tasks"], config["steps"], config["eval_episodes"]) == (0.001, 6, 3, 1)
    steps = [(row["phase"], row["step"]) for row in read_metrics(copy)]
    assert steps == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    assert checkpoints(copy)[-1].name == "1-grpo-0000003"


def test_a_recipe_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text("group_size = 1\n")
    assert "group_size 1" in refused([str(tmp_path / "recipe.toml")], capsys)
    assert "temperature 0" in refused([str(tmp_path / "recipe.toml"), "--group_size=2", "--temperature=0"], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stepps=3", "unknown stepps"),
        ("--steps=three", "--steps three: not a whole number"),
        ("--steps", "--steps: expected --key value"),
        ("--group_size=1", "group_size 1"),
        ("--save_every=0", "save_every 0: at least 1"),
        ("--keep_stops=bored", "bored"),
        ("none.toml", "none.toml"),
        ("--env=NoSuch-v0", "NoSuch"),
        ("--tasks=chess,", "chess"),
        ("--tasks=chess", "chess"),
        ("--difficulty=9", "9"),
        ("--reward=gold", "gold"),
        ("--tools=hammer", "hammer"),
        ("--instructions=loud", "loud"),
        ("--source=odinw:/none", "/none"),
        ("--source=nowhere:/none", "nowhere"),
        ("--world=moon", "moon"),
        ("--box_frame=furlong", "furlong"),
        ("--max_turns=0", "budgets 0"),
        ("--sft_data=/none/trajectories.jsonl", "/none/trajectories.jsonl"),
        ("--sft_schedule=square", "sft_schedule square is not one of"),
        ("--sft_think=hard", "sft_think hard is not one of"),
        ("--start=/none/model", "/none/model is not a directory"),
        ("--start=runs/none/model", "runs/none/model is not a directory"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--sft_tasks=6", f"--output={tmp_path / 'run'}"]
    assert said in refused([words, *few] if words.endswith(".toml") else [*few, words], capsys)


def test_a_folder_without_a_models_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([f"--start={tmp_path}", f"--output={tmp_path / 'run'}"], capsys)
    assert "config.json, tokenizer.json missing" in said


def test_a_folder_that_holds_a_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume" in refused([*SMALL, f"--output={finished}"], capsys)


def test_resuming_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in refused([*SMALL, "--resume", f"--output={tmp_path}"], capsys)


def test_help_names_every_option_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["-h", "--steps=3"]) == 0
    said = capsys.readouterr().out
    assert [field.name for field in fields(TrainConfig) if field.name not in said] == []


def test_help_explains_every_option_before_it_lists_their_defaults() -> None:
    explained = usage().partition("Defaults")[0].replace(",", " ").replace(":", " ").split()
    assert [field.name for field in fields(TrainConfig) if field.name not in explained] == []


def test_a_wrong_command_line_is_refused_before_torch_is_loaded() -> None:
    code = "import sys; from rl.train import main; sys.exit(main(['--stepps=3']) + 40 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


def test_a_run_may_start_from_a_directory(
    tmp_path: Path, make_qwen: Callable[..., QwenVL], capsys: pytest.CaptureFixture[str]
) -> None:
    save_qwen_vl(make_qwen(), str(tmp_path / "start"))
    words = [*SMALL, f"--start={tmp_path / 'start'}", f"--output={tmp_path / 'run'}", "--steps=1", "--eval_episodes=1"]
    assert main(words) == 0
    assert {row["phase"] for row in read_metrics(tmp_path / "run")} == {"grpo"}


def test_each_phase_has_a_bar_that_shows_how_far_it_is_and_how_good() -> None:
    file = io.StringIO()
    with ProgressBars(Console(file=file, width=200, force_terminal=True, color_system=None)) as bars:
        bars("sft", 30, 40, {"loss/sft": 1.234, "gradient/norm": 9.9, "probe/reward/iou": 0.5})
        bars("sft", 31, 40, {"loss/sft": 1.111})
        bars("grpo", 2, 50, {"reward/total": 0.75})
    shown: Any = file.getvalue()
    assert "cold start" in shown
    assert "31/40" in shown
    assert "2/50" in shown
    assert "loss 1.11  probe iou 0.50" in shown
    assert "reward 0.75" in shown
    assert "9.9" not in shown


def test_where_no_bar_can_be_shown_there_is_a_line_now_and_then() -> None:
    file = io.StringIO()
    with ProgressBars(Console(file=file, width=40, force_terminal=False)) as bars:
        for step in range(1, 121):
            bars("grpo", step, 120, {"reward/total": step / 100, "reward/iou": 0.5})
    assert file.getvalue().splitlines() == [
        "grpo 50/120  reward 0.50  iou 0.50",
        "grpo 100/120  reward 1.00  iou 0.50",
        "grpo 120/120  reward 1.20  iou 0.50",
    ]


def test_help_names_every_option_with_its_default() -> None:
    shown = usage()
    for item in fields(TrainConfig):
        assert f"--{item.name} {item.default!r}" in shown


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(trainer: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rl.trainer.GRPOTrainer.train", interrupted)
    assert main([f"--output={tmp_path}"]) == 130
    assert f"go on with --resume --output {tmp_path}" in capsys.readouterr().err


def test_a_model_that_cannot_share_prompts_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("rl.trainer.GRPOTrainer.train", lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
    for family, said in (("qwen3_5", True), ("qwen2_5_vl", False)):
        start = tmp_path / family
        save_qwen_vl(tiny_qwen_vl(0, family), str(start))
        assert main([f"--start={start}", f"--output={tmp_path / 'run'}"]) == 130
        assert ("prompts are not shared" in capsys.readouterr().out) == said


def test_a_dry_run_plans_and_rehearses_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(["--dry-run", "--steps=7", "--group_size=4", f"--output={output}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "7 steps of 28 tasks x 4 attempts" in said
    assert "rehearsed a real step" in said
    assert said.endswith("as planned")
    assert not output.exists()


def test_a_dry_run_of_what_cannot_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--kl=k1"]) == 2
    assert capsys.readouterr().err.startswith("rl.train: kl k1: nothing comes of it with beta")
