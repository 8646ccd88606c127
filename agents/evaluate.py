"""Evaluation: plays an agent over a run of seeds and says how good it is, how surely, and what it did.

Owns the record of a finished episode as an evaluation keeps it, and the command line; the statistics are in report.py,
their looks in table.py. Every episode is played by `run_episodes`. Never knows how an agent decides, nor which task
type it is solving.

    python -m agents.evaluate --agent oracle --env MultiImageTiny-v0 --episodes 70
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import gymnasium as gym

import mimgenv
from agents.by_name import NAMES, ORACLE_GRID, agent_by_name
from agents.report import Report
from agents.rollout import EnvFactory, open_env, run_episodes, unwrapped
from agents.table import print_report
from agents.types import Action, Agent, Trajectory, codec_of
from mimgenv.codec import Codec
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError, MimgenvError
from mimgenv.geometry import BOX_FRAMES
from mimgenv.records import EpisodeRecord, EpisodeTurn, ViewRecord, called_tools
from mimgenv.tasks.registry import TASK_GROUPS
from mimgenv.wrappers import BlankImages

BLANK: Final = " (blank images)"
"""After the agent's name in the records of episodes that were played with blank images."""


def evaluate_agent(
    agent: Agent,
    env: str = "MultiImageQA-v0",
    episodes: int = 200,
    *,
    split: str = "test",
    first_seed: int = 0,
    parallel: int = 64,
    name: str = "",
    blind_episodes: int | None = None,
    on_finish: Callable[[EpisodeRecord], None] | None = None,
    **arguments: Any,
) -> Report:
    """Plays the seeds from `first_seed` on, one episode each, and the same tasks again with blank images.

    What an agent scores less where every image is blank is what it owes to seeing them: its image sensitivity.

    Args:
        agent: Anything with `act(histories)`.
        env: An id of a `MultiImageEnv`.
        episodes: How many; of a finite source at most as many as it has tasks, so that none is counted twice.
        split: Of rendered tasks; a source has none.
        first_seed: The first seed, at least 0.
        parallel: Most episodes under way at a time.
        name: What the agent is called in the records; its class where empty. In those of blank images the name says so.
        blind_episodes: How many of the tasks, from the first on, are played with blank images too; None for all of
            them, which doubles the cost; 0 for none.
        on_finish: Called with each record as its episode ends, also with those of blank images.
        **arguments: For `gym.make`, such as `source` or `difficulty`.

    Raises:
        ValueError: If `episodes` is below 1, or `blind_episodes` below 0.
        MimgenvError: If the environment cannot be made of these arguments.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}, it must be at least 1")
    if blind_episodes is not None and blind_episodes < 0:
        raise ValueError(f"blind_episodes is {blind_episodes}, it must be at least 0")
    if arguments.get("source") is None:
        arguments["split"] = split
    opened = open_env(env, arguments)
    seeds = range(first_seed, first_seed + min(episodes, len(opened.source)))
    name = name or type(agent).__name__
    # All environments share the source: a folder of photographs is read once, not once per environment.
    arguments["source"] = opened.source
    codec = codec_of(agent)
    made = ({"codec": codec} if codec else {}) | arguments

    def seeing() -> gym.Env[Any, Any]:
        return gym.make(env, disable_env_checker=True, **made)

    records, trajectories = _play_all(agent, seeing, seeds, parallel, name, on_finish)
    again = [record.task_id for record in records[:blind_episodes]]
    blank, _ = _play_all(agent, lambda: BlankImages(seeing()), again, parallel, name + BLANK, on_finish)
    return Report(name, records, trajectories, tuple(opened.tools), blank)


def _play_all(
    agent: Agent,
    make: EnvFactory,
    starts: Sequence[int | str],
    parallel: int,
    name: str,
    on_finish: Callable[[EpisodeRecord], None] | None,
) -> tuple[tuple[EpisodeRecord, ...], tuple[Trajectory, ...]]:
    """The records and trajectories of episodes, in the order of their starts."""
    records: dict[int, EpisodeRecord] = {}

    def finish(index: int, played: gym.Env[Any, Any], trajectory: Trajectory) -> None:
        records[index] = record_of(trajectory, unwrapped(played), name)
        if on_finish is not None:
            on_finish(records[index])

    trajectories = run_episodes(agent, make, starts, parallel=parallel, on_finish=finish)
    return tuple(records[index] for index in range(len(starts))), tuple(trajectories)


def record_of(trajectory: Trajectory, env: MultiImageEnv, agent: str) -> EpisodeRecord:
    """The record of the episode that `env` has just finished.

    Args:
        trajectory: The episode.
        env: Still holds what the agent answered and which part of which image it was shown.
        agent: Who played.
    """
    task = mimgenv.load_task(trajectory.task_id)
    turns = tuple(
        EpisodeTurn(turn.message.text, turn_text(env.codec, turn.action), turn.error, len(turn.message.images))
        for turn in trajectory.turns
    )
    return EpisodeRecord(
        task_id=trajectory.task_id,
        task_type=trajectory.task_type,
        agent=agent,
        question=task.question,
        turns=turns,
        reward=trajectory.reward,
        reward_parts=trajectory.reward_parts,
        stop=trajectory.stop,
        success=trajectory.success,
        tool_calls=tuple(called_tools(turns)),
        truth=task.truth,
        prediction=env.prediction,
        views=tuple(ViewRecord(view.image, view.region, *view.size) for view in env.views),
        box_frame=env.box_frame,
    )


def turn_text(codec: Codec, action: Action) -> str:
    """The text of a turn without its end token; ids that are no tokens are passed over."""
    ids = action.ids[:-1] if action.ids and action.ids[-1] in codec.end_ids else action.ids
    return codec.decode(index for index in ids if 0 <= index < codec.vocab_size)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tasks(text: str) -> str | tuple[str, ...]:
    return text if text in TASK_GROUPS else _names(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _count(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return int(text)


_ENV_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "source": {"help": "a copy of a data set, such as odinw:/path; default: rendered tasks"},
    "tasks": {"type": _tasks, "help": "task types, or grounding, or qa; default: those of the id", "metavar": "A,B"},
    "difficulty": {"type": int, "help": "1 to 5; rendered tasks only"},
    "split": {"help": "train, val, test or test_ood; rendered tasks only; default: test"},
    "world": {"help": "tabletop, sprites or tiny; rendered tasks only; default: that of the id"},
    "tools": {"type": _names, "help": "'' for none; default: those of the id", "metavar": "A,B"},
    "box_frame": {"choices": list(BOX_FRAMES), "help": "how boxes are written; default: that of the id"},
    "max_pixels": {"type": _count, "help": "larger images are shown smaller; default: that of the id"},
}
"""Passed to `gym.make` where they are given."""

_AGENT_OPTIONS: Final = ("seed", "zoom", "grid", "temperature", "max_tokens", "constrain", "device", "dtype")
"""Passed to `agent_by_name`."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m agents.evaluate", description="Plays an agent and prints how well it does.")
    add = parser.add_argument
    add("--agent", required=True, help=f"{NAMES}; vlm:tiny is the shipped checkpoint")
    add("--env", default="MultiImageQA-v0", help=f"{', '.join(mimgenv.ENVIRONMENTS)}; default: %(default)s")
    for option, settings in _ENV_OPTIONS.items():
        add(f"--{option}", **settings)
    add("--episodes", type=_count, default=200, help="default: %(default)s")
    add("--blind_episodes", type=_whole, help="so many also with blank images; 0: none; default: as many as --episodes")
    add("--first_seed", type=_whole, default=0, help="default: %(default)s")
    add("--parallel", type=_count, default=64, help="most episodes under way at a time; default: %(default)s")
    add("--seed", type=_whole, default=0, help="of the agent's own choices; default: %(default)s")
    add("--output", type=Path, metavar="DIR", help="default: runs/evaluate-AGENT-ENV")
    add("--zoom", type=float, default=0.0, help="oracle: share of grounding episodes in which it zooms first")
    add("--grid", type=float, default=ORACLE_GRID, help="oracle: coordinates are multiples of it; default: %(default)s")
    add("--temperature", type=float, default=0.0, help="vlm, openai: default: %(default)s, the likeliest token")
    add("--max_tokens", type=_count, default=256, help="vlm, openai: longest turn; default: %(default)s")
    add("--constrain", action="store_true", help="vlm: only turns that can be carried out, but for inverted boxes")
    add("--device", default="cpu", help="vlm: default: %(default)s")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="vlm: default: %(default)s")
    return parser


