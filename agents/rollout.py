"""The only episode loop: training, evaluation, cold starts and benchmarks all play through `run_episodes`.

Owns the turn-taking between agents and environments. An agent sees histories, never the environment; the environment
sees ids, never the agent. All episodes advance together, so that an agent can batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import gymnasium as gym

import mimgenv  # noqa: F401  registers the ids
from agents.types import Action, Agent, Budget, History, Message, Trajectory, Turn, codec_of
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError

EnvFactory: TypeAlias = Callable[[], gym.Env[Any, Any]]


@dataclass(slots=True)
class _Episode:
    """An environment and its history so far; `finished` is None while it plays."""

    env: gym.Env[Any, Any]
    history: History
    finished: Trajectory | None = None


def _message(observation: Any) -> Message:
    return Message(observation["text"], tuple(observation["images"]))


def _start(env: gym.Env[Any, Any], start: int | str) -> _Episode:
    if isinstance(start, str):
        observation, info = env.reset(options={"task_id": start})
    else:
        observation, info = env.reset(seed=start)
    budget = Budget(**info["budget"])
    return _Episode(env, History(info["task_id"], (), _message(observation), budget, info["answer_kind"]))


def _step(episode: _Episode, action: Action) -> None:
    observation, reward, terminated, truncated, info = episode.env.step(action.ids)
    history = episode.history
    turns = (*history.turns, Turn(history.message, action, info["error"]))
    episode.history = replace(history, turns=turns, message=_message(observation), budget=Budget(**info["budget"]))
    if terminated or truncated:
        episode.finished = Trajectory(
            task_id=info["task_id"],
            task_type=info["task_type"],
            turns=turns,
            reward=float(reward),
            reward_parts=info["reward_parts"],
            stop=info["stop"],
            success=info["success"],
        )


def make_envs(env: str | EnvFactory, count: int, **arguments: Any) -> list[gym.Env[Any, Any]]:
    """`count` environments, of an id (without Gymnasium's passive checks) or from a factory.

    Environments of an id share one task source: a folder of photographs is read once.
    """
    if not isinstance(env, str):
        return [env() for _ in range(count)]
    first = gym.make(env, disable_env_checker=True, **arguments)
    source = getattr(first.unwrapped, "source", None)
    shared = arguments if source is None else {**arguments, "source": source}
    return [first, *(gym.make(env, disable_env_checker=True, **shared) for _ in range(count - 1))]


def open_env(env: str, arguments: Mapping[str, Any]) -> MultiImageEnv:
    """One environment, without wrappers: to ask it for its source, tools and box frame.

    Raises:
        ConfigurationError: If the id is of another kind of environment.
        gymnasium.error.Error: If there is no such id.
    """
    try:
        return unwrapped(gym.make(env, disable_env_checker=True, **arguments))
    except TypeError as error:  # how the constructor of another kind of environment refuses our arguments
        raise ConfigurationError(f"{env} cannot be made with {sorted(arguments)}: {error}") from error


def unwrapped(env: gym.Env[Any, Any]) -> MultiImageEnv:
    """The environment inside all wrappers.

    Raises:
        ConfigurationError: If it is of another kind.
    """
    inner = env.unwrapped
    if not isinstance(inner, MultiImageEnv):
        raise ConfigurationError(f"{type(inner).__name__} is not a MultiImageEnv")
    return inner


def run_episodes(
    agent: Agent,
    env: str | EnvFactory | Sequence[gym.Env[Any, Any]],
    starts: Sequence[int | str],
    *,
    parallel: int = 64,
    on_finish: Callable[[int, gym.Env[Any, Any], Trajectory], None] | None = None,
    **arguments: Any,
) -> list[Trajectory]:
    """Plays one episode per start and returns the trajectories in that order.

    Args:
        agent: Anything with `act(histories)`.
        env: An environment id, a factory, or environments to play in (reused as episodes finish).
        starts: Seeds, or task ids.
        parallel: Most episodes under way at a time, where environments are made here.
        on_finish: Called with (index, environment, trajectory) as each episode ends.
        **arguments: For `gym.make`.

    Raises:
        ValueError: If there are no environments, or the agent does not return one action per history.
    """
    if isinstance(env, str) or callable(env):
        codec = codec_of(agent)
        envs = make_envs(env, min(parallel, len(starts)), **({"codec": codec} if codec else {}) | arguments)
    else:
        envs = list(env)
    if starts and not envs:
        raise ValueError(f"{len(starts)} episodes, no environments to play them in")
    finished: dict[int, Trajectory] = {}
    waiting = list(enumerate(starts))[::-1]
    free = envs[::-1]
    playing: dict[int, _Episode] = {}
    while waiting or playing:
        while waiting and free:
            index, start = waiting.pop()
            playing[index] = _start(free.pop(), start)
        _advance(agent, playing)
        for index in [i for i, episode in playing.items() if episode.finished is not None]:
            episode = playing.pop(index)
            assert episode.finished is not None
            finished[index] = episode.finished
            free.append(episode.env)
            if on_finish is not None:
                on_finish(index, episode.env, episode.finished)
    return [finished[index] for index in range(len(starts))]


def _advance(agent: Agent, playing: dict[int, _Episode]) -> None:
    """One turn of every episode under way."""
    actions = agent.act([episode.history for episode in playing.values()])
    if len(actions) != len(playing):
        raise ValueError(f"{len(playing)} histories, {len(actions)} actions")
    for episode, action in zip(playing.values(), actions, strict=True):
        if isinstance(action, str):
            action = Action(episode.env.unwrapped.codec.encode_turn(action))  # type: ignore[attr-defined]
        _step(episode, action)
