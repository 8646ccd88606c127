"""Reading a COCO folder safely, and making tasks of it whose target is unique."""

import itertools
import json
import math
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mimgenv.datasets.coco import ANNOTATIONS, read_coco, read_pixels
from mimgenv.datasets.odinw import OdinwTasks, load_odinw_task
from mimgenv.errors import ConfigurationError, DatasetError, TaskError
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Grounding, Task

WIDTH, HEIGHT = 64, 48
BOX = [4, 6, 10, 12]

Data = dict[str, Any]


def write_folder(folder: Path, photographs: Sequence[Sequence[str]], extra: Sequence[Data] = ()) -> Data:
    """Writes photographs `0.jpg`, `1.jpg`, … with one box per label named, and `extra` annotations as they are."""
    folder.mkdir(exist_ok=True)
    labels = sorted({label for photograph in photographs for label in photograph})
    for number in range(len(photographs)):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    places = [(number, label) for number, photograph in enumerate(photographs) for label in photograph]
    data = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(len(photographs))
        ],
        "categories": [{"id": 10 + i, "name": label} for i, label in enumerate(labels)],
        "annotations": [
            {"id": i, "image_id": number, "category_id": 10 + labels.index(label), "bbox": [i % 40, *BOX[1:]]}
            for i, (number, label) in enumerate(places)
        ]
        + list(extra),
    }
    rewrite(folder, data)
    return data


def rewrite(folder: Path, data: object) -> None:
    (folder / ANNOTATIONS).write_text(json.dumps(data), encoding="utf-8")


def numbers_of(task: Task) -> list[int]:
    """Which photographs of a synthetic folder a task shows."""
    known = [np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for i in range(30)]
    return [min(range(30), key=lambda i: np.abs(image.astype(int) - known[i]).mean()) for image in task.images]


