"""Turns token by token: whatever the masks allow, the turn comes to a good end within its tokens."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from agents.oracle import OracleAgent
from agents.random_agent import RandomAgent
from agents.rollout import run_episodes
from mimgenv import load_task
from mimgenv.codec import Codec, default_codec
from mimgenv.errors import ConfigurationError, TurnError
from mimgenv.geometry import BOX_FRAMES
from mimgenv.grammar import TurnLimits
from mimgenv.parsing import AnswerText, ToolCall, parse_grounding, parse_text_answer, parse_turn
from mimgenv.tools import TOOLS, Tool
from mimgenv.turn_rules import OpenTurn, TurnRules
from mimgenv.types import Grounding

CODEC = default_codec()
ALL_TOOLS: dict[str, Tool] = {name: tool() for name, tool in TOOLS.items()}
SHORT = TurnLimits(thought=12, label=8, text=10)
EXTENTS = [(84.0, 84.0), (56.0, 112.0), (84.0, 84.0)]
PLENTY = {"turns": 6, "tokens": 4096, "images": 12}


def byte_codec() -> Codec:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return Codec(tokenizer)


def codec_of_pieces(*pieces: str) -> Codec:
    """A codec of a few whole tokens, which can spell nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    return Codec(tokenizer)


PIECES = ("<think>", '</think><answer>{"image": ', '1, "label": "', "?", "!", '", "bbox_2d": [', "0, ", "7, ", "84, ")
PIECES = (*PIECES, "0]}</answer>", "7]}</answer>", "84]}</answer>", "cup", "Find the ", "<image>")
BOXES_ONLY = codec_of_pieces(*PIECES)
PIECES = (*PIECES, "</think><answer>", "</answer>", "blue cup", 'cup", "')  # the last: a label that leads nowhere
CODECS = {"default": CODEC, "bytes": byte_codec(), "pieces": codec_of_pieces(*PIECES)}


def rules(codec: Codec = CODEC, tools: dict[str, Tool] | None = None, **arguments: Any) -> TurnRules:
    settings = {"box_frame": "pixel", "limits": SHORT, "max_turn_tokens": 512} | arguments
    return TurnRules(codec, tools or {}, **settings)


def walk(turn: OpenTurn, rng: np.random.Generator, codec: Codec = CODEC, prefer: str = "") -> tuple[int, ...]:
    """The ids of a random walk; tokens of the preferred characters are drawn as long as there are any."""
    while not turn.complete:
        legal = np.flatnonzero(turn.mask)
        liked = [index for index in legal if prefer and set(codec.decode([int(index)])) <= set(prefer)]
        turn.write(int(rng.choice(liked or legal)))
    return tuple(turn.ids)


def accepts(turn: OpenTurn, ids: Sequence[int]) -> bool:
    """Whether every id is legal when its turn comes, and the last ends the turn."""
    for index in ids:
        if turn.complete or not turn.mask[index]:
            return False
        turn.write(index)
    return turn.complete


def kind_of(text: str) -> str:
    """What a turn is: a tool's name, the kind of answer, or `bad_box`; anything else raises."""
    turn = parse_turn(text)
    if isinstance(turn, ToolCall):
        return turn.name
    assert isinstance(turn, AnswerText)
    if not turn.text.startswith("{"):
        return "text" if parse_text_answer(turn.text) else ""
    try:
        parse_grounding(turn.text)
    except TurnError as error:
        if error.code != "bad_box":
            raise
        return "bad_box"
    return "grounding"


# A good end


