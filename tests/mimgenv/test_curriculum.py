"""Difficulty over time: schedules are asked, success is told, levels rise and fall, and a task says its level."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import mimgenv
from agents import OracleAgent, run_episodes
from mimgenv import Curriculum, default_codec
from mimgenv.errors import ConfigurationError

TINY = "MultiImageTiny-v0"
WRONG = default_codec().encode_turn("<think></think><answer>9</answer>")


def level_of(info: dict[str, Any]) -> str:
    return str(info["task_id"]).split("/")[2]


def test_a_schedule_is_asked_with_the_number_of_the_episode_and_its_type() -> None:
    asked: list[tuple[int, str]] = []

    def schedule(episode: int, task_type: str) -> int | None:
        asked.append((episode, task_type))
        return min(5, 1 + episode)

    env = gym.make(TINY, difficulty=schedule, tasks=("locate", "counting"))
    levels = [level_of(env.reset(seed=seed)[1]) for seed in range(7)]
    assert levels == ["1", "2", "3", "4", "5", "5", "5"]
    assert asked == [(episode, ("locate", "counting")[episode % 2]) for episode in range(7)]


def test_a_schedule_may_ask_for_the_ordinary_range() -> None:
    env = gym.make(TINY, difficulty=lambda episode, task_type: None)
    assert level_of(env.reset(seed=0)[1]) == "any"


def test_a_schedule_that_names_no_level_is_refused() -> None:
    env = gym.make(TINY, difficulty=lambda episode, task_type: 6)
    with pytest.raises(ConfigurationError, match="difficulty 6"):
        env.reset(seed=0)


def test_success_in_play_raises_the_level_of_its_type_and_of_no_other() -> None:
    curriculum = Curriculum(window=4)
    types = ("locate", "counting")
    run_episodes(OracleAgent(grid=0.01), TINY, range(0, 16, 2), parallel=2, difficulty=curriculum, tasks=types)
    assert curriculum.levels == {"locate": 3}


def test_failure_lowers_the_level_but_not_below_the_first() -> None:
    curriculum = Curriculum(window=2, first=2)
    env = gym.make(TINY, difficulty=curriculum, tasks=("counting",))
    seen = []
    for seed in range(6):
        seen.append(level_of(env.reset(seed=seed)[1]))
        env.step(WRONG)
    assert seen == ["2", "2", "1", "1", "1", "1"]


def test_a_task_asked_for_by_its_id_is_not_counted() -> None:
    curriculum = Curriculum(window=1)
    env = gym.make(TINY, difficulty=curriculum)
    env.reset(options={"task_id": "rendered:tiny/counting/4/train/3"})
    answer = mimgenv.load_task("rendered:tiny/counting/4/train/3").truth.text  # type: ignore[union-attr]
    env.step(default_codec().encode_turn(f"<think></think><answer>{answer}</answer>"))
    assert curriculum.levels == {}


def test_a_change_of_level_starts_a_new_window() -> None:
    curriculum = Curriculum(up=0.5, down=0.0, window=2)
    told = [True, False, True, True, False, False, False, False, False, False]
    levels = []
    for success in told:
        curriculum.record("locate", success)
        levels.append(curriculum(0, "locate"))
    assert levels == [1, 2, 2, 3, 3, 2, 2, 1, 1, 1]


def test_no_level_lies_above_the_fifth() -> None:
    curriculum = Curriculum(window=1)
    for _ in range(9):
        curriculum.record("locate", True)
    assert curriculum(0, "locate") == 5


@pytest.mark.parametrize(
    "arguments", [{"up": 0.2, "down": 0.2}, {"up": 1.1}, {"down": -0.1}, {"window": 0}, {"first": 0}, {"first": 6}]
)
def test_what_makes_no_curriculum_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="<="):
        Curriculum(**arguments)


def test_one_curriculum_serves_all_environments_of_a_run() -> None:
    curriculum = Curriculum(window=8)
    run_episodes(OracleAgent(grid=0.01), TINY, range(8), parallel=8, difficulty=curriculum, tasks=("locate",))
    assert curriculum.levels == {"locate": 2}
