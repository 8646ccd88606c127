"""A local web page on which a person accepts, rejects or edits the items of a curated set, with the keyboard.

    python -m agents.curation.review data/curated.jsonl --reviewer NAME --port 8000
    python -m agents.curation.review data/curated.jsonl --apply

Owns the command, the requests and who may make them; what a verdict does is in review_journal.py, the page in
assets/review.html. Each verdict lies in the journal before the page hears that it is saved; the set itself is written
when the server stops, or by `--apply`.

Questions and answers come from models, image names from a file, and requests from anything that runs in a browser. So
the server listens on this machine alone, answers only to its own name and its own page, sends text as JSON and never as
markup, takes image numbers and no paths, and forbids the page everything but its own script, style and images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import PIL.Image

from agents.curation.review_journal import ReviewedSet, StaleError, Verdict
from mimgenv.datasets.coco import FORMATS
from mimgenv.datasets.curated import Item, image_path, item_json
from mimgenv.errors import DatasetError, MimgenvError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp

    from agents.curation.review_guard import Guard, ascii_json, failure, read_page
except ImportError as error:
    raise ImportError(f"{error}; for the review page: pip install 'mimgenv[curation]'") from error

ADDRESS: Final = "127.0.0.1"
MAX_BODY: Final = 16 * 1024 * 1024
"""Bytes of a request: a megabyte of text is six as JSON escapes, and deserves to hear what is wrong with it."""
EXCERPT: Final = 160
"""Characters of a question in the list."""

_STATUS: Final[Sequence[tuple[type[Exception], int]]] = (
    (StaleError, 409),
    (ValueError, 422),
    (TypeError, 422),
    (OverflowError, 422),
    (RecursionError, 422),
    (OSError, 507),
)
_BODY: Final[Mapping[str, tuple[type, ...]]] = {
    "id": (str,),
    "revision": (int,),
    "act": (str,),
    "note": (str,),
    "edit": (dict, type(None)),
}

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# What is asked


def make_app(reviewed: ReviewedSet, port: int) -> ASGIApp:
    """The review page as an ASGI application; it writes the set when it is shut down.

    Args:
        reviewed: The set, which the application closes in the end.
        port: Where browsers reach it; requests to other names are refused.
    """
    page, policy = read_page()

    async def show(request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def overview(request: Request) -> Response:
        return ascii_json(_overview(reviewed))

    async def item(request: Request) -> Response:
        return ascii_json(_details(reviewed, _item(reviewed, request)))

    async def image(request: Request) -> Response:
        return _image(reviewed, _item(reviewed, request), request.path_params["image"])

    async def decide(request: Request) -> Response:
        verdict = _decide(reviewed, _body(await _read(request)))
        return ascii_json({"index": list(reviewed.items).index(verdict.after.id), **_news(reviewed, verdict.after)})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        _finish(reviewed)

    routes: list[tuple[str, str, Endpoint]] = [
        ("/", "GET", show),
        ("/api/set", "GET", overview),
        ("/api/items/{index:int}", "GET", item),
        ("/api/verdicts", "POST", decide),
        ("/images/{index:int}/{image:int}", "GET", image),
    ]
    names = frozenset({f"{ADDRESS}:{port}", f"localhost:{port}"})
    answering = [Route(path, _answering(endpoint), methods=[method]) for path, method, endpoint in routes]
    return Guard(Starlette(routes=answering, lifespan=lifespan), names, policy)


def _answering(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose faults are answers."""

    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _Refused as refused:
            return failure(refused.status, str(refused))
        except tuple(kind for kind, _ in _STATUS) as error:
            return failure(next(status for kind, status in _STATUS if isinstance(error, kind)), str(error))

    return answering


async def _read(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _Refused(415, "a verdict is sent as application/json")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise _Refused(413, f"a verdict has at most {MAX_BODY} bytes")
    return bytes(data)


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"the verdict is no JSON ({error})") from error
    if not isinstance(body, dict) or body.keys() != _BODY.keys():
        raise _Refused(400, f"a verdict is an object with the keys {list(_BODY)}")
    for key, kinds in _BODY.items():
        if type(body[key]) not in kinds:
            raise _Refused(400, f"{key} must be one of {[kind.__name__ for kind in kinds]}")
    return body