@pytest.mark.parametrize("box_frame", BOX_FRAMES)
@pytest.mark.parametrize("spare", [0, 1, 2, 5, 12, 30, 400])
def test_every_walk_ends_well_within_its_tokens_however_few_they_are(box_frame: str, spare: int) -> None:
    rng, made = np.random.default_rng(spare), rules(tools=ALL_TOOLS, box_frame=box_frame)
    extents = {
        "pixel": EXTENTS,
        "qwen2_5_resized": EXTENTS,
        "norm1000": [(1000.0, 1000.0)] * 3,
        "unit": [(1.0, 1.0)] * 3,
    }
    for answer in ("grounding", "text"):
        for _ in range(12):
            tokens = made.reserve * 2 + spare
            ids = walk(made.turn(extents[box_frame], answer, turns=2, tokens=tokens, images=1), rng)
            assert len(ids) <= made.allowance(2, tokens) == made.reserve + spare
            assert ids[-1] == CODEC.end_ids[0]
            assert kind_of(CODEC.decode_turn(ids)) in {answer, "bad_box", *ALL_TOOLS}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("spare", [0, 1, 3, 9, 27, 81])
def test_it_does_in_every_vocabulary_that_can_write_an_answer(name: str, spare: int) -> None:
    codec, rng = CODECS[name], np.random.default_rng(spare)
    made = rules(codec, ALL_TOOLS if name == "bytes" else None, limits=TurnLimits(6, 8, 4))
    for _ in range(8):
        ids = walk(made.turn(EXTENTS[:1], "grounding", turns=1, tokens=made.reserve + spare, images=0), rng, codec)
        assert len(ids) <= made.reserve + spare
        assert kind_of(codec.decode_turn(ids)) in {"grounding", "bad_box"}


def made_up_codec(rng: np.random.Generator) -> Codec:
    """Bytes, and some dozens of whole tokens that begin and end anywhere in a turn."""
    codec, pieces = byte_codec(), set()
    for _ in range(rng.integers(5, 60)):
        label, numbers = rng.choice(["red cup", "é漢", "a"]), rng.integers(0, 85, 5).tolist()
        arguments = json.dumps({"image": numbers[0] % 3, "label": label, "bbox_2d": numbers[1:]}, ensure_ascii=False)
        call = f'<tool_call>{{"name": "{rng.choice(list(TOOLS))}", "arguments": {arguments}}}</tool_call>'
        text = f"<think>{rng.choice(['', 'so it'])}</think>" + rng.choice([call, f"<answer>{arguments}</answer>"])
        start = rng.integers(len(text) - 2)
        pieces.add(text[start : start + rng.integers(2, 30)])
    codec.tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in sorted(pieces)])
    return Codec(codec.tokenizer)


def check_made_up_vocabulary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codec, box_frame = made_up_codec(rng), str(rng.choice(["pixel", "unit", "unit", "norm1000"]))
    extents = {"pixel": EXTENTS, "unit": [(1.0, 1.0)] * 3, "norm1000": [(1000.0, 1000.0)] * 3}[box_frame]
    limits = TurnLimits(*(int(rng.choice(most)) for most in ([0, 3, 40], [1, 5, 30], [1, 9])))
    made = rules(codec, ALL_TOOLS, box_frame=box_frame, limits=limits)
    for spare in rng.choice([0, 1, 2, 3, 5, 8, 13, 20, 30, 50], 6).tolist():
        for answer in ("grounding", "text"):
            turns = int(rng.integers(1, 3))
            turn = made.turn(extents, answer, turns=turns, tokens=made.reserve * turns + spare, images=1)
            ids = walk(turn, rng, codec, "0123456789.\ufffd" if rng.random() < 0.3 else "")
            assert len(ids) <= made.reserve + spare
            assert kind_of(codec.decode_turn(ids)) in {answer, "bad_box", *ALL_TOOLS}


@pytest.mark.parametrize("seed", [2, 21, 25, 37, 45])
def test_it_does_in_vocabularies_that_cut_turns_anywhere(seed: int) -> None:
    check_made_up_vocabulary(seed)


@pytest.mark.slow
def test_it_does_in_many_of_them() -> None:
    for seed in range(100, 200):
        check_made_up_vocabulary(seed)


