"""The command: `python -m rl.train [recipe.toml] [--key value …]`, or `python -m rl.train --resume --output FOLDER`.

On several processes: `torchrun --nproc_per_node 2 -m -- rl.train …`, with the same settings and the same result.
Reads a configuration, shows progress, prints the result. Everything else is in trainer.py. A resumed run keeps the
settings it was started with, unless they are given anew.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import gymnasium as gym
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mimgenv.errors import MimgenvError
from rl.config import TrainConfig, read_config, resumed_settings
from rl.errors import CheckpointError, TrainingStopped


class ProgressBars:
    """One bar per phase, with the latest figures beside it."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._bars: dict[str, TaskID] = {}
        self._latest: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar of a phase."""
        if phase not in self._bars:
            self._bars[phase] = self._progress.add_task({"sft": "cold start"}.get(phase, phase), figures="")
        self._latest |= {name: value for name, value in metrics.items() if name in _SHOWN}
        figures = "  ".join(f"{_SHOWN[name]} {value:.2f}" for name, value in self._latest.items())
        self._progress.update(self._bars[phase], completed=step, total=total, figures=figures)


_SHOWN = {
    "loss/sft": "loss",
    "stage": "stage",
    "probe/reward/iou": "probe iou",
    "probe/reward/format": "format",
    "reward/total": "reward",
    "reward/iou": "iou",
    "held_out/reward/iou": "held-out iou",
}


def _change(before: Mapping[str, float], after: Mapping[str, float], key: str) -> str:
    return f"{before.get(key, float('nan')):.2f} -> {after.get(key, float('nan')):.2f}"


def _refuse(error: Exception) -> int:
    print(f"rl.train: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 on a wrong command line."""
    arguments = list(sys.argv[1:] if words is None else words)
    main_rank = os.environ.get("RANK", "0") == "0"  # under `torchrun` one process speaks for all
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, TrainConfig.__doc__, sep="\n")
        return 0
    resume = "--resume" in arguments
    console = Console(quiet=not main_rank)
    words = [word for word in arguments if word != "--resume"]
    with ExitStack() as opened:
        try:
            config = read_config(words, resumed_settings(words) if resume else None)
            from transformers.utils.logging import disable_progress_bar

            from rl.distributed import World  # torch: only once the command line is right
            from rl.trainer import GRPOTrainer

            disable_progress_bar()  # a bar per checkpoint would tear ours apart
            world = opened.enter_context(World.join(config.device))
            bars = opened.enter_context(ProgressBars(console))
            trainer = GRPOTrainer(config, resume=resume, on_step=bars, world=world)
        except (ValueError, OSError, gym.error.Error) as error:
            return _refuse(error)
        try:
            result = trainer.train()
        except (TrainingStopped, CheckpointError, MimgenvError, gym.error.Error, OSError) as error:
            return _refuse(error)
    for name in sorted(dataclasses.asdict(result)["after"]):
        if name.startswith(("iou/", "answer/")):
            console.print(f"{name}: {_change(result.before, result.after, name)}")
    console.print(f"sampled iou {_change(result.before_sampled, result.after_sampled, 'reward/iou')}")
    console.print(f"[bold]{config.output}[/]: curve.png, episodes.html, model/ (play it as vlm:{config.output}/model)")
    if not main_rank:
        return 0
    print(
        f"held-out iou {_change(result.before, result.after, 'reward/iou')}, "
        f"reward {_change(result.before, result.after, 'reward/total')}"
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
