"""The JSON form of an episode: what is written comes back, and what does not fit is refused by file and line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimgenv.errors import DatasetError
from mimgenv.records import (
    EpisodeRecord,
    EpisodeTurn,
    ViewRecord,
    called_tools,
    iterate_records,
    read_records,
    write_records,
)
from mimgenv.types import Grounding, TextAnswer

HOSTILE = "</script><img src=x onerror=alert(1)>\r\n\x00\x1b[31m\u2028\u202e \ud800 \udfff \N{GRINNING FACE} ٣"
CALL = '<think>Small.</think><tool_call>{"name": "zoom", "arguments": {}}</tool_call>'
RECORD = EpisodeRecord(
    task_id="rendered:referring:7",
    task_type="referring",
    agent="oracle",
    question="Where is the red mug?",
    turns=(
        EpisodeTurn("Image-1: <image> Image-2: <image>", CALL, None, 2),
        EpisodeTurn("Image-3: <image>", "no tags", "bad_turn", 1),
    ),
    reward=1.25,
    reward_parts={"iou": 0.75, "format": 1.0},
    stop="answered",
    success=True,
    tool_calls=("zoom",),
    truth=Grounding(2, "red mug", (10.0, 20.0, 30.0, 40.5)),
    prediction=Grounding(2, "mug", (12.0, 20.0, 30.0, 40.0)),
    views=(
        ViewRecord(1, (0.0, 0.0, 64.0, 48.0), 64, 48),
        ViewRecord(2, (0.0, 0.0, 64.0, 48.0), 64, 48),
        ViewRecord(2, (8.0, 16.0, 40.0, 48.0), 56, 56),
    ),
    box_frame="norm1000",
)


def changed(**fields: Any) -> EpisodeRecord:
    return dataclasses.replace(RECORD, **fields)


def as_json(tmp_path: Path) -> dict[str, Any]:
    write_records(tmp_path / "one.jsonl", [RECORD])
    row: dict[str, Any] = json.loads((tmp_path / "one.jsonl").read_text())
    return row


def reading(tmp_path: Path, line: str | bytes) -> list[EpisodeRecord]:
    """Reads a file whose first line is good and whose second is `line`."""
    path = tmp_path / "episodes.jsonl"
    write_records(path, [RECORD])
    with path.open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    return read_records(path)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    unanswered = changed(prediction=None, truth=TextAnswer("4"), stop="void", success=False)
    write_records(tmp_path / "e.jsonl", [RECORD, unanswered])
    assert read_records(tmp_path / "e.jsonl") == [RECORD, unanswered]


def test_records_come_one_by_one_without_a_look_at_the_lines_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_records(path, [RECORD, changed(agent="other")])
    with path.open("ab") as file:
        file.write(b"\n{\n")
    records = iterate_records(path)
    assert [next(records), next(records)] == [RECORD, changed(agent="other")]
    with pytest.raises(DatasetError, match=r"e\.jsonl, line 4: "):
        next(records)


def test_the_keys_on_disk_are_these(tmp_path: Path) -> None:
    row = as_json(tmp_path)
    assert row["version"] == 1
    assert row["truth"] == {"image": 2, "label": "red mug", "box": [10.0, 20.0, 30.0, 40.5]}
    assert row["views"][2] == {"image": 2, "region": [8.0, 16.0, 40.0, 48.0], "width": 56, "height": 56}
    assert row["turns"][1] == {"message": "Image-3: <image>", "action": "no tags", "error": "bad_turn", "images": 1}
    assert list(row) == [
        "version", "task_id", "task_type", "agent", "question", "turns", "reward", "reward_parts", "stop", "success",
        "tool_calls", "truth", "prediction", "views", "box_frame",
    ]  # fmt: skip


def test_whatever_an_agent_wrote_survives_in_one_ascii_line(tmp_path: Path) -> None:
    record = changed(
        turns=(EpisodeTurn("<image>" * 3, HOSTILE, None, 3),), prediction=Grounding(1, HOSTILE, (0.0, 0.0, 1.0, 1.0))
    )
    write_records(tmp_path / "e.jsonl", [record])
    content = (tmp_path / "e.jsonl").read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == 1
    assert read_records(tmp_path / "e.jsonl") == [record]


def test_a_pair_of_surrogates_comes_back_as_the_character_it_stands_for(tmp_path: Path) -> None:
    write_records(tmp_path / "e.jsonl", [changed(agent="\ud83d" + "\ude00")])
    assert read_records(tmp_path / "e.jsonl")[0].agent == "\N{GRINNING FACE}"


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    record = changed(
        reward=np.float32(0.5),
        reward_parts={"iou": np.float64(0.25)},
        success=np.bool_(True),
        truth=Grounding(np.int64(1), "x", tuple(np.arange(4.0))),
    )
    write_records(tmp_path / "e.jsonl", [record])
    read = read_records(tmp_path / "e.jsonl")[0]
    assert (read.reward, read.reward_parts, read.success) == (0.5, {"iou": 0.25}, True)
    assert read.truth == Grounding(1, "x", (0.0, 1.0, 2.0, 3.0))


def test_append_adds_and_plain_writing_replaces(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_records(path, [RECORD, RECORD])
    write_records(path, [RECORD], append=True)
    assert len(read_records(path)) == 3
    write_records(path, [RECORD])
    assert len(read_records(path)) == 1


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_records(path, [RECORD])
    with pytest.raises(ValueError, match="version 2; this module writes 1"):
        write_records(path, [RECORD, changed(version=2)])
    assert read_records(path) == [RECORD]


def test_empty_lines_and_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    row = as_json(tmp_path) | {"note": "by hand"}
    assert reading(tmp_path, "\n\r\n" + json.dumps(row) + "\r\n") == [RECORD, RECORD]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_at_construction(value: float) -> None:
    with pytest.raises(ValueError, match="reward must be finite"):
        changed(reward=value)
    with pytest.raises(ValueError, match="reward must be finite"):
        changed(reward_parts={"iou": value})
    with pytest.raises(ValueError, match="box must be finite"):
        changed(prediction=Grounding(1, "x", (0.0, 0.0, value, 1.0)))
    with pytest.raises(ValueError, match="region must be finite"):
        ViewRecord(1, (0.0, 0.0, value, 1.0), 2, 2)


def test_views_and_images_of_the_turns_must_agree() -> None:
    with pytest.raises(ValueError, match="3 images in the turns, 2 views"):
        changed(views=RECORD.views[:2])


@pytest.mark.parametrize("view", [(0, 4, 4), (1, 0, 4), (1, 4, 0)])
def test_a_view_has_a_number_and_sides_of_at_least_one(view: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="each must be at least 1"):
        ViewRecord(view[0], (0.0, 0.0, 1.0, 1.0), *view[1:])


def test_a_view_of_an_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="a region needs x1 < x2"):
        ViewRecord(1, (3.0, 0.0, 3.0, 1.0), 2, 2)


def test_an_unknown_version_is_refused_with_file_and_line(tmp_path: Path) -> None:
    row = as_json(tmp_path) | {"version": 2}
    with pytest.raises(DatasetError, match=r"episodes\.jsonl, line 2: unknown version 2; this reader knows 1"):
        reading(tmp_path, json.dumps(row))


def test_a_record_that_does_not_say_its_box_frame_is_read(tmp_path: Path) -> None:
    row = as_json(tmp_path)
    del row["box_frame"]
    assert reading(tmp_path, json.dumps(row)) == [RECORD, changed(box_frame=None)]


def test_an_unknown_box_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="line 2: box_frame 'miles' is not one of"):
        reading(tmp_path, json.dumps(as_json(tmp_path) | {"box_frame": "miles"}))


def test_a_turn_brings_no_fewer_than_no_images() -> None:
    with pytest.raises(ValueError, match="-1 images"):
        EpisodeTurn("", "", None, -1)


def test_the_tools_called_are_those_of_turns_without_an_error() -> None:
    turns = [EpisodeTurn("", CALL, error, 0) for error in (None, "bad_box", None)]
    turns.append(EpisodeTurn("", "<think></think><answer>4</answer>", None, 0))
    assert list(called_tools(turns)) == ["zoom", "zoom"]


@pytest.mark.parametrize("key", ["version", "task_id", "turns", "reward", "success", "truth", "prediction", "views"])
def test_a_missing_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    row = as_json(tmp_path)
    del row[key]
    with pytest.raises(DatasetError, match=f"line 2: key '{key}' is missing"):
        reading(tmp_path, json.dumps(row))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("version", True, "key 'version' must be int, not bool"),
        ("task_id", 3, "key 'task_id' must be str, not int"),
        ("success", 1, "key 'success' must be bool, not int"),
        ("reward", "1", "key 'reward' must be a number, not str"),
        ("reward", True, "key 'reward' must be a number, not bool"),
        ("reward", 10**400, "too large"),
        ("reward_parts", {"iou": None}, "key 'iou' must be a number, not NoneType"),
        ("turns", [[]], "an object is needed here, not list"),
        ("turns", {}, "key 'turns' must be list, not dict"),
        ("turns", [{"message": "", "action": "", "error": 5, "images": 3}], "key 'error' must be str, not int"),
        ("tool_calls", [1], "key 'tool_calls' must be str, not int"),
        ("truth", None, "key 'truth' must be dict, not NoneType"),
        ("truth", {"image": 1, "label": "x", "box": [1, 2, 3]}, "key 'box' needs 4 numbers, not 3"),
        ("prediction", {"image": 1.0, "label": "x", "box": [1, 2, 3, 4]}, "key 'image' must be int, not float"),
        ("views", [], "3 images in the turns, 0 views"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(tmp_path: Path, key: str, value: object, rule: str) -> None:
    row = as_json(tmp_path) | {key: value}
    with pytest.raises(DatasetError, match=f"line 2: .*{rule}"):
        reading(tmp_path, json.dumps(row))


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"version": 1', "[" * 200_000, b"\xff\xfe{}", '{"version": ' + "9" * 5000 + "}"]
)
def test_a_line_that_is_no_json_object_is_refused_with_file_and_line(tmp_path: Path, line: str | bytes) -> None:
    with pytest.raises(DatasetError, match=r"episodes\.jsonl, line 2: "):
        reading(tmp_path, line)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_on_disk_that_is_not_finite_is_refused(tmp_path: Path, number: str) -> None:
    line = json.dumps(as_json(tmp_path)).replace('"reward": 1.25', f'"reward": {number}')
    assert number in line
    with pytest.raises(DatasetError, match="line 2: .*must be finite"):
        reading(tmp_path, line)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")
