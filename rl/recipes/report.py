"""The page of a recipe: what its arms are, what they reached, what was kept on the way, and what is missing.

Owns `report.html` and the folders `tables/` and `plots/` beside it. The page stands alone, images included; it links to
the pages of the runs, which lie in the folders below it. All text is escaped: names and errors are data.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from rl.recipes.plots import plots
from rl.recipes.recipe import Recipe
from rl.recipes.rejection import COUNTS
from rl.recipes.results import ArmRun, Results, read_json, read_results
from rl.recipes.tables import LEADING, NONE, Table, tables
from rl.report import CURVE, EPISODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE: Final = "report.html"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a table, a plot, or both, by name.

    Attributes:
        title: Its heading.
        table: Of `tables`; empty for none.
        plot: Of `plots`; empty for none.
        caption: What the plot shows.
        absent: Why there may be no plot.
    """

    title: str
    table: str = ""
    plot: str = ""
    caption: str = ""
    absent: str = ""


SECTIONS: Final = (
    Section("Claims", "claims"),
    Section(
        "Ablation",
        "ablation",
        "ablation",
        "Bars: mean over seeds, with its standard error; dots: seeds.",
        "no arm has been evaluated",
    ),
    Section("By task type", "grounding"),
    Section("Retention", "retention"),
    Section(
        "Learning",
        "",
        "learning",
        "The last training of each arm, where it has GRPO updates: sampled episodes, smoothed, up to the last update "
        "that all of an arm's seeds have made. Arms may train on different tasks: the tables compare them, not the "
        "height of these lines. Bands: one standard error over seeds.",
        "no arm has GRPO updates",
    ),
    Section(
        "Reward",
        "reward",
        "reward",
        "Parts of the reward before their weights, of sampled training episodes, smoothed.",
        "no arm has GRPO updates",
    ),
    Section(
        "Tools",
        "tools",
        "tools",
        "Calls per sampled training episode, by tool, smoothed.",
        "no arm's updates count tool calls",
    ),
    Section(
        "Attention to images",
        "",
        "attention",
        "As the policy writes its n-th token: the share of its attention that falls on image tokens, and the same "
        "divided by their share of all that it can attend to. If tools returned images, a third panel: the part of the "
        "share that falls on those. Later tokens are those of fewer, longer episodes. Bands: one standard error over "
        "seeds; in the first two panels over episodes, where there is one seed.",
        "no arm has a measure of attention",
    ),
)

STYLE: Final = """
:root { color-scheme: light dark;
  --paper: light-dark(#f6f5f2, #141619); --card: light-dark(#fff, #1c1f23); --line: light-dark(#e2e0da, #2e3238);
  --ink: light-dark(#1d1f22, #e4e6e9); --soft: light-dark(#5c6168, #a3a9b1); --accent: light-dark(#2f6690, #7fb5dd);
  --warn: light-dark(#f8eed6, #362c17); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 22px 60px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 25px; margin: 0; } h1 small, .soft { color: var(--soft); font-weight: 400; font-size: 13.5px; }
h2 { font-size: 18px; margin: 38px 0 8px; } p { margin: 6px 0; max-width: 850px; overflow-wrap: anywhere; }
a { color: var(--accent); }
.wide { overflow-x: auto; width: fit-content; max-width: 100%; margin: 8px 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 9px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; border-top: 0; } .text { text-align: left; }
td.text:first-child, details td.text { white-space: normal; }
tr.begins td { border-top: 2px solid var(--soft); }
figure { margin: 14px 0; } figcaption { color: var(--soft); font-size: 13.5px; }
img { display: block; max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 9px;
  padding: 8px; }
.missing { background: var(--warn); border-radius: 9px; padding: 10px 16px; margin: 16px 0; }
.missing ul { margin: 4px 0; padding-left: 20px; }
"""


def write_report(folder: Path, recipe: Recipe, runs: Sequence[ArmRun]) -> list[Path]:
    """Writes the tables, the plots and the page of a recipe; those of an earlier report are replaced or removed.

    Args:
        folder: Of the recipe's output; the runs lie below it.
        recipe: Whose arms were run.
        runs: At most one per arm and seed. What their folders lack is said on the page.

    Returns:
        The files: `report.html`, then `tables/*.md` and `*.csv`, then `plots/*.png`.

    Raises:
        ValueError: If a run's arm is not one of the recipe's, or an arm has two runs of one seed.
    """
    results = read_results(recipe, runs)
    made = tables(results)
    figures = plots(results)
    drawn = {name: _png(figure) for name, figure in figures.items() if figure is not None}
    files: dict[Path, str | bytes] = {folder / PAGE: _page(folder, results, made, drawn)}
    for table in made:
        files[folder / "tables" / f"{table.name}.md"] = table.markdown()
        files[folder / "tables" / f"{table.name}.csv"] = table.csv()
    files |= {_plot(folder, name): content for name, content in drawn.items()}
    for name in figures.keys() - drawn.keys():
        _plot(folder, name).unlink(missing_ok=True)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(files)


