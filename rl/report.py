"""What a run leaves behind for people: the learning curve and the page of episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from mimgenv.viewer import load_episodes, write_page
from rl.tracker import read_metrics

CURVE: Final = "curve.png"
EPISODES: Final = "episodes.html"
SHOWN: Final = 40
"""Episodes of each section on the page."""


Rows = list[dict[str, Any]]


def series(rows: Rows, phase: str, key: str, first: int = 0) -> tuple[list[int], list[float]]:
    """Steps, counted on from `first`, and values of a metric, of the lines of one phase that have it."""
    points = [(first + row["step"], row[key]) for row in rows if row["phase"] == phase and key in row]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: list[float], share: float = 0.1) -> list[float]:
    """The running mean in which each new value counts for `share`; begins at the first."""
    means: list[float] = []
    for value in values:
        means.append(value if not means else (1 - share) * means[-1] + share * value)
    return means


def _keys(rows: Rows, prefix: str) -> list[str]:
    return sorted({key for row in rows if row["phase"] == "grpo" for key in row if key.startswith(prefix)})


def _smoothed(axis: Any, rows: Rows, names: Mapping[str, str]) -> None:
    """GRPO's metrics of these keys, each with its label."""
    for key, label in names.items():
        steps, values = series(rows, "grpo", key)
        if steps:
            axis.plot(steps, smooth(values), label=label)


def draw_curve(folder: Path) -> None:
    """Four views of a run, to `curve.png`: held-out scores over all updates; of GRPO's rollouts the reward and its
    parts, how episodes end, and how far the policy has moved.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(folder)
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    (scores, rewards), (ends, policy) = axes
    _draw_scores(scores, rows, folder)
    steps, values = series(rows, "grpo", "reward/total")
    rewards.plot(steps, values, alpha=0.2, color="tab:blue")
    parts = [key for key in _keys(rows, "reward/") if key not in ("reward/total", "reward/deviation")]
    _smoothed(rewards, rows, {"reward/total": "total"} | {key: key.partition("/")[2] for key in parts})
    rewards.set(title="Reward and its parts", ylabel="mean of the episodes")
    _smoothed(ends, rows, {key: key.partition("/")[2] for key in _keys(rows, "stop/")})
    ends.set(title="How episodes end", ylabel="share of the episodes", ylim=(-0.02, 1.02))
    _smoothed(policy, rows, {"loss/entropy": "entropy", "loss/kl": "KL to the reference"})
    policy.set(title="The policy", ylabel="nats per token")
    for axis in (rewards, ends, policy):
        axis.set(xlabel="GRPO update")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(loc="lower right" if axis is scores else "best", fontsize=7)
    figure.savefig(folder / CURVE, dpi=120)
    pyplot.close(figure)


def _draw_scores(axis: Any, rows: Rows, folder: Path) -> None:
    cold_start = [row for row in rows if row["phase"] == "sft"]
    switch = max((row["step"] for row in cold_start), default=0)
    for key, label in (("probe/reward/iou", "cold start, probe"), ("probe/reward/format", "format, probe")):
        axis.plot(*series(rows, "sft", key), marker=".", label=label)
    axis.plot(*series(rows, "grpo", "held_out/reward/iou", switch), marker="o", label="GRPO, val")
    steps, values = series(rows, "grpo", "reward/iou", switch)
    axis.plot(steps, smooth(values), label="GRPO, training (sampled)")
    axis.set(xlabel="update", ylabel="IoU, or share well formed", ylim=(0, 1.02), title="Grounding")
    for earlier, later in pairwise(cold_start):
        if earlier.get("stage") != later.get("stage"):
            label = "harder tasks" if later["stage"] == 1 else None  # once in the legend
            axis.axvline(later["step"], color="gray", linewidth=0.5, label=label)
    if switch:
        axis.axvline(switch, color="gray", linestyle=":", label="cold start ends")
    steps = [switch, switch + sum(row["phase"] == "grpo" for row in rows)]
    told = [_told(folder / f"{when}.json") for when in ("before", "after")]
    axis.plot(steps, told, "k*", markersize=10, label="test, before and after")


def _told(path: Path) -> float:
    """The greedy IoU of an evaluation; NaN, which is not drawn, where there is none."""
    return float(json.loads(path.read_text())["greedy"].get("reward/iou", "nan")) if path.is_file() else float("nan")


def write_episodes(folder: Path) -> None:
    """The same held-out episodes before and after GRPO, to `episodes.html`."""
    sections = [load_episodes(folder / f"{when}.jsonl", when)[:SHOWN] for when in ("before", "after")]
    write_page(folder / EPISODES, [episode for section in sections for episode in section], f"Held-out: {folder.name}")
