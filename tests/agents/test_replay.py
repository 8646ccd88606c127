"""The replay: recorded episodes come out as they were played, and never as an answer to something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.evaluate import evaluate_agent
from agents.oracle import OracleAgent
from agents.replay import ReplayAgent
from agents.report import Report
from agents.rollout import run_episodes
from agents.types import History, Trajectory
from mimgenv.errors import ConfigurationError
from mimgenv.records import EpisodeRecord, read_records, write_records

ZOOM = "MultiImageTinyZoom-v0"
TOLD: dict[str, Any] = {"world": "tiny", "max_pixels": 84 * 84, "tools": ("visual_reflection", "visual_confirmation")}


class Tries:
    """Nonsense, then a tool that draws on Image-1 and one that shows it again, then the truth."""

    def act(self, histories: Sequence[History]) -> list[str]:
        return [self._turn(history) for history in histories]

    def _turn(self, history: History) -> str:
        drawn = '{"name": "visual_confirmation", "arguments": {"image": 1, "bbox_2d": [4, 4, 30, 30], "label": "ü"}}'
        again = '{"name": "visual_reflection", "arguments": {"image": 1}}'
        calls = [f"<think>t</think><tool_call>{call}</tool_call>" for call in (drawn, again)]
        return ["nonsense", *calls, *OracleAgent().act([history])][len(history.turns)]


def play(agent: Any, episodes: int, env: str = "MultiImageQA-v0", **arguments: Any) -> Report:
    return evaluate_agent(agent, env, episodes, blind_episodes=0, **arguments)


@pytest.fixture(scope="module")
def told() -> Report:
    return play(Tries(), 4, **TOLD)


def replay(records: Sequence[EpisodeRecord], env: str = "MultiImageQA-v0", **arguments: Any) -> list[Trajectory]:
    return run_episodes(ReplayAgent(records), env, [record.task_id for record in records], **arguments)


def content(trajectory: Trajectory) -> tuple[object, ...]:
    turns = [(turn.message.text, turn.action, turn.error) for turn in trajectory.turns]
    images = [image.tobytes() for image in trajectory.images]
    ends = (trajectory.reward, trajectory.reward_parts, trajectory.stop, trajectory.success)
    return (trajectory.task_id, trajectory.task_type, turns, images, ends)


def through_a_file(records: Sequence[EpisodeRecord], folder: Path) -> list[EpisodeRecord]:
    write_records(folder / "trajectories.jsonl", records)
    return read_records(folder / "trajectories.jsonl")


def test_recorded_episodes_are_played_again_as_they_were_bad_turns_and_tool_images_included(
    told: Report, tmp_path: Path
) -> None:
    again = replay(through_a_file(told.records, tmp_path), **TOLD)
    assert [content(trajectory) for trajectory in again] == [content(trajectory) for trajectory in told.trajectories]
    assert {len(trajectory.turns) for trajectory in again} == {4}
    assert [turn.error for turn in again[0].turns] == ["bad_turn", None, None, None]


def test_an_oracle_that_zooms_is_played_again_from_its_records(tmp_path: Path) -> None:
    report = play(OracleAgent(zoom=0.5), 6, ZOOM)
    again = replay(through_a_file(report.records, tmp_path), ZOOM, parallel=2)
    assert [content(trajectory) for trajectory in again] == [content(trajectory) for trajectory in report.trajectories]
    assert {len(trajectory.turns) for trajectory in again} == {1, 2}
    assert {trajectory.success for trajectory in again} == {True}


def refused(records: Sequence[EpisodeRecord], env: str = "MultiImageQA-v0", **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        replay(records, env, **arguments)
    return str(raised.value)


def test_other_instructions_are_refused_and_the_place_is_shown(told: Report) -> None:
    record = told.records[0]
    error = refused([record], **(TOLD | {"instructions": "none"}))
    assert error.startswith(f"task {record.task_id}, turn 1: the environment says '")
    place = int(error.rpartition("from character ")[2].partition(" on; it was recorded with another env")[0])
    assert 0 < place < len(record.turns[0].message)
    assert f"the record {record.turns[0].message[max(0, place - 20) : place + 60]!r}" in error


def test_tools_that_are_offered_anew_are_refused(told: Report) -> None:
    assert "turn 1: the environment says" in refused(told.records[:1], **(TOLD | {"tools": ("zoom",)}))


def test_a_tool_that_is_missing_is_refused_where_the_instructions_do_not_list_tools() -> None:
    report = play(OracleAgent(zoom=1.0), 1, ZOOM)
    error = refused(report.records, ZOOM, tools=())
    assert "turn 2: the environment says 'Error (unknown_tool)" in error
    assert "the record 'Image-" in error


def test_images_of_another_size_are_refused_even_where_the_text_is_the_same(told: Report) -> None:
    error = refused(told.records[:1], **(TOLD | {"max_pixels": 56 * 56}))
    assert "turn 1: images of [(56, 56)" in error
    assert "recorded are [(84, 84)" in error


def test_images_that_a_tool_returns_are_compared_too(told: Report) -> None:
    (first, *others) = told.records
    drawn = first.turns[0].images
    assert first.turns[2].images == 1
    views = tuple(replace(view, width=60) if number == drawn else view for number, view in enumerate(first.views))
    assert "turn 3: images of [(84, 84)] pixels, recorded are [(60, 84)]" in refused(
        [replace(first, views=views), *others], **TOLD
    )


def test_a_task_without_a_record_is_refused(told: Report) -> None:
    other = told.records[1].task_id
    with pytest.raises(ConfigurationError, match=f"no record of the task {other} among 1"):
        run_episodes(ReplayAgent(told.records[:1]), "MultiImageQA-v0", [other], **TOLD)


def test_an_episode_that_goes_on_after_its_record_is_refused() -> None:
    report = play(Tries(), 1, **TOLD, max_turns=1)
    assert [record.stop for record in report.records] == ["void"]
    error = refused(report.records, **TOLD)
    assert error.endswith("turn 2: the record ends after 1 turns, the episode goes on")


def test_two_records_of_one_task_are_refused(told: Report) -> None:
    with pytest.raises(ValueError, match=f"two records are of the task {told.records[0].task_id}"):
        ReplayAgent([*told.records, told.records[0]])


def test_a_record_of_another_box_frame_is_refused_where_the_frame_is_told(told: Report) -> None:
    assert {record.box_frame for record in told.records} == {"pixel"}
    ReplayAgent(told.records, "pixel")
    ReplayAgent([replace(record, box_frame=None) for record in told.records], "norm1000")
    with pytest.raises(ConfigurationError, match="boxes are written as pixel, the environment's as norm1000"):
        ReplayAgent(told.records, "norm1000")
