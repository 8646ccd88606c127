"""What is read of a recipe's folders: figures by seed, their means and errors, and what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimgenv.tasks.rendered import GROUNDING_TYPES, TASK_TYPES
from rl.recipes.recipe import Recipe, Stage
from rl.recipes.results import STUDENT, ArmRun, Difference, OverSeeds, read_results

ARMS = {"base": ("a",), "full": ("a", "b")}
RECIPE = Recipe("r", "tiny", "", {}, ARMS, {}, ("referring", "common_object"), ("multi_view",))


def row(success: float, **more: Any) -> dict[str, Any]:
    return {"success": success, "reward": success + 0.5, "reward_parts": {"iou": success}, "tool_calls": {}, **more}


def evaluation(rows: Mapping[str, Any] | None = None, all: Mapping[str, Any] | None = None) -> str:
    return json.dumps({"test": {"rows": rows or {}, "all": all or row(0.5)}})


def run(folder: Path, arm: str, seed: int, rows: Mapping[str, Mapping[str, Any]] | None, text: str = "") -> ArmRun:
    path = folder / arm / str(seed)
    path.mkdir(parents=True)
    if rows is not None:
        text = evaluation(rows)
    if text:
        (path / "evaluation.json").write_text(text)
    return ArmRun(arm, seed, path, (path,))


def test_a_mean_over_seeds_has_the_standard_error_of_a_mean() -> None:
    figure = OverSeeds({0: 1.0, 1: 2.0, 2: 6.0})
    assert (figure.n, figure.mean) == (3, 3.0)
    assert figure.error == pytest.approx(math.sqrt(7.0 / 3))


def test_one_seed_has_a_mean_and_no_error_and_none_has_neither() -> None:
    assert OverSeeds({4: 2.0}).mean == 2.0 and math.isnan(OverSeeds({4: 2.0}).error)
    assert OverSeeds({}).n == 0 and math.isnan(OverSeeds({}).mean)


def test_a_difference_is_taken_within_the_seeds_that_both_have() -> None:
    less = OverSeeds({0: 10.0, 1: 50.0, 2: 7.0}) - OverSeeds({0: 8.0, 1: 48.5, 3: 1.0})
    assert less.values == {0: 2.0, 1: 1.5}
    assert less.error == pytest.approx(0.25)


def test_a_figure_of_some_seeds_has_their_values_only() -> None:
    assert OverSeeds({0: 1.0, 1: 2.0, 2: 6.0}).of([2, 0]).values == {2: 6.0, 0: 1.0}


@pytest.mark.parametrize(
    ("values", "value", "clear"),
    [
        ((13.71, 11.71), 0.0, True),  # of two values the error is half of what lies between them
        ((13.70, 11.70), 0.0, False),
        ((-13.71, -11.71), 0.0, True),
        ((13.71, 11.71), 0.01, False),
        ((11.71, 9.71), -2.0, True),
        ((6.49, 4.31, 2.13), 0.0, False),  # of three so far apart alike it is 2.18 / √3
        ((7.60, 5.42, 3.24), 0.0, True),
    ],
)
def test_a_value_is_clear_of_a_difference_outside_its_interval(
    values: tuple[float, ...], value: float, clear: bool
) -> None:
    assert Difference(dict(enumerate(values))).clear_of(value) is clear


def test_a_difference_of_one_seed_is_clear_of_nothing() -> None:
    assert not Difference({0: 100.0}).clear_of(0.0)
    assert not Difference({}).clear_of(0.0)


def test_more_seeds_than_the_table_has_are_judged_by_its_last_row() -> None:
    def many(error: float) -> Difference:
        spread = error * math.sqrt(39)  # of 40 values, half of them so far above 1 and half below
        return Difference({seed: 1.0 + spread * (-1) ** seed for seed in range(40)})

    assert many(1 / 2.046).clear_of(0.0)
    assert not many(1 / 2.044).clear_of(0.0)


@pytest.mark.parametrize("freedom", range(1, len(STUDENT) + 1))
def test_nineteen_twentieths_of_students_t_lie_within_each_width_of_the_table(freedom: int) -> None:
    # With t = √f tan u the density is const cos(u)^(f - 1): smooth and bounded, so that a midpoint sum is exact enough.
    edge, steps = math.atan(STUDENT[freedom - 1] / math.sqrt(freedom)), 2000
    total = sum(math.cos((step + 0.5) * edge / steps) ** (freedom - 1) for step in range(steps)) * edge / steps
    const = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi)
    assert 2 * const * total == pytest.approx(0.95, abs=5e-5)


def grpo(**settings: Any) -> Stage:
    return Stage("b", "train", {"steps": 1, **settings})


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        (grpo(tasks=("locate", "referring")), {"locate", "referring"}),
        (grpo(tasks="counting"), {"counting"}),
        (grpo(env="MultiImageTiny-v0", tasks="qa"), {"odd_one_out_qa", "counting"}),
        (grpo(env="MultiImageTinyZoom-v0"), {"referring"}),
        (grpo(env="mimg/Jigsaw-v0"), {"jigsaw"}),
        (grpo(steps=0, tasks=("locate",)), set()),
        (Stage("b", "sample", {"tasks": ("locate",)}), set()),
    ],
)
def test_the_types_that_are_trained_are_those_of_the_grpo_stages(stage: Stage, trained: set[str]) -> None:
    stages = {"a": Stage("a", "train", {"steps": 0, "tasks": ("multi_view",)}), "b": stage}
    results = read_results(replace(RECIPE, stages=stages), [])
    assert results.trained() == trained


def test_without_a_choice_of_tasks_all_types_of_the_environment_are_trained() -> None:
    stages = {"a": grpo(env="MultiImageGrounding-v0"), "b": grpo(env="MultiImageQA-v0")}
    few = read_results(replace(RECIPE, stages=stages, arms={"base": ("a",)}), []).trained()
    assert few == set(GROUNDING_TYPES)
    assert read_results(replace(RECIPE, stages=stages), []).trained() == set(TASK_TYPES)


def test_what_no_arm_visits_trains_nothing() -> None:
    stages = {"a": grpo(tasks=("locate",)), "b": grpo(tasks=("referring",)), "c": grpo(tasks=("counting",))}
    assert read_results(replace(RECIPE, stages=stages), []).trained() == {"locate", "referring"}


def test_accuracy_is_the_macro_mean_over_the_types_that_are_there(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "full", 0, {"referring": row(0.2), "common_object": row(0.6)}),
        run(tmp_path, "full", 1, {"referring": row(0.5)}),
    ]
    results = read_results(RECIPE, runs)
    assert results.accuracy("full", "test", ("referring", "common_object", "multi_view")).values == {0: 40.0, 1: 50.0}
    assert results.accuracy("full", "test", ("multi_view",)).n == 0
    assert results.accuracy("full", "test_ood", ("referring",)).n == 0


def test_the_average_is_over_the_types_of_both_domains() -> None:
    results = read_results(RECIPE, [])
    assert results.groups["AVG"] == ("referring", "common_object", "multi_view")


def test_a_figure_is_found_by_its_keys_and_one_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "full", 0, {"referring": row(0.25, turns=2.0)}),
        run(tmp_path, "full", 1, {"referring": row(0.25, turns=math.nan)}),
        run(tmp_path, "full", 2, {}),
    ]
    results = read_results(RECIPE, runs)
    assert results.figure("full", "test", "referring", "reward_parts", "iou").values == {0: 0.25, 1: 0.25}
    assert results.figure("full", "test", "referring", "turns").values == {0: 2.0}
    assert results.figure("full", "test", "all", "reward").values == {0: 1.0, 1: 1.0, 2: 1.0}


def test_calls_of_tools_add_up_and_a_tool_that_was_not_called_has_none(tmp_path: Path) -> None:
    calls = ({"zoom": 0.5, "visual_reflection": 0.25}, {})
    runs = [run(tmp_path, "full", seed, None, evaluation(all=row(0.5, tool_calls=calls[seed]))) for seed in (0, 1)]
    results = read_results(RECIPE, runs)
    assert results.calls("full", "test").values == {0: 0.75, 1: 0.0}
    assert results.calls("full", "test", "zoom").values == {0: 0.5, 1: 0.0}
    assert results.calls("full", "test_ood").n == 0


def test_what_is_missing_is_listed_arm_by_arm_and_seed_by_seed(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "base", 0, {}),
        run(tmp_path, "base", 1, None),
        run(tmp_path, "full", 1, None, '{"test": {"ro'),
    ]
    results = read_results(RECIPE, runs)
    assert results.missing == (
        "base, seed 1: evaluation.json is not there",
        "full, seed 0: not run",
        "full, seed 1: evaluation.json cannot be read",
    )
    assert results.arms == ("base",)
    assert results.seeds == (0, 1)


def test_nothing_is_missing_where_every_arm_has_every_seed(tmp_path: Path) -> None:
    runs = [run(tmp_path, arm, seed, {}) for arm in RECIPE.arms for seed in (0, 5)]
    assert read_results(RECIPE, runs).missing == ()


def test_updates_are_those_of_the_last_training_of_an_arm(tmp_path: Path) -> None:
    for name, rows in {
        "a": [{"phase": "grpo", "step": 1, "reward/total": 9.0}],
        "b": [{"phase": "sft", "step": 1}, {"phase": "grpo", "step": 1, "reward/total": 0.5}],
        "c": [{"phase": "sft", "step": 1}],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    a, b, c = (tmp_path / name for name in "abc")
    results = read_results(RECIPE, [ArmRun("full", 0, a, (a, b)), ArmRun("base", 0, a, (a, c))])
    assert results.updates == {("full", 0): [{"phase": "grpo", "step": 1, "reward/total": 0.5}]}


def test_a_run_of_no_arm_of_the_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of arms \['base', 'full'\]; got \['other, seed 3'\]"):
        read_results(RECIPE, [ArmRun("other", 3, tmp_path, ())])


def test_two_runs_of_an_arm_with_one_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one per arm and seed.*\['full, seed 3', 'full, seed 3'\]"):
        read_results(RECIPE, [ArmRun("full", 3, tmp_path, ()), ArmRun("full", 3, tmp_path / "x", ())])
