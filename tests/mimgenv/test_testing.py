"""The conformance kit: what is sound passes, and for each rule there is something broken that it catches."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mimgenv
from mimgenv.env import MultiImageEnv
from mimgenv.errors import TurnError
from mimgenv.geometry import View
from mimgenv.rewards import REWARDS, Outcome, Reward, answer_part, format_part, iou_part
from mimgenv.scenes.flat import Flat
from mimgenv.scenes.scene import Frame, Scene, World
from mimgenv.spaces import TokenTurn
from mimgenv.tasks.draft import Draft, Wording, draw_count, draw_kinds
from mimgenv.tasks.program import Area, Count, Find, Found, ImageOf, Query, Result
from mimgenv.tasks.rendered import TASK_TYPES, worlds_of
from mimgenv.testing import check_env_contract, check_reward, check_task_type, check_tool
from mimgenv.tools import TOOLS, ToolContext, VisualReflection
from mimgenv.types import Grounding, Observation, Task

COUNTER = itertools.count(1)

Message = tuple[Any, Any, Any, Any, dict[str, Any]]
Change = Callable[[Any, Message], Message]


class Small(MultiImageEnv):
    """A sound environment that is quick to play."""

    def __init__(self, **arguments: Any) -> None:
        tiny = {"world": "tiny", "tasks": ("referring",), "max_pixels": 84 * 84, "max_turns": 4, "max_images": 4}
        super().__init__(**(tiny | arguments))


class Altered(Small):
    """An environment whose every message is changed before it is given."""

    change: Change

    def reset(self, **arguments: Any) -> tuple[Observation, dict[str, Any]]:
        observation, info = super().reset(**arguments)
        changed = self.change((observation, 0.0, False, False, info))
        return changed[0], changed[4]

    def step(self, action: Any) -> Message:
        return self.change(super().step(action))


def altered(change: Change) -> Callable[[], gym.Env[Any, Any]]:
    return type("Broken", (Altered,), {"change": change})


def text(change: Callable[[str], str | bytes]) -> Change:
    return lambda env, m: ({**m[0], "text": change(m[0]["text"])}, *m[1:])


def images(change: Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return lambda env, m: ({**m[0], "images": change(env, m[0]["images"])}, *m[1:])


def info(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    return lambda env, m: (*m[:4], change(m[4]))


def reward(change: Callable[[float, bool], object]) -> Change:
    """Of the reward and whether the episode was answered."""
    return lambda env, m: (m[0], change(m[1], m[2]), *m[2:])


def drop(key: str) -> Change:
    return info(lambda i: {k: v for k, v in i.items() if k != key})


def budget(change: Callable[[dict[str, int]], dict[str, int]]) -> Change:
    return info(lambda i: i | {"budget": i["budget"] | change(i["budget"])})


def caught(make: Callable[[], gym.Env[Any, Any]], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_env_contract(make)


# Environments


@pytest.mark.parametrize("env_id", mimgenv.ENVIRONMENTS)
def test_every_id_keeps_the_contract(env_id: str) -> None:
    check_env_contract(env_id, seeds=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", mimgenv.ENVIRONMENTS)
def test_every_id_keeps_the_contract_over_many_seeds(env_id: str) -> None:
    check_env_contract(env_id, seeds=range(1, 25))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"box_frame": "unit"},
        {"tools": ()},
        {"tasks": "qa", "instructions": "brief"},
        {"max_turns": 1},
        {"tasks": ("counting",), "reward": {"a part that does not apply": (iou_part, 1.0)}},
        *({"reward": reward} for reward in REWARDS),
    ],
    ids=str,
)
def test_the_contract_is_kept_whatever_the_arguments(arguments: dict[str, Any]) -> None:
    check_env_contract(partial(Small, **arguments), seeds=(5,))


def test_the_contract_is_kept_by_text_actions() -> None:
    check_env_contract(lambda: mimgenv.TextActions(Small()))


def test_the_seeds_that_are_played_are_those_that_are_asked_for() -> None:
    asked = set()

    class Asked(Small):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            asked.add(seed)
            return super().reset(seed=seed, options=options)

    with pytest.raises(AssertionError, match="pickled"):  # a local class cannot be
        check_env_contract(Asked, seeds=(70,))
    assert asked == {70, 71, 72, None}


def test_only_a_multi_image_environment_keeps_the_contract() -> None:
    caught(lambda: gym.make("CartPole-v1"), "is a MultiImageEnv")


BROKEN_MESSAGES: dict[str, tuple[str, Change]] = {
    "images as lists": ("the space contains", images(lambda env, old: tuple(image.tolist() for image in old))),
    "text as bytes": ("the space contains", text(str.encode)),
    "no marker": ("one marker per image", text(lambda t: t.replace("<image>", "image"))),
    "a marker too many": ("one marker per image", text(lambda t: t.replace("<image>", "<image><image>"))),
    "numbering from 0": ("one marker per image", text(lambda t: t.replace("Image-1: <", "Image-0: <"))),
    "numbering anew": ("one marker per image", text(lambda t: "Image-1: <image>" if t[:5] == "Image" else t)),
    "no images": ("starts with an image", lambda env, m: ({"images": (), "text": ""}, *m[1:])),
    "no budget": ("info holds", drop("budget")),
    "success before the end": ("success is told at the end", info(lambda i: i | {"success": False})),
    "no success": ("success is told at the end", drop("success")),
    "a stop of its own": ("stop 'tired'", info(lambda i: i | {"stop": i["stop"] and "tired"})),
    "an error of its own": ("error 'oops'", info(lambda i: i | {"error": i["error"] and "oops"})),
    "an error at reset": ("reset tells no", info(lambda i: i | {"error": i["error"] or "bad_turn"})),
    "truncated by an answer": ("an answer terminates", lambda env, m: (m[0], m[1], m[3], m[2], m[4])),
    "a budget overdrawn": ("no budget is overdrawn", budget(lambda b: {"images": b["images"] - 9})),
    "no reward": ("a finite float, not None", reward(lambda r, answered: None if answered else r)),
    "a whole reward": ("a finite float, not 1", reward(lambda r, answered: 1 if answered else r)),
    "a reward that is no number": ("a finite float, not nan", reward(lambda r, answered: r * math.nan)),
    "pay for a turn": ("paid at the end, nothing before", reward(lambda r, answered: r if answered else 0.1)),
    "pay beyond the parts": ("paid at the end", reward(lambda r, answered: r + answered)),
    "a part left out at the end": (
        "parts keep their names",
        info(lambda i: i | {"reward_parts": {"iou": 0.0}} if i["stop"] else i),
    ),
    "a task that changes": ("task_id stays", info(lambda i: i | {"task_id": i["task_id"] + str(i["budget"]["turns"])})),
    "a type that changes": ("task_type stays", info(lambda i: i | {"task_type": str(i["stop"])})),
    "a turn that does not count": ("every turn counts", budget(lambda b: {"turns": max(b["turns"], 3)})),
    "an image that does not count": ("every image shown counts", budget(lambda b: {"images": 2})),
    "tokens that come back": ("tokens are spent", budget(lambda b: {"tokens": 9999 - b["tokens"]})),
    "a message after the end": (
        "at the end is empty",
        lambda env, m: ({"images": (), "text": "Well done."}, *m[1:]) if m[4]["stop"] else m,
    ),
    "an error that is not told": ("its code is told", text(lambda t: "" if t[:5] == "Error" else t)),
    "an error told in other words": ("its code is told", text(lambda t: t.replace("Write", "Please write"))),
    "an image twice": ("used nowhere else", images(lambda env, old: (*old[:-1], *old[:1])[: len(old)])),
    "its own copy": (
        "used nowhere else",
        images(lambda env, old: tuple(view.pixels for view in env.views[len(env.views) - len(old) :])),
    ),
    "another text each time": (
        "the same bytes and text",
        text(lambda t: t + f" {next(COUNTER)}" if t[:5] == "Image" else t),
    ),
    "a wrong answer that succeeds": (
        "the true answer succeeds",
        info(lambda i: i | {"success": True} if i["stop"] else i),
    ),
    "a right answer that fails": (
        "the true answer succeeds",
        info(lambda i: i | {"success": False} if i["stop"] else i),
    ),
}


@pytest.mark.parametrize("name", BROKEN_MESSAGES)
def test_a_broken_message_is_caught_by_the_rule_it_breaks(name: str) -> None:
    rule, change = BROKEN_MESSAGES[name]
    caught(altered(change), rule)


TELLS: dict[str, Callable[[Grounding], object]] = {
    "record": lambda truth: truth,
    "list": lambda truth: [0, *truth.box],
    "array": lambda truth: np.array([truth.box]),
    "nested": lambda truth: {"deep": [{"box": truth.box}]},
    "unit": lambda truth: tuple(value / 168 for value in truth.box),
    "text": lambda truth: "look at ({:.0f}, {:.0f}) to ({:.0f}, {:.0f})".format(*truth.box),
    "label": lambda truth: [f"the {truth.label}!"],
    "key": lambda truth: {truth.label: 1},
}


class Telling(Altered):
    """Tells something of the truth in its info."""

    tells: Callable[[Any], object]

    def change(self, m: Message) -> Message:
        truth = mimgenv.load_task(m[4]["task_id"]).truth
        return (*m[:4], m[4] | {"hint": type(self).tells(truth)})


@pytest.mark.parametrize("tells", TELLS)
def test_an_info_that_tells_the_box_or_the_label_is_caught(tells: str) -> None:
    make = type("Broken", (Telling,), {"tells": staticmethod(TELLS[tells])})
    caught(partial(make, tasks=("static_difference",)), "in neither observation nor info: .*hint")


def test_an_info_that_tells_the_text_of_an_answer_is_caught() -> None:
    make = type("Broken", (Telling,), {"tells": staticmethod(lambda truth: {"it is": f"<{truth.text}>"})})
    caught(partial(make, tasks=("odd_one_out_qa",)), "in neither observation nor info: .*hint")


def test_an_observation_that_tells_is_caught() -> None:
    class Broken(Small):
        def step(self, action: Any) -> Message:
            observation, *rest = super().step(action)
            truth = mimgenv.load_task(rest[-1]["task_id"]).truth
            assert isinstance(truth, Grounding)
            hint = f" It is near {list(truth.box)}."
            return ({**observation, "text": observation["text"] and observation["text"] + hint}, *rest)  # type: ignore[return-value]

    caught(Broken, "in neither observation nor info: .*text: box")


class NeedsNoReset(Small):
    """Goes on after the end."""

    def step(self, action: Any) -> Message:
        if self._stop is not None:
            self.reset()
        return super().step(action)


class StartsItself(Small):
    """Starts without a reset."""

    def step(self, action: Any) -> Message:
        if self._task is None:
            self.reset()
        return super().step(action)


class Narrow(Small):
    """Has an action space that its turns are not in."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = TokenTurn(self.codec.vocab_size, 5)


