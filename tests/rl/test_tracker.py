"""The tracker: a line per step, pages of episodes, and on a resumed run nothing twice and nothing lost."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.evaluate import evaluate_agent
from agents.oracle import OracleAgent
from agents.random_agent import RandomAgent
from mimgenv.types import Image
from mimgenv.viewer import ShownEpisode, load_episodes
from rl.tracker import GAP, METRICS, PAGES, Tracker, read_metrics, strip

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


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_kill_while_a_run_is_taken_up_again_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    log(tmp_path, LOGGED)
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, step) if step == "write_text" else (os, step)), killed)
        with pytest.raises(KeyboardInterrupt):
            Tracker(tmp_path, "grpo", 1)
    assert seen(tmp_path) == list(LOGGED)
    log(tmp_path, (), "grpo", 1)
    assert seen(tmp_path) == list(LOGGED[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, "tensorboard"]


def test_a_line_is_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, forced = Tracker(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(os.readlink(f"/proc/self/fd/{handle}")))
    tracker.log("sft", 1, {"value": 1.0})
    assert forced == [str(tmp_path / METRICS)]
    tracker.close()


# ---------------------------------------------------------------- TensorBoard


def board(folder: Path, phase: str) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard" / phase), {"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, phase: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(folder, phase).Scalars(f"{phase}/value")]


def test_tensorboard_gets_the_same_by_phase(tmp_path: Path) -> None:
    log(tmp_path, LOGGED[:4])
    assert scalars(tmp_path, "sft") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert scalars(tmp_path, "grpo") == [(1, 0.25)]


def test_a_resumed_run_drops_nothing_else_from_tensorboard(tmp_path: Path) -> None:
    log(tmp_path, LOGGED[:5])
    log(tmp_path, [("grpo", 2)], "grpo", 1)
    assert scalars(tmp_path, "sft") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert scalars(tmp_path, "grpo") == [(1, 0.25), (2, 0.5)]
    log(tmp_path, [("sft", 3), ("grpo", 1)], "sft", 2)
    assert scalars(tmp_path, "sft") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert scalars(tmp_path, "grpo") == [(1, 0.25)]


# ---------------------------------------------------------------- episodes


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[ShownEpisode]:
    """An oracle's episode and a random agent's."""
    folder = tmp_path_factory.mktemp("played")
    for name, agent in (("oracle", OracleAgent()), ("random", RandomAgent())):
        evaluate_agent(agent, "MultiImageTiny-v0", 1, blind_episodes=0).write(folder / name)
    return [episode for name in ("oracle", "random") for episode in load_episodes(folder / name / "episodes.jsonl")]


def show(folder: Path, played: list[ShownEpisode], steps: Sequence[tuple[str, int]], *resumed: str | int) -> None:
    tracker = Tracker(folder, *resumed)  # type: ignore[arg-type]
    for phase, step in steps:
        tracker.show(phase, step, played)
    tracker.close()


def pages(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / PAGES).iterdir())


def test_a_page_holds_the_episodes_of_its_step(tmp_path: Path, played: list[ShownEpisode]) -> None:
    show(tmp_path, played, [("grpo", 20)])
    assert pages(tmp_path) == ["grpo-0000020.html"]
    page = (tmp_path / PAGES / "grpo-0000020.html").read_text("utf-8")
    assert f"{tmp_path.name}: grpo, step 20" in page
    for episode in played:
        assert episode.record.task_id in page
        assert episode.record.question in page


def test_pages_beyond_the_checkpoint_are_dropped_with_the_metrics(tmp_path: Path, played: list[ShownEpisode]) -> None:
    show(tmp_path, played[:1], [("sft", 5), ("grpo", 2), ("grpo", 10)])
    show(tmp_path, played[:1], [], "grpo", 2)
    assert pages(tmp_path) == ["grpo-0000002.html", "sft-0000005.html"]
    show(tmp_path, played[:1], [], "sft", 4)
    assert pages(tmp_path) == []


def test_tensorboard_gets_the_images_and_the_words_of_each_episode(tmp_path: Path, played: list[ShownEpisode]) -> None:
    show(tmp_path, played, [("grpo", 20)])
    found = board(tmp_path, "grpo")
    for number, episode in enumerate(played, 1):
        (event,) = found.Images(f"grpo/episode {number}")
        assert event.step == 20
        pixels = np.asarray(PillowImage.open(io.BytesIO(event.encoded_image_string)))
        np.testing.assert_array_equal(pixels, strip(episode.images))
        (words,) = found.Tensors(f"grpo/episode {number}/text_summary")
        text = words.tensor_proto.string_val[0].decode()
        assert episode.record.question in text
        assert f"End: {episode.record.stop}" in text
        assert all(line.startswith("    ") for line in text.splitlines())


def test_a_strip_shows_the_images_side_by_side_on_white() -> None:
    def plain(height: int, width: int, value: int) -> Image:
        return np.full((height, width, 3), value, np.uint8)

    joined = strip([plain(2, 3, 10), plain(4, 1, 20)])
    assert joined.shape == (4, 3 + GAP + 1, 3)
    assert (joined[:2, :3] == 10).all() and (joined[:, -1:] == 20).all()
    assert (joined[2:, :3] == 255).all() and (joined[:, 3:-1] == 255).all()
    assert strip([]).tolist() == [[[255, 255, 255]]]
