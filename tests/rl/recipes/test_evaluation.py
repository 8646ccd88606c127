"""What a model is worth: the figures of both splits, and its attention to images, as files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agents import OracleAgent, VLMAgent, evaluate_agent
from agents.gaze import attention_by_position, image_attention
from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.report import Report
from agents.types import History
from rl.recipes.evaluation import EvaluateConfig, evaluate
from rl.recipes.rejection import SampleConfig, sample

EPISODES = 21
LOOKED_AT = 12


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """An evaluation of the shipped model, three episodes of each type of the tiny world and split."""
    output = str(tmp_path_factory.mktemp("evaluated"))
    config = EvaluateConfig(output=output, episodes=EPISODES, attention_episodes=LOOKED_AT)
    evaluate(config)
    return config


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """The same episodes, as `evaluate_agent` plays them."""
    agent = VLMAgent.load("tiny", max_tokens=24)
    given: dict[str, Any] = {"episodes": EPISODES, "blind_episodes": 0}
    return {split: evaluate_agent(agent, "MultiImageTiny-v0", split=split, **given) for split in ("test", "test_ood")}


def read(config: EvaluateConfig, name: str = "evaluation.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(config.output, name).read_text())
    return found


def total(config: EvaluateConfig, split: str = "test") -> dict[str, Any]:
    """The row of all types."""
    found: dict[str, Any] = read(config)[split]["all"]
    return found


def changed(config: EvaluateConfig, folder: Path, **given: Any) -> EvaluateConfig:
    """Evaluates with some other settings, in another folder."""
    other = replace(config, output=str(folder / "other"), **{"attention_episodes": 0, **given})
    evaluate(other)
    return other


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("split", ["test", "test_ood"])
def test_each_split_has_a_row_per_type_of_the_world_and_one_of_all(
    evaluated: EvaluateConfig, reports: dict[str, Report], split: str
) -> None:
    report, found = reports[split], read(evaluated)[split]
    types = ["locate", "referring", "static_difference", "odd_one_out", "group_grounding", "odd_one_out_qa", "counting"]
    assert list(found["rows"]) == types
    whole = {name: value for name, value in found["all"].items() if not name.endswith("_call")}
    for row, figures in [(report.all, whole), *((row, found["rows"][row.name]) for row in report.rows)]:
        assert figures == {
            "episodes": row.episodes,
            "score": row.score.mean,
            "success": row.success,
            "reward": row.reward.mean,
            "reward_parts": dict(row.reward_parts),
            "tool_calls": {},  # it has no tools
            "turns": row.turns,
        }
    assert found["all"]["episodes"] == EPISODES


def test_the_splits_are_played_with_tasks_of_their_own(evaluated: EvaluateConfig) -> None:
    assert set(read(evaluated)) == {"test", "test_ood"}
    assert total(evaluated, "test") != total(evaluated, "test_ood")


def test_what_is_returned_is_what_is_written_and_it_is_the_same_every_time(
    evaluated: EvaluateConfig, tmp_path: Path
) -> None:
    again = replace(evaluated, output=str(tmp_path))
    found = evaluate(again)
    assert found == read(again)
    for name in ("evaluation.json", "attention.json"):
        assert (tmp_path / name).read_bytes() == Path(evaluated.output, name).read_bytes()


def test_reward_parts_are_those_of_the_reward_that_is_asked_for(evaluated: EvaluateConfig, tmp_path: Path) -> None:
    assert set(total(evaluated)["reward_parts"]) == {"iou", "answer", "format"}
    dual = changed(evaluated, tmp_path, reward="image_aware_recon", tasks=("group_grounding",), episodes=4)
    row = read(dual)["test"]["rows"]["group_grounding"]
    assert set(row["reward_parts"]) == {"iou", "image", "format"}
    assert row["episodes"] == 4


class Misled(OracleAgent):
    """Looks again in half of the episodes, and is wrong where it did."""

    def act(self, histories: Sequence[History]) -> list[str]:
        turns = zip(histories, super().act(histories))
        return ["<answer>none</answer>" if history.turns else turn for history, turn in turns]


@pytest.mark.parametrize(
    ("agent", "tools", "calls", "right"),
    [
        (OracleAgent(reflect=1.0), ("zoom", "visual_reflection"), [0.0, 1.0], {"with": 1.0}),
        (OracleAgent(zoom=1.0), ("zoom", "visual_reflection"), [1.0, 0.0], {"with": 1.0}),
        (OracleAgent(), ("zoom",), [0.0], {"without": 1.0}),
        (Misled(reflect=0.5), ("visual_reflection",), [14 / EPISODES], {"with": 0.0, "without": 1.0}),
    ],
    ids=["looks again", "zooms", "calls none", "misled"],
)
def test_tool_calls_are_counted_per_episode_and_tool_and_what_comes_of_them(
    evaluated: EvaluateConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    agent: OracleAgent,
    tools: tuple[str, ...],
    calls: list[float],
    right: dict[str, float],
) -> None:
    monkeypatch.setattr("agents.by_name.agent_by_name", lambda *_, **__: agent)
    row = total(changed(evaluated, tmp_path, env="MultiImageTinyZoom-v0", tools=tools))
    assert row["tool_calls"] == dict(zip(tools, calls, strict=True))
    assert row["turns"] == pytest.approx(1 + sum(calls))
    shares = {name.removeprefix("success_"): share for name, share in row.items() if name.endswith("_call")}
    assert shares == {f"{name}_call": share for name, share in right.items()}


# ---------------------------------------------------------------- settings


def test_sampling_is_greedy_unless_it_is_warm_and_then_the_seed_decides(
    evaluated: EvaluateConfig, tmp_path: Path
) -> None:
    def score(**given: Any) -> Any:
        return read(changed(evaluated, tmp_path, **given))["test"]

    greedy = read(evaluated)["test"]
    assert score(seed=1) == greedy
    assert score(temperature=1.0) == score(temperature=1.0)
    assert greedy != score(temperature=1.0) != score(temperature=1.0, seed=1)


def test_how_many_play_at_a_time_changes_nothing(evaluated: EvaluateConfig, tmp_path: Path) -> None:
    assert read(changed(evaluated, tmp_path, parallel=2)) == read(evaluated)


def test_the_model_is_the_one_that_is_asked_for(
    evaluated: EvaluateConfig, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    save_qwen_vl(make_qwen(), str(tmp_path / "fresh"))
    assert total(evaluated)["success"] > 0
    assert total(changed(evaluated, tmp_path, start=str(tmp_path / "fresh")))["success"] == 0


def test_turns_are_cut_at_their_length(evaluated: EvaluateConfig, tmp_path: Path) -> None:
    assert total(evaluated)["reward_parts"]["format"] > 0.5
    assert total(changed(evaluated, tmp_path, max_turn_tokens=3))["reward_parts"]["format"] == 0


def test_under_the_turn_grammar_even_unknown_wordings_get_turns_that_parse(
    evaluated: EvaluateConfig, tmp_path: Path
) -> None:
    constrained = changed(evaluated, tmp_path, constrain_actions=True)
    assert (
        total(constrained, "test_ood")["reward_parts"]["format"]
        > total(evaluated, "test_ood")["reward_parts"]["format"]
    )


def test_a_source_of_ones_own_has_no_splits_unless_the_evaluation_is_rendered(
    evaluated: EvaluateConfig, tmp_path: Path
) -> None:
    picked = SampleConfig(agent="oracle", output=str(tmp_path), gives="tasks", count=3, attempts=1, tasks=("counting",))
    sample(picked)
    source = f"selected:{tmp_path}/tasks.jsonl"
    own = changed(evaluated, tmp_path, source=source)
    assert set(read(own)) == {"test"}
    assert {name: row["episodes"] for name, row in read(own)["test"]["rows"].items()} == {"counting": 3}
    rendered = changed(evaluated, tmp_path, source=source, eval_source="rendered")
    assert read(rendered) == read(evaluated)


# ---------------------------------------------------------------- attention


def test_attention_is_that_of_the_first_held_out_episodes(
    evaluated: EvaluateConfig, reports: dict[str, Report]
) -> None:
    qwen = VLMAgent.load("tiny").sampler.qwen
    curve = asdict(attention_by_position(image_attention(qwen, reports["test"].trajectories[:LOOKED_AT])))
    found = read(evaluated, "attention.json")
    assert found == json.loads(json.dumps(curve))
    assert found["episodes"] == LOOKED_AT
    assert found["positions"] == list(range(len(found["share"]))) and len(found["error"]) == len(found["share"]) > 5
    assert all(0 < share < 1 for share in found["share"])


def test_attention_is_not_measured_where_no_episode_is_asked_for(evaluated: EvaluateConfig, tmp_path: Path) -> None:
    other = changed(evaluated, tmp_path)
    assert {path.name for path in Path(other.output).iterdir()} == {"evaluation.json"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"episodes": 0}, "episodes 0: at least 1"),
        ({"attention_episodes": -1}, "attention_episodes -1: at least 0"),
        ({"max_turn_tokens": 0}, "max_turn_tokens 0: at least 1"),
        ({"parallel": 0}, "parallel 0: at least 1"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        EvaluateConfig(**given)
