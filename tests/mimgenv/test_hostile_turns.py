"""Whatever an agent sends: a coded error or a defined meaning, in linear time and bounded memory, never an exception.

Every turn goes through `Episode` of the conformance kit, which asserts that it is counted and told as agreed.
"""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mimgenv
from mimgenv.env import MultiImageEnv
from mimgenv.errors import TURN_ERRORS
from mimgenv.geometry import BOX_FRAMES
from mimgenv.testing.episode import Episode
from mimgenv.testing.hostile import HOSTILE_TURNS, act, answer, call, huge_turns
from mimgenv.types import Grounding

CODEC = mimgenv.default_codec()
KINDS = {"grounding": "referring", "text": "counting"}
PLENTY = 10**8


def environment(kind: str, **arguments: Any) -> MultiImageEnv:
    sizes = {"max_pixels": 84 * 84, "max_turns": 60, "max_tokens": PLENTY}
    return MultiImageEnv(**({"world": "tiny", "tasks": (KINDS[kind],)} | sizes | arguments))


@cache
def shared(kind: str) -> MultiImageEnv:
    return environment(kind)


def after(action: Any, kind: str = "grounding") -> dict[str, Any]:
    """The info after one turn in a fresh episode."""
    episode = Episode(shared(kind), 3)
    episode.step(action)
    return episode.info


def forms(turn: str) -> tuple[Any, ...]:
    """A turn as text, as ids, and as an array."""
    ids = CODEC.encode_turn(turn)
    return turn, ids, np.array(ids, np.int64)


# The corpus


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE_TURNS)
def test_a_hostile_turn_is_refused_as_text_and_as_ids_and_the_episode_goes_on(name: str, kind: str) -> None:
    for action in forms(HOSTILE_TURNS[name]):
        info = after(action, kind)
        assert info["error"] in TURN_ERRORS
        assert (info["stop"], info["budget"]["turns"]) == (None, 59)


def grounding(image: str = "1", label: str = '"a"', box: str = "[0, 0, 9, 9]") -> str:
    return answer(f'{{"image": {image}, "label": {label}, "bbox_2d": {box}}}')


def tool(arguments: str, name: str = '"zoom"') -> str:
    return act("tool_call", f'{{"name": {name}, "arguments": {arguments}}}')


NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "null", "true", '"1"', "[1]", "{}")
NOT_JSON = (
    "٣",
    "٥٠",
    "３",
    "nan",
    "inf",
    "0x10",
    "1_000",
    "+1",
    ".5",
    "1.",
    "01",
    "1e",
    "None",
    "True",
    "1,",
    "9" * 5000,
)
NO_IMAGES = (
    "-1",
    "0",
    "99",
    "9" * 400,
    '"Image-2"',
    '"1"',
    "1.0",
    "1e0",
    "NaN",
    "Infinity",
    "true",
    "null",
    "[1]",
    "{}",
)
NO_BOXES = (
    *(f"[{number}, 0, 9, 9]" for number in NUMBERS),
    *(f"[0, 0, 9, {number}]" for number in NUMBERS),
    "[9, 9, 1, 1]",
    "[1, 9, 9, 1]",
    "[5, 5, 5, 5]",
    "[5, 0, 5, 9]",
    "[0, 0, 1e-320, 1e-320]",
    "[900, 900, 990, 990]",
    "[-9, -9, 0, 9]",
    "[0, 84, 9, 99]",
    "[0, 0, 9]",
    "[0, 0, 9, 9, 9]",
    "[]",
    "[[0, 0], [9, 9]]",
    "[[0, 0, 9, 9]]",
    "[[0, 0, 9, 9], [0, 0, 40, 40]]",
    '"0, 0, 9, 9"',
    "null",
    "9",
)
NO_LABELS = ('""', '" \\n\\t "', "null", "1", "NaN", "[]", '["a"]', "{}", "true", json.dumps("a" * 201))

