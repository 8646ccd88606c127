"""Episodes to look at: made again from records byte for byte, made of seeds, and rendered while they are played."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import mimgenv
from agents.evaluate import record_of
from agents.rollout import run_episodes
from agents.types import History, Trajectory
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError, DatasetError
from mimgenv.geometry import View
from mimgenv.preview import (
    OpenEpisode,
    ShownEpisode,
    episode_images,
    load_episodes,
    preview,
    seed_range,
    view_image,
)
from mimgenv.records import EpisodeRecord, ViewRecord, write_records
from mimgenv.tools import ToolContext, Zoom
from mimgenv.types import Grounding, Image, ObjectAnnotation, Task

TRUTH = Grounding(2, "red mug", (20.0, 30.0, 60.0, 90.0))


def picture(seed: int, width: int = 160, height: int = 120) -> Image:
    noise: Image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise


ORIGINALS = (picture(1), picture(2))
TASK = Task("made:7", "made", ORIGINALS, "Where?", TRUTH, "Zqxj.", ((), (ObjectAnnotation("vwyk", TRUTH.box, 3),)))


class Served:
    """A source of one task, or of that task under as many ids as `length` says."""

    task_types = ("made",)

    def __init__(self, task: Task = TASK, length: int = 1) -> None:
        self.made, self.length = task, length

    def __len__(self) -> int:
        return self.length

    def task(self, seed: int) -> Task:
        return dataclasses.replace(self.made, task_id=f"made:{seed % self.length}")


class Grey:
    """A tool of somebody's own."""

    name, parameters, description = "grey", ("image",), "Shows an image without its colours."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        view = context.view(arguments["image"])
        grey = view.pixels.mean(-1, keepdims=True).astype("uint8").repeat(3, -1)
        return View(grey, view.image, view.region)


def call(name: str, **arguments: Any) -> str:
    return f"<think></think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def confirm(image: int, *box: float) -> str:
    return call("visual_confirmation", image=image, bbox_2d=list(box), label="mug")


ANSWER = f'<think></think><answer>{{"image": 2, "label": "mug", "bbox_2d": {list(TRUTH.box)}}}</answer>'


def played(*turns: str, **arguments: Any) -> ShownEpisode:
    """The episode of some turns and the answer."""
    env = MultiImageEnv(source=Served(), render_mode="html", max_turns=len(turns) + 1, **arguments)
    env.reset(seed=0)
    for turn in (*turns, ANSWER):
        env.step(turn)
    shown = env.shown()
    assert isinstance(shown, ShownEpisode)
    assert shown.record.stop in ("answered", "void")
    return shown


def assert_made_again(shown: ShownEpisode) -> None:
    again = episode_images(shown.record, ORIGINALS)
    assert len(again) == len(shown.images)
    for number, (made, seen) in enumerate(zip(again, shown.images, strict=True), start=1):
        np.testing.assert_array_equal(made, seen, err_msg=f"Image-{number}")


# Episodes from records


@pytest.mark.parametrize("box_frame", ["pixel", "norm1000", "unit", "qwen2_5_resized"])
def test_the_box_that_a_tool_drew_is_drawn_again_in_every_frame(box_frame: str) -> None:
    unit = 1.0 if box_frame == "unit" else 100.0
    shown = played(confirm(2, 0.1 * unit, 0.2 * unit, 0.5 * unit, 0.7 * unit), box_frame=box_frame)
    assert_made_again(shown)
    assert not np.array_equal(shown.images[2], ORIGINALS[1])


def test_what_follows_a_drawn_box_is_made_again_too() -> None:
    steps = [
        confirm(1, 10, 20, 60, 80),
        call("visual_reflection", image=3),
        confirm(4, 70, 20, 120, 90),
        "no turn at all",
        call("zoom", image=5, bbox_2d=[5, 5, 60, 60]),
        confirm(6, 3, 3, 50, 40),
    ]
    shown = played(*steps)
    assert len(shown.images) == 7
    assert_made_again(shown)


