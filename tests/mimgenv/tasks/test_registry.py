"""Sources by their strings and tasks by their ids: what is there is found, what is not is refused in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimgenv import load_task
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.tasks.registry import open_source
from mimgenv.tasks.rendered import (
    GROUNDING_TYPES,
    QA_TYPES,
    SPLIT_SIZE,
    SPLITS,
    TASK_TYPES,
    TINY_TYPES,
    WORLDS,
    RenderedTasks,
)
from mimgenv.types import Task

GOOD = "rendered:tiny/locate/any/train/3"


class Empty:
    """A source of one's own."""

    task_types = ("made",)

    def __len__(self) -> int:
        return 0

    def task(self, seed: int) -> Task:
        raise TaskError("none")


def source(**arguments: Any) -> Any:
    defaults = {"source": None, "world": "tiny", "tasks": None, "split": "train", "difficulty": None}
    return open_source(**(defaults | arguments))


# Sources


@pytest.mark.parametrize(
    ("tasks", "types"),
    [
        (None, TINY_TYPES),
        ("grounding", tuple(name for name in TINY_TYPES if name in GROUNDING_TYPES)),
        ("qa", tuple(name for name in TINY_TYPES if name in QA_TYPES)),
        (["counting", "locate"], ("counting", "locate")),
    ],
)
def test_task_types_are_chosen_by_name_by_group_or_all(tasks: Any, types: tuple[str, ...]) -> None:
    assert source(tasks=tasks).task_types == types


def test_rendered_tasks_are_served_as_asked_for() -> None:
    served = source(world="tabletop", split="val", difficulty=2)
    assert isinstance(served, RenderedTasks)
    assert (served.world, served.split, served.difficulty) == ("tabletop", "val", 2)


def test_a_source_of_ones_own_is_served_as_it_is() -> None:
    own = Empty()
    assert source(source=own) is own


@pytest.mark.parametrize("name", ["coco:/data", "odinw", "odinw:", "selected:", "", "rendered", ":", "/data"])
def test_a_source_string_that_names_no_kind_of_source_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not one of \['odinw:/path', 'curated:/path', 'selected:/path'\]"):
        source(source=name)


def test_photographs_cannot_be_asked_for_qa() -> None:
    with pytest.raises(ConfigurationError, match="no QA"):
        source(source="odinw:/data", tasks="qa")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path / "nowhere")):
        source(source=f"odinw:{tmp_path / 'nowhere'}")


def test_a_string_may_be_one_task_type() -> None:
    assert source(tasks="referring").task_types == ("referring",)


@pytest.mark.parametrize("tasks", ["chess", "all", ""])
def test_a_string_that_is_neither_a_group_of_tasks_nor_a_task_is_refused(tasks: str) -> None:
    with pytest.raises(ConfigurationError, match=f"task types .*'{tasks}'"):
        source(tasks=tasks)


# Ids


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_id_of_a_served_task_loads_it(world: str, split: str) -> None:
    for difficulty in (None, 2):
        task = RenderedTasks(world, ("locate",), split, difficulty).task(5)
        assert task.task_id == f"rendered:{world}/locate/{difficulty or 'any'}/{split}/5"
        assert load_task(task.task_id).truth == task.truth


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "rendered:",
        "tiny/locate/any/train/3",
        GOOD.replace("tiny", "moon"),
        GOOD.replace("locate", "chess"),
        GOOD.replace("any", "None"),
        GOOD.replace("any", "0"),
        GOOD.replace("any", "6"),
        GOOD.replace("any", " 1"),
        GOOD.replace("any", "01"),
        GOOD.replace("any", "1.0"),
        GOOD.replace("any", "-1"),
        GOOD.replace("train", "dev"),
        GOOD.replace("train/3", "train/"),
        GOOD.replace("train/3", "train"),
        GOOD.replace("train/3", "train/3/"),
        GOOD.replace("train/3", "train/3.0"),
        GOOD.replace("train/3", "train/ 3"),
        GOOD.replace("train/3", "train/+3"),
        GOOD.replace("train/3", "train/03"),
        GOOD.replace("train/3", "train/1_0"),
        GOOD.replace("train/3", "train/٣"),
        GOOD.replace("train/3", "train/-1"),
        GOOD.replace("train/3", "val/-1"),  # would be the last of train
        GOOD.replace("train/3", f"train/{SPLIT_SIZE}"),  # would be the first of val
        GOOD.replace("train/3", "train/" + "9" * 5000),
        f"rendered:{GOOD}",
        f"{GOOD}\n",
        f" {GOOD}",
        f"{GOOD}+",
        f"{GOOD}+a",
        f"{GOOD}+-1",
        f"{GOOD}+00",
        f"{GOOD}+٠",
        f"{GOOD}+0+0",
        f"{GOOD}+999999",
        f"{GOOD}+{'9' * 5000}",
        "+0",
        "odinw:",
        "odinw:relative::locate::0",
        "odinw:/data",
        "odinw:/data::locate",
        "odinw:/data::locate::-1",
        "odinw:/data::locate::٣",
        "\x00",
        "\ud800",
    ],
)
def test_an_id_that_no_source_gave_out_is_refused(task_id: str) -> None:
    with pytest.raises(TaskError):
        load_task(task_id)


def test_an_id_of_photographs_that_are_not_there_names_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path)):
        load_task(f"odinw:{tmp_path}::locate::0")


_junk = st.text(st.characters(), max_size=6)
_part = st.one_of(
    _junk,
    st.sampled_from(["tiny", "locate", "counting", "any", "1", "5", "train", "val", "test", "0", "17", "-1", "٣"]),
    st.integers().map(str),
)
_ids = st.one_of(
    st.text(st.characters(), max_size=30),
    st.lists(_part, max_size=7).map(lambda parts: "rendered:" + "/".join(parts)),
    st.tuples(st.sampled_from(list(TASK_TYPES)), _part, st.sampled_from(SPLITS), _part, st.just("") | _part).map(
        lambda p: f"rendered:tiny/{p[0]}/{p[1]}/{p[2]}/{p[3]}" + (f"+{p[4]}" if p[4] else "")
    ),
    st.tuples(_junk, _part, _part).map(lambda p: f"odinw:{p[0]}::{p[1]}::{p[2]}"),
)


@given(_ids)
def test_any_text_is_the_id_of_the_task_that_it_loads_or_a_task_error(task_id: str) -> None:
    try:
        assert load_task(task_id).task_id == task_id
    except TaskError:
        pass
    except DatasetError:
        assert task_id.startswith("odinw:/")
