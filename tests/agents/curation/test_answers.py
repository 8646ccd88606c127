"""Reading what roles wrote: any text is an answer or a bad answer, never anything else."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.curation.answers import BadAnswerError, is_right, read_proposal, read_solution, read_verdict
from agents.curation.roles import answer_text
from mimgenv.datasets.curated import Item
from mimgenv.types import Grounding, TextAnswer

IMAGES = [np.zeros((40, 60, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)]
BOX = {"question": "Where?", "task_type": "locate", "grounding": {"image": 2, "bbox_2d": [1, 2, 30, 20], "label": "x"}}


def proposal(row: Any) -> Item:
    text = row if isinstance(row, str) else json.dumps(row)
    return read_proposal(text, "7", ["a.png", "b.png"], IMAGES)


def test_a_proposal_becomes_an_item_about_its_images() -> None:
    truth = Grounding(2, "x", (1.0, 2.0, 30.0, 20.0))
    assert proposal(BOX) == Item("7", ("a.png", "b.png"), "Where?", "locate", truth)


def test_a_proposal_may_stand_among_other_words_and_hold_other_keys() -> None:
    text = 'Sure:\n```json\n{"question": "How many?", "task_type": "counting", "answer": 3, "why": "I see"}\n```\nDone.'
    item = proposal(text)
    assert (item.truth, item.provenance) == (TextAnswer("3"), {})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("", "JSON"),
        ("I cannot", "JSON"),
        (
            {**BOX, "grounding": {"image": 2, "bbox_2d": [1, 2, 31, 20], "label": "x"}},
            "reaches out of an image of 30x20",
        ),
        ({**BOX, "grounding": {"image": 3, "bbox_2d": [1, 2, 3, 4], "label": "x"}}, "image 3 of 2"),
        ({**BOX, "answer": "A"}, "exactly one"),
        ({"question": "Q?", "task_type": "a"}, "exactly one"),
        ({"question": "Q?", "task_type": "a", "answer": None}, "NoneType"),
        ({"question": "Q?", "task_type": "a", "answer": True}, "bool"),
        ({"question": "Q?", "task_type": "a", "answer": "blue", "options": ["red", "blue"]}, "one letter of AB"),
        ({"task_type": "a", "answer": "3"}, "'question'"),
    ],
)
def test_a_proposal_that_is_no_item_is_a_bad_answer(row: Any, fault: str) -> None:
    with pytest.raises(BadAnswerError) as raised:
        proposal(row)
    assert fault in str(raised.value)


def test_a_solution_is_read_as_the_question_wants_it() -> None:
    assert read_solution('{"answer": 3}', False) == TextAnswer("3")
    text = '<think>{x} or {y}</think> {"image": 1, "bbox_2d": [1, 2, 3, 4]}'
    assert read_solution(text, True) == Grounding(1, "unnamed", (1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("text", "grounding"),
    [
        ("3", False),
        ('{"answer": ""}', False),
        ('{"answer": null}', False),
        ('{"answer": ["3"]}', False),
        ('{"answer": "3"}', True),
        ('{"image": "1", "bbox_2d": [1, 2, 3, 4]}', True),
        ('{"image": 1, "bbox_2d": [3, 2, 1, 4]}', True),
        ('{"image": 1, "bbox_2d": [1, 2, 3, NaN]}', True),
    ],
)
def test_a_solution_of_another_form_is_a_bad_answer(text: str, grounding: bool) -> None:
    with pytest.raises(BadAnswerError):
        read_solution(text, grounding)


def test_a_verdict_says_yes_or_no_to_both() -> None:
    verdict = read_verdict('{"answerable": true, "unique": false, "reason": "two mugs"}')
    assert (verdict.answerable, verdict.unique, verdict.reason) == (True, False, "two mugs")
    assert len(read_verdict(json.dumps({"answerable": True, "unique": True, "reason": "x" * 2000})).reason) == 500
    for text in ('{"answerable": true}', '{"answerable": "yes", "unique": true}', '{"answerable": 1, "unique": 1}', ""):
        with pytest.raises(BadAnswerError):
            read_verdict(text)


def test_an_answer_is_right_by_the_rule_of_the_environment() -> None:
    item = proposal(BOX)
    assert is_right(item, Grounding(2, "?", (1.0, 2.0, 30.0, 14.0)))
    assert not is_right(item, Grounding(2, "?", (1.0, 2.0, 30.0, 10.0)))
    assert not is_right(item, Grounding(1, "?", (1.0, 2.0, 30.0, 20.0)))
    assert is_right(proposal({"question": "Q?", "task_type": "a", "answer": "Blue"}), TextAnswer("blue."))


@pytest.mark.parametrize("answer", [Grounding(1, "é", (0.0, 1.5, 2.0, 3.0)), TextAnswer("B")])
def test_what_a_solver_writes_is_read_as_what_it_meant(answer: Any) -> None:
    assert read_solution(answer_text(answer), isinstance(answer, Grounding)) == answer


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), lambda x: st.dictionaries(st.text(), x)).map(str))
def test_any_text_is_an_answer_or_a_bad_answer(text: str) -> None:
    for read in (proposal, lambda t: read_solution(t, True), lambda t: read_solution(t, False), read_verdict):
        with contextlib.suppress(BadAnswerError):
            read(text)
