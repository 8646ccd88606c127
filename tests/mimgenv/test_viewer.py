"""The page of episodes: its data is what was given, its boxes lie where they should, and nothing gets out of it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

import mimgenv
from mimgenv.errors import DatasetError
from mimgenv.geometry import View
from mimgenv.records import EpisodeRecord, EpisodeTurn, ViewRecord, write_records
from mimgenv.tools import ToolContext, Zoom
from mimgenv.types import Answer, Grounding, Image, Task, TextAnswer
from mimgenv.viewer import (
    ShownEpisode,
    episodes_page,
    load_episodes,
    main,
    turn_parts,
    view_box,
    view_image,
    write_page,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--@@DATA@@\x00\ud800\u2028"
TRUTH = Grounding(2, "red mug", (20.0, 30.0, 40.0, 50.0))


def picture(seed: int, width: int = 160, height: int = 120) -> Image:
    noise: Image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise


ORIGINALS = (picture(1), picture(2))


def episode(
    text: str = "<answer>x</answer>",
    *,
    prediction: Answer | None = None,
    cuts: tuple[ViewRecord, ...] = (),
    section: str = "",
    reward: float = 0.5,
) -> ShownEpisode:
    """An episode with two whole images and then `cuts`."""
    views = tuple(ViewRecord(number, (0.0, 0.0, 160.0, 120.0), 160, 120) for number in (1, 2)) + cuts
    record = EpisodeRecord(
        task_id="rendered:referring:7",
        task_type="referring",
        agent=text,
        question=text,
        turns=(EpisodeTurn(text, text, "bad_turn", len(views)),),
        reward=reward,
        reward_parts={"iou": 0.0},
        stop="answered",
        success=False,
        tool_calls=(text,),
        truth=TRUTH,
        prediction=prediction,
        views=views,
    )
    return ShownEpisode(record, tuple(view_image(ORIGINALS, view) for view in views), section)


class Parts(HTMLParser):
    """The tags of a page as a browser would see them, the text of each script, and whatever names an address."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [f"{name}={value}" for name, value in attributes if name in ("src", "href", "srcset")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.scripts and self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Parts(page).scripts[0])
    return data


def test_the_page_holds_what_was_given() -> None:
    page = episodes_page([episode(section="before"), episode(section="after", reward=-0.25)], "A title")
    data = data_of(page)
    assert data["title"] == "A title"
    assert [(row["section"], row["reward"]) for row in data["episodes"]] == [("before", 0.5), ("after", -0.25)]
    row = data["episodes"][0]
    assert (row["taskId"], row["taskType"], row["stop"]) == ("rendered:referring:7", "referring", "answered")
    assert row["truth"] == {"image": 2, "label": "red mug", "box": [20.0, 30.0, 40.0, 50.0]}
    assert (row["prediction"], row["iou"], row["success"]) == (None, None, False)
    assert row["parts"] == [["iou", 0.0]]
    assert row["turns"] == [
        {
            "message": "<answer>x</answer>",
            "error": "bad_turn",
            "images": 2,
            "parts": [["tag", "<answer>"], ["answer", "x"], ["tag", "</answer>"]],
        }
    ]


def test_hostile_text_adds_no_tag_and_comes_back_from_the_data() -> None:
    shown = episode(HOSTILE, prediction=Grounding(1, HOSTILE, (0.0, 0.0, 9.0, 9.0)), section=HOSTILE)
    plain, page = episodes_page([episode("x")], "x"), episodes_page([shown], HOSTILE)
    assert Parts(page).tags == Parts(plain).tags
    assert page.count("<script") == plain.count("<script") == 2
    row = data_of(page)["episodes"][0]
    assert row["question"] == row["agent"] == row["section"] == row["prediction"]["label"] == HOSTILE
    assert row["turns"][0]["message"] == "".join(text for _, text in row["turns"][0]["parts"]) == HOSTILE


def test_the_script_never_makes_markup_of_a_text() -> None:
    script = Parts(episodes_page([], "x")).scripts[1]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert word not in script


def test_the_policy_allows_the_script_of_the_page_and_no_other() -> None:
    page = episodes_page([episode(HOSTILE)], HOSTILE)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(Parts(page).scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]


def test_the_page_names_no_address() -> None:
    page = episodes_page([episode()], "x")
    assert "://" not in page
    assert Parts(page).addresses == []
    assert "@import" not in page
    assert "url(" not in page


def test_a_page_with_lone_surrogates_in_its_title_can_be_written(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [episode(HOSTILE)], "a \ud800 <b>")
    page = (tmp_path / "page.html").read_bytes().decode()
    assert "<title>a &#55296; &lt;b&gt;</title>" in page
    assert b"\r" not in (tmp_path / "page.html").read_bytes()


def test_a_page_without_episodes_is_a_page() -> None:
    assert data_of(episodes_page([], "x"))["episodes"] == []


def test_views_and_images_must_be_as_many() -> None:
    shown = episode(cuts=(ViewRecord(1, (0.0, 0.0, 16.0, 16.0), 28, 28),))
    with pytest.raises(ValueError, match="3 views, 2 images"):
        ShownEpisode(shown.record, shown.images[:2])


