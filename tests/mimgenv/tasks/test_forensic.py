"""Forensic: one thing of all images throws no shadow, and the pixels show that it does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Frame, Scene
from mimgenv.tasks.draft import Draft, draw_kinds
from mimgenv.tasks.forensic import DARKER, KNOBS, QUESTION, Pasted, forensic
from mimgenv.tasks.program import Found, ImageOf
from mimgenv.tasks.rendered import WORLDS, make_task, world_of, worlds_of
from mimgenv.types import TextAnswer

HOMES = [world for world in worlds_of("forensic") if world in WORLDS]


class Sketch:
    """A world that places things as another one does, and shows a dark picture that is lit where a shadow lacks."""

    def __init__(self, world: str) -> None:
        self.world = world_of(world)
        self.kinds, self.counts, self.arrange = self.world.kinds, self.world.counts, self.world.arrange

    def render(self, scene: Scene) -> Frame:
        lit = sum(thing.pasted for thing in scene.things) * 100
        return Frame(np.full((4, 4, 3), lit, np.uint8), np.zeros((4, 4), np.int16), (), ())


def draft(world: str, seed: int, difficulty: int | None = None) -> Draft:
    return forensic(world_of(world), np.random.default_rng(seed), difficulty)


def sketched(world: str, seed: int, difficulty: int | None = None) -> Draft:
    """A draft made without drawing."""
    return forensic(Sketch(world), np.random.default_rng(seed), difficulty)  # type: ignore[arg-type]


def pasted(scenes: tuple[Scene, ...]) -> list[tuple[int, int]]:
    return [(k, i) for k, scene in enumerate(scenes, 1) for i, thing in enumerate(scene.things) if thing.pasted]


@pytest.mark.parametrize("world", HOMES)
def test_exactly_one_thing_is_pasted_and_the_answer_is_the_number_of_its_image(world: str) -> None:
    for seed in range(30):
        one = sketched(world, seed)
        ((image, _),) = pasted(one.scenes)
        assert one.program.execute(one.scenes) == image


@pytest.mark.parametrize("world", HOMES)
def test_a_second_pasted_thing_is_refused_and_so_is_none(world: str) -> None:
    one = sketched(world, 0)
    for scenes, found in (
        ([replace(s, things=tuple(replace(t, pasted=False) for t in s.things)) for s in one.scenes], 0),
        ([replace(s, things=(replace(s.things[0], pasted=True), *s.things[1:])) for s in one.scenes], None),
    ):
        with pytest.raises(TaskError, match="things, not exactly one" if found is None else f"fits {found} things"):
            one.program.execute(scenes)


def test_things_are_looked_for_in_the_named_images_only() -> None:
    scenes = sketched("tabletop", 0).scenes
    ((image, index),) = pasted(scenes)
    others = tuple(number for number in range(1, len(scenes) + 1) if number != image)
    assert Pasted((image,)).find(scenes) == (Found(image, index),)
    assert Pasted(others).find(scenes) == ()


@pytest.mark.parametrize("difficulty", [1, 5])
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("world", HOMES)
def test_the_missing_shadow_is_seen_in_the_pixels_and_nothing_else_is_brighter(
    world: str, held_out: bool, difficulty: int
) -> None:
    place = world_of(world, held_out)
    for seed in range(3):
        one = forensic(place, np.random.default_rng(seed), difficulty)
        ((image, _),) = pasted(one.scenes)
        edited = one.scenes[image - 1]
        whole = replace(edited, things=tuple(replace(thing, pasted=False) for thing in edited.things))
        without, with_shadow = (place.render(scene).pixels.astype(int) for scene in (edited, whole))
        darkened = (without - with_shadow).max(axis=2) > DARKER
        assert darkened.mean() >= KNOBS[difficulty].shadow
        assert (without >= with_shadow - 2).all()


@pytest.mark.parametrize(("seen", "served"), [(0.0, False), (1.0, True)])
def test_a_thing_whose_shadow_nobody_would_miss_is_not_pasted(seen: float, served: bool) -> None:
    class Dusk(Sketch):
        def render(self, scene: Scene) -> Frame:
            frame = super().render(scene)
            return replace(frame, pixels=(frame.pixels * seen).astype(np.uint8))

    if served:
        assert len(pasted(forensic(Dusk("tabletop"), np.random.default_rng(0), 1).scenes)) == 1  # type: ignore[arg-type]
    else:
        with pytest.raises(TaskError, match="no shadow darkens"):
            forensic(Dusk("tabletop"), np.random.default_rng(0), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("world", HOMES)
def test_a_task_asks_for_the_number_of_an_image(world: str, split: str) -> None:
    for number in range(2):
        task = make_task(world, "forensic", None, split, number)
        assert isinstance(task.truth, TextAnswer)
        assert 1 <= int(task.truth.text) <= len(task.images)
        assert task.named_image is None
        label = task.rationale.removeprefix("The ").removesuffix(" throws no shadow.")
        assert label in {thing.label for thing in task.objects[int(task.truth.text) - 1]}


@pytest.mark.parametrize("world", HOMES)
def test_every_image_is_the_edited_one_equally_often(world: str) -> None:
    drafts = [sketched(world, seed, 1) for seed in range(300)]
    answers = Counter(one.program.execute(one.scenes) for one in drafts)
    assert set(answers) == {1, 2, 3}
    assert sum((count - 100) ** 2 for count in answers.values()) / 100 < 13.8  # chi-square, p = 0.001


def test_harder_tasks_show_more_images_and_miss_smaller_shadows() -> None:
    knobs = [KNOBS[difficulty] for difficulty in (1, 2, 3, 4, 5)]
    assert [k.shadow for k in knobs] == sorted((k.shadow for k in knobs), reverse=True)
    assert [k.images for k in knobs] == sorted(k.images for k in knobs)
    for difficulty in (1, 4):
        assert {len(sketched("tabletop", seed, difficulty).scenes) for seed in range(5)} == {
            KNOBS[difficulty].images[0]
        }
    assert {len(sketched("tabletop", seed).scenes) for seed in range(12)} == {3, 4}


def test_all_identities_differ() -> None:
    identities = [thing.identity for scene in sketched("tabletop", 3).scenes for thing in scene.things]
    assert len(set(identities)) == len(identities)


def test_there_are_several_wordings_and_none_is_both_known_and_held_out() -> None:
    assert len(set(QUESTION.known)) >= 3
    assert len(set(QUESTION.held_out)) >= 2
    assert not set(QUESTION.known) & set(QUESTION.held_out)


def test_the_program_reads_no_more_than_what_is_pasted() -> None:
    kinds = draw_kinds(np.random.default_rng(0), world_of("tabletop").kinds, 2)
    scene = world_of("tabletop").arrange(np.random.default_rng(0), kinds, 1)
    edited = replace(scene, things=(scene.things[0], replace(scene.things[1], pasted=True)))
    assert ImageOf(Pasted((1, 2))).execute((scene, edited)) == 2
    assert ImageOf(Pasted((1, 2))).execute((edited, scene)) == 1
