"""The journal: an answer that was kept is there again, and nothing of a torn line is."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.curation.journal import Journal
from mimgenv.errors import ConfigurationError, DatasetError

SETTINGS = {"seed": 0, "solvers": ["a", "b"], "tasks": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.jsonl", SETTINGS)
    journal.add(0, "propose", "a", '{"x": 1}\n')
    journal.add(1, "solve/shown/0", "b", "\ud800 odd")
    return tmp_path / "journal.jsonl"


def test_answers_are_there_again(path: Path) -> None:
    journal = Journal(path, SETTINGS)
    assert journal.get(0, "propose") == '{"x": 1}\n'
    assert journal.get(1, "solve/shown/0") == "\ud800 odd"
    assert journal.get(1, "propose") is None
    assert len(journal) == 2


def test_a_journal_cut_at_any_byte_goes_on(path: Path) -> None:
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 5), *range(len(whole) - 3, len(whole) + 1)]:
        path.write_bytes(whole[:end])
        journal = Journal(path, SETTINGS)
        if journal.get(1, "solve/shown/0") is None:
            journal.add(1, "solve/shown/0", "b", "again")
        again = Journal(path, SETTINGS)
        kept = whole[:end].count(b"\n") + (whole[end : end + 1] == b"\n")
        assert (again.get(0, "propose") is not None) == (kept >= 2)
        assert again.get(1, "solve/shown/0") == ("\ud800 odd" if kept >= 3 else "again")


def test_the_first_of_two_answers_counts(path: Path) -> None:
    with open(path, "a") as file:
        file.write('{"candidate": 0, "step": "propose", "role": "a", "text": "other"}\n')
    assert Journal(path, SETTINGS).get(0, "propose") == '{"x": 1}\n'


def test_other_settings_are_refused_and_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"solvers was \['a', 'b'\], now it is \['a'\]"):
        Journal(path, SETTINGS | {"solvers": ["a"]})


@pytest.mark.parametrize("line", ["{}", "[]", '{"candidate": "0", "step": "s", "role": "r", "text": "t"}', "{"])
def test_a_line_that_is_none_is_named(path: Path, line: str) -> None:
    text = path.read_text().splitlines(keepends=True)
    path.write_text(text[0] + line + "\n" + text[1])
    with pytest.raises(DatasetError, match=r"journal.jsonl, line 2"):
        Journal(path, SETTINGS)


def test_an_unknown_version_is_refused(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DatasetError, match="line 1: unknown version 2; this reader knows 1"):
        Journal(path, SETTINGS)
