"""Evaluation: the numbers against hand computations, the files against what was played, and the command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import agents
from agents.evaluate import evaluate_agent, main, turn_text
from agents.oracle import OracleAgent
from agents.report import Estimate, Report, evenly, score, summarise
from agents.table import print_report
from agents.types import Action, History
from mimgenv import default_codec, load_task
from mimgenv.curriculum import Curriculum
from mimgenv.errors import ConfigurationError
from mimgenv.records import EpisodeRecord, EpisodeTurn, read_records
from mimgenv.tasks.rendered import GROUNDING_TYPES, TINY_TYPES, RenderedTasks
from mimgenv.types import Answer, Grounding, Task, TextAnswer
from mimgenv.viewer import view_image

TINY, ZOOM = "MultiImageTiny-v0", "MultiImageTinyZoom-v0"
TRUTH = Grounding(2, "red mug", (0.0, 0.0, 10.0, 10.0))


def record(
    prediction: Answer | None = None,
    *,
    truth: Answer = TRUTH,
    task_type: str = "referring",
    task_id: str = "t",
    turns: int = 1,
    reward: float = 0.0,
    tools: Sequence[str] = (),
    **parts: float,
) -> EpisodeRecord:
    played = tuple(EpisodeTurn("m", "a", None, 0) for _ in range(turns))
    common = {"task_id": task_id, "agent": "a", "question": "q", "stop": "answered", "views": (), "success": reward > 1}
    return EpisodeRecord(
        task_type=task_type,
        turns=played,
        reward=reward,
        reward_parts=parts,
        tool_calls=tuple(tools),
        truth=truth,
        prediction=prediction,
        **common,  # type: ignore[arg-type]
    )


class Sometimes:
    """Plays the truth on tasks of an even number, and nonsense on the others."""

    def act(self, histories: Sequence[History]) -> list[str]:
        return [OracleAgent().act([h])[0] if int(h.task_id[-1]) % 2 == 0 else "nonsense" for h in histories]


class Looks:
    """Plays the truth where it sees something, and nonsense where all is one colour; keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bool]] = []

    def act(self, histories: Sequence[History]) -> list[str]:
        sees = [any(image.std() > 0 for image in history.message.images) for history in histories]
        self.shown += [(history.task_id, seen) for history, seen in zip(histories, sees, strict=True)]
        return [OracleAgent().act([h])[0] if seen else "nonsense" for h, seen in zip(histories, sees, strict=True)]


class Script:
    """The given turns, then the truth."""

    def __init__(self, *script: str) -> None:
        self.script = script

    def act(self, histories: Sequence[History]) -> list[str]:
        return [[*self.script, OracleAgent().act([history])[0]][len(history.turns)] for history in histories]


class Three:
    """A finite source: three rendered tasks."""

    def __init__(self) -> None:
        self.tasks = RenderedTasks("tiny", ("referring",), "val")
        self.task_types = self.tasks.task_types

    def __len__(self) -> int:
        return 3

    def task(self, seed: int) -> Task:
        return self.tasks.task(seed % 3)


def call(name: str, arguments: str) -> str:
    return f'<think>t</think><tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


# Statistics


def test_an_estimate_is_the_mean_and_1_96_standard_errors() -> None:
    estimate = Estimate.of([0.0, 1.0, 1.0, 1.0])
    # Squared deviations 0.5625 + 3 · 0.0625 = 0.75, over n - 1 = 3: s = 0.5; 1.96 · 0.5 / √4.
    assert (estimate.mean, estimate.half_width) == pytest.approx((0.75, 0.49))


def test_nothing_is_known_of_the_spread_of_one_episode() -> None:
    assert math.isnan(Estimate.of([0.5]).half_width)


def test_about_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    estimates = [Estimate.of(list(rng.random(50))) for _ in range(1000)]
    assert 925 <= sum(abs(estimate.mean - 0.5) <= estimate.half_width for estimate in estimates) <= 970


def test_a_score_is_iou_in_the_right_image_or_an_exact_match() -> None:
    half = Grounding(2, "", (0.0, 0.0, 10.0, 5.0))
    elsewhere = Grounding(1, "", TRUTH.box)
    assert [score(record(p)) for p in (TRUTH, half, elsewhere, TextAnswer("2"), None)] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert [score(record(TextAnswer(t), truth=TextAnswer("Two"))) for t in ("two.", "three")] == [1.0, 0.0]


