"""Whole runs, very small: what they write, that they learn, that options matter, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.report
import rl.trainer
import rl.update
from agents.evaluate import evaluate_agent
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from agents.random_agent import RandomAgent
from agents.rollout import run_episodes
from agents.types import History, Trajectory
from mimgenv.datasets.selected import Selected, write_selection
from mimgenv.errors import DatasetError
from mimgenv.records import read_records, write_records
from mimgenv.tasks.prefetch import PrefetchedTasks
from mimgenv.tasks.rendered import TINY_TYPES
from rl.checkpoint import checkpoints
from rl.config import TASKS_PER_SEED, TrainConfig
from rl.distributed import World
from rl.errors import TrainingStopped
from rl.guards import MOST_IDLE
from rl.policy import Policy
from rl.tracker import read_metrics
from rl.trainer import GRPOTrainer, Result

ZOOM = "MultiImageTinyZoom-v0"
SMALL: Mapping[str, Any] = {
    "sft_tasks": 6,
    "sft_questions": 2,
    "sft_rows": 2,
    "sft_steps": 4,
    "sft_learning_rate": 2e-3,
    "sft_weight_decay": 0.01,
    "sft_stop_iou": 0.45,
    "sft_stop_type_iou": 0.25,
    "sft_stop_format": 0.95,
    "sft_probe_every": 2,
    "sft_probe_episodes": 2,
    "steps": 4,
    "prompts_per_step": 2,
    "group_size": 4,
    "temperature": 1.0,
    "max_turn_tokens": 5,
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "warmup": 1,
    "final_learning_rate": 0.1,
    "loss": "dapo",
    "std": "group",
    "mask_invalid_actions": False,
    "keep_stops": ("answered", "void"),
    "count_masked": True,
    "divide_by_masked": False,
    "max_grad_norm": 1.0,
    "eval_every": 2,
    "eval_episodes": 2,
    "save_every": 2,
}
"""Every option that the defaults are tuned in is named, so that no test depends on them."""


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


@pytest.fixture(autouse=True)
def nothing_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and pages take longer than these runs; `tiny_run` is made before, and has both."""
    for name in ("draw_curve", "write_episodes"):
        monkeypatch.setattr(rl.report, name, lambda folder: None)


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
    first = int(seen[0][0][0])
    assert seen == [[[str(first)] * 3, [str(first + 1)] * 3], [[str(first + 2)] * 3, [str(first + 3)] * 3]]


