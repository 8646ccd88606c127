"""The tables of a recipe, as Markdown and as CSV.

Owns which figures stand where, in the layouts of arXiv 2507.00748 (Tables 2, 3 and 9) where it has one, and how a
figure is written. Where the figures come from is the business of `results` and `claims`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimgenv.tasks.rendered import QA_TYPES
from rl.recipes.claims import DECIMALS, Finding, findings
from rl.recipes.evaluation import SPLITS
from rl.recipes.results import Difference, OverSeeds, Results

Cell = str | OverSeeds

NONE: Final = "–"
"""What stands where there is no figure."""

MIG_BENCH: Final = {
    "static_difference": "Static",
    "robust_difference": "Robust",
    "common_object": "Common",
    "object_tracking": "OT",
    "multi_view": "MV",
    "region_locating": "Region",
    "referring": "Refer",
    "group_grounding": "GG",
    "reasoning": "Reason",
    "correspondence": "Co-Re",
}
"""MIG-Bench's types in the order of the paper's columns, and their names there."""

SINGLE_IMAGE: Final = "locate"
TOOLS: Final = ("visual_reflection", "visual_confirmation", "zoom")
PARTS: Final = ("iou", "image", "format", "tool_gain", "answer")
LEADING: Final = ("split", "arm", "seeds")
"""The columns before the figures, where a row is of a split and an arm."""
CLAIM: Final = ("claim", "verdict", "better arm", "worse arm", "measure", "seeds")
TYPES: Final = {
    "all": "all types",
    "in_domain": "in-domain types",
    "out_of_domain": "out-of-domain types",
    "locate": "locate",
    "qa": "questions",
}
"""What a claim about accuracy is about, in words."""
MARK: Final = "▲ ▼: zero lies outside the difference's 95 % interval (Student's t)."
USE: Final = {"success_with_call": "success with a call", "success_without_call": "success without"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a recipe.

    Attributes:
        name: Of its files.
        title: One line.
        note: What the figures are.
        header: One name per column: those of words, then the figures.
        rows: As long as the header.
        decimals: Of every figure.
        words: How many columns are words.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    decimals: int = 1
    words: int = len(LEADING)

    def text(self, cell: Cell) -> str:
        """A cell as people read it: mean ± standard error; a difference has its sign, ▲ or ▼ if clear of zero."""
        if isinstance(cell, str):
            return cell
        if not cell.n:
            return NONE
        signed = isinstance(cell, Difference)
        words = [f"{cell.mean:{'+' if signed else ''}z.{self.decimals}f}"]
        if cell.n > 1:
            words += ["±", f"{cell.error:.{self.decimals}f}"]
        if isinstance(cell, Difference) and cell.clear_of(0.0):
            words.append("▲" if cell.mean > 0 else "▼")
        return " ".join(words)

    def markdown(self) -> str:
        """The title, the table and the note."""
        rows = [[_safe(self.text(cell)) for cell in row] for row in self.rows]
        rule = ["---"] * self.words + ["---:"] * (len(self.header) - self.words)
        lines = ["| " + " | ".join(row) + " |" for row in [list(map(_safe, self.header)), rule, *rows]]
        return f"**{self.title}**\n\n" + "\n".join(lines) + f"\n\n{self.note}\n"

    def csv(self) -> str:
        """The same rows for programs: a figure is three columns, its mean, standard error and number of seeds."""
        figures = [f"{name}{ending}" for name in self.header[self.words :] for ending in ("", " error", " n")]
        header = [*self.header[: self.words], *figures]
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([header, *([*_numbers(row)] for row in self.rows)])
        return file.getvalue()


def tables(results: Results) -> list[Table]:
    """All tables, in the order of the page: of the claims, then some with a row per split and arm."""
    return [make(results) for make in (_claims, _ablation, _grounding, _retention, _tools, _reward)]


def label(name: str) -> str:
    """What the column of a task type, tool or reward part is called: MIG-Bench's short name, or its own in words."""
    return MIG_BENCH.get(name, name.replace("_", " "))


