"""A tiny model of every family, and the same weights in an untouched model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from agents.qwen_vl import QwenVL

Twins: TypeAlias = "tuple[QwenVL, Any]"


@cache
def _twins(family: str) -> Twins:
    import torch
    from transformers import AutoModelForImageTextToText

    from agents.tiny_model import mergers, tiny_qwen_vl, whisper

    qwen = tiny_qwen_vl(0, family)
    for merger in mergers(qwen.model):
        whisper(merger, 1 / 0.15)  # so that a wrong image is seen in what comes out
    with torch.random.fork_rng():
        stock = AutoModelForImageTextToText.from_config(qwen.model.config)
    stock.load_state_dict(qwen.model.state_dict())
    return qwen, stock.eval()


@pytest.fixture(scope="session")
def twins() -> Callable[[str], Twins]:
    """Gives a tiny model of a family, which no test changes, and its untouched twin."""
    return _twins
