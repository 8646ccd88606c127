"""What the environment says to the agent, in words.

Owns all text of an observation but the question and the error texts. One `<image>` marker stands for one image;
images are numbered over the whole episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mimgenv.geometry import BOX_FRAMES
from mimgenv.tools import Tool
from mimgenv.types import Grounding, Task

INSTRUCTIONS: Final = ("full", "brief", "none")

_TURN: Final = "In each turn write <think>your reasoning</think>, then {act}."
_ANSWER: Final = "<answer>your answer</answer>"
_CALL: Final = '<tool_call>{"name": ..., "arguments": {...}}</tool_call> or '
_BOX: Final = (
    'Answer with JSON: {{"image": the image\'s number, "label": what it is, "bbox_2d": [x1, y1, x2, y2]}}. '
    "Coordinates are {frame}, x to the right and y down."
)
_TEXT: Final = "Answer with a word, a number or the letter of an option."


def image_line(number: int) -> str:
    """How image `number` is announced."""
    return f"Image-{number}: <image>"


def _tool_lines(tools: Mapping[str, Tool]) -> list[str]:
    lines = [f"- {tool.name}({', '.join(tool.parameters)}): {tool.description}" for tool in tools.values()]
    return ["Tools; each returns a new image, which later calls and the answer may name:", *lines]


def instructions_text(task: Task, level: str, tools: Mapping[str, Tool], box_frame: str) -> str:
    """The rules of the game for one task: `full` explains tools and frame, `brief` the turn only, `none` is empty."""
    if level == "none":
        return ""
    act = (_CALL if tools else "") + _ANSWER
    grounding = isinstance(task.truth, Grounding)
    lines = [_TURN.format(act=act), _BOX.format(frame=BOX_FRAMES[box_frame]) if grounding else _TEXT]
    if level == "full" and tools:
        lines += _tool_lines(tools)
    return "\n".join(lines) + "\n"


def first_text(task: Task, level: str, tools: Mapping[str, Tool], box_frame: str) -> str:
    """The text of the first observation: instructions, images, question."""
    images = [image_line(number) for number in range(1, len(task.images) + 1)]
    return instructions_text(task, level, tools, box_frame) + "\n".join([*images, task.question])