def test_a_box_on_an_image_that_is_shown_smaller_is_drawn_again() -> None:
    shown = played(confirm(2, 10, 12, 30, 40), call("zoom", image=3, bbox_2d=[0, 0, 40, 40]), max_pixels=56 * 84)
    assert shown.images[1].shape == (56, 56, 3)
    assert_made_again(shown)


class Confirms:
    """Looks at a box drawn on the first image, then answers."""

    def act(self, histories: Sequence[History]) -> Sequence[str]:
        return [ANSWER if history.turns else confirm(1, 100, 200, 500, 700) for history in histories]


def test_an_evaluations_records_alone_show_what_the_agent_saw(tmp_path: Path) -> None:
    shown: list[tuple[EpisodeRecord, tuple[Image, ...]]] = []

    def finish(index: int, env: gym.Env[Any, Any], trajectory: Trajectory) -> None:
        shown.append((record_of(trajectory, env.unwrapped, "confirms"), trajectory.images))  # type: ignore[arg-type]

    run_episodes(Confirms(), "MultiImageGrounding-v0", range(3), on_finish=finish, box_frame="norm1000")
    write_records(tmp_path / "e.jsonl", [record for record, _ in shown])
    for loaded, (_, images) in zip(load_episodes(tmp_path / "e.jsonl"), shown, strict=True):
        assert loaded.record.tool_calls == ("visual_confirmation",)
        assert len(loaded.images) == len(images) > 1
        assert all(np.array_equal(again, seen) for again, seen in zip(loaded.images, images, strict=True))


def test_without_a_box_frame_on_record_a_plain_view_is_shown() -> None:
    shown = played(confirm(2, 10, 20, 60, 80))
    old = dataclasses.replace(shown.record, box_frame=None)
    np.testing.assert_array_equal(episode_images(old, ORIGINALS)[2], ORIGINALS[1])


def test_what_an_unknown_tool_drew_leaves_a_plain_view() -> None:
    shown = played(call("grey", image=1), tools=(Grey(),))
    np.testing.assert_array_equal(episode_images(shown.record, ORIGINALS)[2], ORIGINALS[0])


def test_a_call_that_does_not_return_the_view_on_record_is_not_believed() -> None:
    shown = played(confirm(2, 10, 20, 60, 80))
    views = (*shown.record.views[:2], dataclasses.replace(shown.record.views[2], width=80, height=60))
    images = episode_images(dataclasses.replace(shown.record, views=views), ORIGINALS)
    np.testing.assert_array_equal(images[2], view_image(ORIGINALS, views[2]))


def test_episodes_are_loaded_with_each_task_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(mimgenv, "load_task", lambda task_id: made.append(task_id) or TASK, raising=False)
    shown = played(confirm(2, 10, 20, 60, 80), call("zoom", image=2, bbox_2d=[11, 12, 70, 45]))
    write_records(tmp_path / "e.jsonl", [shown.record, shown.record])
    loaded = load_episodes(tmp_path / "e.jsonl", "after")
    assert made == ["made:0"]
    assert [(row.section, row.record, row.task) for row in loaded] == [("after", shown.record, TASK)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(loaded[1].images, shown.images, strict=True))


@pytest.mark.parametrize("change", [{"question": "What?"}, {"truth": Grounding(1, "mug", TRUTH.box)}])
def test_a_task_that_is_no_longer_the_one_played_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(mimgenv, "load_task", lambda task_id: dataclasses.replace(TASK, **change), raising=False)
    write_records(tmp_path / "e.jsonl", [played().record])
    with pytest.raises(DatasetError, match=r"e\.jsonl: made:7 is another task than the one that was played"):
        load_episodes(tmp_path / "e.jsonl")