def test_another_seed_of_a_run_plays_other_tasks_none_of_them_the_cold_starts(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = rl.trainer.collect

    def watched(groups: Any, *rest: Any) -> Any:
        seen.append(groups[0][0].task_id)
        return real(groups, *rest)

    monkeypatch.setattr(rl.trainer, "collect", watched)
    for seed in (0, 1):
        run(small(tmp_path / str(seed), env=whims, cold_start=False, steps=1, seed=seed))
    numbers = [int(task_id.rsplit("/")[-1]) for task_id in seen]
    assert numbers == [TASKS_PER_SEED, 2 * TASKS_PER_SEED]


# ---------------------------------------------------------------- learning


def test_the_cold_start_learns_what_the_oracle_says(tmp_path: Path) -> None:
    config = small(tmp_path, steps=0, sft_steps=24, sft_rows=3, sft_probe_every=100, sft_learning_rate=3e-3)
    rows = run(config).metrics
    assert rows[-1]["loss/sft"] < 0.5 * rows[0]["loss/sft"]


def test_grpo_raises_a_reward_that_it_can_raise(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, cold_start=False, steps=12, group_size=8, learning_rate=2e-2, eval_every=0)
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
        assert row["loss/clip_low"] == row["loss/clip_high"] == 0


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
    assert not any("loss/kl" in row for row in straight.metrics)


def test_the_learning_rate_warms_up_and_comes_down_to_a_share(whims: str, tmp_path: Path) -> None:
    def rates(**settings: Any) -> list[float]:
        chosen = {"env": whims, "cold_start": False, "steps": 5, "learning_rate": 1.0, "keep_stops": (), **settings}
        chosen |= {"prompts_per_step": 1, "group_size": 2, "eval_every": 0}
        rows = run(small(tmp_path / f"{settings}", **chosen)).metrics
        return [row["learning_rate"] for row in rows]

    assert rates(warmup=0, final_learning_rate=0.5) == pytest.approx([1.0, 0.8, 0.6, 0.5, 0.5])
    assert rates(warmup=2, final_learning_rate=0.1) == pytest.approx([0.5, 0.8, 0.6, 0.4, 0.2])


SCHEDULED: Sequence[tuple[str, int, Mapping[int, float]]] = [
    ("linear", 430, {0: 1 / 30, 14: 0.5, 29: 1.0, 215: 1.0, 250: 180 / 215, 387: 0.2, 429: 0.05}),
    ("cosine", 430, {0: 1 / 30, 14: 0.5, 29: 1.0, 30: 1.0, 130: 0.8609, 230: 0.525, 330: 0.1891, 429: 0.05}),
    ("linear", 20, {0: 0.5, 1: 1.0, 10: 1.0, 15: 0.5, 19: 0.1}),  # a tenth of them is warm-up
    ("cosine", 20, {0: 0.5, 1: 1.0, 2: 1.0, 11: 0.525, 19: 0.0572}),
]
"""Schedule, updates, and shares of the learning rate by updates so far; the first 30 at most are the warm-up."""


@pytest.mark.parametrize(("schedule", "steps", "shares"), SCHEDULED)
def test_the_cold_starts_rate_warms_up_and_comes_down_as_its_schedule_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, steps: int, shares: Mapping[int, float]
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(Policy, "set_rate", lambda policy, rate: rates.append(rate))
    monkeypatch.setattr(Policy, "checkpoint", lambda *given: None)
    monkeypatch.setattr(rl.trainer, "sft_step", lambda *given: {"loss/sft": 0.0})
    config = small(tmp_path, sft_schedule=schedule, sft_steps=steps, sft_learning_rate=2.0, sft_probe_every=999)
    with pytest.raises(Killed):
        GRPOTrainer(config, on_step=KillAt("sft", steps)).train()
    assert len(rates) == steps
    for step, share in shares.items():
        assert rates[step] == pytest.approx(2.0 * share, abs=2e-3)


# ---------------------------------------------------------------- recorded episodes and selected tasks


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of an oracle's episodes, not all of one length."""
    path = tmp_path_factory.mktemp("recorded") / "trajectories.jsonl"
    report = evaluate_agent(OracleAgent(zoom=0.5, grid=7), ZOOM, 5, split="train", blind_episodes=0)
    write_records(path, report.records)
    assert {len(record.turns) for record in report.records} == {1, 2}
    return str(path)


def on_recorded(folder: Path, recorded: str, **settings: Any) -> TrainConfig:
    chosen = {"env": ZOOM, "sft_data": recorded, "cold_start": True, "sft_steps": 5, "steps": 0, **settings}
    return small(folder, **{"lora_rank": 2, "sft_schedule": "cosine", **chosen})


def test_a_cold_start_may_be_on_recorded_episodes_with_new_adapters_after_it(
    recorded: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    start = str(tmp_path / "start")
    save_qwen_vl(make_qwen(), start)
    trainer = GRPOTrainer(on_recorded(tmp_path / "killed", recorded, start=start), on_step=KillAt("sft", 5))
    with pytest.raises(Killed):
        trainer.train()
    trainer.policy.save_whole(tmp_path / "merged")
    learned = weights(tmp_path / "merged")
    found = run(on_recorded(tmp_path / "whole", recorded, start=start))
    assert {row["phase"] for row in found.metrics} == {"sft"}
    assert {row["stage"] for row in found.metrics} == {0.0}
    assert same(found.cold_start, learned)
    assert same(found.weights, learned)  # the next phase's adapters have learned nothing, and add nothing
    assert not same(learned, weights(Path(start)))
    other = run(on_recorded(tmp_path / "oracle", recorded, start=start, sft_data=None))
    assert not same(other.weights, learned)


def test_recorded_episodes_are_learned(recorded: str, tmp_path: Path) -> None:
    settings: Mapping[str, Any] = {"sft_steps": 30, "sft_rows": 5, "sft_probe_every": 100, "sft_learning_rate": 5e-3}
    rows = run(on_recorded(tmp_path, recorded, lora_rank=0, sft_schedule="linear", **settings)).metrics
    assert rows[-1]["loss/sft"] < 0.5 * rows[0]["loss/sft"]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_on_recorded_episodes_that_is_killed_and_resumed_equals_one_that_is_not(
    recorded: str, tmp_path: Path, step: int
) -> None:
    whole = run(on_recorded(tmp_path / "whole", recorded, steps=1))
    assert [row["phase"] for row in whole.metrics] == ["sft"] * 5 + ["grpo"]
    config = on_recorded(tmp_path / "killed", recorded, steps=1)
    kill(config, "sft", step)
    resumed(config).assert_same(whole)


def test_a_record_that_the_environment_shows_otherwise_stops_the_run_before_an_update(
    recorded: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"trajectories\.jsonl: task .* the environment says"):
        GRPOTrainer(on_recorded(tmp_path, recorded, instructions="full")).train()
    assert read_metrics(tmp_path) == []


def test_a_selection_is_trained_on_and_rendered_tasks_are_held_out(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = rl.trainer.collect

    def watched(groups: Any, *rest: Any) -> Any:
        seen.extend(group[0].task_id for group in groups)
        return real(groups, *rest)

    monkeypatch.setattr(rl.trainer, "collect", watched)
    chosen = [Selected(f"rendered:tiny/locate/any/train/{n}", "locate", 8, 4, "test") for n in (3, 5, 8)]
    write_selection(tmp_path / "tasks.jsonl", chosen)
    settings: Mapping[str, Any] = {"env": whims, "source": f"selected:{tmp_path / 'tasks.jsonl'}", "steps": 3}
    settings |= {"cold_start": False, "eval_every": 1, "eval_episodes": 3, "prompts_per_step": 2}
    run(small(tmp_path / "run", eval_source="rendered", **settings))
    assert seen[:3] == seen[3:]
    assert sorted(seen[:3]) == [item.task_id for item in chosen]
    held_out = {record.task_id for record in read_records(tmp_path / "run" / "after.jsonl")}
    assert {task_id.split("/")[-2] for task_id in held_out} == {"test"}


def test_tool_calls_of_the_policy_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def played(agent: Any, envs: Any, starts: Sequence[int], **more: Any) -> list[Trajectory]:
        return run_episodes(OracleAgent(zoom=1.0, grid=7), envs, starts, **more)

    monkeypatch.setattr(rl.trainer, "run_episodes", played)
    (row,) = run(small(tmp_path, env=ZOOM, cold_start=False, steps=1, eval_every=0)).metrics
    assert row["tool/zoom"] == 1.0


# ---------------------------------------------------------------- where a run starts


def test_a_run_from_a_directory_starts_with_its_weights_and_without_a_cold_start(
    whims: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    qwen = make_qwen(seed=7)
    save_qwen_vl(qwen, str(tmp_path / "start"))
    found = run(small(tmp_path / "run", env=whims, start=str(tmp_path / "start"), steps=1))
    assert same(found.cold_start, qwen.model.state_dict())
    assert {row["phase"] for row in found.metrics} == {"grpo"}
    forced = run(small(tmp_path / "cold", env=whims, start=str(tmp_path / "start"), steps=0, cold_start=True))
    assert {row["phase"] for row in forced.metrics} == {"sft"}


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
    trainer = GRPOTrainer(small(tmp_path / "run", start=start, dtype="bfloat16", lora_rank=2))
    assert trainer.policy.qwen.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainer.policy.trained} == {torch.float32}
    assert GRPOTrainer(small(tmp_path / "run", start=start)).policy.qwen.model.dtype == torch.float32


@pytest.mark.parametrize("start", ["scratch", "directory"])
def test_the_model_is_on_the_device_of_the_configuration(
    tmp_path: Path, make_qwen: Callable[..., QwenVL], start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.trainer, "HFSampler", lambda *given, **more: None)  # which would draw on the device
    if start == "directory":
        start = str(tmp_path / "start")
        save_qwen_vl(make_qwen(), start)
    assert GRPOTrainer(small(tmp_path / "run", start=start, device="meta")).policy.qwen.device.type == "meta"


def test_a_folder_that_holds_a_run_is_refused_without_resume(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, steps=1)
    kill(config, "sft", 3)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds a run: pass --resume, or another --output"):
        GRPOTrainer(config)


def test_resuming_without_a_checkpoint_is_refused(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no complete checkpoint"):
        GRPOTrainer(config, resume=True)


def test_there_is_a_checkpoint_from_the_beginning_on(whims: str, tmp_path: Path, straight: Outcome) -> None:
    config = small(tmp_path, env=whims)
    kill(config, "sft", 1)
    resumed(config).assert_same(straight)


def test_a_run_begins_with_its_own_model_whatever_an_earlier_one_left_in_its_folder(
    whims: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    save_qwen_vl(make_qwen(seed=7), str(tmp_path / "run" / "cold_start"))
    save_qwen_vl(make_qwen(seed=8), str(tmp_path / "start"))
    found = run(small(tmp_path / "run", env=whims, start=str(tmp_path / "start"), steps=1))
    assert same(found.cold_start, make_qwen(seed=8).model.state_dict())


def test_constrained_actions_outlive_the_cold_start(tmp_path: Path) -> None:
    settings = {"start": "tiny", "cold_start": True, "sft_steps": 2, "steps": 1, "max_turn_tokens": 40}
    rows = run(small(tmp_path, constrain_actions=True, **settings)).metrics
    assert [row["phase"] for row in rows] == ["sft", "sft", "grpo"]


def test_a_cold_start_that_is_no_number_stops_the_run_before_the_weights_change(
    whims: str, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    broken = make_qwen()
    with torch.no_grad():
        broken.model.model.language_model.norm.weight[0] = float("nan")
    save_qwen_vl(broken, str(tmp_path / "start"))
    config = small(tmp_path / "run", env=whims, start=str(tmp_path / "start"), cold_start=True)
    with pytest.raises(TrainingStopped, match="finite"):
        GRPOTrainer(config).train()
    assert (tmp_path / "run" / "nan" / "step-1").is_dir()


def test_a_run_that_trains_no_token_step_after_step_is_stopped(whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims, cold_start=False, steps=30, keep_stops=("answered",), eval_every=0)
    with pytest.raises(TrainingStopped, match="at least one group has rewards that vary"):
        GRPOTrainer(config).train()
    assert len(read_metrics(tmp_path)) == MOST_IDLE - 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "cuda"}, "device cuda: torch finds no GPU"),
        ({"attention": "flex_attention"}, "it has no backward pass on a CPU"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_at_once(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GRPOTrainer(small(tmp_path, **settings))


def test_workers_are_refused_on_several_ranks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each would make the tasks of all"):
        GRPOTrainer(small(tmp_path, workers=1), world=World(0, 2))


def test_kept_gigabytes_are_what_the_sampler_may_keep(tmp_path: Path) -> None:
    assert GRPOTrainer(small(tmp_path, kept_gigabytes=0.5)).sampler.kept_bytes == 2**29


# ---------------------------------------------------------------- seeds and kills


def test_the_same_seed_gives_the_same_run(straight: Outcome, whims: str, tmp_path: Path) -> None:
    run(small(tmp_path, env=whims)).assert_same(straight)
    assert not same(straight.weights, straight.cold_start)  # and something was learned in it


def test_scenes_made_ahead_in_another_process_change_nothing_but_the_time(
    straight: Outcome, whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    make = PrefetchedTasks.task
    monkeypatch.setattr(PrefetchedTasks, "task", lambda self, seed: (asked.append(seed), make(self, seed))[1])
    run(small(tmp_path, env=whims, workers=1)).assert_same(straight)
    assert len(asked) == SMALL["steps"] * SMALL["prompts_per_step"] * SMALL["group_size"]


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


@pytest.mark.parametrize(("phase", "step"), [("sft", 3), ("grpo", 1), ("grpo", 3)])
def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(
    straight: Outcome, whims: str, tmp_path: Path, phase: str, step: int
) -> None:
    config = small(tmp_path, env=whims)
    kill(config, phase, step)
    resumed(config).assert_same(straight)


@pytest.mark.slow
def test_so_does_one_that_is_killed_again_and_again(straight: Outcome, whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    kill(config, "sft", 3)
    for moment in (("sft", 3), ("grpo", 1), ("grpo", 3), ("grpo", 3)):
        kill(config, *moment, resume=True)
    resumed(config).assert_same(straight)


def test_so_does_one_that_is_killed_between_the_cold_start_and_grpo(
    straight: Outcome, whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path, env=whims)

    def killed(self: GRPOTrainer, when: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "_evaluate_both", killed)
        with pytest.raises(Killed):
            GRPOTrainer(config).train()
    assert checkpoints(tmp_path)[-1].name == "1-grpo-0000000"
    resumed(config).assert_same(straight)


@pytest.mark.slow
def test_so_does_one_in_another_type_of_weights(whims: str, tmp_path: Path) -> None:
    settings: Mapping[str, Any] = {"env": whims, "dtype": "bfloat16", "lora_rank": 2, "steps": 1, "sft_steps": 3}
    whole = run(small(tmp_path / "whole", **settings))
    assert {value.dtype for value in whole.weights.values()} == {torch.float32}  # as `weights` loads them
    kill(small(tmp_path / "killed", **settings), "sft", 3)
    resumed(small(tmp_path / "killed", **settings)).assert_same(whole)


def test_a_cold_start_that_was_done_is_not_gone_on_with(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.trainer, "STAGE_IOU", -1.0)  # each probe ends a stage, the third one the cold start
    settings: Mapping[str, Any] = {"env": whims, "sft_steps": 20, "steps": 1}
    settings |= {"sft_stop_iou": 0.0, "sft_stop_type_iou": 0.0, "sft_stop_format": 0.0}
    done = run(small(tmp_path / "straight", **settings))
    assert [row["stage"] for row in done.metrics if row["phase"] == "sft"] == [0, 0, 1, 1, 2, 2]
    kill(small(tmp_path / "killed", **settings), "grpo", 1)
    resumed(small(tmp_path / "killed", **settings)).assert_same(done)


@pytest.mark.slow
def test_resuming_a_finished_run_gives_its_result_again(straight: Outcome, whims: str, tmp_path: Path) -> None:
    config = small(tmp_path, env=whims)
    run(config)
    resumed(config).assert_same(straight)


# ---------------------------------------------------------------- when the cold start ends


class Pretending(GRPOTrainer):
    """Lets an agent of the test play every evaluation."""

    player: Any = OracleAgent(grid=0.0001)

    def evaluate(self, *given: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self, "_agent", lambda temperature: self.player)
            return super().evaluate(*given, **more)


class Stumbling:
    """The oracle after a bad turn, so that every answer is right and no episode is well formed."""

    def act(self, histories: Sequence[History]) -> list[str]:
        return [truth if history.turns else "hm" for history, truth in zip(histories, OracleAgent().act(histories))]


def stages(folder: Path, player: Any = Pretending.player, **settings: Any) -> list[float]:
    """The stages that the updates of a cold start were of, where every probe is played by `player`."""
    trainer = Pretending(small(folder, **{"sft_steps": 9, "steps": 0, "sft_probe_episodes": 10, **settings}))
    trainer.player = player
    trainer.train()
    return [row["stage"] for row in read_metrics(folder)]


@pytest.mark.parametrize("reward", ["grounding", "image_aware_recon", "tool_gain_recon", "accuracy"])
def test_a_stage_ends_when_its_tasks_are_mastered_whatever_they_are_paid(tmp_path: Path, reward: str) -> None:
    assert stages(tmp_path, reward=reward) == [0, 0, 1, 1, 2, 2]


def test_a_stage_does_not_end_before(tmp_path: Path) -> None:
    assert stages(tmp_path, RandomAgent()) == [0] * 9


@pytest.mark.parametrize(
    ("name", "value"), [("sft_stop_iou", 1.01), ("sft_stop_type_iou", 1.01), ("sft_stop_format", 1.01)]
)
def test_the_cold_start_ends_only_when_every_measure_is_good_enough(tmp_path: Path, name: str, value: float) -> None:
    assert stages(tmp_path, **{name: value}) == [0, 0, 1, 1, 2, 2, 2, 2, 2]


def test_a_turn_that_was_refused_is_not_well_formed(tmp_path: Path) -> None:
    assert stages(tmp_path / "stumbling", Stumbling()) == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert stages(tmp_path / "forgiven", Stumbling(), sft_stop_format=0.0) == [0, 0, 1, 1, 2, 2]


def test_a_probe_comes_every_so_many_updates_and_plays_so_many_episodes(tmp_path: Path) -> None:
    assert stages(tmp_path / "three", sft_probe_every=3) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    played: list[int] = []

    class Counting(Pretending):
        def evaluate(self, episodes: int, *given: Any, **more: Any) -> Any:
            played.append(episodes)
            return super().evaluate(episodes, *given, **more)

    Counting(small(tmp_path / "many", sft_steps=6, steps=0, sft_probe_episodes=70, eval_episodes=3)).train()
    assert played == [64, 64, 70] + [3, 3] * 2  # an early stage is measured on 64 at most


def test_what_is_least_mastered_is_shown_most_after_a_probe(tmp_path: Path) -> None:
    asked: list[Mapping[str, float]] = []

    class Watching(Pretending):
        def _probe(self, cold_start: Any) -> Any:
            real = cold_start.rows

            def rows(stage: int, update: int, skills: Mapping[str, float]) -> Any:
                asked.append(skills)
                return real(stage, update, skills)

            cold_start.rows = rows
            return super()._probe(cold_start)

    Watching(small(tmp_path, sft_steps=8, steps=0, sft_stop_iou=2.0, sft_probe_episodes=7)).train()
    assert asked[-1] == dict.fromkeys(TINY_TYPES, 1.0)  # the oracle's


# ---------------------------------------------------------------- every option matters

BASE: Mapping[str, Any] = {
    **SMALL,
    "sft_steps": 2,
    "steps": 2,
    "eval_every": 0,
    "save_every": 100,
    "sft_probe_every": 100,
    "tools": ("zoom",),
    "instructions": "brief",
    "learning_rate": 3e-2,  # so far that the second update of a step is clipped
    "updates_per_step": 2,
    "recompute_old": True,
    "clip_low": 0.01,
    "clip_high": 0.01,
}
"""Runs in which every option has something to act on."""

SFT_OPTIONS: Mapping[str, Any] = {
    "sft_tasks": 9,
    "sft_rows": 3,
    "sft_steps": 1,
    "sft_learning_rate": 1e-3,
    "sft_weight_decay": 0.5,
    "seed": 1,
    "max_grad_norm": 0.1,
    "instructions": "none",
    "sft_think": "rationale",
}
GRPO_OPTIONS: Mapping[str, Any] = {
    "env": "MultiImageTiny-v0",
    "tasks": ("locate",),
    "world": "sprites",
    "difficulty": 1,
    "tools": (),
    "instructions": "none",
    "box_frame": "unit",
    "max_turns": 1,
    "max_tokens": 3,
    "max_pixels": 56 * 56,
    "start": "",
    "seed": 1,
    "cold_start": True,
    "steps": 3,
    "prompts_per_step": 3,
    "group_size": 3,
    "temperature": 0.5,
    "max_turn_tokens": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.5,
    "warmup": 2,
    "final_learning_rate": 0.9,
    "updates_per_step": 1,
    "loss": "dr_grpo",
    "ratio": "sequence",
    "clip": "cispo",
    "clip_low": 0.3,
    "clip_high": 0.3,
    "normaliser": "sequence",
    "std": "off",
    "beta": 0.5,
    "correction": "token",
    "recompute_old": False,
    "train_vision": False,
    "lora_rank": 2,
    "mask_invalid_actions": True,
    "keep_stops": ("void", "turn_limit"),
    "count_masked": False,
    "divide_by_masked": True,
    "max_grad_norm": 0.1,
}

ELSEWHERE: Mapping[str, str] = {
    "source": "test_photographs_can_be_trained_on",
    "eval_source": "test_a_selection_is_trained_on_and_rendered_tasks_are_held_out",
    "max_images": "test_sft.py: test_no_tool_is_called_where_there_is_none_or_no_budget_or_in_an_earlier_stage",
    "reward": "test_the_reward_is_the_one_asked_for",
    "workers": "test_scenes_made_ahead_in_another_process_change_nothing_but_the_time",
    "output": "test_a_run_writes_its_models_its_figures_and_its_page",
    "device": "test_the_model_is_on_the_device_of_the_configuration",
    "sft_questions": "test_sft.py: test_questions_are_the_most_samples_of_a_row",
    **dict.fromkeys(
        ("sft_zoom", "sft_reflect", "sft_confirm"),
        "test_sft.py: test_the_share_of_a_tool_is_how_often_the_oracle_calls_it_in_the_last_stage",
    ),
    "sft_data": "test_a_cold_start_may_be_on_recorded_episodes_with_new_adapters_after_it",
    "sft_schedule": "test_the_cold_starts_rate_warms_up_and_comes_down_as_its_schedule_says",
    "sft_stop_iou": "test_the_cold_start_ends_only_when_every_measure_is_good_enough",
    "sft_stop_type_iou": "test_the_cold_start_ends_only_when_every_measure_is_good_enough",
    "sft_stop_format": "test_the_cold_start_ends_only_when_every_measure_is_good_enough",
    "sft_probe_every": "test_a_probe_comes_every_so_many_updates_and_plays_so_many_episodes",
    "sft_probe_episodes": "test_a_probe_comes_every_so_many_updates_and_plays_so_many_episodes",
    "kl": "test_config.py: test_the_objective_is_the_preset_with_what_stands_in_for_its_parts",
    "unbiased_kl": "test_config.py: test_the_objective_is_the_preset_with_what_stands_in_for_its_parts",
    "attention": "test_policy.py: test_the_attention_is_the_one_asked_for",
    "gradient_checkpointing": "test_policy.py: test_gradient_checkpointing_makes_layers_run_again_and_changes_nothing",
    "max_drift": "test_update.py: test_a_sampler_that_drifts_from_the_trainer_stops_the_run",
    "parallel": "test_shared_updates.py: test_the_command_runs_on_two_ranks_and_resumes_on_one",
    "lora_alpha": "test_policy.py: test_lora_alpha_is_how_much_adapters_add",
    "correction_cap": "test_config.py: test_the_objective_is_the_preset_with_what_stands_in_for_its_parts",
    "difficulty_part": "test_collect.py: test_advantages_of_hard_groups_weigh_more_by_the_reward_part_that_is_named",
    "rows_per_forward": "test_rows_per_forward_divides_updates_into_passes",
    "dtype": "test_the_type_of_the_weights_is_that_of_the_configuration",
    "kept_gigabytes": "test_kept_gigabytes_are_what_the_sampler_may_keep",
    "refill": "test_a_step_plays_on_while_too_few_groups_vary",
    "constrain_actions": "test_constrained_turns_are_well_formed_and_trained_on_as_they_were_sampled",
    "show_every": "test_every_so_many_steps_some_episodes_are_shown",
    "eval_every": "test_a_run_logs_every_update_and_the_probes_and_evaluations_between",
    "eval_episodes": "test_a_run_writes_its_models_its_figures_and_its_page",
    "save_every": "test_checkpoints_are_saved_every_so_many_updates_and_at_the_end_of_a_phase",
}
"""Options that change something other than weights, and the test that shows it."""


def learned(phase: str, folder: Path, **settings: Any) -> Mapping[str, Any]:
    """The weights after the last update of a phase, with nothing evaluated."""
    config = TrainConfig(**{**BASE, "cold_start": phase == "sft", "output": str(folder), **settings})
    trainer = GRPOTrainer(config, on_step=KillAt(phase, config.sft_steps if phase == "sft" else config.steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_evaluate_both", lambda when: None)
        with pytest.raises(Killed):
            trainer.train()
    state: Mapping[str, Any] = trainer.policy.qwen.model.state_dict()
    return state


@pytest.fixture(scope="module")
def base(whims: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """The weights after the last update, by phase."""
    return {phase: learned(phase, tmp_path_factory.mktemp(phase), env=whims) for phase in ("sft", "grpo")}


@pytest.mark.parametrize(
    ("phase", "option"), [*(("sft", name) for name in SFT_OPTIONS), *(("grpo", name) for name in GRPO_OPTIONS)]
)
def test_an_option_changes_what_is_learned(
    base: Mapping[str, Any], whims: str, tmp_path: Path, phase: str, option: str, make_qwen: Callable[..., QwenVL]
) -> None:
    value = (SFT_OPTIONS if phase == "sft" else GRPO_OPTIONS)[option]
    if option == "start":  # a directory of the test
        value = str(tmp_path / "start")
        save_qwen_vl(make_qwen(), value)
    assert not same(learned(phase, tmp_path / "run", **{"env": whims, option: value}), base[phase])


@pytest.mark.parametrize("phase", ["sft", "grpo"])
def test_the_same_options_learn_the_same(base: Mapping[str, Any], whims: str, tmp_path: Path, phase: str) -> None:
    assert same(learned(phase, tmp_path, env=whims), base[phase])


def test_every_option_has_a_test_that_it_changes_something() -> None:
    assert sorted({*SFT_OPTIONS, *GRPO_OPTIONS, *ELSEWHERE}) == sorted(field.name for field in fields(TrainConfig))
    here = {name: value for name, value in globals().items() if name.startswith("test_")}
    assert [name for name in ELSEWHERE.values() if name not in here and ".py: " not in name] == []


@pytest.mark.parametrize(("reward", "parts"), [("grounding", {"iou", "format"}), ("accuracy", {"accuracy"})])
def test_the_reward_is_the_one_asked_for(tmp_path: Path, reward: str, parts: set[str]) -> None:
    (row,) = run(small(tmp_path, cold_start=False, steps=1, tasks=("locate",), reward=reward)).metrics
    logged = {key.removeprefix("reward/") for key in row if key.startswith("reward/")}
    assert logged == parts | {"total", "deviation"}


def test_rows_per_forward_divides_updates_into_passes(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = rl.update.pack

    def watched(groups: Any, qwen: Any) -> Any:
        rows.append(len(groups))
        return real(groups, qwen)

    monkeypatch.setattr(rl.update, "pack", watched)
    for most, expected in ((0, [3]), (2, [2, 1]), (1, [1, 1, 1])):
        rows.clear()
        config = {"env": whims, "cold_start": False, "steps": 1, "prompts_per_step": 3, "rows_per_forward": most}
        run(small(tmp_path / str(most), **config))
        assert rows == expected


class Twofold:
    """Pays an attempt at an even task by the attempt, at an odd task always the same."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, agent: Any, envs: Any, starts: Sequence[int], **more: Any) -> list[Trajectory]:
        self.asked.append(starts[0])
        played = run_episodes(agent, envs, starts, **more)
        paid = [0.5 if start % 2 else number / 8 for number, start in enumerate(starts)]
        return [replace(t, reward=reward, stop="answered") for t, reward in zip(played, paid, strict=True)]


@pytest.mark.parametrize(("refill", "rounds"), [(0, 1), (1, 2), (9, 2)])
def test_a_step_plays_on_while_too_few_groups_vary(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refill: int, rounds: int
) -> None:
    played = Twofold()
    monkeypatch.setattr(rl.trainer, "run_episodes", played)
    config = {"env": whims, "cold_start": False, "steps": 2, "prompts_per_step": 2, "refill": refill, "eval_every": 0}
    rows = run(small(tmp_path, **config)).metrics
    first = TASKS_PER_SEED
    assert played.asked == [first + 2 * number for number in range(2 * rounds)]  # no task is skipped, none taken twice
    assert [row["mask/groups_dropped"] for row in rows] == [rounds, rounds]


def test_constrained_turns_are_well_formed_and_trained_on_as_they_were_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: set[str | None] = set()
    real = rl.trainer.collect

    def watched(groups: Any, *rest: Any) -> Any:
        errors.update(turn.error for group in groups for trajectory in group for turn in trajectory.turns)
        return real(groups, *rest)

    monkeypatch.setattr(rl.trainer, "collect", watched)
    settings = {"start": "tiny", "steps": 2, "max_turn_tokens": 40, "temperature": 3.0, "eval_every": 0}
    run(small(tmp_path / "free", **settings))
    assert errors - {None, "bad_box"}
    errors.clear()
    rows = run(small(tmp_path / "bound", constrain_actions=True, **settings)).metrics
    assert errors <= {None, "bad_box"}  # a box may still be inverted
    assert all(abs(row["loss/drift"]) < 1e-5 for row in rows)


def test_every_so_many_steps_some_episodes_are_shown(tmp_path: Path) -> None:
    GRPOTrainer(small(tmp_path, start="tiny", max_turn_tokens=24, steps=4, show_every=2, eval_every=0)).train()
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == [
        "grpo-0000002.html",
        "grpo-0000004.html",
    ]


def test_checkpoints_are_saved_every_so_many_updates_and_at_the_end_of_a_phase(
    whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[str, int]] = []
    real = Policy.checkpoint

    def watched(policy: Policy, folder: Path, progress: Any) -> Any:
        saved.append((progress.phase, progress.step))
        return real(policy, folder, progress)

    monkeypatch.setattr(Policy, "checkpoint", watched)
    run(small(tmp_path, env=whims, sft_steps=4, steps=4, save_every=3))
    assert saved == [("sft", 0), ("sft", 3), ("grpo", 0), ("grpo", 3), ("grpo", 4)]


def test_gradients_are_clipped_to_their_longest(whims: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[float] = []
    real = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, most: float) -> Any:
        longest.append(most)
        return real(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    rows = run(small(tmp_path, env=whims, sft_steps=1, steps=1, max_grad_norm=0.25)).metrics
    assert longest == [0.25] * 2
    assert min(row["gradient/norm"] for row in rows) > 0.25  # what is logged is the norm before clipping


# ---------------------------------------------------------------- photographs


def test_photographs_can_be_trained_on(tmp_path: Path, bccd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    real = rl.trainer.evaluate_agent

    def watched(*given: Any, **arguments: Any) -> Any:
        evaluated.append(arguments["source"])
        return real(*given, **arguments)

    monkeypatch.setattr(rl.trainer, "evaluate_agent", watched)
    train = bccd.replace("valid", "train")
    config = small(tmp_path, source=train, eval_source=bccd, sft_steps=1, sft_probe_every=1, steps=1, eval_episodes=3)
    rows = run(config).metrics
    assert [(row["phase"], row["step"]) for row in rows] == [("sft", 1), ("grpo", 1)]
    assert 5 < rows[0]["loss/sft"] < 9
    assert evaluated == [bccd] * 5  # the last stage's probe too is held out
    records = read_records(tmp_path / "after.jsonl")
    assert [record.task_id.startswith("odinw:") for record in records] == [True] * 3
    assert {(view.region[2], view.region[3]) for view in records[0].views} == {(640.0, 480.0)}