def _claims(results: Results) -> Table:
    """What the paper says, each claim against the two arms that it is about."""
    rows = tuple(_claim(finding) for finding in findings(results))
    header = (*CLAIM, "difference", "better", "worse")
    note = (
        f"Means over the seeds that have both arms; differences are taken within a seed. {MARK} A claim holds where "
        "the whole interval is above zero, and is contradicted where all of it is below; short of that it points one "
        "way, and one seed can do no more. Where a claim says within x, minus x stands in place of zero. Of several "
        "claims one may pass by chance. All seeds and arms play the same held-out tasks, so that the draw of tasks is "
        "not in the error. Acc@0.5: share of right answers, macro mean over task types, per cent. A verdict is about "
        "these runs, at this size; none refutes or confirms the paper."
    )
    return Table("claims", "Claims of the paper, and what was measured", note, header, rows, DECIMALS, len(CLAIM))


def _claim(finding: Finding) -> tuple[Cell, ...]:
    claim, difference = finding.claim, finding.difference
    accuracy = claim.measure == "accuracy"
    measure = f"Acc@0.5, {TYPES[claim.types]}" if accuracy else ": ".join(map(label, claim.measure.split("/")))
    measure += "" if claim.split == SPLITS[0] else f", {claim.split}"
    if claim.margin:
        measure += f", within {claim.margin:g}" + (" points" if accuracy else "")
    words = (claim.says, finding.verdict, claim.better, claim.worse, measure, str(difference.n))
    return (*words, difference, finding.better, finding.worse)


def _ablation(results: Results) -> Table:
    """Table 9's layout: an arm a row, the recipe's types, and their average."""
    types = [name for name in results.groups["AVG"] if name in results.types()]
    columns = {label(name): (name,) for name in types} | {"AVG": results.groups["AVG"]}
    return _accuracies(results, "ablation", "Ablation: what each arm gets right", columns, _averages(results, ("AVG",)))


def _grounding(results: Results) -> Table:
    """Table 2's and 3's layout: the ten types, whether or not they are there, then the averages."""
    there = [name for name in results.groups["AVG"] if name in results.types()]
    columns = {label(name): (name,) for name in (*MIG_BENCH, *there)} | results.groups
    note = _averages(results, tuple(results.groups))
    return _accuracies(results, "grounding", "Multi-image grounding, the columns of MIG-Bench", columns, note)


def _accuracies(results: Results, name: str, title: str, columns: dict[str, tuple[str, ...]], note: str) -> Table:
    def cells(split: str, arm: str) -> Iterator[Cell]:
        return (results.accuracy(arm, split, types) for types in columns.values())

    note = f"Acc@0.5: share of episodes answered with IoU above 0.5 on the right image, per cent. {note}"
    return _by_arm(results, name, title, note, tuple(columns), cells)


def _retention(results: Results) -> Table:
    """What GRPO does to what it does not train, multi-image grounding apart: against the first arm."""
    known = [name for name in results.types() if name == SINGLE_IMAGE or name in QA_TYPES]
    kept = tuple(name for name in known if name not in results.trained())
    trained = [name for name in known if name not in kept]
    title = "Retention: what GRPO does not train"
    if not kept:
        why = f"GRPO trains on all that was evaluated: {_list(trained)}" if trained else "no such type was evaluated"
        return Table("retention", title, f"Single images and questions: {why}.", LEADING, ())
    columns = {label(name): (name,) for name in kept} | {"mean": kept}
    first = next(iter(results.recipe.arms))
    rows: list[tuple[Cell, ...]] = []
    for split in results.splits:
        before = [results.accuracy(first, split, types) for types in columns.values()]
        for arm in _evaluated(results, split):
            after = [results.accuracy(arm, split, types) for types in columns.values()]
            rows.append((split, arm, _seeds(results, arm, split), *after))
            if arm != first and results.rows(first, split):
                less = [cell - other for cell, other in zip(after, before, strict=True)]
                rows.append((split, f"{arm} − {first}", str(max(cell.n for cell in less)), *less))
    note = (
        "IoU above 0.5 in a single image, or the exact answer, per cent; differences are taken within a seed. "
        f"{MARK} Among many differences some do by chance."
    )
    note += f" Left out, since GRPO trains on it: {_list(trained)}." if trained else ""
    return Table("retention", title, note, (*LEADING, *columns), tuple(rows))


