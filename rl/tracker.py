"""Metrics and episodes of a run: a line of JSON per step, a page of episodes now and then, and TensorBoard beside both.

What is logged is decided elsewhere. A resumed run goes on as if nothing had happened: what was logged after its
checkpoint is dropped first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mimgenv.preview import transcript
from mimgenv.types import Image
from mimgenv.viewer import ShownEpisode, write_page

METRICS: Final = "metrics.jsonl"
PAGES: Final = "episodes"
"""The folder of pages, each named after its step."""
PHASES: Final = ("sft", "grpo")
GAP: Final = 4
"""Pixels between the images of a strip."""


class Tracker:
    """Writes what happens in a run to `folder`.

    Args:
        folder: Of the run.
        phase, step: Where the run goes on; what is there of this phase beyond `step`, and of later phases, is dropped.
    """

    def __init__(self, folder: Path, phase: str = "sft", step: int = 0) -> None:
        self.folder, self.path = folder, folder / METRICS
        self._begin = PHASES.index(phase), step
        self._boards: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(folder) if not self._dropped(row["phase"], row["step"])]
        fresh = self.path.with_suffix(".partial")  # so that a kill here loses nothing
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(fresh, self.path)
        for page in (folder / PAGES).glob("*-*.html"):
            if self._dropped(*page.stem.split("-")):
                page.unlink()
        self._file = self.path.open("a")

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step; they are on the disk when this returns."""
        self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in metrics.items():
            self._board(phase).add_scalar(f"{phase}/{name}", value, step)

    def show(self, phase: str, step: int, episodes: Sequence[ShownEpisode]) -> None:
        """Writes a page of a step's episodes to `episodes/<phase>-<step>.html`; TensorBoard gets images and texts."""
        pages = self.folder / PAGES
        pages.mkdir(exist_ok=True)
        write_page(pages / f"{phase}-{step:07d}.html", episodes, f"{self.folder.name}: {phase}, step {step}")
        for number, episode in enumerate(episodes, 1):
            tag = f"{phase}/episode {number}"
            self._board(phase).add_image(tag, strip(episode.images), step, dataformats="HWC")
            text = transcript(episode).replace("\n", "\n    ")
            self._board(phase).add_text(tag, f"    {text}", step)  # indented: Markdown leaves it as it is

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        for board in self._boards.values():
            board.close()

    def _dropped(self, phase: str, step: int | str) -> bool:
        return (PHASES.index(phase), int(step)) > self._begin

    def _board(self, phase: str) -> Any:
        """A folder of its own for each phase: what TensorBoard purges, it purges from all that share a folder."""
        if phase not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            first, step = self._begin
            purged = step + 1 if PHASES.index(phase) == first else 1
            self._boards[phase] = SummaryWriter(str(self.folder / "tensorboard" / phase), purge_step=purged)
        return self._boards[phase]


def strip(images: Sequence[Image]) -> Image:
    """(H, W, 3) uint8: images side by side on white, top edges aligned; a white pixel where there are none."""
    height = max((image.shape[0] for image in images), default=1)
    width = sum(image.shape[1] + GAP for image in images) - GAP if images else 1
    joined = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for image in images:
        joined[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + GAP
    return joined


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
