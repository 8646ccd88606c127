"""What the roles answered, on disk: one line of JSON per answer, so that nothing is asked twice.

The first line holds the version and the settings that the answers depend on; each other one a candidate, a step, who
was asked, and the answer as it was written. What follows from the answers is worked out anew each time, so the order of
the lines means nothing. A line that was torn when the machine stopped is dropped: that answer is asked for again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mimgenv.datasets.curated_files import append_text, drop_torn_line, line_of, read_lines
from mimgenv.errors import ConfigurationError, DatasetError

VERSION: Final = 1


class Journal:
    """The answers so far; threads may share it.

    Args:
        path: The file; made where there is none.
        settings: What the answers depend on: strings and numbers.

    Raises:
        ConfigurationError: If the file was written with other settings.
        DatasetError: If a line of it is no line of a journal.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[tuple[int, str], str] = {}
        drop_torn_line(path)
        lines = read_lines(path) if path.exists() else []
        if not lines:
            append_text(path, line_of({"version": VERSION, "settings": dict(settings)}))
        else:
            self._check(lines[0][1], settings)
            append_text(path, "")  # the newline of a last line that lacks only that
        for number, line in lines[1:]:
            self._read(number, line)

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def candidates(self) -> int:
        """One more than the highest number of a candidate that was asked about; 0 where none was."""
        return 1 + max((candidate for candidate, _ in self._answers), default=-1)

    def get(self, candidate: int, step: str) -> str | None:
        """What was answered; None where nobody has been asked."""
        return self._answers.get((candidate, step))

    def add(self, candidate: int, step: str, role: str, text: str) -> None:
        """Keeps an answer; it lies on the disk when this returns.

        Args:
            candidate: Number of the candidate.
            step: Such as `propose` or `solve/shown/2`.
            role: Who was asked.
            text: The answer as written.
        """
        line = line_of({"candidate": candidate, "step": step, "role": role, "text": text})
        with self._lock, open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._answers[candidate, step] = text

    def _check(self, header: Any, settings: Mapping[str, Any]) -> None:
        version = header.get("version") if isinstance(header, dict) else None
        if version != VERSION or not isinstance(header.get("settings"), dict):
            raise DatasetError(f"{self.path}, line 1: unknown version {version!r}; this reader knows {VERSION}")
        known = header["settings"]
        for key in sorted(known.keys() | settings.keys()):
            if known.get(key) != settings.get(key):
                was = f"{key} was {known.get(key)!r}, now it is {settings.get(key)!r}"
                raise ConfigurationError(f"{self.path} was begun with other settings: {was}; use another folder")

    def _read(self, number: int, line: Any) -> None:
        kinds = {"candidate": int, "step": str, "role": str, "text": str}
        if not isinstance(line, dict) or any(not isinstance(line.get(key), kind) for key, kind in kinds.items()):
            raise DatasetError(f"{self.path}, line {number}: a line needs {', '.join(kinds)}")
        self._answers.setdefault((line["candidate"], line["step"]), line["text"])
