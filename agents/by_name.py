"""Agents by their names: `random`, `oracle`, `blind:copy`, `vlm:PATH` and so on, made for one environment.

Owns what a name means and what its agent takes from the environment: tools, box frame, codec, tasks to learn habits
from. How agents decide is theirs; what comes with torch or a client is imported only where it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agents.oracle import THOUGHTS, OracleAgent
from agents.types import Agent
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError
from mimgenv.turn_rules import TurnRules

if TYPE_CHECKING:
    from agents.vlm import VLMAgent

NAMES: Final = "random, oracle, oracle:THOUGHTS, blind:NAME, vlm:PATH, sb3:PATH, openai:MODEL@http://host:port/v1"

ORACLE_GRID: Final = 0.0001
"""How finely an oracle writes coordinates unless told otherwise: an upper bound must not be lowered by rounding."""

HABIT_TASKS: Final = 64
"""Tasks of each type that blind agents learn their habits from."""


def agent_by_name(
    name: str,
    env: MultiImageEnv,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    max_tokens: int = 256,
    device: str = "cpu",
    dtype: str = "float32",
    constrain: bool = False,
    zoom: float = 0.0,
    grid: float = ORACLE_GRID,
) -> Agent:
    """The agent of a name, as this environment needs it. Each takes the options that mean something to it.

    Args:
        name: One of `NAMES`. `oracle` writes coordinates finely and thinks the rationale; `oracle:annotations` (or
            `label`, `rationale`) plays as a cold start learns from it, on the lattice of the tiny world. `vlm:tiny` is
            the checkpoint that ships with the package. The key of a server is `OPENAI_API_KEY` of the process
            environment.
        env: Where it is to play.
        seed: Of its own choices: random, oracle, blind, vlm.
        temperature: Of sampling; 0 takes the likeliest token: vlm, openai.
        max_tokens: Longest turn: vlm, openai.
        device: Where the model computes: vlm.
        dtype: In which numbers it does: vlm.
        constrain: Only turns that can be carried out, but for inverted boxes: vlm.
        zoom: Share of grounding episodes in which it zooms first, in [0, 1]: oracle.
        grid: Coordinates are multiples of it, above 0: oracle.

    Raises:
        ConfigurationError: If there is no such agent, or it cannot play there.
    """
    kind, _, rest = name.partition(":")
    if name == "random":
        from agents.random_agent import RandomAgent

        return RandomAgent(tools=tuple(env.tools.values()), box_frame=env.box_frame, seed=seed)
    if name == "oracle":
        return _oracle(env, zoom, grid, seed)
    if kind == "oracle" and rest in THOUGHTS:
        return OracleAgent.for_env(env, zoom=zoom, think=rest, seed=seed)
    if kind == "blind":
        return _blind(rest, env, seed)
    if kind == "vlm" and rest:
        agent = _vlm(rest, temperature=temperature, max_tokens=max_tokens, seed=seed, device=device, dtype=dtype)
        return _constrained(agent, env) if constrain else agent
    if kind == "sb3" and rest:
        return _sb3(rest, env)
    if kind == "openai":
        from agents.api_agent import APIAgent, Endpoint, EndpointSettings

        settings = EndpointSettings.parse(rest, temperature=temperature, max_tokens=max_tokens)
        return APIAgent(Endpoint(settings), env.codec)
    raise ConfigurationError(f"agent {name!r} is not one of {NAMES}")


def _oracle(env: MultiImageEnv, zoom: float, grid: float, seed: int) -> Agent:
    if not 0 <= zoom <= 1 or grid <= 0:
        raise ConfigurationError(f"zoom {zoom} must be in [0, 1], grid {grid} above 0")
    if zoom and "zoom" not in env.tools:
        raise ConfigurationError(f"the environment has no zoom tool, its tools are {list(env.tools)}")
    return OracleAgent(env.box_frame, grid=grid, zoom=zoom, seed=seed)


def _blind(policy: str, env: MultiImageEnv, seed: int) -> Agent:
    from agents.blind import LEARNING, BlindAgent
    from agents.habits import learn_habits, training_tasks

    habits = learn_habits(training_tasks(env.source, HABIT_TASKS)) if policy in LEARNING else None
    return BlindAgent(policy, habits, env.box_frame, seed)


def _vlm(path: str, **options: Any) -> VLMAgent:
    from transformers.utils.logging import disable_progress_bar

    from agents.vlm import VLMAgent

    disable_progress_bar()
    try:
        return VLMAgent.load(path, **options)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's for a device it lacks is an AssertionError
        raise ConfigurationError(f"vlm:{path} cannot be loaded: {error}") from error


def _constrained(agent: VLMAgent, env: MultiImageEnv) -> VLMAgent:
    from agents.vlm import VLMAgent

    rules = TurnRules(agent.codec, env.tools, env.box_frame, max_turn_tokens=agent.parameters.max_tokens)
    return VLMAgent(agent.chat, agent.sampler, agent.parameters, rules)


def _sb3(path: str, env: MultiImageEnv) -> Agent:
    from agents.sb3_agent import SB3Agent

    agent = SB3Agent.load(path)
    if agent.settings.box_frame != env.box_frame:
        raise ConfigurationError(f"{path} writes boxes as {agent.settings.box_frame}, not as {env.box_frame}")
    return agent
