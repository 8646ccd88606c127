"""The oracle: plays the truth. The upper bound of every table, and where cold-start trajectories come from.

It reads `history.task_id` and loads the task with its truth, which no other agent may do. Its thoughts are made from
the annotations; with `zoom_margin` it first looks closer, as a person would, and answers in the enlarged image.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Final, Self

import numpy as np

from agents.types import History
from mimgenv import load_task
from mimgenv.env import MultiImageEnv
from mimgenv.geometry import View, iou
from mimgenv.tools import whole_pixels
from mimgenv.types import Box, Grounding, Image, Task, TextAnswer

TINY_LATTICE: Final = 7
"""Pixels as shown between the coordinates of ordinary things in the tiny world."""


class OracleAgent:
    """Plays the truth.

    Args:
        box_frame: The environment's.
        think: `label` (what the target is: its first word, then all of them) or `rationale` (why).
        grid: Coordinates are rounded to multiples of this, in units of the box frame; the closest such box is played.
        zoom: How often it calls the `zoom` tool before it answers a grounding question, in [0, 1].
        zoom_share: Side of the zoomed region as a share of the image's.
        seed: Decides, together with the task, which episodes zoom.
    """

    def __init__(
        self,
        box_frame: str = "pixel",
        think: str = "rationale",
        grid: float = 1,
        zoom: float = 0.0,
        zoom_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.box_frame, self.think, self.grid = box_frame, think, grid
        self.zoom, self.zoom_share, self.seed = zoom, zoom_share, seed

    @classmethod
    def for_env(cls, env: MultiImageEnv, *, zoom: float = 0.0, seed: int = 0) -> Self:
        """The oracle that a cold start learns from: short thoughts, whole coordinates, the environment's frame.

        In the tiny world coordinates keep to its lattice; `zoom` is how often it zooms where the tool is offered.
        """
        grid = TINY_LATTICE if getattr(env.source, "world", None) == "tiny" else 1
        zoom = zoom if "zoom" in env.tools else 0.0
        return cls(env.box_frame, think="label", grid=grid, zoom=zoom, seed=seed)

    def act(self, histories: Sequence[History]) -> list[str]:
        """The next turn of each episode."""
        return [self._turn(history) for history in histories]

    def _turn(self, history: History) -> str:
        task = load_task(history.task_id)
        thought = task.rationale
        if self.think == "label" and isinstance(task.truth, Grounding):
            label = task.truth.label
            thought = f"{label.split()[0]}: {label}"
        thought = f"<think>{thought}</think>"
        if isinstance(task.truth, TextAnswer):
            return f"{thought}<answer>{task.truth.text}</answer>"
        shown = [image for turn in history.turns for image in turn.message.images] + list(history.message.images)
        view = _whole(task, shown[task.truth.image - 1], task.truth.image)
        number = task.truth.image
        if self._zooms(history):
            region = self._zoom_region(task.truth.box, view)
            if not history.turns:
                call = {"name": "zoom", "arguments": {"image": number, "bbox_2d": region}}
                return f"{thought}<tool_call>{json.dumps(call)}</tool_call>"
            corners = whole_pixels(view.to_original(region, self.box_frame), task.images[number - 1])
            view, number = View(shown[-1], number, corners), len(shown)
        box = self._round(view.from_original(task.truth.box, self.box_frame), view)
        answer = {"image": number, "label": task.truth.label, "bbox_2d": box}
        return f"{thought}<answer>{json.dumps(answer, ensure_ascii=False)}</answer>"

    def _zooms(self, history: History) -> bool:
        if history.turns:
            return bool(history.message.images)  # a call that was refused brought none
        if self.zoom <= 0 or min(history.budget.turns - 1, history.budget.images) < 1:
            return False
        number = int.from_bytes(history.task_id.encode()[-4:], "little")
        return bool(np.random.default_rng([self.seed, number]).random() < self.zoom)

    def _zoom_region(self, box: Box, view: View) -> Box:
        """A region that holds the target, inside the image, on the grid and on whole pixels of the original."""
        extent = view.extent(self.box_frame)
        target = view.from_original(box, self.box_frame)
        lows, highs = [], []
        for axis, limit in enumerate(extent):
            unit = max(self.grid, limit / view.region[axis + 2])
            side = limit * self.zoom_share
            if target[axis + 2] - target[axis] > side - 2 * unit:
                side = limit
            low = (target[axis] + target[axis + 2] - side) / 2
            low = min(max(0.0, round(low / unit) * unit), limit - side)
            lows.append(_number(round(low / self.grid) * self.grid))
            highs.append(_number(round((low + side) / self.grid) * self.grid))
        return lows[0], lows[1], highs[0], highs[1]

    def _round(self, box: Box, view: View) -> Box:
        """The box on the grid that overlaps the given one most, never empty."""
        axes = []
        for axis, limit in enumerate(view.extent(self.box_frame)):
            steps = [[np.floor(v / self.grid), np.ceil(v / self.grid)] for v in (box[axis], box[axis + 2])]
            pairs = [(a * self.grid, b * self.grid) for a, b in itertools.product(*steps)]
            axes.append([(a, b) for a, b in pairs if 0 <= a < b <= limit] or [_widen(pairs[0][0], self.grid, limit)])
        candidates = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in itertools.product(*axes)]
        best = max(candidates, key=lambda candidate: iou(candidate, box))
        x1, y1, x2, y2 = (_number(coordinate) for coordinate in best)
        return x1, y1, x2, y2


def _whole(task: Task, shown: Image, number: int) -> View:
    """The view of an original image as the environment shows it."""
    height, width = task.images[number - 1].shape[:2]
    return View(shown, number, (0.0, 0.0, float(width), float(height)))


def _widen(low: float, grid: float, limit: float) -> tuple[float, float]:
    low = min(low, limit - grid)
    return low, low + grid


def _number(value: float) -> float:
    """A whole number as int, so that it is written without a point."""
    value = round(float(value), 4)
    return int(value) if value.is_integer() else value
