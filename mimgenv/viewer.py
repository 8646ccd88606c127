"""One self-contained HTML page of episodes, played or waiting to be played.

Owns what a person sees of an episode in a browser: the images with true and predicted boxes and the annotated objects,
the turns, the reward parts. What is shown comes from `preview`; nothing is known here of agents or of how a reward is
computed. Everything is worked out here, boxes included; `assets/viewer.html` only lays it out.

What an agent wrote is data: it enters the page as JSON in which no tag can be formed, and its script inserts it as
text. The page loads nothing from anywhere and carries a content security policy that allows its own script alone.

    python -m mimgenv.viewer before.jsonl after.jsonl -o page.html
    python -m mimgenv.viewer --env MultiImageTiny-v0 --seeds 0:40 --tasks locate,counting -o page.html
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NoReturn

import gymnasium as gym
from PIL import Image as PillowImage

from mimgenv.errors import ConfigurationError, MimgenvError, TurnError
from mimgenv.geometry import View, area, intersection, iou
from mimgenv.parsing import ToolCall, parse_turn
from mimgenv.preview import OpenEpisode, ShownEpisode, load_episodes, preview, seed_range, view_image
from mimgenv.records import EpisodeTurn, answer_json
from mimgenv.tasks.registry import TASK_GROUPS
from mimgenv.types import Answer, Box, Grounding, Image, ObjectAnnotation, Task

__all__ = ["OpenEpisode", "ShownEpisode", "episodes_page", "load_episodes", "view_image", "write_page"]

SMALL: Final = 128
"""Images whose longer side is below this are stored as PNG and enlarged without smoothing."""

_TAG: Final = re.compile(r"(</?(?:think|tool_call|answer)>)")
_SLOT: Final = re.compile(r"@@([A-Z]+)@@")


def episodes_page(episodes: Sequence[ShownEpisode | OpenEpisode], title: str) -> str:
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


def write_page(path: str | Path, episodes: Sequence[ShownEpisode | OpenEpisode], title: str) -> None:
    """Writes `episodes_page` to a file."""
    page = episodes_page(episodes, title)
    # The policy names the script by its hash: line endings must stay as they are.
    Path(path).write_text(page, encoding="utf-8", newline="\n")


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


def _page_json(episodes: Sequence[ShownEpisode | OpenEpisode], title: str) -> dict[str, Any]:
    sources = _Sources()
    rows = [_played(e, sources) if isinstance(e, ShownEpisode) else _waiting(e, sources) for e in episodes]
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


def _played(episode: ShownEpisode, sources: _Sources) -> dict[str, Any]:
    record = episode.record
    views = [View(pixels, v.image, v.region) for pixels, v in zip(episode.images, record.views, strict=True)]
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
        "truth": answer_json(record.truth),
        "prediction": None if record.prediction is None else answer_json(record.prediction),
        "iou": _overlap(record.truth, record.prediction),
        "rationale": episode.task.rationale if episode.task else "",
        "views": list(_views_json(views, record.truth, record.prediction, episode.task, sources)),
        "turns": [_turn_json(turn) for turn in record.turns],
        "message": None,
    }


_UNPLAYED: Final[dict[str, Any]] = {
    "agent": "",
    "reward": None,
    "parts": [],
    "stop": None,
    "success": False,
    "prediction": None,
    "iou": None,
}


def _waiting(episode: OpenEpisode, sources: _Sources) -> dict[str, Any]:
    task = episode.task
    known = task if episode.revealed else None
    truth = known.truth if known else None
    return _UNPLAYED | {
        "section": episode.section,
        "taskId": task.task_id,
        "taskType": task.task_type,
        "question": task.question,
        "truth": answer_json(truth) if truth else None,
        "rationale": known.rationale if known else "",
        "views": list(_views_json(episode.views, truth, None, known, sources)),
        "turns": [_turn_json(turn) for turn in episode.turns],
        "message": episode.message,
    }


def _turn_json(turn: EpisodeTurn) -> dict[str, Any]:
    parts = turn_parts(turn.action)
    return {"message": turn.message, "error": turn.error, "images": turn.images, "parts": parts, "act": _act(turn)}


def _act(turn: EpisodeTurn) -> str:
    """What a turn did: the name of a tool, `answer`, or the code of its error."""
    try:
        parsed = parse_turn(turn.action)
    except TurnError as error:
        return turn.error or error.code
    return turn.error or (parsed.name if isinstance(parsed, ToolCall) else "answer")


def _overlap(truth: Answer, prediction: Answer | None) -> float | None:
    if not isinstance(truth, Grounding) or not isinstance(prediction, Grounding):
        return None
    return iou(truth.box, prediction.box) if truth.image == prediction.image else 0.0


def _views_json(
    views: Sequence[View], truth: Answer | None, prediction: Answer | None, task: Task | None, sources: _Sources
) -> Iterator[dict[str, Any]]:
    first: dict[int, int] = {}
    for number, view in enumerate(views):
        parent = first.setdefault(view.image, number)
        yield {
            "source": sources.number(view.pixels),
            "width": view.size[0],
            "height": view.size[1],
            "truth": view_box(truth, view),
            "prediction": view_box(prediction, view),
            "objects": list(_objects_json(task.objects[view.image - 1], view)) if task else [],
            "scale": view.size[0] / (view.region[2] - view.region[0]),
            # An image that came later shows an earlier one again, or a part of it: `cut` is that part's place there.
            "parent": None if parent == number else parent,
            "cut": None if view.region == views[parent].region else views[parent].from_original(view.region, "pixel"),
        }


def _objects_json(objects: Sequence[ObjectAnnotation], view: View) -> Iterator[dict[str, Any]]:
    for thing in objects:
        box = view_box(Grounding(view.image, thing.label, thing.box), view)
        if box is not None:
            yield {"label": thing.label, "identity": thing.identity, "box": box}


def _sections(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, or its path where stems repeat."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _tasks(text: str) -> str | tuple[str, ...]:
    return text if text in TASK_GROUPS else tuple(name.strip() for name in text.split(",") if name.strip())


_ENV_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "source": {"help": "a copy of a data set, such as odinw:/path; default: rendered tasks"},
    "tasks": {"type": _tasks, "help": "task types, or grounding, or qa; default: those of the id", "metavar": "A,B"},
    "difficulty": {"type": int, "help": "1 to 5; rendered tasks only"},
    "split": {"help": "rendered tasks only; default: train"},
    "world": {"help": "rendered tasks only; default: that of the id"},
}
"""Passed to `gym.make` where they are given."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m mimgenv.viewer", description="Makes one HTML page of episodes and tasks.")
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE.jsonl", help="records; each file is a section")
    add("--env", help="an environment id whose tasks are shown with their truth, as one more section")
    add("--seeds", help="such as 0:40; default: 0:20")
    for option, settings in _ENV_OPTIONS.items():
        add(f"--{option}", **settings)
    add("-o", "--output", type=Path, help="the page; default: the first file, or the id, with .html")
    add("--title", help="default: the name of the first file, or the id")
    return parser


