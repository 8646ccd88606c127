"""Who may ask the review page's server, and what its answers may do in a browser.

Knows the headers of HTTP, and nothing of items and verdicts. Every request passes here first, and every answer last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets through what our own page asks, and forbids every answer to be more than it is.

    A foreign `Host` is a name that somebody pointed at this machine (DNS rebinding); a foreign `Origin`, or none where
    something would be written, is another page; `Sec-Fetch-Site` tells the same of images and scripts.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], policy: str) -> None:
        self._app, self._hosts = app, hosts
        self._headers = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
        self._headers.append((b"content-security-policy", policy.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        fault = self._fault(Request(scope)) if scope["type"] == "http" else "only HTTP is spoken here"
        answer = failure(403, fault) if fault else self._app
        await answer(scope, receive, guarded)

    def _fault(self, request: Request) -> str:
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return f"the Host is {hosts}; this server is one of {sorted(self._hosts)}"
        writes = request.method not in ("GET", "HEAD")
        if origins != [f"http://{hosts[0]}"] and (origins or writes):
            return f"the Origin is {origins}; only the page of this server may ask"
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") and request.url.path != "/":
            return f"Sec-Fetch-Site is {site!r}; only the page of this server may ask"
        return ""


def read_page() -> tuple[str, str]:
    """The page, and the policy that lets it run its own script and style and nothing else."""
    text = resources.files("agents.curation").joinpath("assets/review.html").read_text(encoding="utf-8")
    parts = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("script", "style")}
    rules = [f"{tag}-src {' '.join(map(_hash, blocks))}" for tag, blocks in parts.items()]
    rules += ["default-src 'none'", "img-src 'self' data:", "connect-src 'self'"]
    rules += ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return text, "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def ascii_json(value: object, status: int = 200) -> Response:
    """An answer of pure ASCII: a lone surrogate from a model has no other form."""
    return Response(json.dumps(value, ensure_ascii=True), status, media_type="application/json")


def failure(status: int, text: str) -> Response:
    """An answer that says why there is no other."""
    return ascii_json({"error": text}, status)