def test_a_row_is_the_means_over_its_episodes() -> None:
    half = Grounding(2, "", (0.0, 0.0, 10.0, 5.0))
    episodes = [
        record(TRUTH, turns=3, reward=1.5, tools=("zoom", "zoom"), iou=1.0, format=1.0),
        record(half, turns=1, reward=0.5, tools=("visual_reflection",), iou=0.5, format=0.0),
        record(None, turns=2, reward=0.1, format=0.0),
    ]
    row = summarise("some", episodes)
    assert (row.name, row.episodes, row.turns) == ("some", 3, 2.0)
    assert row.success == row.format == pytest.approx(1 / 3)
    # Scores 1, 0.5, 0: s = 0.5. Rewards 1.5, 0.5, 0.1: mean 0.7, s² = (0.64 + 0.04 + 0.36) / 2 = 0.52.
    assert (row.score.mean, row.score.half_width) == pytest.approx((0.5, 1.96 * 0.5 / math.sqrt(3)))
    assert (row.reward.mean, row.reward.half_width) == pytest.approx((0.7, 1.96 * math.sqrt(0.52 / 3)))
    assert row.reward_parts == {"iou": 0.75, "format": pytest.approx(1 / 3)}
    assert row.tool_calls == {"visual_reflection": pytest.approx(1 / 3), "zoom": pytest.approx(2 / 3)}


def test_a_reward_without_a_format_part_has_no_format_rate() -> None:
    assert summarise("x", [record(TRUTH, iou=1.0)]).format is None


def test_what_an_agent_sees_is_the_mean_of_score_minus_blank_score_over_the_tasks_played_both_ways() -> None:
    half = Grounding(2, "", (0.0, 0.0, 10.0, 5.0))
    seeing = [record(TRUTH, task_id="a"), record(half, task_id="b"), record(TRUTH, task_id="c")]
    blank = [record(None, task_id="b"), record(TRUTH, task_id="z"), record(half, task_id="a")]
    # 1 - 0.5 and 0.5 - 0 for a and b; c and z were played one way only.
    assert summarise("x", seeing, blank).sees == Estimate(0.5, 0.0)
    # 1 - 0 and 0.5 - 0.5: mean 0.5, s² = 0.5, 1.96 · √(0.5 / 2).
    sees = summarise("x", seeing, [record(None, task_id="a"), record(half, task_id="b")]).sees
    assert sees is not None
    assert (sees.mean, sees.half_width) == pytest.approx((0.5, 0.98))
    assert summarise("x", seeing, blank[1:2]).sees is summarise("x", seeing).sees is None


def test_a_page_shows_every_task_type_equally_as_far_as_it_goes() -> None:
    names = ["a", "a", "a", "b", "a", "b"]
    assert evenly(names, 2) == [0, 3]
    assert evenly(names, 5) == [0, 1, 2, 3, 5]
    assert evenly(names, 60) == [0, 1, 2, 3, 4, 5]


# Playing


@pytest.fixture(scope="module")
def oracles() -> Report:
    return evaluate_agent(OracleAgent(), TINY, 14, parallel=4, name="truth")


def test_the_oracle_has_a_perfect_row_for_every_task_type(oracles: Report) -> None:
    assert [row.name for row in oracles.rows] == list(TINY_TYPES)
    for row in oracles.rows:
        assert (row.episodes, row.success, row.format, row.turns) == (2, 1.0, 1.0, 1.0)
        assert (row.score, row.reward) == (Estimate(1.0, 0.0), Estimate(1.5, 0.0))


def test_groups_are_scored_by_iou_by_exact_match_and_all(oracles: Report) -> None:
    groups = [oracles.grounding, oracles.qa, oracles.all]
    assert [(row.name, row.episodes) for row in groups if row] == [("grounding", 10), ("qa", 4), ("all", 14)]
    only_qa = evaluate_agent(OracleAgent(), TINY, 2, tasks="qa")
    assert only_qa.grounding is None
    assert only_qa.qa is not None


