"""One self-contained HTML page of played episodes.

Owns what a person sees of an episode: the images with true and predicted boxes, the turns, the reward parts. Takes
`records.EpisodeRecord` and pixels; knows nothing of agents, tools or how a reward is computed. Everything is worked
out here, boxes included; `assets/viewer.html` only lays it out.

What an agent wrote is data: it enters the page as JSON in which no tag can be formed, and its script inserts it as
text. The page loads nothing from anywhere and carries a content security policy that allows its own script alone.

    python -m mimgenv.viewer before.jsonl after.jsonl -o page.html
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from PIL import Image as PillowImage

from mimgenv.errors import DatasetError, MimgenvError
from mimgenv.geometry import View, area, intersection, iou
from mimgenv.records import EpisodeRecord, ViewRecord, answer_json, read_records
from mimgenv.tools import resize
from mimgenv.types import Answer, Box, Grounding, Image

SMALL: Final = 128
"""Images whose longer side is below this are stored as PNG and enlarged without smoothing."""

_TAG: Final = re.compile(r"(</?(?:think|tool_call|answer)>)")
_SLOT: Final = re.compile(r"@@([A-Z]+)@@")


@dataclass(frozen=True, slots=True, eq=False)
class ShownEpisode:
    """An episode and its images.

    Attributes:
        record: What was said and done.
        images: One (H, W, 3) uint8 array per view, as shown: Image-1 first.
        section: The group it is shown in, such as `before` and `after`; empty for none.

    Raises:
        ValueError: If the numbers or the sizes of views and images differ.
    """

    record: EpisodeRecord
    images: tuple[Image, ...]
    section: str = ""

    def __post_init__(self) -> None:
        views = self.record.views
        if len(views) != len(self.images):
            raise ValueError(f"{len(views)} views, {len(self.images)} images")
        for number, (view, pixels) in enumerate(zip(views, self.images, strict=True), start=1):
            if pixels.shape != (view.height, view.width, 3):
                raise ValueError(f"Image-{number} is {pixels.shape}, its view {(view.height, view.width, 3)}")


def episodes_page(episodes: Sequence[ShownEpisode], title: str) -> str:
    """The page, as HTML that stands alone.

    Args:
        episodes: In the order in which they are listed.
        title: Plain text.
    """
    template = (files("mimgenv") / "assets" / "viewer.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    slots = {
        # Lone surrogates have no UTF-8; as character references the browser shows them as unknown characters.
        "TITLE": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "HASH": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "DATA": _embeddable(_page_json(episodes, title)),
    }
    return _SLOT.sub(lambda slot: slots[slot[1]], template)


def write_page(path: str | Path, episodes: Sequence[ShownEpisode], title: str) -> None:
    """Writes `episodes_page` to a file."""
    page = episodes_page(episodes, title)
    # The policy names the script by its hash: line endings must stay as they are.
    Path(path).write_text(page, encoding="utf-8", newline="\n")


def load_episodes(path: str | Path, section: str = "") -> list[ShownEpisode]:
    """Reads records and makes the images they were played on again.

    What a tool drew on an image, such as the box of `visual_confirmation`, is not made again.

    Raises:
        DatasetError: If a line is no record, or shows a part that its task does not have.
        TaskError: If a task cannot be made.
    """
    from mimgenv import load_task

    load = lru_cache(maxsize=16)(load_task)  # A group of attempts at one task lies together in the file.
    return [
        ShownEpisode(record, tuple(view_image(load(record.task_id).images, view) for view in record.views), section)
        for record in read_records(path)
    ]


def view_image(originals: Sequence[Image], view: ViewRecord) -> Image:
    """The part of an original that a view shows, (height, width, 3) uint8; same bytes as the environment's.

    Args:
        originals: The task's images, each (H, W, 3) uint8 at full resolution.
        view: Which part, and how large.

    Raises:
        DatasetError: If there is no such image, or the part lies outside it.
    """
    if view.image > len(originals):
        raise DatasetError(f"a view shows image {view.image} of {len(originals)}")
    original = originals[view.image - 1]
    x1, y1, x2, y2 = *map(math.floor, view.region[:2]), *map(math.ceil, view.region[2:])
    if x1 < 0 or y1 < 0 or x2 > original.shape[1] or y2 > original.shape[0]:
        raise DatasetError(f"a view shows {view.region} of an image of {original.shape[1]}x{original.shape[0]}")
    return resize(original[y1:y2, x1:x2], view.width, view.height)


def view_box(answer: Answer | None, view: View) -> Box | None:
    """Where the box of an answer lies in a shown image, in its pixels; None where it shows nothing of it.

    The box is not cut at the image's border: an edge that lies outside must not be drawn along it. It is cut one
    image's size further out, where an absurd answer ends too.
    """
    if not isinstance(answer, Grounding) or answer.image != view.image:
        return None
    box = view.from_original(answer.box, "pixel")
    width, height = view.size
    near = intersection(box, (-float(width), -float(height), 2.0 * width, 2.0 * height))
    return near if area(view.clip(box, "pixel")) > 0 else None


def turn_parts(action: str) -> list[tuple[str, str]]:
    """A turn cut at its tags, for reading: (kind, text) with kind `think`, `tool_call`, `answer`, `tag` or `other`.

    Takes any text in linear time, and loses nothing: the texts joined are the turn. Whether the turn is well formed
    is the environment's business, not this function's.
    """
    parts, kind = [], "other"
    for piece in filter(None, _TAG.split(action)):
        tag = _TAG.fullmatch(piece) is not None
        parts.append(("tag" if tag else kind, piece))
        if tag:
            kind = "other" if piece[1] == "/" else piece[1:-1]
    return parts


def _embeddable(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _page_json(episodes: Sequence[ShownEpisode], title: str) -> dict[str, Any]:
    sources = _Sources()
    rows = [_episode_json(episode, sources) for episode in episodes]
    return {"title": title, "small": SMALL, "images": sources.uris, "episodes": rows}


class _Sources:
    """The distinct images of a page as data URIs: attempts at one task share theirs."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._numbers: dict[tuple[tuple[int, ...], bytes], int] = {}

    def number(self, pixels: Image) -> int:
        """The place of an image in `uris`, encoding it if it is new."""
        key = pixels.shape, hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self.uris)
            self.uris.append(_data_uri(pixels))
        return self._numbers[key]