def _tools(results: Results) -> Table:
    used = _keys(results, "tool_calls", TOOLS)
    told = [key for key in USE if any(key in row for row in _wholes(results))]
    columns = (*map(label, used), "turns", *(USE[key] for key in told))

    def cells(split: str, arm: str) -> Iterator[Cell]:
        yield from (results.calls(arm, split, tool) for tool in used)
        yield from (results.figure(arm, split, "all", key) for key in ("turns", *told))

    note = "Calls per episode, by tool, and turns, over all task types." + (
        " Success: share of right answers among episodes with and without a call; who calls, and when, is not drawn by"
        " lot, so the two are not an effect."
        if told
        else ""
    )
    return _by_arm(results, "tools", "Use of tools", note, columns, cells, decimals=2)


def _reward(results: Results) -> Table:
    parts = _keys(results, "reward_parts", PARTS)

    def cells(split: str, arm: str) -> Iterator[Cell]:
        yield from (results.figure(arm, split, "all", "reward_parts", part) for part in parts)
        yield results.figure(arm, split, "all", "reward")

    note = "Mean of each part, before its weight, over the episodes that have it; total: with the weights."
    return _by_arm(results, "reward", "Reward by part", note, (*map(label, parts), "total"), cells, decimals=3)


def _by_arm(
    results: Results,
    name: str,
    title: str,
    note: str,
    columns: Sequence[str],
    cells: Callable[[str, str], Iterator[Cell]],
    decimals: int = 1,
) -> Table:
    """A row for each split and each arm that was evaluated on it."""
    rows = tuple(
        (split, arm, _seeds(results, arm, split), *cells(split, arm))
        for split in results.splits
        for arm in _evaluated(results, split)
    )
    return Table(name, title, note, (*LEADING, *columns), rows, decimals)


def _evaluated(results: Results, split: str) -> list[str]:
    return [arm for arm in results.arms if results.rows(arm, split)]


def _seeds(results: Results, arm: str, split: str) -> str:
    return str(len(results.rows(arm, split)))


def _keys(results: Results, group: str, order: Sequence[str]) -> list[str]:
    """The keys of `group` that any evaluation has: those of `order` first, then the others."""
    found = {key for row in _wholes(results) for key in row.get(group, {})}
    return [key for key in order if key in found] + sorted(found.difference(order))


def _wholes(results: Results) -> list[Mapping[str, Any]]:
    """What each evaluation found over all task types."""
    return [told[split]["all"] for told in results.evaluations.values() for split in results.splits if split in told]


def _averages(results: Results, names: Sequence[str]) -> str:
    """Which types each average is over."""
    there = results.types()
    told = [f"{name}: macro mean of {_list([t for t in results.groups[name] if t in there])}." for name in names]
    return " ".join(told)


def _list(task_types: Sequence[str]) -> str:
    return ", ".join(map(label, task_types)) or "no type"


def _safe(text: str) -> str:
    """Keeps a text inside its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _numbers(row: Sequence[Cell]) -> Iterator[str]:
    for cell in row:
        if isinstance(cell, str):
            yield cell
        else:
            yield from (f"{cell.mean:.6g}" if cell.n else "", f"{cell.error:.6g}" if cell.n > 1 else "", str(cell.n))
