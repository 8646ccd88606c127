"""Errors of two kinds: what a caller does wrong raises, what an agent does wrong is data.

`MimgenvError` is the root of what raises; each class also derives from the builtin it refines. `TurnError` never
leaves the environment: it carries the code of a bad turn from the parser or a tool to `env.step`, which turns it into
the next observation.
"""

from __future__ import annotations

from typing import Final

TURN_ERRORS: Final[dict[str, str]] = {
    "bad_token": "The turn holds a token that is out of range or reserved for the conversation format.",
    "too_long": "The turn is longer than the tokens that were left.",
    "bad_turn": "Write <think>...</think>, then exactly one <tool_call>...</tool_call> or <answer>...</answer>.",
    "bad_json": "The JSON could not be read.",
    "unknown_tool": "There is no tool of that name.",
    "bad_arguments": "The arguments do not fit.",
    "bad_image_index": "There is no image of that number.",
    "bad_box": "A box is four finite numbers [x1, y1, x2, y2] with x1 < x2 and y1 < y2, inside the image.",
    "bad_answer": "The answer is empty or does not fit the question.",
}
"""Every code a bad turn can get, with the text the agent reads. The text never repeats what the agent wrote."""


class MimgenvError(Exception):
    """The root of all errors that mimgenv raises."""


class ConfigurationError(MimgenvError, ValueError):
    """An argument of the environment, or a combination of arguments, that cannot work."""


class TaskError(MimgenvError, ValueError):
    """A task that does not exist, cannot be made, or whose target is not unique."""


class DatasetError(MimgenvError, ValueError):
    """A data set that cannot be served as it is; the message names the file."""


class TurnError(MimgenvError):
    """A turn that does not parse or cannot be carried out.

    Args:
        code: A key of `TURN_ERRORS`.
        detail: One more sentence for the agent, free of anything the agent wrote.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def text(self) -> str:
        """What the agent reads next."""
        return f"Error ({self.code}): {TURN_ERRORS[self.code]}" + (f" {self.detail}" if self.detail else "")
