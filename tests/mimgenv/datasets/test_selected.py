"""A selection of tasks: what its file may hold, and which tasks are served in what order."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import PIL.Image
import pytest

from agents.oracle import OracleAgent
from agents.rollout import run_episodes
from mimgenv import load_task
from mimgenv.datasets.curated import Item
from mimgenv.datasets.curated_files import write_items
from mimgenv.datasets.selected import Selected, SelectedTasks, read_selection, write_selection
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.tasks.registry import open_source
from mimgenv.testing import check_env_contract
from mimgenv.types import Grounding, TextAnswer

TYPES = ("locate", "referring", "counting", "locate")
ITEMS = tuple(
    Selected(f"rendered:tiny/{name}/any/train/{number}", name, 8, number, "vlm:tiny")
    for number, name in enumerate(TYPES)
)
LINE = {"version": 1, "task_id": ITEMS[0].task_id, "task_type": "locate", "attempts": 8, "right": 0, "by": "vlm:tiny"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_selection(tmp_path / "tasks.jsonl", ITEMS)
    return tmp_path / "tasks.jsonl"


def lines(file: Path, *values: object) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def ids(source: SelectedTasks) -> list[str]:
    return [source.task(seed).task_id for seed in range(len(source))]


# The file


def test_a_selection_is_read_back_as_it_was_written(file: Path) -> None:
    assert read_selection(file) == ITEMS
    assert json.loads(file.read_text().splitlines()[0]) == LINE
    write_selection(file, ITEMS[:1])
    assert read_selection(file) == ITEMS[:1]


def test_an_empty_selection_can_be_written_and_read_but_not_served(file: Path) -> None:
    write_selection(file, ())
    assert read_selection(file) == ()
    with pytest.raises(DatasetError, match=r"tasks.jsonl: no task to serve"):
        SelectedTasks(file)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (LINE | {"version": 2}, "unknown version 2; this reader knows 1"),
        (LINE | {"version": True}, "unknown version True"),
        ({key: LINE[key] for key in LINE if key != "version"}, "unknown version None"),
        ({key: LINE[key] for key in LINE if key != "by"}, "the keys must be"),
        (LINE | {"note": "x"}, r"not \[.*'note'\]"),
        (LINE | {"task_id": 3}, "task_id must be str, not int"),
        (LINE | {"right": True}, "right must be int, not bool"),
        (LINE | {"attempts": 8.0}, "attempts must be int, not float"),
        (LINE | {"attempts": 0}, "not 0 of 0"),
        (LINE | {"right": 9}, "not 9 of 8"),
        (LINE | {"right": -1}, "not -1 of 8"),
        (LINE | {"by": " "}, "by must not be empty"),
        (LINE | {"task_id": ""}, "task_id must not be empty"),
        (LINE | {"task_type": ""}, "task_type must not be empty"),
        ([], "a line must be an object, not list"),
        (LINE | {"by": "again"}, "stands on an earlier line too"),
    ],
)
def test_a_line_that_breaks_a_rule_is_named_with_its_fault(tmp_path: Path, value: object, fault: str) -> None:
    file = lines(tmp_path / "tasks.jsonl", LINE, value)
    with pytest.raises(DatasetError, match=rf"tasks.jsonl, line 2: .*{fault}"):
        read_selection(file)


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"version": 1')
    with pytest.raises(DatasetError, match=r"torn.jsonl, line 1"):
        read_selection(tmp_path / "torn.jsonl")
    with pytest.raises(DatasetError, match="nowhere"):
        read_selection(tmp_path / "nowhere")


def test_a_task_that_stands_twice_is_not_written(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(DatasetError, match="stands twice"):
        write_selection(file, (*ITEMS, ITEMS[0]))
    assert file.read_bytes() == before


# Serving


def test_seeds_visit_each_task_once_in_an_order_that_stays(tmp_path: Path) -> None:
    many = [Selected(f"rendered:tiny/locate/any/train/{number}", "locate", 4, 2, "me") for number in range(20)]
    write_selection(tmp_path / "many.jsonl", many)
    source = SelectedTasks(tmp_path / "many.jsonl")
    order = ids(source)
    assert sorted(order) == sorted(item.task_id for item in many)
    assert order != [item.task_id for item in many]
    assert order == ids(SelectedTasks(tmp_path / "many.jsonl")) == [source.task(seed).task_id for seed in range(20, 40)]


def test_a_task_is_served_as_its_own_id_loads_it(file: Path) -> None:
    for seed in range(len(ITEMS)):
        task = SelectedTasks(file).task(seed)
        again = load_task(task.task_id)
        assert (task.task_id, task.truth) == (again.task_id, again.truth)
        assert all(np.array_equal(*pair) for pair in zip(task.images, again.images, strict=True))


@pytest.mark.parametrize(
    ("tasks", "types"),
    [
        (None, {"locate", "referring", "counting"}),
        ("grounding", {"locate", "referring"}),
        ("qa", {"counting"}),
        ("referring", {"referring"}),
        (("locate", "jigsaw"), {"locate"}),
    ],
)
def test_types_are_chosen_by_name_or_group_and_a_lost_one_is_no_error(file: Path, tasks: Any, types: set[str]) -> None:
    source = open_source(f"selected:{file}", None, tasks, "train", None)
    assert set(source.task_types) == types
    assert {source.task(seed).task_type for seed in range(len(source))} == types
    assert len(source) == sum(name in types for name in TYPES)


@pytest.mark.parametrize("tasks", ["jigsaw", ("jigsaw", "chess"), ()])
def test_types_of_which_no_task_is_left_are_refused(file: Path, tasks: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"has no task of .*\['counting', 'locate', 'referring'\]"):
        SelectedTasks(file, tasks)


def test_rendered_tasks_are_sorted_into_groups_without_rendering(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(task_id: str) -> None:
        raise AssertionError(f"{task_id} was rendered")

    monkeypatch.setattr("mimgenv.datasets.selected.load_task", load)
    assert len(SelectedTasks(file, "grounding")) == 3


def test_a_curated_task_is_of_the_group_of_its_truth_whatever_its_type_is_called(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    truths = {"box": Grounding(1, "mug", (0.0, 0.0, 9.0, 9.0)), "text": TextAnswer("3")}
    write_items(tmp_path / "set.jsonl", [Item(k, ("a.png",), "What?", "locate", truth) for k, truth in truths.items()])
    curated = [f"curated:{tmp_path.resolve()}/set.jsonl::{key}" for key in truths]
    write_selection(tmp_path / "tasks.jsonl", [Selected(task_id, "locate", 1, 1, "me") for task_id in curated])
    for group, task_id in zip(("grounding", "qa"), curated, strict=True):
        assert ids(SelectedTasks(tmp_path / "tasks.jsonl", group)) == [task_id]


def test_a_sibling_can_be_selected(tmp_path: Path) -> None:
    sibling = load_task("rendered:tiny/group_grounding/any/train/1+0")
    write_selection(tmp_path / "tasks.jsonl", [Selected(sibling.task_id, sibling.task_type, 1, 1, "me")])
    assert ids(SelectedTasks(tmp_path / "tasks.jsonl", "grounding")) == [sibling.task_id]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"task_id": "rendered:tiny/locate/any/train/x"}, "no such task"),
        ({"task_id": "odinw:/nowhere::locate::0"}, "/nowhere"),
        ({"task_id": "selected:/nowhere"}, "no such task"),
        ({"task_type": "referring"}, "is of the type 'locate', not 'referring'"),
    ],
)
def test_a_task_that_cannot_be_loaded_as_its_line_says_names_the_line(
    tmp_path: Path, changes: dict[str, str], fault: str
) -> None:
    source = SelectedTasks(lines(tmp_path / "tasks.jsonl", LINE | {"task_id": ITEMS[3].task_id}, LINE | changes))
    with pytest.raises(DatasetError, match=rf"tasks.jsonl, line 2: .*{fault}"):
        ids(source)


def test_a_negative_seed_is_refused(file: Path) -> None:
    with pytest.raises(TaskError, match="-1"):
        SelectedTasks(file).task(-1)


def test_a_selection_can_be_sent_to_another_process(file: Path) -> None:
    source = SelectedTasks(file)
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)


def test_an_environment_of_a_selection_keeps_the_contract(file: Path) -> None:
    check_env_contract(lambda: gym.make("mimgenv:MultiImageTiny-v0", source=f"selected:{file}"), seeds=(0, 1, 2))


def test_the_oracle_is_always_right_on_a_selection(file: Path) -> None:
    agent = OracleAgent(grid=0.0001)
    played = run_episodes(agent, "MultiImageQA-v0", range(len(ITEMS)), source=f"selected:{file}")
    assert [trajectory.success for trajectory in played] == [True] * len(ITEMS)
    assert {trajectory.task_id for trajectory in played} == {item.task_id for item in ITEMS}