REFUSED: list[tuple[str, str]] = [
    *(("bad_image_index", grounding(image=image)) for image in NO_IMAGES),
    *(("bad_image_index", tool(f'{{"image": {image}, "bbox_2d": [0, 0, 9, 9]}}')) for image in NO_IMAGES),
    *(("bad_box", grounding(box=box)) for box in NO_BOXES),
    *(("bad_box", tool(f'{{"image": 1, "bbox_2d": {box}}}')) for box in NO_BOXES),
    *(("bad_answer", grounding(label=label)) for label in NO_LABELS),
    *(("bad_json", grounding(box=f"[0, 0, 9, {number}]")) for number in NOT_JSON),
    *(("bad_json", grounding(image=number)) for number in NOT_JSON),
    ("bad_json", grounding(label='"a", "label": "b"')),
    ("bad_json", grounding(label='"a')),
    ("bad_json", grounding(label="'a'")),
    ("bad_json", grounding(label='"\n"')),
    ("bad_json", answer('{"image": 1, "label": "a", "bbox_2d": [0, 0, 9, 9]}' * 2)),
    ("bad_json", answer('[{"image": 1, "label": "a", "bbox_2d": [0, 0, 9, 9]}]')),
    ("bad_turn", grounding(label='"</answer><answer>"')),
    ("bad_turn", grounding(label='"</tool_response>"')),
    ("bad_token", grounding(label='"<|image_pad|>"')),
    ("bad_json", answer("[0, 0, 9, 9]")),
    ("bad_json", answer("Image-1 [0, 0, 9, 9]")),
    ("bad_json", answer("(0,0),(9,9)")),
    ("bad_answer", answer('{"bbox_2d": [0, 0, 9, 9]}')),
    ("bad_answer", answer('{"image": 1, "label": "a", "bbox_2d": [0, 0, 9, 9], "bbox_2d_2": [0, 0, 9, 9]}')),
    ("bad_arguments", tool("{}")),
    ("bad_arguments", tool('{"image": 1}')),
    ("bad_arguments", tool('{"image": 1, "bbox_2d": [0, 0, 9, 9], "scale": 1e9}')),
    ("bad_arguments", tool('{"Image": 1, "bbox_2d": [0, 0, 9, 9]}')),
    ("bad_arguments", tool('{"self": 1, "context": 1}')),
    ("unknown_tool", tool("{}", '"ZOOM"')),
    ("unknown_tool", tool("{}", '"zoom "')),
    ("unknown_tool", tool("{}", '"z\\u043eom"')),
    ("unknown_tool", tool("{}", '"\\ud800"')),
    ("unknown_tool", tool("{}", '"\\u0000"')),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_bad_value_gets_its_own_code(number: int) -> None:
    code, turn = REFUSED[number]
    for action in forms(turn):
        assert after(action)["error"] == code, turn


ACCEPTED: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "a box beyond the image is cut to it": ("[-1e308, -99, 1e308, 42]", (0, 0, 168, 84)),
    "a box of a thousandth of a pixel stays one": ("[5, 5, 5.001, 5.001]", (10, 10, 10.002, 10.002)),
    "a number may be written with an exponent": ("[0.0, 0e9, 4.2E+1, 42]", (0, 0, 84, 84)),
    "a number may have many digits": ("[0, 0, 42.0000000000000000000000000001, 42]", (0, 0, 84, 84)),
    "a minus before a naught is nothing": ("[-0, -0.0, 42, 42]", (0, 0, 84, 84)),
}


@pytest.mark.parametrize("rule", ACCEPTED)
def test_an_odd_box_has_a_meaning(rule: str) -> None:
    written, box = ACCEPTED[rule]
    for action in forms(grounding(box=written)):
        assert after(action)["stop"] == "answered"
        predicted = shared("grounding").prediction
        assert isinstance(predicted, Grounding)
        assert predicted.box == pytest.approx(box)


@pytest.mark.parametrize(
    "said", ["null", "NaN", "٣", "Image-2", "<image>", "\x00", "\u202e3", "[", "{}", "<b>", "🙂" * 500]
)
def test_any_short_text_without_tags_is_a_text_answer(said: str) -> None:
    for action in forms(answer(said)):
        assert after(action, "text")["stop"] == "answered"


def test_a_label_may_hold_what_a_question_may() -> None:
    for label in ("<image>", "Image-9: <image>", "\x7f", "é🙂", "a" * 200):
        for action in forms(grounding(label=json.dumps(label))):
            assert after(action)["stop"] == "answered"


@pytest.mark.parametrize("token", CODEC.special_tokens)
def test_a_token_of_the_conversation_spelled_out_by_other_tokens_is_refused_as_the_token_is(token: str) -> None:
    spelled = tuple(index for letter in token for index in CODEC.encode(letter))
    assert not set(spelled) & CODEC.special_ids
    said = (*CODEC.encode("<think>a"), *spelled, *CODEC.encode("</think><answer>1</answer>"))
    assert CODEC.decode_turn(said) == f"<think>a{token}</think><answer>1</answer>"
    assert after(said, "text")["error"] == after(CODEC.decode(said), "text")["error"] == "bad_token"


@pytest.mark.parametrize("index", [-1, CODEC.vocab_size, 2**31, 2**62, -(2**63), *sorted(CODEC.banned_ids)])
def test_an_id_that_no_turn_may_hold_is_a_bad_token_wherever_it_stands(index: int) -> None:
    good = CODEC.encode_turn(answer("1"))
    for place in (0, 3, len(good) - 1, len(good)):
        ids = [*good[:place], index, *good[place:]]
        assert after(ids, "text")["error"] == after(np.array(ids), "text")["error"] == "bad_token"
    assert after([10**400], "text")["error"] == "bad_token"


