"""Files of JSON lines that survive a crash, and the items of a curated set in them.

Owns reading with the line and the fault named, writing that leaves the old file or the new one, and adding lines. What
an item is lies in `curated`. The last line of a file that was being added to when the machine stopped may be torn:
reading says so, adding refuses, and `drop_torn_line` takes it away; every line before it is whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mimgenv.datasets.curated import Item, check_images, item_json, item_of
from mimgenv.errors import DatasetError


def read_items(path: str | Path) -> tuple[Item, ...]:
    """Reads and checks a whole file, with every image that it names; empty lines are passed over.

    Raises:
        DatasetError: If the file or a line of it breaks a rule; the message names the file, the line and the fault.
    """
    path = Path(path)
    items: dict[str, Item] = {}
    for number, value in read_lines(path):
        try:
            item = item_of(value)
            check_images(item, path.parent)
            if item.id in items:
                raise ValueError(f"the id {item.id!r} stands on an earlier line too")
        except (ValueError, TypeError, OverflowError) as error:  # a huge whole number overflows
            raise DatasetError(f"{path}, line {number}: {error}") from error
        items[item.id] = item
    return tuple(items.values())


def write_items(path: str | Path, items: Iterable[Item]) -> None:
    """Writes a whole file at once: whenever the machine stops, there is the old file or the new one.

    Raises:
        DatasetError: If an image is missing or does not hold its item's box, or an id stands twice; nothing is written.
    """
    path, items = Path(path), tuple(items)
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise DatasetError(f"{path}: the id {item.id!r} stands twice")
        ids.add(item.id)
    write_whole(path, _text(path, items))


def append_items(path: str | Path, items: Iterable[Item]) -> None:
    """Adds items to a file, which need not be there yet. Their ids are not compared with those in the file.

    Raises:
        DatasetError: If an image is missing or does not hold its item's box, or the last line is torn; nothing is
            written.
    """
    path = Path(path)
    append_text(path, _text(path, tuple(items)))


def _text(path: Path, items: Sequence[Item]) -> str:
    for item in items:
        try:
            check_images(item, path.parent)
        except ValueError as error:
            raise DatasetError(f"{path}: item {item.id}: {error}") from error
    return "".join(line_of(item_json(item)) for item in items)


def line_of(value: object) -> str:
    """One line of JSON, pure ASCII, with its newline.

    Raises:
        ValueError: If it holds a number that is not finite.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """The JSON values of a file with the numbers of their lines, from 1; empty lines are passed over.

    Raises:
        DatasetError: If the file cannot be read or a line is no JSON; the message names them.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: the file cannot be read ({error})") from error
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append((number, _parsed(line)))
        except (ValueError, RecursionError) as error:  # deep nesting exhausts the stack
            torn = "the last line is torn, drop_torn_line takes it away: " if number == len(lines) else ""
            raise DatasetError(f"{path}, line {number}: {torn}{error}") from error
    return values


def write_whole(path: Path, text: str) -> None:
    """Puts a file in the place of another in one step, for good when this returns."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_text(path: Path, text: str) -> None:
    """Adds whole lines to a file, and returns when they lie on the disk.

    Raises:
        DatasetError: If the last line is torn: what is added would be torn with it.
    """
    tail = _tail(path)
    if tail and not _whole(tail):
        raise DatasetError(f"{path}: the last line is torn, drop_torn_line takes it away")
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("\n" * bool(tail) + text)
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: str | Path) -> bytes:
    """Takes away a last line that is torn, and returns it; empty where none is."""
    path = Path(path)
    tail = _tail(path)
    if not tail or _whole(tail):
        return b""
    os.truncate(path, path.stat().st_size - len(tail))
    return tail


def _tail(path: Path) -> bytes:
    """What stands behind the last newline."""
    return path.read_bytes().rpartition(b"\n")[2] if path.exists() else b""


def _whole(line: bytes) -> bool:
    try:
        _parsed(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(line: bytes) -> Any:
    return json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, not {constant}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
    return dict(pairs)