@pytest.fixture
def cats_and_dogs(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pets", [["cat"], ["dog"], ["cat", "dog"], ["cat", "cat"], ["dog", "bird"]])
    return tmp_path / "pets"


def all_tasks(source: OdinwTasks) -> list[Task]:
    return [source.task(seed) for seed in range(len(source))]


# ---- what a task is ----


def test_the_source_fulfils_the_task_source_protocol(cats_and_dogs: Path) -> None:
    source: TaskSource = OdinwTasks(cats_and_dogs)
    assert source.task_types == ("locate", "group_grounding", "common_object")
    assert len(source) == len({source.task(seed).task_id for seed in range(len(source))})


def test_locate_asks_for_the_only_box_of_a_class_in_one_photograph(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat", "dog", "dog"]])
    source = OdinwTasks(tmp_path)
    task = source.task(0)
    assert (len(source), len(task.images), task.named_image) == (1, 1, 1)
    assert task.question == "Find the cat in Image-1."
    assert task.truth == Grounding(1, "cat", (0.0, 6.0, 10.0, 18.0))
    assert task.rationale == "Image-1 has one cat."
    assert [annotated.label for annotated in task.objects[0]] == ["cat", "dog", "dog"]
    assert {annotated.identity for annotated in task.objects[0]} == {None}


def test_group_grounding_shows_the_class_in_one_photograph_only(cats_and_dogs: Path) -> None:
    tasks = all_tasks(OdinwTasks(cats_and_dogs, ["group_grounding"]))
    assert tasks
    for task in tasks:
        assert isinstance(task.truth, Grounding)
        shown = [[annotated.label for annotated in objects] for objects in task.objects]
        assert 2 <= len(shown) <= 4
        assert [labels.count(task.truth.label) for labels in shown] == [
            int(image == task.truth.image) for image in range(1, len(shown) + 1)
        ]
        assert task.question == f"Find the {task.truth.label}: in which image is it, and where?"
        assert task.named_image is None


def test_the_rationale_of_group_grounding_names_the_images_without_the_class(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"], ["dog", "dog"]])
    task = OdinwTasks(tmp_path, ["group_grounding"]).task(0)
    assert task.rationale in ("The cat is in Image-1; Image-2 has none.", "The cat is in Image-2; Image-1 has none.")


def test_common_object_asks_for_the_only_class_that_all_photographs_share(cats_and_dogs: Path) -> None:
    tasks = all_tasks(OdinwTasks(cats_and_dogs, ["common_object"]))
    assert tasks
    for task in tasks:
        assert isinstance(task.truth, Grounding)
        sets = [{annotated.label for annotated in objects} for objects in task.objects]
        assert set.intersection(*sets) == {task.truth.label}
        named = [annotated.label for annotated in task.objects[task.truth.image - 1]]
        assert named.count(task.truth.label) == 1
        assert task.named_image == task.truth.image
        assert task.question == f"These images share one kind of object. Find it in Image-{task.named_image}."


def test_common_object_asks_only_for_the_class_that_is_in_every_photograph(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cell", "a"], ["cell", "a", "b"], ["cell", "b"]])
    source = OdinwTasks(tmp_path, ["common_object"])
    assert {task.truth.label for task in all_tasks(source) if isinstance(task.truth, Grounding)} == {"cell"}
    assert len(source) == 3


def test_a_class_of_a_single_photograph_is_common_to_none(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"], ["dog", "dog"]])
    source = OdinwTasks(tmp_path)
    reason = "no 2 to 4 photographs have exactly one class in common that one of them shows once"
    assert source.unsupported == {"common_object": reason}


def test_common_object_items_are_those_that_a_search_of_all_combinations_finds(tmp_path: Path) -> None:
    counts = Counter[bool]()
    for trial in range(25):
        rng = np.random.default_rng(trial)
        photographs = [[c for c in "abcde" for _ in range(rng.integers(0, 3))] for _ in range(rng.integers(2, 7))]
        write_folder(tmp_path / str(trial), photographs)
        found = 0
        for target, label in itertools.product(range(len(photographs)), "abcde"):
            others = [set(p) for i, p in enumerate(photographs) if i != target]
            groups = (g for n in (1, 2, 3) for g in itertools.combinations(others, n))
            unique = photographs[target].count(label) == 1
            found += unique and any(set(photographs[target]).intersection(*group) == {label} for group in groups)
        source = OdinwTasks(tmp_path / str(trial))
        assert source.count("common_object") == found
        assert all(source.by_id("common_object", number).images for number in range(found))
        counts[found > 0] += 1
    assert counts[True] > 3 and counts[False] > 3


def test_the_target_is_in_each_position_about_equally_often(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"]] * 150 + [["dog"]] * 150)
    for task_type in ("group_grounding", "common_object"):
        tasks = all_tasks(OdinwTasks(tmp_path, [task_type]))
        places = Counter((len(t.images), t.truth.image) for t in tasks if isinstance(t.truth, Grounding))
        for count in (2, 3, 4):
            share = 300 / 3 / count
            assert all(0.5 * share < places[count, place] < 1.5 * share for place in range(1, count + 1))


def test_images_are_the_unrotated_rgb_pixels_of_the_files(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [["cat"]])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    PIL.Image.new("L", (WIDTH, HEIGHT), 77).save(tmp_path / "0.png", exif=exif)
    data["images"][0]["file_name"] = "0.png"
    rewrite(tmp_path, data)
    image = OdinwTasks(tmp_path).task(0).images[0]
    assert (image.shape, image.dtype.name, set(image.ravel().tolist())) == ((HEIGHT, WIDTH, 3), "uint8", {77})
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


def test_a_box_is_clipped_to_its_photograph(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [["cat"]])
    data["annotations"][0]["bbox"] = [-5, 40, 20.5, 100]
    rewrite(tmp_path, data)
    assert OdinwTasks(tmp_path).task(0).truth == Grounding(1, "cat", (0.0, 40.0, 15.5, 48.0))


# ---- seeds and ids ----


def test_seeds_visit_each_item_once_then_start_again(cats_and_dogs: Path) -> None:
    source = OdinwTasks(cats_and_dogs)
    ids = [source.task(seed).task_id for seed in range(len(source))]
    assert len(set(ids)) == len(source) == sum(source.count(task_type) for task_type in source.task_types)
    assert source.task(len(source) + 3).task_id == ids[3]
    order = [tuple(task_id.rsplit("::", 2)[1:]) for task_id in ids]
    assert order[:4] == [("group_grounding", "4"), ("locate", "5"), ("locate", "0"), ("group_grounding", "5")]


def test_a_negative_seed_is_refused(cats_and_dogs: Path) -> None:
    with pytest.raises(TaskError, match="at least 0, not -1"):
        OdinwTasks(cats_and_dogs).task(-1)


def assert_same(a: Task, b: Task) -> None:
    fields = ("task_id", "task_type", "question", "truth", "rationale", "objects", "named_image")
    assert [getattr(a, name) for name in fields] == [getattr(b, name) for name in fields]
    assert len(a.images) == len(b.images)
    assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_an_id_makes_the_same_task_again_whatever_types_were_asked_for(cats_and_dogs: Path) -> None:
    for tasks in (None, ["common_object"], ["locate", "group_grounding"]):
        for task in all_tasks(OdinwTasks(cats_and_dogs, tasks)):
            assert_same(task, load_odinw_task(task.task_id))


def test_a_folder_with_colons_in_its_name_can_stand_in_an_id(tmp_path: Path) -> None:
    write_folder(tmp_path / "a::locate::7", [["cat"]])
    task = OdinwTasks(tmp_path / "a::locate::7").task(0)
    assert_same(task, load_odinw_task(task.task_id))


def test_an_id_holds_the_absolute_folder(cats_and_dogs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cats_and_dogs.parent)
    assert OdinwTasks("pets").by_id("locate", 2).task_id == f"odinw:{os.path.realpath(cats_and_dogs)}::locate::2"


@pytest.mark.parametrize(
    "task_id", ["", "odinw:pets::locate::0", "odinw:/a::locate", "odinw:/a::locate::-1", "odinw:/a::locate::٣", "/a"]
)
def test_a_malformed_id_is_refused(task_id: str) -> None:
    with pytest.raises(TaskError, match="not of the form odinw:<absolute folder>::<type>::<n>"):
        load_odinw_task(task_id)


@pytest.mark.parametrize(("task_type", "number"), [("locate", 99), ("counting", 0)])
def test_an_id_without_an_item_is_refused(cats_and_dogs: Path, task_type: str, number: int) -> None:
    with pytest.raises(TaskError, match=f"no item {number} of type '{task_type}'"):
        load_odinw_task(f"odinw:{cats_and_dogs}::{task_type}::{number}")


def test_an_id_of_an_unsupported_type_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"], ["cat"]])
    with pytest.raises(TaskError, match="two classes are needed"):
        OdinwTasks(tmp_path).by_id("common_object", 0)


def test_a_source_can_be_sent_to_another_process(cats_and_dogs: Path) -> None:
    source = OdinwTasks(cats_and_dogs)
    assert_same(source.task(1), pickle.loads(pickle.dumps(source)).task(1))


def test_reading_a_folder_prints_nothing(cats_and_dogs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    OdinwTasks(cats_and_dogs).task(0)
    assert capfd.readouterr() == ("", "")


# ---- what a folder cannot support ----


def test_a_folder_of_one_class_supports_locate_only(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"], ["cat"], []])
    source = OdinwTasks(tmp_path)
    reason = "two classes are needed, and 'cat' is the only one"
    assert source.task_types == ("locate",)
    assert source.unsupported == {"group_grounding": reason, "common_object": reason}


def test_classes_in_every_photograph_support_neither_type_of_several_photographs(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat", "dog"], ["cat", "dog"], ["cat", "dog"]])
    source = OdinwTasks(tmp_path)
    everywhere = "in more than 90% of the photographs, so in none surely absent: 'cat', 'dog'"
    assert source.task_types == ("locate",)
    assert source.unsupported == {
        "group_grounding": f"each class that a photograph shows once is {everywhere}",
        "common_object": "no 2 to 4 photographs have exactly one class in common that one of them shows once; "
        + everywhere,
    }


def test_a_class_that_a_few_photographs_lack_is_absent_from_none(tmp_path: Path) -> None:
    for lacking, expected in ((1, 0), (2, 18)):  # 1 and 2 of 20 photographs; a tenth is 2
        photographs = [["cell"]] * (20 - lacking) + [["speck", "speck", "dust"]] * lacking
        write_folder(tmp_path / str(lacking), photographs)
        tasks = all_tasks(OdinwTasks(tmp_path / str(lacking)))
        cells = [t for t in tasks if t.task_type == "group_grounding" and "cell" in t.question]
        assert len(cells) == expected


def test_asking_for_an_unsupported_type_quotes_the_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat"], ["cat"]])
    with pytest.raises(ConfigurationError, match="cannot support 'common_object': two classes are needed, and 'cat'"):
        OdinwTasks(tmp_path, ["locate", "common_object"])


@pytest.mark.parametrize(("tasks", "message"), [(["counting"], "unknown task type 'counting'"), ([], "it is empty")])
def test_asking_for_an_unknown_type_or_none_is_refused(cats_and_dogs: Path, tasks: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OdinwTasks(cats_and_dogs, tasks)


def test_a_folder_without_any_task_is_refused_with_the_reasons(tmp_path: Path) -> None:
    write_folder(tmp_path, [["cat", "cat"], ["cat", "cat"]])
    with pytest.raises(DatasetError, match=f"{ANNOTATIONS}: no task .* no photograph has exactly one box of a class"):
        OdinwTasks(tmp_path)


# ---- annotations that are left out ----


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"bbox": [5, 5, 0, 9]}, "box [5, 5, 0, 9] has no area"),
        ({"bbox": [5, 5, 9, -2]}, "box [5, 5, 9, -2] has no area"),
        ({"bbox": [64, 5, 9, 9]}, "box [64, 5, 9, 9] has no area inside the image"),
        ({"bbox": [5, math.nan, 9, 9]}, "box [5, nan, 9, 9] is not finite"),
        ({"bbox": [5, 5, math.inf, 9]}, "box [5, 5, inf, 9] is not finite"),
        ({"bbox": [5, 5, 9, 9], "iscrowd": 1}, "box [5, 5, 9, 9] is a crowd, not one object"),
    ],
)
def test_a_class_with_an_annotation_left_out_is_neither_unique_nor_absent_there(
    tmp_path: Path, fields: Data, problem: str
) -> None:
    bad = {"id": 77, "image_id": 0, "category_id": 10, **fields}  # one more cat in photograph 0, and one in 1
    write_folder(tmp_path, [["cat", "dog"], ["dog"], ["cat"]], [bad, {**bad, "id": 78, "image_id": 1}])
    source = OdinwTasks(tmp_path)
    assert source.skipped == (f"annotation 77 of 0.jpg: {problem}", f"annotation 78 of 1.jpg: {problem}")
    items = [(task.task_type, task.truth.label, sorted(numbers_of(task))) for task in all_tasks(source)]  # type: ignore[union-attr]
    assert sorted(items) == [
        ("common_object", "cat", [0, 2]),
        ("group_grounding", "dog", [0, 2]),
        ("group_grounding", "dog", [1, 2]),
        ("locate", "cat", [2]),
        ("locate", "dog", [0]),
        ("locate", "dog", [1]),
    ]
    assert [len(p.objects) for p in read_coco(tmp_path).photographs] == [2, 1, 1]


# ---- folders that are refused ----


def truncate(folder: Path) -> None:
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[:-20])


def link_outside(folder: Path) -> None:
    (folder / "1.jpg").rename(folder.parent / "outside.jpg")
    (folder / "1.jpg").symlink_to(folder.parent / "outside.jpg")


def thumbnail(folder: Path) -> None:
    PIL.Image.new("RGB", (32, 24)).save(folder / "1.jpg")


def other_format(folder: Path) -> None:
    PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.jpg", "GIF")


def deep_image(folder: Path) -> None:
    PIL.Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(folder / "1.jpg", "PNG")


FILES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no annotation file": (lambda f: (f / ANNOTATIONS).unlink(), f"{ANNOTATIONS}: the annotation file is missing"),
    "invalid JSON": (lambda f: (f / ANNOTATIONS).write_text("{"), f"{ANNOTATIONS}: invalid JSON"),
    "not text": (lambda f: (f / ANNOTATIONS).write_bytes(b"\xff\xfe\xfa"), f"{ANNOTATIONS}: invalid JSON"),
    "deep JSON": (lambda f: (f / ANNOTATIONS).write_text("[" * 200_000), f"{ANNOTATIONS}: invalid JSON"),
    "not an object": (lambda f: rewrite(f, [1]), f"{ANNOTATIONS}: there is no list 'images'"),
    "no image": (lambda f: (f / "1.jpg").unlink(), f"{ANNOTATIONS}: the image file '1.jpg' is missing"),
    "not an image": (lambda f: (f / "1.jpg").write_text("hello"), "1.jpg: the image cannot be decoded"),
    "an empty image": (lambda f: (f / "1.jpg").write_bytes(b""), "1.jpg: the image cannot be decoded"),
    "a truncated JPEG": (truncate, r"1.jpg: the image cannot be decoded \(.*truncated"),
    "another format": (other_format, "1.jpg: the image cannot be decoded"),
    "another size": (thumbnail, "1.jpg: the image has 32x24 pixels, the JSON says 64x48"),
    "16 bits": (deep_image, "1.jpg: an image must have 8 bits a channel, its mode is I;16"),
    "a link outside": (link_outside, f"{ANNOTATIONS}: an image must lie in the folder of the JSON, '1.jpg' does not"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused_at_load_and_named(cats_and_dogs: Path, case: str) -> None:
    damage, message = FILES[case]
    damage(cats_and_dogs)
    with pytest.raises(DatasetError, match=message):
        OdinwTasks(cats_and_dogs)


ROWS: Mapping[str, tuple[str, Data | None, str]] = {
    "no list of images": ("images", None, "there is no list 'images'"),
    "no list of categories": ("categories", None, "there is no list 'categories'"),
    "no list of annotations": ("annotations", None, "there is no list 'annotations'"),
    "no file name": ("images", {"file_name": None}, r"images\[1\] has no 'file_name' of type str"),
    "no width": ("images", {"width": "64"}, r"images\[1\] has no 'width' of type int"),
    "no category name": ("categories", {"name": 3}, r"categories\[1\] has no 'name' of type str"),
    "no bbox": ("annotations", {"bbox": None}, r"annotations\[1\] has no 'bbox' of type list"),
    "a list as id": ("annotations", {"image_id": [1]}, r"annotations\[1\] has no 'image_id' of type int or str"),
    "three numbers": ("annotations", {"bbox": [1, 2, 3]}, "the bbox of annotation 1 is not four numbers"),
    "text in a box": ("annotations", {"bbox": [1, 2, 3, "4"]}, "the bbox of annotation 1 is not four numbers"),
    "a truth value": ("annotations", {"bbox": [1, 2, 3, True]}, "the bbox of annotation 1 is not four numbers"),
    "a huge number": ("annotations", {"bbox": [1, 2, 3, 10**400]}, "the bbox of annotation 1 is not four numbers"),
    "unknown image": ("annotations", {"image_id": 99}, "annotation 1 names the unknown image id 99"),
    "unknown category": ("annotations", {"category_id": 99}, "annotation 1 names the unknown category id 99"),
    "image id twice": ("images", {"id": 0}, "2 images with the id 0, 1 allowed"),
    "image file twice": ("images", {"file_name": "./0.jpg"}, "2 images in the file '.*0.jpg', 1 allowed"),
    "category id twice": ("categories", {"id": 10}, "2 categories with the id 10, 1 allowed"),
    "category name twice": ("categories", {"name": "bird"}, "2 categories with the name 'bird', 1 allowed"),
    "marker in a name": ("categories", {"name": "a <image>"}, "printable text without <image>.* not 'a <image>'"),
    "line in a name": ("categories", {"name": "a\nb"}, r"a category name must be printable text .* not 'a\\nb'"),
    "half a character": ("categories", {"name": "\ud800"}, r"a category name must be printable text .* not '\\ud800'"),
    "empty name": ("categories", {"name": " "}, "a category name must be printable text .* not ' '"),
    "marker in a file": ("images", {"file_name": "<image>.jpg"}, "a file name must not hold <image>"),
    "parent folder": ("images", {"file_name": "../1.jpg"}, "must lie in the folder of the JSON, '../1.jpg' does not"),
    "absolute path": ("images", {"file_name": "/etc/passwd"}, "must lie in the folder of the JSON, '/etc/passwd'"),
    "NUL in a file": ("images", {"file_name": "a\0b"}, "is no path"),
    "endless file name": ("images", {"file_name": "a" * 5000}, "is no path|is missing"),
    "folder as a file": ("images", {"file_name": "."}, "the image file '.' is missing"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_entry_is_refused_at_load_and_the_json_named(tmp_path: Path, case: str) -> None:
    table, change, message = ROWS[case]
    data = write_folder(tmp_path, [["cat"], ["bird"], ["cat"]])
    OdinwTasks(tmp_path)
    if change is None:
        del data[table]
    else:
        data[table][1] |= change
    rewrite(tmp_path, data)
    with pytest.raises(DatasetError, match=f"{ANNOTATIONS}.*{message}"):
        OdinwTasks(tmp_path)


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [["cat"]])
    data["images"][0]["file_name"] = str(tmp_path / "0.jpg")
    rewrite(tmp_path, data)
    with pytest.raises(DatasetError, match="must lie in the folder of the JSON"):
        OdinwTasks(tmp_path)


@pytest.mark.parametrize("folder", ["/no/such/folder", "a\0b"])
def test_a_folder_that_does_not_exist_is_refused_and_named(folder: str) -> None:
    with pytest.raises(DatasetError, match=r"the annotation file is missing|is no path"):
        OdinwTasks(folder)


def test_a_photograph_that_vanishes_after_load_is_named(cats_and_dogs: Path) -> None:
    source = OdinwTasks(cats_and_dogs)
    (cats_and_dogs / "0.jpg").unlink()
    with pytest.raises(DatasetError, match=r"0\.jpg: the image cannot be decoded"):
        source.by_id("locate", 0)


def test_a_tiny_photograph_can_be_read(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [["cat"]])
    PIL.Image.new("RGB", (3, 2)).save(tmp_path / "0.jpg")
    data["images"][0] |= {"width": 3, "height": 2}
    data["annotations"][0]["bbox"] = [0, 0, 2, 2]
    rewrite(tmp_path, data)
    assert OdinwTasks(tmp_path).task(0).images[0].shape == (2, 3, 3)


def test_only_the_last_few_photographs_stay_in_memory() -> None:
    assert read_pixels.cache_info().maxsize == 32


# ---- real photographs ----


def bccd(split: str) -> Path:
    data = os.environ.get("MIMGENV_DATA", "")
    folder = Path(data) / "odinw" / "BCCD" / split
    if not data or not folder.is_dir():
        pytest.skip(f"MIMGENV_DATA={data!r} holds no odinw/BCCD/{split}")
    return folder


SPLITS = {
    "train": ({"locate": 248, "group_grounding": 54}, "annotation 2288 of BloodImage_00343.jpg: box [181.0, 329.0"),
    "valid": ({"locate": 108, "group_grounding": 23}, "annotation 887 of BloodImage_00338.jpg: box [504.0, 337.0"),
}


def raw_boxes(folder: Path) -> dict[bytes, dict[str, list[list[float]]]]:
    """Pixels of a photograph → class → all boxes of the raw JSON, usable or not."""
    data = json.loads((folder / ANNOTATIONS).read_text())
    names = {row["id"]: row["name"] for row in data["categories"]}
    boxes: dict[bytes, dict[str, list[list[float]]]] = {}
    for row in data["images"]:
        with PIL.Image.open(folder / row["file_name"]) as image:
            here = boxes[image.convert("RGB").tobytes()] = {name: [] for name in names.values()}
        for annotation in data["annotations"]:
            if annotation["image_id"] == row["id"]:
                here[names[annotation["category_id"]]].append(annotation["bbox"])
    return boxes


@pytest.mark.parametrize("split", SPLITS)
def test_each_bccd_target_is_unique_in_the_raw_json(split: str) -> None:
    folder = bccd(split)
    source, boxes = OdinwTasks(folder), raw_boxes(folder)
    seen, counts = set(), Counter[str]()
    for task in all_tasks(source):
        assert isinstance(task.truth, Grounding)
        found = [boxes[image.tobytes()][task.truth.label] for image in task.images]
        assert [len(here) for here in found] == [int(k == task.truth.image) for k in range(1, len(found) + 1)]
        x, y, w, h = found[task.truth.image - 1][0]
        assert task.truth.box == (x, y, x + w, y + h)
        assert w > 0 and h > 0
        assert len({image.tobytes() for image in task.images}) == len(task.images)
        seen.add(task.task_id)
        counts[task.task_type] += 1
    assert (len(seen), counts) == (len(source), SPLITS[split][0])


@pytest.mark.parametrize("split", SPLITS)
def test_the_bccd_box_without_area_is_reported_and_never_shown(split: str) -> None:
    source = OdinwTasks(bccd(split))
    assert [report.startswith(SPLITS[split][1]) for report in source.skipped] == [True]
    assert source.skipped[0].endswith("has no area")
    boxes = [annotated.box for photograph in read_coco(bccd(split)).photographs for annotated in photograph.objects]
    assert len(boxes) == {"train": 2804, "valid": 1137}[split]
    assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)


@pytest.mark.parametrize("split", SPLITS)
def test_bccd_does_not_support_common_object_since_red_cells_are_everywhere(split: str) -> None:
    source = OdinwTasks(bccd(split))
    assert list(source.unsupported) == ["common_object"]
    assert source.unsupported["common_object"].endswith("so in none surely absent: 'RBC', 'WBC'")


def test_a_bccd_task_can_be_made_again_from_its_id() -> None:
    for task in all_tasks(OdinwTasks(bccd("valid")))[::10]:
        assert_same(task, load_odinw_task(task.task_id))


def test_opening_bccd_takes_less_than_two_seconds_of_processor_time() -> None:
    folder = bccd("train")
    start = time.process_time()
    OdinwTasks(folder)
    assert time.process_time() - start < 2
