"""The command: a set that the environment reads, made offline or with a server, whole after any kill."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mimgenv.datasets.curated import Review
from mimgenv.datasets.curated_files import read_items, write_items
from mimgenv.datasets.curated_tasks import CuratedTasks

main = importlib.import_module("agents.curation.__main__").main
ROOT = Path(__file__).parents[3]
TINY = ("--world", "tiny", "--items", "6")


def make(output: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command; the report."""
    main(["--output", str(output), *arguments])
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def teach(server: Any, bad: dict[str, str] | None = None, delay: float = 0.0) -> None:
    """Lets the server play all roles; about one request in six is answered busily, brokenly or slowly."""

    def reply(body: dict[str, Any], number: int) -> Any:
        if number % 6 == 1:
            return server.busy(429)
        if number % 6 == 3:
            return server.busy(500)
        content = body["messages"][0]["content"]
        text, images = content[-1]["text"], sum(part["type"] == "image_url" for part in content)
        seed = body["seed"]
        job = "propose" if "Write one" in text else "judge" if "You check" in text else "solve" if images else "guess"
        usual = {
            "propose": json.dumps({"question": f"What is {seed}?", "task_type": "naming", "answer": "seven"}),
            "guess": '{"answer": "one"}',
            "solve": '{"answer": "seven"}' if seed % 2 else '{"answer": "six"}',
            "judge": '{"answerable": true, "unique": true, "reason": "ok"}',
        }
        text = (bad or {}).get(job, usual[job]) if seed % 3 == 0 else usual[job]
        return server.Reply(text, delay=delay)

    server.reply = reply


def played_by(server: Any) -> list[str]:
    name = f"openai:m@{server.url}"
    roles = [x for role in ("proposer", "solvers", "hidden_solvers", "critic") for x in (f"--{role}", name)]
    return [*roles, "--share", "0:1", "--retries", "8"]


def test_a_set_is_made_offline_that_the_environment_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make(tmp_path, *TINY)
    items = read_items(tmp_path / "items.jsonl")
    assert len(items) == report["kept"] == 6
    assert report["candidates"] == 6 + sum(sum(lost.values()) for lost in report["lost"].values())
    source = CuratedTasks(tmp_path / "items.jsonl")
    assert {source.task(seed).question for seed in range(6)} == {item.question for item in items}
    assert "6 kept" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    make(tmp_path, *TINY)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_more_items_keep_those_that_were_there(tmp_path: Path) -> None:
    make(tmp_path, *TINY)
    before = read_items(tmp_path / "items.jsonl")
    make(tmp_path, "--world", "tiny", "--items", "9")
    assert read_items(tmp_path / "items.jsonl")[:6] == before


def test_what_a_person_has_reviewed_stays(tmp_path: Path) -> None:
    make(tmp_path, *TINY)
    first, second, *others = read_items(tmp_path / "items.jsonl")
    edited = replace(first, question="Better words?", review=Review("edited", "ann"))
    rejected = replace(second, review=Review("rejected", "ann"))
    write_items(tmp_path / "items.jsonl", [edited, rejected, *others])
    make(tmp_path, *TINY, "--share", "1:1", "--candidates", "6")  # loses all that are not reviewed
    assert read_items(tmp_path / "items.jsonl") == (edited, rejected)


def test_another_cast_needs_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, *TINY)
    with pytest.raises(SystemExit):
        make(tmp_path, *TINY, "--solvers", "oracle")
    assert "begun with other settings: solvers was" in capsys.readouterr().err