def test_a_view_made_again_has_the_bytes_that_the_tool_returned() -> None:
    shown = View(ORIGINALS[1], 2, (0.0, 0.0, 160.0, 120.0))
    context = ToolContext([shown], ORIGINALS, "pixel")
    zoomed = Zoom()(context, {"image": 1, "bbox_2d": [11, 12, 70, 45]})
    again = view_image(ORIGINALS, ViewRecord(zoomed.image, zoomed.region, *zoomed.size))
    assert np.array_equal(again, zoomed.pixels)


def test_a_view_averages_when_it_shrinks_and_takes_in_every_pixel_it_touches() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = 100
    assert view_image([pixels], ViewRecord(1, (0.0, 0.0, 4.0, 4.0), 2, 2))[:, :, 0].tolist() == [[0, 100], [0, 100]]
    assert view_image([pixels], ViewRecord(1, (1.5, 0.2, 2.5, 0.8), 2, 1))[:, :, 0].tolist() == [[0, 100]]


@pytest.mark.parametrize(
    ("view", "rule"),
    [
        (ViewRecord(3, (0.0, 0.0, 1.0, 1.0), 1, 1), "a view shows image 3 of 2"),
        (ViewRecord(1, (0.0, 0.0, 161.0, 1.0), 1, 1), r"a view shows \(0.0, 0.0, 161.0, 1.0\) of an image of 160x120"),
        (ViewRecord(1, (0.0, -0.5, 1.0, 1.0), 1, 1), "of an image of 160x120"),
    ],
)
def test_a_view_of_what_the_task_does_not_have_is_refused(view: ViewRecord, rule: str) -> None:
    with pytest.raises(DatasetError, match=rule):
        view_image(ORIGINALS, view)


# Tasks that nobody played


def test_a_preview_shows_what_an_agent_meets_and_the_truth() -> None:
    shown = preview("MultiImageTinyZoom-v0", range(4, 6), "mine", split="test")
    env = gym.make("MultiImageTinyZoom-v0", split="test")
    for seed, waiting in zip((4, 5), shown, strict=True):
        observation, info = env.reset(seed=seed)
        assert waiting.message == observation["text"]
        assert all(np.array_equal(v.pixels, p) for v, p in zip(waiting.views, observation["images"], strict=True))
        assert waiting.task is mimgenv.load_task(info["task_id"])
        assert (waiting.revealed, waiting.section, waiting.turns) == (True, "mine", ())


def test_a_source_of_somebodys_own_is_previewed_and_no_task_twice() -> None:
    shown = preview("MultiImageGrounding-v0", range(1, 40), source=Served(length=3))
    assert [waiting.task.task_id for waiting in shown] == ["made:1", "made:2", "made:0"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", range(7, 8)), ("0:40", range(40)), ("12:13", range(12, 13)), ("5:1005", range(5, 1005))]
)
def test_seeds_are_one_number_or_a_range(text: str, seeds: range) -> None:
    assert seed_range(text) == seeds


@pytest.mark.parametrize(
    "text", ["", ":", "4:", ":4", "a", "1.5", "-1", "4:2", "4:4", "0:1001", "0:4:2", "٣", "9" * 30]
)
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^seeds .*{re.escape(text)}"):
        seed_range(text)


# Rendering while it is played


def rendering(mode: str | None, **arguments: Any) -> MultiImageEnv:
    return MultiImageEnv(source=Served(), render_mode=mode, **arguments)


def data_of(page: object) -> dict[str, Any]:
    assert isinstance(page, str)
    text = page.partition('id="data">')[2].partition("</script>")[0]
    data: dict[str, Any] = json.loads(text)["episodes"][0]
    return data


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"render_mode 'human' is not one of \[None, 'rgb_array', 'ansi', 'html'"
    ):
        rendering("human")


@pytest.mark.parametrize("mode", ["rgb_array", "ansi", "html"])
def test_nothing_is_rendered_before_the_first_reset(mode: str) -> None:
    assert rendering(mode).render() is None


