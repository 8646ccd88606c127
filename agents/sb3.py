"""Trains policies of single tokens with Stable-Baselines3: MaskablePPO, or PPO that must find the grammar by itself.

Owns the environment as they are trained in it, training, and its command; the network is in sb3_network.py, the agent
that plays what was trained in sb3_agent.py. Never computes a reward.

    python -m agents.sb3 --tasks locate --difficulty 1 --steps 200000 --seed 0 --output runs/sb3
    python -m agents.evaluate --agent sb3:runs/sb3 --env MultiImageTiny-v0 --tasks locate --difficulty 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from agents.sb3_agent import LIMITS, MAX_TURN_TOKENS, SB3Agent, Settings, codec_of_pieces, survey
from agents.sb3_network import ALGORITHMS, PPO_SETTINGS, EpisodeFeatures
from mimgenv.codec import Codec
from mimgenv.errors import MimgenvError
from mimgenv.tokens import FixedArrays, TokenActions

PARALLEL: Final = 32
"""Environments that are stepped together in training."""
SHOWN: Final = 256
"""Episodes over which the reward is averaged while training."""


class BudgetIsFinal(gym.Wrapper[Any, Any, Any, Any]):
    """An episode that a budget cuts is over, and worth what was paid.

    Stable-Baselines3 adds to a truncated episode what it might still have brought. The budget here is part of the
    task: a policy would learn to run into it.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps; what is truncated is terminated."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which tokens are legal now, (V,) bool."""
        masks: npt.NDArray[np.bool_] = self.env.get_wrapper_attr("action_masks")()
        return masks


def make_env(settings: Settings, codec: Codec) -> BudgetIsFinal:
    """The environment as a policy is trained in it."""
    env = gym.make(settings.env, codec=codec, disable_env_checker=True, **settings.arguments)
    tokens = TokenActions(env, LIMITS, MAX_TURN_TOKENS, skip_forced=True)
    layout = settings.layout
    return BudgetIsFinal(FixedArrays(tokens, layout.height, layout.width, layout.text_tokens))


def _reporter(report: Callable[[int, float], None]) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """A callback for `learn` that hands on the mean reward of the last `SHOWN` episodes."""
    rewards: list[float] = []

    def after_step(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        ended = zip(locals_["rewards"], locals_["dones"], strict=True)
        rewards.extend(float(reward) for reward, done in ended if done)
        if len(rewards) >= SHOWN:
            report(locals_["self"].num_timesteps, float(np.mean(rewards)))
            rewards.clear()
        return True

    return after_step


def train(
    settings: Settings,
    steps: int,
    seed: int = 0,
    folder: Path | None = None,
    report: Callable[[int, float], None] = lambda step, reward: None,
    **ppo: Any,
) -> SB3Agent:
    """Trains a policy on the train split.

    Args:
        settings: From `survey`.
        steps: Tokens that the policy decides.
        seed: Of weights, tasks and sampling.
        folder: Where `model.zip` and `settings.json` are written, for `SB3Agent.load`.
        report: Called now and then with the steps so far and the mean reward of the latest episodes.
        **ppo: Settings in place of `PPO_SETTINGS`.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv

    codec = codec_of_pieces(settings.pieces)
    vector = DummyVecEnv([lambda: make_env(settings, codec)] * PARALLEL)
    network = {"features_extractor_class": EpisodeFeatures, "net_arch": [128]}
    algorithm = ALGORITHMS[settings.algorithm]
    model = algorithm("MultiInputPolicy", vector, seed=seed, policy_kwargs=network, **PPO_SETTINGS | ppo)
    model.learn(steps, callback=_reporter(report))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / "model.zip")
        settings.write(folder / "settings.json")
    return SB3Agent(settings, model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agents.sb3", description="Trains a policy of single tokens.")
    add = parser.add_argument
    add("--env", default="MultiImageTiny-v0", help="default: %(default)s")
    add("--tasks", default="locate", help="grounding types, as A,B; default: %(default)s")
    add("--difficulty", type=int, help="1 to 5; default: that of the id")
    add("--algorithm", choices=list(ALGORITHMS), default="masked", help="MaskablePPO or PPO; default: %(default)s")
    add("--steps", type=int, default=200_000, help="tokens that the policy decides; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--lattice", type=int, default=7, help="coordinates are multiples of so many pixels; default: %(default)s")
    add("--episodes", type=int, default=500, help="held-out ones, played at the end; default: %(default)s")
    add("--output", type=Path, default=Path("runs/sb3"), metavar="DIR", help="default: %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and prints what the policy does on the test split."""
    from rich.console import Console
    from rich.progress import Progress

    from agents.evaluate import evaluate_agent
    from agents.table import print_report

    parser = _parser()
    options = parser.parse_args(arguments)
    made = {"tasks": tuple(options.tasks.split(",")), "difficulty": options.difficulty}
    console = Console(stderr=True)
    try:
        settings = survey(options.algorithm, options.env, made, options.lattice)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("training", total=options.steps)

            def report(step: int, reward: float) -> None:
                progress.update(bar, completed=step, description=f"reward {reward:.3f}")

            agent = train(settings, options.steps, options.seed, options.output, report)
    except (MimgenvError, gym.error.Error, OSError) as error:
        parser.error(str(error))
    found = evaluate_agent(agent, options.env, options.episodes, name=f"sb3:{options.output}", **made)
    print_report(found, f"{options.algorithm} PPO on {options.env}", found.write(options.output))


if __name__ == "__main__":
    main()
