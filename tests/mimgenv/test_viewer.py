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
from mimgenv.geometry import View
from mimgenv.preview import OpenEpisode, ShownEpisode, view_image
from mimgenv.records import EpisodeRecord, EpisodeTurn, ViewRecord, write_records
from mimgenv.types import Answer, Grounding, Image, ObjectAnnotation, Task, TextAnswer
from mimgenv.viewer import episodes_page, main, turn_parts, view_box, write_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--@@DATA@@\x00\ud800\u2028"
TRUTH = Grounding(2, "red mug", (20.0, 30.0, 40.0, 50.0))


def picture(seed: int, width: int = 160, height: int = 120) -> Image:
    noise: Image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise


ORIGINALS = (picture(1), picture(2))
TASK = Task(
    task_id="rendered:referring:7",
    task_type="referring",
    images=ORIGINALS,
    question="<answer>x</answer>",
    truth=TRUTH,
    rationale="It alone is red.",
    objects=((ObjectAnnotation("blue cup", (0.0, 0.0, 16.0, 12.0)),), (ObjectAnnotation("red mug", TRUTH.box, 3),)),
)


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
            "act": "bad_turn",
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
    assert "srcdoc" not in page
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


def test_rationale_and_objects_are_shown_where_the_task_is_known() -> None:
    cut, elsewhere = ViewRecord(2, (10.0, 20.0, 50.0, 60.0), 80, 80), ViewRecord(2, (100.0, 20.0, 140.0, 60.0), 80, 80)
    shown = episode(cuts=(cut, elsewhere))
    known = ShownEpisode(shown.record, shown.images, task=TASK)
    plain, rich = data_of(episodes_page([shown, known], "x"))["episodes"]
    assert (plain["rationale"], [view["objects"] for view in plain["views"]]) == ("", [[], [], [], []])
    assert rich["rationale"] == "It alone is red."
    assert [view["objects"] for view in rich["views"]] == [
        [{"label": "blue cup", "identity": None, "box": [0.0, 0.0, 16.0, 12.0]}],
        [{"label": "red mug", "identity": 3, "box": [20.0, 30.0, 40.0, 50.0]}],
        [{"label": "red mug", "identity": 3, "box": [20.0, 20.0, 60.0, 60.0]}],
        [],
    ]


def waiting(revealed: bool, *turns: EpisodeTurn) -> OpenEpisode:
    views = tuple(View(pixels, number, (0.0, 0.0, 160.0, 120.0)) for number, pixels in enumerate(ORIGINALS, 1))
    return OpenEpisode(TASK, views, "Image-1: <image> Image-2: <image> Where?", turns, "tasks", revealed)


def test_a_task_that_nobody_played_is_shown_with_its_truth_and_no_result() -> None:
    row = data_of(episodes_page([waiting(revealed=True)], "x"))["episodes"][0]
    assert row["truth"] == {"image": 2, "label": "red mug", "box": [20.0, 30.0, 40.0, 50.0]}
    assert (row["rationale"], row["message"]) == ("It alone is red.", "Image-1: <image> Image-2: <image> Where?")
    assert [view["truth"] for view in row["views"]] == [None, [20.0, 30.0, 40.0, 50.0]]
    assert [len(view["objects"]) for view in row["views"]] == [1, 1]
    assert (row["section"], row["stop"], row["reward"], row["prediction"], row["turns"]) == (
        "tasks",
        None,
        None,
        None,
        [],
    )


def test_an_episode_under_way_gives_nothing_of_its_truth_away() -> None:
    page = episodes_page([waiting(False, EpisodeTurn("Image-1: <image> Image-2: <image>", "hm", "bad_turn", 2))], "x")
    row = data_of(page)["episodes"][0]
    assert (row["truth"], row["rationale"], row["iou"]) == (None, "", None)
    assert [(view["truth"], view["objects"]) for view in row["views"]] == [(None, []), (None, [])]
    assert "red mug" not in page
    assert [turn["parts"] for turn in row["turns"]] == [[["other", "hm"]]]


