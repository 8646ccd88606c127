"""The grammar of a turn: all it writes can be carried out but for an inverted box; all the oracle writes is in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from agents.oracle import OracleAgent
from agents.rollout import run_episodes
from mimgenv import load_task
from mimgenv.codec import Codec, default_codec
from mimgenv.errors import ConfigurationError, TurnError
from mimgenv.geometry import BOX_FRAMES, View, area
from mimgenv.grammar import ANSWERS, UNIT, TurnLimits, TurnMatcher, turn_grammar, whole_numbers
from mimgenv.parsing import ToolCall, parse_grounding, parse_text_answer, parse_turn
from mimgenv.tools import TOOLS, Tool, ToolContext, call_tool

CODEC = default_codec()
ALL_TOOLS: dict[str, Tool] = {name: tool() for name, tool in TOOLS.items()}
SHORT = TurnLimits(thought=12, label=8, text=10)
SIZES = {
    "one": [(84, 84)],
    "three of two sizes": [(56, 112), (224, 28), (56, 112)],
    "twelve": [(28 * (2 + n % 5), 28 * (1 + n)) for n in range(12)],
}
"""Width and height of the images shown."""


class Glance:
    """A tool with no argument."""

    name = "glance"
    parameters: tuple[str, ...] = ()
    description = "Looks."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        return context.views[0]


class Mark:
    """A tool that takes a box before all else, and in no image in particular."""

    name = "mark"
    parameters: tuple[str, ...] = ("bbox_2d",)
    description = "Marks."

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        for view in context.views:
            assert context.box(view, arguments["bbox_2d"]) == tuple(arguments["bbox_2d"])
        return context.views[0]


def views_of(sizes: Sequence[tuple[int, int]]) -> list[View]:
    pixels = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    return [View(p, n, (0.0, 0.0, float(p.shape[1]), float(p.shape[0]))) for n, p in enumerate(pixels, 1)]


def grammar_of(views: Sequence[View], box_frame: str = "pixel", **arguments: Any) -> str:
    arguments.setdefault("tools", {})
    arguments.setdefault("limits", SHORT)
    return turn_grammar([view.extent(box_frame) for view in views], box_frame=box_frame, **arguments)


def walk(grammar: str, rng: np.random.Generator, codec: Codec = CODEC) -> Iterator[tuple[np.ndarray, int, bool]]:
    """(mask, the token drawn from it, whether the turn was complete before it), up to the end-of-turn token."""
    matcher, done = TurnMatcher(codec, grammar), False
    while not done:
        mask, done = matcher.mask(), matcher.done
        index = int(rng.choice(np.flatnonzero(mask)))  # raises on an empty mask
        matcher.consume(index)
        yield mask, index, done


def accepts(grammar: str, text: str, codec: Codec = CODEC) -> bool:
    """Whether the turn may be written, as the codec encodes it, under the masks and up to the end-of-turn token."""
    matcher = TurnMatcher(codec, grammar)
    for index in codec.encode_turn(text):
        if not matcher.mask()[index]:
            return False
        matcher.consume(index)
    return matcher.done


def carry_out(text: str, views: Sequence[View], box_frame: str, tools: dict[str, Tool]) -> str:
    """What the environment does with a turn: the kind of turn it was, or `bad_box`; other errors pass."""
    turn = parse_turn(text)
    context = ToolContext(views, [view.pixels for view in views], box_frame)
    try:
        if isinstance(turn, ToolCall):
            call_tool(tools, context, turn.name, dict(turn.arguments))
            return turn.name
        if not turn.text.startswith("{"):
            assert parse_text_answer(turn.text)
            return "text"
        answer = parse_grounding(turn.text)
        assert answer.image is not None
        assert area(context.view(answer.image).clip(answer.box, box_frame)) == area(answer.box) > 0
        return "grounding"
    except TurnError as error:
        if error.code != "bad_box":
            raise
        return "bad_box"


@pytest.mark.parametrize("box_frame", BOX_FRAMES)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_random_walk_can_be_carried_out_unless_its_box_is_inverted(sizes: str, box_frame: str) -> None:
    views, rng, seen = views_of(SIZES[sizes]), np.random.default_rng(0), []
    tools: dict[str, Tool] = {**ALL_TOOLS, "glance": Glance(), "mark": Mark()}
    for offered, answers in (({}, ANSWERS), (tools, ANSWERS), (tools, ()), ({}, ("text",))):
        grammar = grammar_of(views, box_frame, tools=offered, answers=answers)
        for _ in range(120):
            ids = [index for _, index, _ in walk(grammar, rng)]
            text = CODEC.decode_turn(ids)
            seen.append(carry_out(text, views, box_frame, tools))
            assert len(text) <= SHORT.thought + max(SHORT.text, SHORT.label) + 160 + len("visual_confirmation")
    assert {"bad_box", "grounding", "text", "glance", "visual_reflection"} <= set(seen)


def test_special_tokens_come_only_at_the_end_and_there_alone() -> None:
    rng, end = np.random.default_rng(1), CODEC.end_ids[0]
    grammar = grammar_of(views_of(SIZES["twelve"]), tools=ALL_TOOLS)
    pad, special = CODEC.tokenizer.token_to_id("<|image_pad|>"), sorted(CODEC.special_ids)
    for _ in range(60):
        for mask, _, done in walk(grammar, rng):
            assert np.flatnonzero(mask).tolist() == [end] if done else not mask[special].any()
            assert mask.shape == (CODEC.vocab_size,)
            assert not mask[pad]


def test_nothing_comes_after_the_end_of_turn_token() -> None:
    matcher = TurnMatcher(CODEC, grammar_of(views_of(SIZES["one"])))
    for index in CODEC.encode_turn("<think></think><answer>B</answer>"):
        assert not matcher.done or index == CODEC.end_ids[0]
        matcher.consume(index)
    assert matcher.done
    assert not matcher.mask().any()
    with pytest.raises(ValueError, match="may not come next"):
        matcher.consume(CODEC.end_ids[0])


def test_a_token_outside_the_mask_is_refused() -> None:
    matcher = TurnMatcher(CODEC, grammar_of(views_of(SIZES["one"])))
    with pytest.raises(ValueError, match="may not come next"):
        matcher.consume(CODEC.encode("x")[0])


def test_walks_of_one_grammar_are_independent() -> None:
    grammar = grammar_of(views_of(SIZES["one"]))
    first, second = TurnMatcher(CODEC, grammar), TurnMatcher(CODEC, grammar)
    before = second.mask()
    for index in CODEC.encode("<think>a</think><answer>"):
        first.consume(index)
    assert (second.mask() == before).all()
    assert (first.mask() != before).any()


GROUNDING = '<think>so</think><answer>{"image": 2, "label": "red cup", "bbox_2d": [0, 27, 224, 28]}</answer>'
CALL = '<think></think><tool_call>{"name": "zoom", "arguments": {"image": 3, "bbox_2d": [1, 2, 56, 112]}}</tool_call>'
TEXT = "<think></think><answer>B</answer>"
EXAMPLES = {"grounding": GROUNDING, "call": CALL, "text": TEXT}


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("grounding", '"image": 2', '"image": 0'),
        ("grounding", '"image": 2', '"image": 4'),
        ("grounding", '"image": 2', '"image": 12'),
        ("grounding", '"image": 2', '"image": "2"'),
        ("grounding", '"image": 2', '"image": 1'),  # 224 is beyond that image
        ("grounding", '"image": 2, ', ""),
        ("grounding", "224", "225"),
        ("grounding", "224", "2240"),
        ("grounding", "224", "-1"),
        ("grounding", "224", "07"),
        ("grounding", "224", "7.5"),
        ("grounding", "224", "1e1"),
        ("grounding", "28]", "29]"),
        ("grounding", "28]", "28, 28]"),
        ("grounding", "0, 27", "0,27"),
        ("grounding", "red cup", ""),
        ("grounding", "red cup", " cup"),
        ("grounding", "red cup", 'red "cup'),
        ("grounding", "red cup", "red\\ncup"),
        ("grounding", "red cup", "red\ncup"),
        ("grounding", "red cup", "red<cup"),
        ("grounding", "red cup", "123456789"),
        ("grounding", "}</answer>", ', "bbox_2d": [0, 0, 1, 1]}</answer>'),
        ("grounding", "</answer>", "</answer> "),
        ("grounding", "</answer>", "</answer>x"),
        ("grounding", "</answer>", "</answer><|im_end|>"),
        ("grounding", "</answer>", "</answer><answer>B</answer>"),
        ("grounding", "</think>", "</think> "),
        ("grounding", "so", "<think>so"),
        ("grounding", "so", "<answer>B"),
        ("grounding", "so", "</tool_response>"),
        ("grounding", "so", "<|image_pad|>"),
        ("grounding", "so", "thirteen char"),
        ("grounding", "<think>so</think>", ""),
        ("call", "zoom", "crop"),
        ("call", '"image": 3', '"image": 4'),
        ("call", '"image": 3', '"image": 2'),  # 112 is beyond that image
        ("call", "112", "113"),
        ("call", '"image": 3, ', ""),
        ("call", "]}}", '], "label": "cup"}}'),
        ("call", '"arguments"', '"argument"'),
        ("call", "}}</", "}</"),
        ("call", "</tool_call>", "</answer>"),
        ("text", "B", ""),
        ("text", "B", " "),
        ("text", "B", "\u2003"),
        ("text", "B", "eleven char"),
        ("text", "B", "{}"),
        ("text", "B", "a<think>b"),
    ],
)
def test_one_thing_out_of_place_cannot_be_written(kind: str, old: str, new: str) -> None:
    good = EXAMPLES[kind]
    grammar = grammar_of(views_of(SIZES["three of two sizes"]), tools=ALL_TOOLS)
    assert accepts(grammar, good)
    assert old in good
    assert not accepts(grammar, good.replace(old, new, 1))


def test_an_inverted_box_can_be_written_and_is_all_that_is_left() -> None:
    views = views_of(SIZES["three of two sizes"])
    text = GROUNDING.replace("0, 27, 224, 28", "224, 28, 0, 27")
    assert accepts(grammar_of(views), text)
    assert carry_out(text, views, "pixel", {}) == "bad_box"


def test_what_the_budget_or_the_question_rules_out_cannot_be_written() -> None:
    views = views_of(SIZES["three of two sizes"])
    written = {
        ("call", "grounding", "text"): grammar_of(views, tools=ALL_TOOLS),
        ("grounding", "text"): grammar_of(views),
        ("grounding",): grammar_of(views, answers=("grounding",)),
        ("text",): grammar_of(views, answers=("text",)),
        ("call",): grammar_of(views, tools=ALL_TOOLS, answers=()),
    }
    for allowed, grammar in written.items():
        for kind, example in EXAMPLES.items():
            assert accepts(grammar, example) == (kind in allowed), (allowed, kind)


def test_the_limits_are_reached_and_not_passed() -> None:
    views = views_of(SIZES["one"])
    for thought, label, text in ((0, 1, 1), (30, 20, 40)):
        grammar = grammar_of(views, limits=TurnLimits(thought, label, text))
        for more in (0, 1):
            grounding = f'{{"image": 1, "label": "{"é" * (label + more)}", "bbox_2d": [0, 0, 1, 1]}}'
            assert accepts(grammar, f"<think></think><answer>{grounding}</answer>") == (not more)
            assert accepts(grammar, f"<think></think><answer>{'7' * (text + more)}</answer>") == (not more)
            assert accepts(grammar, f"<think>{'x' * (thought + more)}</think><answer>B</answer>") == (not more)


def test_whole_numbers_are_those_up_to_the_limit_and_no_others() -> None:
    for limit in (*range(125), 199, 200, 448, 999, 1000, 1023):
        pattern = re.compile(whole_numbers(limit))
        matched = [number for number in range(12_000) if pattern.fullmatch(str(number))]
        assert matched == list(range(limit + 1))
        assert not any(pattern.fullmatch(text) for text in ("", "-0", "00", "01", "1.0", "٣"))


def test_unit_coordinates_are_decimals_from_0_to_1() -> None:
    for text in ("0", "1", "0.0", "1.0", "0.5", "0.0001", "0.9999"):
        assert re.fullmatch(UNIT, text)
        assert 0 <= float(text) <= 1
    assert not any(re.fullmatch(UNIT, text) for text in ("1.5", "2", "-0.1", ".5", "0.", "00.5", "0.00001", "1.0001"))


def test_a_tool_that_names_no_image_gets_a_box_that_fits_into_all() -> None:
    grammar = grammar_of(views_of([(56, 112), (224, 28)]), tools={"mark": Mark()}, answers=())
    call = '<think></think><tool_call>{{"name": "mark", "arguments": {{"bbox_2d": [0, 0, {}, {}]}}}}</tool_call>'
    assert accepts(grammar, call.format(56, 28))
    assert not accepts(grammar, call.format(57, 28))
    assert not accepts(grammar, call.format(56, 29))


def test_a_turn_that_cannot_be_is_refused_at_once() -> None:
    views = views_of(SIZES["one"])
    unknown = Glance()
    unknown.parameters = ("path",)
    for arguments in (
        {"answers": ()},
        {"answers": ("essay",)},
        {"tools": {"glance": unknown}},
    ):
        with pytest.raises(ConfigurationError):
            grammar_of(views, **arguments)
    with pytest.raises(ConfigurationError):
        turn_grammar([], {})
    with pytest.raises(ConfigurationError):
        turn_grammar([(1, 1)], {}, box_frame="inches")
    for limits in ({"thought": -1}, {"label": 0}, {"label": 201}, {"text": 0}, {"text": 1001}):
        with pytest.raises(ConfigurationError):
            TurnLimits(**limits)


def test_a_grammar_that_llguidance_refuses_is_named() -> None:
    with pytest.raises(ConfigurationError, match="llguidance refuses"):
        TurnMatcher(CODEC, "start: nowhere")


def byte_level_codec() -> Codec:
    """A byte-level vocabulary whose tags are added tokens but not special, as Qwen's `<tool_call>` is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|image_pad|>", "[IMG]"])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>", "<tool_call>")])
    return Codec(tokenizer)