def test_metrics_have_a_key_for_every_number_and_take_a_prefix(oracles: Report) -> None:
    metrics = oracles.metrics("test/")
    assert metrics == {f"test/{key}": value for key, value in oracles.metrics().items()}
    assert metrics.pop("test/reward/total") == 1.5
    assert metrics.pop("test/episode/tool_calls") == 0.0
    scores = {f"test/{'iou' if name in GROUNDING_TYPES else 'answer'}/{name}" for name in TINY_TYPES}
    whole = {"reward/iou", "reward/answer", "reward/format", "episode/turns", "episode/success"}
    sees = {f"test/sees/{name}" for name in ("all", *TINY_TYPES)}
    assert {metrics.pop(key) for key in sees} == {0.0}
    assert metrics == dict.fromkeys(scores | {f"test/{key}" for key in whole}, 1.0)


def test_means_and_half_widths_are_those_of_the_episodes_played() -> None:
    report = evaluate_agent(Sometimes(), TINY, 8, tasks="qa")
    # Half right: s² = 8 · 0.25 / 7.
    assert report.all.score.mean == report.all.success == report.all.reward_parts["format"] == 0.5
    assert report.all.score.half_width == pytest.approx(1.96 * math.sqrt(2 / 7 / 8))
    assert report.all.reward.mean == 0.75
    assert report.all.turns == 1.5
    assert [r.stop for r in report.records] == ["answered", "void"] * 4


def test_the_score_does_not_hang_on_the_reward() -> None:
    report = evaluate_agent(OracleAgent(), TINY, 2, tasks=("referring",), reward="accuracy")
    assert report.all.score.mean == report.all.reward.mean == report.metrics()["iou/referring"] == 1.0
    assert report.all.format is None
    assert set(report.all.reward_parts) == {"accuracy"}


def test_seeds_are_those_of_the_split_from_the_first_on() -> None:
    def numbers(**arguments: Any) -> list[str]:
        report = evaluate_agent(OracleAgent(), TINY, 2, tasks=("locate",), **arguments)
        return [r.task_id.partition("any/")[2] for r in report.records]

    assert numbers() == ["test/0", "test/1"]
    assert numbers(first_seed=7) == ["test/7", "test/8"]
    assert numbers(split="val") == ["val/0", "val/1"]


def test_a_finite_source_is_played_once_through_and_no_further() -> None:
    report = evaluate_agent(OracleAgent(), TINY, 10, source=Three())
    assert [r.task_id[-5:] for r in report.records] == ["val/0", "val/1", "val/2"]