class Raises(Small):
    """Reads numbers without care."""

    def step(self, action: Any) -> Message:
        if isinstance(action, str):
            json.dumps(action).encode().decode("ascii")
            action.encode()
        return super().step(action)


class Lenient(Small):
    """Takes any text in answer tags for an answer."""

    def step(self, action: Any) -> Message:
        said = action if isinstance(action, str) else self.codec.decode(action)
        if said.endswith("<answer>2</answer>"):
            action = '<think></think><answer>{"image": 1, "label": "a", "bbox_2d": [0, 0, 9, 9]}</answer>'
        return super().step(action)


class Forgetful(Small):
    """Draws the seeds of later episodes from a place of its own."""

    draws = itertools.count(100)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=next(self.draws) if seed is None else seed, options=options)


class Reuses(Small):
    """Hands out what it still needs, in an array that looks new."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed, options=options)
        self.handed = [image.copy() for image in result[0]["images"]]
        return {**result[0], "images": tuple(self.handed)}, result[1]

    def step(self, action: Any) -> Message:
        observation, *rest = super().step(action)
        images = tuple(self.handed[0].copy() for _ in observation["images"])
        return ({**observation, "images": images}, *rest)  # type: ignore[return-value]


class ImagesFirst(Small):
    """Tells an image too many before it tells that turns or tokens have run out."""

    def _why_stopped(self, error: TurnError | None) -> str | None:
        full = len(self._views) >= self.max_images and error is None and self._answer is None
        return "image_limit" if full else super()._why_stopped(error)


class AnswersLast(Small):
    """Takes the last turn for one too many, though it answers."""

    def _why_stopped(self, error: TurnError | None) -> str | None:
        out = self._turns >= self.max_turns and self.max_images == 2
        return "turn_limit" if out else super()._why_stopped(error)


class NoVoid(Small):
    """Does not tell a bad last turn from a good one."""

    def _why_stopped(self, error: TurnError | None) -> str | None:
        return super()._why_stopped(None)


class PaysFormat(Small):
    """Pays a wrong answer more than a right one."""

    def __init__(self) -> None:
        super().__init__(reward={"wrong": (lambda outcome: 1.0 - (iou_part(outcome) or 0.0), 1.0)})


class LosesItself(Small):
    """Counts a token more where it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokens": self._tokens + 1}


