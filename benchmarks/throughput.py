"""Episodes, turns and tokens per second on one core, beside its peers in the same run; and over several processes.

OMP_NUM_THREADS=1 python benchmarks/throughput.py

The peers are measured where they are installed (`pip install minigrid gem-llm datasets math-verify`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

import mimgenv
from mimgenv.tasks.prefetch import PrefetchedTasks
from mimgenv.tasks.rendered import RenderedTasks

Play = Callable[[int], int]
"""Does something with a seed and returns how many things it did."""


def per_second(play: Play, seconds: float, clock: Callable[[], float] = time.process_time) -> float:
    """Best of three rates."""
    best, seed = 0.0, 0
    play(seed)
    for _ in range(3):
        count, began = 0, clock()
        while (spent := clock() - began) < seconds / 3:
            seed += 1
            count += play(seed)
        best = max(best, count / spent)
    return best


def fresh_images(**arguments: Any) -> Play:
    """Resets with a new seed each time; counts images, so that episodes of four can be stated."""
    env = gym.make("MultiImageQA-v0", disable_env_checker=True, **arguments).unwrapped

    def play(seed: int) -> int:
        observation, _ = env.reset(seed=seed)
        return len(observation["images"])

    return play


def text_turns() -> Play:
    """Turns that bring no image: well-formed calls of a tool that does not exist."""
    env = gym.make("MultiImageQA-v0", disable_env_checker=True, max_turns=10**6, max_tokens=10**9).unwrapped
    codec = env.codec  # type: ignore[attr-defined]
    turn = codec.encode_turn('<think>Look again.</think><tool_call>{"name": "look", "arguments": {}}</tool_call>')
    env.reset(seed=0)

    def play(_: int) -> int:
        env.step(turn)
        return 1

    return play


def masked_tokens(env_id: str) -> Play:
    """Steps of one token, each drawn at random from its mask; the scene is made before."""
    env: Any = mimgenv.TokenActions(gym.make(env_id, disable_env_checker=True))
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def play(_: int) -> int:
        _, _, terminated, truncated, _ = env.step(rng.choice(np.flatnonzero(env.action_masks())))
        if terminated or truncated:
            env.reset(seed=0)
        return 1

    return play


def cart_pole() -> Play:
    """The yardstick: steps of CartPole-v1."""
    env = gym.make("CartPole-v1", disable_env_checker=True).unwrapped
    env.reset(seed=0)

    def play(seed: int) -> int:
        if env.step(seed % 2)[2]:
            env.reset()
        return 1

    return play


def minigrid() -> Play:
    """Resets of Minigrid's 8 x 8 room, drawn as one image of 256 x 256."""
    from minigrid.wrappers import RGBImgObsWrapper

    env = RGBImgObsWrapper(gym.make("MiniGrid-Empty-8x8-v0", disable_env_checker=True), tile_size=32)

    def play(seed: int) -> int:
        env.reset(seed=seed)
        return 1

    return play


def gem() -> Play:
    """Resets of GEM's visual environment over four images an item, 224 x 224, stored as PNG in memory."""
    from datasets import Dataset
    from gem.envs.math_visual_env import MathVisualEnv
    from PIL import Image

    source = RenderedTasks("tabletop", ("group_grounding",))
    pictures = [Image.fromarray(image) for seed in range(64) for image in source.task(seed).images][: 64 * 2]
    items = [pictures[4 * item : 4 * item + 4] for item in range(len(pictures) // 4)]
    columns = {"images": items, "problem": ["Which image?"] * len(items), "answer": ["2"] * len(items)}
    env = MathVisualEnv(dataset=Dataset.from_dict(columns), use_mp=False)

    def play(seed: int) -> int:
        observation, _ = env.reset(seed=seed)
        return int(sum(np.asarray(image).size > 0 for image in observation["images"]) / 4)

    return play


def single_core(seconds: float) -> Iterator[tuple[str, float]]:
    """Rates in CPU time of this process."""
    yield "CartPole-v1 steps (yardstick)", per_second(cart_pole(), seconds)
    for name, peer in (("Minigrid resets, one RGB 256²", minigrid), ("GEM resets, 4 images of 224² in memory", gem)):
        try:
            yield name, per_second(peer(), seconds)
        except ImportError as error:
            print(f"not measured: {name}: {error}")
    for world in ("tabletop", "sprites"):
        yield f"fresh episodes of 4 images of 224² ({world})", per_second(fresh_images(world=world), seconds) / 4
    for task_type in ("referring", "static_difference"):
        rate = per_second(fresh_images(world="tabletop", tasks=(task_type,)), seconds) / 4
        yield f"  of {task_type.replace('_', ' ')} (tabletop)", rate
    tiny = mimgenv.ENVIRONMENTS["MultiImageTiny-v0"]
    yield "fresh episodes of 2 images of 84² (tiny)", per_second(fresh_images(**tiny), seconds) / 2
    yield "text turns without a new image", per_second(text_turns(), seconds)
    yield "token steps with masks", per_second(masked_tokens("MultiImageQA-v0"), seconds)
    yield (
        "  of 64 tokens an episode, most of them near the end (tiny)",
        per_second(masked_tokens("MultiImageTiny-v0"), seconds),
    )


def vectorised(processes: int, seconds: float) -> float:
    """Fresh images per second of wall time of an asynchronous vector environment."""
    options = {"shared_memory": False}
    envs = gym.make_vec("MultiImageQA-v0", processes, vectorization_mode="async", vector_kwargs=options)

    def play(seed: int) -> int:
        observation, _ = envs.reset(seed=[seed * processes + index for index in range(processes)])
        return sum(len(images) for images in observation["images"])

    rate = per_second(play, seconds, time.perf_counter)
    envs.close()
    return rate


def waits(workers: int, tasks: int = 200, thinking: float = 0.04) -> float:
    """Seconds that a consumer, busy for `thinking` seconds a task, waits for each of its tasks."""
    source: Any = RenderedTasks()
    if workers:
        source = PrefetchedTasks(source, workers)
    source.task(0)
    waited = 0.0
    for seed in range(1, tasks + 1):
        ends = time.perf_counter() + thinking
        while time.perf_counter() < ends:
            pass
        began = time.perf_counter()
        source.task(seed)
        waited += time.perf_counter() - began
    if workers:
        source.close()
    return waited / tasks


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=9.0, help="time of each measurement")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    options = parser.parse_args()
    yardstick = 0.0
    print("| what | per second | share of the yardstick |\n| --- | --- | --- |")
    for name, rate in single_core(options.seconds):
        yardstick = yardstick or rate
        print(f"| {name} | {rate:,.0f} | {rate / yardstick:.5f} |", flush=True)
    print("\n| processes of `gym.make_vec` | fresh images a second |\n| --- | --- |")
    for count in options.processes:
        print(f"| {count} | {vectorised(count, options.seconds):,.0f} |", flush=True)
    print("\n| workers of `PrefetchedTasks` | wait for a task, ms |\n| --- | --- |")
    for count in (0, 1, 2):
        print(f"| {count} | {1000 * waits(count):.1f} |", flush=True)


if __name__ == "__main__":
    main()
