"""What masked PPO learns of an easy grounding task: beside PPO without masks, agents that never look, and the oracle.

    OMP_NUM_THREADS=1 python benchmarks/sb3.py --seeds 0 1 2 --workers 2 --output runs/sb3

Held-out episodes (split `test`), greedy, played by `evaluate_agent` as any other agent's. A policy that is trained
already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from runs import markdown

from agents import OracleAgent, evaluate_agent
from agents.blind import BLIND_PLACES, BlindAgent
from agents.habits import learn_habits, training_tasks
from agents.report import Row
from agents.rollout import open_env
from agents.sb3 import train
from agents.sb3_agent import SB3Agent, survey

ENV, ARGUMENTS = "MultiImageTiny-v0", {"tasks": ("locate",), "difficulty": 1}
LATTICE = 7
HABIT_TASKS = 1000
HEADER = ("agent", "IoU", "reward", "format", "loses with blank images", "CPU s")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Standard errors to the end of a 95 % interval of a mean over so many seeds (Student's t)."""


def trained(algorithm: str, seed: int, steps: int, folder: Path) -> float:
    """Trains a policy unless it lies there; returns the CPU seconds of its training."""
    timing = folder / "cpu_seconds.json"
    if not timing.exists():
        start = time.process_time()
        train(survey(algorithm, ENV, ARGUMENTS, LATTICE), steps, seed, folder)
        timing.write_text(json.dumps(time.process_time() - start))
    return float(json.loads(timing.read_text()))


def played(job: tuple[str, int, int, int, Path]) -> tuple[Row, float]:
    """What a policy does on held-out episodes, and what it cost to train."""
    algorithm, seed, steps, episodes, folder = job
    seconds = trained(algorithm, seed, steps, folder)
    return evaluate_agent(SB3Agent.load(folder), ENV, episodes, **ARGUMENTS).all, seconds


def cells(name: str, row: Row, seconds: float = 0.0) -> list[object]:
    """One line of the table; ± is half of the 95 % interval over episodes."""
    sees = f"{row.sees.mean:.3f}" if row.sees else ""
    estimates = [f"{each.mean:.3f} ± {each.half_width:.3f}" for each in (row.score, row.reward)]
    return [name, *estimates, row.format or 0.0, sees, f"{seconds:.0f}" if seconds else ""]


def over_seeds(name: str, rows: Sequence[Row]) -> list[object]:
    """The mean over seeds; ± is half of the 95 % interval over them."""
    numbers = []
    for values in ([row.score.mean for row in rows], [row.reward.mean for row in rows]):
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        numbers.append(f"{statistics.fmean(values):.3f} ± {T95.get(len(values), 1.96) * error:.3f}")
    form = statistics.fmean(row.format or 0.0 for row in rows)
    return [
        f"**{name}, {len(rows)} seeds**",
        *numbers,
        form,
        statistics.fmean(row.sees.mean for row in rows if row.sees),
        "",
    ]


def blind(episodes: int) -> Iterator[list[object]]:
    """What agents that never look get, the best of them first."""
    habits = learn_habits(training_tasks(open_env(ENV, ARGUMENTS).source, HABIT_TASKS))
    rows = {
        name: evaluate_agent(BlindAgent(name, habits), ENV, episodes, blind_episodes=0, **ARGUMENTS).all
        for name in BLIND_PLACES
    }
    for name, row in sorted(rows.items(), key=lambda item: -item[1].score.mean):
        yield cells(f"blind: {name}", row)


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/sb3"))
    options = parser.parse_args()
    jobs = [
        (algorithm, seed, options.steps, options.episodes, options.output / f"{algorithm}-{seed}")
        for algorithm in ("masked", "plain")
        for seed in options.seeds
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        results = dict(zip(jobs, pool.map(played, jobs), strict=True))
    table: list[list[object]] = []
    for algorithm, name in (("masked", "MaskablePPO"), ("plain", "PPO without masks")):
        mine = {job[1]: result for job, result in results.items() if job[0] == algorithm}
        table += [cells(f"{name}, seed {seed}", row, seconds) for seed, (row, seconds) in mine.items()]
        table.append(over_seeds(name, [row for row, _ in mine.values()]))
    table += blind(options.episodes)
    oracle = OracleAgent.for_env(open_env(ENV, ARGUMENTS))
    table.append(cells("oracle", evaluate_agent(oracle, ENV, options.episodes, blind_episodes=0, **ARGUMENTS).all))
    print(markdown(HEADER, table))


if __name__ == "__main__":
    main()
