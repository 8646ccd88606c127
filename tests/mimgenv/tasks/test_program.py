"""Questions as programs: what they find, that they know nothing but the scenes, and that a second match is refused."""

from __future__ import annotations

import inspect
import zlib
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.flat import CELL, Flat
from mimgenv.scenes.scene import Frame, Kind, Scene, Thing, World
from mimgenv.scenes.tabletop.world import Tabletop
from mimgenv.tasks.draft import MIN_VISIBILITY, Draft, draw_kinds, finish
from mimgenv.tasks.odd_one_out import OddColour
from mimgenv.tasks.program import Count, Find, Found, ImageOf, SameKind, only
from mimgenv.tasks.rendered import TASK_TYPES, TINY_TYPES
from mimgenv.tasks.static_difference import Changed
from mimgenv.types import Grounding, TextAnswer

WORLDS: dict[str, World] = {"tiny": Flat(), "tabletop": Tabletop()}
RED, BLUE, GREEN = (Kind("circle", colour) for colour in ("red", "blue", "green"))
RED_SQUARE, METAL = Kind("square", "red"), Kind("circle", "red", "metal")


def made(*kinds: Kind, at: tuple[float, float] = (0.0, 0.0)) -> Scene:
    """Things of these kinds in a row."""
    return Scene(tuple(Thing(i, kind, (at[0] + i * CELL, at[1]), 28.0) for i, kind in enumerate(kinds)), 0)


# What each query finds


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Find((1, 2)), [(1, 0), (1, 1), (2, 0)]),
        (Find((2,)), [(2, 0)]),
        (Find((1, 2), colour="red"), [(1, 0), (1, 1), (2, 0)]),
        (Find((1, 2), shape="square"), [(1, 1)]),
        (Find((1, 2), shape="circle", colour="red"), [(1, 0), (2, 0)]),
        (Find((1, 2), shape="circle", colour="red", material="metal"), [(2, 0)]),
        (Find((1, 2), material=""), [(1, 0), (1, 1)]),
        (Find((1, 2), colour="blue"), []),
    ],
)
def test_find_finds_what_has_all_attributes_in_the_images_it_looks_at(
    query: Find, found: list[tuple[int, int]]
) -> None:
    assert query.find((made(RED, RED_SQUARE), made(METAL))) == tuple(Found(*where) for where in found)


def test_same_kind_finds_what_looks_like_the_only_thing_of_the_reference() -> None:
    assert SameKind(1, 2).find((made(RED), made(BLUE, RED, METAL, RED))) == (Found(2, 1), Found(2, 3))
    assert SameKind(2, 1).find((made(RED, BLUE), made(BLUE))) == (Found(1, 1),)


@pytest.mark.parametrize("reference", [(), (RED, BLUE), (RED, RED)])
def test_a_reference_must_show_exactly_one_thing(reference: tuple[Kind, ...]) -> None:
    with pytest.raises(TaskError, match=f"fits {len(reference)} things"):
        SameKind(1, 2).find((made(*reference), made(RED)))


def test_changed_finds_what_is_new_moved_or_resized_whatever_its_identity() -> None:
    before = made(RED, BLUE, GREEN)
    still, moved, larger = before.things
    after = Scene(
        (
            replace(still, identity=99),
            replace(moved, position=(1.0, 1.0)),
            replace(larger, size=42.0),
            Thing(7, RED_SQUARE, (9.0, 9.0), 14.0),
        ),
        1,
    )
    assert Changed(1, 2).find((before, after)) == (Found(2, 1), Found(2, 2), Found(2, 3))
    assert Changed(1, 2).find((before, replace(before, backdrop=5))) == ()


