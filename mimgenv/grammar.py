"""The grammar of a turn, as llguidance (Lark) text, and the walk of one turn through it, token by token.

Owns what a policy may write next: `turn_grammar` makes one text from the tools, the images shown so far and the kinds
of answer, for token masks, constrained sampling and vLLM's structured output alike; `TurnMatcher` turns it into masks
over a codec's ids. What a written turn means is read in parsing.py, which accepts more: any key order, fences, spaces.

Every string of the grammar parses and can be carried out, but for one thing: a box may be inverted or empty.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from mimgenv.codec import Codec
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import BOX_FRAMES
from mimgenv.parsing import MAX_LABEL, MAX_TEXT_ANSWER
from mimgenv.tools import Tool

ANSWERS: Final = ("grounding", "text")
GROUNDING_KEYS: Final = ("image", "label", "bbox_2d")
"""In the order in which they are written: what it is before where it is."""

UNIT: Final = r"0(\.[0-9]{1,4})?|1(\.0{1,4})?"
"""A fraction from 0 to 1 with at most four decimals, as a regular expression."""

_NOT_IN_TEXT: Final = r"<\x00-\x1f\x7f"
_NOT_IN_LABEL: Final = _NOT_IN_TEXT + r'"\\'

_SLICES: Final = [f"[^{_NOT_IN_LABEL}]{{1,10}}", f"[^{_NOT_IN_LABEL}]{{1,30}}"]
"""Tokens that llguidance allows all at once where they fit. Its own choice holds `<`, which never fits here; with this
one, masks over 151 000 tokens are 18 times faster."""

_Size: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """The most characters of each free part of a turn; the rest is bounded by the grammar itself.

    A whole turn has at most `thought + max(text, label) + 160` characters, plus a tool's name.

    Attributes:
        thought: Between the think tags, from 0.
        label: Of a label, 1 to `MAX_LABEL`.
        text: Of a text answer, 1 to `MAX_TEXT_ANSWER`.

    Raises:
        ConfigurationError: If one is out of its range.
    """

    thought: int = 1000
    label: int = 64
    text: int = 200

    def __post_init__(self) -> None:
        if self.thought < 0 or not (1 <= self.label <= MAX_LABEL and 1 <= self.text <= MAX_TEXT_ANSWER):
            raise ConfigurationError(f"{self}: thought >= 0, label 1 to {MAX_LABEL}, text 1 to {MAX_TEXT_ANSWER}")


def turn_grammar(
    extents: Sequence[tuple[float, float]],
    tools: Mapping[str, Tool],
    answers: Collection[str] = ANSWERS,
    box_frame: str = "pixel",
    limits: TurnLimits = TurnLimits(),
) -> str:
    """The grammar of the next turn.

    Coordinates are whole numbers from 0 to the extent of the image that the call or answer names; in the frame `unit`
    they are decimals. A thought holds no `<`, so that no tag can be nested. A label holds no quote, backslash, `<` or
    control character. A text answer does not begin with `{`: what looks like a grounding answer is a good one.

    Args:
        extents: Largest x and y of each image shown so far, Image-1 first (`View.extent`).
        tools: By name, as the environment's; empty where there are none or the budget allows no call.
        answers: The kinds that may be given, of `ANSWERS`; empty where a tool must be called.
        box_frame: How boxes are written; `extents` are in it.
        limits: The longest thought, label and text.

    Returns:
        Lark text, for `TurnMatcher` or for any other user of llguidance.

    Raises:
        ConfigurationError: If nothing can be written, or there is no such answer, frame or parameter.
    """
    if not extents or not (tools or answers) or not set(answers) <= set(ANSWERS) or box_frame not in BOX_FRAMES:
        raise ConfigurationError(f"no turn: {len(extents)} images, {[*tools]}, {[*answers]}, {box_frame!r}")
    sizes = [(int(width), int(height)) for width, height in extents]
    calls = [_call(tool, sizes) for tool in tools.values()]
    acts = {"tool_call": calls, "answer": _answers(answers, sizes)}
    rules = {
        "start": f"THINK ({_either(_tagged(tag, bodies) for tag, bodies in acts.items() if bodies)})",
        "THINK": f'"<think>" /[^<]{{0,{limits.thought}}}/ "</think>"',
        "LABEL": f"/[^{_NOT_IN_LABEL}\\s][^{_NOT_IN_LABEL}]{{0,{limits.label - 1}}}/",
        "TEXT": f"/[^{_NOT_IN_TEXT}\\s{{][^{_NOT_IN_TEXT}]{{0,{limits.text - 1}}}/",
        **_image_rules(sizes),
        **_box_rules([*sizes, _smallest(sizes)], box_frame),
    }
    return "".join(f"{name}: {rule}\n" for name, rule in rules.items())


def _tagged(tag: str, bodies: Iterable[str]) -> str:
    return f'"<{tag}>" ({_either(bodies)}) "</{tag}>"'


def _answers(kinds: Collection[str], sizes: Sequence[_Size]) -> list[str]:
    grounding = [_object(GROUNDING_KEYS, sizes)] if "grounding" in kinds else []
    return grounding + (["TEXT"] if "text" in kinds else [])


def _call(tool: Tool, sizes: Sequence[_Size]) -> str:
    if not set(tool.parameters) <= set(GROUNDING_KEYS):
        raise ConfigurationError(f"tool {tool.name}: parameters {tool.parameters} are not all of {GROUNDING_KEYS}")
    opening = _literal(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    return f"{opening} ({_object(tool.parameters, sizes)}) {_literal('}')}"


def _object(keys: Sequence[str], sizes: Sequence[_Size]) -> str:
    """A JSON object as `json.dumps` writes it: one alternative per size, since the image bounds the box.

    Where no image is named, the box fits into all of them.
    """
    choices = []
    for width, height in dict.fromkeys(sizes) if "image" in keys else [_smallest(sizes)]:
        rules = {"image": f"IMAGE_{width}_{height}", "label": r'"\"" LABEL "\""', "bbox_2d": f"box_{width}_{height}"}
        members = [f"{_literal(json.dumps(key) + ': ')} {rules[key]}" for key in keys]
        choices.append(f'"{{" {_comma(members)} "}}"')
    return _either(choices)


def _image_rules(sizes: Sequence[_Size]) -> dict[str, str]:
    """The numbers of the images of each size."""
    numbers: dict[_Size, list[str]] = {}
    for number, size in enumerate(sizes, 1):
        numbers.setdefault(size, []).append(str(number))
    return {f"IMAGE_{width}_{height}": f"/{'|'.join(each)}/" for (width, height), each in numbers.items()}


def _box_rules(sizes: Sequence[_Size], box_frame: str) -> dict[str, str]:
    """A box of each size, and the coordinates that boxes share."""
    sides = sorted({side for size in sizes for side in size})
    rules = {f"NUMBER_{side}": f"/{UNIT if box_frame == 'unit' else whole_numbers(side)}/" for side in sides}
    for width, height in sizes:
        corners = _comma([f"NUMBER_{width}", f"NUMBER_{height}"] * 2)
        rules[f"box_{width}_{height}"] = f'"[" {corners} "]"'
    return rules


def whole_numbers(limit: int) -> str:
    """The regular expression of 0 to `limit`, without leading zeros."""
    digits = str(limit)
    choices = ["0", digits, *(f"[1-9][0-9]{{{more}}}" for more in range(len(digits) - 1))]
    for place, digit in enumerate(digits):
        lowest = 1 if place == 0 else 0
        if int(digit) > lowest:
            below = f"[{lowest}-{int(digit) - 1}]"
            choices.append(f"{digits[:place]}{below}[0-9]{{{len(digits) - place - 1}}}")
    return "|".join(choices)


def _smallest(sizes: Sequence[_Size]) -> _Size:
    return min(width for width, _ in sizes), min(height for _, height in sizes)


def _either(choices: Iterable[str]) -> str:
    return " | ".join(choices)


def _comma(members: Iterable[str]) -> str:
    return ' ", " '.join(members)


def _literal(text: str) -> str:
    return json.dumps(text)


class TurnMatcher:
    """The walk of one turn through a grammar: which ids may come next, and the one that came.

    After the closing tag nothing but the codec's first end-of-turn token may come. Other special tokens never may.

    Args:
        codec: Between ids and text.
        grammar: From `turn_grammar`.

    Raises:
        ConfigurationError: If llguidance cannot read the grammar.
    """

    def __init__(self, codec: Codec, grammar: str) -> None:
        self._matcher = _fresh_matcher(codec, grammar).deep_copy()
        self._codec, self._ended = codec, False

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which ids may come next, (V,) bool; none after the end-of-turn token."""
        if self._ended:
            return np.zeros(self._codec.vocab_size, np.bool_)
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(packed, count=self._codec.vocab_size, bitorder="little").view(np.bool_)

    def consume(self, index: int) -> None:
        """Takes the next id.

        Raises:
            ValueError: If it may not come next; the walk is then over.
        """
        if self._ended or not self._matcher.consume_token(index):
            self._ended = True
            raise ValueError(f"token {index} may not come next")
        self._ended = index == self._codec.end_ids[0]

    @property
    def done(self) -> bool:
        """Whether the turn is complete: only the end-of-turn token may come, or it has come."""
        return bool(self._matcher.is_accepting())


