"""What the masks buy: GRPO with each trajectory mask and `mask_invalid_actions` on and off, same seeds, same start.

    python benchmarks/masks.py --start runs/zoom/zoom-0/cold_start --seeds 0 1 2 --workers 4 --output runs/masks

Two turns with the zoom tool, sampled a little hot, so that refused turns and turn limits do happen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from runs import Finished, markdown, train_all

VARIANTS: dict[str, list[str]] = {
    "default (limits masked, void kept)": [],
    "no trajectory mask": ["--keep_stops", "answered,void,turn_limit,token_limit,image_limit,env_error"],
    "void masked too": ["--keep_stops", "answered,"],
    "masked rollouts leave the statistics": ["--count_masked", "false"],
    "masked tokens stay in the denominator": ["--divide_by_masked", "true"],
    "invalid actions masked": ["--mask_invalid_actions", "true"],
    "constrained to legal turns": ["--constrain_actions", "true"],
}
COMMON = ["--env", "MultiImageTinyZoom-v0", "--temperature", "1.2", "--steps", "80", "--eval_every", "0"]
COMMON += ["--prompts_per_step", "14", "--eval_episodes", "280"]
HEADER = ("variant", "IoU before", "after (mean)", "s.e.", "sampled after", "format after", "masked / update")


def masked(run: Finished) -> float:
    """Mean number of masked trajectories per update."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([row["mask/trajectories_masked"] for row in rows if row["phase"] == "grpo"]))


def row(name: str, runs: list[Finished]) -> list[object]:
    """One line of the table: means over seeds."""
    before, after = (np.array([run.metric(when, "greedy", "reward/iou") for run in runs]) for when in WHEN)
    sampled = np.mean([run.metric("after", "sampled", "reward/iou") for run in runs])
    form = np.mean([run.metric("after", "sampled", "reward/format") for run in runs])
    error = after.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else float("nan")
    numbers = (before.mean(), after.mean(), error, sampled, form, np.mean([masked(run) for run in runs]))
    return [name, *map(float, numbers)]


WHEN = ("before", "after")


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="a cold-started model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/masks"))
    options, rest = parser.parse_known_args()
    keys = [(number, seed) for number in range(len(VARIANTS)) for seed in options.seeds]
    words, start = list(VARIANTS.values()), ["--start", str(options.start)]
    commands = {
        options.output / f"{number}-{seed}": [*COMMON, *words[number], *start, "--seed", str(seed), *rest]
        for number, seed in keys
    }
    finished = dict(zip(keys, train_all(commands, options.workers), strict=True))
    rows = [row(name, [finished[number, seed] for seed in options.seeds]) for number, name in enumerate(VARIANTS)]
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
