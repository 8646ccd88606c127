"""Small targets, with the zoom tool and without: tool use and IoU before and after GRPO.

    python benchmarks/zoom.py --seeds 0 1 2 --workers 3 --output runs/zoom

The cold start shows both ways, half of the episodes zoom first. The control has no tool: the same tasks, the same
cold start without calls, the same number of GRPO updates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runs import Finished, markdown, train_all

ZOOM = ["--env", "MultiImageTinyZoom-v0", "--sft_stop_iou", "0.4", "--sft_stop_type_iou", "0"]
ZOOM += ["--prompts_per_step", "14", "--steps", "200", "--eval_episodes", "280"]
VARIANTS = {"zoom": ZOOM, "no tools": [*ZOOM, "--tools", ","]}
HEADER = ("variant", "seed", "CPU s", "tool calls before", "after", "IoU before", "after", "sampled before", "after")


def row(name: str, seed: int, run: Finished) -> list[object]:
    """One line of the table."""
    cells: list[object] = [name, seed, round(run.cpu_seconds)]
    cells += [run.metric(when, "sampled", "episode/tool_calls") for when in ("before", "after")]
    for how in ("greedy", "sampled"):
        cells += [run.metric(when, how, "reward/iou") for when in ("before", "after")]
    return cells


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/zoom"))
    options, rest = parser.parse_known_args()
    names = [(name, seed) for name in VARIANTS for seed in options.seeds]
    folders = [options.output / f"{name.replace(' ', '-')}-{seed}" for name, seed in names]
    commands = {
        folder: [*VARIANTS[name], "--seed", str(seed), *rest]
        for folder, (name, seed) in zip(folders, names, strict=True)
    }
    finished = train_all(commands, options.workers)
    print(markdown(HEADER, [row(*key, run) for key, run in zip(names, finished, strict=True)]))


if __name__ == "__main__":
    main()