def test_an_image_must_have_the_size_of_its_view() -> None:
    shown = episode()
    with pytest.raises(ValueError, match=r"Image-2 is \(60, 160, 3\), its view \(120, 160, 3\)"):
        ShownEpisode(shown.record, (shown.images[0], shown.images[1][:60]))


def decoded(uri: str) -> tuple[str, Image]:
    kind, _, text = uri.partition(";base64,")
    return kind, np.array(PillowImage.open(io.BytesIO(base64.b64decode(text))))


def test_small_images_are_stored_exactly_and_large_ones_as_jpeg() -> None:
    shown = episode(
        cuts=(ViewRecord(1, (0.0, 0.0, 127.0, 30.0), 127, 30), ViewRecord(1, (0.0, 0.0, 128.0, 30.0), 128, 30))
    )
    page = data_of(episodes_page([shown], "x"))
    kinds = [decoded(page["images"][view["source"]])[0] for view in page["episodes"][0]["views"]]
    assert kinds == ["data:image/jpeg", "data:image/jpeg", "data:image/png", "data:image/jpeg"]
    assert np.array_equal(decoded(page["images"][2])[1], shown.images[2])


def test_an_image_that_is_shown_often_is_stored_once() -> None:
    again = ViewRecord(1, (0.0, 0.0, 160.0, 120.0), 160, 120)
    data = data_of(episodes_page([episode(cuts=(again,)), episode()], "x"))
    assert len(data["images"]) == 2
    assert [[view["source"] for view in row["views"]] for row in data["episodes"]] == [[0, 1, 0], [0, 1]]


def test_boxes_lie_over_every_view_that_shows_them() -> None:
    cut = ViewRecord(2, (10.0, 20.0, 50.0, 60.0), 80, 120)  # 2x wide, 3x high
    elsewhere = ViewRecord(2, (100.0, 20.0, 140.0, 60.0), 80, 80)
    shown = episode(prediction=Grounding(1, "mug", (1.0, 2.0, 3.0, 4.0)), cuts=(cut, elsewhere))
    views = data_of(episodes_page([shown], "x"))["episodes"][0]["views"]
    assert [view["truth"] for view in views] == [None, [20.0, 30.0, 40.0, 50.0], [20.0, 30.0, 60.0, 90.0], None]
    assert [view["prediction"] for view in views] == [[1.0, 2.0, 3.0, 4.0], None, None, None]


def test_a_cut_says_what_it_was_cut_from() -> None:
    cuts = (ViewRecord(2, (10.0, 20.0, 50.0, 60.0), 80, 80), ViewRecord(2, (0.0, 0.0, 160.0, 120.0), 160, 120))
    views = data_of(episodes_page([episode(cuts=cuts)], "x"))["episodes"][0]["views"]
    assert [view["parent"] for view in views] == [None, None, 1, 1]
    assert [view["cut"] for view in views] == [None, None, [10.0, 20.0, 50.0, 60.0], None]
    assert [view["scale"] for view in views] == [1.0, 1.0, 2.0, 1.0]


VIEW = View(picture(1, 80, 80), 2, (10.0, 20.0, 50.0, 60.0))


def test_a_box_that_a_view_cuts_keeps_its_edges_outside() -> None:
    assert view_box(Grounding(2, "x", (0.0, 30.0, 20.0, 70.0)), VIEW) == (-20.0, 20.0, 20.0, 100.0)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        TextAnswer("4"),
        Grounding(1, "x", (20.0, 30.0, 40.0, 50.0)),
        Grounding(2, "x", (50.0, 20.0, 60.0, 60.0)),
        Grounding(2, "x", (40.0, 30.0, 20.0, 50.0)),
    ],
    ids=["none", "text", "another image", "beside", "inverted"],
)
def test_a_view_that_shows_nothing_of_a_box_gets_none(answer: Answer | None) -> None:
    assert view_box(answer, VIEW) is None


def test_an_absurd_box_still_makes_a_page() -> None:
    absurd = Grounding(2, "x", (-1e308, -1e308, 1e308, 1e308))
    assert view_box(absurd, VIEW) == (-80.0, -80.0, 160.0, 160.0)
    assert data_of(episodes_page([episode(prediction=absurd)], "x"))["episodes"][0]["iou"] == 0.0


def test_the_overlap_is_given_where_there_are_two_boxes() -> None:
    overlaps = [
        data_of(episodes_page([episode(prediction=prediction)], "x"))["episodes"][0]["iou"]
        for prediction in (
            TRUTH,
            Grounding(2, "x", (20.0, 30.0, 30.0, 50.0)),
            Grounding(1, "x", TRUTH.box),
            TextAnswer("4"),
        )
    ]
    assert overlaps == [1.0, 0.5, 0.0, None]