def _env_arguments(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in _ENV_OPTIONS if getattr(options, name) is not None}
    for name in ("difficulty", "split", "world"):
        if "source" in given and name in given:
            raise ConfigurationError(f"--{name} is for rendered tasks, {given['source']} has none")
    return given if "source" in given else {"split": "test"} | given


def _play(options: argparse.Namespace) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    arguments = _env_arguments(options)
    env = open_env(options.env, arguments)
    agent = agent_by_name(options.agent, env, **{name: getattr(options, name) for name in _AGENT_OPTIONS})
    arguments |= {"source": env.source, "first_seed": options.first_seed, "parallel": options.parallel}
    arguments |= {"name": options.agent, "blind_episodes": options.blind_episodes}
    episodes = min(options.episodes, len(env.source))
    blind = episodes if options.blind_episodes is None else min(episodes, options.blind_episodes)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("episodes", total=episodes + blind)
        arguments["on_finish"] = lambda record: progress.advance(bar)
        return evaluate_agent(agent, options.env, options.episodes, **arguments)


def _output(options: argparse.Namespace) -> Path:
    kind, _, rest = options.agent.partition(":")
    name = Path(rest.rpartition("@http")[0] or rest).name  # of a server's model, whose address would only be long
    parts = filter(None, ("evaluate", kind, name, options.env))
    return options.output or Path("runs", re.sub(r"[^\w.-]+", "-", "-".join(parts)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: a table on the screen, records and a page in a folder."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        report = _play(options)
        files = report.write(_output(options))
    except (MimgenvError, gym.error.Error, OSError, ImportError) as error:
        parser.error(str(error))
    print_report(report, f"{options.agent} on {options.env}", files)


if __name__ == "__main__":
    main()
