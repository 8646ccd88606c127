"""Same seed, same bytes and text: in every process and vector mode, for every id of the table.

An episode is played by a script that is the same everywhere; its digest covers every text, pixel, reward and info.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import mimgenv
from mimgenv.testing.episode import Episode

IDS = tuple(mimgenv.ENVIRONMENTS)
SEEDS = (0, 6)


def script(episode: Episode) -> list[str]:
    """A bad turn, a tool call where there is a tool, and an answer that is often refused."""
    return [turn for turn in ("nonsense", episode.call(), "<think></think><answer>1</answer>") if turn]


def digest(transcript: list[Any]) -> str:
    parts = (part if isinstance(part, bytes) else part.encode() for part in transcript)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def play(env: Any, seed: int) -> str:
    """Plays an episode by the script."""
    episode = Episode(env, seed)
    return digest(episode.play(*script(episode)).transcript)


@cache
def here() -> dict[tuple[str, int], str]:
    """The digests in this process."""
    return {(env_id, seed): play(gym.make(env_id), seed) for env_id in IDS for seed in SEEDS}


# Fresh processes

MAIN = """
import hashlib, sys
from typing import Any
import gymnasium as gym
assert "mimgenv" not in sys.modules
gym.make("mimgenv:" + sys.argv[2])
from mimgenv.testing.episode import Episode
{functions}
for env_id in sys.argv[2:]:
    for seed in map(int, sys.argv[1].split(",")):
        print(env_id, seed, play(gym.make("mimgenv:" + env_id), seed))