@pytest.mark.parametrize("prefer", ["abcdefghijklmnopqrstuvwxyz ", "<tolc_a>", "ï¿½é漢\ufffd", '"<', "0123456789"])
def test_a_walk_that_wastes_its_tokens_still_ends_well(prefer: str) -> None:
    rng, made = np.random.default_rng(0), rules(tools=ALL_TOOLS, limits=TurnLimits())
    for tokens in range(made.reserve, made.reserve + 45, 4):
        for answer in ("grounding", "text"):
            ids = walk(made.turn(EXTENTS, answer, turns=1, tokens=tokens, images=1), rng, prefer=prefer)
            assert len(ids) <= tokens
            assert kind_of(CODEC.decode_turn(ids)) in {answer, "bad_box"}


def test_with_the_fewest_tokens_boxes_are_still_free() -> None:
    made = rules()
    seen = set()
    for seed in range(40):
        turn = made.turn(EXTENTS, "grounding", turns=1, tokens=made.reserve, images=0)
        seen.add(CODEC.decode_turn(walk(turn, np.random.default_rng(seed))).partition("bbox")[2])
    assert len(seen) > 25


def test_with_few_tokens_left_a_thought_must_be_closed_and_with_many_it_need_not() -> None:
    made, thought = rules(limits=TurnLimits()), CODEC.encode("<think>red")
    turns = [made.turn(EXTENTS, "grounding", turns=1, tokens=t, images=0) for t in (made.reserve + 1, 200)]
    for index in thought:
        assert all(turn.mask[index] for turn in turns)
        for turn in turns:
            turn.write(index)
    few, many = ([CODEC.decode([int(i)]) for i in np.flatnonzero(turn.mask)] for turn in turns)
    assert {" ", "x", "</think>"} <= set(many)
    assert few
    assert all("</think>" in text for text in few)


@pytest.mark.parametrize("name", ["default", "bytes"])
@pytest.mark.parametrize("spare", [3, 20, 90, 200])
def test_a_thought_may_go_on_as_long_as_an_answer_fits(name: str, spare: int) -> None:
    codec = CODECS[name]
    made = rules(codec, ALL_TOOLS, limits=TurnLimits(1000, 1, 1))
    for answer in ("grounding", "text"):
        turn = made.turn(EXTENTS, answer, turns=2, tokens=2 * made.reserve + spare, images=1)
        ids = walk(turn, np.random.default_rng(0), codec, prefer="x")
        thought = codec.decode(ids).removeprefix("<think>").partition("</think>")[0]
        shortest = (
            made.reserve if answer == "grounding" else len(codec.encode_turn("<think></think><answer>x</answer>"))
        )
        assert len(thought) - len(thought.lstrip("x")) == made.reserve + spare - shortest


# Everything valid is in reach


@pytest.mark.parametrize(
    ("env_id", "box_frame", "zoom", "count"),
    [
        ("MultiImageTiny-v0", "pixel", 0.0, 60),
        ("MultiImageTiny-v0", "norm1000", 0.0, 20),
        ("MultiImageTinyZoom-v0", "pixel", 0.7, 30),
        ("MultiImageQA-v0", "pixel", 0.5, 30),
        ("MultiImageQA-v0", "unit", 0.5, 10),
    ],
)
@pytest.mark.parametrize("agent", ["oracle", "random"])
def test_what_scripted_agents_write_is_in_reach_within_the_budget_of_the_id(
    env_id: str, box_frame: str, zoom: float, count: int, agent: str
) -> None:
    env: Any = gym.make(env_id, box_frame=box_frame, disable_env_checker=True).unwrapped
    made = TurnRules(CODEC, env.tools, box_frame, TurnLimits(), 256)
    scripted: Any = OracleAgent(box_frame, grid=0.001 if box_frame == "unit" else 1, zoom=zoom)
    if agent == "random":
        scripted = RandomAgent(tuple(env.tools.values()), box_frame)
    used = set()
    for trajectory in run_episodes(scripted, [env], range(count)):
        env.reset(options={"task_id": trajectory.task_id})
        answer = "grounding" if isinstance(load_task(trajectory.task_id).truth, Grounding) else "text"
        budget = {"turns": env.max_turns, "tokens": env.max_tokens, "images": env.max_images - len(env.views)}
        for played in trajectory.turns:
            ids, extents = played.action.ids, [view.extent(box_frame) for view in env.views]
            kind = kind_of(CODEC.decode_turn(ids))
            if kind in {answer, "bad_box", *env.tools}:  # the random agent answers every question with a box
                assert accepts(made.turn(extents, answer, **budget), ids), CODEC.decode(ids)
                used.add(kind)
            *_, info = env.step(ids)
            budget = info["budget"]
    assert used & {"grounding", "text"}
    assert bool(used & set(TOOLS)) == bool(env.tools)


