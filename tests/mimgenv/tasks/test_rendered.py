"""Rendered tasks: the same seed the same task, splits apart, types in equal shares, nothing to guess, golden bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mimgenv
from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.scene import World
from mimgenv.tasks import rendered
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.odd_one_out import IMAGES
from mimgenv.tasks.program import Find
from mimgenv.tasks.rendered import (
    GROUNDING_TYPES,
    QA_TYPES,
    SPLIT_SIZE,
    SPLITS,
    TASK_TYPES,
    TINY_TYPES,
    WORLDS,
    RenderedTasks,
    load_rendered_task,
    make_task,
    world_of,
    worlds_of,
)
from mimgenv.types import Answer, Grounding, Task, TextAnswer

TINY = "MultiImageTiny-v0"
EVERYWHERE = [(world, task_type) for task_type in TASK_TYPES for world in worlds_of(task_type)]


def tiny(task_type: str, number: int, difficulty: int | None = None) -> Task:
    return make_task("tiny", task_type, difficulty, "train", number)


def same(a: Task, b: Task) -> bool:
    fields = [f for f in Task.__dataclass_fields__ if f != "images"]
    equal = all(getattr(a, field) == getattr(b, field) for field in fields)
    return equal and [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]


# The truth, found again from the annotations and the question


def solve(task: Task) -> Answer:
    """What a person with the annotations would answer; knows no programs, kinds or scenes."""
    places = [Grounding(image, o.label, o.box) for image, objects in enumerate(task.objects, 1) for o in objects]
    if task.task_type == "counting":
        colour = re.search(r"(\w+) objects", task.question)
        assert colour
        return TextAnswer(str(sum(place.label.split()[0] == colour[1] for place in places)))
    matches: list[Grounding]
    if task.task_type in ("locate", "group_grounding"):
        named = [place.label for place in places if re.search(rf"\b{place.label}\b", task.question)] or ["object"]
        matches = [place for place in places if named[0] in ("object", place.label)]
    elif task.task_type == "referring":
        (shown,) = task.objects[0]
        matches = [place for place in places if place.image == 2 and place.label == shown.label]
    elif task.task_type == "static_difference":
        before = {o.label for o in task.objects[0]}
        matches = [place for place in places if place.image == 2 and place.label not in before]
    else:
        colours = Counter(place.label.split()[0] for place in places)
        matches = [place for place in places if colours[place.label.split()[0]] == 1]
    (only,) = matches
    return TextAnswer(str(only.image)) if task.task_type.endswith("_qa") else only


@pytest.mark.parametrize("task_type", TINY_TYPES)
@pytest.mark.parametrize(("world", "count"), [("tiny", 40), ("tabletop", 3)])
def test_the_truth_is_the_one_thing_that_fits_the_question(world: str, count: int, task_type: str) -> None:
    for number in range(count):
        task = make_task(world, task_type, None, "train", number)
        assert solve(task) == task.truth


@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_a_grounding_type_is_answered_with_a_box_and_a_qa_type_with_text(task_type: str) -> None:
    assert (task_type in GROUNDING_TYPES) != (task_type in QA_TYPES)
    assert isinstance(tiny(task_type, 1).truth, Grounding if task_type in GROUNDING_TYPES else TextAnswer)


@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_a_type_names_an_image_exactly_if_its_question_does(task_type: str) -> None:
    for number in range(10):
        task = tiny(task_type, number)
        asked = re.findall(r"in Image-(\d)", task.question)
        assert [str(task.named_image)] * (task.named_image is not None) == asked
        if task.named_image is not None:
            assert isinstance(task.truth, Grounding)
            assert task.truth.image == task.named_image


@pytest.mark.parametrize("difficulty", [None, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_every_type_can_be_made_at_every_difficulty_of_the_tiny_world(task_type: str, difficulty: int | None) -> None:
    for number in range(8):
        task = tiny(task_type, number, difficulty)
        assert solve(task) == task.truth
        assert f"/{difficulty or 'any'}/" in task.task_id


@pytest.mark.parametrize("difficulty", [1, 5])
@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_every_basic_type_can_be_made_at_the_ends_of_the_table_top(task_type: str, difficulty: int) -> None:
    task = make_task("tabletop", task_type, difficulty, "train", 0)
    assert solve(task) == task.truth
    low, high = world_of("tabletop").counts(difficulty)
    for image, objects in enumerate(task.objects, 1):
        assert low <= len(objects) <= high or (task_type == "referring" and image == 1)


@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_the_difficulty_changes_the_task(task_type: str) -> None:
    made = [tiny(task_type, 3, difficulty) for difficulty in (None, 1, 3, 5)]
    assert len({b"".join(i.tobytes() for i in task.images) for task in made}) == 4


@pytest.mark.parametrize(("world", "count"), [("tiny", 5), ("tabletop", 1)])
@pytest.mark.parametrize("task_type", TINY_TYPES)
def test_identities_say_which_object_is_the_same_in_two_images(world: str, count: int, task_type: str) -> None:
    for number in range(count):
        task = make_task(world, task_type, None, "train", number)
        named = [{o.identity: o.label for o in objects} for objects in task.objects]
        assert [len(n) for n in named] == [len(objects) for objects in task.objects]
        shared = set.intersection(*map(set, named)) if len(named) > 1 else set()
        if task_type == "referring":
            assert isinstance(task.truth, Grounding)
            assert {named[1][identity] for identity in shared} == {task.truth.label}
        elif task_type == "static_difference":
            assert len(shared) == len(named[0]) - 1
            assert all(named[0][identity] == named[1][identity] for identity in shared)
        else:
            assert len(set().union(*named)) == sum(map(len, named))


def test_an_object_alone_is_sometimes_just_called_the_object_and_one_among_others_never() -> None:
    alone = [tiny("locate", number, 1) for number in range(100)]
    plain = sum(task.question == "Find the object in Image-1." for task in alone)
    assert plain == pytest.approx(60, abs=15)
    assert not [n for n in range(50) if " object " in tiny("locate", n, 2).question]


def test_a_static_difference_changes_the_pixels_of_one_thing_and_nothing_else() -> None:
    for number in range(20):
        task = tiny("static_difference", number)
        assert isinstance(task.truth, Grounding)
        rows, columns = np.nonzero((task.images[0] != task.images[1]).any(axis=2))
        x1, y1, x2, y2 = task.truth.box
        assert len(rows)
        assert x1 <= columns.min() <= columns.max() < x2
        assert y1 <= rows.min() <= rows.max() < y2
        assert task.truth.box in [o.box for o in task.objects[0]]


def test_in_referring_only_the_look_carries_over() -> None:
    tasks = [tiny("referring", number, 1) for number in range(40)]
    places = [(task.objects[0][0].box, task.objects[1][0].box) for task in tasks]
    assert sum(a == b for a, b in places) <= 3
    assert all(task.images[0].tobytes() != task.images[1].tobytes() for task in tasks)


# Seeds, splits, shares


def test_a_task_is_a_pure_function_of_its_seed() -> None:
    first = make_task("tiny", "referring", None, "train", 9)
    make_task.cache_clear()
    make_task("tiny", "referring", None, "train", 10)
    assert same(make_task("tiny", "referring", None, "train", 9), first)


@pytest.mark.parametrize("world", WORLDS)
def test_an_id_makes_the_same_task_again(world: str) -> None:
    source = RenderedTasks(world, None, "val")
    for seed in range(len(source.task_types)):
        task = source.task(seed)
        make_task.cache_clear()
        assert same(load_rendered_task(task.task_id), task)


def test_seeds_visit_the_types_in_turn_so_that_every_run_holds_equal_shares() -> None:
    source = RenderedTasks("tiny", ("counting", "locate", "referring"))
    types = [source.task(seed).task_type for seed in range(30)]
    assert types == ["counting", "locate", "referring"] * 10
    every = RenderedTasks("tiny")
    assert Counter(every.task(seed).task_type for seed in range(4 * len(TINY_TYPES))) == dict.fromkeys(TINY_TYPES, 4)


def test_a_seed_means_the_same_whatever_other_types_are_served() -> None:
    alone, among = RenderedTasks("tiny", ("counting",)), RenderedTasks("tiny", ("locate", "counting"))
    assert same(alone.task(7), among.task(7))


def test_splits_hold_different_tasks_under_different_ids() -> None:
    sources = [RenderedTasks("tiny", TINY_TYPES, split) for split in SPLITS]
    tasks = [source.task(seed) for source in sources for seed in range(40)]
    assert len({task.task_id for task in tasks}) == len(tasks)
    assert len({b"".join(i.tobytes() for i in task.images) for task in tasks}) == len(tasks)
    assert [task.task_id.split("/")[3] for task in tasks[::40]] == list(SPLITS) == ["train", "val", "test", "test_ood"]


@pytest.mark.parametrize("seed", [SPLIT_SIZE, SPLIT_SIZE + 5, 2 * SPLIT_SIZE + 5, 2**63])
def test_no_seed_leads_out_of_its_split(seed: int) -> None:
    source = RenderedTasks("tiny", ("locate",), "train")
    assert same(source.task(seed), source.task(seed % SPLIT_SIZE))
    assert len(source) == SPLIT_SIZE


def test_the_ranges_of_the_splits_touch_but_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last task of a split and the first of the next are drawn from seeds that follow each other."""
    drawn: list[int] = []
    real = np.random.default_rng

    def spy(seed: Any) -> np.random.Generator:
        if isinstance(seed, list) and len(seed) == 3:
            drawn.append(seed[1])
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", spy)
    make_task.cache_clear()
    for split in SPLITS:
        for number in (0, SPLIT_SIZE - 1):
            make_task("tiny", "locate", None, split, number)
    assert drawn == [split * SPLIT_SIZE + edge for split in range(4) for edge in (0, SPLIT_SIZE - 1)]


