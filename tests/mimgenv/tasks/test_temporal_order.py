"""Temporal order: things only arrive, or one thing goes straight on; one of the four orders says so."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.tasks.draft import Draft, Wording
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.tasks.temporal_order import FILLED, KNOBS, LETTERS, MOVED, Filled, Moved, temporal_order
from mimgenv.types import Task, TextAnswer

HOMES = [world for world in worlds_of("temporal_order") if world in WORLDS]
RED, BLUE, GREEN = (
    Thing(i, Kind("cube", colour), (2.0 * i, 0.0), 1.0) for i, colour in enumerate(("red", "blue", "green"))
)
OPTIONS = ((1, 2, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2))


def made(*things: Thing) -> Scene:
    return Scene(things, 0)


def at(x: float, y: float = 5.0) -> Scene:
    """A red thing that moved there, and a blue one that stays."""
    return made(BLUE, replace(RED, position=(x, y)))


def draft(world: str, seed: int, difficulty: int | None = None) -> Draft:
    rng = np.random.default_rng(seed)
    while True:
        try:
            return temporal_order(world_of(world), rng, difficulty)
        except TaskError:
            continue


def options_of(task: Task) -> dict[str, list[int]]:
    pairs = re.findall(r"([A-D]): ([\d, ]+\d)", task.question)
    return {letter: [int(number) for number in order.split(", ")] for letter, order in pairs}


def time_of(task: Task) -> list[float]:
    """For each image, how much has happened: things there, or the way of the one that moved since Image-1."""
    counts = [len(things) for things in task.objects]
    if len(set(counts)) > 1:
        return [float(count) for count in counts]
    ways = []
    for things in task.objects:
        places = {thing.identity: thing.box for thing in things}
        first = {thing.identity: thing.box for thing in task.objects[0]}
        moves = [np.hypot(places[name][0] - first[name][0], places[name][3] - first[name][3]) for name in first]
        ways.append(float(max(moves)))
    return ways


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("difficulty", [1, 3, 4, None])
@pytest.mark.parametrize("world", HOMES)
def test_in_the_right_order_things_arrive_or_one_gets_farther_away(
    world: str, difficulty: int | None, split: str
) -> None:
    for number in range(4):
        task = make_task(world, "temporal_order", difficulty, split, number)
        time = time_of(task)
        right = [
            letter
            for letter, order in options_of(task).items()
            if all(time[one - 1] < time[other - 1] for one, other in pairwise(order))
        ]
        assert [task.truth] == [TextAnswer(letter) for letter in right]


def test_the_order_of_a_place_that_fills_is_found() -> None:
    assert Filled(OPTIONS).execute((made(RED), made(RED, BLUE), made(RED, BLUE, GREEN))) == "A"
    assert Filled(OPTIONS).execute((made(BLUE, GREEN, RED), made(GREEN), made(GREEN, RED))) == "B"
    assert Filled(OPTIONS).execute((made(RED), made(RED, GREEN, BLUE), made(BLUE, RED))) == "D"


@pytest.mark.parametrize(
    "scenes",
    [
        (made(RED), made(BLUE, GREEN), made(RED, BLUE, GREEN)),  # the red one was taken away
        (made(RED), made(RED), made(RED, BLUE)),  # two moments are the same
        (made(RED), made(replace(RED, position=(9.0, 9.0)), BLUE), made(RED, BLUE, GREEN)),  # it moved
    ],
)
def test_a_place_that_does_not_only_fill_is_refused(scenes: tuple[Scene, ...]) -> None:
    with pytest.raises(TaskError, match="not only added"):
        Filled(OPTIONS).execute(scenes)


def test_the_order_of_a_straight_way_is_found() -> None:
    assert Moved(OPTIONS).execute((at(0), at(1), at(4))) == "A"
    assert Moved(OPTIONS).execute((at(0), at(-4), at(-1))) == "D"


@pytest.mark.parametrize(
    ("scenes", "why"),
    [
        ((at(0), at(1), at(-3)), "straight on"),  # forth and back
        ((at(0), at(1), at(3, 6)), "straight on"),  # around a corner
        ((at(0), at(0), at(3)), "straight on"),  # it waits
        ((at(1), at(2), at(2)), "straight on"),
        ((at(0), at(1), made(replace(BLUE, position=(7.0, 7.0)), RED)), "not exactly one"),  # two move
        ((at(0), at(1), made(BLUE, replace(GREEN, position=(2.0, 5.0)))), "not one thing moves"),  # another thing
    ],
)
def test_what_does_not_go_straight_on_alone_is_refused(scenes: tuple[Scene, ...], why: str) -> None:
    with pytest.raises(TaskError, match=why):
        Moved(OPTIONS).execute(scenes)


def test_an_order_that_is_no_option_or_two_is_refused() -> None:
    scenes = (made(RED), made(RED, BLUE), made(RED, BLUE, GREEN))
    for options in (OPTIONS[1:], (*OPTIONS[:3], OPTIONS[0])):
        with pytest.raises(TaskError, match="not exactly one"):
            Filled(options).execute(scenes)


@pytest.mark.parametrize("world", HOMES)
def test_a_moment_that_is_shown_twice_is_refused(world: str) -> None:
    for difficulty in (2, 5):
        one = draft(world, 1, difficulty)
        with pytest.raises(TaskError):
            one.program.execute((*one.scenes[:-1], one.scenes[0]))


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_images_moves_and_steps_are_those_of_the_difficulty(world: str, difficulty: int | None) -> None:
    knobs = KNOBS[difficulty]
    sizes, sorts = set(), set()
    for seed in range(20):
        one = draft(world, seed, difficulty)
        sizes.add(len(one.scenes))
        sorts.add(type(one.program))
        if isinstance(one.program, Moved):
            order = one.program.options[LETTERS.index(one.program.execute(one.scenes))]
            mover = next(thing for thing in one.scenes[0].things if thing not in one.scenes[1].things)
            path = [t.position for k in order for t in one.scenes[k - 1].things if t.identity == mover.identity]
            steps = [np.hypot(b[0] - a[0], b[1] - a[1]) / mover.size for a, b in pairwise(path)]
            assert max(steps) == pytest.approx(min(steps))
            assert knobs.step[0] - 1e-9 <= min(steps) <= knobs.step[1] + 1e-9
    assert sizes == set(range(knobs.images[0], knobs.images[1] + 1))
    assert sorts == ({Filled} if knobs.moves == 0 else {Moved} if knobs.moves == 1 else {Filled, Moved})


@pytest.mark.parametrize("world", HOMES)
def test_things_keep_their_order_so_that_what_lies_on_top_stays_there(world: str) -> None:
    for seed in range(5):
        one = draft(world, seed, 2)
        last = max(one.scenes, key=lambda scene: len(scene.things)).things
        for scene in one.scenes:
            assert list(scene.things) == [thing for thing in last if thing in scene.things]


def test_every_letter_is_right_equally_often_and_every_order_too() -> None:
    letters: Counter[str] = Counter()
    orders: Counter[tuple[int, ...]] = Counter()
    for seed in range(480):
        one = draft(HOMES[0], seed, 1)
        assert isinstance(one.program, Filled)
        letters[one.program.execute(one.scenes)] += 1
        orders[one.program.options[LETTERS.index(one.program.execute(one.scenes))]] += 1
        assert len(set(one.program.options)) == 4
    assert all(letters[letter] == pytest.approx(120, abs=40) for letter in LETTERS)
    assert len(orders) == 6
    assert all(count == pytest.approx(80, abs=34) for count in orders.values())


def test_where_a_thing_moves_image_1_comes_first_in_every_option() -> None:
    for seed in range(20):
        program = draft(HOMES[0], seed, 4).program
        assert isinstance(program, Moved)
        assert {option[0] for option in program.options} == {1}
        assert len(set(program.options)) == 4


@pytest.mark.parametrize("ways", [FILLED, MOVED], ids=["filled", "moved"])
def test_the_questions_of_test_ood_are_others_and_all_list_the_options(ways: Wording) -> None:
    assert len(set(ways.known)) >= 3
    assert len(set(ways.held_out) - set(ways.known)) >= 2
    assert all("{options}" in way for way in ways.known + ways.held_out)
    assert ways is FILLED or all("Image-1" in way for way in ways.known + ways.held_out)