def _previewed(options: argparse.Namespace) -> list[OpenEpisode]:
    given = {name: getattr(options, name) for name in _ENV_OPTIONS if getattr(options, name) is not None}
    if options.env is None:
        alone = [f"--{name}" for name in (*given, *(["seeds"] if options.seeds else []))]
        if alone or not options.files:
            raise ConfigurationError(f"{', '.join(alone) or 'a page without records'} needs --env")
        return []
    unfit = [f"--{name}" for name in ("difficulty", "split", "world") if "source" in given and name in given]
    if unfit:
        raise ConfigurationError(f"{', '.join(unfit)} is for rendered tasks, {options.source} has none")
    return preview(options.env, seed_range(options.seeds or "0:20"), options.env, **given)


def _episodes(options: argparse.Namespace) -> list[ShownEpisode | OpenEpisode]:
    previewed = _previewed(options)
    names = _sections(options.files) if len(options.files) > 1 or options.env else [""]
    played = [e for path, name in zip(options.files, names, strict=True) for e in load_episodes(path, name)]
    return [*played, *previewed]


def _output(options: argparse.Namespace) -> Path:
    if options.files:
        first: Path = options.files[0]
        return first.with_suffix(".html")
    return Path(re.sub(r"[^\w.-]+", "-", options.env) + ".html")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: records and seeds in, page out."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        episodes = _episodes(options)
        output = options.output or _output(options)
        write_page(output, episodes, options.title or (options.files[0].stem if options.files else options.env))
    except (MimgenvError, gym.error.Error, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{output}: {len(episodes)} episode{'s' if len(episodes) != 1 else ''}\n")


if __name__ == "__main__":
    main()
