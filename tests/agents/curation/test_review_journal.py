"""Verdicts: what they do to an item, and that none is lost, doubled or put on another item than was seen."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from agents.curation.review_journal import ReviewedSet, StaleError
from mimgenv.datasets.curated import Item, Review
from mimgenv.datasets.curated_files import read_items, read_lines, write_items
from mimgenv.errors import DatasetError
from mimgenv.types import Grounding, TextAnswer

WIDTH, HEIGHT = 160, 120
BOX = (20.0, 30.0, 60.0, 90.0)
BOXED = Item("boxed", ("a.png", "b.png"), "Where is the mug?", "referring", Grounding(2, "red mug", BOX))
CHOICE = Item("choice", ("a.png",), "Which?", "odd_one_out", TextAnswer("B"), ("one", "two"), {"seed": 7})
EDIT = {"question": "Where?", "grounding": {"image": 1, "bbox_2d": [1, 2, 3, 4], "label": "cup"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    write_items(tmp_path / "set.jsonl", (BOXED, CHOICE))
    return tmp_path / "set.jsonl"


@pytest.fixture
def journal(path: Path) -> Path:
    return path.with_name("set.jsonl.review.jsonl")


def again(reviewed: ReviewedSet, reviewer: str = "Ann") -> ReviewedSet:
    """The same set opened anew, by a process that remembers nothing."""
    reviewed.close()
    return ReviewedSet(reviewed.path, reviewer)


# What a verdict does


@pytest.mark.parametrize("act", ["accepted", "rejected"])
def test_a_verdict_says_who_gave_it_and_why_and_changes_nothing_else(path: Path, act: str) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, act, "why")
    assert reviewed.items["choice"] == dataclasses.replace(CHOICE, review=Review(act, "Ann", "why"))
    assert reviewed.items["boxed"] == BOXED


def test_an_edit_changes_what_it_names_and_counts_as_a_verdict(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "edited", edit=EDIT)
    edited = Grounding(1, "cup", (1.0, 2.0, 3.0, 4.0))
    review = Review("edited", "Ann")
    assert reviewed.items["boxed"] == dataclasses.replace(BOXED, question="Where?", truth=edited, review=review)


def test_an_edit_may_take_the_options_away(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, "edited", edit={"question": "Which?", "answer": "two"})
    item = reviewed.items["choice"]
    assert (item.truth, item.options, item.provenance) == (TextAnswer("two"), (), {"seed": 7})


@pytest.mark.parametrize(
    ("name", "edit", "rule"),
    [
        (
            "boxed",
            {"question": "Where?", "grounding": {"image": 1, "bbox_2d": [9, 2, 3, 4], "label": "cup"}},
            "x1 < x2",
        ),
        ("boxed", {"question": "?", "grounding": {"image": 1, "bbox_2d": [0, 0, 161, 4], "label": "cup"}}, "160x120"),
        (
            "boxed",
            {"question": "?", "grounding": {"image": 3, "bbox_2d": [0, 0, 1, 4], "label": "cup"}},
            "image 3 of 2",
        ),
        ("boxed", {"question": " ", "grounding": EDIT["grounding"]}, "the question"),
        ("boxed", {"question": "W" * 1_000_000, "grounding": EDIT["grounding"]}, "the question"),
        ("boxed", {"question": "\ud800", "grounding": EDIT["grounding"]}, "surrogates"),
        ("boxed", {"question": "?", "answer": "a mug"}, "keeps the kind"),
        ("boxed", {"grounding": EDIT["grounding"]}, "question"),
        ("choice", {"question": "?", "answer": "C", "options": ["one", "two"]}, "one letter"),
        ("choice", {"question": "?", "answer": "A", "options": ["one"]}, "options"),
        ("choice", {"question": "?", "answer": "A", "images": ["b.png"]}, "cannot be edited"),
        ("choice", {"question": "?", "answer": "A", "id": "other"}, "cannot be edited"),
    ],
)
def test_an_edit_that_the_reader_would_refuse_is_refused_and_leaves_no_trace(
    path: Path, journal: Path, name: str, edit: dict[str, object], rule: str
) -> None:
    reviewed = ReviewedSet(path, "Ann")
    with pytest.raises(ValueError, match=rule):
        reviewed.decide(name, 0, "edited", edit=edit)
    assert journal.read_bytes() == b""
    assert tuple(reviewed.items.values()) == (BOXED, CHOICE)


@pytest.mark.parametrize(("act", "edit"), [("accepted", EDIT), ("edited", None)])
def test_an_edit_comes_with_the_verdict_edited_and_with_no_other(path: Path, act: str, edit: object) -> None:
    with pytest.raises(ValueError, match="belongs to the act 'edited'"):
        ReviewedSet(path, "Ann").decide("boxed", 0, act, edit=edit)  # type: ignore[arg-type]


def test_a_reviewer_has_a_name(path: Path, journal: Path) -> None:
    with pytest.raises(ValueError, match="who it is by"):
        ReviewedSet(path, " ")
    assert not journal.exists()


def test_an_item_whose_image_has_gone_gets_no_verdict(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    (path.parent / "b.png").unlink()
    with pytest.raises(ValueError, match="is missing"):
        reviewed.decide("boxed", 0, "accepted")


# Revisions


def test_a_verdict_that_is_sent_twice_counts_once(path: Path, journal: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    made = [reviewed.decide("boxed", 0, "edited", "n", EDIT) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    assert len(journal.read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    ("act", "note", "edit"), [("rejected", "n", None), ("accepted", "other", None), ("edited", "n", EDIT)]
)
def test_another_verdict_on_a_revision_that_has_passed_is_refused(
    path: Path, act: str, note: str, edit: dict[str, object] | None
) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted", "n")
    with pytest.raises(StaleError, match="at revision 1, the verdict was made on 0"):
        reviewed.decide("boxed", 0, act, note, edit)
    assert len(reviewed.history["boxed"]) == 1
    reviewed.decide("boxed", 1, act, note, edit)
    assert len(reviewed.history["boxed"]) == 2


def test_a_verdict_on_a_revision_that_is_yet_to_come_is_refused(path: Path) -> None:
    with pytest.raises(StaleError):
        ReviewedSet(path, "Ann").decide("boxed", 1, "accepted")


def test_the_last_of_two_reviewers_counts_and_the_journal_has_both(path: Path, journal: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    reviewed = again(reviewed, "Bob")
    with pytest.raises(StaleError):  # the same verdict, but not the same person's
        reviewed.decide("boxed", 0, "accepted")
    reviewed.decide("boxed", 1, "rejected")
    reviewed.apply()
    assert read_items(path)[0].review == Review("rejected", "Bob")
    assert [(row["reviewer"], row["act"]) for _, row in read_lines(journal)] == [
        ("Ann", "accepted"),
        ("Bob", "rejected"),
    ]


# Undoing


def test_undoing_goes_back_verdict_by_verdict_over_all_items(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "rejected")
    reviewed.decide("choice", 0, "accepted")
    reviewed.decide("boxed", 1, "edited", edit=EDIT)
    undone = []
    while reviewed.next_undo:
        name = reviewed.next_undo.after.id
        reviewed.decide(name, len(reviewed.history[name]), "undone")
        undone.append((name, reviewed.items[name].review))
    assert undone == [("boxed", Review("rejected", "Ann")), ("choice", None), ("boxed", None)]
    assert tuple(reviewed.items.values()) == (BOXED, CHOICE)


def test_undoing_twice_by_mistake_undoes_once(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "rejected")
    reviewed.decide("boxed", 1, "accepted")
    for _ in range(2):
        reviewed.decide("boxed", 2, "undone")
    assert reviewed.items["boxed"].review == Review("rejected", "Ann")


def test_two_people_who_undo_are_not_one_who_does_it_twice(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "rejected")
    reviewed.decide("boxed", 1, "undone")
    with pytest.raises(StaleError, match="at revision 2"):
        again(reviewed, "Bob").decide("boxed", 1, "undone")


def test_what_was_undone_can_be_undone_no_more_and_nobody_undoes_what_another_did(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "rejected")
    with pytest.raises(StaleError, match="cannot be undone"):
        reviewed.decide("choice", 0, "undone")
    reviewed = again(reviewed, "Bob")
    assert reviewed.next_undo is None
    with pytest.raises(StaleError, match="cannot be undone"):
        reviewed.decide("boxed", 1, "undone")


def test_a_verdict_can_be_undone_after_a_restart_and_after_the_set_was_written(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "edited", edit=EDIT)
    assert reviewed.apply() == 1
    reviewed = again(reviewed)
    assert reviewed.items["boxed"].question == "Where?"
    reviewed.decide("boxed", 1, "undone")
    reviewed = again(reviewed)
    assert reviewed.next_undo is None
    assert reviewed.apply() == 1
    assert read_items(path) == (BOXED, CHOICE)


# Crashes


def test_a_restart_goes_on_where_the_last_process_stopped(path: Path) -> None:
    before = ReviewedSet(path, "Ann")
    before.decide("boxed", 0, "edited", "n", EDIT)
    before.decide("choice", 0, "rejected")
    after = again(before)
    assert after.items == before.items
    assert {name: len(made) for name, made in after.history.items()} == {"boxed": 1, "choice": 1}
    after.decide("boxed", 0, "edited", "n", EDIT)  # the answer to the first was lost on the way
    assert len(after.history["boxed"]) == 1
    assert read_items(path) == (BOXED, CHOICE)


def test_a_torn_last_line_is_dropped_and_every_line_before_it_counts(path: Path, journal: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    whole = journal.read_bytes()
    reviewed.decide("choice", 0, "rejected")
    line = journal.read_bytes()[len(whole) :]
    reviewed.close()
    for length in (1, len(line) // 2, len(line) - 2):
        journal.write_bytes(whole + line[:length])
        opened = ReviewedSet(path, "Ann")
        assert opened.items["choice"] == CHOICE
        opened.decide("choice", 0, "accepted")
        opened = again(opened)
        assert [opened.items[name].review for name in ("boxed", "choice")] == [Review("accepted", "Ann")] * 2
        opened.close()


def test_a_last_line_that_lacks_only_its_newline_counts(path: Path, journal: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    reviewed.close()
    journal.write_bytes(journal.read_bytes()[:-1])
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, "rejected")
    assert [number for number, _ in read_lines(journal)] == [1, 2]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_verdict_that_cannot_be_written_is_not_given(
    path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, "accepted")
    whole, write = journal.read_bytes(), os.write

    def full(file: int, data: bytes = b"") -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        if failing == "write":
            patch.setattr("agents.curation.review_journal.line_of", lambda value: "x" * 15)
        with pytest.raises(OSError, match="no space left"):
            reviewed.decide("boxed", 0, "accepted")
    assert journal.read_bytes() == whole
    assert reviewed.items["boxed"] == BOXED
    reviewed.decide("boxed", 0, "accepted")
    assert again(reviewed).items["boxed"].review == Review("accepted", "Ann")


def test_a_verdict_lies_on_the_disk_before_it_is_given(
    path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviewed, synced, fsync = ReviewedSet(path, "Ann"), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), fsync(file)))
    reviewed.decide("boxed", 0, "accepted")
    assert synced == [journal.stat().st_size]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"version": 1, "rev', b'"version": 2, "rev', "line 1: unknown version 2"),
        (b'"act": "accepted"', b'"act": "admired"', "line 1: act 'admired'"),
        (b'"revision": 0', b'"revision": true', "line 1: revision must be int"),
        (b'"reviewer": "Ann", ', b"", "line 1: a verdict is an object with the keys"),
        (b'"question": "Where', b'"question": "<image>', "line 1: the question"),
        (b'"id": "boxed"', b'"id": "other"', "line 1: the item was 'other' and is 'boxed'"),
        (b"{", b"", "line 1: "),
    ],
)
def test_a_journal_with_a_bad_line_is_refused_and_the_line_named(
    path: Path, journal: Path, old: bytes, new: bytes, fault: str
) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    reviewed.decide("choice", 0, "accepted")
    reviewed.close()
    journal.write_bytes(journal.read_bytes().replace(old, new, 1))
    for _ in range(2):  # the lock is given back
        with pytest.raises(DatasetError, match=fault):
            ReviewedSet(path, "Ann")


def test_one_process_reviews_a_set_at_a_time(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    with pytest.raises(DatasetError, match="one at a time"):
        ReviewedSet(path, "Bob")
    again(reviewed, "Bob").close()


def test_a_set_that_is_not_there_gets_no_journal(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        ReviewedSet(tmp_path / "none.jsonl", "Ann")
    assert list(tmp_path.iterdir()) == []


# Writing the set


def test_the_set_is_written_with_its_verdicts_and_writing_it_again_changes_nothing(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, "rejected", "blurred")
    assert reviewed.apply() == 1
    assert read_items(path) == (BOXED, dataclasses.replace(CHOICE, review=Review("rejected", "Ann", "blurred")))
    written = path.stat().st_mtime_ns
    assert reviewed.apply() == again(reviewed).apply() == 0
    assert path.stat().st_mtime_ns == written


def test_a_verdict_given_after_the_set_was_written_is_written_next_time(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    for revision, act in enumerate(("rejected", "accepted")):
        reviewed.decide("choice", revision, act)
        assert reviewed.apply() == 1
        assert read_items(path)[1].review == Review(act, "Ann")


def test_a_set_that_cannot_be_written_stays_as_it_was(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("choice", 0, "rejected")
    before = path.read_bytes()
    (path.parent / "b.png").unlink()
    with pytest.raises(DatasetError, match="is missing"):
        reviewed.apply()
    assert path.read_bytes() == before


def test_items_that_came_or_changed_meanwhile_are_left_as_they_are(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    reviewed.decide("choice", 0, "accepted")
    changed, new = dataclasses.replace(CHOICE, question="Which one?"), dataclasses.replace(CHOICE, id="new")
    write_items(path, (BOXED, changed, new))
    assert reviewed.apply() == 1
    assert read_items(path) == (dataclasses.replace(BOXED, review=Review("accepted", "Ann")), changed, new)


def test_a_verdict_on_an_item_that_was_made_anew_does_not_count_and_the_next_one_does(path: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    changed = dataclasses.replace(BOXED, question="Where is the cup?")
    write_items(path, (changed, CHOICE))
    reviewed = again(reviewed)
    assert reviewed.outdated == {"boxed"}
    assert reviewed.items["boxed"] == changed
    assert reviewed.next_undo is None
    reviewed.decide("boxed", 1, "rejected")
    reviewed = again(reviewed)
    assert reviewed.outdated == set()
    assert reviewed.items["boxed"] == dataclasses.replace(changed, review=Review("rejected", "Ann"))
    reviewed.decide("boxed", 2, "undone")
    assert reviewed.items["boxed"] == changed
    assert reviewed.next_undo is None


def test_verdicts_on_items_that_are_no_longer_in_the_set_stay_in_the_journal_alone(path: Path, journal: Path) -> None:
    reviewed = ReviewedSet(path, "Ann")
    reviewed.decide("boxed", 0, "accepted")
    write_items(path, (CHOICE,))
    reviewed = again(reviewed)
    assert list(reviewed.items) == ["choice"]
    assert reviewed.outdated == set()
    assert reviewed.next_undo is None
    assert len(journal.read_bytes().splitlines()) == 1
