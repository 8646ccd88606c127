"""Models behind an OpenAI-compatible server: one client for whoever asks, and an agent that plays through it.

Owns the wire: messages with images as data URLs, retries, the rate, time limits, and what a failed request means. Knows
nothing of tasks. Needs `pip install mimgenv[curation]`. The key is read from the environment, and is neither kept nor
written anywhere here: no error message repeats what a server said.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast
from urllib.parse import urlsplit

import numpy as np
import PIL.Image

from agents.types import Action, History, Message
from mimgenv.codec import Codec, default_codec
from mimgenv.errors import ConfigurationError, MimgenvError
from mimgenv.types import Image

KEY_VARIABLE: Final = "OPENAI_API_KEY"
MARKER: Final = "<image>"

ChatMessage: TypeAlias = dict[str, Any]

_MODEL_AT: Final = re.compile(r"(?P<model>[^@\s]+)@(?P<url>https?://\S+)")
_HOPELESS: Final = (401, 403, 404)
"""HTTP codes that asking again, or asking something else, does not change."""


class EndpointError(MimgenvError):
    """A server that gave no answer to a request, after all retries.

    Attributes:
        hopeless: Whether no other request will fare better: the key or the name of the model is wrong.
    """

    def __init__(self, message: str, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How an endpoint is asked.

    Attributes:
        model: As the server names it.
        base_url: Such as `http://127.0.0.1:8000/v1`.
        temperature: Of sampling.
        max_tokens: Longest answer.
        timeout: Seconds until a request counts as failed.
        retries: How often a request is sent again after a 408, 409, 429, 5xx, a time-out or a lost connection. Waits
            double from half a second to eight, with jitter; what the server asks for (`Retry-After`) goes first.
        per_minute: Most requests a minute, retries included; 0 for no limit.

    Raises:
        ConfigurationError: If the address is not one, or holds a name or password; or a number is out of range.
    """

    model: str
    base_url: str
    temperature: float = 0.7
    max_tokens: int = 1024
    timeout: float = 120.0
    retries: int = 5
    per_minute: int = 0

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password or url.query:
            raise ConfigurationError("an endpoint is http(s)://host:port/path, without a password or a query")
        if self.max_tokens < 1 or self.timeout <= 0 or min(self.retries, self.per_minute) < 0 or self.temperature < 0:
            numbers = (self.max_tokens, self.timeout, self.retries, self.per_minute, self.temperature)
            raise ConfigurationError(f"max_tokens, timeout, retries, per_minute, temperature {numbers} cannot work")

    @classmethod
    def parse(cls, text: str, **settings: Any) -> EndpointSettings:
        """Reads `MODEL@http://host:port/v1`.

        Raises:
            ConfigurationError: If it is of another form.
        """
        match = _MODEL_AT.fullmatch(text)
        if match is None:
            raise ConfigurationError("an endpoint is named MODEL@http://host:port/v1")
        return cls(match["model"], match["url"].rstrip("/"), **settings)


class Pace:
    """Lets through so many a minute, evenly, whichever threads ask.

    Args:
        per_minute: Most; 0 for no limit.
        now: A clock that only goes forward, in seconds.
        sleep: Waits for seconds.
    """

    def __init__(
        self, per_minute: int, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._now, self._sleep = now, sleep
        self._lock, self._next = threading.Lock(), -float("inf")

    def wait(self, _: object = None) -> None:
        """Returns when it is the caller's turn."""
        with self._lock:
            turn = max(self._now(), self._next)
            self._next = turn + self._gap
        if turn > self._now():
            self._sleep(turn - self._now())


class Endpoint:
    """A model behind a server. Threads may share it.

    Args:
        settings: Where it is and how it is asked. The key is `OPENAI_API_KEY` of the environment, if it is set.
        pace: To be shared by endpoints of one server; None for one of its own.

    Raises:
        ConfigurationError: If the package `openai` is missing.
    """

    def __init__(self, settings: EndpointSettings, pace: Pace | None = None) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigurationError("endpoints need the package openai: pip install mimgenv[curation]") from error
        self.settings = settings
        # As a hook of each request it also counts those that the client sends again.
        hooks = {"request": [(pace or Pace(settings.per_minute)).wait]}
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks, base_url=settings.base_url),
        )

    def ask(self, messages: Sequence[ChatMessage], seed: int | None = None) -> str:
        """The text of the model's answer; empty where it has none.

        Args:
            messages: As `user_message` makes them, and `{"role": "assistant", "content": text}`.
            seed: Of sampling, for servers that take one.

        Raises:
            EndpointError: If the server gave no answer.
        """
        s = self.settings
        given: dict[str, Any] = {} if seed is None else {"seed": seed}
        try:
            answer = self._client.chat.completions.create(
                model=s.model, messages=cast(Any, messages), temperature=s.temperature, max_tokens=s.max_tokens, **given
            )
            text = answer.choices[0].message.content
        except self._openai.APIStatusError as error:
            hopeless = error.status_code in _HOPELESS
            raise EndpointError(f"{s.model} at {s.base_url}: HTTP {error.status_code}", hopeless) from None
        except self._openai.APITimeoutError:
            raise EndpointError(f"{s.model} at {s.base_url}: no answer within {s.timeout} s") from None
        except self._openai.OpenAIError as error:
            raise EndpointError(f"{s.model} at {s.base_url}: {type(error).__name__}") from None
        except (AttributeError, IndexError, TypeError, ValueError, json.JSONDecodeError):
            raise EndpointError(f"{s.model} at {s.base_url}: what came back is no chat completion") from None
        return text if isinstance(text, str) else ""


