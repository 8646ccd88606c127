"""What a run leaves behind for people: the learning curve and the page of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mimgenv.viewer import load_episodes, write_page
from rl.tracker import read_metrics

CURVE: Final = "curve.png"
EPISODES: Final = "episodes.html"
SHOWN: Final = 40
"""Episodes of each section on the page."""


def _series(rows: list[dict[str, Any]], phase: str, key: str, first: int = 0) -> tuple[list[int], list[float]]:
    points = [(first + row["step"], row[key]) for row in rows if row["phase"] == phase and key in row]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: list[float], share: float = 0.1) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(value if not smooth else (1 - share) * smooth[-1] + share * value)
    return smooth


def draw_curve(folder: Path) -> None:
    """Held-out IoU, training reward and format over all updates, to `curve.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(folder)
    switch = max((row["step"] for row in rows if row["phase"] == "sft"), default=0)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for key, label in (("probe/reward/iou", "cold start, probe"), ("probe/reward/format", "format, probe")):
        left.plot(*_series(rows, "sft", key), marker=".", label=label)
    left.plot(*_series(rows, "grpo", "held_out/reward/iou", switch), marker="o", label="GRPO, held out")
    steps, values = _series(rows, "grpo", "reward/iou", switch)
    left.plot(steps, _smooth(values), label="GRPO, training (sampled)")
    left.set(xlabel="update", ylabel="IoU", ylim=(0, 1.02), title="Grounding")
    steps, values = _series(rows, "grpo", "reward/total")
    right.plot(steps, values, alpha=0.25, color="tab:green")
    right.plot(steps, _smooth(values), color="tab:green", label="reward (training, sampled)")
    right.set(xlabel="GRPO update", ylabel="reward", title="GRPO")
    if switch:
        left.axvline(switch, color="gray", linestyle=":", label="cold start ends")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    figure.savefig(folder / CURVE, dpi=120)
    pyplot.close(figure)


def write_episodes(folder: Path) -> None:
    """The same held-out episodes before and after GRPO, to `episodes.html`."""
    sections = [load_episodes(folder / f"{when}.jsonl", when)[:SHOWN] for when in ("before", "after")]
    write_page(folder / EPISODES, [episode for section in sections for episode in section], f"Held-out: {folder.name}")
