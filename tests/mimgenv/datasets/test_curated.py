"""A curated set: what its reader refuses and names, what its writer leaves behind, and what is served of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import PIL.Image
import pytest

from agents.evaluate import main as evaluate
from agents.oracle import OracleAgent
from agents.rollout import run_episodes
from mimgenv import load_task, siblings
from mimgenv.datasets.curated import Item, Review, image_path, item_json
from mimgenv.datasets.curated_files import append_items, drop_torn_line, read_items, write_items
from mimgenv.datasets.curated_tasks import CuratedTasks, load_curated_task
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.records import read_records
from mimgenv.tasks.registry import open_source
from mimgenv.testing import check_env_contract
from mimgenv.types import Grounding, TextAnswer
from mimgenv.viewer import main as view

WIDTH, HEIGHT = 64, 48
GROUNDING = Item(
    id="a-1",
    images=("images/0.png", "images/1.png"),
    question="Find the mug that is in both images.",
    task_type="common_object",
    truth=Grounding(2, "mug", (4.0, 6.5, 20.0, 30.0)),
    provenance={"sources": ["kitchen.jpg"], "seed": 3},
)
CHOICE = Item(
    id="a-2",
    images=("images/1.png", "images/2.png", "images/0.png"),
    question="Which image is the brightest?",
    task_type="comparison",
    truth=TextAnswer("B"),
    options=("Image-1", "Image-2"),
    review=Review("edited", "ann", "wording"),
)
FREE = Item("a-3", ("images/2.png",), "How many lamps are there?", "counting", TextAnswer("3"))
SET = (GROUNDING, CHOICE, FREE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images and no JSON yet."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


@pytest.fixture
def file(folder: Path) -> Path:
    """A set of three items."""
    write_items(folder / "set.jsonl", SET)
    return folder / "set.jsonl"


def changed(item: Item = GROUNDING, **values: Any) -> dict[str, Any]:
    """The row of an item with some keys set, or taken away where the value is None."""
    row = item_json(item) | values
    return {key: value for key, value in row.items() if value is not None}


# Reading


def test_what_is_written_is_read_again(file: Path) -> None:
    assert read_items(file) == SET
    assert file.read_bytes().isascii()


def test_a_line_is_the_object_that_the_schema_states() -> None:
    assert item_json(GROUNDING) == {
        "version": 1,
        "id": "a-1",
        "images": ["images/0.png", "images/1.png"],
        "question": "Find the mug that is in both images.",
        "task_type": "common_object",
        "grounding": {"image": 2, "bbox_2d": [4.0, 6.5, 20.0, 30.0], "label": "mug"},
        "provenance": {"sources": ["kitchen.jpg"], "seed": 3},
    }
    assert changed(CHOICE)["answer"] == "B"
    assert changed(CHOICE)["options"] == ["Image-1", "Image-2"]
    assert changed(CHOICE)["review"] == {"verdict": "edited", "by": "ann", "note": "wording"}


def box(*sides: Any, image: Any = 2, label: Any = "mug") -> dict[str, Any]:
    return changed(grounding={"image": image, "bbox_2d": list(sides), "label": label})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (changed(version=2), "unknown version 2; this reader knows 1"),
        (changed(version=True), "unknown version True"),
        (changed(version=None), "unknown version None"),
        (changed(question=None), "lacks the key 'question'"),
        (changed(choices=["a"]), "unknown key 'choices'"),
        (changed(grounding=None), "exactly one of 'grounding' and 'answer'"),
        (changed(answer="3"), "exactly one of 'grounding' and 'answer'"),
        (changed(images="images/0.png"), "images must be list, not str"),
        (changed(images=[]), "at least one image"),
        (changed(images=["images/0.png", 3]), "entry of images must be str"),
        (changed(images=["images/0.png", "images/9.png"]), "'images/9.png' is missing"),
        (changed(images=["images/0.png", "images"]), "'images' is missing"),
        (changed(images=["images/0.png", "images/text.png"]), "'images/text.png' cannot be decoded"),
        (changed(images=["images/0.png", "images/cut.png"]), "'images/cut.png' cannot be decoded"),
        (changed(images=["images/0.png", "images/cut.jpg"]), "'images/cut.jpg' cannot be decoded"),
        (changed(images=["images/0.png", "images/bent.png"]), "'images/bent.png' cannot be decoded"),
        (changed(images=["images/0.png", "images/long.png"]), "sides of (20000, 2) pixels"),
        (changed(images=["images/0.png", "images/deep.png"]), "8 bits a channel"),
        (changed(images=["images/0.png", "link.png"]), "'link.png' does not"),
        (changed(images=["images/0.png", "../set.png"]), "'../set.png' is not"),
        (changed(images=["images/0.png", "images/../images/1.png"]), "is not"),
        (changed(images=["images/0.png", "/etc/passwd"]), "'/etc/passwd' is not"),
        (changed(images=["images/0.png", "images\\1.png"]), "is not"),
        (changed(images=["images/0.png", ""]), "'' is not"),
        (box(4, 6, 65, 30), "reaches out of its image of 64x48"),
        (box(4, 6, 20, 49), "reaches out of its image of 64x48"),
        (box(-1, 6, 20, 30), "0 <= x1 < x2"),
        (box(20, 6, 20, 30), "0 <= x1 < x2"),
        (box(4, 30, 20, 6), "0 <= y1 < y2"),
        (box(4, 6, 20), "four numbers"),
        (box(4, 6, 20, "30"), "four numbers"),
        (box(4, 6, 20, True), "four numbers"),
        (box(4, 6, 20, 10**400), "too large"),
        (box(4, 6, 20, 30, image=3), "image 3 of 2"),
        (box(4, 6, 20, 30, image=0), "image 0 of 2"),
        (box(4, 6, 20, 30, image=1.0), "whole number"),
        (box(4, 6, 20, 30, label=" "), "the label needs"),
        (box(4, 6, 20, 30, label="</answer>"), "'</answer>'"),
        (changed(question="Look: <image>"), "'<image>'"),
        (changed(question="a <|im_end|> b"), "'<|im_end|>'"),
        (changed(question="\ud800"), "surrogates"),
        (changed(question="x" * 4001), "1 to 4000 characters, not 4001"),
        (changed(id="a/1"), "id 'a/1'"),
        (changed(id=7), "id must be str"),
        (changed(task_type="Two Words"), "task_type 'Two Words'"),
        (changed(CHOICE, answer="C"), "one letter of AB, not 'C'"),
        (changed(CHOICE, answer="AB"), "one letter of AB, not 'AB'"),
        (changed(CHOICE, options=["one"]), "2 to 26"),
        (changed(CHOICE, options=["one", " "]), "none empty"),
        (changed(options=["one", "two"]), "options beside grounding"),
        (changed(review={"verdict": "good", "by": "ann"}), "verdict 'good'"),
        (changed(review={"verdict": "accepted", "by": ""}), "who it is by"),
        (changed(review={"verdict": "accepted"}), "lacks the key 'by'"),
        (changed(provenance=[]), "provenance must be dict"),
        ([], "a line must be dict"),
    ],
)
def test_a_fault_is_named_with_its_file_and_line(folder: Path, row: Any, fault: str) -> None:
    images = folder / "images"
    (images / "text.png").write_text("no image")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:2000])
    PIL.Image.new("L", (20_000, 2)).save(images / "long.png")
    PIL.Image.open(images / "0.png").save(images / "whole.jpg")
    (images / "cut.jpg").write_bytes((images / "whole.jpg").read_bytes()[:-400])
    whole = (images / "0.png").read_bytes()
    (images / "bent.png").write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    PIL.Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(images / "deep.png")
    (folder / "link.png").symlink_to("/etc/hostname")
    lines = [json.dumps(item_json(FREE)), "", json.dumps(row)]
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError) as raised:
        read_items(folder / "set.jsonl")
    assert str(raised.value).startswith(f"{folder / 'set.jsonl'}, line 3: ")
    assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "Expecting property name"),
        ('{"version": 1, "version": 1}', "a key stands twice"),
        (json.dumps(changed(provenance={"loss": float("nan")})), "finite, not NaN"),
        (json.dumps(changed()).replace("6.5", "NaN"), "finite, not NaN"),
        (json.dumps(changed()).replace("6.5", "1e999"), "finite, not 1e999"),
        ("[" * 100_000, "recursion"),
        (json.dumps(item_json(FREE)), "the id 'a-3' stands on an earlier line"),
    ],
)
def test_a_line_that_is_no_json_or_stands_twice_is_named(folder: Path, line: str, fault: str) -> None:
    (folder / "set.jsonl").write_text(json.dumps(item_json(FREE)) + "\n" + line + "\n")
    with pytest.raises(DatasetError, match="set.jsonl, line 2: ") as raised:
        read_items(folder / "set.jsonl")
    assert fault in str(raised.value)
    assert "torn" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere.jsonl"):
        read_items(tmp_path / "nowhere.jsonl")


def test_an_image_path_leads_to_a_file_of_the_folder(folder: Path) -> None:
    assert image_path(folder, "images/0.png") == folder.resolve() / "images" / "0.png"


# Writing


def test_a_write_that_fails_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    for items in ([FREE, FREE], [replace(FREE, images=("images/9.png",))]):
        with pytest.raises(DatasetError, match="a-3"):
            write_items(file, items)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        write_items(file, [FREE])
    assert file.read_bytes() == before


def test_added_items_stand_behind_those_that_were_there(folder: Path) -> None:
    for item in SET:
        append_items(folder / "set.jsonl", [item])
    assert read_items(folder / "set.jsonl") == SET


def test_a_line_torn_at_any_byte_is_named_refused_and_dropped(file: Path) -> None:
    whole = file.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(whole) - 1, 7):
        file.write_bytes(whole[:end])
        with pytest.raises(DatasetError, match="line 3: the last line is torn"):
            read_items(file)
        with pytest.raises(DatasetError, match="the last line is torn"):
            append_items(file, [FREE])
        assert drop_torn_line(file) == whole[start:end]
        append_items(file, [FREE])
        assert read_items(file) == SET


def test_a_last_line_that_lacks_only_its_newline_is_whole(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    assert drop_torn_line(file) == b""
    append_items(file, [replace(FREE, id="a-4")])
    assert [item.id for item in read_items(file)] == ["a-1", "a-2", "a-3", "a-4"]


def test_nothing_is_dropped_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert drop_torn_line(tmp_path / "set.jsonl") == b""


# Serving


def test_seeds_visit_each_item_once_in_an_order_that_stays(file: Path) -> None:
    write_items(file, [replace(FREE, id=f"n{number}") for number in range(20)])
    order = [CuratedTasks(file).task(seed).task_id for seed in range(20)]
    assert len(set(order)) == 20
    assert order == [CuratedTasks(file).task(seed).task_id for seed in range(20, 40)]
    assert order != [f"curated:{file}::n{number}" for number in range(20)]


def test_a_task_is_what_its_line_says(file: Path) -> None:
    task = load_task(f"curated:{file}::a-2")
    assert (task.task_type, task.truth, task.objects) == ("comparison", TextAnswer("B"), ((), (), ()))
    assert task.question == "Which image is the brightest?\nA. Image-1\nB. Image-2"
    numbers = [1, 2, 0]
    known = [np.random.default_rng(n).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for n in numbers]
    assert all(np.array_equal(*pair) for pair in zip(task.images, known, strict=True))
    assert load_task(f"curated:{file}::a-1").truth == GROUNDING.truth
    assert siblings(task) == ()


def test_rejected_items_are_not_served(file: Path) -> None:
    write_items(file, [GROUNDING, replace(FREE, review=Review("rejected", "ann")), CHOICE])
    source = CuratedTasks(file)
    assert {source.task(seed).task_id.rpartition(":")[2] for seed in range(9)} == {"a-1", "a-2"}
    with pytest.raises(TaskError, match="a-3"):
        load_curated_task(f"curated:{file}::a-3")


def test_a_set_without_an_item_to_serve_is_refused(file: Path) -> None:
    write_items(file, [replace(FREE, review=Review("rejected", "ann"))])
    with pytest.raises(DatasetError, match="1 in the file, 1 rejected"):
        CuratedTasks(file)


@pytest.mark.parametrize(
    ("tasks", "types"),
    [
        (None, ("common_object", "comparison", "counting")),
        ("grounding", ("common_object",)),
        ("qa", ("comparison", "counting")),
        ("counting", ("counting",)),
        (["counting", "common_object"], ("common_object", "counting")),
    ],
)
def test_types_are_chosen_by_name_or_by_kind_of_truth(file: Path, tasks: Any, types: tuple[str, ...]) -> None:
    source = open_source(f"curated:{file}", None, tasks, "train", None)
    assert source.task_types == types
    assert {source.task(seed).task_type for seed in range(len(source))} == set(types)


@pytest.mark.parametrize("tasks", ["chess", [], ["counting", "chess"]])
def test_a_type_that_is_not_in_the_file_is_refused(file: Path, tasks: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"not among .*'common_object'"):
        open_source(f"curated:{file}", None, tasks, "train", None)


def test_a_kind_of_truth_that_is_not_in_the_file_is_refused(file: Path) -> None:
    write_items(file, [FREE])
    with pytest.raises(ConfigurationError, match="no grounding tasks"):
        CuratedTasks(file, "grounding")


@pytest.mark.parametrize("task_id", ["curated:", "curated:set.jsonl::a-1", "curated:/x.jsonl", "curated:/x.jsonl::"])
def test_an_id_of_another_form_is_refused(task_id: str) -> None:
    with pytest.raises(TaskError, match="not of the form"):
        load_task(task_id)


def test_one_task_has_one_id(file: Path) -> None:
    with pytest.raises(TaskError, match="no such task"):
        load_task(f"curated:{file.parent}/images/../set.jsonl::a-1")


def test_a_negative_seed_is_refused(file: Path) -> None:
    with pytest.raises(TaskError, match="-1"):
        CuratedTasks(file).task(-1)


def test_an_image_that_has_gone_is_named(file: Path) -> None:
    source = CuratedTasks(file)
    (file.parent / "images" / "2.png").unlink()
    with pytest.raises(DatasetError, match=r"a-3: the image 'images/2.png' is missing"):
        source.by_id("a-3")


def test_an_environment_of_a_curated_set_keeps_the_contract(file: Path) -> None:
    check_env_contract(
        lambda: gym.make("mimgenv:MultiImageQA-v0", source=f"curated:{file}", tasks=None), seeds=(0, 1, 2)
    )


def test_the_oracle_is_always_right_on_a_curated_set(file: Path) -> None:
    played = run_episodes(
        OracleAgent(grid=0.5), "MultiImageQA-v0", range(3), source=f"curated:{file}", tasks=None, box_frame="pixel"
    )
    assert [trajectory.success for trajectory in played] == [True] * 3
    assert {trajectory.task_type for trajectory in played} == {"common_object", "comparison", "counting"}


def test_the_commands_take_a_curated_set(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", f"curated:{file}", "--env", "MultiImageQA-v0"]
    evaluate([*arguments, "--agent", "oracle", "--output", str(tmp_path / "run"), "--blind_episodes", "0"])
    (records,) = (tmp_path / "run").glob("*.jsonl")
    assert [record.success for record in read_records(records)] == [True] * 3
    assert "oracle" in capsys.readouterr().out
    view([*arguments, "--seeds", "0:9", "-o", str(tmp_path / "page.html")])
    assert "Which image is the brightest" in (tmp_path / "page.html").read_text()
