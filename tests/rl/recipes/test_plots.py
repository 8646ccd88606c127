"""The plots of a recipe: what is drawn for each arm, in its own colour, and what is not drawn for want of data."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rl.recipes.plots import COLOURS, colour, over_seeds, plots
from rl.recipes.recipe import Recipe
from rl.recipes.results import Results

ARMS = {"base": ("a",), "full $x": ("a", "b")}
FULL = "full $x"

Key = tuple[str, int]


def results(
    evaluations: Mapping[Key, Any] | None = None,
    attentions: Mapping[Key, Any] | None = None,
    updates: Mapping[Key, Any] | None = None,
) -> Results:
    recipe = Recipe("r", "tiny", "", {}, ARMS, {}, ("referring",), ("odd_one_out",))
    return Results(recipe, (), evaluations or {}, attentions or {}, updates or {}, ())


def updates(key: str, *values: float) -> list[dict[str, Any]]:
    return [{"phase": "grpo", "step": number, key: value} for number, value in enumerate(values, 1)]


def drawn(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a panel by label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def bands(axis: Any) -> list[set[tuple[float, float]]]:
    """The corners of each line's band; none where it has no band."""
    paths = [band.get_paths() for band in axis.collections]
    return [{(x, round(y, 9)) for path in found for x, y in path.vertices} for found in paths]


def test_a_line_is_the_mean_over_seeds_where_all_have_a_point() -> None:
    line = over_seeds([([1, 2, 3], [0.0, 1.0, 5.0]), ([1, 2], [2.0, 1.0])])
    assert list(line.xs) == [1, 2]
    assert list(line.mean) == [1.0, 1.0]
    assert line.error == pytest.approx([1.0, 0.0])


def test_the_line_of_one_seed_has_no_band() -> None:
    line = over_seeds([([1, 2], [0.0, 1.0])])
    assert list(line.mean) == [0.0, 1.0] and np.isnan(line.error).all()


def test_learning_curves_are_smoothed_means_with_a_band_of_one_standard_error() -> None:
    told = {
        ("base", 0): updates("reward/total", 1.0, 2.0),
        ("base", 1): updates("reward/total", 3.0, 2.0),
        (FULL, 0): updates("reward/total", 0.5, 0.5, 0.5),
    }
    figure = plots(results(updates=told))["learning"]
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title() == "reward"
    assert drawn(axis) == {"base": ([1, 2], [2.0, pytest.approx(2.0)]), FULL: ([1, 2, 3], [0.5, 0.5, 0.5])}
    band, none = bands(axis)
    assert {(1.0, 1.0), (1.0, 3.0), (2.0, 1.1), (2.0, 2.9)} <= band
    assert none == set()


def test_held_out_scores_are_drawn_as_they_are() -> None:
    told = {(FULL, 0): updates("held_out/reward/iou", 0.0, 1.0)}
    figure = plots(results(updates=told))["learning"]
    assert figure is not None
    assert drawn(figure.axes[0])[FULL] == ([1, 2], [0.0, 1.0])


def test_reward_parts_and_tools_have_a_panel_each_and_only_those_that_are_there() -> None:
    row = {"phase": "grpo", "step": 1, "reward/total": 1.0, "reward/deviation": 0.1, "reward/tool_gain": 0.2}
    made = plots(results(updates={(FULL, 0): [row | {"tool/zoom": 0.5, "tool/visual_reflection": 0.25}]}))
    assert made["reward"] is not None and made["tools"] is not None
    assert [axis.get_title() for axis in made["reward"].axes] == ["tool gain"]
    assert [axis.get_title() for axis in made["tools"].axes] == ["visual reflection", "zoom"]
    assert drawn(made["tools"].axes[1]) == {FULL: ([1], [0.5])}


def test_a_tool_that_is_no_longer_called_is_drawn_at_nothing() -> None:
    made = plots(results(updates={(FULL, 0): [*updates("tool/zoom", 1.0), {"phase": "grpo", "step": 2}]}))["tools"]
    assert made is not None
    (line,) = made.axes[0].get_lines()
    assert list(line.get_xdata()) == [1, 2]
    assert line.get_ydata()[1] < line.get_ydata()[0] == 1.0


def test_tool_calls_are_drawn_from_nothing_so_that_small_changes_look_small() -> None:
    made = plots(results(updates={(FULL, 0): updates("tool/zoom", 0.5, 0.501)}))
    assert made["tools"] is not None
    assert made["tools"].axes[0].get_ylim()[0] == 0.0


def test_an_arm_has_one_colour_in_all_plots() -> None:
    row = {"success": 0.5}
    told = {"test": {"rows": {"referring": row}, "all": row}}
    found = results({(FULL, 0): told}, {(FULL, 0): shares(0.5, 0.25)}, {(FULL, 0): updates("reward/total", 1.0, 1.0)})
    made = plots(found)
    lines = [made[name].axes[0].get_lines()[0] for name in ("learning", "attention") if made[name] is not None]
    assert [line.get_color() for line in lines] == [COLOURS[1], COLOURS[1]]
    assert made["ablation"] is not None
    assert to_hex(made["ablation"].axes[0].patches[0].get_facecolor()).upper() == COLOURS[1]
    assert colour(found, "base") != colour(found, FULL)


