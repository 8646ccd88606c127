"""What a run leaves behind for people: the curve shows the metrics, the page the episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from agents.evaluate import evaluate_agent
from agents.oracle import OracleAgent
from agents.random_agent import RandomAgent
from mimgenv.records import write_records
from rl.report import CURVE, EPISODES, SHOWN, draw_curve, write_episodes
from rl.tracker import Tracker

Lines = dict[str | None, tuple[list[float], list[float]]]


def log(folder: Path, rows: Sequence[tuple[str, int, Mapping[str, float]]]) -> None:
    tracker = Tracker(folder)
    for row in rows:
        tracker.log(*row)
    tracker.close()


def curves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Draws the curve and returns what was drawn, by label."""
    lines: Lines = {}
    real = Axes.plot

    def watched(self: Any, xs: Any, ys: Any, *rest: Any, **more: Any) -> Any:
        lines[more.get("label")] = list(xs), list(ys)
        return real(self, xs, ys, *rest, **more)

    monkeypatch.setattr(Axes, "plot", watched)
    draw_curve(folder)
    return lines


SFT = [
    ("sft", 1, {"loss/sft": 6.0}),
    ("sft", 2, {"loss/sft": 5.0, "probe/reward/iou": 0.25, "probe/reward/format": 0.5}),
    ("sft", 3, {"loss/sft": 4.0}),
    ("sft", 4, {"loss/sft": 3.0, "probe/reward/iou": 0.5, "probe/reward/format": 0.75}),
]
GRPO = [
    ("grpo", 1, {"reward/total": 1.0, "reward/iou": 0.5}),
    ("grpo", 2, {"reward/total": 2.0, "reward/iou": 1.0, "held_out/reward/iou": 0.625}),
]


def test_the_curve_shows_the_metrics_over_all_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, [*SFT, *GRPO])
    lines = curves(tmp_path, monkeypatch)
    assert lines["cold start, probe"] == ([2, 4], [0.25, 0.5])
    assert lines["format, probe"] == ([2, 4], [0.5, 0.75])
    assert lines["GRPO, val"] == ([6], [0.625])
    assert lines["GRPO, training (sampled)"] == ([5, 6], [0.5, 0.9 * 0.5 + 0.1 * 1.0])
    assert lines["total"] == ([1, 2], [1.0, 0.9 * 1.0 + 0.1 * 2.0])
    assert lines[None] == ([1, 2], [1.0, 2.0])


def test_the_curve_shows_what_is_reported_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, [*SFT, *GRPO])
    for when, iou in (("before", 0.25), ("after", 0.75)):
        (tmp_path / f"{when}.json").write_text(json.dumps({"greedy": {"reward/iou": iou}}))
    assert curves(tmp_path, monkeypatch)["test, before and after"] == ([4, 6], [0.25, 0.75])


def test_the_curve_shows_the_parts_the_stops_and_the_policy_where_they_were_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"reward/deviation": 9.0, "loss/entropy": 2.0, "loss/kl": 0.125, "stop/answered": 0.75, "stop/void": 0.25}
    log(tmp_path, [*SFT, ("grpo", 1, GRPO[0][2] | more), ("grpo", 2, {"reward/total": 1.0, "stop/answered": 0.5})])
    lines = curves(tmp_path, monkeypatch)
    assert lines["iou"] == ([1], [0.5])
    assert lines["entropy"] == ([1], [2.0])
    assert lines["KL to the reference"] == ([1], [0.125])
    assert lines["answered"] == ([1, 2], [0.75, 0.9 * 0.75 + 0.1 * 0.5])
    assert lines["void"] == ([1], [0.25])
    assert "deviation" not in lines
    assert not {"turn_limit", "format"} & set(lines)  # what was never logged has no line


@pytest.mark.parametrize("rows", [SFT, GRPO, []], ids=["sft", "grpo", "nothing"])
def test_a_curve_is_drawn_of_whatever_there_is(tmp_path: Path, rows: Any) -> None:
    log(tmp_path, rows)
    draw_curve(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / CURVE).convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.min() < 100 < 250 < pixels.max()


def test_the_page_holds_the_episodes_before_and_after(tmp_path: Path) -> None:
    before = evaluate_agent(RandomAgent(), "MultiImageTiny-v0", 3, split="test")
    after = evaluate_agent(OracleAgent(), "MultiImageTiny-v0", 3, split="test")
    write_records(tmp_path / "before.jsonl", before.records)
    write_records(tmp_path / "after.jsonl", after.records)
    write_episodes(tmp_path)
    page = (tmp_path / EPISODES).read_text("utf-8")
    assert f"Held-out: {tmp_path.name}" in page
    for report in (before, after):
        for record in report.records:
            assert record.question in page
            assert record.task_id in page


def test_a_page_shows_the_first_of_many_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl.report

    records = evaluate_agent(OracleAgent(), "MultiImageTiny-v0", SHOWN + 2, split="test", tasks=("locate",)).records
    for when in ("before", "after"):
        write_records(tmp_path / f"{when}.jsonl", records)
    pages: list[list[str]] = []
    monkeypatch.setattr(
        rl.report, "write_page", lambda path, shown, title: pages.append([s.record.task_id for s in shown])
    )
    write_episodes(tmp_path)
    assert pages == [[record.task_id for record in records[:SHOWN]] * 2]