def test_a_source_is_opened_once_however_many_environments_play(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Counted(RenderedTasks):
        def __init__(self, *arguments: Any) -> None:
            opened.append("once")
            super().__init__(*arguments)

    monkeypatch.setattr("mimgenv.tasks.registry.RenderedTasks", Counted)
    evaluate_agent(OracleAgent(), TINY, 8, parallel=8)
    assert opened == ["once"]


def test_records_are_in_the_order_of_the_seeds_and_each_finished_one_is_announced() -> None:
    announced: list[EpisodeRecord] = []
    report = evaluate_agent(Sometimes(), TINY, 5, parallel=2, blind_episodes=2, on_finish=announced.append)
    assert [r.task_id[-1] for r in report.records] == list("01234")
    assert [r.task_id for r in report.records] == [t.task_id for t in report.trajectories]
    assert sorted(announced[:5], key=lambda r: r.task_id[-1]) == list(report.records) != announced[:5]
    assert sorted(announced[5:], key=lambda r: r.task_id[-1]) == list(report.blank)


def test_a_record_holds_the_question_the_truth_the_answer_and_what_was_said() -> None:
    (played,) = evaluate_agent(Script("nonsense"), TINY, 1, tasks=("referring",), name="me").records
    task = load_task(played.task_id)
    assert (played.agent, played.question, played.truth, played.prediction) == (
        "me",
        task.question,
        task.truth,
        task.truth,
    )
    assert [turn.error for turn in played.turns] == ["bad_turn", None]
    assert [turn.images for turn in played.turns] == [len(task.images), 0]
    assert played.turns[0].action == "nonsense"
    assert played.turns[1].action.startswith("<think>")
    assert played.turns[1].action.endswith("</answer>")


def test_an_agent_without_a_name_is_called_after_its_class() -> None:
    assert evaluate_agent(OracleAgent(), TINY, 1).records[0].agent == "OracleAgent"


def test_the_views_of_a_record_make_the_images_again_crops_included() -> None:
    report = evaluate_agent(OracleAgent(zoom=1.0), ZOOM, 2)
    for shown in report.episodes:
        task = load_task(shown.record.task_id)
        assert len(shown.images) == len(task.images) + 1
        for view, pixels in zip(shown.record.views, shown.images, strict=True):
            np.testing.assert_array_equal(view_image(task.images, view), pixels)


def test_images_are_not_held_twice(oracles: Report) -> None:
    for shown, trajectory in zip(oracles.episodes, oracles.trajectories, strict=True):
        assert all(a is b for a, b in zip(shown.images, trajectory.images, strict=True))


def test_every_task_is_played_again_with_blank_images_and_an_agent_that_looks_loses_by_it() -> None:
    agent = Looks()
    report = evaluate_agent(agent, TINY, 14, name="eye")
    tasks = [r.task_id for r in report.records]
    assert [task for task, seen in agent.shown if seen] == tasks
    assert set(agent.shown) - {(task, True) for task in tasks} == {(task, False) for task in tasks}
    assert [r.task_id for r in report.blank] == tasks
    assert [row.sees for row in (report.all, *report.rows)] == [Estimate(1.0, 0.0)] * (1 + len(TINY_TYPES))
    assert report.metrics("x/")["x/sees/locate"] == 1.0
    assert {r.agent for r in report.records} == {"eye"}
    assert {r.agent for r in report.blank} == {"eye (blank images)"}


def test_what_is_played_with_blank_images_changes_nothing_else() -> None:
    with_blank, without = (evaluate_agent(Looks(), TINY, 14, blind_episodes=n) for n in (14, 0))
    assert with_blank.records == without.records
    assert {k: v for k, v in with_blank.metrics().items() if not k.startswith("sees/")} == without.metrics()


def test_blind_episodes_are_the_first_ones_and_none_where_there_are_to_be_none() -> None:
    agent = Looks()
    report = evaluate_agent(agent, TINY, 7, blind_episodes=2)
    assert [r.task_id for r in report.blank] == [r.task_id for r in report.records[:2]]
    assert [row.sees is not None for row in report.rows] == [True, True, *[False] * 5]
    agent.shown.clear()
    report = evaluate_agent(agent, TINY, 7, blind_episodes=0)
    assert all(seen for _, seen in agent.shown)
    assert (report.blank, report.all.sees) == ((), None)
    assert not [key for key in report.metrics() if key.startswith("sees/")]


def test_a_curriculum_learns_nothing_from_blank_episodes() -> None:
    curriculum = Curriculum(window=8)
    report = evaluate_agent(Looks(), "MultiImageQA-v0", 8, world="tiny", tasks=("locate",), difficulty=curriculum)
    assert curriculum.levels == {"locate": 2}
    assert [r.task_id for r in report.blank] == [r.task_id for r in report.records]


def test_tool_calls_are_counted_by_tool_and_a_tool_never_called_has_none() -> None:
    report = evaluate_agent(OracleAgent(zoom=1.0), ZOOM, 2, tools=("zoom", "visual_reflection"))
    assert report.all.tool_calls == {"zoom": 1.0}
    metrics = report.metrics()
    assert (metrics["tool/zoom"], metrics["tool/visual_reflection"], metrics["episode/tool_calls"]) == (1.0, 0.0, 1.0)


def test_a_call_that_was_refused_is_no_tool_use() -> None:
    beyond = call("zoom", '{"image": 99, "bbox_2d": [0, 0, 9, 9]}')
    (played,) = evaluate_agent(Script(beyond, call("saw", "{}")), ZOOM, 1, max_turns=3, max_tokens=256).records
    assert [turn.error for turn in played.turns] == ["bad_image_index", "unknown_tool", None]
    assert played.tool_calls == ()


def test_the_text_of_a_turn_has_no_end_token_and_survives_ids_that_are_no_tokens() -> None:
    codec = default_codec()
    ids = codec.encode_turn("<think>a</think>")
    assert turn_text(codec, Action(ids)) == "<think>a</think>"
    assert turn_text(codec, Action((-1, *ids[:-1], codec.vocab_size))) == "<think>a</think>"
    assert turn_text(codec, Action(())) == ""


def test_no_episodes_and_environments_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes is 0"):
        evaluate_agent(OracleAgent(), TINY, 0)
    with pytest.raises(ValueError, match="blind_episodes is -1"):
        evaluate_agent(OracleAgent(), TINY, 1, blind_episodes=-1)
    with pytest.raises(ConfigurationError, match="CartPole-v1 cannot be made"):
        evaluate_agent(OracleAgent(), "CartPole-v1", 1)
    gym.register("Anything-v0", entry_point=lambda **arguments: gym.make("CartPole-v1").unwrapped)
    with pytest.raises(ConfigurationError, match="CartPoleEnv is not a MultiImageEnv"):
        evaluate_agent(OracleAgent(), "Anything-v0", 1)


# Files


def test_all_records_are_written_and_read_back_as_they_were(oracles: Report, tmp_path: Path) -> None:
    records, page, blank = oracles.write(tmp_path / "new" / "folder", page=3)
    assert len(records.read_text().splitlines()) == 14
    assert read_records(records) == list(oracles.records)
    assert read_records(blank) == list(oracles.blank)
    assert page.read_text("utf-8").count('"taskId":') == 3
    assert summarise("all", read_records(records), read_records(blank)) == oracles.all


def test_records_of_blank_episodes_do_not_outlive_the_evaluation_they_belong_to(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text("of another evaluation")
    files = evaluate_agent(OracleAgent(), TINY, 1, blind_episodes=0).write(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert len(files) == 2


# The command line


def play(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[list[EpisodeRecord], str]:
    options = ["--env", TINY, "--agent", "oracle", "--episodes", "4", "--output", str(folder), *arguments]
    main(options)
    return read_records(folder / "episodes.jsonl"), capsys.readouterr().out


def test_the_command_line_prints_a_row_per_task_type_and_group_and_where_the_files_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records, out = play(capsys, tmp_path, "--episodes", "14")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    perfect = ["1.000±0.000", "0.000±0.000", "1.000", "1.500", "1.000", "1.00"]
    for name in TINY_TYPES:
        assert rows[name] == ["2", *perfect]
    assert [rows[name][0] for name in ("grounding", "qa", "all")] == ["10", "4", "14"]
    assert str(tmp_path / "episodes.jsonl") in rows
    assert str(tmp_path / "blank.jsonl") in rows
    assert max(map(len, out.splitlines()[:-3])) <= 80
    assert (tmp_path / "episodes.html").is_file()
    assert {r.agent for r in records} == {"oracle"}
    assert "…" not in out


def test_the_command_line_prints_the_use_of_each_tool(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records, out = play(capsys, tmp_path, "--env", ZOOM, "--zoom", "1", "--tools", "zoom,visual_reflection")
    assert {r.tool_calls for r in records} == {("zoom",)}
    rows = [line.split() for line in out.splitlines()]
    assert ["zoom", "1.000", "100.0%"] in rows
    assert ["visual_reflection", "0.000", "0.0%"] in rows


def test_the_table_fits_80_columns_with_the_longest_names_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    told = [record(None, task_type="visual_correspondence", task_id=str(n), reward=-0.5, format=0.5) for n in range(9)]
    seen = [record(TRUTH if n % 2 else None, task_id=str(n)) for n in range(9)]
    report = Report("x", tuple(told) * 1111, (None,) * 9999, (), tuple(seen))  # type: ignore[arg-type]
    print_report(report, "title", [])
    out = capsys.readouterr().out
    assert "visual_correspondence 9999 0.000±0.000 -0.444±0.010" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_the_column_sees_is_empty_without_blank_episodes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out = play(capsys, tmp_path, "--blind_episodes", "0")
    rows = [line.split() for line in out.splitlines()]
    assert ["all", "4", "1.000±0.000", "1.000", "1.500", "1.000", "1.00"] in rows
    assert not (tmp_path / "blank.jsonl").exists()
    play(capsys, tmp_path, "--blind_episodes", "3")
    assert len(read_records(tmp_path / "blank.jsonl")) == 3


def test_a_single_episode_has_no_interval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out = play(capsys, tmp_path, "--episodes", "1")
    assert "1.000" in out
    assert "±" not in out.partition("score: IoU")[0]
    assert "nan" not in out


def test_options_reach_the_environment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def ids(*arguments: str) -> list[str]:
        return [r.task_id.removeprefix("rendered:tiny/") for r in play(capsys, tmp_path, *arguments)[0]]

    assert ids("--tasks", "counting,locate", "--episodes", "2") == ["counting/any/test/0", "locate/any/test/1"]
    assert ids("--tasks", "qa", "--episodes", "1") == ["odd_one_out_qa/any/test/0"]
    assert ids("--difficulty", "4", "--episodes", "1") == ["locate/4/test/0"]
    assert ids("--split", "val", "--first_seed", "7", "--episodes", "1") == ["locate/any/val/7"]
    assert ids("--env", ZOOM, "--tools", "", "--episodes", "1") == ["referring/4/test/0"]


def test_the_box_frame_and_the_grid_show_in_what_is_answered(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def answer(*arguments: str) -> str:
        return play(capsys, tmp_path, "--tasks", "referring", "--episodes", "1", *arguments)[0][0].turns[0].action

    assert answer() != answer("--box_frame", "norm1000") != answer("--box_frame", "norm1000", "--grid", "50")


def test_max_pixels_shows_images_smaller(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (first, *_), _ = play(capsys, tmp_path, "--max_pixels", "3136")
    assert {(view.width, view.height) for view in first.views} == {(56, 56)}


def test_the_seed_decides_which_episodes_the_oracle_zooms_in(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def zoomed(seed: str) -> list[int]:
        options = ("--env", ZOOM, "--zoom", "0.5", "--episodes", "20", "--seed", seed)
        return [len(r.tool_calls) for r in play(capsys, tmp_path, *options)[0]]

    assert zoomed("0") == zoomed("0") != zoomed("1")


def test_parallel_is_the_most_episodes_under_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    act = OracleAgent.act

    def counted(self: OracleAgent, histories: Sequence[History]) -> list[str]:
        counts.append(len(histories))
        return act(self, histories)

    monkeypatch.setattr(OracleAgent, "act", counted)
    play(capsys, tmp_path, "--parallel", "3", "--blind_episodes", "0")
    assert counts == [3, 1]


def test_the_random_agent_plays_with_the_tools_of_the_environment_and_its_own_seed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def turns(*arguments: str) -> list[str]:
        records, _ = play(capsys, tmp_path, "--agent", "random", "--env", ZOOM, *arguments)
        return [turn.action for r in records for turn in r.turns]

    assert turns() == turns() != turns("--seed", "1")
    assert any("zoom" in turn for turn in turns())
    assert not any("zoom" in turn for turn in turns("--tools", ""))


def test_a_model_is_loaded_with_what_the_command_line_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> OracleAgent:
        loaded.append((name, options))
        return OracleAgent()

    monkeypatch.setattr("agents.vlm.VLMAgent.load", load)
    monkeypatch.chdir(tmp_path)
    given = ["--temperature", "0.5", "--max_tokens", "9", "--device", "cuda", "--dtype", "bfloat16", "--seed", "3"]
    main(["--env", TINY, "--agent", "vlm:some/model", "--episodes", "1", *given])
    main(["--env", TINY, "--agent", "vlm:tiny", "--episodes", "1"])
    usual = {"temperature": 0.0, "max_tokens": 256, "device": "cpu", "dtype": "float32", "seed": 0}
    chosen = {"temperature": 0.5, "max_tokens": 9, "device": "cuda", "dtype": "bfloat16", "seed": 3}
    assert loaded == [("some/model", chosen), ("tiny", usual)]
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert folders == ["evaluate-vlm-model-MultiImageTiny-v0", "evaluate-vlm-tiny-MultiImageTiny-v0"]


def test_a_model_plays_legal_turns_only_where_it_is_constrained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--env", ZOOM, "--agent", "vlm:tiny", "--temperature", "4", "--max_tokens", "64", "--episodes", "5")

    def errors(*more: str) -> set[str | None]:
        records, _ = play(capsys, tmp_path, *options, *more)
        return {turn.error for record in records for turn in record.turns}

    assert errors("--constrain") <= {None, "bad_box"}
    assert errors() - {None, "bad_box"}


def test_photographs_are_played_from_a_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = Path(os.environ.get("MIMGENV_DATA", ""), "odinw", "BCCD", "valid")
    if "MIMGENV_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("MIMGENV_DATA names no folder that holds odinw/BCCD/valid")
    options = ("--env", "MultiImageGrounding-v0", "--source", f"odinw:{folder}", "--episodes", "6")
    records, out = play(capsys, tmp_path, *options)
    assert {r.task_id.partition(":")[0] for r in records} == {"odinw"}
    assert [line for line in out.splitlines() if line.split()[:3] == ["all", "6", "1.000±0.000"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "magic"], "agent 'magic' is not one of random, oracle, oracle:THOUGHTS, blind:NAME, vlm:PATH"),
        (["--agent", "vlm:"], "agent 'vlm:' is not one of"),
        (["--agent", "blind:magic"], "blind policy 'magic' is not one of ['whole_image', "),
        (["--agent", "vlm:./no/such/model"], "no/such/model is not a directory"),
        (["--agent", "vlm:tiny", "--constrain", "--max_tokens", "5"], "tokens, a turn 5"),
        (["--env", "Nowhere-v0"], "`Nowhere` doesn't exist"),
        (["--env", "CartPole-v1"], "CartPole-v1 cannot be made"),
        (["--source", "odinw:/no/such/folder"], "/no/such/folder"),
        (["--source", "magic:/x"], "source 'magic:/x'"),
        (["--source", "odinw:/x", "--difficulty", "2"], "--difficulty is for rendered tasks"),
        (["--source", "odinw:/x", "--split", "val"], "--split is for rendered tasks"),
        (["--tasks", "magic"], "task types ['magic']"),
        (["--tools", "magic"], "tool 'magic'"),
        (["--split", "magic"], "split 'magic'"),
        (["--zoom", "0.5"], "has no zoom tool"),
        (["--zoom", "2"], "zoom 2.0 must be in [0, 1]"),
        (["--grid", "0"], "grid 0.0 above 0"),
        (["--episodes", "0"], "'0' is not at least 1"),
        (["--blind_episodes", "x"], "'x' is not a whole number from 0"),
        (["--seed", "x"], "'x' is not a whole number from 0"),
        (["--first_seed", "-1"], "'-1' is not a whole number from 0"),
        (["--output", "/dev/null/folder"], "/dev/null/folder"),
        (["--magic"], "unrecognized arguments: --magic"),
    ],
)
def test_what_the_caller_does_wrong_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    usual = ["--env", TINY, "--agent", "oracle", "--episodes", "1", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([*usual, *arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_model_that_cannot_go_to_the_device_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **options: Any) -> OracleAgent:
        raise AssertionError("Torch not compiled\nwith CUDA enabled")

    monkeypatch.setattr("agents.vlm.VLMAgent.load", load)
    with pytest.raises(SystemExit):
        main(["--env", TINY, "--agent", "vlm:tiny"])
    assert capsys.readouterr().err.endswith("vlm:tiny cannot be loaded: Torch not compiled with CUDA enabled\n")


# The package


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_running_the_module_warns_of_nothing() -> None:
    assert "Warning" not in python("-W", "error", "-m", "agents.evaluate", "--help")


def test_importing_agents_and_evaluating_pull_in_no_torch_and_no_transformers() -> None:
    script = (
        "import sys, agents; from agents import OracleAgent, VLMAgent, evaluate_agent, run_episodes;"
        f"evaluate_agent(OracleAgent(), '{TINY}', 1);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert python("-c", script) == "[]\n"


def test_every_exported_name_is_there_and_no_other() -> None:
    for name in agents.__all__:
        assert getattr(agents, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = agents.magic
