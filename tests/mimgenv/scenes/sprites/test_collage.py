"""Rules of the renderer of cut-outs: what is drawn where, and that the same scene always gives the same bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from mimgenv.scenes.scene import Frame, Kind, Scene, Thing
from mimgenv.scenes.sprites import grounds
from mimgenv.scenes.sprites.collage import PALETTE, draw
from mimgenv.scenes.sprites.cutouts import cutout
from mimgenv.scenes.sprites.drawings import DRAWINGS
from mimgenv.scenes.sprites.grounds import FAMILIES, HELD_OUT, HELD_OUT_FAMILY, ground, light, painted
from mimgenv.scenes.sprites.world import Sprites

SIDE = 224
CROWD = Scene(
    tuple(
        Thing(i, Kind(shape, tuple(PALETTE)[i % 8]), (30.0 + 54 * (i % 4), 34.0 + 52 * (i // 4)), 60.0, 0.1 * (i - 8))
        for i, shape in enumerate(DRAWINGS)
    ),
    7,
)
GOLDEN = {
    "plain": (CROWD, "3571413e96eb8ee1"),
    "disturbed": (replace(CROWD, view=(4.5, -7.25, 0.93), light=5, noise=9), "35344c50188ad7b1"),
    "held out": (replace(CROWD, backdrop=HELD_OUT + 3), "dafb6b5756f2223c"),
}


def _thing(shape: str = "mug", colour: str = "blue", x: float = 112, y: float = 112, size: float = 60) -> Thing:
    return Thing(0, Kind(shape, colour), (x, y), size)


def _hash(frame: Frame) -> str:
    return hashlib.sha256(frame.pixels.tobytes() + frame.instances.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_scene_has_the_golden_bytes(name: str) -> None:
    scene, golden = GOLDEN[name]
    assert _hash(draw(scene, SIDE)) == golden


def test_a_fresh_process_draws_the_same_bytes() -> None:
    scene = GOLDEN["disturbed"][0]
    code = (
        "from mimgenv.scenes.scene import Kind, Scene, Thing;"
        "from mimgenv.scenes.sprites.collage import draw; import hashlib;"
        f"frame = draw({scene!r}, {SIDE});"
        "print(hashlib.sha256(frame.pixels.tobytes() + frame.instances.tobytes()).hexdigest()[:16])"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == _hash(draw(scene, SIDE))


def test_drawing_a_scene_twice_gives_the_same_bytes_whatever_was_drawn_between() -> None:
    first = draw(CROWD, SIDE)
    for cached in (painted, ground, light, cutout):
        cached.cache_clear()
    draw(replace(CROWD, backdrop=9, view=(0, 0, 1.1)), SIDE)
    second = draw(CROWD, SIDE)
    assert _hash(first) == _hash(second)
    assert (first.boxes, first.visibility) == (second.boxes, second.visibility)


def test_a_frame_may_be_written_to_without_changing_the_next_one() -> None:
    first = draw(CROWD, SIDE)
    kept = _hash(first)
    first.pixels[:] = 0
    assert _hash(draw(CROWD, SIDE)) == kept


def test_a_box_is_the_tight_extent_of_what_is_seen_of_a_thing() -> None:
    frame = draw(CROWD, SIDE)
    assert frame.instances.dtype == np.int16
    for number, box in enumerate(frame.boxes, 1):
        rows, columns = np.nonzero(frame.instances == number)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_pixel_is_of_a_thing_that_covers_half_of_it() -> None:
    frame = draw(Scene((_thing("star", "red"),), 3), SIDE)
    mask = cutout("star", 60, 0.0).alpha >= 128
    assert np.array_equal(frame.instances[81:143, 81:143] == 1, mask)
    assert np.count_nonzero(frame.instances) == np.count_nonzero(mask)


def test_the_later_thing_lies_on_the_earlier_one_and_visibility_is_what_is_left() -> None:
    below, above = _thing("book", "red"), _thing("star", "blue", 125, 120)
    frame = draw(Scene((below, above), 3), SIDE)
    alone = draw(Scene((below,), 3), SIDE).instances == 1
    hidden = alone & (frame.instances == 2)
    assert frame.visibility[1] == 1
    assert frame.visibility[0] == 1 - hidden.sum() / alone.sum()
    assert 0.3 < frame.visibility[0] < 0.9
    assert draw(Scene((above, below), 3), SIDE).visibility[1] == 1


@pytest.mark.parametrize("place", [(-90.0, 50.0), (50.0, 700.0), (900.0, -900.0)])
def test_a_thing_out_of_the_picture_has_no_box_and_no_visibility(place: tuple[float, float]) -> None:
    frame = draw(Scene((_thing("car", "red", *place),), 3), SIDE)
    assert (frame.boxes, frame.visibility) == ((None,), (0.0,))
    assert np.array_equal(frame.pixels, painted(3, SIDE))


def test_a_thing_across_the_edge_is_seen_in_part() -> None:
    frame = draw(Scene((_thing("book", "red", 0, 112),), 3), SIDE)
    assert frame.visibility[0] == pytest.approx(0.5, abs=0.05)
    assert frame.boxes[0] is not None and frame.boxes[0][0] == 0


def test_a_pasted_thing_throws_no_shadow() -> None:
    scene = Scene((_thing(),), 3)
    shaded, pasted = draw(scene, SIDE), draw(replace(scene, things=(replace(scene.things[0], pasted=True),)), SIDE)
    assert np.array_equal(shaded.instances, pasted.instances)
    inside = cutout("mug", 60, 0.0).alpha == 255
    assert np.array_equal(shaded.pixels[81:143, 81:143][inside], pasted.pixels[81:143, 81:143][inside])
    outside = pasted.instances == 0
    change = shaded.pixels.astype(int)[outside].sum(1) - pasted.pixels.astype(int)[outside].sum(1)
    assert change.max() == 0
    assert np.count_nonzero(change < -72) > 250
    bare = draw(Scene((), 3), SIDE).pixels[outside]
    assert np.count_nonzero((pasted.pixels[outside] != bare).any(1)) < 250  # its soft edge alone


def test_another_light_moves_the_shadow_and_changes_the_brightness_but_nothing_else() -> None:
    scene = Scene((_thing(),), 3)
    own = draw(scene, SIDE)
    for seed in (1, 2, 3):
        other = draw(replace(scene, light=seed), SIDE)
        assert np.array_equal(other.instances, own.instances)
        assert abs(other.pixels[:40].mean() - own.pixels[:40].mean()) > 1
        (x, y), (own_x, own_y) = light(3, seed).shadow, light(3).shadow
        assert x * own_x + y * own_y < 0.8 * np.hypot(x, y) * np.hypot(own_x, own_y)
        darkest = _shadow_middle(other), _shadow_middle(own)
        assert np.hypot(*np.subtract(*darkest)) > 2


def _shadow_middle(frame: Frame) -> tuple[float, float]:
    """Where the shadow around a thing is, on average."""
    taken = np.median(frame.pixels.sum(2, dtype=int)) - frame.pixels.sum(2, dtype=int)
    taken = np.where((frame.instances == 0) & (taken > 60), taken, 0)[60:170, 60:170]
    middle = tuple(float(np.average(np.arange(110), weights=taken.sum(axis))) for axis in (0, 1))
    return middle[0], middle[1]


def test_grain_changes_no_pixel_by_more_than_it_may_and_does_not_wrap() -> None:
    bare, grainy = (draw(replace(CROWD, noise=noise), SIDE).pixels.astype(int) for noise in (0, 60))
    change = grainy - bare
    assert change.min() == -60 and change.max() == 60
    assert (change[..., 0] != 0).mean() > 0.95
    assert np.array_equal(grainy, draw(replace(CROWD, noise=60), SIDE).pixels)


def test_a_view_pans_in_pixels_and_zooms_about_the_middle() -> None:
    scene = Scene((_thing(x=92, y=132),), 3)
    box = np.array(draw(scene, SIDE).boxes[0])
    panned = draw(replace(scene, view=(7.0, -4.0, 1.0)), SIDE)
    assert panned.boxes[0] == tuple(box + np.array((7, -4, 7, -4)))
    assert np.array_equal(panned.pixels[10:200, 20:200].astype(int), draw(scene, SIDE).pixels[14:204, 13:193])
    zoomed = np.array(draw(replace(scene, view=(0.0, 0.0, 1.2)), SIDE).boxes[0])
    assert zoomed - 112 == pytest.approx((box - 112) * 1.2, abs=1.1)


@pytest.mark.parametrize("shape", DRAWINGS)
def test_a_thing_looks_most_like_the_colour_it_is_named_after_in_any_light(shape: str) -> None:
    def hue(colour: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        vivid: npt.NDArray[np.float64] = (colour - colour.mean()) / max(40.0, float(np.linalg.norm(colour)))
        return vivid

    named = {name: hue(np.array(colour, np.float64)) for name, colour in PALETTE.items()}
    for seed in range(4):
        for colour in PALETTE:
            frame = draw(Scene((_thing(shape, colour, size=44),), seed, light=seed), SIDE)
            pixels = frame.pixels[frame.instances == 1].astype(np.float64)
            vivid = pixels[np.ptp(pixels, axis=1) > 40]
            seen = hue(np.median(vivid, axis=0))
            assert min(named, key=lambda name: float(np.linalg.norm(named[name] - seen))) == colour
            assert len(vivid) > 0.45 * len(pixels)


def test_every_attribute_of_a_thing_and_of_a_scene_changes_the_picture() -> None:
    thing = _thing()
    scene = Scene((thing,), 5)
    things = [
        replace(thing, kind=Kind("mug", "red")),
        replace(thing, kind=Kind("hat", "blue")),
        replace(thing, turn=0.2),
        replace(thing, size=56.0),
        replace(thing, position=(113.0, 112.0)),
    ]
    scenes = [
        scene,
        *(replace(scene, things=(one,)) for one in things),
        replace(scene, backdrop=6),
        replace(scene, light=1),
        replace(scene, light=2),
        replace(scene, noise=1),
        replace(scene, view=(3.0, 0.0, 1.0)),
    ]
    assert len({_hash(draw(one, SIDE)) for one in scenes}) == len(scenes) == 11


def test_grounds_are_duller_than_any_thing_and_neither_black_nor_white() -> None:
    for seed in (*range(40), *range(HELD_OUT, HELD_OUT + 10)):
        pixels = painted(seed, SIDE).astype(int)
        assert np.ptp(pixels, axis=2).max() < 40
        assert pixels.min() > 110 and pixels.max() < 250
    assert min(max(colour) - min(colour) for colour in PALETTE.values()) > 100


def test_held_out_grounds_are_of_a_family_of_their_own() -> None:
    assert {ground(seed).family for seed in range(60)} == set(FAMILIES)
    assert {ground(seed).family for seed in range(HELD_OUT, HELD_OUT + 60)} == {HELD_OUT_FAMILY}
    assert HELD_OUT_FAMILY not in FAMILIES


def test_families_look_different_and_patterns_have_both_of_their_tones() -> None:
    axis = np.arange(-112, 112, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    for family, share in {
        "plain": 0.0,
        "paper": 0.0,
        "gradient": 0.5,
        "striped": 0.5,
        "dotted": 0.25,
        "checked": 0.6,
    }.items():
        paper = replace(ground(0), family=family)
        tone = paper.pattern(x, y)
        assert (tone.shape, tone.dtype) == ((SIDE, SIDE), np.float32)
        assert tone.mean() == pytest.approx(share, abs=0.04)
        assert tone.min() == 0 and (tone.max() > 0.9) == (share > 0)


def test_a_larger_picture_shows_the_same_ground_in_more_detail() -> None:
    small, large = painted(2, SIDE).astype(int), painted(2, 2 * SIDE).astype(int)
    assert np.abs(large.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)) - small).mean() < 4


def test_all_planes_of_a_ground_are_single_precision() -> None:
    assert grounds._grain().dtype == np.float32
    assert grounds._points(SIDE, 3.5, 0.9).dtype == np.float32


def test_every_colour_is_clearly_another() -> None:
    colours = [np.array(colour) for colour in PALETTE.values()]
    ways = [np.abs(one - other).sum() for i, one in enumerate(colours) for other in colours[:i]]
    assert len(colours) == 8 and min(ways) > 90


def test_the_brightest_light_turns_white_whiter_and_never_wraps_around() -> None:
    world = Sprites()
    for seed in range(1, 40):
        scene = replace(world.arrange(np.random.default_rng(seed), (Kind("clock", "pink"),), 1), light=seed)
        plain = world.render(replace(scene, light=0)).pixels.astype(int)
        lit = world.render(scene).pixels.astype(int)
        face = plain.min(axis=2) > 225  # the face of the clock
        assert face.sum() > 20
        assert lit[face].min() > 150
