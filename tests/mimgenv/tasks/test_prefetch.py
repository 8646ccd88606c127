"""Tasks made ahead: the same tasks, from other processes, whatever the order they are asked for in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.tasks.prefetch import PrefetchedTasks
from mimgenv.tasks.rendered import RenderedTasks
from mimgenv.types import Task, TextAnswer

TINY = RenderedTasks("tiny", ("locate", "referring"))


class Tells:
    """A source whose tasks say which process made them; seed 13 cannot be made."""

    task_types = ("made",)

    def __len__(self) -> int:
        return 100

    def task(self, seed: int) -> Task:
        if seed == 13:
            raise TaskError("seed 13 brings no luck")
        image = np.full((28, 28, 3), seed, np.uint8)
        return Task(f"made:{seed}", "made", (image,), "?", TextAnswer(str(os.getpid())), "", ((),))


@pytest.fixture(scope="module")
def ahead() -> Iterator[PrefetchedTasks]:
    with PrefetchedTasks(TINY, workers=1, ahead=4) as tasks:
        yield tasks


def same(one: Task, other: Task) -> bool:
    pixels = [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    return pixels and (one.task_id, one.question, one.truth) == (other.task_id, other.question, other.truth)


def test_tasks_made_ahead_are_those_of_the_source_in_any_order(ahead: PrefetchedTasks) -> None:
    for seed in (0, 1, 2, 3, 9, 2, 2, 50, 0, 10**6):
        assert same(ahead.task(seed), TINY.task(seed))
    assert (ahead.task_types, len(ahead)) == (TINY.task_types, len(TINY))


def test_no_more_tasks_are_kept_than_twice_those_made_ahead(ahead: PrefetchedTasks) -> None:
    for seed in range(100, 140):
        ahead.task(seed)
        assert len(ahead._made) <= 8


def test_an_environment_plays_them(ahead: PrefetchedTasks) -> None:
    plain = gym.make("MultiImageTiny-v0", source=TINY).reset(seed=7)[0]
    assert plain["text"] == gym.make("MultiImageTiny-v0", source=ahead).reset(seed=7)[0]["text"]


def test_the_coming_tasks_are_made_in_another_process_and_an_error_comes_through() -> None:
    with PrefetchedTasks(Tells(), workers=1, ahead=2) as tasks:
        makers = {tasks.task(seed).truth for seed in range(5)}
        assert len(makers) == 1
        assert makers != {TextAnswer(str(os.getpid()))}
        with pytest.raises(TaskError, match="no luck"):
            tasks.task(13)
        assert tasks.task(14).task_id == "made:14"
        assert set(tasks._made) >= {14, 15}


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"ahead": 0}])
def test_there_must_be_a_worker_and_something_to_do(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        PrefetchedTasks(TINY, **numbers)


def test_a_difficulty_that_changes_with_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="changes with time"):
        PrefetchedTasks(RenderedTasks("tiny", difficulty=lambda episode, task_type: 1))
