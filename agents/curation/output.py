"""What a run leaves behind: `items.jsonl`, its images beside it, and a report.

Owns the files of the output folder. What a person has reviewed stays as it is, whatever later runs come to.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

import PIL.Image

from agents.curation.pipeline import image_name
from agents.curation.plan import KEPT, LOSSES, UNANSWERED, Result
from agents.curation.sets import ImageSets
from mimgenv.datasets.curated_files import read_items, write_items, write_whole
from mimgenv.types import Image

ITEMS: Final = "items.jsonl"
JOURNAL: Final = "journal.jsonl"
REPORT: Final = "report.json"


def write_result(folder: Path, result: Result, sets: ImageSets) -> Path:
    """Writes items, images and report; items that are there already with a review are kept as they are.

    Returns:
        The file of items.

    Raises:
        DatasetError: If the items that are there already cannot be read.
    """
    file = folder / ITEMS
    reviewed = {item.id: item for item in (read_items(file) if file.exists() else ()) if item.review is not None}
    for candidate in result.kept:
        for pixels in sets(candidate.number).images:
            _write_image(folder / image_name(pixels), pixels)
    items = {candidate.item.id: candidate.item for candidate in result.kept} | reviewed
    write_items(file, [items[key] for key in sorted(items)])
    write_whole(folder / REPORT, json.dumps(counts(result), indent=2) + "\n")
    return file


def counts(result: Result) -> dict[str, Any]:
    """How many candidates there were, how many came to what, and where and why the others were lost."""
    fates = Counter(result.fates.values())
    lost = {
        stage: {reason: fates[stage, reason] for reason in (*reasons, UNANSWERED) if fates[stage, reason]}
        for stage, reasons in LOSSES.items()
    }
    return {"candidates": len(result.fates), "kept": fates[KEPT], "lost": lost}


def report_text(result: Result) -> str:
    """The counts as lines for a terminal."""
    told = counts(result)
    lines = [f"{told['candidates']} candidates, {told['kept']} kept"]
    left = told["candidates"]
    for stage, reasons in told["lost"].items():
        left -= sum(reasons.values())
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        lines.append(f"  {stage:<13} {left:>5} left" + (f"   lost: {why}" if why else ""))
    if any(UNANSWERED in reasons for reasons in told["lost"].values()):
        lines.append("Those without an answer are asked again by the same command.")
    return "\n".join(lines)


def _write_image(path: Path, pixels: Image) -> None:
    if path.exists():  # its name says what it holds
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    PIL.Image.fromarray(pixels).save(beside, "PNG", compress_level=1)
    os.replace(beside, path)
