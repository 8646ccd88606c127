"""One token per step, and the episode as arrays: the form changes, what a turn does and what it is worth do not."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from tokenizers import AddedToken, Tokenizer, decoders, models

import mimgenv
from mimgenv.codec import Codec
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError
from mimgenv.grammar import TurnLimits
from mimgenv.tokens import ArrayLayout, FixedArrays, TokenActions
from mimgenv.tools import resize
from mimgenv.types import Grounding, Image, Task

CODEC = mimgenv.default_codec()
V, END = CODEC.vocab_size, CODEC.end_ids[0]
SHORT = TurnLimits(thought=8, label=8, text=8)
ZOOM = '<think>so</think><tool_call>{"name": "zoom", "arguments": {"image": 2, "bbox_2d": [0, 0, 42, 42]}}</tool_call>'
ANSWER = '<think></think><answer>{"image": 3, "label": "red circle", "bbox_2d": [0, 0, 42, 42]}</answer>'
QUESTION = "Où est la tasse ☕ ? 红色方块在哪里？"


def token_env(env_id: str = "MultiImageTinyZoom-v0", **arguments: Any) -> TokenActions:
    ours = {name: arguments.pop(name) for name in ("limits", "max_turn_tokens", "skip_forced") if name in arguments}
    return TokenActions(gym.make(env_id, disable_env_checker=True, **arguments), **ours)


def write(env: gym.Env[Any, Any], ids: Sequence[int]) -> tuple[Any, ...]:
    """Steps through the ids; the result of the last step."""
    result: tuple[Any, ...] = ()
    for index in ids:
        result = env.step(index)
    return result


def picture(width: int, height: int, shade: int) -> Image:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, np.full_like(x, shade)], axis=2).astype(np.uint8)


class Served:
    """A source of one question that is not ASCII, in two images of different sizes."""

    task_types = ("made",)

    def __len__(self) -> int:
        return 1

    def task(self, seed: int) -> Task:
        images = (picture(112, 84, seed % 7), picture(56, 140, 9))
        truth = Grounding(2, "tasse", (7.0, 14.0, 42.0, 70.0))
        return Task(f"made:{seed}", "made", images, QUESTION, truth, "so", ((), ()))


def served(**arguments: Any) -> MultiImageEnv:
    return MultiImageEnv(source=Served(), **{"instructions": "none", "max_images": 4} | arguments)


# Masks


@pytest.mark.parametrize(
    ("env_id", "arguments", "episodes"),
    [
        ("MultiImageTiny-v0", {}, 40),
        ("MultiImageTiny-v0", {"tasks": "qa", "limits": SHORT}, 20),
        ("MultiImageTinyZoom-v0", {}, 25),
        ("MultiImageTinyZoom-v0", {"limits": SHORT, "max_tokens": 512, "box_frame": "unit", "max_turns": 4}, 15),
        ("MultiImageTinyZoom-v0", {"limits": SHORT, "max_tokens": 512, "box_frame": "norm1000", "max_images": 3}, 15),
        ("MultiImageQA-v0", {"limits": SHORT}, 8),
        ("MultiImageQA-v0", {"limits": SHORT, "box_frame": "qwen2_5_resized", "skip_forced": True}, 6),
    ],
)
def test_every_masked_random_walk_ends_in_turns_that_are_carried_out_unless_a_box_is_inverted(
    env_id: str, arguments: dict[str, Any], episodes: int
) -> None:
    turns = masked_play(token_env(env_id, **arguments), range(episodes))
    assert set(turns) <= {None, "bad_box"}
    assert turns[None] >= episodes // 3


def masked_play(env: TokenActions, seeds: Sequence[int]) -> Counter[str | None]:
    """How often each error code came, in random episodes under the masks."""
    rng, errors = np.random.default_rng(0), Counter[str | None]()
    for seed in seeds:
        env.reset(seed=seed)
        done = False
        while not done:
            played = len(env.turns)
            _, _, terminated, truncated, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
            done = terminated or truncated
            assert info["error"] is None or len(env.turns) > played
            errors.update([info["error"]] * (len(env.turns) - played))
        assert info["stop"] in {"answered", "void", "turn_limit"}
        assert info["stop"] != "turn_limit" or "tool_call" in CODEC.decode(env.turns[-1])
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("box_frame", ["pixel", "norm1000", "unit", "qwen2_5_resized"])
def test_thousands_of_masked_walks_do(box_frame: str) -> None:
    turns = Counter[str | None]()
    for env_id, episodes in (("MultiImageTiny-v0", 1000), ("MultiImageTinyZoom-v0", 600), ("MultiImageQA-v0", 150)):
        for limits in (SHORT, TurnLimits()):
            turns += masked_play(token_env(env_id, limits=limits, box_frame=box_frame), range(episodes))
    assert set(turns) == {None, "bad_box"}
    assert sum(turns.values()) > 4000


def test_the_mask_of_gymnasium_and_that_of_sb3_are_one_and_are_new_each_time() -> None:
    env = token_env()
    _, info = env.reset(seed=0)
    space, seen = env.action_space, []
    space.seed(0)
    for _ in range(30):
        mask = info["action_mask"]
        assert (mask.dtype, mask.shape) == (np.int8, (V,))
        np.testing.assert_array_equal(mask.astype(bool), env.action_masks())
        assert 0 < mask.sum() < V
        seen += [mask, env.action_masks()]
        *_, info = env.step(space.sample(mask=mask))
        if info["stop"]:
            break
    assert not any(np.shares_memory(a, b) for a, b in itertools.pairwise(seen))
    env.reset(seed=0)
    for mask in (env.action_masks(), *seen):
        mask[:] = 0
    assert env.action_masks().any()


def test_the_last_turn_offers_no_tool_and_neither_does_a_full_budget_of_images() -> None:
    opening = CODEC.encode("<think></think>")
    for arguments, offered in (({}, True), ({"max_turns": 1}, False), ({"max_images": 2}, False)):
        env = token_env(**arguments)
        env.reset(seed=0)
        write(env, opening)
        texts = {CODEC.decode([int(index)]) for index in np.flatnonzero(env.action_masks())}
        assert any(text.startswith("<tool") for text in texts) == offered, texts
    env = token_env()
    env.reset(seed=0)
    write(env, [*CODEC.encode_turn(ZOOM), *opening])
    texts = {CODEC.decode([int(index)]) for index in np.flatnonzero(env.action_masks())}
    assert not any(text.startswith("<tool") for text in texts)


# Turns


@pytest.mark.parametrize("turns", [(ZOOM, ANSWER), (ANSWER, ANSWER), ("nonsense", ZOOM)])
def test_a_turn_token_by_token_does_what_the_whole_turn_does(turns: tuple[str, ...]) -> None:
    whole, single = gym.make("MultiImageTinyZoom-v0"), token_env()
    observation, info = whole.reset(seed=5)
    observation_too, info_too = single.reset(seed=5)
    for turn in (None, *turns):
        paid: Any = None
        paid_too: Any = None
        if turn is not None:
            ids = CODEC.encode_turn(turn)
            observation, *paid, info = whole.step(ids)
            observation_too, *paid_too, info_too = write(single, ids)
            assert single.turns[-1] == ids
        assert observation["text"] == observation_too["text"]
        assert [a.tobytes() for a in observation["images"]] == [a.tobytes() for a in observation_too["images"]]
        assert (paid, info) == (paid_too, {k: v for k, v in info_too.items() if k != "action_mask"})


def test_a_step_within_a_turn_pays_nothing_and_shows_nothing_new() -> None:
    env = token_env()
    _, first = env.reset(seed=1)
    ids = CODEC.encode_turn("nonsense")
    for index in ids[:-1]:
        observation, reward, terminated, truncated, info = env.step(index)
        assert (observation, reward, terminated, truncated) == ({"images": (), "text": ""}, 0.0, False, False)
        assert info.keys() == first.keys()
        assert {k: v for k, v in info.items() if k != "action_mask"} == {
            k: v for k, v in first.items() if k != "action_mask"
        }
    observation, *_, info = env.step(ids[-1])
    assert (info["error"], info["budget"]["turns"]) == ("bad_turn", 1)
    assert "bad_turn" in observation["text"]
    *_, info = env.step(int(np.argmax(env.action_masks())))
    assert (info["error"], info["budget"]["turns"]) == (None, 1)


def test_what_info_holds_is_new_at_every_step() -> None:
    env = token_env()
    _, info = env.reset(seed=0)
    info["budget"]["turns"], info["reward_parts"]["iou"] = 99, 99.0
    *_, info = env.step(CODEC.encode("<think>")[0])
    assert (info["budget"]["turns"], info["reward_parts"]["iou"]) == (2, 0.0)


# What masks do not allow


def test_a_token_outside_the_mask_is_written_and_every_token_is_legal_to_the_end_of_that_turn() -> None:
    env = token_env()
    env.reset(seed=5)
    stray = CODEC.encode("x")[0]
    assert not env.action_masks()[stray]
    pad = CODEC.tokenizer.token_to_id("<|image_pad|>")
    for index in (stray, V - 1, pad):
        assert write(env, [index])[1:4] == (0.0, False, False)
        assert env.action_masks().all()
    observation, *_, info = env.step(END)
    assert info["error"] == "bad_token" or "Error" in observation["text"]
    assert env.turns == [(stray, V - 1, pad, END)]
    assert 0 < env.action_masks().sum() < V


def test_a_turn_that_masks_do_not_hold_but_the_parser_reads_is_carried_out() -> None:
    env = token_env()
    env.reset(seed=5)
    loose = ' <think>so</think>\n<answer>```json\n{"bbox_2d": [0, 0, 9, 9], "label": "a", "image": 1}```</answer>'
    _, reward, terminated, _, info = write(env, CODEC.encode_turn(loose))
    assert (terminated, info["error"], info["reward_parts"]["format"]) == (True, None, 1.0)
    assert reward >= 0.5


@pytest.mark.parametrize("skip_forced", [False, True])
def test_random_tokens_without_masks_play_whole_episodes_in_turns_of_bounded_length(skip_forced: bool) -> None:
    rng = np.random.default_rng(0)
    env = token_env("MultiImageQA-v0", max_turn_tokens=30, max_turns=4, skip_forced=skip_forced)
    lengths: list[int] = []
    for seed in range(4):
        env.reset(seed=seed)
        info: dict[str, Any] = {"stop": None}
        while info["stop"] is None:
            index = rng.integers(-3, V + 3) if rng.random() < 0.95 else END
            *_, info = env.step(index)
        assert info["stop"] == "void"
        lengths += map(len, env.turns)
    assert max(lengths) == 30
    assert len(lengths) == 16


def test_the_longest_turn_is_played_without_an_end_of_turn_token() -> None:
    env = token_env(max_turn_tokens=40)
    env.reset(seed=5)
    start, *rest = CODEC.encode(ANSWER.replace('"image": 3', '"image": 1'))
    padded = [start, *[CODEC.encode("x")[0]] * (39 - len(rest)), *rest]
    *_, terminated, _, info = write(env, padded)
    assert (terminated, info["stop"], len(env.turns[0])) == (True, "answered", 40)


def test_a_turn_never_exceeds_the_tokens_left() -> None:
    env = token_env(max_tokens=64)
    env.reset(seed=0)
    stop = None
    while stop is None:
        *_, info = env.step(5)
        assert info["error"] != "too_long"
        stop = info["stop"]
    assert [len(turn) for turn in env.turns] == [64 - env.rules.reserve, env.rules.reserve]


# Forced tokens


def test_what_is_forced_may_be_written_unasked_and_the_turns_are_the_same() -> None:
    asked, unasked = token_env(), token_env(skip_forced=True)
    turns = [CODEC.encode_turn(turn) for turn in (ZOOM, ANSWER)]
    asked.reset(seed=5)
    unasked.reset(seed=5)
    steps = 0
    for ids in turns:
        result = write(asked, ids)
        played = len(unasked.turns)
        while len(unasked.turns) == played:
            assert unasked.action_masks().sum() > 1
            result_too = unasked.step(ids[len(unasked.turn)])
            steps += 1
        assert unasked.turns[-1] == ids
        assert result[1:4] == result_too[1:4]
        assert result[4]["reward_parts"] == result_too[4]["reward_parts"]
    assert steps < sum(map(len, turns)) - 6


def test_without_the_option_every_token_is_asked_for() -> None:
    env = token_env()
    env.reset(seed=5)
    assert env.turn == ()
    for count, index in enumerate(CODEC.encode("<think>so</think>"), 1):
        env.step(index)
        assert len(env.turn) == count


def test_a_turn_that_is_forced_whole_still_takes_a_step() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<|im_end|>"])
    whole = '<think></think><answer>{"image": 1, "label": "?", "bbox_2d": [0, 0, 7, 7]}</answer>'
    pieces = ("<think>", '</think><answer>{"image": ', '1, "label": "', "?", '", "bbox_2d": [', "0, ", "7]}</answer>")
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    env = token_env("MultiImageTiny-v0", codec=Codec(tokenizer), skip_forced=True, limits=TurnLimits(0, 1, 1))
    env.reset(seed=0)
    for turn in (0, 1):
        assert len(env.turns) == turn
        assert env.unwrapped.codec.decode(env.turn) == whole.replace("7, 7", "0, 7")  # type: ignore[attr-defined]
        *_, info = env.step(int(np.argmax(env.action_masks())))
    assert (info["stop"], len(env.turns)) == ("void", 2)


# Construction


def test_a_budget_that_cannot_hold_an_answer_in_each_turn_is_refused() -> None:
    assert token_env("MultiImageTiny-v0", max_tokens=24).rules.reserve == 12
    with pytest.raises(ConfigurationError, match="2 turns of at least 12 tokens do not fit into max_tokens 23"):
        token_env("MultiImageTiny-v0", max_tokens=23)
    with pytest.raises(ConfigurationError, match="a turn 11"):
        token_env(max_turn_tokens=11)


def test_only_our_environment_can_be_wrapped() -> None:
    with pytest.raises(ConfigurationError, match="CartPoleEnv is not a MultiImageEnv"):
        TokenActions(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="no TokenActions in"):
        FixedArrays(gym.make("MultiImageTiny-v0"))


def test_a_step_without_an_episode_is_refused() -> None:
    env = TokenActions(served())
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    write(env, CODEC.encode_turn(ANSWER.replace('"image": 3', '"image": 1')))
    assert env.action_masks().all()  # a vector environment asks once more before it resets
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_a_spec_makes_the_wrapped_environment_again() -> None:
    env = FixedArrays(token_env(limits=SHORT, max_turn_tokens=50, skip_forced=True), 42, 56, 32)
    again: Any = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.layout == env.layout == ArrayLayout(6, 42, 56, 32, 50, V)
    assert (again.env.rules.limits, again.env.rules.skip_forced) == (SHORT, True)
    first, second = env.reset(seed=3)[0], again.reset(seed=3)[0]
    assert raw(first) == raw(second)


@pytest.mark.parametrize("duplicate", [lambda env: cloudpickle.loads(cloudpickle.dumps(env)), copy.deepcopy])
@pytest.mark.parametrize("max_tokens", [128, 40])
def test_a_copy_of_an_environment_within_a_turn_goes_on_alike(duplicate: Callable[[Any], Any], max_tokens: int) -> None:
    env = FixedArrays(token_env(max_tokens=max_tokens))
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(5):
        env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
    again = duplicate(env)
    done = False
    while not done:
        np.testing.assert_array_equal(env.action_masks(), again.action_masks())
        index = int(rng.choice(np.flatnonzero(env.action_masks())))
        (observation, *paid, info), (observation_too, *paid_too, info_too) = env.step(index), again.step(index)
        assert (raw(observation), paid, info["error"]) == (raw(observation_too), paid_too, info_too["error"])
        done = paid[1] or paid[2]


# Arrays


def raw(observation: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    """An observation as bytes, to be compared."""
    return {key: (array.dtype.str, array.shape, array.tobytes()) for key, array in observation.items()}


def text_of(observation: dict[str, np.ndarray], key: str) -> str:
    count = int(observation["lengths"][{"text": 1, "turn": 2}[key]])
    assert (observation[key][count:] == V).all()
    assert (observation[key][:count] < V).all()
    return CODEC.decode(observation[key][:count].tolist())


def test_every_step_shows_all_images_what_was_said_and_the_turn_being_written() -> None:
    env = FixedArrays(TokenActions(served()), 140, 140, text_tokens=400)
    observation, _ = env.reset(seed=3)
    images, said = [picture(112, 84, 3), picture(56, 140, 9)], f"Image-1: <image>\nImage-2: <image>\n{QUESTION}"
    check(observation, images, said, "")
    for turn, reply in ((ZOOM, "Image-3: <image>"), ("nonsense", ""), (ANSWER, "")):
        ids = CODEC.encode_turn(turn)
        for count in range(1, len(ids)):
            observation, *_ = env.step(ids[count - 1])
            check(observation, images, said, CODEC.decode(ids[:count]))
        observation, *_, info = env.step(ids[-1])
        inner: Any = env.unwrapped
        images = [view.pixels for view in inner.views]
        assert len(images) == 3
        reply = reply or (f"Error ({info['error']}): " if info["error"] else "")
        assert text_of(observation, "text").startswith(said + CODEC.decode(ids) + reply)
        said = text_of(observation, "text")
        check(observation, images, said, "")
    assert info["stop"] == "answered"


def check(observation: dict[str, np.ndarray], images: Sequence[Image], text: str, turn: str) -> None:
    assert observation["lengths"][0] == len(images)
    assert observation["sizes"].tolist() == [s for i in images for s in i.shape[1::-1]] + [0] * 2 * (4 - len(images))
    for number in range(1, 5):
        slot = observation[f"image_{number}"]
        if number > len(images):
            assert not slot.any()
            continue
        height, width = images[number - 1].shape[:2]
        np.testing.assert_array_equal(slot[:height, :width], images[number - 1])
        assert not slot[height:].any()
        assert not slot[:, width:].any()
    assert (text_of(observation, "text"), text_of(observation, "turn")) == (text, turn)


def test_the_observation_space_holds_every_observation_and_says_what_they_are() -> None:
    env = FixedArrays(token_env(), 42, 56, 512)
    space: Any = env.observation_space
    rng = np.random.default_rng(0)
    assert set(space.spaces) == {*(f"image_{n}" for n in range(1, 7)), "sizes", "text", "turn", "lengths"}
    assert (space["image_6"].shape, space["sizes"].shape, space["text"].shape) == ((42, 56, 3), (12,), (512,))
    observation, _ = env.reset(seed=0)
    while True:
        assert space.contains(observation)
        observation, _, terminated, truncated, _ = env.step(rng.choice([-2, V, V + 2, int(rng.integers(V))]))
        if terminated or truncated:
            break
    assert space.contains(observation)
    said = observation["text"][: observation["lengths"][1]]
    assert (said == V).any()  # in place of ids out of range


def test_an_image_larger_than_its_slot_is_shrunk_in_proportion_and_its_size_is_told() -> None:
    env = FixedArrays(TokenActions(served()), 70, 56)
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation["image_1"][:42], resize(picture(112, 84, 3), 56, 42))
    np.testing.assert_array_equal(observation["image_2"][:, :28], resize(picture(56, 140, 9), 28, 70))
    assert not observation["image_1"][42:].any()
    assert not observation["image_2"][:, 28:].any()
    assert observation["sizes"].tolist() == [112, 84, 56, 140, 0, 0, 0, 0]


def test_of_a_long_text_the_end_is_shown() -> None:
    env = FixedArrays(TokenActions(served()), text_tokens=9)
    observation, _ = env.reset(seed=3)
    said = CODEC.encode(f"Image-1: <image>\nImage-2: <image>\n{QUESTION}")
    assert observation["text"].tolist() == list(said[-9:])
    assert observation["lengths"].tolist() == [2, 9, 0]


def test_arrays_handed_out_are_never_used_again() -> None:
    env = FixedArrays(TokenActions(served()))
    observation, _ = env.reset(seed=3)
    before = raw(observation)
    later, *_ = env.step(CODEC.encode("<think>")[0])
    assert not any(np.shares_memory(observation[key], later[key]) for key in observation)
    for array in observation.values():
        array[:] = 0
    assert raw(env.reset(seed=3)[0]) == before


def test_forced_tokens_are_shown_before_the_first_step() -> None:
    env = FixedArrays(TokenActions(served(), skip_forced=True))
    assert text_of(env.reset(seed=3)[0], "turn") == "<think>"


# Checkers


CHECKED = [("MultiImageTiny-v0", {}), ("MultiImageTinyZoom-v0", {"skip_forced": True}), ("MultiImageQA-v0", {})]


@pytest.mark.parametrize(("env_id", "arguments"), CHECKED)
def test_gymnasiums_checker_says_no_more_than_that_the_environment_is_wrapped(
    env_id: str, arguments: dict[str, Any]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(FixedArrays(TokenActions(gym.make(env_id), **arguments)))
    assert len(caught) == 1
    assert "different from the unwrapped" in str(caught[0].message)


@pytest.mark.parametrize(("env_id", "arguments"), CHECKED)
def test_the_checker_of_sb3_has_nothing_to_say(env_id: str, arguments: dict[str, Any]) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install 'mimgenv[sb3]'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(FixedArrays(token_env(env_id, **arguments)))


# Vectors

MODES = [
    ("sync", True, "fork"),
    *(("async", shared, context) for shared in (True, False) for context in ("fork", "spawn")),
]


def arrays_env(skip_forced: bool = False) -> FixedArrays:
    return FixedArrays(TokenActions(served(max_turns=3), TurnLimits(2, 2, 2), 48, skip_forced), 56, 56, 64)


@pytest.mark.parametrize(("mode", "shared", "context"), MODES)
def test_in_a_vector_every_environment_shows_what_it_shows_alone(mode: str, shared: bool, context: str) -> None:
    seeds = [3, 4]
    makers = [arrays_env, partial(arrays_env, skip_forced=True)]
    vector: Any = SyncVectorEnv(makers) if mode == "sync" else AsyncVectorEnv(makers, shared, context=context)
    alone = [maker() for maker in makers]
    try:
        play_beside(vector, alone, seeds)
    finally:
        vector.close()


def play_beside(vector: Any, alone: Sequence[Any], seeds: list[int]) -> None:
    """Plays the same tokens in a vector and alone, over several episodes, and compares all that comes back."""
    rng, ended = np.random.default_rng(0), [False] * len(alone)
    observations, infos = vector.reset(seed=seeds)
    ours = [env.reset(seed=seed) for env, seed in zip(alone, seeds, strict=True)]
    total = 0
    for _ in range(150):
        for i, (observation, *_, info) in enumerate(ours):
            assert raw({key: array[i] for key, array in observations.items()}) == raw(observation)
            np.testing.assert_array_equal(infos["action_mask"][i], info["action_mask"])
        actions = np.array([rng.choice(np.flatnonzero(env.action_masks())) for env in alone])
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        # a vector resets in the step after the last
        ours = [
            (*env.reset()[:1], 0.0, False, False, env_info(env)) if over else env.step(int(action))
            for env, action, over in zip(alone, actions, ended, strict=True)
        ]
        assert rewards.tolist() == [step[1] for step in ours]
        ended = [bool(step[2] or step[3]) for step in ours]
        assert (terminated | truncated).tolist() == ended
        total += sum(ended)
    assert total >= 4


def env_info(env: FixedArrays) -> dict[str, Any]:
    return {"action_mask": env.action_masks().astype(np.int8)}


def test_make_vec_takes_the_wrappers() -> None:
    for mode, more in (("sync", {}), ("async", {"vector_kwargs": {"context": "spawn"}})):
        wrappers = [TokenActions, partial(FixedArrays, text_tokens=64)]
        vector = gym.make_vec("MultiImageTiny-v0", 2, mode, wrappers=wrappers, **more)
        observations, _ = vector.reset(seed=[3, 4])
        single = FixedArrays(token_env("MultiImageTiny-v0"), text_tokens=64)
        for i in range(2):
            assert raw({k: v[i] for k, v in observations.items()}) == raw(single.reset(seed=3 + i)[0])
        vector.close()


@pytest.mark.parametrize(("mode", "context"), [("sync", "fork"), ("async", "fork"), ("async", "spawn")])
def test_the_raw_environment_shows_other_alphabets_alike_in_a_vector(mode: str, context: str) -> None:
    makers = [served, partial(served, max_turns=2)]
    vector: Any = SyncVectorEnv(makers) if mode == "sync" else AsyncVectorEnv(makers, False, context=context)
    try:
        observations, _ = vector.reset(seed=[3, 4])
        for i, maker in enumerate(makers):
            single, _ = maker().reset(seed=3 + i)
            assert QUESTION in single["text"] == observations["text"][i]
            assert [a.tobytes() for a in single["images"]] == [a.tobytes() for a in observations["images"][i]]
    finally:
        vector.close()