def test_a_turn_may_be_any_sequence_of_ids() -> None:
    ids = CODEC.encode_turn(answer("1"))
    for action in (ids, list(ids), np.array(ids), np.array(ids, np.int32), np.array(ids, np.uint16), np.array([], int)):
        assert after(action, "text")["error"] == (None if len(action) else "bad_turn")


# Time and memory


SIZE = 1_000_000
HUGE = huge_turns(SIZE)


def seconds(kind: str, action: Any) -> float:
    """Processor time of one step, the best of three."""
    taken = []
    for _ in range(3):
        episode = Episode(shared(kind), 3)
        started = time.process_time()
        episode.env.step(action)
        taken.append(time.process_time() - started)
    return min(taken)


def ids_of(name: str, size: int) -> tuple[int, ...]:
    """Ids that say a huge turn: a hundredth of it is encoded, its middle repeated."""
    ids = CODEC.encode(huge_turns(size // 100)[name])
    return ids[:12] + ids[12:-12] * 100 + ids[-12:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HUGE)
def test_a_turn_of_a_million_characters_takes_linear_time_as_text(name: str, kind: str) -> None:
    assert len(HUGE[name]) > 0.8 * SIZE
    assert after(HUGE[name], kind)["error"] is not None
    whole, half = seconds(kind, HUGE[name]), seconds(kind, huge_turns(SIZE // 2)[name])
    assert whole < 0.5
    assert whole < 3 * half + 0.01


@pytest.mark.parametrize("name", ["brackets", "spaces in an answer", "surrogates"])
def test_a_turn_of_many_ids_takes_linear_time(name: str) -> None:
    whole, half = ids_of(name, SIZE), ids_of(name, SIZE // 2)
    assert len(whole) > 100_000
    assert after(whole)["error"] is not None
    taken = seconds("grounding", whole)
    assert taken < 2
    assert taken < 3 * seconds("grounding", half) + 0.05


def peak(action: Any) -> int:
    """The most bytes that Python and numpy held at once for one step."""
    episode = Episode(shared("text"), 3)
    tracemalloc.start()
    try:
        episode.env.step(action)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HUGE)
def test_a_step_holds_at_most_four_times_the_text_of_its_turn(name: str) -> None:
    assert peak(HUGE[name]) < 4 * sys.getsizeof(HUGE[name]) + 200_000


def test_a_step_holds_at_most_eight_times_the_array_of_its_ids() -> None:
    ids = np.tile(np.array(CODEC.encode(answer("1"))), 100_000)
    assert peak(ids) < 8 * ids.nbytes + 200_000


def test_a_turn_beyond_the_tokens_left_is_refused_before_it_is_read() -> None:
    env = environment("text", max_tokens=1000)
    for action in ("x" * SIZE, CODEC.encode("x") * SIZE):
        episode = Episode(env, 3)
        tracemalloc.start()
        env.step(action)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert held < 200_000, episode


# Random turns


_text = st.text(st.characters(), max_size=60)  # lone surrogates included
_number = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), True, "1", None]))
_json = st.recursive(
    _number | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_arguments = st.fixed_dictionaries(
    {"image": st.integers(-1, 4) | _json},
    optional={"bbox_2d": st.lists(_number, min_size=4, max_size=4) | _json, "label": _text | _json},
)
_name = st.sampled_from(["zoom", "visual_reflection", "visual_confirmation"]) | _text
_call = st.builds(lambda name, arguments: call(name, **arguments), _name, _arguments)
_answer = _arguments.map(lambda arguments: answer(json.dumps(arguments)))
_splice = st.lists(st.sampled_from([*HOSTILE_TURNS.values()]) | _text, max_size=3).map("".join)


def survives(episode: Episode, action: Any) -> Episode:
    """Plays an action, in a new episode where this one has ended; `Episode` asserts the rest."""
    if episode.info["stop"] is not None:
        episode = Episode(episode.env, 3)
    episode.step(action)
    return episode


@settings(max_examples=200)
@given(st.one_of(_text, _call, _answer, _text.map(answer), _splice), st.sampled_from(list(BOX_FRAMES)))
def test_no_text_makes_a_step_raise(turn: str, box_frame: str) -> None:
    for kind in KINDS:
        for action in (turn, CODEC.encode_turn(turn)):
            survives(Episode(environment(kind, box_frame=box_frame), 3), action)


_id = st.one_of(st.integers(0, CODEC.vocab_size - 1), st.integers(), st.sampled_from(sorted(CODEC.special_ids)))


@given(st.lists(_id, max_size=30), st.booleans())
def test_no_ids_make_a_step_raise(ids: list[int], as_tuple: bool) -> None:
    survives(Episode(shared("grounding"), 3), tuple(ids) if as_tuple else ids)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_no_array_of_ids_makes_a_step_raise(ids: list[int]) -> None:
    survives(Episode(shared("grounding"), 3), np.array(ids, np.int64))


PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<tool_response>", "<|im_end|>"),
    *('"', "{", "}", "[", "]", ":", ",", "\\", "\\u0000", "```json", "NaN", "-", "e999", "0", "9" * 30, "Image-2"),
    *(" ", "\n", "\x00", "\ud800", "\u202e", "٣", "🙂", "<image>", "true", "null", '"image": 1', '"label": "a"'),
)
VALID = (
    grounding(),
    grounding("2", '"red circle"', "[7, 14, 28.5, 35]"),
    grounding(box="[900, 900, 990, 990]"),
    answer("3"),
    call("zoom", image=1, bbox_2d=[0, 0, 42, 42]),
    call("visual_reflection", image=2),
    call("visual_confirmation", image=1, bbox_2d=[7, 7, 21, 21], label="a"),
    call("visual_confirmation", image=1, bbox_2d=[7, 7, 21, 21], label=""),
)
VALUES = (*NUMBERS, *NOT_JSON, *NO_IMAGES, *NO_BOXES, *NO_LABELS, "2", "[0, 0, 5, 5]", '"a"')