class Stays(Small):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.memo: Iterator[int] = (n for n in ())


@pytest.mark.parametrize(
    ("env", "rule"),
    [
        (NeedsNoReset, "after the end of an episode raises gymnasium's ResetNeeded"),
        (StartsItself, "before the first reset raises gymnasium's ResetNeeded"),
        (Narrow, "the action space contains a turn"),
        (Raises, "nothing an agent sends makes a step raise: UnicodeEncodeError"),
        (Lenient, "a hostile turn is refused: two answers"),
        (Forgetful, "resets without a seed follow from the last seed"),
        (Reuses, "may be overwritten"),
        (ImagesFirst, "stops as 'turn_limit', not 'image_limit'"),
        (AnswersLast, "stops as 'answered', not 'turn_limit'"),
        (NoVoid, "stops as 'void', not 'turn_limit'"),
        (PaysFormat, "a right answer earns no less"),
        (LosesItself, "a pickled environment goes on"),
        (Stays, "can be pickled"),
        (partial(Small, max_tokens=8), "a whole answer fits"),
    ],
)
def test_a_broken_environment_is_caught_by_the_rule_it_breaks(env: Callable[[], Small], rule: str) -> None:
    caught(env, rule)


# Tools


class Look(VisualReflection):
    """A sound tool, to be broken."""

    name = "look"

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        return self.change(context, arguments, super().__call__(context, arguments))

    def change(self, context: ToolContext, arguments: dict[str, Any], view: View) -> View:
        """What a test replaces."""
        return view


