"""What a finished episode is worth, against values worked out by hand."""

from __future__ import annotations

import gymnasium as gym
import pytest

import mimgenv
from mimgenv.rewards import (
    REWARDS,
    Outcome,
    answer_part,
    format_part,
    image_part,
    iou_part,
    reward_parts,
    succeeded,
    tool_gain_part,
    total_reward,
)
from mimgenv.types import Answer, Grounding, TextAnswer

TRUTH = Grounding(2, "red circle", (0.0, 0.0, 10.0, 10.0))
NUMBER = TextAnswer("3")
HALF = Grounding(2, "anything", (0.0, 0.0, 10.0, 5.0))  # IoU 0.5
MOST = Grounding(2, "anything", (0.0, 0.0, 10.0, 8.0))  # IoU 0.8
ELSEWHERE = Grounding(1, "red circle", (0.0, 0.0, 10.0, 10.0))


def outcome(truth: Answer, answer: Answer | None, valid: bool = True, tool_images: int = 0) -> Outcome:
    return Outcome(truth, answer, valid, tool_images)


def worth(preset: str, of: Outcome) -> tuple[dict[str, float], float]:
    parts = reward_parts(REWARDS[preset], of)
    return parts, total_reward(REWARDS[preset], parts)


# Parts


@pytest.mark.parametrize(
    ("answer", "expected"), [(TRUTH, 1.0), (HALF, 0.5), (MOST, 0.8), (ELSEWHERE, 0.0), (None, 0.0)]
)
def test_the_iou_part_is_the_iou_and_0_in_a_wrong_image(answer: Grounding | None, expected: float) -> None:
    assert iou_part(outcome(TRUTH, answer)) == pytest.approx(expected)


@pytest.mark.parametrize(("answer", "expected"), [(TRUTH, 1.0), (HALF, 1.0), (ELSEWHERE, 0.0), (None, 0.0)])
def test_the_image_part_looks_at_the_image_alone(answer: Grounding | None, expected: float) -> None:
    assert image_part(outcome(TRUTH, answer)) == expected


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("3", "3", 1.0),
        ("3", " 3. ", 1.0),
        ("B", "b", 1.0),
        ("Straße", "STRASSE", 1.0),
        ("3", "3..", 0.0),
        ("3", "03", 0.0),
        ("3", "three", 0.0),
        ("3", "", 0.0),
        ("3", "2", 0.0),
    ],
)
def test_a_text_answer_is_right_up_to_case_space_and_one_full_stop(truth: str, answer: str, expected: float) -> None:
    assert answer_part(outcome(TextAnswer(truth), TextAnswer(answer))) == expected


def test_the_parts_of_one_kind_of_question_do_not_apply_to_the_other() -> None:
    assert iou_part(outcome(NUMBER, NUMBER)) is None
    assert image_part(outcome(NUMBER, None)) is None
    assert answer_part(outcome(TRUTH, TRUTH)) is None
    assert answer_part(outcome(NUMBER, None)) == 0.0


@pytest.mark.parametrize(
    ("answer", "valid", "expected"), [(TRUTH, True, 1.0), (TRUTH, False, 0.0), (None, True, 0.0), (None, False, 0.0)]
)
def test_the_format_part_wants_every_turn_to_parse_and_the_last_to_answer(
    answer: Grounding | None, valid: bool, expected: float
) -> None:
    assert format_part(outcome(TRUTH, answer, valid)) == expected


def test_the_format_part_does_not_ask_whether_the_answer_is_right() -> None:
    assert format_part(outcome(TRUTH, ELSEWHERE)) == format_part(outcome(NUMBER, TextAnswer("no"))) == 1.0


@pytest.mark.parametrize(
    ("answer", "tool_images", "expected"),
    [(MOST, 1, 1.0), (MOST, 3, 1.0), (MOST, 0, 0.0), (HALF, 1, 0.0), (ELSEWHERE, 1, 0.0), (None, 1, 0.0)],
)
def test_a_tool_is_a_gain_only_where_the_answer_is_right(
    answer: Grounding | None, tool_images: int, expected: float
) -> None:
    assert tool_gain_part(outcome(TRUTH, answer, tool_images=tool_images)) == expected


def test_a_grounding_answer_is_right_above_an_iou_of_a_half_not_at_it() -> None:
    assert not succeeded(outcome(TRUTH, HALF))
    assert succeeded(outcome(TRUTH, Grounding(2, "x", (0.0, 0.0, 10.0, 5.001))))
    assert not succeeded(outcome(TRUTH, ELSEWHERE))
    assert not succeeded(outcome(TRUTH, None))