def _plot(folder: Path, name: str) -> Path:
    return folder / "plots" / f"{name}.png"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _page(folder: Path, results: Results, made: Sequence[Table], drawn: Mapping[str, bytes]) -> str:
    recipe = results.recipe
    by_name = {table.name: table for table in made}
    parts = [
        f"<h1>{_text(recipe.name)} <small>size {_text(recipe.size)}, seeds {_text(_seeds(results))}</small></h1>",
        *(f"<p>{_text(paragraph)}</p>" for paragraph in recipe.about.strip().split("\n\n")),
        _missing(results),
        "<h2>Arms</h2>",
        _rows(
            ("arm", "stages"),
            [(arm, " → ".join(stages) or "no training") for arm, stages in recipe.arms.items()],
            text=2,
        ),
        _settings(recipe),
        "<p class=soft>In all tables: mean over seeds ± its standard error; – where there is no figure.</p>",
        *(part for section in SECTIONS for part in _section(section, by_name, drawn)),
        *_stages(folder, results),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(recipe.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(filter(None, parts)) + "\n</body>\n</html>\n"


def _section(section: Section, made: Mapping[str, Table], drawn: Mapping[str, bytes]) -> Iterable[str]:
    yield f"<h2>{_text(section.title)}</h2>"
    if section.table:
        table = made[section.table]
        cells = [tuple(map(table.text, row)) for row in table.rows]
        yield _rows(table.header, cells, text=table.words) + f"<p class=soft>{_text(table.note)}</p>"
    if section.plot in drawn:
        data = base64.b64encode(drawn[section.plot]).decode()
        caption = _text(section.caption)
        yield (
            f'<figure><img src="data:image/png;base64,{data}" alt="{_text(section.title)}: plot">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    elif section.plot:
        yield f"<p class=soft>No plot: {_text(section.absent)}.</p>"


def _settings(recipe: Recipe) -> str:
    """What every stage was told, as far as it differs from the defaults."""
    settings = {name: stage.settings for name, stage in recipe.stages.items()}
    told = [(name, ", ".join(f"{key} {value}" for key, value in own.items())) for name, own in settings.items()]
    table = _rows(("stage", "settings"), told, text=2)
    return f"<details><summary>Settings of the stages</summary>{table}</details>" if told else ""


def _missing(results: Results) -> str:
    if not results.missing:
        return ""
    items = "".join(f"<li>{_text(line)}</li>" for line in results.missing)
    return f'<div class="missing"><b>Not all is there.</b> The figures below do without:<ul>{items}</ul></div>'


def _stages(folder: Path, results: Results) -> Iterable[str]:
    """What sampling kept, and where to look at each training."""
    sampled = sorted({path for run in results.runs for path in run.sample_folders})
    trained = sorted({path for run in results.runs for path in run.train_folders})
    if sampled:
        yield "<h2>What was kept</h2>"
        header = ("stage", "tasks", "kept", "all right", "all wrong", "attempts per task")
        yield _rows(header, [(_name(folder, path), *_counts(path)) for path in sampled], text=1)
    if trained:
        yield "<h2>Trainings</h2>"
        linked = [(_text(_name(folder, path)), _links(folder, path)) for path in trained]
        body = "".join(f'<tr><td class="text">{name}</td><td class="text">{links}</td></tr>' for name, links in linked)
        yield f'<div class="wide"><table>{body}</table></div>'


def _counts(path: Path) -> tuple[str, ...]:
    counts = read_json(path / COUNTS) or {}
    return tuple(str(counts.get(key, NONE)) for key in ("tasks", "kept", "all_right", "all_wrong", "attempts"))


def _links(folder: Path, path: Path) -> str:
    there = [path / name for name in (EPISODES, CURVE) if (path / name).is_file()]
    links = [f'<a href="{html.escape(quote(_name(folder, file)))}">{_text(file.name)}</a>' for file in there]
    return ", ".join(links) or "nothing to look at yet"


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """A table of which the first `text` columns are words; a line where the first cell of LEADING's tables changes."""
    if not rows:
        return "<p class=soft>No rows.</p>"
    kinds = [' class="text"' if column < text else "" for column in range(len(header))]
    lines = [
        "<tr>" + "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, header, strict=True)) + "</tr>"
    ]
    for number, row in enumerate(rows):
        begins = header[0] == LEADING[0] and number > 0 and row[0] != rows[number - 1][0]
        cells = "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f'<tr class="begins">{cells}</tr>' if begins else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _name(folder: Path, path: Path) -> str:
    """A path as the page links to it: from its own folder, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _seeds(results: Results) -> str:
    return ", ".join(map(str, results.seeds)) or "none"


def _text(text: str) -> str:
    return html.escape(text)
