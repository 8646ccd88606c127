"""A real server on this machine that speaks /v1/chat/completions, as well or as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the server sends; a text becomes a chat completion."""

    text: str = ""
    status: int = 200
    body: bytes | None = None
    delay: float = 0.0
    headers: Mapping[str, str] = {}

    def bytes(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": "SECRET said by the server"}}).encode()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.text}}
        whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return json.dumps(whole).encode()


def busy(status: int = 429) -> Reply:
    """Try again in a moment."""
    return Reply(status=status, headers={"retry-after-ms": "1"})


class ChatServer:
    """Answers by `reply(body, number)`; keeps what it was asked, with headers and times."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda body, number: Reply("hello")
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def serving() -> Iterator[ChatServer]:
    """A server that runs while the test does."""
    chat = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with chat.lock:
                number = len(chat.bodies)
                chat.bodies.append(body)
                chat.headers.append({key.lower(): value for key, value in self.headers.items()})
                chat.times.append(time.monotonic())
            found = self.path == "/v1/chat/completions"
            reply = chat.reply(body, number) if found else Reply(status=404)
            time.sleep(reply.delay)
            data = reply.bytes()
            try:
                self.send_response(reply.status)
                for key, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