class Grey(Look):
    """The tool of the README: shows an image without its colours."""

    def change(self, context: ToolContext, arguments: dict[str, Any], view: View) -> View:
        grey = view.pixels.mean(-1, keepdims=True).astype("uint8").repeat(3, -1)
        return View(grey, view.image, view.region)


class Nothing(Look):
    """Takes no arguments: always shows Image-1."""

    parameters = ()

    def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
        return context.views[0]


@pytest.mark.parametrize("tool", [*TOOLS.values(), Look, Grey, Nothing])
def test_a_sound_tool_keeps_the_contract(tool: Callable[[], Any]) -> None:
    check_tool(tool())


def spoil(view: View, pixels: Any = None, image: int | None = None, region: Any = None) -> View:
    return View(
        view.pixels if pixels is None else pixels,
        view.image if image is None else image,
        view.region if region is None else region,
    )


def paint(context: ToolContext, arguments: dict[str, Any], view: View) -> View:
    context.views[arguments["image"] - 1].pixels[0, 0] = 99
    return view


def paint_original(context: ToolContext, arguments: dict[str, Any], view: View) -> View:
    context.originals[-1][0, 0] = 99
    return view


def take_arguments(context: ToolContext, arguments: dict[str, Any], view: View) -> View:
    arguments.clear()
    return view


def refuse(code: str, detail: str = "") -> Callable[..., View]:
    def change(context: ToolContext, arguments: dict[str, Any], view: View) -> View:
        raise TurnError(code, detail)

    return change