@pytest.mark.parametrize(
    ("scenes", "found"),
    [
        ((made(RED, RED_SQUARE), made(METAL, BLUE)), [(2, 1)]),
        ((made(RED, RED), made(RED)), []),  # none is odd
        ((made(RED, BLUE), made(RED, BLUE)), []),  # two are odd
        ((made(RED, RED), made(GREEN, BLUE)), []),  # each other colour is there once, but the rest is not of one colour
        ((made(RED), made(BLUE)), [(1, 0), (2, 0)]),  # either may be the odd one
    ],
)
def test_odd_colour_finds_the_one_thing_that_differs_from_all_others(
    scenes: tuple[Scene, ...], found: list[tuple[int, int]]
) -> None:
    assert OddColour((1, 2)).find(scenes) == tuple(Found(*where) for where in found)


def test_odd_colour_looks_at_its_images_only() -> None:
    assert OddColour((1, 2)).find((made(RED, RED), made(BLUE), made(BLUE, GREEN))) == (Found(2, 0),)


def test_count_counts_and_image_of_names_the_image() -> None:
    scenes = (made(RED, BLUE), made(RED_SQUARE), made(GREEN))
    assert Count(Find((1, 2, 3), colour="red")).execute(scenes) == 2
    assert Count(Find((1, 2, 3), colour="pink")).execute(scenes) == 0
    assert ImageOf(Find((1, 2, 3), colour="green")).execute(scenes) == 3
    assert Find((1, 2, 3), shape="square").execute(scenes) == Found(2, 0)


@pytest.mark.parametrize("query", [Find((1,), colour="red"), ImageOf(Find((1,), colour="red"))])
@pytest.mark.parametrize("kinds", [(), (BLUE,), (RED, RED), (RED, METAL, RED_SQUARE)])
def test_a_question_for_one_thing_that_fits_none_or_several_is_refused(
    query: Find | ImageOf, kinds: tuple[Kind, ...]
) -> None:
    matches = sum(kind.colour == "red" for kind in kinds)
    with pytest.raises(TaskError, match=f"fits {matches} things, not exactly one"):
        query.execute((made(*kinds),))


def test_only_returns_the_one_element() -> None:
    assert only(("x",)) == "x"


def test_a_program_receives_the_scenes_and_nothing_else() -> None:
    for program in (Find, SameKind, Count, ImageOf, Changed, OddColour):
        assert list(inspect.signature(program.execute).parameters) == ["self", "scenes"]
    assert not {"target", "answer", "truth"} & {*Scene.__dataclass_fields__, *Thing.__dataclass_fields__}


# Drafts of the basic types in both worlds


def draft(world: str, task_type: str, seed: int, difficulty: int | None = None) -> Draft:
    rng = np.random.default_rng([seed, zlib.crc32(task_type.encode())])
    return TASK_TYPES[task_type](WORLDS[world], rng, difficulty)


def seeds(world: str) -> range:
    return range(25 if world == "tiny" else 2)


def relabelled(scene: Scene) -> Scene:
    """The same things under other identities and before another backdrop."""
    things = tuple(replace(thing, identity=100 + i) for i, thing in enumerate(scene.things))
    return Scene(things, scene.backdrop + 1)


@pytest.mark.parametrize("task_type", TINY_TYPES)
@pytest.mark.parametrize("world", WORLDS)
def test_identities_and_backdrops_do_not_help_a_program(world: str, task_type: str) -> None:
    for seed in seeds(world):
        one = draft(world, task_type, seed)
        assert one.program.execute(one.scenes) == one.program.execute(tuple(map(relabelled, one.scenes)))


@pytest.mark.parametrize("task_type", TINY_TYPES)
@pytest.mark.parametrize("world", WORLDS)
def test_what_a_program_finds_is_the_truth_of_the_task_and_its_box_what_is_seen_of_it(
    world: str, task_type: str
) -> None:
    for seed in seeds(world):
        one = draft(world, task_type, seed)
        try:
            task = finish(one, WORLDS[world], "made:1", task_type)
        except TaskError:
            continue  # the table-top may hide a thing; `make_task` then draws another draft
        result = one.program.execute(one.scenes)
        if isinstance(result, int):
            assert task.truth == TextAnswer(str(result))
            continue
        assert isinstance(task.truth, Grounding)
        frame = WORLDS[world].render(one.scenes[result.image - 1])
        rows, columns = np.nonzero(frame.instances == result.index + 1)
        assert task.truth.image == result.image
        assert task.truth.label == one.scenes[result.image - 1].things[result.index].kind.label
        assert task.truth.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_array_equal(task.images[result.image - 1], frame.pixels)