def data_url(pixels: Image) -> str:
    """An image, (H, W, 3) uint8, as PNG in a data URL."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def user_message(text: str, images: Sequence[Image]) -> ChatMessage:
    """A message of the user: each `<image>` marker in the text becomes an image, in order.

    Raises:
        ValueError: If the numbers of markers and images differ.
    """
    pieces = text.split(MARKER)
    if len(pieces) - 1 != len(images):
        raise ValueError(f"{len(pieces) - 1} image markers, {len(images)} images")
    content: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
    for image, piece in zip(images, pieces[1:], strict=True):
        content.append({"type": "image_url", "image_url": {"url": data_url(image)}})
        content += [{"type": "text", "text": piece}] if piece else []
    return {"role": "user", "content": content}


class APIAgent:
    """Plays through an endpoint: a turn is the text that the model wrote.

    Args:
        endpoint: Asked once a turn.
        codec: The environment's: it turns the agent's own earlier turns back into text.
        parallel: Most requests under way at a time.

    Attributes:
        seeds: Draws the seed of each request, in the order of the histories; None, as it is made: none is sent.
        on_error: Called from several threads with an error that is not hopeless. The turn is then empty, and so are
            all later ones of that episode: it is not asked about again. None, as it is made: such an error is raised.
    """

    def __init__(self, endpoint: Endpoint, codec: Codec | None = None, parallel: int = 8) -> None:
        self.endpoint, self.parallel = endpoint, parallel
        self.seeds: np.random.Generator | None = None
        self.on_error: Callable[[EndpointError], None] | None = None
        self._codec = codec or default_codec()

    def act(self, histories: Sequence[History]) -> list[Action | str]:
        """One answer per history.

        Raises:
            EndpointError: If the server gave none to one of them, and it is hopeless or there is no `on_error`.
        """
        count = len(histories)
        seeds = [None] * count if self.seeds is None else self.seeds.integers(2**31, size=count).tolist()
        with ThreadPoolExecutor(max(1, min(self.parallel, count))) as pool:
            return list(pool.map(self._answer, histories, seeds))

    def _answer(self, history: History, seed: int | None) -> str:
        if self.on_error is None:
            return self.endpoint.ask(self._messages(history), seed)
        if not all(self._text(turn.action) for turn in history.turns):
            return ""
        try:
            return self.endpoint.ask(self._messages(history), seed)
        except EndpointError as error:
            if error.hopeless:
                raise
            self.on_error(error)
            return ""

    def _messages(self, history: History) -> list[ChatMessage]:
        said: list[ChatMessage] = []
        for turn in history.turns:
            said += [_shown(turn.message), {"role": "assistant", "content": self._text(turn.action)}]
        return [*said, _shown(history.message)]

    def _text(self, action: Action) -> str:
        ids = action.ids[:-1] if action.ids and action.ids[-1] in self._codec.end_ids else action.ids
        return self._codec.decode(ids)


def _shown(message: Message) -> ChatMessage:
    return user_message(message.text, message.images)
