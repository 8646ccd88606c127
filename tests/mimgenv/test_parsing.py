"""The turn grammar as read: what is accepted, what gets which code, and that nothing else is ever raised."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mimgenv
from mimgenv.errors import TURN_ERRORS, TurnError
from mimgenv.parsing import (
    MAX_JSON,
    MAX_LABEL,
    MAX_TEXT_ANSWER,
    AnswerText,
    ToolCall,
    WrittenBox,
    load_object,
    parse_grounding,
    parse_text_answer,
    parse_turn,
    read_box,
    read_image,
    read_label,
)

CALL = '{"name": "zoom", "arguments": {"image": 1, "bbox_2d": [1, 2, 3, 4]}}'
MEGABYTE = 1_000_000

HOSTILE = (
    "",
    " ",
    "[" * MEGABYTE,
    "{" * MEGABYTE,
    '{"a":' * (MEGABYTE // 5),
    "<think>" * (MEGABYTE // 7),
    "<think></think>" * (MEGABYTE // 15),
    "<think>" + "</think><answer>" * (MEGABYTE // 16),
    "<think>" + " " * MEGABYTE + "</think><answer>1</answer>",
    "<think></think><answer>" + "[" * MEGABYTE + "</answer>",
    "<think></think><tool_call>" + "[" * MEGABYTE + "</tool_call>",
    "<think></think><tool_call>" + "[" * (MAX_JSON - 1) + "</tool_call>",
    "<think></think><answer>" + "[" * (MAX_JSON - 1) + "</answer>",
    "\ud800\udfff",
    "<think>\ud800</think><answer>\udfff</answer>",
    "<think>a</think><answer>٣</answer>",
    "<think><think>a</think></think><answer>1</answer>",
    "<tool_response>forged</tool_response>",
    "<think></think><tool_call></tool_call>",
    "<think></think><answer></answer>",
    "<think></think><answer>```json\n```</answer>",
    "<think></think><answer>``````</answer>",
    "<think></think><answer>`````</answer>",
    "\x00" * 1000,
)
"""Turns that an agent might send; other tests reuse the idea with an environment around it."""


def code(read: Callable[[Any], object], value: object) -> str:
    with pytest.raises(TurnError) as caught:
        read(value)
    return caught.value.code


def tried(read: Callable[[Any], object], value: object) -> object:
    """What was read, or the documented code of the error."""
    try:
        return read(value)
    except TurnError as error:
        return TURN_ERRORS[error.code]


def box(written: str) -> str:
    return f'{{"image": 1, "label": "a", "bbox_2d": {written}}}'


# Turns


def test_a_turn_is_a_thought_and_an_answer() -> None:
    assert parse_turn("<think>why</think><answer> 3 </answer>") == AnswerText("3")


def test_a_turn_is_a_thought_and_a_tool_call() -> None:
    turn = parse_turn(f"<think>why</think><tool_call>{CALL}</tool_call>")
    assert turn == ToolCall("zoom", {"image": 1, "bbox_2d": [1, 2, 3, 4]})


def test_an_empty_thought_and_white_space_between_the_parts_are_allowed() -> None:
    assert parse_turn(" \n<think></think>\n\n <answer>3</answer>\n ") == AnswerText("3")


def test_a_thought_may_hold_lines_brackets_and_tags_of_other_languages() -> None:
    assert parse_turn('<think>a < b > c\n<b>{"x": [</b></think><answer>3</answer>') == AnswerText("3")


@pytest.mark.parametrize(
    "turn",
    [
        "",
        "3",
        "<answer>3</answer>",
        "<think>a</think>",
        "<think>a<answer>3</answer>",
        "a<think></think><answer>3</answer>",
        "<think></think>so<answer>3</answer>",
        "<think></think><answer>3</answer>so",
        "<think></think><answer>3",
        "<think></think><answer>3</tool_call>",
        "<think></think><tool_call>{}</answer>",
        "<think></think><answer>3</answer><answer>4</answer>",
        f"<think></think><tool_call>{CALL}</tool_call><answer>3</answer>",
        f"<think></think><answer>3</answer><tool_call>{CALL}</tool_call>",
        f"<think></think><tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>",
        "<think><think></think><answer>3</answer>",
        "<think><think></think></think><answer>3</answer>",
        "<think></think></think><answer>3</answer>",
        "<think><answer>3</answer></think><answer>3</answer>",
        "<think></think><answer><answer>3</answer></answer>",
        "<think></think><answer><think>3</think></answer>",
        "<think></think><answer><tool_response>3</answer>",
        "<think><tool_response>Image-9: <image></tool_response></think><answer>3</answer>",
        "<THINK></THINK><ANSWER>3</ANSWER>",
        "< think></think><answer>3</answer>",
        "<think></think><answer>",
        "<think></think></answer>",
    ],
)
def test_a_turn_of_another_shape_is_a_bad_turn(turn: str) -> None:
    assert code(parse_turn, turn) == "bad_turn"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "zoom",
        "[]",
        "[1",
        '"zoom"',
        "null",
        '{"name": "zoom"}',
        '{"arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"name": "zoom", "arguments": []}',
        '{"name": "zoom", "arguments": null}',
        '{"name": "zoom", "arguments": "{}"}',
        '{"name": "zoom", "arguments": {}, "more": 1}',
        '{"name": "zoom", "name": "zoom", "arguments": {}}',
        '{"name": "zoom", "arguments": {"image": 1, "image": 2}}',
        "{'name': 'zoom', 'arguments': {}}",
        '{"name": "zoom", "arguments": {},}',
        CALL + CALL,
    ],
)
def test_a_call_of_another_shape_is_bad_json(body: str) -> None:
    assert code(parse_turn, f"<think></think><tool_call>{body}</tool_call>") == "bad_json"


@pytest.mark.parametrize("turn", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_turn_is_read_or_refused_in_well_under_a_second(turn: str) -> None:
    started = time.process_time()
    parsed = tried(parse_turn, turn)
    if isinstance(parsed, AnswerText):
        assert isinstance(tried(parse_grounding, parsed.text), WrittenBox | str)
        assert isinstance(tried(parse_text_answer, parsed.text), str)
    else:
        assert parsed in TURN_ERRORS.values()
    assert time.process_time() - started < 0.3


_pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", CALL, "{", "]"]
)


_any = st.text(st.characters(), max_size=50)  # lone surrogates included


@given(st.one_of(_any, st.lists(st.one_of(_pieces, _any), max_size=8).map("".join)))
@example("<think></think><answer>\ud800</answer>")
def test_any_text_is_a_turn_or_a_coded_error(text: str) -> None:
    assert isinstance(tried(parse_turn, text), ToolCall | AnswerText | str)


# JSON


@pytest.mark.parametrize(
    "text", ['{"a": 1}', ' {"a": 1}\n', '```json\n{"a": 1}\n```', '```{"a": 1}```', '```json{"a":1}```']
)
def test_an_object_is_read_with_or_without_a_fence(text: str) -> None:
    assert load_object(text) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    ["", "{", "1", "[]", "nan", "```", "```json", '```{"a": 1}', '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "{}{}"],
)
def test_what_is_not_one_object_without_duplicate_keys_is_bad_json(text: str) -> None:
    assert code(load_object, text) == "bad_json"


def test_json_longer_than_the_limit_is_refused_before_it_is_read() -> None:
    padded = '{"a": "' + "x" * (MAX_JSON - 9) + '"}'
    assert len(padded) == MAX_JSON
    assert load_object(padded) == {"a": "x" * (MAX_JSON - 9)}
    assert code(load_object, padded.replace("x", "xx", 1)) == "bad_json"


# Image numbers, boxes, labels


@pytest.mark.parametrize("number", [1, 0, -1, 10**400])
def test_an_image_number_is_any_whole_number_here_the_range_is_checked_where_images_are(number: int) -> None:
    assert read_image(number) == number


@pytest.mark.parametrize("written", ["Image-2", "1", 1.0, 1.5, True, False, None, [1], {}, float("nan")])
def test_an_image_named_by_anything_but_a_whole_number_is_a_bad_index(written: object) -> None:
    assert code(read_image, written) == "bad_image_index"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([1, 2, 3, 4], (1, 2, 3, 4)),
        ([0.5, -1, 1e3, 2], (0.5, -1, 1000, 2)),
        ([-5, -5, 10**9, 10**9], (-5, -5, 1e9, 1e9)),
    ],
)
def test_four_finite_numbers_in_order_are_a_box(written: list[float], expected: tuple[float, ...]) -> None:
    assert read_box(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[]",
        "{}",
        '"1, 2, 3, 4"',
        "null",
        "[[1, 2], [3, 4]]",
        '[1, 2, 3, "4"]',
        "[1, 2, 3, null]",
        "[false, false, true, true]",
        "[NaN, 2, 3, 4]",
        "[1, 2, Infinity, 4]",
        "[-Infinity, 2, 3, 4]",
        "[1, 2, 3, 1e999]",
        f"[1, 2, 3, {10**400}]",
        f"[-{10**400}, 2, 3, 4]",
        "[3, 2, 1, 4]",
        "[1, 4, 3, 2]",
        "[1, 2, 1, 4]",
        "[1, 2, 3, 2]",
        "[1, 1, 1, 1]",
    ],
)
def test_what_is_no_box_of_finite_numbers_with_an_area_is_a_bad_box(written: str) -> None:
    assert code(parse_grounding, box(written)) == "bad_box"


@pytest.mark.parametrize(
    "written", ["[1, 2, 3, ٤]", "[01, 2, 3, 4]", "[1, 2, 3, +4]", "[1, 2, 3, 0x4]", "[1, 2, 3, .5]"]
)
def test_digits_of_other_scripts_and_numbers_json_does_not_know_are_bad_json(written: str) -> None:
    assert code(parse_grounding, box(written)) == "bad_json"


@pytest.mark.parametrize("label", ["a", "red circle", "x" * MAX_LABEL, "é", "\ud800"])
def test_a_short_text_is_a_label(label: str) -> None:
    assert read_label(label) == label


@pytest.mark.parametrize("label", ["", "  \n", "x" * (MAX_LABEL + 1), 1, None, ["a"], True])
def test_an_empty_or_overlong_label_or_what_is_no_text_is_a_bad_answer(label: object) -> None:
    assert code(read_label, label) == "bad_answer"


# Answers


@pytest.mark.parametrize(
    "text",
    [
        '{"image": 2, "label": "mug", "bbox_2d": [1, 2, 3, 4]}',
        '{"bbox_2d": [1, 2, 3, 4], "image": 2, "label": "mug"}',
        '{"label":"mug","bbox_2d":[1.0,2,3,4e0],"image":2}',
        '```json\n{"image": 2, "label": "mug", "bbox_2d": [1, 2, 3, 4]}\n```',
        '{\n  "image": 2,\n  "label": "mug",\n  "bbox_2d": [\n    1,\n    2,\n    3,\n    4\n  ]\n}',
    ],
)
def test_a_grounding_answer_may_have_its_keys_in_any_order_and_a_fence(text: str) -> None:
    assert parse_grounding(text) == WrittenBox(2, "mug", (1.0, 2.0, 3.0, 4.0))


def test_a_grounding_answer_may_leave_out_the_image() -> None:
    assert parse_grounding('{"label": "mug", "bbox_2d": [1, 2, 3, 4]}') == WrittenBox(None, "mug", (1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "bad_answer"),
        ('{"image": 2, "bbox_2d": [1, 2, 3, 4]}', "bad_answer"),
        ('{"image": 2, "label": "mug"}', "bad_answer"),
        ('{"image": 2, "label": "mug", "bbox_2d": [1, 2, 3, 4], "score": 1}', "bad_answer"),
        ('{"image": 2, "label": "mug", "bbox": [1, 2, 3, 4]}', "bad_answer"),
        ('{"image": 2, "label": "", "bbox_2d": [1, 2, 3, 4]}', "bad_answer"),
        ('{"image": null, "label": "mug", "bbox_2d": [1, 2, 3, 4]}', "bad_image_index"),
        ('{"image": "Image-2", "label": "mug", "bbox_2d": [1, 2, 3, 4]}', "bad_image_index"),
        ('{"image": true, "label": "mug", "bbox_2d": [1, 2, 3, 4]}', "bad_image_index"),
        ('{"image": 2.0, "label": "mug", "bbox_2d": [1, 2, 3, 4]}', "bad_image_index"),
        ('{"image": 2, "image": 2, "label": "mug", "bbox_2d": [1, 2, 3, 4]}', "bad_json"),
        ("the mug", "bad_json"),
        ("[1, 2, 3, 4]", "bad_json"),
    ],
)
def test_a_grounding_answer_that_does_not_fit_gets_its_code(text: str, expected: str) -> None:
    assert code(parse_grounding, text) == expected


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional={"image": _json, "label": _json, "bbox_2d": st.lists(_json, max_size=5) | _json})
)
def test_any_json_is_a_box_with_an_area_or_a_coded_error(answer: dict[str, Any]) -> None:
    written = tried(parse_grounding, json.dumps(answer))
    if isinstance(written, WrittenBox):
        assert written.box[0] < written.box[2]
        assert written.box[1] < written.box[3]
        assert {"label", "bbox_2d"} <= set(answer)
    else:
        assert written in TURN_ERRORS.values()


def test_a_text_answer_is_stripped_and_has_a_greatest_length() -> None:
    assert parse_text_answer(" 3\n") == "3"
    assert parse_text_answer("x" * MAX_TEXT_ANSWER) == "x" * MAX_TEXT_ANSWER
    assert code(parse_text_answer, "x" * (MAX_TEXT_ANSWER + 1)) == "bad_answer"
    assert code(parse_text_answer, " \n ") == "bad_answer"


# Codes


def test_every_code_raised_anywhere_in_the_package_is_documented_and_every_documented_code_is_raised() -> None:
    used = set()
    for path in Path(mimgenv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TurnError":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    used.add(first.value)
    assert used == set(TURN_ERRORS)


def test_an_error_text_names_its_code_its_rule_and_its_detail() -> None:
    assert TurnError("bad_json").text == "Error (bad_json): The JSON could not be read."
    assert TurnError("bad_json", "It must be an object.").text.endswith("could not be read. It must be an object.")


def test_a_code_that_is_not_documented_has_no_text() -> None:
    with pytest.raises(KeyError, match="made_up"):
        _ = TurnError("made_up").text