@pytest.mark.parametrize(
    ("turn", "kinds"),
    [
        ("", []),
        ("hm", ["other"]),
        ("<think>a</think> <answer>4</answer>", ["tag", "think", "tag", "other", "tag", "answer", "tag"]),
        ("<think>a<tool_call>{", ["tag", "think", "tag", "tool_call"]),
        ("</think>x<think>", ["tag", "other", "tag"]),
        ("<THINK>a</THINK>", ["other"]),
    ],
)
def test_a_turn_is_cut_at_its_tags_and_loses_nothing(turn: str, kinds: list[str]) -> None:
    parts = turn_parts(turn)
    assert [kind for kind, _ in parts] == kinds
    assert "".join(text for _, text in parts) == turn


def test_a_megabyte_of_open_tags_is_cut_in_linear_time() -> None:
    start = time.process_time()
    assert len(turn_parts("<think>" * 150_000)) == 150_000
    assert time.process_time() - start < 5


def task(images: tuple[Image, ...] = ORIGINALS) -> Task:
    return Task("rendered:referring:7", "referring", images, "?", TRUTH, "", ((),) * len(images))


def test_a_view_made_again_has_the_bytes_that_the_tool_returned() -> None:
    shown = View(ORIGINALS[1], 2, (0.0, 0.0, 160.0, 120.0))
    context = ToolContext([shown], ORIGINALS, "pixel")
    zoomed = Zoom()(context, {"image": 1, "bbox_2d": [11, 12, 70, 45]})
    again = view_image(ORIGINALS, ViewRecord(zoomed.image, zoomed.region, *zoomed.size))
    assert np.array_equal(again, zoomed.pixels)


def test_a_view_averages_when_it_shrinks_and_takes_in_every_pixel_it_touches() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = 100
    assert view_image([pixels], ViewRecord(1, (0.0, 0.0, 4.0, 4.0), 2, 2))[:, :, 0].tolist() == [[0, 100], [0, 100]]
    assert view_image([pixels], ViewRecord(1, (1.5, 0.2, 2.5, 0.8), 2, 1))[:, :, 0].tolist() == [[0, 100]]


@pytest.mark.parametrize(
    ("view", "rule"),
    [
        (ViewRecord(3, (0.0, 0.0, 1.0, 1.0), 1, 1), "a view shows image 3 of 2"),
        (ViewRecord(1, (0.0, 0.0, 161.0, 1.0), 1, 1), r"a view shows \(0.0, 0.0, 161.0, 1.0\) of an image of 160x120"),
        (ViewRecord(1, (0.0, -0.5, 1.0, 1.0), 1, 1), "of an image of 160x120"),
    ],
)
def test_a_view_of_what_the_task_does_not_have_is_refused(view: ViewRecord, rule: str) -> None:
    with pytest.raises(DatasetError, match=rule):
        view_image(ORIGINALS, view)


def test_episodes_are_loaded_with_each_task_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(mimgenv, "load_task", lambda task_id: made.append(task_id) or task(), raising=False)
    shown = episode(cuts=(ViewRecord(2, (10.0, 20.0, 50.0, 60.0), 56, 56),))
    write_records(tmp_path / "e.jsonl", [shown.record, shown.record])
    loaded = load_episodes(tmp_path / "e.jsonl", "after")
    assert made == ["rendered:referring:7"]
    assert [row.section for row in loaded] == ["after", "after"]
    assert loaded[1].record == shown.record
    assert all(np.array_equal(a, b) for a, b in zip(loaded[1].images, shown.images, strict=True))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the episodes of two runs, each in its own file."""
    monkeypatch.setattr(mimgenv, "load_task", lambda task_id: task(), raising=False)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        write_records(tmp_path / f"{name}.jsonl", [episode().record])
        write_records(tmp_path / name / "episodes.jsonl", [episode().record])
    return tmp_path


def sections(page: Path) -> list[str]:
    return [row["section"] for row in data_of(page.read_text(encoding="utf-8"))["episodes"]]


def test_the_command_writes_the_page_next_to_the_records(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs / "before.jsonl")])
    assert sections(runs / "before.html") == [""]
    assert data_of((runs / "before.html").read_text(encoding="utf-8"))["title"] == "before"
    assert capsys.readouterr().out == f"{runs / 'before.html'}: 1 episode\n"


def test_the_command_writes_where_and_what_it_is_told(runs: Path) -> None:
    main([str(runs / "before.jsonl"), "-o", str(runs / "page.html"), "--title", "Mine"])
    assert data_of((runs / "page.html").read_text(encoding="utf-8"))["title"] == "Mine"
    assert not (runs / "before.html").exists()


def test_each_of_several_files_is_a_section(runs: Path) -> None:
    output = ["-o", str(runs / "page.html")]
    main([str(runs / "before.jsonl"), str(runs / "after.jsonl"), *output])
    assert sections(runs / "page.html") == ["before", "after"]
    main([str(runs / "before" / "episodes.jsonl"), str(runs / "after" / "episodes.jsonl"), *output])
    assert sections(runs / "page.html") == [str(runs / "before" / "episodes"), str(runs / "after" / "episodes")]


@pytest.mark.parametrize("content", [None, b'{"version": 7}\n'], ids=["no file", "another version"])
def test_the_command_refuses_what_it_cannot_read(
    runs: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = runs / "broken.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(path)])
    assert "broken.jsonl" in capsys.readouterr().err
    assert not (runs / "broken.html").exists()
