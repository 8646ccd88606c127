"""The page of a recipe: it stands alone, shows all there is, says what is missing, and escapes what it shows."""

from __future__ import annotations

import base64
import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from rl.recipes.recipe import Claim, Recipe, Stage
from rl.recipes.report import PAGE, ArmRun, write_report

EVIL = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """The tags of a page, and its text; void tags apart, what is opened must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text("utf-8"))
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


def row(success: float) -> dict[str, Any]:
    return {
        "success": success,
        "reward": 1.0,
        "reward_parts": {"iou": success},
        "tool_calls": {"zoom": 1.0},
        "turns": 2.0,
    }


def recipe(about: str = "About it.", arm: str = "full") -> Recipe:
    arms = {"base": ("base",), arm: ("base", "cot", "a b")}
    claims = (Claim(f"{arm} pays", arm, "base"),)
    stages = {name: Stage(name, "train", {"tasks": ("referring",)}) for name in ("base", "cot", "a b")}
    return Recipe("mine", "tiny", about, stages, arms, {}, ("referring",), ("odd_one_out",), claims)


def played(folder: Path, seed: int, arm: str = "full") -> list[ArmRun]:
    """Both arms with all that they leave behind."""
    base = folder / f"seed-{seed}" / "base"
    cot, last = base / "cot", base / "cot" / "a b"
    for path in (base / "evaluation", last / "evaluation"):
        path.mkdir(parents=True)
        rows = {"rows": {"referring": row(0.5), "counting": row(0.25)}, "all": row(0.5)}
        (path / "evaluation.json").write_text(json.dumps({"test": rows}))
        shares = {name: [0.5, 0.25] for name in ("share", "error", "returned", "even")} | {"positions": [0, 1]}
        (path / "attention.json").write_text(json.dumps(shares))
    for path in (base, last):
        (path / "episodes.html").write_text("episodes")
        (path / "curve.png").write_bytes(b"curve")
    lines = [{"phase": "grpo", "step": n, "reward/total": 0.5, "reward/iou": 0.25, "tool/zoom": 1.0} for n in (1, 2)]
    (last / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = {"tasks": 150, "attempts": 4, "kept": 71, "all_right": 72, "all_wrong": 13}
    (cot / "counts.json").write_text(json.dumps(counts))
    return [
        ArmRun("base", seed, base / "evaluation", (base,)),
        ArmRun(arm, seed, last / "evaluation", (base, last), (cot,)),
    ]


def test_the_files_are_the_page_the_tables_and_the_plots(tmp_path: Path) -> None:
    files = write_report(tmp_path, recipe(), played(tmp_path, 0))
    names = ("claims", "ablation", "grounding", "retention", "tools", "reward")
    drawn = ("ablation", "learning", "reward", "tools", "attention")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        PAGE,
        *(f"tables/{name}.{ending}" for name in names for ending in ("md", "csv")),
        *(f"plots/{name}.png" for name in drawn),
    ]
    assert all(file.is_file() for file in files)
    assert "| test | full | 1 | 50.0 |" in (tmp_path / "tables" / "ablation.md").read_text("utf-8")


def test_the_page_stands_alone_with_every_plot_inside(tmp_path: Path) -> None:
    files = write_report(tmp_path, recipe(), played(tmp_path, 0))
    page = Page(tmp_path / PAGE)
    inside = [base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) for image in page.of("img")]
    assert sorted(inside) == sorted(file.read_bytes() for file in files if file.suffix == ".png")
    assert not page.of("script") and not page.of("link")
    assert "No plot" not in page.text and "Not all is there" not in page.text


def test_the_page_shows_the_recipe_its_arms_and_every_table(tmp_path: Path) -> None:
    write_report(tmp_path, recipe("One thing.\n\nAnother."), [*played(tmp_path, 0), *played(tmp_path, 3)])
    page = Page(tmp_path / PAGE)
    for words in ("mine size tiny, seeds 0, 3", "One thing. Another.", "full base → cot → a b", "50.0 ± 0.0"):
        assert words in page.text
    assert "full pays no difference full base Acc@0.5, all types 2 +0.00 ± 0.00 50.00 ± 0.00" in page.text
    for heading in ("Ablation", "By task type", "Retention", "Learning", "Reward", "Tools", "Attention to images"):
        assert heading in page.text


def test_links_are_relative_and_lead_to_what_is_there(tmp_path: Path) -> None:
    runs = played(tmp_path, 0)
    (tmp_path / "seed-0" / "base" / "curve.png").unlink()
    write_report(tmp_path, recipe(), runs)
    links = [link["href"] or "" for link in Page(tmp_path / PAGE).of("a")]
    assert links == [
        "seed-0/base/episodes.html",
        "seed-0/base/cot/a%20b/episodes.html",
        "seed-0/base/cot/a%20b/curve.png",
    ]
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_what_sampling_kept_is_told_once_for_each_stage(tmp_path: Path) -> None:
    first, *rest = played(tmp_path, 0)
    twin = ArmRun("base", 1, first.folder, first.train_folders, rest[0].sample_folders)
    write_report(tmp_path, recipe(), [first, *rest, twin])
    text = Page(tmp_path / PAGE).text
    assert text.count("seed-0/base/cot 150 71 72 13 4") == 1


def test_the_page_of_a_part_says_what_is_missing_and_why_there_is_no_plot(tmp_path: Path) -> None:
    base, full = played(tmp_path, 0)
    (full.folder / "evaluation.json").unlink()
    for run in (base, full):
        (run.folder / "attention.json").unlink()
    (full.sample_folders[0] / "counts.json").unlink()
    (full.train_folders[-1] / "metrics.jsonl").write_text('{"phase": "grpo", "st')
    (full.train_folders[-1] / "episodes.html").unlink()
    (full.train_folders[-1] / "curve.png").unlink()
    files = write_report(tmp_path, recipe(), [base, full])
    text = Page(tmp_path / PAGE).text
    for words in (
        "full, seed 0: evaluation.json is not there",
        "No plot: no arm has GRPO updates.",
        "No plot: no arm's updates count tool calls.",
        "No plot: no arm has a measure of attention.",
        "seed-0/base/cot – – – – –",
        "seed-0/base/cot/a b nothing to look at yet",
    ):
        assert words in text
    assert [file.name for file in files if file.suffix == ".png"] == ["ablation.png"]


def test_there_is_a_page_before_anything_has_run(tmp_path: Path) -> None:
    assert write_report(tmp_path / "new", recipe(), [])[0] == tmp_path / "new" / PAGE
    text = Page(tmp_path / "new" / PAGE).text
    assert "seeds none" in text and "No plot: no arm has been evaluated." in text
    assert text.count("No rows.") == 5
    assert "full pays not measured full base" in text


def test_the_claims_come_before_the_other_tables(tmp_path: Path) -> None:
    write_report(tmp_path, recipe(), played(tmp_path, 0))
    page = Page(tmp_path / PAGE)
    assert page.text.index(" Claims ") < page.text.index(" Ablation ")


def test_words_stand_left_and_figures_right(tmp_path: Path) -> None:
    write_report(tmp_path, recipe(), played(tmp_path, 0))
    heads = [head.get("class") for head in Page(tmp_path / PAGE).of("th")]
    arms, settings, claims = 2 * ["text"], 2 * ["text"], 6 * ["text"] + 3 * [None]
    assert heads[:17] == [*arms, *settings, *claims, *3 * ["text"], None]


def test_the_page_tells_the_settings_of_every_stage(tmp_path: Path) -> None:
    write_report(tmp_path, recipe(), played(tmp_path, 0))
    assert len(Page(tmp_path / PAGE).of("details")) == 1
    page = (tmp_path / PAGE).read_text("utf-8")
    for name, stage in recipe().stages.items():
        assert f'<td class="text">{name}</td>' in page
        assert all(f"{key} {value}" in html.unescape(page) for key, value in stage.settings.items())


def test_a_plot_of_an_earlier_report_is_removed_where_there_is_no_data_now(tmp_path: Path) -> None:
    runs = played(tmp_path, 0)
    write_report(tmp_path, recipe(), runs)
    for run in runs:
        (run.folder / "attention.json").unlink()
    left = tmp_path / "plots" / "notes.txt"
    left.write_text("by hand")
    write_report(tmp_path, recipe(), runs)
    there = {file.name for file in (tmp_path / "plots").iterdir()}
    assert there == {"ablation.png", "learning.png", "reward.png", "tools.png", "notes.txt"}


def test_a_stage_that_was_never_begun_is_named_and_hinders_nothing(tmp_path: Path) -> None:
    base, _ = played(tmp_path, 0)
    far = tmp_path / "seed-0" / "far"
    write_report(tmp_path, recipe(), [base, ArmRun("full", 0, far / "evaluation", (far,), (far / "cot",))])
    text = Page(tmp_path / PAGE).text
    for words in ("full, seed 0: evaluation.json is not there", "seed-0/far/cot – – – – –", "seed-0/far nothing to"):
        assert words in text
    assert not far.exists()


def test_what_a_recipe_says_is_shown_as_text(tmp_path: Path) -> None:
    write_report(tmp_path, recipe(EVIL, EVIL), [*played(tmp_path, 0, EVIL), ArmRun(EVIL, 1, tmp_path / "none", ())])
    page = Page(tmp_path / PAGE)
    assert not page.of("script")
    assert page.text.count(EVIL) >= 5  # about, the arms, what is missing, a claim, the tables


def test_the_page_may_load_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, recipe(), [])
    policy = [meta["content"] for meta in Page(tmp_path / PAGE).of("meta") if meta.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_plot_that_is_written_is_a_picture(tmp_path: Path) -> None:
    for file in write_report(tmp_path, recipe(), played(tmp_path, 0)):
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert picture.size[0] == 1440 and len(picture.convert("RGB").getcolors(2**24) or ()) > 50
