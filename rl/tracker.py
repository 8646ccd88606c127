"""Metrics of a run: a line of JSON per step, and TensorBoard beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

METRICS: Final = "metrics.jsonl"


class Tracker:
    """Writes metrics to `folder`; on a resumed run, drops what came after the checkpoint first.

    Args:
        folder: Of the run.
        phase, step: Where the run goes on; lines of this phase beyond `step`, and of later phases, are dropped.
    """

    def __init__(self, folder: Path, phase: str = "sft", step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        phases = ("sft", "grpo")
        rank = (phases.index(phase), step)
        rows = [row for row in read_metrics(folder) if (phases.index(row["phase"]), row["step"]) <= rank]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step."""
        self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines written so far; a last line cut off by a kill is left out."""
    path = folder / METRICS
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
