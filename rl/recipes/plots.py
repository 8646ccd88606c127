"""The plots of a recipe: an arm has one colour in all of them, and a band or bar is one standard error over seeds.

Owns what is drawn and how. Where the figures come from is the business of `results`. A plot without data is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from rl.recipes.results import Results
from rl.report import series, smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

COLOURS: Final = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart; the yellow, pale on white, is replaced by a grey."""
LINES: Final = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
LEARNING: Final = {
    "reward/total": "reward",
    "reward/iou": "IoU",
    "reward/answer": "exact answers",
    "held_out/reward/iou": "IoU, held out",
}
NOT_PARTS: Final = ("reward/total", "reward/deviation")
WIDTH: Final = 12.0
"""Inches: the same for all, so that letters on the page are of one size."""
SPLIT_TITLES: Final = {"test": "test", "test_ood": "test_ood: held-out combinations"}
TOOL: Final = "tool/"
"""Before the name of a tool, in a metric: its calls per episode."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn of an arm: its mean over seeds, and the standard error, both (points,); nan errors are no band."""

    xs: Floats
    mean: Floats
    error: Floats


def plots(results: Results) -> dict[str, Figure | None]:
    """All plots by name, in the order of the page."""
    return {
        "ablation": _bars(results),
        "learning": _curves(results, LEARNING),
        "reward": _curves(results, _named(results, "reward/", NOT_PARTS)),
        "tools": _curves(results, _named(results, TOOL), bottom=0.0),
        "attention": _attention(results),
    }


def colour(results: Results, arm: str) -> str:
    """The colour of an arm, in all plots."""
    return COLOURS[list(results.recipe.arms).index(arm) % len(COLOURS)]