@pytest.mark.parametrize(("world", "task_type"), EVERYWHERE)
def test_the_held_out_split_shows_what_the_others_never_do(world: str, task_type: str) -> None:
    """Kinds where the world holds back whole combinations, and the wording; the tiny world's only wording stays, what
    it holds back is in `test_flat.py`.
    """
    known, held_out = (
        [make_task(world, task_type, None, split, number) for number in range(6)] for split in ("test", "test_ood")
    )
    labels = [{o.label for task in tasks for objects in task.objects for o in objects} for tasks in (known, held_out)]
    if world != "tiny":
        assert labels[0]
        assert not labels[0] & labels[1]
        assert labels[1] <= {kind.label for kind in world_of(world, held_out=True).kinds}
    wording = [
        {re.sub(r"\b(Image-)?\d\b", "", blanked(task, labels[0] | labels[1])) for task in tasks}
        for tasks in (known, held_out)
    ]
    assert wording[0] & wording[1] if world == "tiny" else not wording[0] & wording[1]


def blanked(task: Task, labels: set[str]) -> str:
    """The question without the words that name kinds."""
    words = {word for label in labels for word in (label, *label.split())}
    return re.sub(rf"\b({'|'.join(sorted(words, key=len, reverse=True))})s?\b", "", task.question)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(TaskError, match="-1 is negative"):
        RenderedTasks("tiny", ("locate",)).task(-1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"world": "moon"}, "world 'moon'"),
        ({"split": "dev"}, "split 'dev'"),
        ({"tasks": ("locate", "chess")}, "'chess'"),
        ({"tasks": ()}, r"\[\]"),
        ({"difficulty": 9}, "difficulty 9"),
    ],
)
def test_what_there_is_not_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RenderedTasks(**({"world": "tiny", "tasks": ("locate",)} | arguments))


