"""The oracle is the upper bound of every table: it scores 1.0 wherever its coordinates can say the truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

from agents.annotated_reasoning import places, reasoning
from agents.oracle import OracleAgent
from agents.rollout import run_episodes
from agents.types import Trajectory
from mimgenv import default_codec, load_task
from mimgenv.geometry import BOX_FRAMES
from mimgenv.tasks.rendered import GROUNDING_TYPES, QA_TYPES, TASK_TYPES, TINY_TYPES
from mimgenv.tools import TOOLS
from mimgenv.types import Grounding, Task

TINY, ZOOM, QA, GROUNDING = "MultiImageTiny-v0", "MultiImageTinyZoom-v0", "MultiImageQA-v0", "MultiImageGrounding-v0"
TYPES = {TINY: TINY_TYPES, QA: tuple(TASK_TYPES)}
THOUGHTS = ("label", "rationale")
SHARES = ("zoom", "reflect", "confirm")
FULL_SIZE = 640 * 480
"""Pixels of a photograph of BCCD."""
SMALLER = 448 * 448


def played(agent: OracleAgent, env: str, episodes: int = 14, **arguments: Any) -> list[Trajectory]:
    return run_episodes(agent, env, range(episodes), parallel=4, **arguments)


def overlaps(trajectories: list[Trajectory]) -> list[float]:
    return [t.reward_parts["iou"] for t in trajectories]


def text(trajectory: Trajectory, turn: int) -> str:
    said: str = default_codec().decode_turn(trajectory.turns[turn].action.ids)
    return said


def called(trajectory: Trajectory) -> dict[str, Any]:
    """The one tool call of an episode."""
    assert len(trajectory.turns) == 2
    call: dict[str, Any] = json.loads(text(trajectory, 0).partition("<tool_call>")[2].removesuffix("</tool_call>"))
    return call


def answered(trajectory: Trajectory) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text(trajectory, -1).partition("<answer>")[2].removesuffix("</answer>"))
    return answer


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("env", [TINY, QA])
def test_the_oracle_scores_one_on_every_rendered_task_type(env: str, split: str) -> None:
    trajectories = run_episodes(OracleAgent(grid=0.01), env, range(2 * len(TYPES[env])), parallel=4, split=split)
    assert [t.task_type for t in trajectories] == 2 * list(TYPES[env])
    score = dict.fromkeys(GROUNDING_TYPES, "iou") | dict.fromkeys(QA_TYPES, "answer")
    for trajectory in trajectories:
        assert trajectory.reward_parts == {score[trajectory.task_type]: 1.0, "format": 1.0}
        assert (trajectory.reward, trajectory.success, trajectory.stop) == (1.5, True, "answered")


@pytest.mark.parametrize(("env", "arguments"), [(ZOOM, {}), (QA, {"tasks": "grounding"})])
def test_the_oracle_that_zooms_calls_the_tool_once_answers_in_its_image_and_scores_one(
    env: str, arguments: dict[str, Any]
) -> None:
    for trajectory in played(OracleAgent(zoom=1.0), env, 10, **arguments):
        call, answer = called(trajectory), answered(trajectory)
        assert call["name"] == "zoom"
        assert answer["image"] == len(trajectory.images) > call["arguments"]["image"]
        assert trajectory.reward_parts == {"iou": 1.0, "format": 1.0}


def test_without_zooming_whole_pixels_of_a_shrunken_image_cannot_say_the_truth() -> None:
    assert 0.8 < sum(overlaps(played(OracleAgent(), ZOOM, 20))) / 20 < 0.99


def test_zoom_is_the_share_of_grounding_episodes_that_zoom_and_the_seed_decides_which() -> None:
    def zoomed(zoom: float, seed: int) -> list[bool]:
        agent = OracleAgent(zoom=zoom, seed=seed)
        return [len(t.turns) == 2 for t in played(agent, ZOOM, 40)]

    assert sum(zoomed(0.0, 0)) == 0
    assert 10 <= sum(zoomed(0.5, 0)) <= 30
    assert zoomed(0.5, 0) == zoomed(0.5, 0) != zoomed(0.5, 1)


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_zoom_share_is_the_side_of_the_zoomed_region(share: float) -> None:
    (trajectory,) = played(OracleAgent(zoom=1.0, zoom_share=share), QA, 1, tasks=("referring",))
    x1, y1, x2, y2 = called(trajectory)["arguments"]["bbox_2d"]
    height, width = trajectory.images[0].shape[:2]
    assert (x2 - x1, y2 - y1) == (share * width, share * height)


@pytest.mark.parametrize("zoom", [0.0, 1.0])
@pytest.mark.parametrize("env", [TINY, QA])
@pytest.mark.parametrize(("frame", "grid"), [(frame, 0.0001 if frame == "unit" else 1) for frame in BOX_FRAMES])
def test_the_oracle_speaks_every_box_frame(frame: str, grid: float, env: str, zoom: float) -> None:
    tools: dict[str, Any] = {"tools": ("zoom",)} if env == QA else {}
    agent = OracleAgent(frame, grid=grid, zoom=zoom if tools else 0.0)
    trajectories = played(agent, env, 10, tasks="grounding", box_frame=frame, **tools)
    # A zoomed region is rounded twice: where it is asked for, and where the tool cuts it.
    assert min(overlaps(trajectories)) > (0.9 if agent.shares["zoom"] else 0.95)
    assert {t.reward_parts["format"] for t in trajectories} == {1.0}


def test_a_finer_grid_comes_closer_to_the_truth() -> None:
    def worst(grid: float) -> float:
        return min(
            overlaps(played(OracleAgent("norm1000", grid=grid), QA, 10, tasks="grounding", box_frame="norm1000"))
        )

    assert worst(10) < worst(1) < 0.9999 < worst(0.0001)


def test_the_thought_is_the_label_or_the_reason(bccd: str) -> None:
    (label,), (reason,) = (played(OracleAgent(think=think), GROUNDING, 1, source=bccd) for think in THOUGHTS)
    task = load_task(label.task_id)
    assert isinstance(task.truth, Grounding)
    named = task.truth.label
    assert text(label, 0).startswith(f"<think>{named.split()[0]}: {named}</think>")
    assert text(reason, 0).startswith(f"<think>{task.rationale}</think>")
    assert task.truth.label != task.rationale


def test_on_photographs_at_full_size_the_oracle_scores_one(bccd: str) -> None:
    trajectories = played(OracleAgent(), GROUNDING, 131, source=bccd)
    assert {t.task_type for t in trajectories} == {"locate", "group_grounding"}
    assert overlaps(trajectories) == [1.0] * 131


def test_on_photographs_shown_smaller_the_oracle_scores_one_up_to_the_decimals_it_writes(bccd: str) -> None:
    trajectories = played(OracleAgent(grid=0.0001), GROUNDING, 131, source=bccd, max_pixels=SMALLER)
    assert overlaps(trajectories) == pytest.approx([1.0] * 131, abs=1e-5)
    assert {t.reward_parts["format"] for t in trajectories} == {1.0}


def test_on_photographs_shown_smaller_whole_pixels_fall_just_short_of_the_truth(bccd: str) -> None:
    scores = overlaps(played(OracleAgent(), GROUNDING, 40, source=bccd, max_pixels=SMALLER))
    assert 0.94 < min(scores) <= max(scores) < 1.0


@pytest.mark.parametrize(("frame", "grid"), [("norm1000", 1), ("unit", 0.0001), ("qwen2_5_resized", 1)])
def test_the_oracle_speaks_every_box_frame_on_photographs(bccd: str, frame: str, grid: float) -> None:
    arguments: dict[str, Any] = {"source": bccd, "box_frame": frame, "max_pixels": FULL_SIZE}
    scores = overlaps(played(OracleAgent(frame, grid=grid), GROUNDING, 40, **arguments))
    assert min(scores) > 0.95
    assert any(score < 1 for score in scores)  # in these frames a photograph's pixel is no whole step


@pytest.mark.parametrize("env", [ZOOM, QA])
def test_zooming_on_a_fine_grid_loses_nothing(env: str) -> None:
    scores = overlaps(played(OracleAgent(zoom=1.0, grid=0.0001), env, 20, tasks=("referring",)))
    assert scores == pytest.approx([1.0] * 20, abs=1e-5)


def test_on_photographs_the_oracle_that_zooms_holds_the_whole_target_in_the_region(bccd: str) -> None:
    trajectories = played(OracleAgent(zoom=1.0, grid=0.0001), GROUNDING, 131, source=bccd)
    assert {len(t.turns) for t in trajectories} == {2}
    assert overlaps(trajectories) == pytest.approx([1.0] * 131, abs=1e-5)


@pytest.mark.parametrize("share", SHARES)
def test_the_oracle_calls_no_tool_on_its_last_turn(share: str) -> None:
    trajectories = played(OracleAgent(**{share: 1.0}), QA, 3, tasks="grounding", max_turns=1)
    assert overlaps(trajectories) == [1.0] * 3


@pytest.mark.parametrize("share", SHARES)
def test_the_oracle_calls_no_tool_where_no_image_is_left(share: str) -> None:
    (trajectory,) = played(OracleAgent(), QA, 1, tasks=("referring",))
    agent, images = OracleAgent(**{share: 1.0}), len(trajectory.images)
    assert overlaps(played(agent, QA, 1, tasks=("referring",), max_images=images)) == [1.0]


@pytest.mark.parametrize("share", SHARES)
def test_the_oracle_answers_in_the_original_where_the_call_was_refused(share: str) -> None:
    trajectories = played(OracleAgent(**{share: 1.0}), QA, 3, tasks="grounding", tools=())
    assert [t.reward_parts for t in trajectories] == [{"iou": 1.0, "format": 0.0}] * 3


@pytest.mark.parametrize("frame", ["pixel", "norm1000"])
def test_the_oracle_that_confirms_shows_itself_the_box_that_it_answers(frame: str) -> None:
    for trajectory in played(OracleAgent(frame, confirm=1.0), QA, 12, tasks="grounding", box_frame=frame):
        answer = answered(trajectory)
        assert called(trajectory) == {"name": "visual_confirmation", "arguments": answer}
        truth = load_task(trajectory.task_id).truth
        assert isinstance(truth, Grounding)
        assert (answer["image"], answer["label"]) == (truth.image, truth.label)
        assert trajectory.reward_parts["iou"] > 0.95
        assert trajectory.reward_parts["format"] == 1.0


def test_the_oracle_that_reflects_looks_again_at_the_image_of_the_target_and_answers_in_the_original() -> None:
    for trajectory in played(OracleAgent(reflect=1.0), QA, 12, tasks="grounding"):
        image = answered(trajectory)["image"]
        assert called(trajectory) == {"name": "visual_reflection", "arguments": {"image": image}}
        assert (trajectory.images[-1] == trajectory.images[image - 1]).all()
        assert trajectory.reward_parts == {"iou": 1.0, "format": 1.0}


def tools_called(episodes: int = 80, **shares: float) -> list[str | None]:
    """The tool of each episode."""
    trajectories = played(OracleAgent(**shares), ZOOM, episodes, tools=tuple(TOOLS))  # type: ignore[arg-type]
    return [called(t)["name"] if len(t.turns) == 2 else None for t in trajectories]


def test_each_share_is_how_many_grounding_episodes_call_its_tool_and_the_rest_call_none() -> None:
    assert Counter(tools_called(zoom=0.25, reflect=0.25, confirm=0.25)) == pytest.approx(
        dict.fromkeys([*TOOLS, None], 20), abs=9
    )
    assert set(tools_called(20, zoom=0.5, reflect=0.25, confirm=0.25)) == set(TOOLS)


def test_the_same_episodes_zoom_whatever_the_other_shares_are() -> None:
    alone, beside = tools_called(zoom=0.3), tools_called(zoom=0.3, reflect=0.3, confirm=0.4)
    assert [tool == "zoom" for tool in alone] == [tool == "zoom" for tool in beside]


def test_which_episodes_zoom_is_settled() -> None:
    assert "".join("-" if tool is None else "z" for tool in tools_called(12, zoom=0.5)) == "z--zz-z--z--"


@pytest.mark.parametrize("share", SHARES)
def test_a_text_answer_needs_no_tool(share: str) -> None:
    assert {len(t.turns) for t in played(OracleAgent(**{share: 1.0}), QA, 4, tasks="qa")} == {1}


@pytest.mark.parametrize(
    "shares",
    [{"zoom": 0.5, "reflect": 0.3, "confirm": 0.3}, {"confirm": 1.1}, {"reflect": -0.1}, {"zoom": float("nan")}],
)
def test_shares_that_add_up_to_more_than_one_or_are_negative_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        OracleAgent(**shares)  # type: ignore[arg-type]


def test_shares_may_add_up_to_one_as_decimals_do() -> None:
    for shares in ((0.1, 0.2, 0.7), (0.7, 0.2, 0.1), (0.3, 0.6, 0.1), (1 / 3, 1 / 3, 1 / 3)):
        zoom, reflect, confirm = shares
        OracleAgent(zoom=zoom, reflect=reflect, confirm=confirm)


def test_an_unknown_way_to_think_is_refused() -> None:
    known = r"\['label', 'rationale', 'annotations', 'places'\]"
    with pytest.raises(ValueError, match=f"think 'aloud' is not one of {known}"):
        OracleAgent(think="aloud")


@pytest.mark.parametrize(("think", "thought"), [("annotations", reasoning), ("places", places)])
def test_annotations_are_told_in_the_first_turn_only(think: str, thought: Callable[[Task], str]) -> None:
    for trajectory in played(OracleAgent(think=think, confirm=1.0), QA, 24):
        task = load_task(trajectory.task_id)
        assert text(trajectory, 0).startswith(f"<think>{thought(task)}</think>")
        assert trajectory.reward == 1.5
        if len(trajectory.turns) == 2:
            assert isinstance(task.truth, Grounding)
            assert text(trajectory, 1).startswith(f"<think>{task.truth.label.split()[0]}: {task.truth.label}</think>")


@pytest.mark.parametrize("think", THOUGHTS)
def test_the_other_thoughts_are_said_in_every_turn(think: str) -> None:
    for trajectory in played(OracleAgent(think=think, zoom=1.0), QA, 12, tasks="grounding"):
        first, second = (text(trajectory, turn).partition("</think>")[0] for turn in (0, 1))
        assert first == second


def test_in_the_tiny_world_a_turn_that_tells_the_annotations_is_at_most_48_tokens() -> None:
    lengths = [len(t.turns[0].action.ids) for t in played(OracleAgent(think="annotations", grid=7), TINY, 210)]
    assert 40 <= max(lengths) <= 48


def test_the_oracle_of_a_cold_start_keeps_to_the_lattice_of_the_tiny_world_only_and_calls_what_it_is_offered() -> None:
    tiny, zoom, table = (gym.make(env_id).unwrapped for env_id in (TINY, ZOOM, QA))
    shares = {"zoom": 0.5, "reflect": 0.2, "confirm": 0.1}
    made = [OracleAgent.for_env(env, **shares) for env in (tiny, zoom, table)]  # type: ignore[arg-type]
    assert [oracle.grid for oracle in made] == [7, 7, 1]
    assert [tuple(oracle.shares.values()) for oracle in made] == [(0, 0, 0), (0.5, 0, 0), (0.5, 0.2, 0.1)]
    assert {oracle.think for oracle in made} == {"label"}
    told = OracleAgent.for_env(table, think="annotations", seed=3)  # type: ignore[arg-type]
    assert (told.think, told.seed) == ("annotations", 3)
