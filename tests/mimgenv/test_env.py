"""The episode contract: what is shown, what a turn does, when it ends, what is paid, and what never happens."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import mimgenv
from mimgenv.env import STOPS, MultiImageEnv
from mimgenv.errors import TURN_ERRORS, ConfigurationError, TaskError
from mimgenv.geometry import BOX_FRAMES, View, iou, smart_resize
from mimgenv.tasks.rendered import GROUNDING_TYPES
from mimgenv.testing.leaks import leaks, leaves
from mimgenv.tools import ToolContext
from mimgenv.types import Answer, Grounding, Image, ObjectAnnotation, Observation, Task, TextAnswer

CODEC = mimgenv.default_codec()
TRUTH = Grounding(2, "mug", (20.0, 40.0, 60.0, 80.0))
CANARY = "zqxj"


def picture(width: int, height: int, shade: int = 0) -> Image:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, np.full_like(x, shade)], axis=2).astype(np.uint8)


def task(truth: Answer = TRUTH, images: Sequence[Image] = (), **fields: Any) -> Task:
    images = tuple(images) or (picture(112, 84, 1), picture(112, 84, 2))
    made = Task("made:1", "made", images, "Where?", truth, "why", tuple(() for _ in images))
    return replace(made, **fields)


class Served:
    """A source that serves the tasks it is given."""

    task_types = ("made",)

    def __init__(self, *tasks: Task) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, seed: int) -> Task:
        return self.tasks[seed % len(self.tasks)]


class Broken:
    """A tool that crashes, or returns what it was given to return."""

    name = "broken"
    parameters = ("image",)
    description = "Does not work."

    def __init__(self, result: object = None) -> None:
        self.result = result

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        if self.result is None:
            raise ZeroDivisionError("tool")
        return self.result  # type: ignore[return-value]


def environment(*tasks: Task, **arguments: Any) -> MultiImageEnv:
    env = MultiImageEnv(source=Served(*(tasks or (task(),))), **arguments)
    env.reset(seed=0)
    return env


def answer(image: int | None = 2, box: Sequence[float] = TRUTH.box, label: str = "mug") -> str:
    written = {"image": image, "label": label, "bbox_2d": list(box)}
    return f"<think></think><answer>{json.dumps({k: v for k, v in written.items() if v is not None})}</answer>"


def text_answer(text: str) -> str:
    return f"<think></think><answer>{text}</answer>"


def call(name: str = "visual_reflection", **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments or {"image": 1}})
    return f"<think></think><tool_call>{body}</tool_call>"


LOOK = call()


# What an agent is told


def test_info_says_what_kind_of_answer_is_wanted_at_every_step() -> None:
    for truth, kind in ((TRUTH, "grounding"), (TextAnswer("3"), "text")):
        env = environment(task(truth=truth), max_turns=2)
        told = [env.reset(seed=0)[1], env.step("nonsense")[4], env.step("nonsense")[4]]
        assert [info["answer_kind"] for info in told] == [kind] * 3


# Gymnasium


@pytest.mark.parametrize("env_id", mimgenv.ENVIRONMENTS)
def test_every_id_passes_gymnasiums_checker_without_a_warning(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id)
        check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", mimgenv.ENVIRONMENTS)
def test_an_episode_of_every_id_can_be_played_through_gymnasiums_own_wrappers(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id)
        observation, info = env.reset(seed=0)
        assert observation in env.observation_space
        truth = mimgenv.load_task(info["task_id"]).truth
        assert isinstance(env.unwrapped, MultiImageEnv)
        views = env.unwrapped.views
        turn = (
            text_answer(truth.text)
            if isinstance(truth, TextAnswer)
            else answer(truth.image, views[truth.image - 1].from_original(truth.box, "pixel"))
        )
        observation, reward, terminated, truncated, info = env.step(CODEC.encode_turn(turn))
        assert observation in env.observation_space
        assert reward == pytest.approx(1.5)
        assert (terminated, truncated, info["success"]) == (True, False, True)


def test_the_table_of_ids_is_what_is_registered_and_each_setting_reaches_the_environment() -> None:
    for env_id, arguments in mimgenv.ENVIRONMENTS.items():
        assert gym.spec(env_id).kwargs == arguments
    tiny = gym.make("MultiImageTinyZoom-v0").unwrapped
    assert isinstance(tiny, MultiImageEnv)
    assert (tiny.max_turns, tiny.max_tokens, tiny.max_images, list(tiny.tools)) == (2, 128, 6, ["zoom"])
    grounding = gym.make("MultiImageGrounding-v0").unwrapped
    assert isinstance(grounding, MultiImageEnv)
    assert grounding.source.task_types == tuple(GROUNDING_TYPES)


def test_the_documented_defaults_are_those_of_version_0() -> None:
    """Where this fails, seeds do not mean what they meant: bump `-vN`."""
    defaults = {k: p.default for k, p in inspect.signature(MultiImageEnv.__init__).parameters.items() if k != "self"}
    assert defaults == {
        "source": None,
        "tasks": None,
        "difficulty": None,
        "split": "train",
        "codec": None,
        "box_frame": "pixel",
        "tools": ("visual_reflection", "visual_confirmation", "zoom"),
        "reward": "grounding",
        "instructions": "full",
        "max_turns": 6,
        "max_tokens": 4096,
        "max_images": 12,
        "world": None,
        "max_pixels": 1280 * 28 * 28,
        "render_mode": None,
    }


def test_a_pickled_spec_makes_the_same_environment() -> None:
    env = gym.make("MultiImageTiny-v0", tasks=("referring",), box_frame="unit", max_turns=1)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert fingerprint(env.reset(seed=4)[0]) == fingerprint(again.reset(seed=4)[0])
    assert isinstance(again.unwrapped, MultiImageEnv)
    assert (again.unwrapped.box_frame, again.unwrapped.max_turns) == ("unit", 1)


def test_render_shows_all_images_side_by_side_in_its_mode_only() -> None:
    env = environment(task(images=(picture(28, 56), picture(56, 28))), render_mode="rgb_array")
    shown = env.render()
    assert shown is not None
    assert shown.shape == (56, 28 + 4 + 56 + 4, 3)
    np.testing.assert_array_equal(shown[:, :28], picture(28, 56))
    np.testing.assert_array_equal(shown[:28, 32:88], picture(56, 28))
    assert (shown[28:, 32:88] == 255).all()
    assert environment().render() is None
    assert MultiImageEnv(source=Served(task()), render_mode="rgb_array").render() is None


# Observation


def fingerprint(observation: Observation) -> tuple[str, tuple[tuple[tuple[int, ...], bytes], ...]]:
    return observation["text"], tuple((image.shape, image.tobytes()) for image in observation["images"])


def markers(text: str) -> list[int]:
    """The numbers of the images that a text announces, each by `Image-k: <image>`; every marker must be announced."""
    numbers = [int(number) for number in re.findall(r"Image-(\d+): <image>", text)]
    assert len(numbers) == text.count("<image>")
    return numbers


@pytest.mark.parametrize("env_id", mimgenv.ENVIRONMENTS)
def test_there_is_one_marker_per_image_in_order_and_numbering_goes_on_over_tool_images(env_id: str) -> None:
    env = gym.make(env_id, tools=("zoom", "visual_reflection"), max_turns=4, max_tokens=400)
    observation, info = env.reset(seed=2)
    count = len(observation["images"])
    assert markers(observation["text"]) == list(range(1, count + 1))
    for turn in (LOOK, "nonsense", call(image=count + 1)):
        observation, *_, info = env.step(CODEC.encode_turn(turn))
        assert observation in env.observation_space
        if turn == "nonsense":
            assert markers(observation["text"]) == list(observation["images"]) == []
        else:
            count += 1
            assert markers(observation["text"]) == [count]
            assert len(observation["images"]) == 1
    assert info["error"] is None


def test_images_are_shown_in_the_order_of_their_numbers_and_keep_their_own_sizes() -> None:
    images = (picture(28, 56, 1), picture(84, 28, 2), picture(30, 31, 3))
    observation, _ = MultiImageEnv(source=Served(task(images=images))).reset(seed=0)
    for shown, original in zip(observation["images"], images, strict=True):
        np.testing.assert_array_equal(shown, original)


def test_an_image_with_too_many_pixels_is_shown_smaller_in_whole_tiles() -> None:
    large = picture(640, 428)
    env = environment(task(images=(large, large)), max_pixels=200 * 200)
    shown = env.views[0]
    assert shown.size == (224, 140)  # width and height: 8 and 5 tiles
    assert shown.size[::-1] == smart_resize(428, 640, min_pixels=28 * 28, max_pixels=200 * 200)
    assert shown.region == (0.0, 0.0, 640.0, 428.0)
    assert environment(task(images=(large, large)), max_pixels=640 * 428).views[0].size == (640, 428)


def test_what_is_handed_out_is_never_used_again() -> None:
    """Each observation is overwritten as soon as it is read; each tool call looks at the image before."""
    env = environment(task(), max_turns=9)
    served = env.source.task(0)
    for _ in range(2):
        seen = []
        for turn in (None, call(image=2), call(image=3), call(image=4)):
            observation = env.reset(seed=0)[0] if turn is None else env.step(turn)[0]
            seen += [image.copy() for image in observation["images"]]
            for image in observation["images"]:
                image[:] = 255
        for image, original in zip(seen, [served.images[0]] + [served.images[1]] * 4, strict=True):
            np.testing.assert_array_equal(image, original)
    np.testing.assert_array_equal(served.images[0], picture(112, 84, 1))


def test_no_two_images_handed_out_share_memory() -> None:
    env = environment(task(), max_turns=9)
    observations = [env.reset(seed=0)[0], env.step(LOOK)[0], env.step(call(image=3))[0]]
    handed = [image for observation in observations for image in observation["images"]]
    handed += [view.pixels for view in env.views]
    handed += env.reset(seed=0)[0]["images"]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(handed) for b in handed[:i])


# No ground truth


def whole_episode(env: MultiImageEnv, seed: int) -> list[object]:
    """All that an agent sees of an episode that it does not answer."""
    shown: list[object] = list(env.reset(seed=seed))
    for turn in (LOOK, "nonsense", call("made_up"), call("zoom")):
        observation, *_, info = env.step(turn)
        shown += [observation, info]
    return shown


class Leaky(MultiImageEnv):
    """An environment that tells, in one of many ways."""

    tells: str = ""

    def _info(self, error: Any) -> dict[str, Any]:
        info = super()._info(error)
        assert self._task is not None
        truth = self._task.truth
        hints: dict[str, Any] = {"record": truth, "rationale": {"deep": [self._task.rationale]}}
        hints["value"] = truth.box if isinstance(truth, Grounding) else {"is": truth.text}
        return info | {"hint": hints.get(self.tells)}


@pytest.mark.parametrize("env_id", ["MultiImageQA-v0", "MultiImageTiny-v0"])
def test_nothing_an_agent_sees_before_the_end_tells_the_truth(env_id: str) -> None:
    arguments = {k: v for k, v in mimgenv.ENVIRONMENTS[env_id].items() if k not in ("max_turns", "max_tokens")}
    env = MultiImageEnv(**arguments, max_turns=9)
    for seed in range(7 if env_id == "MultiImageQA-v0" else 70):
        shown = whole_episode(env, seed)
        assert leaks(env.source.task(seed), shown) == []


OTHER = (Grounding(1, "spoon", (1.0, 2.0, 30.0, 40.0)), TextAnswer("11"))
TWINS = [(TRUTH, OTHER[0]), (TextAnswer("3"), OTHER[1])]


def twins(truths: tuple[Answer, Answer]) -> list[Task]:
    """Two tasks that differ in everything an agent must not know, and in nothing else."""
    annotations = [((ObjectAnnotation("mug", (0.0, 0.0, 5.0 + n, 5.0), n),), ()) for n in range(2)]
    return [
        task(truth, rationale=why, objects=objects)
        for truth, why, objects in zip(truths, ("this", "that"), annotations, strict=True)
    ]


def comparable(shown: object) -> list[object]:
    return [(path, value.tobytes() if isinstance(value, np.ndarray) else repr(value)) for path, value in leaves(shown)]


@pytest.mark.parametrize("truths", TWINS)
def test_tasks_that_differ_in_their_truth_alone_look_the_same(truths: tuple[Answer, Answer]) -> None:
    first, second = (comparable(whole_episode(environment(t, max_turns=9), 0)) for t in twins(truths))
    assert first == second


@pytest.mark.parametrize(
    ("truths", "tells"),
    [(TWINS[0], "record"), (TWINS[0], "rationale"), (TWINS[0], "value"), (TWINS[1], "record"), (TWINS[1], "value")],
)
def test_tasks_that_differ_in_their_truth_look_different_where_an_environment_tells(
    truths: tuple[Answer, Answer], tells: str
) -> None:
    shown = []
    for twin in twins(truths):
        env = Leaky(source=Served(twin), max_turns=9)
        env.tells = tells
        shown.append(comparable(whole_episode(env, 0)))
    assert shown[0] != shown[1]


# Bad turns


BAD_TURNS: dict[str, tuple[str | Sequence[int], ...]] = {
    "bad_token": ((CODEC.vocab_size,), (-1,), CODEC.encode("<think></think><answer>1<|image_pad|></answer>")),
    "too_long": ("x" * 4 * 5000 + CANARY, CODEC.encode(CANARY) * 5000),
    "bad_turn": ("", CANARY, f"<think>{CANARY}</think>", f"<tool_response>{CANARY}: <image></tool_response>"),
    "bad_json": (text_answer(CANARY), f"<think></think><tool_call>{CANARY}</tool_call>"),
    "unknown_tool": (call(CANARY, image=1), call(f"{CANARY}<image>", image=1)),
    "bad_arguments": (call("zoom", **{CANARY: 1}),),
    "bad_image_index": (answer(0), answer(-1), answer(9), call(image=CANARY), call(image=True), call(image=1.0)),
    "bad_box": (answer(box=(200, 0, 300, 50)), answer(box=(9, 9, 9, 20)), call("zoom", image=1, bbox_2d=CANARY)),
    "bad_answer": (answer(label=""), answer(None), text_answer(json.dumps({CANARY: 1})), answer(label=CANARY * 99)),
}


def bad_turns(*but: str) -> list[tuple[str, str | Sequence[int]]]:
    return [(code, turn) for code, turns in BAD_TURNS.items() if code not in but for turn in turns]


def test_there_is_a_bad_turn_for_every_code() -> None:
    assert set(BAD_TURNS) == set(TURN_ERRORS)


@pytest.mark.parametrize(("code", "turn"), bad_turns("too_long"))
def test_after_a_bad_turn_the_code_is_told_the_turn_counts_and_the_episode_goes_on(
    code: str, turn: str | Sequence[int]
) -> None:
    env = environment(max_turns=3)
    observation, reward, terminated, truncated, info = env.step(turn)
    assert (reward, terminated, truncated, info["stop"], info["error"]) == (0.0, False, False, None, code)
    assert info["budget"]["turns"] == 2
    assert observation["images"] == ()
    assert observation["text"].startswith(f"Error ({code}): {TURN_ERRORS[code]}")
    assert CANARY not in observation["text"]
    assert "<image>" not in observation["text"]
    *_, terminated, truncated, info = env.step(answer())
    assert (terminated, info["stop"], info["error"]) == (True, "answered", None)
    assert info["reward_parts"] == {"iou": 1.0, "format": 0.0}


@pytest.mark.parametrize("turn", BAD_TURNS["too_long"])
def test_a_turn_that_is_too_long_spends_all_tokens_and_so_ends_the_episode(turn: str | Sequence[int]) -> None:
    observation, *_, info = environment(max_turns=3, max_tokens=4999).step(turn)
    assert (info["error"], info["stop"]) == ("too_long", "void")
    assert info["budget"] == {"turns": 2, "tokens": 0, "images": 10}
    assert observation["text"] == ""


@given(st.text(st.characters(), max_size=30), st.integers(0, 5))
def test_an_error_text_is_made_of_the_environments_words_alone(said: str, place: int) -> None:
    env = environment(max_turns=2)
    turns = (
        said,
        f"<think>{said}</think>",
        text_answer(said),
        f"<think></think><tool_call>{said}</tool_call>",
        call(said, image=1),
        call("zoom", image=said, bbox_2d=[0, 0, 1, 1]),
    )
    observation, *_ = env.step(turns[place])
    texts = {env_text(code) for code in TURN_ERRORS}
    assert any(observation["text"].startswith(text) for text in texts)
    detail = next(observation["text"].removeprefix(text) for text in texts if observation["text"].startswith(text))
    assert detail.strip() in DETAILS


def env_text(code: str) -> str:
    return f"Error ({code}): {TURN_ERRORS[code]}"


DETAILS = {
    "",
    "A call is {\"name\": ..., \"arguments\": {...}}.",
    "A key occurs twice.",
    "It must be an object.",
    "It is longer than 4000 characters.",
    "An image is named by its number, such as 1.",
    "Images are numbered from 1 to 2.",
    "Tools: visual_reflection, visual_confirmation, zoom.",
    'Answer {"image": ..., "label": ..., "bbox_2d": [...]}.',
    "A label is a short text.",
    "Name the image: \"image\".",
    *(f"{name} takes {arguments}." for name, arguments in [
        ("visual_reflection", "image"), ("zoom", "image, bbox_2d"), ("visual_confirmation", "image, bbox_2d, label")
    ]),
}  # fmt: skip


# Whatever an agent sends


def play(env: MultiImageEnv, action: Any) -> dict[str, Any]:
    """Steps, starting a new episode where one has ended; checks what must hold whatever was sent."""
    if env._stop is not None:
        env.reset(seed=1)
    observation, reward, terminated, truncated, info = env.step(action)
    assert env.observation_space.contains(observation)
    assert isinstance(reward, float)
    assert math.isfinite(reward)
    assert info["error"] is None or info["error"] in TURN_ERRORS
    assert info["stop"] is None or info["stop"] in STOPS
    assert (terminated, truncated) == (info["stop"] == "answered", info["stop"] not in (None, "answered"))
    assert min(info["budget"].values()) >= 0
    return info


# How an episode ends


def ending(env: MultiImageEnv, *turns: Any) -> tuple[bool, bool, dict[str, Any], Observation]:
    """Plays turns; all but the last must leave the episode open."""
    for turn in turns[:-1]:
        assert play(env, turn)["stop"] is None
    observation, _, terminated, truncated, info = env.step(turns[-1])
    return terminated, truncated, info, observation


@pytest.mark.parametrize(("turn", "success"), [(answer(), True), (answer(1), False)])
def test_a_parsed_answer_terminates_right_or_wrong(turn: str, success: bool) -> None:
    terminated, truncated, info, observation = ending(environment(), LOOK, turn)
    assert (terminated, truncated, info["stop"], info["success"]) == (True, False, "answered", success)
    assert fingerprint(observation) == ("", ())


def test_a_last_turn_that_does_not_parse_is_void() -> None:
    terminated, truncated, info, observation = ending(environment(max_turns=2), LOOK, "nonsense")
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "void", "bad_turn")
    assert (info["success"], observation["text"]) == (False, "")


def test_a_turn_cut_by_its_length_is_void() -> None:
    cut = CODEC.encode(answer())[:20]
    terminated, truncated, info, _ = ending(environment(max_tokens=20), cut)
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "void", "bad_turn")


def test_a_turn_longer_than_the_tokens_left_is_void_even_where_it_would_parse() -> None:
    ids = CODEC.encode_turn(answer())
    *_, info, _ = ending(environment(max_tokens=len(ids) - 1), ids)
    assert (info["stop"], info["error"], info["budget"]["tokens"]) == ("void", "too_long", 0)


def test_a_tool_call_in_the_last_turn_ends_at_the_turn_limit_and_its_image_is_not_shown() -> None:
    terminated, truncated, info, observation = ending(environment(max_turns=2), LOOK, LOOK)
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "turn_limit", None)
    assert fingerprint(observation) == ("", ())
    assert info["reward_parts"] == {"iou": 0.0, "format": 0.0}


def test_a_tool_call_with_the_last_token_ends_at_the_token_limit() -> None:
    ids = CODEC.encode_turn(LOOK)
    terminated, truncated, info, _ = ending(environment(max_tokens=2 * len(ids)), ids, ids)
    assert (terminated, truncated, info["stop"], info["budget"]["tokens"]) == (False, True, "token_limit", 0)


def test_a_tool_call_beyond_the_images_ends_at_the_image_limit() -> None:
    terminated, truncated, info, observation = ending(environment(max_images=3), LOOK, LOOK)
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "image_limit", None)
    assert (info["budget"]["images"], observation["images"]) == (0, ())


@pytest.mark.parametrize("result", [None, "a string", View(np.zeros((2, 2), np.uint8), 1, (0, 0, 2, 2))])
def test_a_tool_that_crashes_or_returns_no_image_ends_the_episode_not_the_run(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    env = environment(tools=(Broken(result), "zoom"))
    terminated, truncated, info, observation = ending(env, call("zoom", image=1, bbox_2d=[0, 0, 9, 9]), call("broken"))
    assert (terminated, truncated, info["stop"], info["error"]) == (False, True, "env_error", None)
    assert fingerprint(observation) == ("", ())
    assert "tool broken failed" in caplog.text
    env.reset(seed=0)
    assert play(env, answer())["stop"] == "answered"


ANSWER_IDS, LOOK_IDS, BROKEN_IDS = (CODEC.encode_turn(turn) for turn in (answer(), LOOK, call("broken")))


@pytest.mark.parametrize(
    ("stop", "turn", "limits"),
    [
        ("answered", ANSWER_IDS, {"max_turns": 1}),
        ("answered", ANSWER_IDS, {"max_tokens": len(ANSWER_IDS)}),
        ("answered", ANSWER_IDS, {"max_turns": 1, "max_tokens": len(ANSWER_IDS), "max_images": 2}),
        ("void", (5, 5), {"max_turns": 1, "max_tokens": 2, "max_images": 2}),
        ("void", (5, 5), {"max_tokens": 2}),
        ("turn_limit", LOOK_IDS, {"max_turns": 1, "max_tokens": len(LOOK_IDS), "max_images": 2}),
        ("token_limit", LOOK_IDS, {"max_tokens": len(LOOK_IDS), "max_images": 2}),
        ("image_limit", BROKEN_IDS, {"max_images": 2}),
        ("turn_limit", BROKEN_IDS, {"max_turns": 1}),
        ("token_limit", BROKEN_IDS, {"max_tokens": len(BROKEN_IDS)}),
        ("env_error", BROKEN_IDS, {}),
    ],
)
def test_of_several_reasons_to_stop_the_first_of_the_table_is_told(
    stop: str, turn: Sequence[int], limits: dict[str, int]
) -> None:
    *_, info, _ = ending(environment(tools=(Broken(), "visual_reflection"), **limits), turn)
    assert info["stop"] == stop


def test_the_reasons_stand_in_their_order_of_precedence() -> None:
    assert STOPS == ("answered", "void", "turn_limit", "token_limit", "image_limit", "env_error")


def test_a_step_before_reset_or_after_the_end_needs_a_reset() -> None:
    env = MultiImageEnv(source=Served(task()))
    with pytest.raises(ResetNeeded):
        env.step(answer())
    env.reset(seed=0)
    env.step(answer())
    with pytest.raises(ResetNeeded):
        env.step(answer())
    env.reset(seed=0)
    assert env.step(answer())[2]


def test_before_the_first_episode_there_are_no_views_and_no_prediction() -> None:
    env = MultiImageEnv(source=Served(task()))
    assert (env.views, env.prediction) == ((), None)


# Info and budgets


def test_info_tells_what_is_left_and_success_only_at_the_end() -> None:
    env = environment(max_turns=5, max_tokens=300, max_images=4)
    _, info = env.reset(seed=0)
    assert info == {
        "error": None,
        "stop": None,
        "budget": {"turns": 5, "tokens": 300, "images": 2},
        "task_id": "made:1",
        "task_type": "made",
        "answer_kind": "grounding",
        "reward_parts": {"iou": 0.0, "format": 0.0},
    }
    *_, info = env.step(LOOK_IDS)
    assert info["budget"] == {"turns": 4, "tokens": 300 - len(LOOK_IDS), "images": 1}
    assert "success" not in info
    *_, info = env.step(ANSWER_IDS)
    assert (info["success"], info["reward_parts"]) == (True, {"iou": 1.0, "format": 1.0})
    assert info["budget"] == {"turns": 3, "tokens": 300 - len(LOOK_IDS) - len(ANSWER_IDS), "images": 1}


def test_the_reward_is_paid_at_the_end_and_nothing_before() -> None:
    env = environment()
    rewards = [env.step(turn)[1] for turn in (LOOK, "nonsense", answer())]
    assert rewards == [0.0, 0.0, 1.0]  # IoU 1, and half a point for format lost by the second turn
    assert environment().step(answer())[1] == 1.5


def test_an_unanswered_episode_is_worth_nothing() -> None:
    assert environment(max_turns=1).step(LOOK)[1] == 0.0


@pytest.mark.parametrize(("preset", "paid"), [("grounding", 1.5), ("image_aware_recon", 2.0), ("tool_gain_recon", 2.4)])
def test_the_preset_decides_what_an_episode_pays(preset: str, paid: float) -> None:
    env = environment(reward=preset)
    env.step(LOOK)
    assert env.step(answer())[1] == pytest.approx(paid)


def test_a_wrong_image_is_worth_its_format_only() -> None:
    assert environment().step(answer(1))[1] == 0.5


def test_half_a_box_is_worth_half() -> None:
    assert environment().step(answer(box=(20, 40, 60, 60)))[1] == 1.0


# Answers, and where they lie in the original


@pytest.mark.parametrize("frame", BOX_FRAMES)
def test_an_answer_in_every_frame_is_mapped_to_the_original(frame: str) -> None:
    images = (picture(640, 428), picture(640, 428))
    truth = Grounding(2, "mug", (146.0, 137.0, 615.0, 415.0))
    written = {
        "pixel": [146 * 0.35, 137 * 140 / 428, 615 * 0.35, 415 * 140 / 428],  # shown as 224 x 140
        "norm1000": [146 / 0.64, 137 / 0.428, 615 / 0.64, 415 / 0.428],
        "unit": [146 / 640, 137 / 428, 615 / 640, 415 / 428],
        "qwen2_5_resized": [146 * 0.35, 137 * 140 / 428, 615 * 0.35, 415 * 140 / 428],
    }
    env = environment(task(truth, images), box_frame=frame, max_pixels=200 * 200)
    assert env.step(answer(2, written[frame]))[1] == pytest.approx(1.5)
    assert isinstance(env.prediction, Grounding)
    assert env.prediction.box == pytest.approx(truth.box)


def test_the_reference_conversion_holds_from_the_answer_to_the_original() -> None:
    """What Qwen2.5-VL writes for a 640 x 428 image, in the coordinates of its own 644 x 420."""
    images = (picture(640, 428),)
    truth = Grounding(1, "mug", (146.0, 137.0, 615.0, 415.0))
    env = environment(task(truth, images), box_frame="qwen2_5_resized", max_pixels=640 * 428)
    env.step(answer(1, (147, 134, 619, 407)))
    assert isinstance(env.prediction, Grounding)
    assert env.prediction.box == pytest.approx(truth.box, abs=0.6)
    assert iou(env.prediction.box, truth.box) > 0.99


@pytest.mark.parametrize("frame", BOX_FRAMES)
def test_an_answer_on_a_zoom_of_a_zoom_maps_back_to_the_original(frame: str) -> None:
    truth = Grounding(1, "mug", (301.0, 199.0, 320.0, 222.0))
    env = environment(task(truth, (picture(640, 448),)), box_frame=frame, max_pixels=200 * 200)
    for around in ((250.0, 150.0, 400.0, 300.0), (290.0, 190.0, 330.0, 230.0)):
        view = env.views[-1]
        *_, info = env.step(call("zoom", image=len(env.views), bbox_2d=view.from_original(around, frame)))
        assert info["error"] is None
    assert len(env.views) == 3
    assert env.views[2].region == (290.0, 190.0, 330.0, 230.0)
    box = env.views[2].from_original(truth.box, frame)
    assert env.step(answer(3, box))[1] == pytest.approx(1.5)
    assert isinstance(env.prediction, Grounding)
    assert env.prediction.image == 1
    assert env.prediction.box == pytest.approx(truth.box)


def test_an_answer_that_names_a_tool_image_is_in_the_image_the_tool_showed() -> None:
    env = environment()
    env.step(call(image=2))
    env.step(answer(3))
    assert env.prediction == TRUTH


def test_an_answer_is_cut_to_the_image() -> None:
    env = environment()
    env.step(answer(box=(-10, 40, 60, 999)))
    assert env.prediction == Grounding(2, "mug", (0.0, 40.0, 60.0, 84.0))


def test_the_image_may_be_left_out_where_the_question_names_it_and_nowhere_else() -> None:
    named = environment(task(named_image=2))
    assert named.step(answer(None))[4]["reward_parts"]["iou"] == 1.0
    named = environment(task(named_image=1))
    assert named.step(answer(None))[4]["reward_parts"]["iou"] == 0.0
    assert environment().step(answer(None))[4]["error"] == "bad_answer"


@pytest.mark.parametrize(
    "body",
    [
        '```json\n{"image": 2, "label": "mug", "bbox_2d": [20, 40, 60, 80]}\n```',
        '{"bbox_2d": [20, 40, 60, 80], "label": "mug", "image": 2}',
    ],
)
def test_a_fence_and_any_order_of_keys_are_accepted(body: str) -> None:
    assert environment().step(text_answer(body))[1] == 1.5


@pytest.mark.parametrize(("said", "paid"), [("3", 1.5), (" 3. ", 1.5), ("4", 0.5), ("the third", 0.5)])
def test_a_text_answer_is_paid_by_exact_match(said: str, paid: float) -> None:
    assert environment(task(TextAnswer("3"))).step(text_answer(said))[1] == paid


def test_the_first_answer_counts_and_an_answer_that_does_not_parse_is_none() -> None:
    env = environment()
    env.step(answer(box=(9, 9, 9, 9)))
    assert env.prediction is None
    env.step(answer())
    assert env.prediction == TRUTH


# Tools in the episode


def test_the_images_of_tools_count_toward_the_most_images() -> None:
    env = environment(max_images=4)
    lefts = [env.step(LOOK)[4]["budget"]["images"] for _ in range(2)]
    assert lefts == [1, 0]
    assert env.step(answer(4))[4]["stop"] == "answered"


def test_a_refused_call_shows_nothing_and_costs_no_image() -> None:
    env = environment(max_images=3)
    observation, *_, info = env.step(call(image=9))
    assert (observation["images"], info["budget"]["images"]) == ((), 1)


# Seeds


def test_a_reset_in_the_middle_of_an_episode_forgets_it() -> None:
    env = environment(max_turns=2)
    env.step("nonsense")
    env.step(LOOK)
    _, info = env.reset(seed=0)
    assert info["budget"]["turns"] == 2
    assert (len(env.views), env.prediction) == (2, None)
    assert env.step(answer())[1] == 1.5


def test_a_task_can_be_played_by_its_id() -> None:
    env = gym.make("MultiImageTiny-v0")
    wanted = "rendered:tiny/referring/2/val/77"
    observation, info = env.reset(options={"task_id": wanted})
    assert info["task_id"] == wanted
    assert len(observation["images"]) == 2


def test_seeds_of_a_finite_source_go_round() -> None:
    tasks = [task(task_id=f"made:{n}") for n in range(3)]
    env = MultiImageEnv(source=Served(*tasks))
    assert [env.reset(seed=seed)[1]["task_id"] for seed in range(5)] == [f"made:{n}" for n in (0, 1, 2, 0, 1)]


def test_a_task_with_more_images_than_the_budget_is_refused() -> None:
    env = MultiImageEnv(source=Served(task()), max_images=1)
    with pytest.raises(TaskError, match="2 images, max_images is 1"):
        env.reset(seed=0)


# Configuration


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"box_frame": "pixels"}, "box_frame 'pixels'"),
        ({"instructions": "long"}, "instructions 'long'"),
        ({"reward": "iou"}, "reward 'iou'"),
        ({"tools": ("crop",)}, "tool 'crop'"),
        ({"tools": ("zoom", "Zoom")}, "tool 'Zoom'"),
        ({"world": "moon"}, "world 'moon'"),
        ({"split": "dev"}, "split 'dev'"),
        ({"tasks": "referrin"}, r"task types \['referrin'\]"),
        ({"tasks": ("referring", "chess")}, r"\['chess'\]"),
        ({"tasks": ()}, r"task types \[\]"),
        ({"difficulty": 0}, "difficulty 0"),
        ({"difficulty": 6}, "difficulty 6"),
        ({"difficulty": 6, "world": "tiny"}, "difficulty 6"),
        ({"source": "coco"}, "source 'coco'"),
        ({"source": "odinw"}, "source 'odinw'"),
        ({"source": "odinw:"}, "source 'odinw:'"),
        ({"source": "odinw:/nowhere", "tasks": "qa"}, "odinw:/nowhere"),
        ({"max_turns": 0}, "budgets 0,"),
        ({"max_tokens": 0}, ", 0, 12"),
        ({"max_images": -3}, ", -3, "),
        ({"max_pixels": 783}, "783"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_its_name_and_value(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        MultiImageEnv(**arguments)
    with pytest.raises(ConfigurationError, match=named):
        gym.make("MultiImageQA-v0", **arguments)


@pytest.mark.parametrize(
    ("arguments", "other"),
    [
        ({"tasks": ("referring",)}, {"tasks": ("counting",)}),
        ({"tasks": "grounding"}, {"tasks": "qa"}),
        ({"difficulty": 1}, {"difficulty": 3}),
        ({"split": "train"}, {"split": "val"}),
        ({"split": "val"}, {"split": "test"}),
        ({"world": "tiny"}, {"world": "tabletop"}),
        ({"instructions": "full"}, {"instructions": "brief"}),
        ({"instructions": "brief"}, {"instructions": "none"}),
        ({"tools": ()}, {"tools": ("zoom",)}),
        ({"tasks": ("referring",), "box_frame": "unit"}, {"tasks": ("referring",), "box_frame": "norm1000"}),
        ({"max_pixels": 84 * 84}, {"max_pixels": 168 * 168}),
    ],
)
def test_every_argument_that_shapes_the_first_observation_changes_it(
    arguments: dict[str, Any], other: dict[str, Any]
) -> None:
    def first(changed: dict[str, Any]) -> object:
        return fingerprint(MultiImageEnv(**({"world": "tiny"} | changed)).reset(seed=1)[0])

    assert first(arguments) == first(arguments)
    assert first(arguments) != first(other)


def test_a_codec_of_ones_own_reads_the_turns() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    letters = sorted(set(text_answer("3 4")))
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>")])
    codec = mimgenv.Codec(tokenizer)
    env = environment(task(TextAnswer("3")), codec=codec)
    assert env.action_space.contains(codec.encode_turn(text_answer("3")))
    assert env.step(codec.encode_turn(text_answer("3")))[1] == 1.5
    assert environment(task(TextAnswer("3")), codec=codec).step((codec.vocab_size,))[4]["error"] == "bad_token"
