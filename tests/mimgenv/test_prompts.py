"""What the environment says: instructions at three levels, numbered images, the question."""

from __future__ import annotations

import numpy as np
import pytest

from mimgenv.geometry import BOX_FRAMES
from mimgenv.prompts import INSTRUCTIONS, first_text, image_line, instructions_text
from mimgenv.tools import TOOLS
from mimgenv.types import Answer, Grounding, Task, TextAnswer

ALL = {name: tool() for name, tool in TOOLS.items()}
BOX = Grounding(2, "secret mug", (11.0, 22.0, 33.0, 44.0))


def task(truth: Answer = BOX, images: int = 2) -> Task:
    pixels = np.zeros((28, 28, 3), np.uint8)
    return Task("made:1", "made", (pixels,) * images, "Where is it?", truth, "because secret", ((),) * images)


def test_the_first_text_is_instructions_then_numbered_images_then_the_question() -> None:
    text = first_text(task(), "full", ALL, "pixel")
    assert text == instructions_text(task(), "full", ALL, "pixel") + "Image-1: <image>\nImage-2: <image>\nWhere is it?"


def test_without_instructions_there_are_only_images_and_the_question() -> None:
    assert first_text(task(images=3), "none", ALL, "pixel") == (
        "Image-1: <image>\nImage-2: <image>\nImage-3: <image>\nWhere is it?"
    )


def test_an_image_line_holds_one_marker() -> None:
    assert image_line(12) == "Image-12: <image>"


def test_the_levels_of_instruction_say_more_and_more() -> None:
    texts = {level: instructions_text(task(), level, ALL, "pixel") for level in INSTRUCTIONS}
    assert texts["none"] == ""
    assert texts["full"].startswith(texts["brief"].rstrip("\n"))
    assert len(texts["full"]) > len(texts["brief"]) > 0


def test_the_turn_is_explained_with_a_tool_call_only_where_there_are_tools() -> None:
    assert "<tool_call>" in instructions_text(task(), "brief", ALL, "pixel")
    without = instructions_text(task(), "brief", {}, "pixel")
    assert "tool" not in without
    assert "<think>" in without
    assert "<answer>" in without


def test_full_instructions_list_every_tool_with_its_arguments_and_when_to_use_it() -> None:
    text = instructions_text(task(), "full", ALL, "pixel")
    for tool in ALL.values():
        assert f"- {tool.name}({', '.join(tool.parameters)}): {tool.description}" in text.splitlines()
    assert "- zoom" not in instructions_text(task(), "full", {"visual_reflection": ALL["visual_reflection"]}, "pixel")
    assert "- zoom" not in instructions_text(task(), "brief", ALL, "pixel")


@pytest.mark.parametrize("frame", BOX_FRAMES)
def test_a_grounding_question_declares_its_box_frame_and_no_other(frame: str) -> None:
    text = instructions_text(task(), "brief", {}, frame)
    assert [name for name, words in BOX_FRAMES.items() if words in text] == [frame]
    assert '{"image": the image\'s number, "label": what it is, "bbox_2d": [x1, y1, x2, y2]}' in text


def test_a_question_for_text_says_nothing_of_boxes() -> None:
    text = instructions_text(task(TextAnswer("7")), "full", {}, "pixel")
    assert "bbox" not in text
    assert "pixels" not in text
    assert "a word, a number or the letter of an option" in text


@pytest.mark.parametrize("level", INSTRUCTIONS)
def test_the_truth_is_not_in_the_text(level: str) -> None:
    text = first_text(task(), level, ALL, "pixel")
    assert not [secret for secret in ("secret", "11", "22", "33", "44") if secret in text]
    assert "7" not in first_text(task(TextAnswer("7")), level, ALL, "pixel")
