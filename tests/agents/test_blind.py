"""Policies that never look: what each answers, that none of them sees, and that all play."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.blind import BLIND_PLACES, BLIND_TEXTS, CENTRE, LEARNING, PEEKING, BlindAgent, guess
from agents.evaluate import evaluate_agent
from agents.habits import Asked, Habits, learn_habits, training_tasks
from agents.rollout import run_episodes
from mimgenv import load_task
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import BOX_FRAMES
from mimgenv.rewards import Outcome, answer_part, iou_part
from mimgenv.tasks.rendered import RenderedTasks
from mimgenv.types import Answer, Box, Grounding, ObjectAnnotation, Task, TextAnswer

TINY_TYPES = ("locate", "group_grounding", "odd_one_out", "counting", "odd_one_out_qa")


def task(truth: Answer, question: str, named: int | None = None, number: int = 0) -> Task:
    pixels = tuple(np.zeros((80, 40, 3), np.uint8) for _ in range(3))
    things = (ObjectAnnotation("a", (0.0, 0.0, 4.0, 4.0)), ObjectAnnotation("b", (4.0, 4.0, 8.0, 8.0)))
    return Task(f"made:{number}", "t", pixels, question, truth, "why", ((), things, things[:1]), named)


def boxed(question: str, named: int | None = None, number: int = 0) -> Task:
    return task(Grounding(2, "b", (4.0, 4.0, 8.0, 8.0)), question, named, number)


def habits(box: Box, image: int, *answers: str, question: str = "", answer: str = "") -> Habits:
    keys, own = [("t",)], [("t", question)]
    return Habits(
        dict.fromkeys(keys, box) | dict.fromkeys(own, (0.0, 0.0, 0.5, 0.5)),
        dict.fromkeys(keys, image),
        dict.fromkeys(keys, answers) | dict.fromkeys(own, (answer,)),
    )


def says(name: str, played: Task, known: Habits | None = None) -> Answer:
    return guess(name, played, known or Habits(), np.random.default_rng([0, *played.task_id.encode()]))


@pytest.mark.parametrize(
    ("name", "image", "box"),
    [
        ("whole_image", 2, (0, 0, 40, 80)),
        ("centre_box", 2, (12, 24, 28, 56)),
        ("constant", 2, (10, 40, 20, 80)),
        ("question", 2, (0, 0, 20, 40)),
        ("image_1", 1, (10, 40, 20, 80)),
        ("format", 1, (0, 0, 0.8, 1.6)),
        ("copy", 3, (0, 0, 40, 80)),
    ],
)
def test_what_a_policy_answers_with_a_box(name: str, image: int, box: Box) -> None:
    played = boxed("Is what Image-3 shows in Image-2?", named=2)
    answer = says(name, played, habits((0.25, 0.5, 0.5, 1.0), 3, question=played.question))
    assert isinstance(answer, Grounding)
    assert answer.image == image
    assert answer.box == pytest.approx(box)


@pytest.mark.parametrize(
    ("name", "question", "text"),
    [
        ("constant", "How many?", "2"),
        ("question", "How many?", "7"),
        ("question", "Which one?", "2"),
        ("image_1", "How many?", "1"),
        ("format", "How many?", "?"),
        ("whole_image", "How many?", "?"),
        ("copy", "How many?", "How many?"),
        ("copy", "How many are in Image-3?", "3"),
        ("copy", "Which of A, B? Image-3.", "A"),
    ],
)
def test_what_a_policy_answers_with_text(name: str, question: str, text: str) -> None:
    known = habits(CENTRE, 1, "2", "5", question="How many?", answer="7")
    assert says(name, task(TextAnswer("5"), question), known) == TextAnswer(text)


def test_where_the_question_names_no_image_the_usual_one_is_taken_or_a_random_one() -> None:
    tasks = [boxed("Find it.", number=number) for number in range(60)]
    assert {says("constant", played, habits(CENTRE, 3)).image for played in tasks} == {3}  # type: ignore[union-attr]
    named = [replace(played, named_image=2) for played in tasks]
    for name in ("whole_image", "centre_box", "random"):
        assert {says(name, played).image for played in tasks} == {1, 2, 3}  # type: ignore[union-attr]
        assert {says(name, played).image for played in named} == {2}  # type: ignore[union-attr]


def test_a_box_that_the_question_holds_is_copied() -> None:
    answer = says("copy", boxed("The cup is at [1, 2, 30, 40] in Image-1. Find it in Image-2.", named=2))
    assert answer == Grounding(1, "?", (1.0, 2.0, 30.0, 40.0))


def test_random_boxes_are_never_empty_and_differ_from_task_to_task() -> None:
    answers = [says("random", boxed("Find it.", 1, number)) for number in range(200)]
    boxes = {answer.box for answer in answers if isinstance(answer, Grounding)}
    assert len(boxes) > 150
    assert all(0 <= x1 < x2 <= 40 and 0 <= y1 < y2 <= 80 for x1, y1, x2, y2 in boxes)


def test_a_random_answer_is_any_that_was_right_before() -> None:
    texts = [
        says("random", task(TextAnswer("1"), "How many?", number=n), habits(CENTRE, 1, "1", "2")) for n in range(40)
    ]
    assert set(texts) == {TextAnswer("1"), TextAnswer("2")}


def rendered(split: str, count: int) -> list[Task]:
    source = RenderedTasks("tiny", TINY_TYPES, split)
    return [source.task(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def learned() -> Habits:
    return learn_habits(rendered("train", 100))


def hidden(true: Task) -> Task:
    """The task with another truth, other pixels and other annotations."""
    first = true.images[0].shape
    other: Answer = TextAnswer("something else")
    if isinstance(true.truth, Grounding):
        other = Grounding(1, "else", (0.0, 0.0, first[1] / 3, first[0] / 3))
    return replace(
        true, images=tuple(255 - image for image in true.images), truth=other, objects=((),) * len(true.images)
    )


@pytest.mark.parametrize("name", BLIND_PLACES)
def test_no_blind_policy_sees_pixels_annotations_or_the_truth(name: str, learned: Habits) -> None:
    for true in rendered("test", 20):
        assert says(name, true, learned) == says(name, hidden(true), learned)


@pytest.mark.parametrize("name", PEEKING)
def test_the_test_of_blindness_finds_what_peeks(name: str, learned: Habits) -> None:
    assert any(says(name, true, learned) != says(name, hidden(true), learned) for true in rendered("test", 20))


def test_peeking_at_the_right_image_finds_each_of_its_objects_and_at_any_those_of_all() -> None:
    tasks = [boxed("Find it.", number=number) for number in range(40)]
    answers = [[says(name, played) for played in tasks] for name in ("visible_object", "any_object")]
    places = [{(a.image, a.label) for a in some if isinstance(a, Grounding)} for some in answers]
    assert places == [{(2, "a"), (2, "b")}, {(2, "a"), (2, "b"), (3, "a")}]
    bare = replace(tasks[0], objects=((), (), ()))
    assert [says(name, bare).image for name in PEEKING] == [2, 1]  # type: ignore[union-attr]
    assert says("any_object", task(TextAnswer("x"), "What?")) == TextAnswer("?")


def score(name: str, played: Task, known: Habits) -> float:
    outcome = Outcome(played.truth, says(name, played, known), valid=True, tool_images=0)
    return iou_part(outcome) or answer_part(outcome) or 0.0


@pytest.mark.parametrize("name", [*BLIND_PLACES, *PEEKING])
def test_every_policy_plays_whole_well_formed_episodes_and_scores_what_it_says(name: str, learned: Habits) -> None:
    agent = BlindAgent(name, learned)
    played = run_episodes(agent, "MultiImageTiny-v0", range(20), tasks=TINY_TYPES, split="test")
    assert {(t.stop, t.reward_parts["format"], len(t.turns)) for t in played} == {("answered", 1.0, 1)}
    scores = [t.reward_parts.get("iou", 0.0) + t.reward_parts.get("answer", 0.0) for t in played]
    # An answer is written in whole pixels.
    assert scores == pytest.approx([score(name, t, learned) for t in rendered("test", 20)], abs=0.03)


@pytest.mark.parametrize("frame", BOX_FRAMES)
def test_boxes_are_written_in_the_frame_of_the_environment(frame: str, learned: Habits) -> None:
    options = {"world": "tiny", "tasks": ("locate",), "split": "test", "box_frame": frame, "max_pixels": 56 * 56}
    for name in ("centre_box", "constant"):
        report = evaluate_agent(BlindAgent(name, learned, frame), "MultiImageQA-v0", 5, **options)
        for record in report.records:
            expected = says(name, load_task(record.task_id), learned)
            assert isinstance(record.prediction, Grounding)
            assert isinstance(expected, Grounding)
            # Whole pixels of an image shown at a third of its size.
            assert record.prediction.box == pytest.approx(expected.box, abs=1.6)


def test_the_seed_decides_what_is_left_to_chance(learned: Habits) -> None:
    def boxes(seed: int) -> list[float]:
        played = run_episodes(BlindAgent("random", learned, seed=seed), "MultiImageTiny-v0", range(8))
        return [t.reward for t in played]

    assert boxes(0) == boxes(0) != boxes(1)


@pytest.mark.parametrize("name", ["random", "constant"])
def test_blind_agents_lose_nothing_by_blank_images(name: str, learned: Habits) -> None:
    sees = evaluate_agent(BlindAgent(name, learned), "MultiImageTiny-v0", 10).all.sees
    assert sees is not None
    assert (sees.mean, sees.half_width) == (0.0, 0.0)


def test_policies_that_do_not_learn_do_as_well_without_habits(learned: Habits) -> None:
    for true in rendered("test", 20):
        for name in BLIND_PLACES:
            if name not in LEARNING:
                assert says(name, true, learned) == says(name, true)
    for name in LEARNING:
        assert any(says(name, true, learned) != says(name, true) for true in rendered("test", 20))


def test_every_policy_for_text_is_one_for_boxes_too() -> None:
    assert set(BLIND_TEXTS) <= set(BLIND_PLACES)
    assert not set(PEEKING) & set(BLIND_PLACES)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="blind policy 'magic' is not one of"):
        BlindAgent("magic")


def test_habits_of_photographs_are_learned_and_played(bccd: str) -> None:
    from mimgenv.tasks.registry import open_source

    source = open_source(bccd, None, None, "test", None)
    known = learn_habits(training_tasks(source, 20))
    assert Asked.of(source.task(0)).keys(by_question=False)[-1] in known.boxes
    played = run_episodes(BlindAgent("constant", known), "MultiImageGrounding-v0", range(3), source=source)
    assert {t.reward_parts["format"] for t in played} == {1.0}
