"""Jigsaw: one piece fits, and a person can tell: every other piece breaks the picture along the edge of the hole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.picture import GREY
from mimgenv.scenes.scene import Cut, Kind, Scene, Thing
from mimgenv.tasks.draft import Draft
from mimgenv.tasks.jigsaw import CROSSING, HOLE, KNOBS, LETTERS, QUESTION, Fits, draw_elsewhere, draw_hole, jigsaw
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import Image, TextAnswer

HOMES = [world for world in worlds_of("jigsaw") if world in WORLDS]
BOX, OTHER = (28.0, 14.0, 112.0, 98.0), (70.0, 70.0, 154.0, 154.0)
WHOLE = Scene((Thing(0, Kind("cube", "red"), (0.0, 0.0), 1.0), Thing(1, Kind("cube", "blue"), (3.0, 0.0), 1.0)), 5)
PUZZLE, PIECE = replace(WHOLE, hole=BOX), replace(WHOLE, cut=Cut(BOX, 0))


def draft(world: str, seed: int, difficulty: int | None = None) -> Draft:
    rng = np.random.default_rng(seed)
    while True:
        try:
            return jigsaw(world_of(world), rng, difficulty)
        except TaskError:
            continue


def edge(pixels: Image | npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """What lies along the border of a square, side by side."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)


def hole_of(image: Image) -> tuple[int, int]:
    """Row and column of the upper left corner of the grey square."""
    grey = (image == GREY).all(axis=2)
    squares = np.lib.stride_tricks.sliding_window_view(grey, (HOLE, HOLE))
    (corner,) = np.argwhere(squares.all(axis=(2, 3)))
    return int(corner[0]), int(corner[1])


def break_of(image: Image, piece: Image) -> float:
    """Mean step in grey levels from a picture to a piece in its hole, across the edge of the hole."""
    small, (y, x) = piece[::2, ::2].astype(np.int16), hole_of(image)
    sides = []
    if y > 0:
        sides.append(image[y - 1, x : x + HOLE] - small[0])
    if y + HOLE < len(image):
        sides.append(image[y + HOLE, x : x + HOLE] - small[-1])
    if x > 0:
        sides.append(image[y : y + HOLE, x - 1] - small[:, 0])
    if x + HOLE < len(image):
        sides.append(image[y : y + HOLE, x + HOLE] - small[:, -1])
    return float(np.abs(np.concatenate(sides)).mean())


def right_piece(one: Draft) -> Scene:
    return one.scenes[1 + LETTERS.index(str(one.program.execute(one.scenes)))]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("difficulty", [1, 3, 5])
@pytest.mark.parametrize("world", HOMES)
def test_the_right_piece_continues_the_picture_best_along_the_edge_of_the_hole(
    world: str, difficulty: int, split: str
) -> None:
    for number in range(6):
        task = make_task(world, "jigsaw", difficulty, split, number)
        breaks = [break_of(task.images[0], piece) for piece in task.images[1:]]
        assert task.truth == TextAnswer(LETTERS[int(np.argmin(breaks))])


@pytest.mark.parametrize("world", HOMES)
def test_every_wrong_piece_differs_from_the_right_one_where_the_thing_crosses_the_edge(world: str) -> None:
    for seed in range(8):
        one = draft(world, seed, 5)
        right = right_piece(one)
        assert right.cut
        for piece in one.scenes[1:]:
            if piece is right:
                continue
            frames = [world_of(world).render(replace(scene, cut=None)) for scene in (right, piece)]
            rings = []
            for frame, scene in zip(frames, (right, piece), strict=True):
                assert scene.cut
                x1, y1, x2, y2 = map(int, scene.cut.box)
                rings.append(edge(frame.pixels[y1:y2, x1:x2]))
            assert (np.abs(rings[0] - rings[1]).max(axis=1) > 24).sum() >= CROSSING / 2


@pytest.mark.parametrize("world", HOMES)
def test_the_hole_hides_a_part_of_a_thing_and_leaves_a_part(world: str) -> None:
    for seed in range(10):
        one = draft(world, seed)
        cut = right_piece(one).cut
        assert cut
        assert cut.box == one.scenes[0].hole
        x1, y1, x2, y2 = map(int, cut.box)
        assert (x2 - x1, y2 - y1) == (HOLE, HOLE)
        mask = world_of(world).render(replace(one.scenes[0], hole=None)).instances == cut.about + 1
        assert 0.3 <= mask[y1:y2, x1:x2].sum() / mask.sum() <= 0.7
        assert edge(mask[y1:y2, x1:x2]).sum() >= CROSSING


def test_no_hole_cuts_a_thing_at_a_narrow_place_only() -> None:
    instances = np.zeros((224, 224), np.int16)
    instances[100:120, 40:60] = instances[100:120, 160:180] = instances[108:112, 60:160] = 1  # a dumb-bell
    for seed in range(40):
        x1, y1, x2, y2 = map(int, draw_hole(np.random.default_rng(seed), instances, 1).box)
        assert edge(instances[y1:y2, x1:x2] == 1).sum() >= CROSSING