def test_ansi_is_the_transcript_so_far() -> None:
    env = rendering("ansi", instructions="none", box_frame="unit")
    observation, _ = env.reset(seed=0)
    first = f"Environment:\n{observation['text']}\n"
    assert env.render() == first
    observation, *_ = env.step("hm")
    second = f"{first}\nAgent, turn 1 (bad_turn):\nhm\n\nEnvironment:\n{observation['text']}\n"
    assert env.render() == second
    answer = '<think></think><answer>{"image": 2, "label": "mug", "bbox_2d": [0, 0, 1, 1]}</answer>'
    env.step(answer)
    end = "End: answered, reward 0.125 (iou 0.125, format 0.000)\n"
    assert env.render() == f"{second}\nAgent, turn 2:\n{answer}\n\n{end}"


def test_ansi_holds_no_character_that_steers_a_terminal() -> None:
    env = rendering("ansi")
    env.reset(seed=0)
    env.step("a\x1b[2J\r\x00\x9b\u202e\u2028\ud800\tb\nc")
    text = env.render()
    assert isinstance(text, str)
    assert "a␛[2J␍␀⟨9b⟩⟨202e⟩⟨2028⟩⟨d800⟩\tb\nc" in text
    assert all(character in "\t\n" or character.isprintable() for character in text)


def test_ansi_shows_the_text_of_ids_without_the_end_of_the_turn() -> None:
    env = rendering("ansi")
    env.reset(seed=0)
    role = env.codec.tokenizer.token_to_id("<|im_start|>")
    env.step([10**12, -1, *env.codec.encode("hm"), role, *env.codec.encode_turn("no")])
    text = env.render()
    assert isinstance(text, str)
    assert "Agent, turn 1 (bad_token):\nhm<|im_start|>no\n" in text


def test_html_reveals_the_truth_only_at_the_end() -> None:
    env = rendering("html")
    env.reset(seed=0)
    env.step(confirm(1, 10, 20, 60, 80))
    page = env.render()
    row = data_of(page)
    assert (row["truth"], row["prediction"], row["stop"], len(row["views"])) == (None, None, None, 3)
    assert isinstance(page, str)
    for secret in ("red mug", "Zqxj", "vwyk"):
        assert secret not in page
    env.step(ANSWER)
    row = data_of(env.render())
    assert (row["truth"]["label"], row["rationale"], row["stop"], row["reward"]) == (
        "red mug",
        "Zqxj.",
        "answered",
        1.5,
    )
    assert [turn["act"] for turn in row["turns"]] == ["visual_confirmation", "answer"]


def test_a_new_episode_is_rendered_without_the_one_before() -> None:
    env = rendering("html")
    env.reset(seed=0)
    env.step(ANSWER)
    env.reset(seed=0)
    row = data_of(env.render())
    assert (row["stop"], row["truth"], row["turns"]) == (None, None, [])


@pytest.mark.parametrize("mode", [None, "rgb_array"])
def test_no_log_is_kept_where_none_is_rendered(mode: str | None) -> None:
    env = rendering(mode)
    env.reset(seed=0)
    env.step("hm")
    with pytest.raises(gym.error.ResetNeeded, match="no episode is kept"):
        env.shown()


def test_an_open_episode_becomes_a_finished_one() -> None:
    env = rendering("ansi")
    env.reset(seed=0)
    assert isinstance(env.shown(), OpenEpisode)
    env.step(ANSWER)
    shown = env.shown()
    assert isinstance(shown, ShownEpisode)
    assert (shown.record.reward, shown.record.success, shown.record.tool_calls) == (1.5, True, ())


def test_gymnasiums_checker_has_nothing_to_say_about_the_render_modes() -> None:
    made = gym.make("MultiImageTiny-v0", disable_env_checker=True)
    assert made.metadata["render_modes"] == ["rgb_array", "ansi", "html"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(made.unwrapped)
    assert not [str(warning.message) for warning in caught if "ender" in str(warning.message)]