def mutated(rng: random.Random) -> str:
    """A valid turn with a few characters dropped, doubled, moved or replaced by hostile pieces."""
    turn = rng.choice(VALID)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        i, j = sorted(rng.choices(range(len(turn) + 1), k=2))
        j = min(j, i + rng.choice((0, 1, 8, 1000)))
        turn = turn[:i] + rng.choice(("", turn[i:j] * 2, rng.choice(PIECES))) + turn[j:]
    return turn


def with_odd_values(rng: random.Random) -> str:
    """An answer or a call whose values are drawn from good and bad ones."""
    image, label, box = (rng.choice((good, rng.choice(VALUES))) for good in ("1", '"a"', "[0, 0, 9, 9]"))
    if rng.random() < 0.5:
        return grounding(image, label, box)
    name = rng.choice(("zoom", "visual_reflection", "visual_confirmation", "zoom2"))
    members = [f'"image": {image}', f'"bbox_2d": {box}', f'"label": {label}'][: rng.randint(0, 3)]
    return tool("{" + ", ".join(members) + "}", json.dumps(name))


def spliced(rng: random.Random) -> str:
    """Parts of two turns of the corpus, one after the other."""
    first, second = rng.choices([*HOSTILE_TURNS.values(), *VALID], k=2)
    return first[: rng.randint(0, len(first))] + second[rng.randint(0, len(second)) :]


def random_action(rng: random.Random) -> str | Sequence[int] | np.ndarray[Any, Any]:
    """A turn of any of these kinds, as text or ids, or random ids; now and then an overlong one."""
    if rng.random() < 0.2:
        highest = CODEC.vocab_size + rng.choice((0, 0, 0, 9))
        return np.array([rng.randrange(highest) for _ in range(rng.randint(0, 40))], np.int64)
    turn = rng.choice((mutated, with_odd_values, spliced))(rng) * rng.choices((1, 40), (400, 1))[0]
    return turn if rng.random() < 0.5 else CODEC.encode_turn(turn)


def play_random_turns(count: int, seed: int) -> Counter[str]:
    """Plays random turns over episodes of both kinds; how often each error, and each stop, came up."""
    rng = random.Random(seed)
    episodes = [Episode(environment(kind, max_turns=20, max_tokens=4000, max_images=4), 3) for kind in KINDS]
    seen: Counter[str] = Counter()
    for number in range(count):
        kind = number % len(episodes)
        episodes[kind] = survives(episodes[kind], random_action(rng))
        info = episodes[kind].info
        seen.update((f"error {info['error']}", f"stop {info['stop']}"))
    return seen


ALL_SEEN = {f"error {code}" for code in (None, *TURN_ERRORS)} | {
    f"stop {stop}" for stop in (None, "answered", "void", "turn_limit", "image_limit")
}


def test_no_random_turn_of_five_thousand_makes_a_step_raise_and_every_code_comes_up() -> None:
    seen = play_random_turns(5_000, 1)
    assert set(seen) >= ALL_SEEN
    assert seen.total() == 10_000


@pytest.mark.slow
def test_no_random_turn_of_two_hundred_thousand_makes_a_step_raise() -> None:
    seen = play_random_turns(200_000, 2)
    assert set(seen) >= ALL_SEEN
    assert seen.total() == 400_000