# Drafts that are refused


def test_a_type_that_never_yields_a_valid_draft_ends_in_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def hopeless(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
        raise TaskError("too dark")

    monkeypatch.setitem(TASK_TYPES, "hopeless", hopeless)
    with pytest.raises(TaskError, match=f"{rendered.ATTEMPTS} attempts, the last because too dark"):
        make_task("tiny", "hopeless", None, "train", 0)


def test_a_refused_draft_is_followed_by_another_of_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Draft] = []

    def moody(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
        scene = world.arrange(rng, (world.kinds[0],) * (2 if len(tried) < 3 else 1), difficulty)
        tried.append(Draft((scene,), "Find it.", Find((1,))))
        return tried[-1]

    monkeypatch.setitem(TASK_TYPES, "moody", moody)
    assert len(make_task("tiny", "moody", None, "train", 0).objects[0]) == 1
    assert [len(draft.scenes[0].things) for draft in tried] == [2, 2, 2, 1]
    assert len({draft.scenes for draft in tried}) == 4


def test_any_other_error_of_a_type_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
        raise ZeroDivisionError

    monkeypatch.setitem(TASK_TYPES, "buggy", buggy)
    with pytest.raises(ZeroDivisionError):
        make_task("tiny", "buggy", None, "train", 0)


# Nothing to guess


def uneven(counts: Mapping[Any, int], cells: Iterable[Any]) -> float:
    """Chi-squared statistic of counts against equal shares, over its number of degrees of freedom."""
    cells = list(cells)
    assert set(counts) <= set(cells)
    expected = sum(counts.values()) / len(cells)
    return sum((counts.get(cell, 0) - expected) ** 2 / expected for cell in cells) / (len(cells) - 1)


BOUND = 8.0
"""Far beyond chance (p < 0.005 with one degree of freedom, < 0.0004 with two), far below what a lean would give."""


def test_the_measure_of_unevenness_finds_a_lean() -> None:
    assert uneven({1: 100, 2: 100, 3: 100}, (1, 2, 3)) == 0.0
    assert uneven({1: 140, 2: 90, 3: 70}, (1, 2, 3)) > BOUND
    assert uneven({1: 150, 2: 150}, (1, 2, 3)) > BOUND


@pytest.mark.parametrize("task_type", ["odd_one_out", "odd_one_out_qa", "group_grounding"])
def test_the_target_is_in_each_image_equally_often(task_type: str) -> None:
    counts: dict[int, Counter[str]] = {}
    for number in range(400):
        task = tiny(task_type, number)
        answer = task.truth.text if isinstance(task.truth, TextAnswer) else str(task.truth.image)
        counts.setdefault(len(task.images), Counter())[answer] += 1
    for images, by_answer in counts.items():
        assert uneven(by_answer, (str(image) for image in range(1, images + 1))) < BOUND


def test_every_count_is_as_likely_as_any_other_for_its_number_of_images() -> None:
    counts: dict[int, Counter[str]] = {}
    for number in range(600):
        task = tiny("counting", number)
        assert isinstance(task.truth, TextAnswer)
        counts.setdefault(len(task.images), Counter())[task.truth.text] += 1
    for images, by_count in counts.items():
        assert uneven(by_count, map(str, range(images + 1))) < BOUND


def test_a_group_has_every_number_of_images_of_its_world() -> None:
    low, high = world_of("tiny").group_sizes
    sizes = Counter(len(tiny("group_grounding", number).images) for number in range(100))
    assert set(sizes) == set(range(low, high + 1))
    assert {len(tiny("odd_one_out", number).images) for number in range(10)} == {IMAGES}


@pytest.mark.parametrize("task_type", ["locate", "referring", "static_difference"])
def test_the_target_is_drawn_first_second_or_third_equally_often(task_type: str) -> None:
    """Otherwise an agent could learn the order of drawing; a scene of three things shows it best."""
    places: Counter[int] = Counter()
    for number in range(400):
        task = tiny(task_type, number, 3)
        assert isinstance(task.truth, Grounding)
        boxes = [o.box for o in task.objects[task.truth.image - 1]]
        places[boxes.index(task.truth.box)] += 1
    assert uneven(places, range(3)) < BOUND


@pytest.mark.parametrize("task_type", [name for name in TINY_TYPES if name in GROUNDING_TYPES])
def test_the_target_stands_in_each_ninth_of_the_picture_equally_often(task_type: str) -> None:
    cells: Counter[tuple[int, int]] = Counter()
    for number in range(400):
        truth = tiny(task_type, number).truth
        assert isinstance(truth, Grounding)
        cells[int(truth.box[0] // 56), int(truth.box[1] // 56)] += 1
    assert uneven(cells, ((x, y) for x in range(3) for y in range(3))) < BOUND / 2


def test_always_naming_the_first_image_is_right_a_third_of_the_time_and_paid_so() -> None:
    env = gym.make(TINY, tasks=("odd_one_out_qa",))
    turn = mimgenv.default_codec().encode_turn("<think></think><answer>1</answer>")
    rewards = []
    for seed in range(300):
        env.reset(seed=seed)
        rewards.append(float(env.step(turn)[1]))
    assert set(rewards) == {0.5, 1.5}
    assert np.mean(rewards) == pytest.approx(0.5 + 1 / IMAGES, abs=0.08)


# Pictures


@pytest.mark.parametrize("world", WORLDS)
def test_sides_are_multiples_of_28_so_that_no_image_processor_resizes_them(world: str) -> None:
    for image in make_task(world, "referring", None, "train", 0).images:
        assert image.shape[0] % 28 == image.shape[1] % 28 == 0
        assert image.dtype == np.uint8
