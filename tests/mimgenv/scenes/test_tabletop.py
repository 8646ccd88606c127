"""Rules of the table-top: placement, what is drawn, and that the same scene always gives the same bytes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from mimgenv.errors import ConfigurationError, TaskError
from mimgenv.scenes.backdrop import FLOORS, backdrop, stage
from mimgenv.scenes.camera import look_at
from mimgenv.scenes.render import PALETTE
from mimgenv.scenes.scene import Frame, Kind, Scene, Thing, World
from mimgenv.scenes.shapes import MISS, SOLIDS
from mimgenv.scenes.tabletop import Tabletop
from mimgenv.tasks.draft import draw_kinds

WORLD = Tabletop()
GOLDEN = {
    1: "42e843b69191471b41cc15fd94194906d08b98dead72be953d714ecebd04ef06",
    3: "5eefdb728cd2a31fdd61c079021629462898e887196a6ee102f44ceaa17e601f",
    5: "5aeb39b0813e662faec5748086da1f08e2a57d65d78404fda4d85b714df48a22",
}


def _scene(seed: int, difficulty: int | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = WORLD.counts(difficulty)
    return WORLD.arrange(rng, draw_kinds(rng, WORLD.kinds, int(rng.integers(low, high + 1))), difficulty)


def _thing(kind: Kind, x: float = 0.0, y: float = 0.0, size: float = 1.4) -> Thing:
    return Thing(0, kind, (x, y), size, 0.4)


def _clear_of_edge(frame: Frame) -> int:
    """Least distance in pixels of a box from the edge of the picture."""
    boxes = [box for box in frame.boxes if box]
    return int(min(min(x1, y1, 224 - x2, 224 - y2) for x1, y1, x2, y2 in boxes))


def test_the_table_top_is_a_world() -> None:
    world: World = WORLD
    assert world.name == "tabletop"
    assert len(set(world.kinds)) == 48


@pytest.mark.parametrize("difficulty", GOLDEN)
def test_a_scene_of_a_seed_has_the_golden_bytes(difficulty: int) -> None:
    frame = WORLD.render(_scene(7, difficulty))
    assert hashlib.sha256(frame.pixels.tobytes() + frame.instances.tobytes()).hexdigest() == GOLDEN[difficulty]


def test_drawing_a_scene_twice_gives_the_same_bytes_whatever_was_drawn_between() -> None:
    scene = _scene(11)
    first = WORLD.render(scene)
    stage.cache_clear()
    backdrop.cache_clear()
    WORLD.render(_scene(12))
    second = Tabletop().render(scene)
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first.instances.tobytes() == second.instances.tobytes()
    assert (first.boxes, first.visibility) == (second.boxes, second.visibility)


def test_a_frame_may_be_written_to_without_changing_the_next_one() -> None:
    scene = _scene(11)
    first = WORLD.render(scene)
    kept = first.pixels.copy()
    first.pixels[:] = 0
    assert np.array_equal(WORLD.render(scene).pixels, kept)


def test_arranging_depends_on_the_generator_alone() -> None:
    assert _scene(3, 5) == _scene(3, 5) != _scene(4, 5)


def test_a_box_is_the_tight_extent_of_its_thing_in_the_instance_buffer() -> None:
    for seed in range(20):
        frame = WORLD.render(_scene(seed, 5))
        assert frame.instances.dtype == np.int16
        assert set(np.unique(frame.instances)) == set(range(len(frame.boxes) + 1))
        for number, box in enumerate(frame.boxes, 1):
            rows, columns = np.nonzero(frame.instances == number)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_every_arranged_thing_is_inside_large_enough_and_mostly_visible(difficulty: int) -> None:
    for seed in range(40):
        scene = _scene(seed, difficulty)
        frame = WORLD.render(scene)
        assert WORLD.sees_well(scene)
        assert _clear_of_edge(frame) >= 4
        assert min(frame.visibility) >= 0.55
        assert min(min(box[2] - box[0], box[3] - box[1]) for box in frame.boxes if box) >= 14


@pytest.mark.parametrize("shape", SOLIDS)
def test_every_thing_stays_visible_when_all_become_any_one_shape(shape: str) -> None:
    for seed in range(10):
        scene = _scene(seed, 5)
        things = tuple(replace(thing, kind=replace(thing.kind, shape=shape)) for thing in scene.things)
        frame = WORLD.render(replace(scene, things=things))
        assert min(frame.visibility) >= 0.55
        assert _clear_of_edge(frame) >= 4


def test_things_hide_each_other_only_where_the_difficulty_lets_them() -> None:
    easy, hard = ([min(WORLD.render(_scene(seed, level)).visibility) for seed in range(40)] for level in (1, 5))
    assert min(easy) == 1.0
    assert sum(visibility < 0.97 for visibility in hard) >= 10


def test_harder_scenes_have_more_and_smaller_things() -> None:
    easy, hard = ([_scene(seed, level).things for seed in range(20)] for level in (1, 5))
    assert max(map(len, easy)) < min(map(len, hard))
    assert np.mean([t.size for things in easy for t in things]) > np.mean([t.size for things in hard for t in things])


def test_things_do_not_touch() -> None:
    for seed in range(40):
        things = _scene(seed, 5).things
        for i, one in enumerate(things):
            for other in things[:i]:
                assert math.dist(one.position, other.position) > (one.size + other.size) / 2


def test_identities_count_up_from_the_first() -> None:
    scene = WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:3], 3, first_identity=5)
    assert [thing.identity for thing in scene.things] == [5, 6, 7]
    assert tuple(thing.kind for thing in scene.things) == WORLD.kinds[:3]


def test_things_of_one_kind_can_be_arranged_together() -> None:
    scene = WORLD.arrange(np.random.default_rng(0), (WORLD.kinds[0],) * 6, 4)
    assert len({thing.position for thing in scene.things}) == 6


def test_more_things_than_the_table_holds_are_refused() -> None:
    with pytest.raises(TaskError, match="no room on the table for 48 things at difficulty 3"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds, 3)


def test_a_thing_near_the_edge_or_behind_a_larger_one_is_not_seen_well() -> None:
    kind, seed = Kind("cube", "red", "metal"), _scene(0).backdrop
    foot = backdrop(seed, 224).camera.origin
    towards = [part / math.hypot(foot[0], foot[1]) for part in foot[:2]]
    behind = replace(_thing(kind, -0.7 * towards[0], -0.7 * towards[1]), size=0.9)
    before = replace(_thing(kind, 0.9 * towards[0], 0.9 * towards[1]), size=1.6)
    assert WORLD.sees_well(Scene((behind,), seed))
    assert not WORLD.sees_well(Scene((behind, before), seed))
    assert not WORLD.sees_well(Scene((_thing(kind, 5.0),), seed))


def test_a_new_kind_in_the_same_place_changes_no_pixel_far_from_the_thing() -> None:
    kind = Kind("cube", "red", "metal")
    scene = Scene((_thing(kind, -1.8), replace(_thing(kind, 1.8), identity=1)), 5)
    other = replace(scene.things[0], kind=Kind("sphere", "green", "rubber"))
    before, after = WORLD.render(scene), WORLD.render(replace(scene, things=(other, scene.things[1])))
    changed = (before.pixels != after.pixels).any(2)
    box = before.boxes[0]
    assert box is not None
    x1, y1, x2, y2 = (int(edge) for edge in box)
    near = np.zeros_like(changed)
    near[max(0, y1 - 25) : y2 + 25, max(0, x1 - 40) : x2 + 40] = True
    assert changed[y1:y2, x1:x2].mean() > 0.5
    assert not changed[~near].any()
    assert before.boxes[1] == after.boxes[1]


def test_each_part_of_a_kind_and_the_turn_change_the_picture() -> None:
    thing = _thing(Kind("cube", "red", "metal"))
    others = [
        replace(thing, kind=Kind("cone", "red", "metal")),
        replace(thing, kind=Kind("cube", "blue", "metal")),
        replace(thing, kind=Kind("cube", "red", "rubber")),
        replace(thing, turn=0.9),
        replace(thing, size=1.2),
    ]
    pictures = {WORLD.render(Scene((one,), 5)).pixels.tobytes() for one in [thing, *others]}
    assert len(pictures) == 6


def test_backdrops_differ_in_camera_light_and_floor() -> None:
    drawn = [backdrop(seed, 224) for seed in range(30)]
    assert len({one.camera.origin for one in drawn}) == len({one.light for one in drawn}) == 30
    assert {one.floor.kind for one in drawn} == set(FLOORS)
    assert len({WORLD.render(Scene((), seed)).pixels.tobytes() for seed in range(6)}) == 6


def test_a_sphere_covers_the_ellipse_that_the_pinhole_gives() -> None:
    camera = backdrop(5, 224).camera
    x, y, z = (0.3 - camera.origin[0], -0.4 - camera.origin[1], 0.48 * 1.5 - camera.origin[2])
    square, depth = x * x + y * y + z * z, sum(a * b for a, b in zip((x, y, z), camera.forward, strict=True))
    radius = 0.48 * 1.5
    # A cone of rays around a sphere meets the picture plane in an ellipse of this area.
    expected = math.pi * camera.focal**2 * radius**2 * math.sqrt(square - radius**2) / (depth**2 - radius**2) ** 1.5
    frame = WORLD.render(Scene((_thing(Kind("sphere", "blue", "rubber"), 0.3, -0.4, 1.5),), 5))
    assert np.count_nonzero(frame.instances) == pytest.approx(expected, rel=0.01)


def test_the_nearer_thing_hides_the_one_behind_in_any_order() -> None:
    foot = backdrop(5, 224).camera.origin
    towards = [part / math.hypot(foot[0], foot[1]) for part in foot[:2]]
    near = _thing(Kind("cylinder", "red", "rubber"), 0.75 * towards[0], 0.75 * towards[1])
    far = _thing(Kind("sphere", "blue", "rubber"), -0.75 * towards[0], -0.75 * towards[1])
    frame, swapped = WORLD.render(Scene((near, far), 5)), WORLD.render(Scene((far, near), 5))
    assert frame.visibility[0] == 1.0
    assert 0.2 < frame.visibility[1] < 0.9
    assert np.array_equal(frame.pixels, swapped.pixels)
    assert frame.boxes == swapped.boxes[::-1]
    alone = WORLD.render(Scene((far,), 5)).instances == 1
    hidden = alone & (frame.instances == 1)
    assert hidden.sum() == alone.sum() - (frame.instances == 2).sum() > 0


@pytest.mark.parametrize("position", [(60.0, 0.0), (0.0, -40.0), (0.0, 900.0)])
def test_a_thing_out_of_the_picture_has_no_box_and_no_visibility(position: tuple[float, float]) -> None:
    frame = WORLD.render(Scene((_thing(Kind("cone", "gray", "metal"), *position),), 5))
    assert (frame.boxes, frame.visibility) == ((None,), (0.0,))
    assert not frame.instances.any()


@pytest.mark.parametrize("material", ["rubber", "metal"])
@pytest.mark.parametrize("shape", SOLIDS)
def test_a_thing_looks_most_like_the_colour_it_is_named_after(shape: str, material: str) -> None:
    def hue(colour: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        vivid: npt.NDArray[np.float64] = (colour - colour.mean()) / max(40.0, float(np.linalg.norm(colour)))
        return vivid

    named = {name: hue(255 * np.sqrt(np.array(colour))) for name, colour in PALETTE.items()}
    for seed in range(4):
        for colour in PALETTE:
            frame = WORLD.render(Scene((_thing(Kind(shape, colour, material)),), seed))
            seen = hue(np.median(frame.pixels[frame.instances == 1], axis=0))
            assert min(named, key=lambda name: float(np.linalg.norm(named[name] - seen))) == colour


def test_metal_has_brighter_spots_than_rubber() -> None:
    for shape in SOLIDS:
        rubber, metal = (WORLD.render(Scene((_thing(Kind(shape, "blue", m)),), 5)) for m in ("rubber", "metal"))
        red = [np.percentile(frame.pixels[frame.instances == 1][:, 0], 95) for frame in (rubber, metal)]
        assert red[1] > red[0] + 25


def test_the_floor_is_darker_in_a_shadow() -> None:
    empty, shaded = WORLD.render(Scene((), 5)), WORLD.render(Scene((_thing(Kind("cube", "red", "rubber")),), 5))
    floor = shaded.instances == 0
    change = shaded.pixels.astype(int)[floor].sum(1) - empty.pixels.astype(int)[floor].sum(1)
    assert np.count_nonzero(change < -60) > 150
    assert np.count_nonzero(change > 0) < 120  # Only where an edge pixel holds some of the thing.


@pytest.mark.parametrize("count", [1, 4, 8, 20, 48])
def test_drawn_kinds_are_distinct_and_of_different_colours_as_far_as_there_are_any(count: int) -> None:
    for seed in range(5):
        kinds = draw_kinds(np.random.default_rng(seed), WORLD.kinds, count)
        assert len(set(kinds)) == count
        assert len({kind.colour for kind in kinds}) == min(count, 8)


def test_every_kind_is_drawn_sooner_or_later() -> None:
    rng = np.random.default_rng(0)
    assert {kind for _ in range(300) for kind in draw_kinds(rng, WORLD.kinds, 4)} == set(WORLD.kinds)


def test_more_kinds_than_there_are_are_refused() -> None:
    with pytest.raises(TaskError, match="49 kinds wanted, 48 allowed"):
        draw_kinds(np.random.default_rng(0), WORLD.kinds, 49)


def test_an_unknown_difficulty_and_a_tiny_side_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="difficulty 6 is not one of"):
        WORLD.counts(6)
    with pytest.raises(ConfigurationError, match="difficulty 0 is not one of"):
        WORLD.arrange(np.random.default_rng(0), WORLD.kinds[:1], 0)
    with pytest.raises(ConfigurationError, match="112 pixels or more, not 84"):
        Tabletop(84)


def test_a_larger_picture_shows_the_same_scene_in_more_detail() -> None:
    scene = _scene(2)
    small, large = WORLD.render(scene), Tabletop(448).render(scene)
    assert large.pixels.shape == (448, 448, 3)
    for one, other in zip(small.boxes, large.boxes, strict=True):
        assert one is not None and other is not None
        assert np.abs(np.array(other) / 2 - np.array(one)).max() <= 1


def test_all_planes_are_single_precision() -> None:
    for seed in range(12):
        scenery, empty = backdrop(seed, 112), stage(seed, 112)
        assert {plane.dtype for plane in (*empty.rays, *empty.colour, empty.x, empty.y)} == {np.dtype(np.float32)}
        for make in SOLIDS.values():
            hit = make(1.2, 0.3).hit(scenery.camera.origin, empty.rays)
            outline = make(1.2, 0.3).shadow(empty.x, empty.y, scenery.light.slant)
            assert {plane.dtype for plane in (hit.distance, *hit.normal, outline)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shape", SOLIDS)
def test_normals_are_unit_vectors_that_face_the_camera(shape: str) -> None:
    camera, empty = backdrop(5, 112).camera, stage(5, 112)
    hit = SOLIDS[shape](1.5, 0.4).hit(camera.origin, empty.rays)
    met = hit.distance < MISS
    normal, ray = (np.stack([plane[met] for plane in planes]) for planes in (hit.normal, empty.rays))
    assert np.abs((normal * normal).sum(0) - 1).max() < 1e-3
    assert ((normal * ray).sum(0) < 1e-3).all()


@pytest.mark.parametrize("shape", SOLIDS)
def test_a_shadow_is_where_a_ray_to_the_sun_meets_the_solid(shape: str) -> None:
    solid, slant = SOLIDS[shape](1.0, 0.4), (0.9, -0.5)
    axis = np.linspace(-1.6, 1.6, 81, dtype=np.float32)
    x, y = (plane.ravel() for plane in np.meshgrid(axis, axis))
    far = 50.0  # Followed from the sun's side, one ray per floor point, all from its own far origin.
    inside = solid.shadow(x, y, slant) < 0
    met = np.zeros(x.shape, np.bool_)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        origin = float(a) - slant[0] * far, float(b) - slant[1] * far, far
        rays = tuple(np.array([part], np.float32) for part in (slant[0], slant[1], -1.0))
        met[i] = solid.hit(origin, (rays[0], rays[1], rays[2])).distance[0] < far - 1e-3
    assert np.count_nonzero(inside != met) <= 0.01 * met.size
    assert 100 < met.sum() < met.size / 2


def test_a_camera_projects_what_its_rays_look_at() -> None:
    camera = look_at((0.0, 0.0, 0.5), -1.2, 0.6, 8.0, 224)
    assert camera.project((0.0, 0.0, 0.5)) == pytest.approx((112, 112))
    x, y, z = camera.rays(np.array([30.5], np.float32), np.array([180.5], np.float32))
    point = tuple(start + 7 * float(part[0]) for start, part in zip(camera.origin, (x, y, z), strict=True))
    assert camera.project((point[0], point[1], point[2])) == pytest.approx((30.5, 180.5), abs=1e-3)
    assert camera.project((0.0, 0.0, 2.0))[1] < 112 < camera.project((1.0, 0.0, 0.5))[0]


def test_no_difficulty_mixes_the_layouts_of_all_that_hold_as_many_things() -> None:
    alone = [WORLD.arrange(np.random.default_rng(seed), WORLD.kinds[:1], None).things[0].size for seed in range(60)]
    assert min(alone) < 1.0 and max(alone) > 1.6
    many = [thing.size for seed in range(5) for thing in _many(seed)]
    assert max(many) <= 1.4


def _many(seed: int) -> tuple[Thing, ...]:
    return WORLD.arrange(np.random.default_rng(seed), WORLD.kinds[:8], None).things