BROKEN_TOOLS: dict[str, tuple[str, Callable[[ToolContext, dict[str, Any], View], Any]]] = {
    "an array": ("gives a View", lambda c, a, view: view.pixels),
    "a refusal": ("gives a View", refuse("bad_box")),
    "a crash": ("raises nothing but TurnError", lambda c, a, view: 1 // 0),
    "a painted image": ("leaves the images as they are", paint),
    "a painted original": ("leaves the images as they are", paint_original),
    "arguments taken": ("leaves its arguments as they are", take_arguments),
    "floats": ("returns an image in", lambda c, a, view: spoil(view, view.pixels / 255)),
    "a grey plane": ("returns an image in", lambda c, a, view: spoil(view, view.pixels[..., 0])),
    "a picture too large": (
        "at most",
        lambda c, a, view: spoil(view, np.zeros((1, c.max_pixels + 1, 3), np.uint8)[:, :16_000].repeat(64, axis=0)),
    ),
    "image 0": ("is of an original", lambda c, a, view: spoil(view, image=0)),
    "the number of a view": ("is of an original", lambda c, a, view: spoil(view, image=len(c.views))),
    "a region beyond": ("lies in its", lambda c, a, view: spoil(view, region=(0.0, 0.0, 999.0, 1.0))),
    "a region inside out": ("lies in its", lambda c, a, view: spoil(view, region=(1.0, 1.0, 0.0, 0.0))),
    "another image each time": (
        "the same call gives the same image",
        lambda c, a, view: spoil(view, view.pixels + np.uint8(next(COUNTER) % 2)),
    ),
    "another image in turn": (
        "the same call gives the same image",
        lambda c, a, view: spoil(c.views[next(COUNTER) % 2]),
    ),
    "a mirror": ("maps back", lambda c, a, view: spoil(view, view.pixels[:, ::-1].copy())),
    "a region of another part": (
        "maps back",
        lambda c, a, view: spoil(view, region=(0.0, 0.0, view.region[2] / 2, view.region[3] / 2)),
    ),
}


@pytest.mark.parametrize("name", BROKEN_TOOLS)
def test_a_broken_tool_is_caught_by_the_rule_it_breaks(name: str) -> None:
    rule, change = BROKEN_TOOLS[name]
    tool = type("Broken", (Look,), {"change": staticmethod(change)})()
    with pytest.raises(AssertionError, match=rule):
        check_tool(tool)


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (lambda value: TurnError("odd_value"), "has a code of"),
        (lambda value: TurnError("bad_image_index", f"There is no image {value}."), "does not repeat the turn"),
        (lambda value: KeyError(value), "raises nothing but TurnError"),
    ],
)
def test_a_tool_that_refuses_in_a_way_of_its_own_is_caught(error: Callable[[object], Exception], rule: str) -> None:
    class Broken(Look):
        parameters = ("image", "label")

        def __call__(self, context: ToolContext, arguments: dict[str, Any]) -> View:
            if arguments["label"] != "red mug" and arguments["label"] != "block":
                raise error(arguments["label"])
            return super().__call__(context, arguments)

    with pytest.raises(AssertionError, match=rule):
        check_tool(Broken())


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"name": "look at"}, "name is letters"),
        ({"name": ""}, "name is letters"),
        ({"name": "løok"}, "name is letters"),
        ({"parameters": ["image"]}, "parameters are a tuple"),
        ({"parameters": ("image", "image")}, "parameters are a tuple"),
        ({"parameters": ("image", "angle")}, "parameters are a tuple"),
        ({"description": " "}, "one line without tags"),
        ({"description": "Shows\nit."}, "one line without tags"),
        ({"description": "Shows <image>."}, "one line without tags"),
    ],
)
def test_a_tool_that_is_badly_described_is_caught(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_tool(type("Broken", (Look,), fields)())


def test_what_is_no_tool_is_caught() -> None:
    with pytest.raises(AssertionError, match="a tool has a name"):
        check_tool(object())  # type: ignore[arg-type]


# Rewards


@pytest.mark.parametrize("preset", REWARDS)
def test_every_preset_keeps_the_contract(preset: str) -> None:
    check_reward(preset)
    check_reward(REWARDS[preset])


def test_a_reward_of_ones_own_keeps_the_contract() -> None:
    def no_tools(outcome: Outcome) -> float | None:
        return -float(outcome.tool_images > 0)

    check_reward({"answer": (answer_part, 2.0), "iou": (iou_part, 1.0), "no_tools": (no_tools, 0.1)})


def part(worth: Callable[[Outcome], Any], weight: float = 1.0) -> Reward:
    return {"mine": (worth, weight)}


BROKEN_REWARDS: dict[str, tuple[str, Reward]] = {
    "nothing": ("at least one part", {}),
    "no name": ("has a name", {" ": (format_part, 1.0)}),
    "no function": ("is a function", {"mine": (1.0, 1.0)}),  # type: ignore[dict-item]
    "no end of weight": ("finite weight", part(format_part, math.inf)),
    "no number": (r"in \[-1, 1\]", part(lambda o: math.nan)),
    "a text": (r"in \[-1, 1\]", part(lambda o: "1")),
    "a point in a hundred": (r"in \[-1, 1\]", part(lambda o: 100 * (iou_part(o) or 0.0))),
    "a memory": ("a pure function", part(lambda o: 1 / next(COUNTER))),
    "a part of the answer's": ("the truth alone decides", part(lambda o: 1.0 if o.answer else None)),
    "a part of the format's": ("the truth alone decides", part(lambda o: 1.0 if o.valid else None)),
    "a wrong answer": ("a better answer never earns less", part(lambda o: -(iou_part(o) or answer_part(o) or 0.0))),
    "half a box": ("a better answer never earns less", part(lambda o: float(0.3 < (iou_part(o) or 0) < 0.7))),
    "silence": ("no answer never earns more", part(lambda o: float(o.answer is None))),
    "tools": ("tools alone earn nothing", part(lambda o: min(1.0, o.tool_images / 5))),
    "tools without an answer": ("tools alone", part(lambda o: 0.0 if o.answer else min(0, o.tool_images - 5) / 5)),
}


@pytest.mark.parametrize("name", BROKEN_REWARDS)
def test_a_broken_reward_is_caught_by_the_rule_it_breaks(name: str) -> None:
    rule, reward = BROKEN_REWARDS[name]
    with pytest.raises(AssertionError, match=rule):
        check_reward(reward)


# Task types


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_task_type_keeps_the_contract_in_one_of_its_worlds(task_type: str) -> None:
    check_task_type(task_type, worlds_of(task_type)[-1:], seeds=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_task_type_keeps_the_contract_in_all_of_its_worlds(task_type: str) -> None:
    check_task_type(task_type, seeds=range(1, 4))


def red_one(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A sound task type, that of the README: the red object of one image."""
    scene = world.arrange(rng, draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty)), difficulty)
    return Draft((scene,), "Find the red object in Image-1.", Find((1,), colour="red"), named_image=1)


def where_red(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A sound task type: which of two images shows the red object."""
    scenes = tuple(red_one(world, rng, difficulty).scenes[0] for _ in range(2))
    return Draft(scenes, "Which image shows a red object?", ImageOf(Find((1, 2), colour="red")), "It is red.")


def how_many(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A sound task type: a number."""
    return replace(red_one(world, rng, difficulty), program=Count(Find((1,), colour="red")), rationale="They are.")


@pytest.mark.parametrize("task_type", [red_one, where_red, how_many])
@pytest.mark.parametrize("world", ["tiny", "tabletop"])
def test_a_sound_task_type_of_ones_own_keeps_the_contract(world: str, task_type: Any) -> None:
    check_task_type(task_type, (world,), seeds=(3,))


@dataclass(frozen=True)
class First(Query):
    """Takes the first thing that fits, though others fit too."""

    images: tuple[int, ...] = (1,)

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        return Find(self.images, colour="red").find(scenes)[:1]


@dataclass(frozen=True)
class Fixed:
    """Gives the same answers in turn, whatever is shown."""

    answers: tuple[Result, ...]

    def execute(self, scenes: Sequence[Scene]) -> Result:
        return self.answers[next(COUNTER) % len(self.answers)]


def asks(question: str | Wording, named_image: int | None = None, **fields: object) -> Callable[..., Draft]:
    def task_type(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
        draft = red_one(world, rng, difficulty)
        return replace(draft, question=question, named_image=named_image, fields=fields)

    return task_type


def answers(*programs: Any) -> Callable[..., Draft]:
    """Two images and a program of its own; where there are several programs, they take turns."""

    def task_type(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
        return replace(where_red(world, rng, difficulty), program=programs[next(COUNTER) % len(programs)])

    return task_type


def reseeded(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    return red_one(world, np.random.default_rng(next(COUNTER)), difficulty)


def uses_the_global_generator(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    return red_one(world, np.random.default_rng(np.random.randint(99)), difficulty)  # noqa: NPY002


def never_hard(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    program = Find((1,), colour="no such colour" if difficulty == 5 else "red")
    return replace(red_one(world, rng, difficulty), program=program)


def never_held_out(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    question = Wording(("In Image-1, which one is red?",), ("Which {one}?",))
    return replace(red_one(world, rng, difficulty), question=question)


def elsewhere(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """The question names an image that the target is not in."""
    draft = where_red(world, rng, difficulty)
    return replace(draft, question="In Image-1: what is red?", program=Find((1, 2), colour="red"), named_image=1)


BROKEN_TASK_TYPES: dict[str, tuple[str, Callable[..., Draft]]] = {
    "another task each time": ("the same seed makes the same task", reseeded),
    "a global generator": ("comes from the generator passed in", uses_the_global_generator),
    "none at difficulty 5": ("at every difficulty: .*difficulty=5", never_hard),
    "none held out": ("every wording can be filled in: KeyError.'one'", never_held_out),
    "a question with a gap": ("plain text, filled in", asks("Find the {colour} object.")),
    "a question with a tag": ("plain text, filled in", asks("Find it in <image>.")),
    "a question without words": ("plain text, filled in", asks(" ")),
    "an image that is not there": ("names images that exist", asks("Find it in Image-2.")),
    "image 0": ("names images that exist", asks("Find it in Image-0.")),
    "an image that is not named": ("the image it is said to name", asks("Find the red object.", 1)),
    "another image named": ("the truth is in the image that is named", elsewhere),
    "the first of several": ("refuses a second match", answers(First())),
    "the image of the first": ("refuses a second match", answers(ImageOf(First((1, 2))))),
    "an answer that changes": ("the program's answer is the truth", answers(Fixed((1, 2)))),
    "a place that changes": ("the program's answer is the truth", answers(Fixed((Found(1, 0), Found(2, 0))))),
    "now a place, now a word": ("the program's answer is the truth", answers(Fixed(("1", Found(1, 0))))),
    "a part of no picture": ("the truth lies in its image", answers(Fixed((Area(1, 0, (0.0, 0.0, 999.0, 9.0)),)))),
    "no words": ("an answer is not empty", answers(Fixed((" ",)))),
}


@pytest.mark.parametrize("name", BROKEN_TASK_TYPES)
def test_a_broken_task_type_is_caught_by_the_rule_it_breaks(name: str) -> None:
    rule, task_type = BROKEN_TASK_TYPES[name]
    with pytest.raises(AssertionError, match=rule):
        check_task_type(task_type, ("tiny",), seeds=(0, 1, 2))


class Crooked(Flat):
    """A world that draws as it should and says something else."""

    def render(self, scene: Scene) -> Frame:
        return self.spoil(super().render(scene))

    def spoil(self, frame: Frame) -> Frame:
        """What a test replaces."""
        return frame


BROKEN_WORLDS: dict[str, tuple[str, Callable[[Any, Frame], Frame]]] = {
    "boxes elsewhere": (
        "the truth is where its thing is seen",
        lambda world, frame: replace(frame, boxes=tuple((0.0, 0.0, 1.0, 1.0) for _ in frame.boxes)),
    ),
    "boxes beyond": (
        "an annotated object lies in its image",
        lambda world, frame: replace(frame, boxes=tuple((0.0, 0.0, 999.0, 9.0) for _ in frame.boxes)),
    ),
    "boxes inside out": (
        "an annotated object lies in its image",
        lambda world, frame: replace(frame, boxes=tuple((9.0, 9.0, 1.0, 1.0) for _ in frame.boxes)),
    ),
    "floats": ("uint8", lambda world, frame: replace(frame, pixels=frame.pixels / 255)),
}


@pytest.mark.parametrize("name", BROKEN_WORLDS)
def test_a_world_that_says_something_else_than_it_draws_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, spoil = BROKEN_WORLDS[name]
    world = type("Broken", (Crooked,), {"spoil": spoil})
    monkeypatch.setattr("mimgenv.testing.task_contract.world_of", lambda name, held_out: world(held_out=held_out))
    with pytest.raises(AssertionError, match=rule):
        check_task_type(red_one, ("tiny",))


@pytest.mark.parametrize(
    "change",
    [
        lambda task: replace(task, question=task.question + "?"),
        lambda task: replace(task, objects=tuple(() for _ in task.objects)),
        lambda task: replace(task, images=tuple(image ^ np.uint8(1) for image in task.images)),
        lambda task: replace(task, captions=()),
    ],
)
def test_an_id_that_loads_another_task_is_caught(
    change: Callable[[Task], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimgenv.testing.task_contract.load_task", lambda task_id: change(mimgenv.load_task(task_id)))
    with pytest.raises(AssertionError, match="an id loads the task that it was given"):
        check_task_type("referring", ("tiny",))