def test_a_text_answer_is_right_when_it_is_the_true_one() -> None:
    assert succeeded(outcome(NUMBER, TextAnswer("3")))
    assert not succeeded(outcome(NUMBER, TextAnswer("4")))
    assert not succeeded(outcome(NUMBER, None))


def test_an_answer_of_the_other_kind_is_worth_nothing() -> None:
    assert iou_part(outcome(TRUTH, NUMBER)) == image_part(outcome(TRUTH, NUMBER)) == 0.0
    assert answer_part(outcome(NUMBER, TRUTH)) == 0.0


# Presets


@pytest.mark.parametrize(
    ("preset", "of", "parts", "total"),
    [
        ("grounding", outcome(TRUTH, MOST), {"iou": 0.8, "format": 1.0}, 1.3),
        ("grounding", outcome(TRUTH, MOST, valid=False), {"iou": 0.8, "format": 0.0}, 0.8),
        ("grounding", outcome(TRUTH, ELSEWHERE), {"iou": 0.0, "format": 1.0}, 0.5),
        ("grounding", outcome(TRUTH, None), {"iou": 0.0, "format": 0.0}, 0.0),
        ("grounding", outcome(NUMBER, NUMBER), {"answer": 1.0, "format": 1.0}, 1.5),
        ("image_aware_recon", outcome(TRUTH, HALF), {"iou": 0.5, "image": 1.0, "format": 1.0}, 1.5),
        ("image_aware_recon", outcome(TRUTH, ELSEWHERE), {"iou": 0.0, "image": 0.0, "format": 1.0}, 0.5),
        ("image_aware_recon", outcome(NUMBER, NUMBER), {"answer": 1.0, "format": 1.0}, 1.5),
        ("tool_gain_recon", outcome(TRUTH, MOST, True, 2), {"iou": 0.8, "format": 1.0, "tool_gain": 1.0}, 2.2),
        ("tool_gain_recon", outcome(TRUTH, MOST), {"iou": 0.8, "format": 1.0, "tool_gain": 0.0}, 1.0),
        ("tool_gain_recon", outcome(TRUTH, HALF, True, 2), {"iou": 0.5, "format": 1.0, "tool_gain": 0.0}, 0.7),
        ("accuracy", outcome(TRUTH, MOST, valid=False), {"accuracy": 1.0}, 1.0),
        ("accuracy", outcome(TRUTH, HALF), {"accuracy": 0.0}, 0.0),
        ("accuracy", outcome(NUMBER, NUMBER), {"accuracy": 1.0}, 1.0),
    ],
)
def test_a_preset_pays_the_weighted_sum_of_its_parts(
    preset: str, of: Outcome, parts: dict[str, float], total: float
) -> None:
    got_parts, got_total = worth(preset, of)
    assert got_parts == pytest.approx(parts)
    assert got_total == pytest.approx(total)


def test_no_two_presets_pay_the_same_for_everything() -> None:
    probes = (outcome(TRUTH, HALF, True, 1), outcome(TRUTH, MOST, False, 1), outcome(TRUTH, MOST, True, 1))
    assert len({tuple(worth(preset, of)[1] for of in probes) for preset in REWARDS}) == len(REWARDS)


# A reward of one's own: this is all it takes.


def test_a_reward_of_ones_own_is_a_function_and_a_weight() -> None:
    def brevity(of: Outcome) -> float | None:
        return 1.0 if of.answer is not None and of.tool_images == 0 else 0.0

    env = gym.make("MultiImageTiny-v0", tasks="qa", reward={"answer": (answer_part, 2.0), "brevity": (brevity, 0.25)})
    _, info = env.reset(seed=0)
    truth = mimgenv.load_task(info["task_id"]).truth
    assert isinstance(truth, TextAnswer)
    turn = mimgenv.default_codec().encode_turn(f"<think></think><answer>{truth.text}</answer>")
    _, reward, _, _, info = env.step(turn)
    assert reward == 2.25
    assert info["reward_parts"] == {"answer": 1.0, "brevity": 1.0}


def test_a_part_that_does_not_apply_is_left_out_of_a_reward_of_ones_own() -> None:
    def only_grounding(of: Outcome) -> float | None:
        return iou_part(of)

    env = gym.make("MultiImageTiny-v0", tasks="qa", reward={"mine": (only_grounding, 1.0)})
    _, info = env.reset(seed=0)
    assert info["reward_parts"] == {}
