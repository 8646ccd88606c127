"""The main job on several seeds, and the honest control: the same time on more SFT over the same fixed set.

    python benchmarks/main_job.py --seeds 0 1 2 3 4 --workers 4 --output runs/main_job

A row per seed: held-out IoU over the grounding types, greedy and sampled, before and after GRPO; QA accuracy beside
it. The control starts from the same cold-started weights and trains for as many seconds as GRPO took, with the
cold start's own learning rate, decayed to nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runs import Finished, markdown, train_all


def grpo_seconds(folder: Path) -> float:
    """Seconds of all GRPO steps, rollouts included, evaluations not."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sum(row["time/rollout"] + row["time/update"] for row in rows if row["phase"] == "grpo")


def control(folder: Path) -> None:
    """Trains on with SFT for as long as GRPO took; writes `control.json`."""
    import torch

    from agents.qwen_vl import load_qwen_vl
    from rl import ColdStart, GRPOTrainer, Policy, TrainConfig, sft_step

    torch.set_num_threads(1)
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    settings |= {"start": str(folder / "cold_start"), "cold_start": False, "output": str(folder / "control")}
    config = TrainConfig(**settings)
    trainer, budget = GRPOTrainer(config), grpo_seconds(folder)
    policy = Policy(trainer.policy.qwen, config, "sft")
    cold_start = ColdStart(config, load_qwen_vl(config.start).chat)
    last = len(cold_start.pools) - 1
    before = json.loads((folder / "before.json").read_text())["greedy"]
    skills = {name.split("/")[1]: value for name, value in before.items() if name.startswith(("iou/", "answer/"))}
    began, update = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < budget:
        policy.set_rate(config.sft_learning_rate * min(1.0, (update + 1) / 30) * max(0.02, 1 - spent / budget))
        sft_step(policy, cold_start.rows(last, update, skills))
        update += 1
    episodes = config.eval_episodes
    greedy, sampled = (trainer.evaluate(episodes, t, split="test") for t in (0.0, config.temperature))
    both = {"greedy": greedy.metrics(), "sampled": sampled.metrics(), "updates": update, "seconds": budget}
    (folder / "control.json").write_text(json.dumps(both, indent=1))


def row(run: Finished, seed: int) -> list[object]:
    """One line of the table."""
    cells: list[object] = [seed, round(run.cpu_seconds)]
    for how in ("greedy", "sampled"):
        cells += [run.metric(when, how, "reward/iou") for when in ("before", "after", "control")]
    least = [min(run.metric(when, "greedy", f"iou/{name}") for name in GROUNDING) for when in ("before", "after")]
    formats = [run.metric(when, "greedy", "reward/format") for when in ("before", "after")]
    answers = [run.metric(when, "greedy", "reward/answer") for when in ("before", "after")]
    return [*cells, *least, *formats, *answers]


GROUNDING = ("locate", "referring", "static_difference", "odd_one_out", "group_grounding")
HEADER = (
    "seed", "CPU s", "IoU before", "after", "control", "sampled before", "after", "control",
    "least type before", "after", "format before", "after", "QA before", "after",
)  # fmt: skip


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--control", type=Path, help="only this: the control of one finished run")
    options, rest = parser.parse_known_args()
    if options.control:
        control(options.control)
        return
    commands = {options.output / f"seed-{seed}": ["--seed", str(seed), *rest] for seed in options.seeds}
    finished = train_all(commands, options.workers)
    missing = [run.folder for run in finished if not (run.folder / "control.json").exists()]
    for begin in range(0, len(missing), options.workers):
        words = [sys.executable, __file__, "--control"]
        started = [subprocess.Popen([*words, str(folder)]) for folder in missing[begin : begin + options.workers]]
        if any(process.wait() for process in started):
            raise SystemExit("a control failed")
    print(markdown(HEADER, [row(run, seed) for run, seed in zip(finished, options.seeds, strict=True)]))


if __name__ == "__main__":
    main()
