"""An evaluation on the screen: a row per task type and group, the use of tools, and where the files are.

Owns the looks, which fit 80 columns; the numbers are worked out in report.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agents.report import Estimate, Report, Row

COLUMNS: Final = ("task", "n", "score", "sees", "success", "reward", "format", "turns")
CAPTION: Final = """score: IoU or exact match; sees: what it loses with blank images
n: episodes; ±: half of the 95 % confidence interval"""


def print_report(report: Report, title: str, files: Sequence[Path]) -> None:
    """Prints the tables, and the paths of files whole, one a line."""
    from rich.console import Console

    console = Console()
    console.print(_score_table(report, title))
    if report.tools:
        console.print(_tool_table(report))
    for file in files:
        console.print(str(file), soft_wrap=True, markup=False, highlight=False)


def _score_table(report: Report, title: str) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, caption=CAPTION, box=SIMPLE, padding=0, show_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row))
    table.add_section()
    for group in (report.grounding, report.qa, report.all):
        if group is not None:
            table.add_row(*_cells(group))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    """A line of the table, in the order of `COLUMNS`."""
    sees = "" if row.sees is None else _interval(row.sees)
    form = "" if row.format is None else f"{row.format:.3f}"
    numbers = f"{row.success:.3f}", f"{row.reward.mean:.3f}", form, f"{row.turns:.2f}"
    return row.name, str(row.episodes), _interval(row.score), sees, *numbers


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f}" + ("" if math.isnan(estimate.half_width) else f"±{estimate.half_width:.3f}")


def _tool_table(report: Report) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title="tool use", box=SIMPLE)
    for column in ("tool", "calls per episode", "episodes with a call"):
        table.add_column(column, justify="left" if column == "tool" else "right")
    calls = report.all.tool_calls
    for tool in report.tools:
        share = statistics.fmean(tool in record.tool_calls for record in report.records)
        table.add_row(tool, f"{calls.get(tool, 0.0):.3f}", f"{share:.1%}")
    return table
