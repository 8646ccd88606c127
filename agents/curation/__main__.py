"""The command line of curation: sets of images in, a curated set out.

    python -m agents.curation --source rendered --items 20 --output data/curated
    python -m agents.curation --source images:photos --items 200 --output data/curated \\
        --proposer openai:MODEL@http://host:port/v1 --solvers openai:… --hidden_solvers openai:… --critic openai:…

The same command goes on where it was stopped. Keys come from OPENAI_API_KEY alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from agents.api_agent import EndpointError, EndpointSettings
from agents.curation.cast import NAMES, Roles
from agents.curation.journal import Journal
from agents.curation.output import JOURNAL, report_text, write_result
from agents.curation.pipeline import curate
from agents.curation.plan import Cast, Plan, Result
from agents.curation.sets import open_sets
from mimgenv.errors import ConfigurationError, MimgenvError
from mimgenv.tasks.registry import TASK_GROUPS

CANDIDATES_AN_ITEM: Final = 10
"""So many questions are asked for an item at most, unless it is said otherwise."""

_ASKED: Final = ("source", "world", "tasks", "seed", "proposer", "solvers", "hidden_solvers", "critic", "temperature")
"""Options that answers depend on: a folder that was begun with others is refused."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _tasks(text: str) -> str | list[str]:
    return text if text in TASK_GROUPS else _names(text)


def _share(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    return float(low), float(high)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m agents.curation", description="Makes a curated set of multi-image questions.")
    add = parser.add_argument
    add("--source", default="rendered", help="rendered, images:FOLDER or such as odinw:FOLDER; default: %(default)s")
    add("--world", help="of rendered tasks: tabletop, sprites or tiny; default: the first two in turn")
    add("--tasks", type=_tasks, help="of tasks: types, or grounding, or qa; default: all", metavar="A,B")
    add("--items", type=int, default=20, help="how many to make; default: %(default)s")
    add("--candidates", type=int, help=f"most questions to ask for; default: {CANDIDATES_AN_ITEM} an item")
    add("--output", type=Path, required=True, metavar="DIR", help="gets items.jsonl, images, a journal and a report")
    add("--proposer", default="task", help=f"{NAMES}; default: %(default)s")
    add("--solvers", type=_names, default=["oracle", "blind:centre_box"], help="they see; default: oracle and a blind")
    add("--hidden_solvers", type=_names, default=["blind:copy"], help="they do not see; default: a blind one")
    add("--critic", default="task", help="default: %(default)s")
    add("--attempts", type=int, default=4, help="answers of those who see; default: %(default)s")
    add("--hidden_attempts", type=int, default=2, help="answers of those who do not; default: %(default)s")
    add("--share", type=_share, default=(0.25, 0.75), help="right ones among the first; default: 0.25:0.75")
    add("--hidden_share", type=float, default=0.0, help="most right ones among the second; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--parallel", type=int, default=4, help="most requests under way at a time; default: %(default)s")
    add("--temperature", type=float, default=0.7, help="openai: default: %(default)s")
    add("--max_tokens", type=int, default=1024, help="openai: longest answer; default: %(default)s")
    add("--timeout", type=float, default=120.0, help="openai: seconds; default: %(default)s")
    add("--retries", type=int, default=5, help="openai: default: %(default)s")
    add("--per_minute", type=int, default=0, help="openai: most requests a minute, all together; default: no limit")
    return parser


def _run(options: argparse.Namespace) -> tuple[Result, Path]:
    plan = Plan(
        items=options.items,
        candidates=options.items * CANDIDATES_AN_ITEM if options.candidates is None else options.candidates,
        seed=options.seed,
        attempts=options.attempts,
        hidden_attempts=options.hidden_attempts,
        share=options.share,
        hidden_share=options.hidden_share,
        parallel=options.parallel,
    )
    if not options.solvers or not options.hidden_solvers:
        raise ConfigurationError("there must be at least one solver who sees, and one who does not")
    sets = open_sets(options.source, options.seed, options.world, options.tasks)
    given = ("temperature", "max_tokens", "timeout", "retries")
    settings: dict[str, Any] = {name: getattr(options, name) for name in given}
    roles = Roles(sets, partial(EndpointSettings.parse, **settings), options.per_minute, options.seed)
    cast = Cast(
        roles(options.proposer),
        tuple(map(roles, options.solvers)),
        tuple(map(roles, options.hidden_solvers)),
        roles(options.critic),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(options, name) for name in _ASKED} | {"images": sets.fingerprint}
    journal = Journal(options.output / JOURNAL, asked)
    result = _watched(cast, sets, plan, journal)
    return result, write_result(options.output, result, sets)


def _watched(cast: Cast, sets: Any, plan: Plan, journal: Journal) -> Result:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description} {task.completed}"),)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("answers", total=None, completed=len(journal))
        return curate(cast, sets, plan, journal, lambda: progress.advance(bar))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result, file = _run(options)
    except EndpointError as error:
        parser.error(f"{error}; what was answered is kept, the same command goes on")
    except (MimgenvError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f"{report_text(result)}\n{file}")


if __name__ == "__main__":
    main()