def _data_uri(pixels: Image) -> str:
    file = io.BytesIO()
    small = max(pixels.shape[:2]) < SMALL
    if small:
        PillowImage.fromarray(pixels).save(file, "PNG", optimize=True)
    else:
        # Full-resolution colour: at half, the thin coloured outlines of a confirmation turn to mud.
        PillowImage.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=0)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def _episode_json(episode: ShownEpisode, sources: _Sources) -> dict[str, Any]:
    record = episode.record
    return {
        "section": episode.section,
        "taskId": record.task_id,
        "taskType": record.task_type,
        "agent": record.agent,
        "question": record.question,
        "reward": float(record.reward),
        "parts": [[name, float(value)] for name, value in record.reward_parts.items()],
        "stop": record.stop,
        "success": bool(record.success),
        "tools": list(record.tool_calls),
        "truth": answer_json(record.truth),
        "prediction": None if record.prediction is None else answer_json(record.prediction),
        "iou": _overlap(record.truth, record.prediction),
        "views": list(_views_json(episode, sources)),
        "turns": [
            {"message": turn.message, "error": turn.error, "images": turn.images, "parts": turn_parts(turn.action)}
            for turn in record.turns
        ],
    }


def _overlap(truth: Answer, prediction: Answer | None) -> float | None:
    if not isinstance(truth, Grounding) or not isinstance(prediction, Grounding):
        return None
    return iou(truth.box, prediction.box) if truth.image == prediction.image else 0.0


def _views_json(episode: ShownEpisode, sources: _Sources) -> Iterator[dict[str, Any]]:
    views = [View(pixels, v.image, v.region) for pixels, v in zip(episode.images, episode.record.views, strict=True)]
    first: dict[int, int] = {}
    for number, view in enumerate(views):
        parent = first.setdefault(view.image, number)
        yield {
            "source": sources.number(view.pixels),
            "width": view.size[0],
            "height": view.size[1],
            "truth": view_box(episode.record.truth, view),
            "prediction": view_box(episode.record.prediction, view),
            "scale": view.size[0] / (view.region[2] - view.region[0]),
            # An image that came later shows an earlier one again, or a part of it: `cut` is that part's place there.
            "parent": None if parent == number else parent,
            "cut": None if view.region == views[parent].region else views[parent].from_original(view.region, "pixel"),
        }


def _sections(paths: Sequence[Path]) -> list[str]:
    """A name for each file: nothing for a single one, else its stem, or its path where stems repeat."""
    if len(paths) == 1:
        return [""]
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mimgenv.viewer", description="Makes one HTML page of episodes.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl", help="records; each file is a section")
    parser.add_argument("-o", "--output", type=Path, help="the page; default: the first file, with .html")
    parser.add_argument("--title", help="default: the name of the first file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: records in, page out."""
    parser = _parser()
    options = parser.parse_args(arguments)
    output = options.output or options.files[0].with_suffix(".html")
    try:
        pairs = zip(options.files, _sections(options.files), strict=True)
        episodes = [episode for path, section in pairs for episode in load_episodes(path, section)]
        write_page(output, episodes, options.title or options.files[0].stem)
    except (MimgenvError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{output}: {len(episodes)} episode{'s' if len(episodes) != 1 else ''}\n")


if __name__ == "__main__":
    main()