def test_tags_that_are_tokens_of_their_own_may_be_written_as_such() -> None:
    codec = byte_level_codec()
    grammar = grammar_of(views_of(SIZES["three of two sizes"]), tools=ALL_TOOLS)
    assert TurnMatcher(codec, grammar).mask()[codec.tokenizer.token_to_id("<think>")]
    assert accepts(grammar, CALL, codec)
    assert accepts(grammar, GROUNDING.replace("so", "日é"), codec)


def test_special_tokens_of_another_vocabulary_are_out_of_reach_however_they_are_spelled() -> None:
    codec, rng = byte_level_codec(), np.random.default_rng(2)
    views, special = views_of(SIZES["three of two sizes"]), sorted(codec.special_ids)
    grammar = grammar_of(views, tools=ALL_TOOLS)
    for _ in range(40):
        steps = list(walk(grammar, rng, codec))
        carry_out(codec.decode_turn([index for _, index, _ in steps]), views, "pixel", ALL_TOOLS)
        assert not any(mask[special].any() for mask, _, done in steps if not done)


@pytest.mark.parametrize(
    ("env_id", "box_frame", "grid", "zoom", "count"),
    [
        ("MultiImageTiny-v0", "pixel", 1, 0.0, 150),
        ("MultiImageTiny-v0", "pixel", 7, 0.0, 50),
        ("MultiImageTiny-v0", "norm1000", 1, 0.0, 50),
        ("MultiImageTiny-v0", "unit", 0.001, 0.0, 50),
        ("MultiImageTiny-v0", "qwen2_5_resized", 1, 0.0, 50),
        ("MultiImageTinyZoom-v0", "pixel", 7, 0.7, 50),
        ("MultiImageQA-v0", "pixel", 1, 0.5, 40),
        ("MultiImageQA-v0", "norm1000", 1, 0.5, 15),
    ],
)
def test_all_the_oracle_writes_is_in_the_grammar(
    env_id: str, box_frame: str, grid: float, zoom: float, count: int
) -> None:
    oracle = OracleAgent(box_frame, grid=grid, zoom=zoom)
    made = gym.make(env_id, disable_env_checker=True).unwrapped
    tools: dict[str, Tool] = made.tools  # type: ignore[attr-defined]
    trajectories = run_episodes(oracle, env_id, range(count), box_frame=box_frame, max_tokens=4096)
    assert any(len(trajectory.turns) > 1 for trajectory in trajectories) == (zoom > 0)
    for trajectory in trajectories:
        kind = "grounding" if hasattr(load_task(trajectory.task_id).truth, "box") else "text"
        images = list(itertools.accumulate(turn.message.images for turn in trajectory.turns))
        for turn, shown in zip(trajectory.turns, images, strict=True):
            text = CODEC.decode_turn(turn.action.ids)
            views = [View(pixels, 1, (0.0, 0.0, 1.0, 1.0)) for pixels in shown]
            grammar = grammar_of(views, box_frame, tools=tools, answers=(kind,), limits=TurnLimits())
            assert accepts(grammar, text), text