def test_what_cannot_be_cut_through_is_refused() -> None:
    instances = np.zeros((224, 224), np.int16)
    instances[100:104, 40:44] = 1
    with pytest.raises(TaskError, match="no thing can be cut through"):
        draw_hole(np.random.default_rng(0), instances, 1)


def test_a_wrong_place_breaks_the_outline_of_the_thing_and_is_refused_where_none_does() -> None:
    bar = np.zeros((224, 224), np.bool_)
    bar[:, 60:90] = True  # looks the same wherever one goes up or down
    for seed in range(40):
        x1, y1, x2, y2 = map(int, draw_elsewhere(np.random.default_rng(seed), bar, BOX, (14, 28)))
        assert (edge(bar[y1:y2, x1:x2]) != edge(bar[14:98, 28:112])).sum() >= CROSSING
    with pytest.raises(TaskError, match="no other place"):
        draw_elsewhere(np.random.default_rng(0), np.ones((224, 224), np.bool_), BOX, (14, 28))


def test_a_piece_fits_if_it_is_of_the_same_scene_and_the_same_place() -> None:
    things = (replace(WHOLE.things[0], kind=Kind("cube", "green")), WHOLE.things[1])
    wrong = (
        replace(PIECE, cut=Cut(OTHER, 0)),
        replace(PIECE, things=things),
        replace(PIECE, things=WHOLE.things[:1]),
        replace(PIECE, backdrop=6),
        WHOLE,
    )
    for piece in wrong:
        assert Fits().execute((PUZZLE, piece, PIECE)) == "B"
        with pytest.raises(TaskError, match="fits 0 things"):
            Fits().execute((PUZZLE, piece))


def test_a_second_piece_that_looks_the_same_is_refused_whatever_its_identities() -> None:
    renamed = replace(PIECE, things=tuple(replace(thing, identity=9) for thing in PIECE.things))
    with pytest.raises(TaskError, match="fits 2 things"):
        Fits().execute((PUZZLE, PIECE, renamed))


@pytest.mark.parametrize("world", HOMES)
def test_a_draft_with_the_right_piece_twice_is_refused(world: str) -> None:
    one = draft(world, 3, 1)
    with pytest.raises(TaskError, match="fits 2 things"):
        one.program.execute((*one.scenes, right_piece(one)))


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5, None])
def test_there_are_as_many_pieces_as_the_difficulty_says_and_wrong_places_are_as_far(difficulty: int | None) -> None:
    knobs, numbers = KNOBS[difficulty], set()
    for seed in range(20):
        one = draft("tabletop", seed, difficulty)
        numbers.add(len(one.scenes) - 1)
        hole = one.scenes[0].hole
        assert hole
        for piece in one.scenes[1:]:
            assert piece.cut
            off = max(abs(a - b) for a, b in zip(piece.cut.box, hole, strict=True))
            assert off == 0 or knobs.off[0] <= off <= knobs.off[1]
    assert numbers == set(range(knobs.pieces[0], knobs.pieces[1] + 1))


def test_wrong_pieces_show_what_the_difficulty_says() -> None:
    def sorts(difficulty: int) -> set[str]:
        drawn = set()
        for seed in range(20):
            one = draft("tabletop", seed, difficulty)
            for piece in one.scenes[1:]:
                if len(piece.things) < len(one.scenes[0].things):
                    drawn.add("nothing")
                elif new := set(piece.things) - set(one.scenes[0].things):
                    drawn.add("other")
                    (old,) = set(one.scenes[0].things) - set(piece.things)
                    assert {thing.kind.colour for thing in new} != {old.kind.colour}
                elif piece.cut and piece.cut.box != one.scenes[0].hole:
                    drawn.add("elsewhere")
        return drawn

    assert all(sorts(difficulty) == set(KNOBS[difficulty].wrong) for difficulty in (1, 3, 5))


def test_every_letter_is_right_equally_often_and_the_question_lists_them() -> None:
    answers: dict[int, Counter[object]] = {}
    for seed in range(240):
        one = draft(HOMES[0], seed, 2)
        answers.setdefault(len(one.scenes) - 1, Counter())[one.program.execute(one.scenes)] += 1
        options = [
            f"{letter}: Image-{image}" for letter, image in zip("ABCD", range(2, len(one.scenes) + 1), strict=False)
        ]
        assert str(one.fields["options"]) == ", ".join(options) + ". Answer with the letter."
    for pieces, counts in answers.items():
        expected = counts.total() / pieces
        assert all(counts[letter] == pytest.approx(expected, abs=4 * expected**0.5) for letter in LETTERS[:pieces])


def test_the_questions_of_test_ood_are_others_and_all_list_the_options() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out) - set(QUESTION.known)) >= 2
    assert all("{options}" in way for way in QUESTION.known + QUESTION.held_out)
