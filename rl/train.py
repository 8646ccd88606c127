"""The command: `python -m rl.train [settings.toml] [--key value …]`, or `python -m rl.train --resume --output FOLDER`.

With `--dry-run` nothing is trained: it plans memory and length, and rehearses a step of a two-layer model. On several
processes: `torchrun --nproc_per_node 2 -m -- rl.train …`, with the same settings and the same result.
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
from typing import TYPE_CHECKING, Final, Self

import gymnasium as gym
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from mimgenv.errors import MimgenvError
from rl.config import EnvSettings, TrainConfig
from rl.errors import CheckpointError, TrainingStopped
from rl.settings import read_config, resumed_settings

if TYPE_CHECKING:
    from rl.trainer import GRPOTrainer


class ProgressBars:
    """One bar per phase, with the latest figures beside it."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._progress = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._bars: dict[str, TaskID] = {}
        self._latest: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar of a phase; where no bar can be shown, there is a line now and then."""
        name = {"sft": "cold start"}.get(phase, phase)
        self._latest |= {key: value for key, value in metrics.items() if key in _SHOWN}
        figures = "  ".join(f"{_SHOWN[key]} {value:.2f}" for key, value in self._latest.items())
        if not self._console.is_terminal:
            if step % LINES_EVERY == 0 or step == total:
                self._console.print(f"{name} {step}/{total}  {figures}", soft_wrap=True)
            return
        if phase not in self._bars:
            self._bars[phase] = self._progress.add_task(name, figures="")
        self._progress.update(self._bars[phase], completed=step, total=total, figures=figures)


LINES_EVERY: Final = 50
"""Updates between lines of progress in a file."""
_SHOWN = {
    "loss/sft": "loss",
    "stage": "stage",
    "probe/reward/iou": "probe iou",
    "probe/reward/format": "format",
    "reward/total": "reward",
    "reward/iou": "iou",
    "held_out/reward/iou": "held-out iou",
}


def _trainer(config: TrainConfig, resume: bool, console: Console, opened: ExitStack) -> GRPOTrainer:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from rl.distributed import World  # torch: only once the command line is right
    from rl.trainer import GRPOTrainer

    disable_progress_bar()  # a bar per checkpoint would tear ours apart
    if config.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # more are slower for small models, and far slower on a busy machine
    world = opened.enter_context(World.join(config.device))
    bars = opened.enter_context(ProgressBars(console))
    trainer = GRPOTrainer(config, resume=resume, on_step=bars, world=world)
    if trainer.policy.qwen.unshareable:
        console.print(f"one row per attempt, prompts are not shared: {trainer.policy.qwen.unshareable}")
    return trainer


def _change(before: Mapping[str, float], after: Mapping[str, float], key: str) -> str:
    return f"{before.get(key, float('nan')):.2f} -> {after.get(key, float('nan')):.2f}"


def usage() -> str:
    """What `--help` prints: the command, every option, and its default."""
    defaults = [f"  --{item.name} {item.default!r}  ({item.type})" for item in dataclasses.fields(TrainConfig)]
    rules = "Values: true or false; lists as a,b; none for None. A file comes first, --key value after it."
    explained = [str(EnvSettings.__doc__), str(TrainConfig.__doc__)]
    return "\n".join([str(__doc__), *explained, rules, "Defaults, those of the tiny model:", *defaults])


def _planned(config: TrainConfig) -> int:
    from rl.planning.plan import plan
    from rl.planning.rehearsal import rehearse
    from rl.planning.words import describe_plan, describe_rehearsal

    made = plan(config)
    print(describe_plan(made), flush=True)
    print("\n" + describe_rehearsal(rehearse(config, made.shape)))
    return 0


def _said(error: BaseException) -> int:
    print(f"rl.train: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 where it is wrong or a run had to stop, 130 where it was interrupted."""
    arguments = list(sys.argv[1:] if words is None else words)
    main_rank = os.environ.get("RANK", "0") == "0"  # under `torchrun` one process speaks for all
    if "--help" in arguments or "-h" in arguments:
        print(usage())
        return 0
    resume, dry = "--resume" in arguments, "--dry-run" in arguments
    console = Console(quiet=not main_rank)
    words = [word for word in arguments if word not in ("--resume", "--dry-run")]
    with ExitStack() as opened:
        try:
            config = read_config(words, resumed_settings(words) if resume else None)
            if dry:
                return _planned(config)
            trainer = _trainer(config, resume, console, opened)
        except (ValueError, OSError, SafetensorError, gym.error.Error, TrainingStopped) as error:
            return _said(error) if main_rank else 2
        try:
            result = trainer.train()
        except (TrainingStopped, CheckpointError, MimgenvError, gym.error.Error) as error:
            return _said(error)
        except (OSError, SafetensorError, FloatingPointError) as error:  # of the disk, and of the sampler
            return _said(error)
        except KeyboardInterrupt:
            _said(KeyboardInterrupt(f"stopped; go on with --resume --output {config.output}"))
            return 130
    for name in sorted(dataclasses.asdict(result)["after"]):
        if name.startswith(("iou/", "answer/")):
            console.print(f"{name}: {_change(result.before, result.after, name)}")
    console.print(f"sampled iou {_change(result.before_sampled, result.after_sampled, 'reward/iou')}")
    left = f"[bold]{config.output}[/]: curve.png, episodes.html, model/ (play it as vlm:{config.output}/model)"
    console.print(left, soft_wrap=True)
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
