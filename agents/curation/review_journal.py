"""Verdicts on the items of a curated set: kept in a journal at once, and in the set when it is written.

Owns what a verdict does to an item, and when one is refused. Knows nothing of pages and requests. `data.jsonl` has its
journal in `data.jsonl.review.jsonl`, one verdict a line with the item before and after it, so that nothing is lost
when the process or the machine stops, and what two people said about one item can be read for ever:

    version     1
    revision    how many verdicts the item had before this one
    act         "accepted", "rejected", "edited" or "undone"
    reviewer    who
    at          when, UTC
    before      the item, in the form of `mimgenv.datasets.curated`
    after       the same; its `review` is the verdict

The last verdict on an item counts. A verdict says which revision of the item it was made on: made twice it counts once,
and made on a revision that has passed it is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mimgenv.datasets.curated import VERDICTS, Item, Review, check_images, item_json, item_of
from mimgenv.datasets.curated_files import drop_torn_line, line_of, read_items, read_lines, sync_folder, write_items
from mimgenv.errors import DatasetError, MimgenvError

VERSION: Final = 1
UNDONE: Final = "undone"
ACTS: Final = (*VERDICTS, UNDONE)
EDITABLE: Final = frozenset({"question", "grounding", "answer", "options"})

_KEYS: Final[Mapping[str, type]] = {
    "version": int,
    "revision": int,
    "act": str,
    "reviewer": str,
    "at": str,
    "before": dict,
    "after": dict,
}


class StaleError(MimgenvError, ValueError):
    """A verdict on a revision of an item that has passed: somebody else was faster."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one person did to one item, once.

    Attributes:
        revision: How many verdicts the item had before this one.
        act: One of `ACTS`.
        reviewer: Who.
        at: When, as ISO 8601 in UTC.
        before: The item as it was.
        after: The item as it is now.

    Raises:
        ValueError: If there is no such act, or the two items are not one.
    """

    revision: int
    act: str
    reviewer: str
    at: str
    before: Item
    after: Item

    def __post_init__(self) -> None:
        if self.act not in ACTS:
            raise ValueError(f"act {self.act!r} is not one of {list(ACTS)}")
        if self.before.id != self.after.id:
            raise ValueError(f"the item was {self.before.id!r} and is {self.after.id!r}; an id stays")


class Journal:
    """The verdicts on disk. One process at a time has it open; a last line that is torn was never confirmed, and goes.

    Attributes:
        verdicts: Those that were in it when it was opened, in order.

    Raises:
        DatasetError: If another process has it open, or a line is no verdict; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path.parent)
            drop_torn_line(path)
            self.verdicts = [_verdict_of(path, number, row) for number, row in read_lines(path)]
            self._end_line()
        except BlockingIOError as error:
            os.close(self._file)
            raise DatasetError(f"{path}: another review of this set is open; one at a time") from error
        except BaseException:
            os.close(self._file)
            raise

    def _end_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, verdict: Verdict) -> None:
        """Adds a verdict, and returns when it lies on the disk.

        Raises:
            OSError: If it cannot be written; the journal is then as it was.
        """
        size, data = os.fstat(self._file).st_size, memoryview(line_of(_verdict_json(verdict)).encode())
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)  # half a line would spoil the next one
            raise

    def close(self) -> None:
        """Lets another process have it."""
        os.close(self._file)