def free_place(scene: Scene) -> tuple[float, float]:
    """The corner of a cell of the flat world that holds nothing."""
    taken = {(thing.position[0] // CELL, thing.position[1] // CELL) for thing in scene.things}
    free = next((x, y) for x in range(3) for y in range(3) if (x, y) not in taken)
    return float(free[0] * CELL), float(free[1] * CELL)


def with_thing(one: Draft, image: int, kind: Kind, world: str) -> Draft:
    """The draft with one more thing in an image, where nothing stands yet."""
    scenes = list(one.scenes)
    scene = scenes[image - 1]
    position = free_place(scene) if world == "tiny" else (90.0, 90.0)
    thing = Thing(77, kind, position, 14.0 if world == "tiny" else 1.0)
    scenes[image - 1] = replace(scene, things=(*scene.things, thing))
    return replace(one, scenes=tuple(scenes))


def target(one: Draft) -> tuple[int, Kind]:
    program = one.program.of if isinstance(one.program, ImageOf) else one.program
    result = program.execute(one.scenes)
    assert isinstance(result, Found)
    return result.image, one.scenes[result.image - 1].things[result.index].kind


def refused(one: Draft, world: str) -> None:
    """A draft is refused by its program, and so when it is finished."""
    with pytest.raises(TaskError, match="not exactly one"):
        one.program.execute(one.scenes)
    if world == "tiny":  # the other one would have to find room on the table
        with pytest.raises(TaskError, match="not exactly one"):
            finish(one, WORLDS[world], "made:1", "made")


@pytest.mark.parametrize("world", WORLDS)
def test_locate_is_refused_with_a_second_object_of_the_kind(world: str) -> None:
    for seed in seeds(world):
        one = draft(world, "locate", seed)
        refused(with_thing(one, 1, target(one)[1], world), world)


@pytest.mark.parametrize("world", WORLDS)
def test_referring_is_refused_with_a_second_object_like_the_one_of_image_1(world: str) -> None:
    for seed in seeds(world):
        one = draft(world, "referring", seed)
        refused(with_thing(one, 2, target(one)[1], world), world)


@pytest.mark.parametrize("world", WORLDS)
def test_referring_is_refused_with_a_second_object_in_image_1(world: str) -> None:
    one = draft(world, "referring", 0)
    refused(with_thing(one, 1, WORLDS[world].kinds[0], world), world)


@pytest.mark.parametrize("world", WORLDS)
def test_static_difference_is_refused_with_a_second_change(world: str) -> None:
    for seed in seeds(world):
        one = draft(world, "static_difference", seed)
        refused(with_thing(one, 2, target(one)[1], world), world)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("task_type", ["odd_one_out", "odd_one_out_qa"])
def test_odd_one_out_is_refused_with_a_second_object_of_the_odd_colour(task_type: str, world: str) -> None:
    for seed in seeds(world):
        one = draft(world, task_type, seed)
        image, kind = target(one)
        for other in (image, image % 3 + 1):
            refused(with_thing(one, other, kind, world), world)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("task_type", ["odd_one_out", "odd_one_out_qa"])
def test_odd_one_out_is_refused_with_an_object_of_a_third_colour(task_type: str, world: str) -> None:
    one = draft(world, task_type, 1)
    colours = {thing.kind.colour for scene in one.scenes for thing in scene.things}
    third = next(kind for kind in WORLDS[world].kinds if kind.colour not in colours)
    refused(with_thing(one, 1, third, world), world)


@pytest.mark.parametrize("world", WORLDS)
def test_group_grounding_is_refused_with_a_second_object_of_the_kind_in_any_image(world: str) -> None:
    for seed in seeds(world):
        one = draft(world, "group_grounding", seed)
        for image in range(1, len(one.scenes) + 1):
            refused(with_thing(one, image, target(one)[1], world), world)


@pytest.mark.parametrize("world", WORLDS)
def test_counting_counts_an_object_more_if_it_has_the_colour(world: str) -> None:
    for seed in seeds(world):
        one = draft(world, "counting", seed)
        assert isinstance(one.program, Count)
        assert isinstance(one.program.of, Find)
        counted = one.program.execute(one.scenes)
        assert isinstance(counted, int)
        for kind in WORLDS[world].kinds[::7]:
            more = with_thing(one, 1, kind, world)
            assert more.program.execute(more.scenes) == counted + (kind.colour == one.program.of.colour)
            if world == "tiny":
                truth = finish(more, WORLDS[world], "made:1", "counting").truth
                assert truth == TextAnswer(str(more.program.execute(more.scenes)))


# Drawing and proving


class Fog:
    """A flat world in which things are less visible."""

    wordings = 1

    def __init__(self, visibility: float) -> None:
        self.visibility = visibility

    def render(self, scene: Scene) -> Frame:
        frame = WORLDS["tiny"].render(scene)
        return replace(frame, visibility=(*frame.visibility[:-1], self.visibility))


@pytest.mark.parametrize(("visibility", "served"), [(0.49, False), (0.5, True), (1.0, True), (0.0, False)])
def test_a_task_with_a_thing_that_is_hardly_visible_is_refused(visibility: float, served: bool) -> None:
    one = draft("tiny", "odd_one_out", 4)
    assert MIN_VISIBILITY == 0.5
    if served:
        assert finish(one, Fog(visibility), "made:1", "made").task_id == "made:1"  # type: ignore[arg-type]
    else:
        with pytest.raises(TaskError, match=f"{visibility:.0%} visible"):
            finish(one, Fog(visibility), "made:1", "made")  # type: ignore[arg-type]


def test_a_thing_that_is_not_seen_at_all_is_refused() -> None:
    class Night(Fog):
        def render(self, scene: Scene) -> Frame:
            return replace(super().render(scene), boxes=(None,) * len(scene.things))

    with pytest.raises(TaskError, match="visible"):
        finish(draft("tiny", "locate", 0), Night(1.0), "made:1", "made")  # type: ignore[arg-type]


def test_the_rationale_and_the_annotations_are_those_of_the_scene() -> None:
    one = draft("tiny", "odd_one_out", 4)
    task = finish(replace(one, rationale="{label} in Image-{image}"), WORLDS["tiny"], "made:1", "made")
    assert isinstance(task.truth, Grounding)
    assert task.rationale == f"{task.truth.label} in Image-{task.truth.image}"
    for scene, objects in zip(one.scenes, task.objects, strict=True):
        assert [(o.label, o.identity) for o in objects] == [(t.kind.label, t.identity) for t in scene.things]


def test_kinds_are_drawn_without_repeats_and_in_different_colours_as_far_as_there_are_any() -> None:
    kinds = WORLDS["tiny"].kinds
    for seed in range(30):
        drawn = draw_kinds(np.random.default_rng(seed), kinds, 8)
        assert len(set(drawn)) == 8
        assert len({kind.colour for kind in drawn[:6]}) == 6


def test_more_kinds_than_are_allowed_cannot_be_drawn() -> None:
    with pytest.raises(TaskError, match="3 kinds wanted, 2 allowed"):
        draw_kinds(np.random.default_rng(0), (RED, BLUE), 3)


def test_the_images_of_a_task_cannot_be_written_to() -> None:
    task = finish(draft("tiny", "referring", 1), WORLDS["tiny"], "made:1", "made")
    with pytest.raises(ValueError, match="read-only"):
        task.images[0][0, 0] = 0


def test_a_text_answer_is_its_own_rationale_unless_there_is_a_better_one() -> None:
    one = replace(draft("tiny", "counting", 1), rationale="{label}")
    task = finish(one, WORLDS["tiny"], "made:1", "made")
    assert isinstance(task.truth, TextAnswer)
    assert task.rationale == task.truth.text