def over_seeds(series: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Line:
    """The mean of several seeds' points, where all of them have one.

    Args:
        series: At least one pair of places and values.
    """
    by_place = [dict(zip(xs, ys, strict=True)) for xs, ys in series]
    shared = sorted(set.intersection(*map(set, by_place)))
    values = np.array([[points[x] for x in shared] for points in by_place], dtype=np.float64)
    spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(len(shared), np.nan)
    return Line(np.array(shared, np.float64), values.mean(0), spread)


def _named(results: Results, prefix: str, without: Sequence[str] = ()) -> dict[str, str]:
    """The metrics of this prefix that any arm's updates have, each with its name."""
    keys = {key for rows in results.updates.values() for row in rows for key in row if key.startswith(prefix)}
    return {key: key.removeprefix(prefix).replace("_", " ") for key in sorted(keys.difference(without))}


def _curves(results: Results, titles: Mapping[str, str], bottom: float | None = None) -> Figure | None:
    """A panel for each metric that has data, a line for each arm, over GRPO's updates; panels begin at `bottom`."""
    panels = {title: lines for key, title in titles.items() if (lines := _lines(results, key))}
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw(axis, results, lines)
        axis.set(title=title, xlabel="GRPO update", ylim=(bottom, None))
    _legend(figure, axes)
    return figure


def _lines(results: Results, key: str) -> dict[str, Line]:
    """A metric's line for each arm that has it; smoothed, but for what is measured only now and then."""
    lines = {}
    uncalled = {key: 0.0} if key.startswith(TOOL) else {}  # a tool that nobody calls has no metric
    for arm in results.recipe.arms:
        updates = [rows for (name, _), rows in sorted(results.updates.items()) if name == arm]
        seeds = [series([uncalled | row for row in rows], "grpo", key) for rows in updates]
        drawn = [(xs, ys if key.startswith("held_out/") else smooth(ys)) for xs, ys in seeds if xs]
        if drawn:
            lines[arm] = over_seeds(drawn)
    return lines


def _attention(results: Results) -> Figure | None:
    """Attention on image tokens over the length of what the policy has written: all, beside what is even, returned."""
    panels = {
        "share of attention on image tokens": _attention_lines(results, lambda told: (told["share"], told["error"])),
        "times what even attention would give": _attention_lines(results, _times_even),
    }
    if not all(panels.values()):
        return None
    returned = _attention_lines(results, lambda told: (told["returned"], np.full(len(told["returned"]), np.nan)))
    if any(line.mean.any() for line in returned.values()):
        panels["share on images that tools returned"] = returned
    figure, axes = _panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw(axis, results, lines)
        axis.locator_params(axis="x", integer=True)
        axis.set(title=title, xlabel="tokens the policy has written in the episode")
    _legend(figure, axes)
    return figure


def _attention_lines(results: Results, take: Callable[[Mapping[str, Any]], tuple[Any, Any]]) -> dict[str, Line]:
    """Each arm's line, of the values and errors that `take` finds in an attention file."""
    lines = {}
    for arm in results.recipe.arms:
        told = [told for (name, _), told in sorted(results.attentions.items()) if name == arm]
        seeds = [
            Line(np.array(one["positions"], np.float64), *(np.array(values, np.float64) for values in take(one)))
            for one in told
            if one["positions"]
        ]
        if len(seeds) == 1:  # one seed has no spread over seeds, but its episodes have one
            lines[arm] = seeds[0]
        elif seeds:
            lines[arm] = over_seeds([(list(seed.xs), list(seed.mean)) for seed in seeds])
    return lines


def _times_even(told: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Divided by the share of image tokens among all that could be attended to."""
    share, error, even = (np.array(told[key], np.float64) for key in ("share", "error", "even"))
    return share / even, error / even


def _bars(results: Results) -> Figure | None:
    """What each arm gets right: a panel per split, a group of bars per average, a dot per seed."""
    if not results.splits:
        return None
    figure, axes = _panels(len(results.splits), sharey=True)
    for axis, split in zip(axes, results.splits, strict=True):
        for place, arm in enumerate(results.arms):
            _bars_of(axis, results, arm, split, place)
        axis.set_title(SPLIT_TITLES[split])
        axis.set_xticks(range(len(results.groups)), list(results.groups))
        axis.grid(visible=False, axis="x")
    axes[0].set(ylabel="Acc@0.5, per cent", ylim=(0, None))  # of all panels, and none of them grows after it is set
    _legend(figure, axes)
    return figure


def _bars_of(axis: Any, results: Results, arm: str, split: str, place: int) -> None:
    """One arm's bars, the `place`-th of each group."""
    width = 0.84 / len(results.arms)
    label: str | None = arm
    for group, types in enumerate(results.groups.values()):
        found = results.accuracy(arm, split, types)
        if not found.n:
            continue
        x = group + (place - (len(results.arms) - 1) / 2) * width
        axis.bar(x, found.mean, 0.9 * width, color=colour(results, arm), alpha=0.6, label=label)
        if found.n > 1:
            axis.errorbar(x, found.mean, found.error, color="black", capsize=4)
        dots = np.linspace(-0.25, 0.25, found.n) * width if found.n > 1 else [0.0]
        axis.scatter(x + np.asarray(dots), list(found.values.values()), 14, "white", edgecolors="#333333", zorder=3)
        label = None


def _panels(count: int, sharey: bool = False) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 3.6 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def _draw(axis: Any, results: Results, lines: Mapping[str, Line]) -> None:
    for arm, line in lines.items():
        style = LINES[list(results.recipe.arms).index(arm) % len(LINES)]
        marker = "." if len(line.xs) < 12 else None
        axis.plot(line.xs, line.mean, color=colour(results, arm), linestyle=style, marker=marker, label=arm)
        low, high = line.mean - line.error, line.mean + line.error
        axis.fill_between(line.xs, low, high, color=colour(results, arm), alpha=0.15, linewidth=0)


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend for all panels, above them, with every arm once."""
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    words = [name.replace("$", r"\$") for name in named]  # else it is read as a formula
    figure.legend(named.values(), words, loc="outside upper center", ncols=min(len(named), 6), frameon=False)