class ReviewedSet:
    """A curated set with what was said about it so far.

    Args:
        path: The JSON lines of the set.
        reviewer: Who gives verdicts from now on.

    Attributes:
        items: As they stand, by id, in the order of the file.
        history: All verdicts on an item, by id; their number is the item's revision.
        outdated: Ids of items that were changed elsewhere after their last verdict; it does not count any more.

    Raises:
        DatasetError: If the set or its journal cannot be read, or is being reviewed by another process.
        ValueError: If the reviewer has no name.
    """

    def __init__(self, path: str | Path, reviewer: str) -> None:
        self.path, self.reviewer = Path(path), Review(VERDICTS[0], reviewer).by
        if not self.path.is_file():  # or a journal would be made for nothing
            raise DatasetError(f"{self.path}: there is no such file")
        self.journal = Journal(self.path.with_name(self.path.name + ".review.jsonl"))
        try:
            self._written = {item.id: item for item in read_items(self.path)}
        except BaseException:
            self.journal.close()
            raise
        self.items = dict(self._written)
        self.history: defaultdict[str, list[Verdict]] = defaultdict(list)
        self._undoable: list[Verdict] = []
        self.outdated = frozenset(self._replay())

    def _replay(self) -> set[str]:
        """Takes over what the journal says; returns the ids of the items that it no longer speaks of."""
        chains: dict[str, list[Item]] = {}
        for verdict in self.journal.verdicts:
            name = verdict.after.id
            chain = chains.setdefault(name, [verdict.before])
            if chain[-1] != verdict.before:  # the set was changed between the two
                self._forget(name)
                chain[:] = [verdict.before]
            chain.append(verdict.after)
            self._count(verdict)
        known = {name for name in chains.keys() & self.items.keys() if self.items[name] in chains[name]}
        self.items |= {name: chains[name][-1] for name in known}
        for name in chains.keys() - known:
            self._forget(name)
        return (chains.keys() & self.items.keys()) - known

    def _count(self, verdict: Verdict) -> None:
        name = verdict.after.id
        self.history[name].append(verdict)
        if verdict.act != UNDONE:
            self._undoable.append(verdict)
            return
        for index in reversed(range(len(self._undoable))):
            if self._undoable[index].after.id == name:
                del self._undoable[index]
                return

    def _forget(self, name: str) -> None:
        self._undoable = [verdict for verdict in self._undoable if verdict.after.id != name]

    @property
    def next_undo(self) -> Verdict | None:
        """The verdict that would be undone next; None where this reviewer did not give the last one."""
        last = self._undoable[-1] if self._undoable else None
        return last if last and last.reviewer == self.reviewer else None

    def decide(
        self, name: str, revision: int, act: str, note: str = "", edit: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Gives a verdict on an item, or undoes the last one; on the disk when it returns.

        Args:
            name: The item's id.
            revision: The item's revision that the verdict was made on.
            act: One of `ACTS`.
            note: Why; may be empty.
            edit: The new values of `EDITABLE` keys, for "edited" alone.

        Raises:
            KeyError: If there is no such item.
            StaleError: If the item is at another revision; nothing is written.
            ValueError: If the edited item breaks a rule of the set, or there is nothing to undo; nothing is written.
            TypeError: If a value of the edit is of another type than the set's schema says.
            OSError: If the journal cannot be written.
        """
        before, made = self.items[name], self.history[name]
        if made and revision == len(made) - 1 and self._is_repeated(made[-1], act, note, edit):
            return made[-1]
        if revision != len(made):
            raise StaleError(f"item {name} is at revision {len(made)}, the verdict was made on {revision}")
        after = self._undo(name) if act == UNDONE else self._judged(before, act, note, edit)
        check_images(after, self.path.parent)
        verdict = Verdict(revision, act, self.reviewer, _now(), before, after)
        self.journal.append(verdict)
        self._count(verdict)
        self.items[name] = after
        return verdict

    def _is_repeated(self, last: Verdict, act: str, note: str, edit: Mapping[str, Any] | None) -> bool:
        if (last.act, last.reviewer) != (act, self.reviewer):
            return False
        return act == UNDONE or self._judged(last.before, act, note, edit) == last.after

    def _judged(self, before: Item, act: str, note: str, edit: Mapping[str, Any] | None) -> Item:
        if (edit is not None) != (act == "edited"):
            raise ValueError(f"an edit belongs to the act 'edited' and to no other, not to {act!r}")
        row = item_json(before)
        if edit is not None:
            row = {**{key: value for key, value in row.items() if key not in EDITABLE}, **_checked(edit, row)}
        return item_of(row | {"review": {"verdict": act, "by": self.reviewer, "note": note}})

    def _undo(self, name: str) -> Item:
        last = self.next_undo
        if last is None or last.after.id != name:
            raise StaleError(f"the last verdict of {self.reviewer} is not on item {name}; it cannot be undone")
        return last.before

    def apply(self) -> int:
        """Writes the set with its verdicts, in one step; returns how many items it changed.

        Items that were added or changed in the file meanwhile are left as they are there.

        Raises:
            DatasetError: If the set cannot be read or written; it is then as it was, and the journal has everything.
        """
        found = {item.id: item for item in read_items(self.path)}
        due = {n: self.items[n] for n, item in found.items() if self._written.get(n) == item != self.items[n]}
        if due:
            write_items(self.path, (found | due).values())
            self._written |= due
        return len(due)

    def close(self) -> None:
        """Lets another process review the set."""
        self.journal.close()


def _checked(edit: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    odd = sorted(edit.keys() - EDITABLE)
    if odd:
        raise ValueError(f"{odd} cannot be edited, {sorted(EDITABLE)} can")
    for key in ("grounding", "answer"):
        if (key in edit) != (key in row):
            raise ValueError(f"an edit keeps the kind of the truth: {key!r} in both the item and the edit, or in none")
    return edit


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    values: dict[str, Any] = {key: getattr(verdict, key) for key in ("revision", "act", "reviewer", "at")}
    return {"version": VERSION, **values, "before": item_json(verdict.before), "after": item_json(verdict.after)}


def _verdict_of(path: Path, number: int, row: Any) -> Verdict:
    try:
        if not isinstance(row, dict) or row.keys() != _KEYS.keys():
            raise ValueError(f"a verdict is an object with the keys {list(_KEYS)}")
        for key, kind in _KEYS.items():
            if type(row[key]) is not kind:
                raise TypeError(f"{key} must be {kind.__name__}, not {type(row[key]).__name__}")
        if row["version"] != VERSION:
            raise ValueError(f"unknown version {row['version']}; this reader knows {VERSION}")
        before, after = item_of(row["before"]), item_of(row["after"])
        return Verdict(row["revision"], row["act"], row["reviewer"], row["at"], before, after)
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{path}, line {number}: {error}") from error