def test_bars_show_the_mean_of_each_average_and_dots_the_seeds() -> None:
    def told(inside: float, outside: float) -> dict[str, Any]:
        rows = {"referring": {"success": inside}, "odd_one_out": {"success": outside}}
        return {"test": {"rows": rows, "all": {}}}

    figure = plots(results({(FULL, 0): told(0.5, 0.0), (FULL, 1): told(1.0, 0.5)}))["ablation"]
    assert figure is not None
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [75.0, 25.0, 50.0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["In-domain", "Out-of-domain", "AVG"]
    dots = [list(points.get_offsets()[:, 1]) for points in axis.collections if len(points.get_offsets()) == 2]
    assert dots == [[50.0, 100.0], [0.0, 50.0], [25.0, 75.0]]


def test_a_split_has_a_panel_and_an_arm_that_lacks_it_has_no_bar_there() -> None:
    rows = {"rows": {"referring": {"success": 0.5}}, "all": {}}
    figure = plots(results({("base", 0): {"test": rows, "test_ood": rows}, (FULL, 0): {"test": rows}}))["ablation"]
    assert figure is not None
    assert [len(axis.patches) for axis in figure.axes] == [4, 2]


def test_no_panel_cuts_off_what_another_panel_shows_higher() -> None:
    def told(success: float) -> dict[str, Any]:
        return {"rows": {"referring": {"success": success}}, "all": {}}

    for first, second in ((0.25, 0.75), (0.75, 0.25), (0.0, 0.0)):
        figure = plots(results({(FULL, 0): {"test": told(first), "test_ood": told(second)}}))["ablation"]
        assert figure is not None
        assert [axis.get_ylim()[0] for axis in figure.axes] == [0.0, 0.0]
        assert min(axis.get_ylim()[1] for axis in figure.axes) >= 100.0 * max(first, second)


def shares(*values: float, returned: tuple[float, ...] = (0.0, 0.0)) -> dict[str, Any]:
    even = [0.25] * len(values)
    error, returned = (0.125, 0.25)[: len(values)], returned[: len(values)]
    places = list(range(len(values)))
    return {"positions": places, "share": values, "error": error, "returned": returned, "even": even, "episodes": 3}


def test_attention_has_a_band_over_seeds_or_over_the_episodes_of_the_only_one() -> None:
    told = {("base", 0): shares(0.5, 0.25), (FULL, 0): shares(0.5, 0.25), (FULL, 1): shares(1.0, 0.25)}
    figure = plots(results(attentions=told))["attention"]
    assert figure is not None
    share, _ = figure.axes
    assert drawn(share) == {"base": ([0, 1], [0.5, 0.25]), FULL: ([0, 1], [0.75, 0.25])}
    of_episodes, over = bands(share)
    assert {(0.0, 0.375), (0.0, 0.625), (1.0, 0.0), (1.0, 0.5)} <= of_episodes
    assert {(0.0, 0.5), (0.0, 1.0)} <= over


def test_attention_is_shown_beside_what_even_attention_would_give() -> None:
    told = {("base", 0): shares(0.5, 0.25), (FULL, 0): shares(0.5, 0.25), (FULL, 1): shares(1.0, 0.25)}
    figure = plots(results(attentions=told))["attention"]
    assert figure is not None
    _, times = figure.axes
    assert drawn(times) == {"base": ([0, 1], [2.0, 1.0]), FULL: ([0, 1], [3.0, 1.0])}
    assert {(0.0, 1.5), (0.0, 2.5), (1.0, 0.0), (1.0, 2.0)} <= bands(times)[0]


def test_attention_to_images_that_tools_returned_has_a_panel_where_there_is_any() -> None:
    told = {("base", 0): shares(0.5, 0.25), (FULL, 0): shares(0.5, 0.25, returned=(0.0, 0.125))}
    figure = plots(results(attentions=told))["attention"]
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes][2:] == ["share on images that tools returned"]
    assert drawn(figure.axes[2]) == {"base": ([0, 1], [0.0, 0.0]), FULL: ([0, 1], [0.0, 0.125])}
    assert bands(figure.axes[2]) == [set(), set()]  # of one seed there is no error to draw
    without = plots(results(attentions={("base", 0): shares(0.5, 0.25)}))["attention"]
    assert without is not None and len(without.axes) == 2


def test_attention_that_too_few_episodes_reach_is_no_line() -> None:
    assert plots(results(attentions={(FULL, 0): shares()}))["attention"] is None
    figure = plots(results(attentions={(FULL, 0): shares(), (FULL, 1): shares(0.5)}))["attention"]
    assert figure is not None
    assert drawn(figure.axes[0]) == {FULL: ([0], [0.5])}


def test_a_plot_without_data_is_none() -> None:
    made = plots(results(updates={(FULL, 0): [{"phase": "grpo", "step": 1}]}))
    assert made == {"ablation": None, "learning": None, "reward": None, "tools": None, "attention": None}


def test_the_name_of_an_arm_is_never_read_as_a_formula() -> None:
    odd = r"$\nonsense{$"
    recipe = Recipe("r", "tiny", "", {}, {odd: ("a",)}, {}, (), ())
    figure = plots(Results(recipe, (), {}, {}, {(odd, 0): updates("reward/total", 1.0)}, ()))["learning"]
    assert figure is not None
    figure.savefig(io.BytesIO(), format="png")
    assert figure.legends[0].get_texts()[0].get_text() == odd.replace("$", r"\$")