def test_a_folder_that_has_changed_needs_another_output(
    tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    teach(server)
    arguments = ["--source", f"images:{photographs(tmp_path / 'photographs')}", "--items", "2", *played_by(server)]
    make(tmp_path / "out", *arguments)
    (tmp_path / "photographs" / "3.png").unlink()
    with pytest.raises(SystemExit):
        make(tmp_path / "out", *arguments)
    assert "images was '8 images" in capsys.readouterr().err


def test_a_set_is_made_with_a_real_server_that_is_often_busy(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    teach(server)
    source = f"images:{photographs(tmp_path / 'photographs')}"
    report = make(tmp_path / "out", "--source", source, "--items", "5", *played_by(server))
    items = read_items(tmp_path / "out" / "items.jsonl")
    assert (len(items), report["kept"], report["candidates"]) == (5, 5, 5)
    assert {item.task_type for item in items} == {"naming"}
    assert all(name.endswith(".png") for item in items for name in item.provenance["sources"])
    assert server.headers[0]["authorization"] == "Bearer sk-hidden"
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"sk-hid" in path.read_bytes()]


@pytest.mark.parametrize(
    ("job", "stage", "reason"),
    [
        ("propose", "propose", "bad_proposal"),
        ("guess", "solve/hidden", "bad_solution"),
        ("solve", "solve/shown", "bad_solution"),
        ("judge", "judge", "bad_verdict"),
    ],
)
def test_bad_answers_of_a_server_cost_their_items_only(
    tmp_path: Path, server: Any, job: str, stage: str, reason: str
) -> None:
    teach(server, {job: '{"question": '})
    source = f"images:{photographs(tmp_path / 'photographs')}"
    limits = ("--items", "6", "--candidates", "6", "--attempts", "1", "--hidden_attempts", "1")
    report = make(tmp_path / "out", "--source", source, *limits, *played_by(server))
    lost = report["lost"][stage].get(reason, 0)
    assert 0 < lost < 6
    assert report["kept"] == 6 - lost == len(read_items(tmp_path / "out" / "items.jsonl"))


def test_slow_answers_are_waited_for_in_the_next_run(
    tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    teach(server)
    quick = server.reply

    def slow(body: dict[str, Any], number: int) -> Any:
        late = "You check" in body["messages"][0]["content"][-1]["text"]
        return server.Reply("late", delay=0.6) if late else quick(body, 0)

    server.reply = slow
    source = f"images:{photographs(tmp_path / 'photographs')}"
    arguments = ["--source", source, "--items", "2", "--candidates", "2", *played_by(server)]
    report = make(tmp_path / "out", *arguments, "--timeout", "0.3", "--retries", "0")
    assert report == {**report, "kept": 0} and report["lost"]["judge"] == {"unanswered": 2}
    assert "asked again by the same command" in capsys.readouterr().out
    server.reply = lambda body, number: quick(body, 0)
    assert make(tmp_path / "out", *arguments)["kept"] == 2


def test_a_server_that_refuses_the_key_stops_the_run_in_one_line(
    tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda *_: server.Reply(status=401)
    with pytest.raises(SystemExit):
        make(tmp_path, *TINY, "--parallel", "1", *played_by(server))
    error = capsys.readouterr().err
    assert "HTTP 401; what was answered is kept" in error and "SECRET" not in error
    assert len(server.bodies) == 1


def test_a_process_killed_at_any_moment_goes_on(tmp_path: Path, server: Any) -> None:
    teach(server, delay=0.01)
    source = f"images:{photographs(tmp_path / 'photographs')}"
    arguments = ["--source", source, "--items", "6", *played_by(server), "--parallel", "2"]
    make(tmp_path / "whole", *arguments)
    whole, asked = read_items(tmp_path / "whole" / "items.jsonl"), _answered(server)
    server.bodies.clear()
    output = tmp_path / "killed"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    for lines in (4, 19):
        command = [sys.executable, "-m", "agents.curation", "--output", str(output), *arguments]
        process = subprocess.Popen(command, env=environ, cwd=tmp_path)
        while not (output / "journal.jsonl").exists() or (output / "journal.jsonl").read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    make(output, *arguments)
    assert read_items(output / "items.jsonl") == whole
    assert asked <= _answered(server) <= asked + 4  # two kills, two requests under way at each


def _answered(server: Any) -> int:
    return sum(number % 6 not in (1, 3) for number in range(len(server.bodies)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--source", "coco:/x"], "is not one of"),
        (["--source", "images:/nowhere"], "/nowhere"),
        (["--items", "0"], "must be above 0"),
        (["--share", "0.9:0.1"], "in order"),
        (["--solvers", ","], "at least one solver"),
        (["--critic", "openai:m@http://u:pw@h/v1"], "without a password"),
        (["--critic", "chess"], "role 'chess'"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
