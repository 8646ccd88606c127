"""From a history to token ids: the chat template, applied so that no sampled token is ever encoded again.

Owns the layout of a conversation. What the environment says is encoded here; what the policy said is spliced in as
the ids it emitted. Images stay compact: one placeholder each. Any Hugging Face chat template works, as long as what
it writes around a turn does not depend on the turn's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from agents.sampling import Prompt
from agents.types import Action, History, Message, Trajectory
from mimgenv.codec import END_TOKENS, Codec
from mimgenv.types import Image

IMAGE_TOKEN: Final = "<|image_pad|>"
_SAID: Final = "\u241f"  # stands for an assistant turn while a template is taken apart


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A trajectory as token ids, compact: what a trainer reads.

    Attributes:
        ids: The whole conversation.
        turns: One per id: k for a token the policy emitted in its k-th turn (1-based), 0 for any other token.
        logprobs: One per id, of the policy's own tokens; 0.0 elsewhere, and everywhere if none were recorded.
        images: As many as there are placeholders.

    Raises:
        ValueError: If lengths differ.
    """

    ids: tuple[int, ...]
    turns: tuple[int, ...]
    logprobs: tuple[float, ...]
    images: tuple[Image, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.turns) == len(self.logprobs):
            raise ValueError(f"{len(self.ids)} ids, {len(self.turns)} turns, {len(self.logprobs)} log-probs")


class Chat:
    """Applies a chat template.

    Args:
        codec: Encodes text; its vocabulary must hold the image placeholder.
        render: `(messages, add_generation_prompt) -> str`, such as a tokenizer's `apply_chat_template`.
    """

    def __init__(self, codec: Codec, render: Callable[[list[dict[str, Any]], bool], str]) -> None:
        self.codec = codec
        self._render = render
        image_id = codec.tokenizer.token_to_id(IMAGE_TOKEN)
        if image_id is None:
            raise ValueError(f"the tokenizer has no {IMAGE_TOKEN}")
        self.image_id: int = image_id

    @cached_property
    def _around(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """What stands before and after the text of the first user turn, and of a later one."""
        return self._split(True), self._split(False)

    def _split(self, first: bool) -> tuple[str, str]:
        user = {"role": "user", "content": [{"type": "text", "text": _SAID}]}
        if first:
            before, after = self._render([user], True).split(_SAID)
            return before, after
        said = {"role": "assistant", "content": _SAID}
        _, _, between, after = self._render([user, said, user], True).split(_SAID)
        return between, after

    def _body(self, message: Message) -> str:
        """The message as the template writes it: text as it is, images as vision tokens."""
        if any(token in message.text for token in self.codec.special_tokens) or _SAID in message.text:
            raise ValueError("a message holds a token of the conversation format")
        return message.text.replace("<image>", self._image)

    @cached_property
    def _image(self) -> str:
        content = [{"type": "text", "text": _SAID}, {"type": "image"}, {"type": "text", "text": _SAID}]
        image = self._render([{"role": "user", "content": content}], True).split(_SAID)[1]
        if image.count(IMAGE_TOKEN) != 1:
            raise ValueError(f"the template writes an image as {image!r}, not as one {IMAGE_TOKEN}")
        return image

    def _user_ids(self, message: Message, previous: Action | None) -> tuple[int, ...]:
        """The ids of a user turn and of the assistant's header after it."""
        before, after = self._around[previous is not None]
        if previous is not None and previous.ids and previous.ids[-1] in self.codec.end_ids:
            for token in END_TOKENS:  # the policy closed its turn itself
                before = before.removeprefix(token)
        ids = self.codec.encode(before + self._body(message) + after)
        if ids.count(self.image_id) != len(message.images):
            raise ValueError(f"{ids.count(self.image_id)} placeholders, {len(message.images)} images")
        return ids

    def prompt(self, history: History) -> Prompt:
        """The conversation so far, up to where the policy goes on."""
        ids: list[int] = []
        images: list[Image] = []
        previous: Action | None = None
        for message, action in [(turn.message, turn.action) for turn in history.turns] + [(history.message, None)]:
            ids += self._user_ids(message, previous)
            images += message.images
            ids += action.ids if action is not None else ()
            previous = action
        return Prompt(tuple(ids), tuple(images))

    def record(self, trajectory: Trajectory) -> TokenRecord:
        """A finished conversation, with the policy's own tokens marked by turn."""
        ids: list[int] = []
        turns: list[int] = []
        logprobs: list[float] = []
        previous: Action | None = None
        for number, turn in enumerate(trajectory.turns, 1):
            said = self._user_ids(turn.message, previous)
            own = turn.action.ids
            ids += [*said, *own]
            turns += [0] * len(said) + [number] * len(own)
            logprobs += [0.0] * len(said) + list(turn.action.logprobs or [0.0] * len(own))
            previous = turn.action
        return TokenRecord(tuple(ids), tuple(turns), tuple(logprobs), trajectory.images)

    def readback(self, record: TokenRecord, mask: Sequence[bool | int]) -> str:
        """The text of the marked tokens; what a mask covers, for people and tests."""
        return self.codec.decode(index for index, on in zip(record.ids, mask, strict=True) if on)
