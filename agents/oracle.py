"""The oracle: plays the truth. The upper bound of every table, and where cold-start trajectories come from.

It reads `history.task_id` and loads the task with its truth, which no other agent may do. Its thoughts are made from
the annotations. In a share of the grounding episodes it calls a tool before it answers, as a person would look again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import numpy as np

from agents.annotated_reasoning import places, reasoning
from agents.types import History
from mimgenv import load_task
from mimgenv.env import MultiImageEnv
from mimgenv.geometry import View, iou
from mimgenv.tools import whole_pixels
from mimgenv.types import Box, Grounding, Image, Task, TextAnswer

TINY_LATTICE: Final = 7
"""Pixels as shown between the coordinates of ordinary things in the tiny world."""


def _label(task: Task) -> str:
    if not isinstance(task.truth, Grounding):
        return task.rationale
    return f"{task.truth.label.split()[0]}: {task.truth.label}"


THOUGHTS: Final[dict[str, Callable[[Task], str]]] = {
    "label": _label,
    "rationale": lambda task: task.rationale,
    "annotations": reasoning,
    "places": places,
}
"""Ways to think: what the target is (its first word, then all of them), why it is, or all that is annotated."""


class OracleAgent:
    """Plays the truth.

    It calls at most one tool, in a grounding episode with a turn and an image to spare, and then answers: in the
    enlarged image after `zoom`, in the original after the others.

    Args:
        box_frame: The environment's.
        think: A key of `THOUGHTS`; `annotations` and `places` are told once: after a tool call it thinks the `label`.
        grid: Coordinates are rounded to multiples of this, in units of the box frame; the closest such box is played.
        zoom: Share of the grounding episodes that call `zoom` on a region around the target.
        zoom_share: Side of the zoomed region as a share of the image's.
        seed: Decides, together with the task, which episodes call which tool.
        reflect: Share that call `visual_reflection` on the target's image.
        confirm: Share that call `visual_confirmation` on the box that is then answered.

    Raises:
        ValueError: If `think` is unknown, a share is negative, or the three add up to more than 1.
    """

    def __init__(
        self,
        box_frame: str = "pixel",
        think: str = "rationale",
        grid: float = 1,
        zoom: float = 0.0,
        zoom_share: float = 0.5,
        seed: int = 0,
        reflect: float = 0.0,
        confirm: float = 0.0,
    ) -> None:
        if think not in THOUGHTS:
            raise ValueError(f"think {think!r} is not one of {list(THOUGHTS)}")
        if not (min(zoom, reflect, confirm) >= 0 and zoom + reflect + confirm <= 1):
            raise ValueError(f"zoom {zoom}, reflect {reflect}, confirm {confirm}: shares from 0, together at most 1")
        self.box_frame, self.think, self.grid = box_frame, think, grid
        self.zoom_share, self.seed = zoom_share, seed
        self.shares = {"zoom": zoom, "visual_reflection": reflect, "visual_confirmation": confirm}

    @classmethod
    def for_env(
        cls,
        env: MultiImageEnv,
        *,
        zoom: float = 0.0,
        reflect: float = 0.0,
        confirm: float = 0.0,
        think: str = "label",
        seed: int = 0,
    ) -> Self:
        """The oracle that a cold start learns from: short thoughts, whole coordinates, the environment's frame.

        In the tiny world coordinates keep to its lattice; the share of a tool that is not offered counts as 0.
        """
        grid = TINY_LATTICE if getattr(env.source, "world", None) == "tiny" else 1
        zoom = zoom if "zoom" in env.tools else 0.0
        reflect = reflect if "visual_reflection" in env.tools else 0.0
        confirm = confirm if "visual_confirmation" in env.tools else 0.0
        return cls(env.box_frame, think, grid, zoom=zoom, seed=seed, reflect=reflect, confirm=confirm)

    def act(self, histories: Sequence[History]) -> list[str]:
        """The next turn of each episode."""
        return [self._turn(history) for history in histories]

    def _turn(self, history: History) -> str:
        task = load_task(history.task_id)
        told = history.turns and self.think in ("annotations", "places")
        thought = f"<think>{THOUGHTS['label' if told else self.think](task)}</think>"
        if isinstance(task.truth, TextAnswer):
            return f"{thought}<answer>{task.truth.text}</answer>"
        number = task.truth.image
        view = _whole(task, history.images[number - 1], number)
        tool = self._tool(history)
        if tool and not history.turns:
            call = {"name": tool, "arguments": self._arguments(tool, task.truth, view)}
            return f"{thought}<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"
        if tool == "zoom" and history.message.images:  # a call that was refused brought none
            region = self._zoom_region(task.truth.box, view)
            corners = whole_pixels(view.to_original(region, self.box_frame), task.images[number - 1])
            number = len(history.images)
            view = View(history.images[-1], view.image, corners)
        answer = {"image": number, "label": task.truth.label, "bbox_2d": self._box(task.truth, view)}
        return f"{thought}<answer>{json.dumps(answer, ensure_ascii=False)}</answer>"

    def _tool(self, history: History) -> str | None:
        """The tool that this episode calls before it answers."""
        if not history.turns and min(history.budget.turns - 1, history.budget.images) < 1:
            return None
        number = int.from_bytes(history.task_id.encode()[-4:], "little")
        draw = np.random.default_rng([self.seed, number]).random()
        reached = zip(self.shares, itertools.accumulate(self.shares.values()), strict=True)
        return next((tool for tool, share in reached if draw < share), None)

    def _arguments(self, tool: str, truth: Grounding, view: View) -> dict[str, Any]:
        if tool == "visual_reflection":
            return {"image": truth.image}
        if tool == "visual_confirmation":
            return {"image": truth.image, "bbox_2d": self._box(truth, view), "label": truth.label}
        return {"image": truth.image, "bbox_2d": self._zoom_region(truth.box, view)}

    def _box(self, truth: Grounding, view: View) -> Box:
        return self._round(view.from_original(truth.box, self.box_frame), view)

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