@lru_cache(maxsize=256)
def _fresh_matcher(codec: Codec, grammar: str) -> LLMatcher:
    """The compiled grammar, to be copied: compiling costs far more than a copy."""
    matcher = LLMatcher(_tokenizer(codec), grammar, log_level=0)
    if matcher.is_error():
        raise ConfigurationError(f"llguidance refuses the grammar: {matcher.get_error()[:500]}")
    return matcher


class _Vocabulary:
    """A codec's tokens as bytes, in the form that llguidance's `TokenizerWrapper` asks for."""

    bos_token_id = None

    def __init__(self, codec: Codec) -> None:
        self._codec, self.eos_token_id = codec, codec.end_ids[0]
        plain = LLTokenizer(codec.tokenizer.to_str(), eos_token=self.eos_token_id)
        self.tokens = [plain.decode_bytes([index]) for index in range(codec.vocab_size)]
        self.special_token_ids = sorted(codec.special_ids)

    def __call__(self, text: str) -> list[int]:
        return list(self._codec.encode(text))


@lru_cache(maxsize=8)
def _tokenizer(codec: Codec) -> LLTokenizer:
    """The codec's vocabulary for llguidance.

    Not straight from the tokenizer's JSON: there llguidance takes every added token that looks like `<…>` for a
    special one, so that `<think>` or Qwen's `<tool_call>` could only be spelled out.
    """
    return LLTokenizer(TokenizerWrapper(_Vocabulary(codec)), eos_token=codec.end_ids[0], slices=_SLICES)
