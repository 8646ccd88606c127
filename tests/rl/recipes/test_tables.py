"""The tables of a recipe: which figure stands where, how it is written, and what is left open."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import pytest

from rl.recipes.recipe import Claim, Recipe, Stage
from rl.recipes.results import Difference, OverSeeds, Results
from rl.recipes.tables import MIG_BENCH, Cell, Table, tables

ARMS = {"base": ("a",), "full": ("a", "b")}
PLAIN = Table("t", "Title", "Note.", ("split", "arm", "seeds", "x"), ())


def row(success: float, **more: Any) -> dict[str, Any]:
    return {"success": success, "reward": 1.5, "reward_parts": {}, "tool_calls": {}, "turns": 1.0, **more}


def made(
    told: Mapping[tuple[str, int], Mapping[str, Any]],
    inside: tuple[str, ...] = ("referring",),
    outside: tuple[str, ...] = ("static_difference", "odd_one_out"),
    claims: tuple[Claim, ...] = (),
    trained: tuple[str, ...] = ("referring",),
) -> dict[str, Table]:
    """The tables of evaluations by arm and seed, each given by split as rows by task type and `all`."""
    evaluations = {
        key: {split: {"rows": rows, "all": rows.get("all", row(0.0))} for split, rows in splits.items()}
        for key, splits in told.items()
    }
    for splits in evaluations.values():
        for found in splits.values():
            found["rows"] = {name: figures for name, figures in found["rows"].items() if name != "all"}
    stages = {name: Stage(name, "train", {"steps": name == "b", "tasks": trained}) for name in "ab"}
    recipe = Recipe("r", "tiny", "", stages, ARMS, {}, inside, outside, claims)
    return {table.name: table for table in tables(Results(recipe, (), evaluations, {}, {}, ()))}


def texts(table: Table) -> list[dict[str, str]]:
    """The rows as people read them, by column."""
    return [dict(zip(table.header, map(table.text, row), strict=True)) for row in table.rows]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (OverSeeds({0: 1.0, 1: 3.0}), "2.0 ± 1.0"),
        (OverSeeds({7: 1.26}), "1.3"),
        (OverSeeds({}), "–"),
        (Difference({0: 4.0, 1: 4.5}), "+4.2 ± 0.2 ▲"),
        (Difference({0: 4.0, 1: 5.0}), "+4.5 ± 0.5"),
        (Difference({0: -4.0, 1: -4.5}), "-4.2 ± 0.2 ▼"),
        (Difference({0: -4.0, 1: 5.0}), "+0.5 ± 4.5"),
        (Difference({0: 4.0}), "+4.0"),
        (Difference({0: -0.01}), "+0.0"),
        ("words", "words"),
    ],
)
def test_a_figure_is_written_with_its_error_and_a_difference_with_its_sign(cell: Cell, text: str) -> None:
    assert PLAIN.text(cell) == text


def test_markdown_has_the_title_the_rows_and_the_note() -> None:
    table = Table("t", "Title", "Note.", PLAIN.header, (("test", "a|b\nc", "1", OverSeeds({0: 2.0})),))
    assert table.markdown() == (
        "**Title**\n\n| split | arm | seeds | x |\n| --- | --- | --- | ---: |\n| test | a\\|b c | 1 | 2.0 |\n\nNote.\n"
    )


def test_csv_has_mean_error_and_number_of_seeds_to_six_digits() -> None:
    rows = (
        ("test", 'a, "b"', "2", OverSeeds({0: 1.0, 1: 2.5})),
        ("test", "c", "1", OverSeeds({0: 200 / 3})),
        ("test", "d", "0", OverSeeds({})),
    )
    text = Table("t", "Title", "Note.", PLAIN.header, rows).csv()
    assert list(csv.reader(io.StringIO(text))) == [
        ["split", "arm", "seeds", "x", "x error", "x n"],
        ["test", 'a, "b"', "2", "1.75", "0.75", "2"],
        ["test", "c", "1", "66.6667", "", "1"],
        ["test", "d", "0", "", "", "0"],
    ]


def test_a_claim_is_a_row_of_words_then_both_arms_and_their_difference() -> None:
    told = {
        ("base", 0): {"test": {"referring": row(0.25)}},
        ("base", 1): {"test": {"referring": row(0.5)}},
        ("full", 0): {"test": {"referring": row(0.5)}},
        ("full", 1): {"test": {"referring": row(0.5)}},
        ("full", 2): {"test": {"referring": row(0.0)}},
    }
    table = made(told, claims=(Claim("it pays", "full", "base", types="in_domain"),))["claims"]
    assert texts(table) == [
        {"claim": "it pays", "verdict": "points this way", "better arm": "full", "worse arm": "base", "seeds": "2"}
        | {"measure": "Acc@0.5, in-domain types", "better": "50.00 ± 0.00", "worse": "37.50 ± 12.50"}
        | {"difference": "+12.50 ± 12.50"},
    ]
    assert table.markdown().splitlines()[3] == "| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |"
    header, line = csv.reader(io.StringIO(table.csv()))
    assert header[6:] == [f"{name}{ending}" for name in table.header[6:] for ending in ("", " error", " n")]
    assert line[5:] == ["2", "12.5", "12.5", "2", "50", "0", "2", "37.5", "12.5", "2"]


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Claim("", "full", "base"), "Acc@0.5, all types"),
        (Claim("", "full", "base", types="out_of_domain"), "Acc@0.5, out-of-domain types"),
        (Claim("", "full", "base", "tool_calls", split="test_ood"), "tool calls, test_ood"),
        (Claim("", "full", "base", "tool_calls/visual_reflection"), "tool calls: visual reflection"),
        (Claim("", "full", "base", "reward_parts/image"), "reward parts: image"),
        (Claim("", "full", "base", types="qa", margin=2.0), "Acc@0.5, questions, within 2 points"),
        (Claim("", "full", "base", "turns", split="test_ood", margin=0.5), "turns, test_ood, within 0.5"),
    ],
)
def test_the_measure_of_a_claim_is_told_in_words(claim: Claim, words: str) -> None:
    assert texts(made({}, claims=(claim,))["claims"])[0]["measure"] == words


def test_the_ablation_has_an_arm_a_row_and_the_types_that_are_there() -> None:
    told = {
        ("full", 0): {"test": {"odd_one_out": row(0.5), "referring": row(0.75), "locate": row(1.0)}},
        ("base", 0): {"test": {"odd_one_out": row(0.25), "referring": row(0.0)}},
        ("full", 1): {"test": {"odd_one_out": row(0.5), "referring": row(0.25)}},
    }
    table = made(told)["ablation"]
    assert texts(table) == [
        {"split": "test", "arm": "base", "seeds": "1", "Refer": "0.0", "odd one out": "25.0", "AVG": "12.5"},
        {"split": "test", "arm": "full", "seeds": "2", "Refer": "50.0 ± 25.0", "odd one out": "50.0 ± 0.0"}
        | {"AVG": "50.0 ± 12.5"},
    ]
    assert table.note.endswith("AVG: macro mean of Refer, odd one out.")


def test_the_grounding_table_keeps_the_papers_ten_columns_and_their_order() -> None:
    told = {("full", 0): {"test": {"referring": row(0.5), "static_difference": row(0.1), "odd_one_out": row(0.3)}}}
    table = made(told)["grounding"]
    names = ["Static", "Robust", "Common", "OT", "MV", "Region", "Refer", "GG", "Reason", "Co-Re"]
    assert list(table.header[3:]) == [*names, "odd one out", "In-domain", "Out-of-domain", "AVG"]
    (only,) = texts(table)
    figures = {name: text for name, text in only.items() if name not in ("split", "arm", "seeds")}
    assert {name: text for name, text in figures.items() if text != "–"} == {
        "Static": "10.0",
        "Refer": "50.0",
        "odd one out": "30.0",
        "In-domain": "50.0",
        "Out-of-domain": "20.0",
        "AVG": "30.0",
    }
    assert "Out-of-domain: macro mean of Static, odd one out." in table.note


def test_every_type_of_mig_bench_is_one_of_ours() -> None:
    from mimgenv.tasks.rendered import GROUNDING_TYPES

    assert set(MIG_BENCH) < set(GROUNDING_TYPES)


def test_both_splits_have_their_rows() -> None:
    told = {
        ("base", 0): {"test": {"referring": row(0.5)}, "test_ood": {"referring": row(0.25)}},
        ("full", 0): {"test": {"referring": row(1.0)}},
    }
    for name in ("ablation", "grounding"):
        found = [(line["split"], line["arm"], line["Refer"]) for line in texts(made(told)[name])]
        assert found == [("test", "base", "50.0"), ("test", "full", "100.0"), ("test_ood", "base", "25.0")]


def test_retention_compares_every_arm_with_the_first_seed_by_seed() -> None:
    told = {
        ("base", 0): {"test": {"locate": row(0.5), "counting": row(0.25), "referring": row(0.0)}},
        ("base", 1): {"test": {"locate": row(0.75), "counting": row(0.25)}},
        ("full", 0): {"test": {"locate": row(0.625), "counting": row(0.0)}},
        ("full", 1): {"test": {"locate": row(0.875), "counting": row(0.5)}},
        ("full", 2): {"test": {"locate": row(0.0), "counting": row(0.0)}},
    }
    base, full, less = texts(made(told)["retention"])
    assert base == {"split": "test", "arm": "base", "seeds": "2", "locate": "62.5 ± 12.5", "counting": "25.0 ± 0.0"} | {
        "mean": "43.8 ± 6.2"
    }
    assert (full["arm"], full["seeds"], full["locate"]) == ("full", "3", "50.0 ± 26.0")
    assert less == {"split": "test", "arm": "full − base", "seeds": "2", "locate": "+12.5 ± 0.0"} | {
        "counting": "+0.0 ± 25.0",
        "mean": "+6.2 ± 12.5",
    }


def test_retention_leaves_out_what_grpo_trains_on_and_says_so() -> None:
    told = {("base", 0): {"test": {"locate": row(0.5), "counting": row(0.25)}}}
    table = made(told, trained=("locate", "referring"))["retention"]
    assert table.header[3:] == ("counting", "mean")
    assert table.note.endswith("Left out, since GRPO trains on it: locate.")
    assert "Left out" not in made(told)["retention"].note


def test_retention_has_no_rows_where_all_that_was_evaluated_is_trained_on() -> None:
    told = {("base", 0): {"test": {"locate": row(0.5), "counting": row(0.25), "referring": row(0.5)}}}
    table = made(told, trained=("locate", "counting"))["retention"]
    assert (table.rows, table.header) == ((), ("split", "arm", "seeds"))
    assert table.note == "Single images and questions: GRPO trains on all that was evaluated: locate, counting."


def test_retention_says_where_nothing_of_it_was_evaluated() -> None:
    table = made({("base", 0): {"test": {"referring": row(0.5)}}})["retention"]
    assert table.rows == () and table.note.endswith("no such type was evaluated.")


def test_retention_has_no_difference_where_the_first_arm_was_not_evaluated() -> None:
    told = {("full", 0): {"test": {"locate": row(0.5)}}}
    assert [line["arm"] for line in texts(made(told)["retention"])] == ["full"]


def test_each_tool_has_its_own_calls_and_one_that_was_not_called_has_none() -> None:
    told = {
        ("base", 0): {"test": {"all": row(0.5, tool_calls={"zoom": 0.5})}},
        ("full", 0): {"test": {"all": row(0.5, turns=2.5, tool_calls={"grey": 0.25, "visual_reflection": 1.0})}},
    }
    table = made(told)["tools"]
    assert table.header[3:] == ("visual reflection", "zoom", "grey", "turns")
    calls = [[line[name] for name in table.header[3:]] for line in texts(table)]
    assert calls == [["0.00", "0.50", "0.00", "1.00"], ["1.00", "0.00", "0.25", "2.50"]]


def test_success_with_and_without_a_call_is_told_where_it_is_known() -> None:
    told = {
        ("base", 0): {"test": {"all": row(0.5)}},
        ("full", 0): {"test": {"all": row(0.5, success_with_call=0.75, success_without_call=0.25)}},
    }
    base, full = texts(made(told)["tools"])
    assert (base["success with a call"], base["success without"]) == ("–", "–")
    assert (full["success with a call"], full["success without"]) == ("0.75", "0.25")
    assert "success without" not in made({("base", 0): {"test": {"all": row(0.5)}}})["tools"].header


def test_reward_parts_stand_in_one_order_with_the_total_last() -> None:
    parts = {"mine": 0.5, "answer": 0.25, "format": 1.0, "iou": 0.125}
    table = made({("full", 0): {"test": {"all": row(0.5, reward=1.0625, reward_parts=parts)}}})["reward"]
    (only,) = texts(table)
    assert list(only.items())[3:] == [
        ("iou", "0.125"),
        ("format", "1.000"),
        ("answer", "0.250"),
        ("mine", "0.500"),
        ("total", "1.062"),
    ]


def test_tables_of_nothing_have_no_rows() -> None:
    found = made({})
    assert list(found) == ["claims", "ablation", "grounding", "retention", "tools", "reward"]
    assert all(table.rows == () for table in found.values())
