"""Runs training commands side by side, one thread each, and reads what they left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run: its folder, CPU seconds of the whole process, and held-out metrics before and after GRPO."""

    folder: Path
    cpu_seconds: float

    def metric(self, when: str, how: str, name: str) -> float:
        """`when` is before, after or control; `how` greedy or sampled; `name` such as `reward/iou`."""
        return float(json.loads((self.folder / f"{when}.json").read_text())[how].get(name, float("nan")))


def _run(words: Sequence[str], log: Path) -> float:
    """Runs a Python module to its end; returns the CPU seconds of the process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=file, stderr=file, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{' '.join(words)} failed, see {log}")
    return usage.ru_utime + usage.ru_stime


def train_all(commands: dict[Path, Sequence[str]], workers: int) -> list[Finished]:
    """Trains each folder's command (`--output` is added); a folder that is complete is not trained again."""

    def train(item: tuple[Path, Sequence[str]]) -> Finished:
        folder, words = item
        timing = folder / "cpu_seconds.json"
        if not timing.exists():
            seconds = _run(["rl.train", *words, "--output", str(folder)], folder.with_suffix(".log"))
            timing.write_text(json.dumps(seconds))
        return Finished(folder, float(json.loads(timing.read_text())))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(train, commands.items()))


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats with three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(header), ["---"] * len(header), *cells]]
    return "\n".join(lines)
