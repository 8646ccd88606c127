"""The tracker: a line per step, and on a resumed run nothing twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rl.tracker import METRICS, Tracker, read_metrics

LOGGED = (("sft", 1), ("sft", 2), ("sft", 3), ("grpo", 1), ("grpo", 2), ("grpo", 3))


def log(folder: Path, steps: Sequence[tuple[str, int]], *resumed: str | int) -> None:
    tracker = Tracker(folder, *resumed)  # type: ignore[arg-type]
    for phase, step in steps:
        tracker.log(phase, step, {"value": step / 4})
    tracker.close()


def seen(folder: Path) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in read_metrics(folder)]


def test_metrics_are_a_line_of_json_per_step(tmp_path: Path) -> None:
    log(tmp_path / "new", LOGGED[:2])
    lines = (tmp_path / "new" / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"phase": "sft", "step": 1, "value": 0.25},
        {"phase": "sft", "step": 2, "value": 0.5},
    ]
    assert read_metrics(tmp_path / "new") == [json.loads(line) for line in lines]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.log("sft", 1, {"value": 1.0})
    assert seen(tmp_path) == [("sft", 1)]
    tracker.close()


@pytest.mark.parametrize(
    ("phase", "step", "kept"), [("sft", 0, 0), ("sft", 2, 2), ("grpo", 0, 3), ("grpo", 2, 5), ("grpo", 9, 6)]
)
def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path, phase: str, step: int, kept: int) -> None:
    log(tmp_path, LOGGED)
    log(tmp_path, (), phase, step)
    assert seen(tmp_path) == list(LOGGED[:kept])


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    log(tmp_path, LOGGED[:5])
    log(tmp_path, LOGGED[4:], "grpo", 1)
    assert seen(tmp_path) == list(LOGGED)


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    log(tmp_path, LOGGED)
    log(tmp_path, ())
    assert seen(tmp_path) == []


def test_a_last_line_cut_off_by_a_kill_is_left_out_and_overwritten(tmp_path: Path) -> None:
    log(tmp_path, LOGGED[:3])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"phase": "grpo", "st')
    assert seen(tmp_path) == list(LOGGED[:3])
    log(tmp_path, LOGGED[3:4], "sft", 3)
    assert seen(tmp_path) == list(LOGGED[:4])


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_same_by_phase(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, LOGGED[:4])
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("sft/value")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [(event.step, event.value) for event in board.Scalars("grpo/value")] == [(1, 0.25)]
