"""Wrappers change the form of actions, or what the images show, and nothing else."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mimgenv
from agents.rollout import run_episodes
from mimgenv import TextActions, load_task
from mimgenv.env import CHARACTERS_PER_TOKEN, MultiImageEnv
from mimgenv.errors import TaskError
from mimgenv.geometry import View
from mimgenv.spaces import UnicodeText
from mimgenv.tasks.rendered import RenderedTasks
from mimgenv.tools import resize
from mimgenv.types import Grounding, Image, Observation, Task
from mimgenv.wrappers import GREY, BlankImages, ShuffleImages, SwapImages

CODEC = mimgenv.default_codec()
ENV_ID = "MultiImageTinyZoom-v0"
ZOOM = (
    '<think>small</think><tool_call>{"name": "zoom", "arguments": {"image": 2, "bbox_2d": [0, 0, 42, 42]}}</tool_call>'
)
ANSWER = '<think>é漢</think><answer>{"image": 3, "label": "red circle", "bbox_2d": [0, 0, 42, 42]}</answer>'


def text_env(**arguments: Any) -> TextActions:
    return TextActions(gym.make(ENV_ID, **arguments))


@pytest.mark.parametrize("turns", [(ZOOM, ANSWER), (ANSWER,), ("nonsense", ZOOM), (ZOOM, ZOOM), ("", "")])
def test_a_turn_as_text_does_what_its_ids_do(turns: tuple[str, ...]) -> None:
    with_ids, with_text = gym.make(ENV_ID, max_tokens=200), text_env(max_tokens=200)
    with_ids.reset(seed=5)
    with_text.reset(seed=5)
    for turn in turns:
        seen, *paid, info = with_ids.step(CODEC.encode_turn(turn))
        seen_too, *paid_too, info_too = with_text.step(turn)
        assert seen["text"] == seen_too["text"]
        assert [a.tobytes() for a in seen["images"]] == [a.tobytes() for a in seen_too["images"]]
        assert paid == paid_too
        assert {k: v for k, v in info.items() if k != "budget"} == {k: v for k, v in info_too.items() if k != "budget"}


def test_text_is_charged_a_token_per_four_characters_begun() -> None:
    env = text_env(max_tokens=64, max_turns=3)
    env.reset(seed=0)
    for text, left in (("", 64), ("a", 63), ("b" * 9, 60)):
        *_, info = env.step(text)
        assert info["budget"]["tokens"] == left
    assert CHARACTERS_PER_TOKEN == 4


def test_the_length_of_text_is_checked_before_anything_is_read() -> None:
    env = text_env(max_tokens=64)
    env.reset(seed=0)
    good = "<think></think><answer>" + " " * 300 + "1</answer>"
    *_, info = env.step(good)
    assert (info["error"], info["stop"]) == ("too_long", "void")


def test_text_of_exactly_the_tokens_left_is_not_too_long() -> None:
    env = text_env(max_tokens=64)
    env.reset(seed=0)
    *_, info = env.step(ANSWER.ljust(64 * CHARACTERS_PER_TOKEN))
    assert (info["error"], info["budget"]["tokens"]) == ("bad_image_index", 0)


def test_the_action_space_holds_the_longest_text_that_is_not_too_long() -> None:
    env = text_env(max_tokens=50)
    assert env.action_space == UnicodeText(50 * CHARACTERS_PER_TOKEN)
    assert env.observation_space == env.unwrapped.observation_space


def test_the_constructor_is_recorded_so_that_a_spec_makes_the_wrapped_environment_again() -> None:
    env = text_env(max_turns=1)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert isinstance(again, TextActions)
    assert isinstance(again.unwrapped, MultiImageEnv)
    assert again.unwrapped.max_turns == 1
    first, second = env.reset(seed=3)[0], again.reset(seed=3)[0]
    assert first["text"] == second["text"]
    np.testing.assert_array_equal(first["images"][0], second["images"][0])


def test_gymnasium_has_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = text_env()
        env.reset(seed=0)
        env.step(ZOOM)
        env.step(json.dumps({"not": "a turn"}))


# Other images

IMAGE_WRAPPERS: list[Callable[[Any], Any]] = [BlankImages, ShuffleImages, SwapImages]
TURN = "<think>t</think>"


def call(name: str, **arguments: Any) -> str:
    return f"{TURN}<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Marked:
    """A source of two types that take turns; every image of a task is a colour of its own, in pictures of odd sizes.

    Image k of seed n holds n in the red channel and k in the green one; in the blue one, which row it is.
    """

    task_types = ("a", "b")

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return 100

    def task(self, seed: int) -> Task:
        images = tuple(self._image(seed, k) for k in range(1, self.counts[seed % len(self.counts)] + 1))
        truth = Grounding(1, "x", (0.0, 0.0, 9.0, 9.0))
        objects = ((),) * len(images)
        return Task(f"marked:{seed}", self.task_types[seed % 2], images, "Find it.", truth, "", objects)

    @staticmethod
    def _image(seed: int, number: int) -> Image:
        image = np.zeros((28 * number, 56, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = seed, number, np.arange(28 * number)[:, None]
        return image


def tags(observation: Observation) -> list[tuple[int, int]]:
    """Of each image shown: the seed and the number of the image that it really is."""
    return [(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in observation["images"]]


def marked(wrapper: Callable[[Any], Any], *counts: int, **arguments: Any) -> Any:
    return wrapper(gym.make("MultiImageQA-v0", source=Marked(*counts), **arguments))


@pytest.mark.parametrize("wrapper", IMAGE_WRAPPERS)
def test_other_images_leave_sizes_texts_truth_and_rewards_as_they_are(wrapper: Callable[[Any], Any]) -> None:
    plain, other = gym.make(ENV_ID), wrapper(gym.make(ENV_ID))
    assert plain.observation_space == other.observation_space
    for turns in ((), (ZOOM,), ("nonsense",), (ZOOM, ANSWER)):
        played, seen = plain.reset(seed=3), other.reset(seed=3)
        for turn in turns:
            played, seen = plain.step(CODEC.encode_turn(turn)), other.step(CODEC.encode_turn(turn))
        assert played[0]["text"] == seen[0]["text"]
        assert [image.shape for image in played[0]["images"]] == [image.shape for image in seen[0]["images"]]
        assert played[1:] == seen[1:]
        assert [v.pixels.tobytes() for v in plain.unwrapped.views] == [
            v.pixels.tobytes() for v in other.unwrapped.views
        ]
        if played[0]["images"]:
            assert [i.tobytes() for i in played[0]["images"]] != [i.tobytes() for i in seen[0]["images"]]
        assert other.observation_space.contains(seen[0])


def test_blank_images_are_grey_and_so_are_those_of_tools() -> None:
    env = BlankImages(gym.make("MultiImageQA-v0"))
    shown = list(env.reset(seed=0)[0]["images"])
    box = {"image": 1, "bbox_2d": [10, 10, 60, 60]}
    for turn in (
        call("zoom", **box),
        call("visual_confirmation", **box, label="x"),
        call("visual_reflection", image=1),
    ):
        shown += env.step(CODEC.encode_turn(turn))[0]["images"]
    assert len(shown) == len(env.unwrapped.views) > 3
    assert {int(value) for image in shown for value in np.unique(image)} == {GREY}


def test_shuffled_images_are_the_same_images_in_another_order_at_the_sizes_of_the_places() -> None:
    env = marked(ShuffleImages, 4)
    orders = set()
    for seed in range(40):
        observation, _ = env.reset(seed=seed)
        shown = tags(observation)
        assert sorted(shown) == [(seed, k) for k in (1, 2, 3, 4)] != shown
        assert [image.shape[0] for image in observation["images"]] == [28, 56, 84, 112]
        for (_, k), image in zip(shown, observation["images"], strict=True):
            np.testing.assert_array_equal(image, resize(Marked._image(seed, k), image.shape[1], image.shape[0]))
        orders.add(tuple(k for _, k in shown))
    assert len(orders) > 15


def test_two_images_change_places_and_one_stays() -> None:
    for seed in range(10):
        assert tags(marked(ShuffleImages, 2).reset(seed=seed)[0]) == [(seed, 2), (seed, 1)]
        assert tags(marked(ShuffleImages, 1).reset(seed=seed)[0]) == [(seed, 1)]


def test_the_order_hangs_on_the_task_alone() -> None:
    env = ShuffleImages(gym.make("MultiImageQA-v0", world="tiny", tasks=("odd_one_out",)))
    first, info = env.reset(seed=7)
    again, _ = env.reset(options={"task_id": info["task_id"]})
    assert [image.tobytes() for image in first["images"]] == [image.tobytes() for image in again["images"]]


def test_swapped_images_are_those_of_the_next_seed_of_the_same_type() -> None:
    assert tags(marked(SwapImages, 3).reset(seed=5)[0]) == [(7, 1), (7, 2), (7, 3)]


def test_a_task_with_fewer_images_is_shown_again_from_its_first() -> None:
    env = marked(SwapImages, 5, 0, 2, 0)
    observation, _ = env.reset(seed=0)
    assert tags(observation) == [(2, 1), (2, 2), (2, 1), (2, 2), (2, 1)]
    assert [image.shape[0] for image in observation["images"]] == [28, 56, 84, 112, 140]


def test_a_task_played_by_its_id_is_swapped_for_one_of_its_type_always_the_same() -> None:
    env = SwapImages(gym.make("MultiImageTiny-v0"))
    task = load_task("rendered:tiny/referring/any/test/1")
    shown = [env.reset(seed=seed, options={"task_id": task.task_id})[0]["images"] for seed in (0, 1)]
    assert [image.tobytes() for image in shown[0]] == [image.tobytes() for image in shown[1]]
    assert not any(a.tobytes() == b.tobytes() for a, b in zip(shown[0], task.images, strict=True))


def test_the_other_task_is_of_the_same_type_where_types_do_not_take_turns() -> None:
    class InPairs(Marked):
        def task(self, seed: int) -> Task:
            task = super().task(seed)
            return replace(task, task_type=self.task_types[seed // 2 % 2])

    env = SwapImages(gym.make("MultiImageQA-v0", source=InPairs(1)))
    assert [tags(env.reset(seed=seed)[0])[0][0] for seed in (0, 1)] == [4, 5]


def test_a_source_without_another_task_of_the_type_cannot_be_swapped() -> None:
    class Lonely(Marked):
        def task(self, seed: int) -> Task:
            return super().task(1)

    with pytest.raises(TaskError, match="holds another task of type b"):
        SwapImages(gym.make("MultiImageQA-v0", source=Lonely(2))).reset(seed=0)


@pytest.mark.parametrize("wrapper", [ShuffleImages, SwapImages])
def test_a_tool_shows_its_region_of_the_image_that_is_seen(wrapper: Callable[[Any], Any]) -> None:
    env = marked(wrapper, 2)
    first = env.reset(seed=1)[0]["images"]
    region = {"image": 1, "bbox_2d": [0, 14, 28, 28]}
    zoomed = env.step(CODEC.encode_turn(call("zoom", **region)))[0]["images"][0]
    again = env.step(CODEC.encode_turn(call("visual_reflection", image=2)))[0]["images"][0]
    np.testing.assert_array_equal(zoomed, resize(first[0][14:28, 0:28], *env.unwrapped.views[2].size))
    np.testing.assert_array_equal(again, first[1])


@pytest.mark.parametrize("wrapper", [ShuffleImages, SwapImages])
def test_a_zoom_into_an_image_shown_small_is_as_sharp_as_ever(wrapper: Callable[[Any], Any]) -> None:
    env = wrapper(gym.make(ENV_ID))
    env.reset(seed=2)
    (zoomed,) = env.step(CODEC.encode_turn(ZOOM))[0]["images"]
    _, view, crop = env.unwrapped.views
    assert isinstance(view, View)
    x1, y1, x2, y2 = map(int, crop.region)
    sharp = [task.images for task in (env.unwrapped.source.task(seed) for seed in (2, 3))]
    images = [image for images in sharp for image in images]
    assert images[0].shape[1] > view.size[0]
    assert any((resize(image[y1:y2, x1:x2], *crop.size) == zoomed).all() for image in images)


@pytest.mark.parametrize("wrapper", IMAGE_WRAPPERS)
def test_what_is_handed_out_may_be_scribbled_on(wrapper: Callable[[Any], Any]) -> None:
    env = marked(wrapper, 2)
    shown = env.reset(seed=1)[0]["images"]
    kept = [image.copy() for image in shown]
    for image in shown:
        image[:] = 255
    again = [env.step(CODEC.encode_turn(call("visual_reflection", image=k)))[0]["images"][0] for k in (1, 2)]
    assert [image.tobytes() for image in again] == [image.tobytes() for image in kept]
    assert [image.tobytes() for image in env.reset(seed=1)[0]["images"]] == [image.tobytes() for image in kept]


@pytest.mark.parametrize("wrapper", IMAGE_WRAPPERS)
def test_a_spec_makes_the_image_wrapper_again(wrapper: type) -> None:
    env = wrapper(gym.make(ENV_ID))
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert isinstance(again, wrapper)
    first, second = env.reset(seed=3)[0], again.reset(seed=3)[0]
    assert [image.tobytes() for image in first["images"]] == [image.tobytes() for image in second["images"]]


@pytest.mark.parametrize("wrapper", IMAGE_WRAPPERS)
@pytest.mark.parametrize(("mode", "options"), [("sync", {}), ("async", {"shared_memory": False})])
def test_vector_environments_show_the_same_other_images(wrapper: Any, mode: str, options: dict[str, Any]) -> None:
    many = gym.make_vec(ENV_ID, 2, vectorization_mode=mode, vector_kwargs=options, wrappers=[wrapper])
    observations, _ = many.reset(seed=[4, 5])
    many.close()
    for seed, images in zip((4, 5), observations["images"], strict=True):
        alone = wrapper(gym.make(ENV_ID)).reset(seed=seed)[0]["images"]
        assert [image.tobytes() for image in images] == [image.tobytes() for image in alone]


def test_episodes_are_played_in_wrapped_environments_from_a_factory() -> None:
    class Corner:
        def act(self, histories: Any) -> list[str]:
            return [ANSWER.replace("3", "1") for _ in histories]

    def factory() -> Any:
        return BlankImages(gym.make("MultiImageTiny-v0", disable_env_checker=True))

    blank = run_episodes(Corner(), factory, range(3), parallel=2)
    plain = run_episodes(Corner(), "MultiImageTiny-v0", range(3))
    assert {int(image.max()) for trajectory in blank for image in trajectory.images} == {GREY}
    assert [(t.task_id, t.reward, t.stop) for t in blank] == [(t.task_id, t.reward, t.stop) for t in plain]


def test_gymnasiums_checker_has_nothing_to_say_of_the_image_wrappers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrapper in IMAGE_WRAPPERS:
            env = wrapper(gym.make(ENV_ID))
            env.reset(seed=0)
            env.step(CODEC.encode_turn(ZOOM))


def test_rendered_types_are_swapped_without_making_tasks_of_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    task_of = RenderedTasks.task

    def counted(self: RenderedTasks, seed: int) -> Task:
        made.append(task_of(self, seed).task_type)
        return task_of(self, seed)

    monkeypatch.setattr(RenderedTasks, "task", counted)
    SwapImages(gym.make("MultiImageTiny-v0")).reset(seed=9)
    assert len(made) == 2
    assert len(set(made)) == 1
