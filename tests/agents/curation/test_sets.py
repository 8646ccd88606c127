"""Sets of images: the same number gives the same set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from agents.curation.sets import FolderSets, TaskSets, open_sets
from mimgenv import load_task
from mimgenv.errors import ConfigurationError, DatasetError
from mimgenv.geometry import MAX_PIXELS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        PIL.Image.fromarray(np.full((20 + number, 30, 3), number * 40, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_set_of_a_folder_is_decided_by_seed_and_number(folder: Path) -> None:
    names = [FolderSets(folder, 3)(number).names for number in range(30)]
    assert names == [FolderSets(folder, 3)(number).names for number in range(30)]
    assert names != [FolderSets(folder, 4)(number).names for number in range(30)]
    assert {len(each) for each in names} == {2, 3, 4}
    assert all(len(set(each)) == len(each) for each in names)
    assert {name for each in names for name in each} == {f"{number}.png" for number in range(6)}


def test_names_say_which_images_a_set_holds(folder: Path) -> None:
    drawn = FolderSets(folder)(5)
    assert [int(name[0]) * 40 for name in drawn.names] == [int(image[0, 0, 0]) for image in drawn.images]
    assert drawn.task_id == ""


def test_a_large_image_is_made_smaller(tmp_path: Path) -> None:
    for number in range(2):
        PIL.Image.fromarray(np.full((1500, 3000, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    for image in FolderSets(tmp_path)(0).images:
        height, width = image.shape[:2]
        assert 0.9 * MAX_PIXELS < height * width <= MAX_PIXELS
        assert width / height == pytest.approx(2, rel=0.05)


def test_a_folder_with_too_few_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 images, at least 2 needed"):
        FolderSets(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        FolderSets(tmp_path / "nowhere")


def test_sets_of_tasks_are_their_images() -> None:
    sets = open_sets("rendered", 0, "tiny", ["counting"])
    task = load_task(sets(4).task_id)
    assert task.task_id == "rendered:tiny/counting/any/train/4"
    assert sets(4).names[0] == f"{task.task_id}#1"
    assert all(np.array_equal(*pair) for pair in zip(sets(4).images, task.images, strict=True))
    assert open_sets("rendered", 1, "tiny", ["counting"])(4).task_id != task.task_id


def test_a_source_string_opens_its_kind_of_sets(folder: Path) -> None:
    assert isinstance(open_sets(f"images:{folder}", 0), FolderSets)
    assert isinstance(open_sets("rendered", 0), TaskSets)
    with pytest.raises(ConfigurationError, match="is not one of"):
        open_sets("coco:/data", 0)


def test_other_sets_have_another_fingerprint(folder: Path) -> None:
    first = FolderSets(folder).fingerprint
    assert FolderSets(folder).fingerprint == first != FolderSets(folder, 1).fingerprint
    PIL.Image.new("RGB", (90, 90)).save(folder / "6.png")
    assert FolderSets(folder).fingerprint != first
    prints = {open_sets("rendered", seed, "tiny", types).fingerprint for seed in (0, 1) for types in (None, "qa")}
    assert len(prints) == 4