def test_what_is_free_may_be_written_in_any_tokens() -> None:
    rng, made = np.random.default_rng(0), rules(limits=TurnLimits())
    texts = [CODEC.decode([index]) for index in range(CODEC.vocab_size)]
    for _ in range(30):
        ids: list[int] = []
        for free, forced in (
            ("the réd 漢 cube", '</think><answer>{"image": '),
            ("1", ', "label": "'),
            ("red cup é", '", "bbox_2d": ['),
            ("12", ", "),
        ):
            ids += [*([] if ids else CODEC.encode("<think>")), *_cut(free, texts, rng), *CODEC.encode(forced)]
        ids += [*CODEC.encode("7, 84, 80"), *CODEC.encode_turn("]}</answer>")]
        assert accepts(made.turn(EXTENTS, "grounding", turns=1, tokens=256, images=0), ids), CODEC.decode(ids)


def _cut(text: str, tokens: Sequence[str], rng: np.random.Generator) -> list[int]:
    """The text in tokens of random lengths; bytes where there is no token of a character."""
    ids: list[int] = []
    while text:
        fitting = [i for i, token in enumerate(tokens) if token and text.startswith(token)]
        chosen = [int(rng.choice(fitting))] if fitting else list(CODEC.encode(text[0]))
        ids += chosen
        text = text.removeprefix(CODEC.decode(chosen))
    return ids


def test_what_json_writes_is_in_reach() -> None:
    made = rules(tools=ALL_TOOLS, limits=TurnLimits())
    box = {"bbox_2d": [0, 12, 56, 112]}
    for arguments, name in (({"image": 3}, "visual_reflection"), ({"image": 2, **box}, "zoom")):
        turn = f"<think>so</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
        assert accepts(made.turn(EXTENTS, "text", **PLENTY), CODEC.encode_turn(turn))
    answer = f"<think></think><answer>{json.dumps({'image': 2, 'label': 'cup', **box})}</answer>"
    assert accepts(made.turn(EXTENTS, "grounding", **PLENTY), CODEC.encode_turn(answer))
    assert not accepts(made.turn(EXTENTS, "text", **PLENTY), CODEC.encode_turn(answer))


# Tools and budgets

CALL = CODEC.encode_turn(
    '<think></think><tool_call>{"name": "visual_reflection", "arguments": {"image": 1}}</tool_call>'
)


@pytest.mark.parametrize(
    ("turns", "tokens", "images", "allowed"),
    [(2, 512, 1, True), (1, 512, 1, False), (2, 512, 0, False), (2, len(CALL) + 11, 1, False)],
)
def test_a_tool_may_be_called_only_where_an_answer_can_follow(
    turns: int, tokens: int, images: int, allowed: bool
) -> None:
    made = rules(tools=ALL_TOOLS)
    assert made.reserve == 12
    assert accepts(made.turn(EXTENTS, "text", turns=turns, tokens=tokens, images=images), CALL) == allowed


