"""The claims of a paper: which figure each is about, and in which words the difference of its arms is judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rl.recipes.claims import NOT_MEASURED, Finding, findings
from rl.recipes.recipe import Claim, Recipe
from rl.recipes.results import Difference, OverSeeds, Results

ARMS = {"base": ("a",), "full": ("a", "b")}
NONE = OverSeeds({})


def figures(success: float, **more: Any) -> dict[str, Any]:
    return {"success": success, "reward_parts": {}, "tool_calls": {}, "turns": 1.0, **more}


def told(inside: float, outside: float, **all: Any) -> dict[str, Any]:
    rows = {"referring": figures(inside), "odd_one_out": figures(outside), "counting": figures(1.0)}
    return {"rows": rows, "all": figures(0.5, **all)}


def found(evaluations: Mapping[tuple[str, int], Any], *claims: Claim) -> list[Finding]:
    recipe = Recipe("r", "tiny", "", {}, ARMS, {}, ("referring",), ("odd_one_out",), claims)
    return findings(Results(recipe, (), evaluations, {}, {}, ()))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.17, 1.0), "holds"),
        ((1.18, 1.0), "points this way"),
        ((1.0, 2.0, 3.0), "points this way"),
        ((1.5, 2.5, 3.5), "holds"),
        ((5.0,), "points this way"),
        ((0.0, 0.0, 0.0), "no difference"),
        ((0.004, 0.004), "no difference"),
        ((0.006, 0.006), "points this way"),  # two that are equal say little of their error
        ((0.006, 0.006, 0.006), "holds"),
        ((-0.004,), "no difference"),
        ((-1.18, -1.0), "points the other way"),
        ((-1.17, -1.0), "contradicted"),
        ((), NOT_MEASURED),
    ],
)
def test_a_difference_is_judged_by_the_side_of_zero_on_which_its_interval_lies(
    values: tuple[float, ...], verdict: str
) -> None:
    assert Finding(Claim("", "full", "base"), NONE, NONE, Difference(dict(enumerate(values)))).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((-0.3, -0.3, -0.3), "holds"),
        ((0.0, 0.0), "points this way"),
        ((0.0, 0.0, 0.0), "holds"),
        ((-0.2,), "points this way"),
        ((-1.5, -1.0, -0.5), "points this way"),
        ((-0.75, -0.5, -0.25), "holds"),
        ((-2.2,), "points the other way"),
        ((-3.5, -3.0, -2.5), "points the other way"),
        ((-3.25, -3.0, -2.75), "contradicted"),
        ((), NOT_MEASURED),
    ],
)
def test_a_loss_within_the_margin_of_a_claim_counts_as_none(values: tuple[float, ...], verdict: str) -> None:
    claim = Claim("", "full", "base", margin=2.0)
    assert Finding(claim, NONE, NONE, Difference(dict(enumerate(values)))).verdict == verdict


def test_a_claim_is_about_the_seeds_that_have_both_arms() -> None:
    evaluations = {
        ("base", 0): {"test": told(0.25, 0.0)},
        ("base", 3): {"test": told(1.0, 1.0)},
        ("full", 0): {"test": told(0.5, 0.25)},
        ("full", 2): {"test": told(1.0, 1.0)},
    }
    (only,) = found(evaluations, Claim("it pays", "full", "base"))
    assert (only.better.values, only.worse.values, only.difference.values) == ({0: 37.5}, {0: 12.5}, {0: 25.0})


@pytest.mark.parametrize(("types", "per_cent"), [("all", 37.5), ("in_domain", 50.0), ("out_of_domain", 25.0)])
def test_accuracy_is_over_the_grounding_types_that_the_claim_names(types: str, per_cent: float) -> None:
    evaluations = {("full", 0): {"test": told(0.5, 0.25)}, ("base", 0): {"test": told(0.0, 0.0)}}
    (only,) = found(evaluations, Claim("", "full", "base", types=types))
    assert only.difference.values == {0: per_cent}


def test_a_claim_is_about_its_own_split() -> None:
    evaluations = {
        ("full", 0): {"test": told(0.0, 0.0), "test_ood": told(1.0, 1.0)},
        ("base", 0): {"test": told(1.0, 1.0), "test_ood": told(0.5, 0.5)},
    }
    ordinary, held_out = found(evaluations, Claim("", "full", "base"), Claim("", "full", "base", split="test_ood"))
    assert (ordinary.difference.mean, held_out.difference.mean) == (-100.0, 50.0)


@pytest.mark.parametrize(
    ("measure", "better", "worse"),
    [
        ("turns", 2.5, 1.0),
        ("reward_parts/image", 0.75, 0.5),
        ("tool_calls", 1.5, 0.25),
        ("tool_calls/zoom", 1.0, 0.0),
    ],
)
def test_other_measures_are_figures_of_all_episodes(measure: str, better: float, worse: float) -> None:
    calls, few = {"zoom": 1.0, "visual_reflection": 0.5}, {"visual_reflection": 0.25}
    evaluations = {
        ("full", 0): {"test": told(0.0, 0.0, turns=2.5, reward_parts={"image": 0.75}, tool_calls=calls)},
        ("base", 0): {"test": told(0.0, 0.0, reward_parts={"image": 0.5}, tool_calls=few)},
    }
    (only,) = found(evaluations, Claim("", "full", "base", measure))
    assert (only.better.values, only.worse.values) == ({0: better}, {0: worse})


def test_what_no_evaluation_has_is_not_measured() -> None:
    evaluations = {(arm, 0): {"test": told(0.5, 0.5)} for arm in ARMS}
    for claim in (
        Claim("", "full", "base", "reward_parts/image"),
        Claim("", "full", "base", split="test_ood"),
        Claim("", "full", "an arm that was left out"),
    ):
        (only,) = found(evaluations, claim)
        assert (only.verdict, only.better.n, only.worse.n) == (NOT_MEASURED, 0, 0)
