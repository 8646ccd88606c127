"""Rules of the flat little world: its lattice, what is drawn, and that boxes are the extent of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.flat import CELL, COLOURS, COUNTS, LATTICE, NOISE, SHAPES, SIDE, Flat
from mimgenv.scenes.scene import Kind, Scene, Thing, World
from mimgenv.tasks.draft import draw_kinds

WORLD = Flat()
RED = Kind("circle", "red")
DIFFICULTIES = (None, 1, 2, 3, 4, 5)


def scene(seed: int, difficulty: int | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = WORLD.counts(difficulty)
    return WORLD.arrange(rng, draw_kinds(rng, WORLD.kinds, int(rng.integers(low, high + 1))), difficulty)


def test_the_flat_world_is_a_world_of_four_shapes_in_six_colours() -> None:
    world: World = WORLD
    assert world.name == "tiny"
    assert {(kind.shape, kind.colour, kind.material) for kind in world.kinds} == {
        (shape, colour, "") for shape in SHAPES for colour in COLOURS if colour != "black"
    }
    assert len(world.kinds) == 24


def test_the_common_colour_is_no_colour_of_a_kind_so_that_an_odd_thing_is_never_like_the_others() -> None:
    assert WORLD.common_kinds == (tuple(Kind(shape, "black") for shape in sorted(SHAPES)),)
    assert not {kind.colour for kind in WORLD.kinds} & {"black"}


def test_the_held_out_world_adds_black_things_and_darkens_the_ground() -> None:
    held_out = Flat(held_out=True)
    assert set(held_out.kinds) - set(WORLD.kinds) == {Kind(shape, "black") for shape in SHAPES}
    grounds = {}
    for world in (WORLD, held_out):
        scenes = [world.arrange(np.random.default_rng(seed), (RED,), None) for seed in range(40)]
        grounds[world is held_out] = [np.median(world.render(scene).pixels) for scene in scenes]
        assert [world.render(s).pixels.tobytes() for s in scenes] == [Flat().render(s).pixels.tobytes() for s in scenes]
    assert max(grounds[True]) < min(grounds[False])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_number_of_things_of_a_difficulty_can_be_placed(difficulty: int | None) -> None:
    low, high = WORLD.counts(difficulty)
    assert {len(scene(seed, difficulty).things) for seed in range(40)} == set(range(low, high + 1))


def test_difficulties_say_how_many_things_there_are_and_whether_they_are_small() -> None:
    assert {d: WORLD.counts(d) for d in DIFFICULTIES} == {
        None: (1, 3),
        1: (1, 1),
        2: (2, 2),
        3: (3, 3),
        4: (1, 2),
        5: (3, 3),
    }
    sizes = {d: {thing.size for seed in range(60) for thing in scene(seed, d).things} for d in DIFFICULTIES}
    assert sizes[4] == sizes[5] == {14.0, 21.0, 28.0}
    assert sizes[None] == sizes[1] == sizes[2] == sizes[3] == {28.0, 42.0, 56.0}


@pytest.mark.parametrize("difficulty", [0, 6, -1, "2"])
def test_a_difficulty_that_does_not_exist_is_refused_by_its_value(difficulty: int) -> None:
    with pytest.raises(ConfigurationError, match=f"difficulty {difficulty}"):
        WORLD.counts(difficulty)


def test_more_things_than_cells_are_refused() -> None:
    rng = np.random.default_rng(0)
    assert len(WORLD.arrange(rng, WORLD.kinds[:9], None).things) == 9
    with pytest.raises(TaskError, match="10 things, 9 cells"):
        WORLD.arrange(rng, WORLD.kinds[:10], None)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_box_lies_on_the_lattice_inside_a_cell_of_its_own(difficulty: int | None) -> None:
    step, _ = LATTICE[difficulty in (4, 5)]
    for seed in range(40):
        cells = []
        for thing in scene(seed, difficulty).things:
            (x, y), side = thing.position, thing.size
            assert x % step == y % step == side % step == 0
            cells.append((x // CELL, y // CELL))
            assert (x % CELL) + side <= CELL
            assert (y % CELL) + side <= CELL
        assert len(set(cells)) == len(cells)


def test_every_cell_of_the_grid_is_used() -> None:
    cells = {(t.position[0] // CELL, t.position[1] // CELL) for seed in range(60) for t in scene(seed).things}
    assert cells == {(x, y) for x in range(3) for y in range(3)}


def test_identities_count_up_from_the_first() -> None:
    things = WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:3], None, first_identity=5).things
    assert [(thing.identity, thing.kind) for thing in things] == list(enumerate(WORLD.kinds[:3], 5))


def test_the_same_generator_places_the_same_and_another_something_else() -> None:
    assert scene(3) == scene(3)
    assert len({scene(seed) for seed in range(30)}) == 30


# Pixels


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_box_is_exactly_the_extent_of_the_pixels_of_its_thing(difficulty: int | None) -> None:
    for seed in range(20):
        made = scene(seed, difficulty)
        frame = WORLD.render(made)
        for number, (thing, box) in enumerate(zip(made.things, frame.boxes, strict=True), 1):
            rows, columns = np.nonzero(frame.instances == number)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert box == (*thing.position, thing.position[0] + thing.size, thing.position[1] + thing.size)
        assert frame.visibility == (1.0,) * len(made.things)


def test_the_pixels_of_a_thing_have_its_colour_and_all_others_are_ground_up_to_the_noise() -> None:
    for seed in range(20):
        made = scene(seed)
        frame = WORLD.render(made)
        pixels = frame.pixels.astype(int)
        for number, thing in enumerate(made.things, 1):
            own = pixels[frame.instances == number]
            assert np.abs(own - COLOURS[thing.kind.colour]).max() <= NOISE
        ground = pixels[frame.instances == 0]
        assert np.ptp(ground) <= 2 * NOISE
        assert ground.min() >= 205 - NOISE
        assert frame.pixels.shape == (SIDE, SIDE, 3)


def test_no_colour_is_so_near_the_ends_that_noise_would_wrap() -> None:
    assert all(NOISE <= value <= 255 - NOISE for colour in COLOURS.values() for value in colour)


def test_any_two_colours_and_the_ground_are_further_apart_than_the_noise() -> None:
    grounds = [(205,) * 3, (245,) * 3]
    colours = [np.array(colour) for colour in (*COLOURS.values(), *grounds)]
    for i, a in enumerate(colours):
        for b in colours[: min(i, len(COLOURS))]:
            assert np.abs(a - b).max() > 2 * NOISE


@pytest.mark.parametrize(
    ("shape", "share"), [("square", 1.0), ("circle", np.pi / 4), ("triangle", 0.5), ("diamond", 0.5)]
)
@pytest.mark.parametrize("side", sorted({side for _, sides in LATTICE.values() for side in sides}))
def test_a_shape_covers_its_share_of_the_box(shape: str, share: float, side: int) -> None:
    thing = Thing(0, Kind(shape, "red"), (0.0, 0.0), float(side))
    frame = WORLD.render(Scene((thing,), 0))
    assert np.count_nonzero(frame.instances) / side**2 == pytest.approx(share, abs=1.5 / side)


def test_the_four_shapes_look_different() -> None:
    frames = [WORLD.render(Scene((Thing(0, Kind(shape, "red"), (0.0, 0.0), 56.0),), 0)) for shape in SHAPES]
    assert len({frame.instances.tobytes() for frame in frames}) == len(SHAPES)


def test_a_picture_is_a_pure_function_of_its_scene_and_of_the_backdrop() -> None:
    made = scene(3)
    first = WORLD.render(made)
    WORLD.render(scene(4))
    np.testing.assert_array_equal(WORLD.render(made).pixels, first.pixels)
    other = WORLD.render(Scene(made.things, made.backdrop + 1))
    assert not np.array_equal(other.pixels, first.pixels)
    np.testing.assert_array_equal(other.instances, first.instances)


def test_the_shown_half_size_has_thirteen_coordinates() -> None:
    coordinates = {v / 2 for seed in range(200) for box in WORLD.render(scene(seed)).boxes if box for v in box}
    assert coordinates == set(range(0, 85, 7))
    assert set(COUNTS) == set(DIFFICULTIES)