def _decide(reviewed: ReviewedSet, body: Mapping[str, Any]) -> Verdict:
    if body["id"] not in reviewed.items:
        raise _Refused(404, f"there is no item {body['id'][:100]!r}")
    return reviewed.decide(body["id"], body["revision"], body["act"], body["note"], body["edit"])


def _item(reviewed: ReviewedSet, request: Request) -> Item:
    items = list(reviewed.items.values())
    index: int = request.path_params["index"]
    if index >= len(items):
        raise _Refused(404, f"there is no item {index}, the set has {len(items)}")
    return items[index]


# What is answered


def _overview(reviewed: ReviewedSet) -> dict[str, Any]:
    rows = [_row(reviewed, item) for item in reviewed.items.values()]
    names = {"name": reviewed.path.name, "reviewer": reviewed.reviewer, "outdated": len(reviewed.outdated)}
    return {**names, "rows": rows, "undo": _undo(reviewed)}


def _row(reviewed: ReviewedSet, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "taskType": item.task_type,
        "question": item.question[:EXCERPT],
        "images": len(item.images),
        "verdict": item.review and item.review.verdict,
        "revision": len(reviewed.history[item.id]),
    }


def _undo(reviewed: ReviewedSet) -> dict[str, Any] | None:
    last = reviewed.next_undo
    return {"id": last.after.id, "revision": len(reviewed.history[last.after.id])} if last else None


def _news(reviewed: ReviewedSet, item: Item) -> dict[str, Any]:
    return {"row": _row(reviewed, item), "undo": _undo(reviewed)}


def _details(reviewed: ReviewedSet, item: Item) -> dict[str, Any]:
    history = [
        {"act": verdict.act, "reviewer": verdict.reviewer, "at": verdict.at} for verdict in reviewed.history[item.id]
    ]
    sizes = [_open(reviewed, name).size for name in item.images]
    return {"item": item_json(item), "sizes": sizes, "history": history, **_news(reviewed, item)}


def _open(reviewed: ReviewedSet, name: str) -> PIL.Image.Image:
    with PIL.Image.open(image_path(reviewed.path.parent, name), formats=FORMATS) as image:
        return image  # closed: its size and format were read with its head


def _image(reviewed: ReviewedSet, item: Item, number: int) -> Response:
    if not 1 <= number <= len(item.images):
        raise _Refused(404, f"there is no image {number}, the item has {len(item.images)}")
    name = item.images[number - 1]
    try:
        kind = PIL.Image.MIME[str(_open(reviewed, name).format)]
        return Response(image_path(reviewed.path.parent, name).read_bytes(), media_type=kind)
    except (ValueError, OSError) as error:  # it was there when the set was read
        raise _Refused(404, str(error)) from error


# The command


def _finish(reviewed: ReviewedSet) -> None:
    try:
        count = reviewed.apply()
        sys.stdout.write(f"{reviewed.path}: {count} items written\n")
    except (MimgenvError, OSError) as error:
        sys.stderr.write(f"{error}\nThe set is as it was; every verdict is in its journal: --apply writes it later.\n")
    finally:
        reviewed.close()


def serve(reviewed: ReviewedSet, port: int) -> None:
    """Serves the page until SIGINT or SIGTERM, then writes the set.

    Raises:
        OSError: If the port is taken.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen()  # a browser may call as soon as it reads the address below
        port = listening.getsockname()[1]
        app = make_app(reviewed, port)
        sys.stdout.write(f"{reviewed.path}: {len(reviewed.items)} items; open http://{ADDRESS}:{port}/\n")
        sys.stdout.flush()
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _port(text: str) -> int:
    if not text.isdecimal() or (int(text) and not 1024 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1024 to 65535, nor 0 for any free one")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m agents.curation.review", description="Reviews a curated set on a local page.")
    add = parser.add_argument
    add("file", metavar="FILE.jsonl", help="the curated set; the verdicts go to FILE.jsonl.review.jsonl")
    add("--reviewer", help="who reviews; needed unless --apply is given")
    add("--port", type=_port, default=8000, help="on this machine alone; default: %(default)s")
    add("--apply", action="store_true", help="write the verdicts of the journal into the set, and serve nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: a page to review with, or the verdicts written."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.apply and not (options.reviewer or "").strip():
        parser.error("--reviewer NAME is needed: a verdict says who gave it")
    try:
        reviewed = ReviewedSet(options.file, options.reviewer or "nobody")
        _finish(reviewed) if options.apply else serve(reviewed, options.port)
    except (DatasetError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