def test_played_and_waiting_episodes_have_the_same_keys() -> None:
    played, open_row = data_of(episodes_page([episode(), waiting(True)], "x"))["episodes"]
    assert set(played) == set(open_row)


@pytest.mark.parametrize(
    ("action", "error", "act"),
    [
        ('<think></think><tool_call>{"name": "zoom", "arguments": {}}</tool_call>', None, "zoom"),
        ("<think></think><answer>4</answer>", None, "answer"),
        ("<think></think><answer>4</answer>", "too_long", "too_long"),
        ("hm", "bad_turn", "bad_turn"),
        ("no turn, and yet no error", None, "bad_turn"),
    ],
)
def test_the_timeline_names_what_each_turn_did(action: str, error: str | None, act: str) -> None:
    shown = waiting(True, EpisodeTurn("<image><image>", action, error, 2))
    assert data_of(episodes_page([shown], "x"))["episodes"][0]["turns"][0]["act"] == act


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the episodes of two runs, each in its own file."""
    monkeypatch.setattr(mimgenv, "load_task", lambda task_id: TASK, raising=False)
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


def rows_of(page: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = data_of(page.read_text(encoding="utf-8"))["episodes"]
    return rows


def test_the_command_shows_the_tasks_of_an_id_and_of_some_seeds(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--tasks", "locate", "--split", "test", "--difficulty", "2", "--world", "tiny"]
    main(["--env", "MultiImageQA-v0", "--seeds", "3:5", *options, "-o", str(page)])
    assert [row["taskId"] for row in rows_of(page)] == [f"rendered:tiny/locate/2/test/{number}" for number in (3, 4)]
    assert sections(page) == ["MultiImageQA-v0"] * 2
    assert all(row["truth"]["label"] in row["rationale"] for row in rows_of(page))


def test_previews_are_one_more_section_beside_records(runs: Path) -> None:
    main([str(runs / "before.jsonl"), "--env", "MultiImageTiny-v0", "--seeds", "7", "-o", str(runs / "page.html")])
    assert sections(runs / "page.html") == ["before", "MultiImageTiny-v0"]


def test_without_records_the_page_is_named_after_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--env", "mimgenv:MultiImageTiny-v0", "--seeds", "0"])
    assert data_of((tmp_path / "mimgenv-MultiImageTiny-v0.html").read_text())["title"] == "mimgenv:MultiImageTiny-v0"


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([], "a page without records needs --env"),
        (["--tasks", "locate"], "--tasks needs --env"),
        (["x.jsonl", "--seeds", "3"], "--seeds needs --env"),
        (["--env", "NoSuch-v0"], "NoSuch"),
        (["--env", "CartPole-v1"], "CartPole"),
        (["--env", "CartPole-v1", "--tasks", "locate"], "CartPole-v1 cannot be made with"),
        (["--env", "MultiImageTiny-v0", "--seeds", "5:5"], "seeds 5:5 name 0 tasks, a preview shows 1 to 1000"),
        (["--env", "MultiImageTiny-v0", "--seeds", "-3"], "seeds '-3' are neither"),
        (["--env", "MultiImageTiny-v0", "--seeds=-3:4"], "seeds '-3:4' are neither like 7 nor like 0:40"),
        (["--env", "MultiImageTiny-v0", "--tasks", "chess"], "chess"),
        (["--env", "MultiImageTiny-v0", "--difficulty", "nine"], "nine"),
        (["--env", "MultiImageTiny-v0", "--source", "odinw:/nowhere"], "/nowhere"),
        (["--env", "MultiImageTiny-v0", "--source", "odinw:/x", "--split", "val"], "--split is for rendered tasks"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(
    arguments: list[str], rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    message = capsys.readouterr().err
    assert rule in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
