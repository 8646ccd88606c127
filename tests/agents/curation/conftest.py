"""Scripted roles, sets of small images, and a server on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[1] / "chat_server.py"
_SPEC = importlib.util.spec_from_file_location("chat_server", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
chat_server = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(chat_server)


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers /v1/chat/completions by its `reply`."""
    pytest.importorskip("openai")
    with chat_server.serving() as chat:
        chat.Reply, chat.busy = chat_server.Reply, chat_server.busy
        yield chat