def test_a_call_leaves_the_tokens_of_the_shortest_answer() -> None:
    made, rng = rules(tools=ALL_TOOLS), np.random.default_rng(0)
    for tokens in range(2 * made.reserve, 90):
        ids = walk(made.turn(EXTENTS, "text", turns=2, tokens=tokens, images=1), rng, prefer="<tolc_a>")
        assert len(ids) <= tokens - made.reserve


def test_each_later_turn_keeps_the_tokens_of_the_shortest_answer_and_no_turn_is_longer_than_the_longest() -> None:
    made = rules(max_turn_tokens=40)
    assert [made.allowance(turns, 100) for turns in (1, 5, 6, 7, 8)] == [40, 40, 100 - 5 * 12, 100 - 6 * 12, 16]
    assert made.allowance(3, 2) == made.reserve


def test_a_longest_turn_below_the_shortest_answer_is_refused() -> None:
    assert rules(max_turn_tokens=12).reserve == 12
    with pytest.raises(ConfigurationError, match="shortest answer has 12 tokens, a turn 11"):
        rules(max_turn_tokens=11)


def test_a_vocabulary_that_can_write_no_answer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="4 tokens can write no answer"):
        rules(codec_of_pieces("<think>", "</think>", "cup"))


def test_a_vocabulary_that_can_write_boxes_only_is_refused_where_a_text_is_asked_for() -> None:
    made = rules(BOXES_ONLY)
    made.turn(EXTENTS, "grounding", **PLENTY)
    with pytest.raises(ConfigurationError, match="16 tokens can write no text answer"):
        made.turn(EXTENTS, "text", **PLENTY)


@pytest.mark.parametrize("box_frame", BOX_FRAMES)
def test_the_extents_of_images_are_those_of_the_views_that_show_them(box_frame: str) -> None:
    env: Any = gym.make("MultiImageTinyZoom-v0", box_frame=box_frame, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    zoom = {"name": "zoom", "arguments": {"image": 1, "bbox_2d": [0, 0, *env.views[0].extent(box_frame)]}}
    env.step(f"<think></think><tool_call>{json.dumps(zoom)}</tool_call>")
    made = rules(box_frame=box_frame)
    shown = [view.pixels for view in env.views] + [np.zeros((30, 100, 3), np.uint8)]
    expected = [view.extent(box_frame) for view in env.views]
    assert made.extents(shown)[:-1] == expected
    narrow = {"pixel": (100, 30), "norm1000": (1000, 1000), "unit": (1, 1), "qwen2_5_resized": (112, 28)}
    assert made.extents(shown)[-1] == narrow[box_frame]


# Pickling


@pytest.mark.parametrize("tokens", [20, 400])
def test_a_pickled_walk_goes_on_where_it_was(tokens: int) -> None:
    turn = rules().turn(EXTENTS, "grounding", turns=1, tokens=tokens, images=0)
    for index in CODEC.encode("<think>a re"):
        turn.write(index)
    again = pickle.loads(pickle.dumps(turn))
    assert (again.mask == turn.mask).all()
    written = len(turn.ids)
    rest = walk(turn, np.random.default_rng(3))
    assert accepts(again, rest[written:])
    assert len(rest) <= tokens


def test_unless_told_otherwise_a_thought_may_be_as_long_as_the_tokens_of_a_turn_reach() -> None:
    def longest(tokens: int, **limits: Any) -> int:
        return TurnRules(CODEC, {}, max_turn_tokens=tokens, **limits).limits.thought

    assert (longest(48), longest(125), longest(2048)) == (1000, 1000, 16384)
    assert longest(2048, limits=TurnLimits(thought=20)) == 20
    turn = TurnRules(CODEC, {}, max_turn_tokens=1500).turn(((28.0, 28.0),), "text", turns=1, tokens=2000, images=0)
    for index in CODEC.encode("<think>" + "a " * 600):
        assert turn.mask[index]
        turn.write(index)