"""


def fresh(ids: tuple[str, ...], seeds: tuple[int, ...], **environ: str) -> dict[tuple[str, int], str]:
    """The digests in a process of its own."""
    code = MAIN.format(functions="".join(inspect.getsource(each) for each in (script, digest, play)))
    command = [sys.executable, "-W", "error", "-c", code, ",".join(map(str, seeds)), *ids]
    printed = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines()]
    return {(env_id, int(seed)): seen for env_id, seed, seen in rows}


def simd() -> str:
    """The instruction sets that numpy chooses among as it runs."""
    from numpy._core import _multiarray_umath as umath

    return " ".join(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name])


PROCESSES: dict[str, Callable[[], dict[tuple[str, int], str]]] = {
    "hash seed 0": lambda: fresh(IDS, SEEDS, PYTHONHASHSEED="0"),
    "another hash seed, in the other order": lambda: fresh(IDS[::-1], SEEDS[::-1], PYTHONHASHSEED="4242"),
    "a plainer processor": lambda: fresh(IDS, SEEDS, NPY_DISABLE_CPU_FEATURES=simd()),
}


@pytest.fixture(scope="module", params=PROCESSES)
def elsewhere(request: pytest.FixtureRequest) -> dict[tuple[str, int], str]:
    """The digests of all ids in one fresh process."""
    return PROCESSES[request.param]()


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_gives_the_same_bytes_and_text_in_a_fresh_process(
    env_id: str, elsewhere: dict[tuple[str, int], str]
) -> None:
    for seed in SEEDS:
        assert elsewhere[env_id, seed] == here()[env_id, seed]


# One process


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_gives_the_same_bytes_and_text_again_and_another_seed_others(env_id: str) -> None:
    env = gym.make(env_id)
    assert [play(env, seed) for seed in SEEDS[::-1]][::-1] == [here()[env_id, seed] for seed in SEEDS]
    assert len({here()[env_id, seed] for seed in SEEDS}) == len(SEEDS)


def test_fifty_seeds_give_fifty_episodes() -> None:
    env = gym.make("MultiImageTiny-v0")
    assert len({digest(Episode(env, seed).transcript) for seed in range(50)}) == 50


def test_the_digest_tells_a_changed_pixel_and_a_changed_word() -> None:
    episode = Episode(gym.make("MultiImageTiny-v0"), 0)
    before = digest(episode.transcript)
    for place, part in enumerate(episode.transcript):
        changed = [*episode.transcript]
        changed[place] = part[:-1] + (b"\1" if isinstance(part, bytes) else "~")  # type: ignore[operator]
        assert digest(changed) != before


def _states() -> str:
    return repr((random.getstate(), np.random.get_state()))  # noqa: NPY002  the old one is what must not be used


@pytest.mark.parametrize("env_id", IDS)
def test_the_global_generators_are_neither_read_nor_moved(env_id: str) -> None:
    random.seed(env_id)
    np.random.seed(len(env_id))  # noqa: NPY002
    before = _states()
    env = gym.make(env_id)
    assert play(env, SEEDS[0]) == here()[env_id, SEEDS[0]]
    env.reset()
    assert _states() == before


def later(env: gym.Env[Any, Any], resets: int = 3) -> list[str]:
    return [env.reset()[1]["task_id"] for _ in range(resets)]


@pytest.mark.parametrize("env_id", IDS)
def test_resets_without_a_seed_follow_from_the_last_seed_whatever_was_played(env_id: str) -> None:
    quiet, busy, other = (gym.make(env_id) for _ in range(3))
    quiet.reset(seed=5)
    play(busy, 7)
    play(busy, 5)
    assert later(quiet) == later(busy)
    other.reset(seed=6)
    assert later(other) != later(quiet)
    quiet.reset(seed=5)
    assert len(set(later(quiet, 4))) == 4


COPIES: dict[str, Callable[[Episode], Episode]] = {
    "pickled": lambda episode: pickle.loads(pickle.dumps(episode)),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("env_id", IDS)
def test_a_pickled_or_copied_environment_goes_on_as_the_one_it_was_made_from(env_id: str, way: str) -> None:
    first = Episode(gym.make(env_id), SEEDS[0])
    turns = script(first)
    first.play(turns[0])
    second = COPIES[way](first)
    second.play(*turns[1:])
    assert first.info["budget"] != second.info["budget"]  # what the copy does, the first does not notice
    first.play(*turns[1:])
    assert digest(first.transcript) == digest(second.transcript) == here()[env_id, SEEDS[0]]
    assert later(first.env) == later(second.env)


def test_environments_that_take_turns_do_not_disturb_each_other() -> None:
    episodes = {(env_id, seed): Episode(gym.make(env_id), seed) for env_id in IDS for seed in SEEDS}
    turns = {key: iter(script(episode)) for key, episode in episodes.items()}
    waiting = list(episodes)
    rng = random.Random(1)
    while waiting:
        key = rng.choice(waiting)
        turn = next(turns[key], None)
        if turn is None:
            waiting.remove(key)
        else:
            episodes[key].play(turn)
    assert {key: digest(episode.transcript) for key, episode in episodes.items()} == here()


# Vectors


def every_id(ids: tuple[str, ...]) -> Callable[[], gym.Env[Any, Any]]:
    """Makes one environment that plays all ids: seed n is seed n // len(ids) of id n % len(ids).

    Thus two workers are enough for all of them. What is made here is defined here, so that it can be sent to a worker
    that has not imported this module.
    """

    def make() -> gym.Env[Any, Any]:
        import gymnasium

        import mimgenv as package

        class EveryId(gymnasium.Env[Any, Any]):
            def __init__(self) -> None:
                self.envs = [gymnasium.make(env_id) for env_id in ids]
                self.env = self.envs[0]
                self.observation_space = self.env.observation_space
                self.action_space = package.MultiImageEnv(world="tiny", max_tokens=100_000).action_space

            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                if seed is None:
                    return self.env.reset()
                self.env = self.envs[seed % len(ids)]
                return self.env.reset(seed=seed // len(ids))

            def step(self, action: Any) -> Any:
                return self.env.step(action)

        return EveryId()

    return make


BY_HAND = AutoresetMode.DISABLED
"""Otherwise, an asynchronous worker resets once more after a reset that follows the end of an episode."""

MODES: dict[str, Callable[[list[Any]], VectorEnv[Any, Any, Any]]] = {
    "sync": lambda makers: SyncVectorEnv(makers, autoreset_mode=BY_HAND),
    "fork": lambda makers: AsyncVectorEnv(makers, shared_memory=False, context="fork", autoreset_mode=BY_HAND),
    "spawn": lambda makers: AsyncVectorEnv(makers, shared_memory=False, context="spawn", autoreset_mode=BY_HAND),
}


@pytest.fixture(scope="module", params=MODES)
def vector(request: pytest.FixtureRequest) -> Iterator[VectorEnv[Any, Any, Any]]:
    """A vector of two environments that play all ids."""
    made = MODES[request.param]([every_id(IDS) for _ in SEEDS])
    yield made
    made.close()


def told(observation: Any, reward: Any, info: dict[str, Any]) -> list[Any]:
    images = [(image.shape, image.tobytes()) for image in observation["images"]]
    return [observation["text"], images, float(reward), *(info[key] for key in ("task_id", "error", "stop"))]


def one(observations: Any, rewards: Any, infos: Any, index: int) -> list[Any]:
    """What one environment of a vector told."""
    observation = {key: observations[key][index] for key in ("images", "text")}
    return told(observation, rewards[index], {key: infos[key][index] for key in ("task_id", "error", "stop")})


@pytest.mark.parametrize("env_id", IDS)
def test_a_vector_of_environments_gives_what_single_ones_give(env_id: str, vector: VectorEnv[Any, Any, Any]) -> None:
    alone = [Episode(gym.make(env_id), seed) for seed in SEEDS]
    observations, infos = vector.reset(seed=[seed * len(IDS) + IDS.index(env_id) for seed in SEEDS])
    nothing = [0.0] * len(SEEDS)
    for number, episode in enumerate(alone):
        assert one(observations, nothing, infos, number) == told(episode.said[-1][0], 0.0, episode.info)
    for turn in ("nonsense", script(alone[0])[1]):
        actions = tuple(np.array(episode.form(turn), np.int64) for episode in alone)
        observations, rewards, *_, infos = vector.step(actions)
        for number, episode in enumerate(alone):
            observation, reward, *_ = episode.play(turn).said[-1]
            assert one(observations, rewards, infos, number) == told(observation, reward, episode.info)
    assert all(len(episode.said) == 3 for episode in alone)
