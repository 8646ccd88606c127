"""Episodes and turns per second on one core, beside Gymnasium's CartPole in the same run.

OMP_NUM_THREADS=1 python benchmarks/throughput.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium as gym

import mimgenv  # noqa: F401  registers the ids


def per_second(play: Callable[[int], int], seconds: float) -> float:
    """Best of three rates of `play(seed)`, which returns how many things it did; CPU time."""
    best, seed = 0.0, 0
    play(seed)
    for _ in range(3):
        count, began = 0, time.process_time()
        while (spent := time.process_time() - began) < seconds / 3:
            seed += 1
            count += play(seed)
        best = max(best, count / spent)
    return best


def fresh_images(world: str) -> Callable[[int], int]:
    """Resets with a new seed each time; counts images, so that episodes of four can be stated."""
    env = gym.make("MultiImageQA-v0", disable_env_checker=True, world=world).unwrapped

    def play(seed: int) -> int:
        observation, _ = env.reset(seed=seed)
        return len(observation["images"])

    return play


def text_turns() -> Callable[[int], int]:
    """Turns that bring no image: well-formed calls of a tool that does not exist."""
    env = gym.make("MultiImageQA-v0", disable_env_checker=True, max_turns=10**6, max_tokens=10**9).unwrapped
    codec = env.codec  # type: ignore[attr-defined]
    turn = codec.encode_turn('<think>Look again.</think><tool_call>{"name": "look", "arguments": {}}</tool_call>')
    env.reset(seed=0)

    def play(_: int) -> int:
        env.step(turn)
        return 1

    return play


def cart_pole() -> Callable[[int], int]:
    """The yardstick: steps of CartPole-v1."""
    env = gym.make("CartPole-v1", disable_env_checker=True).unwrapped
    env.reset(seed=0)

    def play(seed: int) -> int:
        if env.step(seed % 2)[2]:
            env.reset()
        return 1

    return play


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=9.0, help="CPU time of each measurement")
    seconds = parser.parse_args().seconds
    yardstick = per_second(cart_pole(), seconds)
    figures = {
        "CartPole-v1 steps (yardstick)": yardstick,
        "fresh episodes of 4 images of 224² (table-top)": per_second(fresh_images("tabletop"), seconds) / 4,
        "fresh episodes of 2 images of 84² (tiny)": per_second(fresh_images("tiny"), seconds) / 2,
        "text turns without a new image": per_second(text_turns(), seconds),
    }
    print("| what | per second | share of the yardstick |\n| --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:,.0f} | {value / yardstick:.5f} |")


if __name__ == "__main__":
    main()
