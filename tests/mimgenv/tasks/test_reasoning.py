"""Reasoning: what goes on with a sequence, what a tally points at, what serves a purpose; one thing each time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.scenes.sprites.world import USES, Sprites
from mimgenv.tasks import reasoning as rules
from mimgenv.tasks.draft import Draft, Wording, finish
from mimgenv.tasks.program import Found
from mimgenv.tasks.reasoning import COUNTED, CYCLES, GOES_ON, SERVES, Next, Serves, Tallied, continuations
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import Grounding, Task

HOMES = [world for world in worlds_of("reasoning") if world in WORLDS]
RED, BLUE, GREEN = (Kind("cube", colour) for colour in ("red", "blue", "green"))
BALL, BLUE_BALL = Kind("sphere", "red"), Kind("sphere", "blue")
MUG, KEY = Kind("mug", "red"), Kind("key", "red")


def made(*kinds: Kind) -> Scene:
    return Scene(tuple(Thing(i, kind, (float(i), 0.0), 1.0) for i, kind in enumerate(kinds)), 0)


def draft(rule: Callable[..., Draft], world: Any, seed: int, difficulty: int | None = None) -> Draft:
    rng = np.random.default_rng(seed)
    while True:
        try:
            return rule(world, rng, difficulty)
        except TaskError:
            continue


def next_label(labels: list[str]) -> str:
    """What a person says comes next: each word repeats after the fewest images that fit."""
    words = []
    for column in zip(*(label.split() for label in labels), strict=True):
        period = next(
            p for p in range(1, len(column)) if all(column[i] == column[i - p] for i in range(p, len(column)))
        )
        words.append(column[len(column) - period])
    return " ".join(words)


def wanted(task: Task) -> list[Grounding]:
    """The answers that the labels and the question allow."""
    places = [Grounding(image, o.label, o.box) for image, objects in enumerate(task.objects, 1) for o in objects]
    last = [place for place in places if place.image == len(task.images)]
    before = [place.label for place in places if place.image < len(task.images)]
    tally = Counter(label.split()[0] for label in before)
    number = re.search(r"exactly (once|twice|three times)", task.question)
    if number:
        times = {"once": 1, "twice": 2, "three times": 3}[number[1]]
        return [place for place in last if tally[place.label.split()[0]] == times]
    if "most often" in task.question:
        return [place for place in last if tally[place.label.split()[0]] == max(tally.values())]
    served = [shape for shape, use in USES.items() if use in task.question]
    if served:
        return [place for place in places if place.label.split()[-1] in served]
    return [place for place in last if place.label == next_label(before)]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("difficulty", [1, 3, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_the_truth_is_the_only_answer_that_labels_and_question_allow(
    world: str, difficulty: int | None, split: str
) -> None:
    for number in range(6):
        task = make_task(world, "reasoning", difficulty, split, number)
        assert wanted(task) == [task.truth]


# Sequence


@pytest.mark.parametrize(
    ("values", "after"),
    [
        ("aa", "a"),
        ("aba", "b"),
        ("abab", "a"),
        ("abca", "b"),
        ("abcab", "c"),
        ("aaaa", "a"),
        ("abbab", "b"),
        ("abc", ""),  # nothing repeats yet
        ("ab", ""),
        ("abcda", ""),  # too long a cycle
        ("aabb", ""),
    ],
)
def test_a_sequence_goes_on_as_its_cycle_does(values: str, after: str) -> None:
    assert continuations(tuple(values)) == tuple(after)


def test_a_sequence_with_two_cycles_that_differ_has_two_continuations() -> None:
    assert set(continuations(tuple("abaab"))) == {"a"}
    assert continuations(tuple("aab")) == ()


def test_the_next_object_continues_colour_and_shape_each_on_its_own() -> None:
    shown = (made(RED), made(BLUE_BALL), made(RED))
    assert Next().execute((*shown, made(RED, BLUE, BLUE_BALL))) == Found(4, 2)
    crossed = (made(RED), made(BLUE_BALL), made(Kind("cone", "red")), made(BLUE))
    assert Next().execute((*crossed, made(RED, BALL, BLUE))) == Found(5, 1)


@pytest.mark.parametrize("last", [made(RED, GREEN), made(BLUE, RED, BLUE)])
def test_no_next_object_or_two_are_refused(last: Scene) -> None:
    with pytest.raises(TaskError, match="not exactly one"):
        Next().execute((made(RED), made(BLUE), made(RED), last))


@pytest.mark.parametrize(
    "before", [(made(RED), made(BLUE), made(GREEN)), (made(RED), made(BLUE)), (made(RED), made(BLUE, GREEN), made(RED))]
)
def test_images_that_follow_no_rule_are_refused(before: tuple[Scene, ...]) -> None:
    with pytest.raises(TaskError, match="not exactly one"):
        Next().execute((*before, made(RED, BLUE, GREEN)))


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("world", HOMES)
def test_colours_and_shapes_cycle_as_the_difficulty_says_and_the_next_is_among_the_last(
    world: str, difficulty: int | None
) -> None:
    knobs, lengths = CYCLES[difficulty], set()
    for seed in range(30):
        one = draft(rules.sequence, world_of(world), seed, difficulty)
        found = one.program.execute(one.scenes)
        assert isinstance(found, Found)
        assert found.image == one.named_image == len(one.scenes)
        kinds = [scene.things[0].kind for scene in one.scenes[:-1]]
        length = len({kind.colour for kind in kinds}), len({kind.shape for kind in kinds})
        assert knobs.more[0] <= len(kinds) - max(length) <= knobs.more[1]
        lengths.add(length)
        assert any(
            thing.kind in kinds for thing in one.scenes[-1].things if thing != one.scenes[-1].things[found.index]
        )
    assert lengths == set(knobs.lengths)


@pytest.mark.parametrize("world", HOMES)
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
def test_the_held_out_worlds_have_sequences_too(world: str, difficulty: int | None) -> None:
    for seed in range(5):
        one = draft(rules.sequence, world_of(world, held_out=True), seed, difficulty)
        one.program.execute(one.scenes)


# Count


def test_a_tally_points_at_the_object_of_the_last_image_whose_colour_it_is() -> None:
    before = (made(RED, BALL, BLUE), made(RED, GREEN, BLUE))
    last = made(GREEN, BLUE_BALL, BALL)
    assert Tallied(None).execute((*before, last)) == Found(3, 2)
    assert [Tallied(times).execute((*before, last)).index for times in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize(("times", "matches"), [(None, 0), (3, 0), (2, 2)])
def test_a_tally_that_points_at_nothing_or_two_things_is_refused(times: int | None, matches: int) -> None:
    scenes = (made(RED, RED, RED), made(BLUE, BLUE, GREEN, GREEN), made(BLUE, GREEN))
    with pytest.raises(TaskError, match=f"fits {matches} things"):
        Tallied(times).execute(scenes)


@pytest.mark.parametrize("world", HOMES)
@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_a_second_candidate_of_the_colour_is_refused(world: str, difficulty: int) -> None:
    for seed in range(5):
        one = draft(rules.count, world_of(world), seed, difficulty)
        found = one.program.execute(one.scenes)
        assert isinstance(found, Found)
        twin = made(*(thing.kind for thing in (*one.scenes[-1].things, one.scenes[-1].things[found.index])))
        with pytest.raises(TaskError, match="fits 2 things"):
            one.program.execute((*one.scenes[:-1], twin))


def test_harder_counts_ask_for_numbers_and_show_more_images() -> None:
    easy, hard = ([draft(rules.count, world_of("tabletop"), s, d) for s in range(15)] for d in (1, 5))
    assert {one.program.times for one in easy} == {None}  # type: ignore[attr-defined]
    assert {one.program.times for one in hard} == {1, 2, 3}  # type: ignore[attr-defined]
    assert max(len(one.scenes) for one in easy) < min(len(one.scenes) for one in hard)


# Use


def test_what_serves_a_purpose_is_found_by_its_shape() -> None:
    scenes = (made(KEY, RED), made(RED, MUG))
    assert Serves((1, 2), USES["mug"]).execute(scenes) == Found(2, 1)
    assert Serves((1,), USES["key"]).execute(scenes) == Found(1, 0)


def test_a_purpose_that_two_things_serve_is_refused() -> None:
    for scenes, matches in (((made(MUG), made(MUG)), 2), ((made(KEY), made(RED)), 0)):
        with pytest.raises(TaskError, match=f"fits {matches} things"):
            Serves((1, 2), USES["mug"]).execute(scenes)


def test_a_draft_with_a_second_thing_of_the_use_is_refused() -> None:
    for seed in range(5):
        one = draft(rules.use, Sprites(), seed)
        found = one.program.execute(one.scenes)
        assert isinstance(found, Found)
        twin = made(one.scenes[found.image - 1].things[found.index].kind)
        with pytest.raises(TaskError, match="fits 2 things"):
            rules.Serves((*range(1, len(one.scenes) + 2),), one.program.use).execute((*one.scenes, twin))  # type: ignore[attr-defined]


def test_every_image_holds_the_useful_thing_equally_often() -> None:
    images: Counter[int] = Counter()
    for seed in range(200):
        one = draft(rules.use, Sprites(), seed, 1)
        found = one.program.execute(one.scenes)
        assert isinstance(found, Found)
        images[found.image] += 1
    assert images[1] == pytest.approx(100, abs=28)
    assert images[1] + images[2] == 200


# All rules


def test_the_rules_take_turns_and_use_is_for_worlds_of_useful_things_only() -> None:
    def drawn(world: Any) -> Counter[type]:
        return Counter(type(draft(rules.reasoning, world, seed, 1).program) for seed in range(150))

    sprites, solids = drawn(Sprites()), drawn(world_of("tabletop"))
    assert set(sprites) == {Next, Tallied, Serves}
    assert all(count == pytest.approx(50, abs=25) for count in sprites.values())
    assert set(solids) == {Next, Tallied}
    assert all(count == pytest.approx(75, abs=25) for count in solids.values())


def test_no_two_things_of_a_task_are_the_same_object() -> None:
    for seed in range(20):
        scenes = draft(rules.reasoning, Sprites(), seed).scenes
        names = [thing.identity for scene in scenes for thing in scene.things]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", [rules.sequence, rules.count])
def test_the_target_is_drawn_at_every_place_equally_often(rule: Callable[..., Draft]) -> None:
    places: Counter[int] = Counter()
    for seed in range(300):
        one = draft(rule, Sprites(), seed, 1)
        if len(one.scenes[-1].things) == 3:
            found = one.program.execute(one.scenes)
            assert isinstance(found, Found)
            places[found.index] += 1
    expected = places.total() / 3
    assert all(places[place] == pytest.approx(expected, abs=4 * expected**0.5) for place in range(3))


def test_sprites_are_asked_about_in_words_that_fill_in() -> None:
    one = draft(rules.use, Sprites(), 0, 1)
    task = finish(one, Sprites(), "made:1", "reasoning")
    assert str(one.fields["use"]) in task.question
    assert "{" not in task.question + task.rationale


@pytest.mark.parametrize("wording", [GOES_ON, COUNTED, SERVES], ids=["sequence", "count", "use"])
def test_the_questions_of_test_ood_are_others(wording: Wording) -> None:
    assert len(set(wording.known)) >= 3
    assert len(set(wording.held_out) - set(wording.known)) >= 2
    fields = {frozenset(re.findall(r"{\w+}", way)) for way in wording.known + wording.held_out}
    assert len(fields) == 1
