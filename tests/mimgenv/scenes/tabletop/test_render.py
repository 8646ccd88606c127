"""Rules of the ray-caster: what a picture shows of its scene, and that the same scene always gives the same bytes."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from numpy._core import _multiarray_umath

from mimgenv.scenes.scene import Kind, Scene, Thing
from mimgenv.scenes.tabletop.backdrop import backdrop, ground
from mimgenv.scenes.tabletop.shading import PALETTE
from mimgenv.scenes.tabletop.shapes import SOLIDS
from mimgenv.scenes.tabletop.stage import stage
from mimgenv.scenes.tabletop.world import Tabletop

WORLD = Tabletop()
GOLDEN = {
    1: "a6f7cbd09606f04b933cb36c8446bc0eb13d74f811057acd318f9f49fa927edb",
    3: "65dc73506ea14ae6e2592c6a98515d13fdaef8351428d462a6a2396525100865",
    5: "ce76cdd7231808bb5e41e9b0b3d8db796dc8e2c6a51ad8e67534b18c9262fd51",
}


def _scene(seed: int, difficulty: int | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    low, high = WORLD.counts(difficulty)
    kinds = [WORLD.kinds[i] for i in rng.permutation(len(WORLD.kinds))[: rng.integers(low, high + 1)]]
    return WORLD.arrange(rng, tuple(kinds), difficulty)


def _fingerprint(difficulty: int) -> str:
    """Of a scene, of the same disturbed, and of its points."""
    scene, total = _scene(7, difficulty), hashlib.sha256()
    for shown in (scene, WORLD.disturb(np.random.default_rng(7), scene, difficulty)):
        frame = WORLD.render(shown)
        for array in (frame.pixels, frame.instances, np.nan_to_num(WORLD.points(shown))):
            total.update(array.tobytes())
    return total.hexdigest()


def _thing(kind: Kind, x: float = 0.0, y: float = 0.0, size: float = 1.4) -> Thing:
    return Thing(0, kind, (x, y), size, 0.4)


@pytest.mark.parametrize("difficulty", GOLDEN)
def test_a_scene_of_a_seed_has_the_golden_bytes(difficulty: int) -> None:
    assert _fingerprint(difficulty) == GOLDEN[difficulty]


def test_every_processor_draws_the_same_bytes() -> None:
    found = _multiarray_umath.__cpu_features__
    extra = [name for name in _multiarray_umath.__cpu_dispatch__ if found[name]]
    if not extra:
        pytest.skip("this processor has nothing that could be switched off")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import {__name__} as own; print(*map(own._fingerprint, own.GOLDEN))"
    )
    without = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(extra)}
    shown = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [_fingerprint(difficulty) for difficulty in GOLDEN]


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


def test_a_box_is_the_tight_extent_of_its_thing_in_the_instance_buffer() -> None:
    for seed in range(20):
        frame = WORLD.render(_scene(seed, 5))
        assert frame.instances.dtype == np.int16
        assert set(np.unique(frame.instances)) == set(range(len(frame.boxes) + 1))
        for number, box in enumerate(frame.boxes, 1):
            rows, columns = np.nonzero(frame.instances == number)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


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


def test_a_thing_more_changes_no_pixel_far_from_it() -> None:
    rng, first = np.random.default_rng(0), _thing(Kind("cylinder", "red", "metal"), -1.7, 0.2)
    before = WORLD.render(Scene((first,), 5))
    for _ in range(12):
        x, y = rng.uniform((0.9, -1.2), (1.9, 1.2)).tolist()
        second = _thing(Kind("cone", "green", "rubber"), x, y, 1.0)
        after = WORLD.render(Scene((first, replace(second, identity=1)), 5))
        x1, y1, x2, y2 = (int(edge) for edge in after.boxes[1] or ())
        changed = (before.pixels != after.pixels).any(2)
        assert changed[y1:y2, x1:x2].any()
        changed[max(0, y1 - 30) : y2 + 30, max(0, x1 - 45) : x2 + 45] = False
        assert not changed.any()


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


def test_a_sphere_covers_the_ellipse_that_the_pinhole_gives() -> None:
    camera = backdrop(5, 224).camera
    (x, y), radius = camera.place(0.3, -0.4), 0.48 * 1.5
    below = camera.height - radius
    square, depth = x * x + y * y + below * below, y * camera.dip[1] + below * camera.dip[0]
    # A cone of rays around a sphere meets the picture plane in an ellipse of this area.
    expected = math.pi * camera.focal**2 * radius**2 * math.sqrt(square - radius**2) / (depth**2 - radius**2) ** 1.5
    frame = WORLD.render(Scene((_thing(Kind("sphere", "blue", "rubber"), 0.3, -0.4, 1.5),), 5))
    assert np.count_nonzero(frame.instances) == pytest.approx(expected, rel=0.01)


def test_the_nearer_thing_hides_the_one_behind_in_any_order() -> None:
    azimuth = ground(5).view[0]
    towards = math.cos(azimuth), math.sin(azimuth)
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
def test_a_thing_looks_most_like_the_colour_it_is_named_after_by_any_light(shape: str, material: str) -> None:
    def hue(colour: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        vivid: npt.NDArray[np.float64] = (colour - colour.mean()) / max(40.0, float(np.linalg.norm(colour)))
        return vivid

    named = {name: hue(np.sqrt(np.array(colour))) for name, colour in PALETTE.items()}
    for seed in range(6):
        for colour in PALETTE:
            frame = WORLD.render(Scene((_thing(Kind(shape, colour, material)),), seed, light=seed // 2))
            seen = hue(np.median(frame.pixels[frame.instances == 1], axis=0))
            assert min(named, key=lambda name: float(np.linalg.norm(named[name] - seen))) == colour


def test_metal_has_brighter_spots_than_rubber() -> None:
    for shape in SOLIDS:
        rubber, metal = (WORLD.render(Scene((_thing(Kind(shape, "blue", m)),), 5)) for m in ("rubber", "metal"))
        red = [np.percentile(frame.pixels[frame.instances == 1][:, 0], 95) for frame in (rubber, metal)]
        assert red[1] > red[0] + 25


def test_there_is_no_glint_in_a_shadow() -> None:
    x, y, _ = ground(5).light.sun
    far = 2.0 / math.hypot(x, y)
    ball = _thing(Kind("sphere", "blue", "metal"), -0.4 * x, -0.4 * y)
    wall = _thing(Kind("cylinder", "gray", "rubber"), (far - 0.4) * x, (far - 0.4) * y, 3.0)
    alone, shaded = WORLD.render(Scene((ball,), 5)), WORLD.render(Scene((ball, wall), 5))
    both = (alone.instances == 1) & (shaded.instances == 1)
    glint = [(frame.pixels[both].min(1) > 200).sum() for frame in (alone, shaded)]
    assert glint[0] > 20 and glint[1] == 0


def test_the_floor_is_darker_in_a_shadow() -> None:
    empty, shaded = WORLD.render(Scene((), 5)), WORLD.render(Scene((_thing(Kind("cube", "red", "rubber")),), 5))
    floor = shaded.instances == 0
    change = shaded.pixels.astype(int)[floor].sum(1) - empty.pixels.astype(int)[floor].sum(1)
    assert np.count_nonzero(change < -60) > 150
    assert np.count_nonzero(change > 0) < 120  # Only where an edge pixel holds some of the thing.


def test_another_light_moves_the_shadow_and_leaves_the_thing() -> None:
    scene, empty = Scene((_thing(Kind("cube", "red", "rubber")),), 5), Scene((), 5)
    places = []
    for light in (0, 1, 2, 3):
        lit, bare = (WORLD.render(replace(one, light=light)) for one in (scene, empty))
        change = lit.pixels.astype(int).sum(2) - bare.pixels.astype(int).sum(2)
        rows, columns = np.nonzero((change < -60) & (lit.instances == 0))
        places.append((rows.mean(), columns.mean()))
        assert np.array_equal(lit.instances, WORLD.render(scene).instances)
    assert min(math.dist(places[0], other) for other in places[1:]) > 4


def test_grain_changes_each_pixel_by_no_more_than_the_noise() -> None:
    scene = _scene(3, 3)
    clean = WORLD.render(scene).pixels.astype(int)
    for noise in (1, 7, 60):
        grained = WORLD.render(replace(scene, noise=noise)).pixels
        change = abs(grained.astype(int) - clean)
        assert change.max() == noise
        assert (change > noise / 2).mean() > 0.2
        assert np.array_equal(grained, WORLD.render(replace(scene, noise=noise)).pixels)


def test_a_pasted_thing_throws_no_shadow() -> None:
    thing = _thing(Kind("cylinder", "blue", "rubber"))
    own, pasted = (WORLD.render(Scene((replace(thing, pasted=pasted),), 5)) for pasted in (False, True))
    empty = WORLD.render(Scene((), 5))
    around = np.ones((224, 224), np.bool_)
    x1, y1, x2, y2 = (int(edge) for edge in pasted.boxes[0] or ())
    around[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = False
    assert np.array_equal(pasted.pixels[around], empty.pixels[around])
    assert not np.array_equal(own.pixels[around], empty.pixels[around])
    assert np.array_equal(own.instances, pasted.instances)


def test_a_pasted_thing_is_shaded_but_shades_no_other() -> None:
    scenery = ground(5)
    sun = scenery.light.sun[0] / 2, scenery.light.sun[1] / 2
    shading = _thing(Kind("cylinder", "red", "rubber"), 2.2 * sun[0], 2.2 * sun[1], 1.5)
    shaded = _thing(Kind("cube", "blue", "rubber"), -1.6 * sun[0], -1.6 * sun[1], 1.3)

    def brightness(*things: Thing) -> float:
        frame = WORLD.render(Scene(things, 5))
        both = WORLD.render(Scene((shaded, shading), 5)).instances
        return float(frame.pixels[both == 1].mean())

    alone = brightness(shaded)
    assert brightness(shaded, replace(shading, pasted=True)) == pytest.approx(alone, abs=0.5)
    assert brightness(shaded, shading) < alone - 5
    assert brightness(replace(shaded, pasted=True), shading) == pytest.approx(brightness(shaded, shading), abs=1)


def test_outlines_are_blended_of_what_is_on_both_sides() -> None:
    scene = Scene((_thing(Kind("sphere", "red", "rubber")),), 5)
    frame = WORLD.render(scene)
    green, inside = frame.pixels[:, :, 1].astype(int), frame.instances == 1
    rows, columns = np.nonzero(inside[1:-1, 1:-1] & ~(inside[:-2, 1:-1] & inside[2:, 1:-1]))
    between = 0
    for row, column in zip(rows + 1, columns + 1, strict=True):
        around = green[row - 1 : row + 2, column - 1 : column + 2]
        assert around.min() <= green[row, column] <= around.max()
        between += bool(around.min() + 15 < green[row, column] < around.max() - 15)
    assert between > 0.3 * len(rows)


def test_a_larger_picture_shows_the_same_scene_in_more_detail() -> None:
    scene = _scene(2)
    small, large = WORLD.render(scene), Tabletop(448).render(scene)
    assert large.pixels.shape == (448, 448, 3)
    for one, other in zip(small.boxes, large.boxes, strict=True):
        assert one is not None and other is not None
        assert np.abs(np.array(other) / 2 - np.array(one)).max() <= 1
