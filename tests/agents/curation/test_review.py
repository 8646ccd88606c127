"""The review page's server: who may ask, what it hands out, how it answers a verdict, and how it starts and ends."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from agents.curation import review
from agents.curation.review_journal import ReviewedSet
from mimgenv.datasets.curated import Item, Review
from mimgenv.datasets.curated_files import read_items, read_lines, write_items
from mimgenv.types import Grounding, TextAnswer

ROOT = Path(__file__).resolve().parents[3]
PORT = 8123
ADDRESS = f"http://127.0.0.1:{PORT}"
MARKUP = "</script><script>window.hacked=1</script><!-- \"quoted\" 'too' & \u202eturned\u200f"
BOXED = Item(
    "boxed",
    ("a.png", "deeper/b.jpg"),
    f"Where? {MARKUP}",
    "referring",
    Grounding(2, f"mug {MARKUP}", (20.0, 30.0, 60.0, 90.0)),
    provenance={MARKUP: [MARKUP, "\ud800 alone"], "long": "W" * 1_000_000},
)
CHOICE = Item("choice", ("a.png",), "Which?", "odd_one_out", TextAnswer("B"), (MARKUP, "two"))
ACCEPT = {"id": "boxed", "revision": 0, "act": "accepted", "note": "", "edit": None}
HEADERS = {"Origin": ADDRESS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "deeper").mkdir(parents=True)
    for name, shade in (("a.png", 40), ("deeper/b.jpg", 90)):
        PIL.Image.fromarray(np.full((120, 160, 3), shade, np.uint8)).save(folder / name)
    write_items(folder / "set.jsonl", (BOXED, CHOICE))
    PIL.Image.fromarray(np.full((120, 160, 3), 250, np.uint8)).save(tmp_path / "secret.png")
    return folder / "set.jsonl"


@pytest.fixture
def reviewed(path: Path) -> Iterator[ReviewedSet]:
    opened = ReviewedSet(path, "Ann")
    yield opened
    opened.close()


@pytest.fixture
def client(reviewed: ReviewedSet) -> TestClient:
    return TestClient(review.make_app(reviewed, PORT), base_url=ADDRESS, headers=HEADERS)


def lines(path: Path) -> int:
    return len(path.with_name(path.name + ".review.jsonl").read_bytes().splitlines())


# What is handed out


def test_the_overview_has_a_row_for_every_item(client: TestClient) -> None:
    found = client.get("/api/set").json()
    assert [row["id"] for row in found["rows"]] == ["boxed", "choice"]
    assert found["rows"][1] == {
        "id": "choice",
        "taskType": "odd_one_out",
        "question": "Which?",
        "images": 1,
        "verdict": None,
        "revision": 0,
    }
    assert (found["name"], found["reviewer"], found["undo"], found["outdated"]) == ("set.jsonl", "Ann", None, 0)


def test_an_item_comes_with_the_sizes_of_its_images_and_what_was_said_about_it(client: TestClient) -> None:
    client.post("/api/verdicts", json=ACCEPT)
    found = client.get("/api/items/0").json()
    assert found["sizes"] == [[160, 120], [160, 120]]
    assert found["item"]["grounding"] == {"image": 2, "bbox_2d": [20, 30, 60, 90], "label": f"mug {MARKUP}"}
    assert [(entry["act"], entry["reviewer"]) for entry in found["history"]] == [("accepted", "Ann")]
    assert found["row"]["revision"] == 1


@pytest.mark.parametrize(("number", "name", "kind"), [(1, "a.png", "image/png"), (2, "deeper/b.jpg", "image/jpeg")])
def test_an_image_is_handed_out_as_it_lies_on_the_disk(
    client: TestClient, path: Path, number: int, name: str, kind: str
) -> None:
    answer = client.get(f"/images/0/{number}")
    assert answer.content == (path.parent / name).read_bytes()
    assert answer.headers["content-type"] == kind


def test_text_from_models_is_json_of_plain_ascii_and_comes_back_as_it_was(client: TestClient) -> None:
    answer = client.get("/api/items/0")
    assert answer.headers["content-type"] == "application/json"
    assert answer.content.isascii()
    item = json.loads(answer.content)["item"]
    assert item["question"] == BOXED.question
    assert item["provenance"] == BOXED.provenance


def test_the_page_holds_nothing_of_the_set_and_parses_nothing_as_markup(client: TestClient) -> None:
    page = client.get("/").text
    assert "set.jsonl" not in page and "hacked" not in page and "boxed" not in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|DOMParser|srcdoc", page)
    assert not re.search(r"\son\w+=|https?://(?!www\.w3\.org/2000/svg)", page)


# Paths


@pytest.mark.parametrize(
    "url",
    [
        "/images/0/0",
        "/images/0/3",
        "/images/2/1",
        "/images/-1/1",
        "/images/0/../../secret.png",
        "/images/0/%2e%2e/%2e%2e/secret.png",
        "/images/0/..%2f..%2fsecret.png",
        "/images/0/%2fetc%2fpasswd",
        "/images//etc/passwd",
        "/images/0/1%00.png",
        "/images/0/a.png",
        "/set.jsonl",
        "/..%5csecret.png",
        "/assets/review.html",
    ],
)
def test_only_the_images_of_the_set_are_handed_out(client: TestClient, url: str) -> None:
    assert client.get(url).status_code == 404


def test_an_image_that_has_become_a_link_out_of_the_folder_is_refused(client: TestClient, path: Path) -> None:
    image = path.parent / "a.png"
    image.unlink()
    image.symlink_to(path.parent.parent / "secret.png")
    answer = client.get("/images/0/1")
    assert answer.status_code == 404
    assert "must lie in the folder" in answer.json()["error"]
    image.unlink()
    image.symlink_to("deeper/b.jpg")  # a link inside is no harm
    assert client.get("/images/0/1").content == (path.parent / "deeper" / "b.jpg").read_bytes()


def test_a_folder_that_has_become_a_link_out_is_refused(client: TestClient, path: Path) -> None:
    (path.parent / "deeper").rename(path.parent.parent / "moved")
    (path.parent / "deeper").symlink_to("../moved")
    assert client.get("/images/0/2").status_code == 404


def test_what_is_no_image_any_more_is_not_handed_out(client: TestClient, path: Path) -> None:
    (path.parent / "a.png").write_text("<svg><script>alert(1)</script></svg>")
    assert client.get("/images/0/1").status_code == 404


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a.png\x00", "deeper/../../secret.png", "link.png"])
def test_a_set_with_an_image_outside_its_folder_is_not_opened(
    path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path.parent / "link.png").symlink_to("../secret.png")
    row = json.loads(path.read_text().splitlines()[1])
    path.write_text(json.dumps(row | {"images": [name]}) + "\n")
    with pytest.raises(SystemExit):
        review.main([str(path), "--reviewer", "Ann"])
    assert "line 1: an image" in capsys.readouterr().err


# Who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:9", "127.0.0.1", "", "0.0.0.0:8123"]
)
def test_another_name_of_this_machine_is_refused(reviewed: ReviewedSet, host: str) -> None:
    client = TestClient(review.make_app(reviewed, PORT), base_url=ADDRESS, headers={"Host": host})
    for url in ("/", "/api/set", "/images/0/1"):
        assert client.get(url).status_code == 403
    rebound = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/verdicts", json=ACCEPT, headers=rebound).status_code == 403


def test_both_names_of_this_server_are_its_own(client: TestClient) -> None:
    for name in (f"127.0.0.1:{PORT}", f"localhost:{PORT}"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert client.post("/api/verdicts", json=ACCEPT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:9", f"http://localhost:{PORT}"],
)
def test_another_page_may_not_ask(client: TestClient, path: Path, origin: str) -> None:
    assert client.post("/api/verdicts", json=ACCEPT, headers={"Origin": origin}).status_code == 403
    assert client.get("/api/set", headers={"Origin": origin}).status_code == 403
    assert lines(path) == 0


def test_a_verdict_from_nowhere_is_refused(reviewed: ReviewedSet, path: Path) -> None:
    client = TestClient(review.make_app(reviewed, PORT), base_url=ADDRESS)
    assert client.post("/api/verdicts", json=ACCEPT).status_code == 403
    assert client.get("/api/set").status_code == 200
    assert lines(path) == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_may_link_to_this_one_but_load_nothing_of_it(reviewed: ReviewedSet, site: str) -> None:
    client = TestClient(review.make_app(reviewed, PORT), base_url=ADDRESS)
    fetched = {"Sec-Fetch-Site": site}
    assert client.get("/", headers=fetched).status_code == 200
    assert client.get("/images/0/1", headers=fetched).status_code == 403
    assert client.get("/api/set", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_cannot_give_a_verdict(client: TestClient, path: Path, kind: str) -> None:
    answer = client.post("/api/verdicts", content=json.dumps(ACCEPT), headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert lines(path) == 0


@pytest.mark.parametrize("url", ["/", "/api/set", "/images/0/1", "/nothing", "/api/items/99"])
def test_every_answer_forbids_what_it_does_not_need(client: TestClient, url: str) -> None:
    headers = client.get(url).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[^ ']+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[^ ']+'", policy["style-src"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


# Verdicts


def test_a_verdict_is_in_the_journal_when_it_is_answered(client: TestClient, path: Path) -> None:
    answer = client.post("/api/verdicts", json=ACCEPT)
    assert answer.status_code == 200
    assert lines(path) == 1
    assert answer.json()["index"] == 0
    assert answer.json()["row"]["verdict"] == "accepted"
    assert answer.json()["undo"] == {"id": "boxed", "revision": 1}
    undo = {"id": "boxed", "revision": 1, "act": "undone", "note": "", "edit": None}
    assert client.post("/api/verdicts", json=undo).json()["row"]["verdict"] is None
    assert client.get("/api/set").json()["undo"] is None


def test_a_verdict_sent_twice_is_answered_twice_and_written_once(client: TestClient, path: Path) -> None:
    answers = [client.post("/api/verdicts", json=ACCEPT) for _ in range(2)]
    assert answers[0].status_code == answers[1].status_code == 200
    assert answers[0].json() == answers[1].json()
    assert lines(path) == 1


def test_a_verdict_from_a_tab_that_is_behind_is_a_conflict(client: TestClient, path: Path) -> None:
    client.post("/api/verdicts", json=ACCEPT)
    answer = client.post("/api/verdicts", json=ACCEPT | {"act": "rejected"})
    assert answer.status_code == 409
    assert "at revision 1" in answer.json()["error"]
    assert lines(path) == 1


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"id": "none"}, 404, "no item 'none'"),
        ({"id": 3}, 400, "id must be"),
        ({"revision": True}, 400, "revision must be"),
        ({"revision": "0"}, 400, "revision must be"),
        ({"act": "admired"}, 422, "verdict 'admired'"),
        ({"act": "edited"}, 422, "belongs to"),
        ({"edit": []}, 400, "edit must be"),
        ({"more": 1}, 400, "an object with the keys"),
        ({"act": "undone"}, 409, "cannot be undone"),
        ({"act": "edited", "edit": {"question": "W" * 1_000_000, "answer": "2"}}, 422, "keeps the kind"),
        ({"act": "edited", "edit": {"question": 3, "grounding": {}}}, 422, "question must be str"),
        ({"act": "edited", "edit": {"question": "?", "grounding": {}}}, 422, "lacks the key"),
    ],
)
def test_what_is_no_verdict_is_refused_with_the_reason(
    client: TestClient, path: Path, change: Mapping[str, Any], status: int, error: str
) -> None:
    answer = client.post("/api/verdicts", json={**ACCEPT, **change})
    assert answer.status_code == status
    assert error in answer.json()["error"]
    assert lines(path) == 0


@pytest.mark.parametrize("box", ["[1, 2, NaN, 4]", "[1, 2, 1e999, 4]", f"[1, 2, {10**400}, 4]", "[1, 2, 3]", "null"])
def test_a_box_that_is_none_is_refused(client: TestClient, path: Path, box: str) -> None:
    edit = f'{{"question": "?", "grounding": {{"image": 1, "label": "x", "bbox_2d": {box}}}}}'
    body = f'{{"id": "boxed", "revision": 0, "act": "edited", "note": "", "edit": {edit}}}'
    answer = client.post("/api/verdicts", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert lines(path) == 0


@pytest.mark.parametrize("body", ["", "{", "[]", "[" * 100_000, '{"id": "boxed"}', "\ufeff{}", "1" * 5000])
def test_a_body_that_is_no_verdict_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/verdicts", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_a_body_without_end_is_cut_short(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "MAX_BODY", 1000)
    assert client.post("/api/verdicts", json=ACCEPT | {"note": "W" * 1000}).status_code == 413


def test_a_note_may_hold_anything(client: TestClient, reviewed: ReviewedSet) -> None:
    body = json.dumps(ACCEPT | {"note": f"\ud800{MARKUP}\x00" + "W" * 1_000_000})
    assert client.post("/api/verdicts", content=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert client.get("/api/items/0").json()["item"]["review"]["note"].startswith("\ud800</script>")


def test_an_item_too_deep_to_write_costs_no_more_than_itself(client: TestClient, reviewed: ReviewedSet) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"deeper": deep}
    reviewed.items["boxed"] = dataclasses.replace(BOXED, provenance=deep)
    assert client.get("/api/items/0").status_code == client.post("/api/verdicts", json=ACCEPT).status_code == 422
    assert client.post("/api/verdicts", json=ACCEPT | {"id": "choice"}).status_code == 200


def test_a_disk_that_is_full_is_said_and_the_verdict_can_be_given_again(
    client: TestClient, reviewed: ReviewedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(verdict: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(reviewed.journal, "append", full)
        answer = client.post("/api/verdicts", json=ACCEPT)
        assert (answer.status_code, answer.json()["error"]) == (507, "no space left")
    assert client.post("/api/verdicts", json=ACCEPT).status_code == 200


# The command


def test_the_set_is_written_when_the_server_is_shut_down(path: Path) -> None:
    with TestClient(review.make_app(ReviewedSet(path, "Ann"), PORT), base_url=ADDRESS, headers=HEADERS) as client:
        client.post("/api/verdicts", json=ACCEPT)
        assert read_items(path)[0].review is None
    assert read_items(path)[0].review == Review("accepted", "Ann")


def test_a_set_that_cannot_be_written_at_the_end_is_said_and_nothing_is_lost(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TestClient(review.make_app(ReviewedSet(path, "Ann"), PORT), base_url=ADDRESS, headers=HEADERS) as client:
        client.post("/api/verdicts", json=ACCEPT)
        moved = (path.parent / "a.png").rename(path.parent / "moved.png")
    assert "every verdict is in its journal" in capsys.readouterr().err
    moved.rename(path.parent / "a.png")
    review.main([str(path), "--apply"])
    assert read_items(path)[0].review == Review("accepted", "Ann")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["set.jsonl"], "--reviewer NAME is needed"),
        (["set.jsonl", "--reviewer", " "], "--reviewer NAME is needed"),
        (["set.jsonl", "--reviewer", "Ann", "--port", "80"], "'80' is not a port"),
        (["set.jsonl", "--reviewer", "Ann", "--port", "x"], "'x' is not a port"),
        (["none.jsonl", "--reviewer", "Ann"], "no such file"),
        (["none.jsonl", "--apply"], "no such file"),
    ],
)
def test_the_command_says_in_one_line_what_it_lacks(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(SystemExit, match="2"):
        review.main(arguments)
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


def test_a_port_that_is_taken_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        review.main([str(path), "--reviewer", "Ann", "--port", str(taken.getsockname()[1])])
    assert "in use" in capsys.readouterr().err


class Server:
    """The command in a process of its own."""

    def __init__(self, path: Path, *code: str) -> None:
        command = code or ("-m", "agents.curation.review")
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, *command, str(path), "--reviewer", "Ann", "--port", "0"]
        self.process = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/", line)[0])

    def post(self, body: Mapping[str, Any]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        connection.request("POST", "/api/verdicts", json.dumps(body), headers)
        return connection.getresponse().status

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_server_writes_the_set(path: Path, number: int) -> None:
    server = Server(path)
    try:
        assert server.post(ACCEPT) == 200
    finally:
        server.end(number)
    assert [item.review for item in read_items(path)] == [Review("accepted", "Ann"), None]


def test_a_server_listens_on_this_machine_alone(path: Path) -> None:
    server = Server(path)
    try:
        hexed = f":{server.port:04X}"
        listening = [
            row.split()[1]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for row in Path(table).read_text().splitlines()[1:]
            if row.split()[1].endswith(hexed) and row.split()[3] == "0A"
        ]
        assert listening == [f"0100007F{hexed}"]
    finally:
        server.end(signal.SIGTERM)


KILLED = """
import os, signal, sys
from agents.curation import review, review_journal

append = review_journal.Journal.append

def killed(journal, verdict):
    append(journal, verdict)
    os.kill(os.getpid(), signal.SIGKILL)

review_journal.Journal.append = killed
review.main(sys.argv[1:])
"""


def test_a_server_killed_before_it_could_answer_knows_the_verdict_and_takes_it_once(path: Path) -> None:
    server = Server(path, "-c", KILLED)
    with pytest.raises((http.client.HTTPException, OSError)):
        server.post(ACCEPT)
    server.end(signal.SIGKILL)
    assert read_items(path) == (BOXED, CHOICE)
    server = Server(path)
    try:
        assert server.post(ACCEPT) == 200  # what the page does when it got no answer
        assert server.post(ACCEPT | {"id": "choice"}) == 200
    finally:
        server.end(signal.SIGKILL)
    assert lines(path) == 2
    review.main([str(path), "--apply"])
    assert [item.review for item in read_items(path)] == [Review("accepted", "Ann")] * 2
    assert [number for number, _ in read_lines(path.with_name("set.jsonl.review.jsonl"))] == [1, 2]
