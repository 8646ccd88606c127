"""Shared by all tests: one thread, and a tiny model that sees its images."""

from __future__ import annotations

import copy
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, by whichever test needs it first
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from agents.qwen_vl import QwenVL

# Time says more of the machine than of the code: tests that mean it measure the processor's.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

IMAGE_SHARE = 1 / 0.15
"""Undoes the whisper of a fresh tiny model's images, so that a wrong image is seen in every log-prob."""


def _tiny(seed: int = 0) -> QwenVL:
    import torch

    from agents.tiny_model import tiny_qwen_vl

    torch.set_num_threads(1)
    qwen = tiny_qwen_vl(seed)
    with torch.no_grad():
        qwen.model.model.visual.merger.mlp[2].weight.mul_(IMAGE_SHARE)
    return qwen


@pytest.fixture(scope="session")
def make_qwen() -> Callable[..., QwenVL]:
    """Makes fresh tiny models that a test may change."""
    return _tiny


@pytest.fixture(scope="session")
def qwen() -> QwenVL:
    """A tiny model that no test changes."""
    return _tiny()


def _untouched(qwen: QwenVL) -> Any:
    """The same weights in a model of transformers: nothing sped up, attention, positions and masks of its own."""
    import torch
    from transformers import AutoModelForImageTextToText

    config = copy.deepcopy(qwen.model.config)
    config._attn_implementation = "sdpa"
    assert config.text_config._attn_implementation == config.vision_config._attn_implementation == "sdpa"
    with torch.random.fork_rng():
        model = AutoModelForImageTextToText.from_config(config)
    model.load_state_dict(qwen.model.state_dict())
    return model.eval()


@pytest.fixture(scope="session")
def stock(qwen: QwenVL) -> Any:
    """The untouched twin of `qwen`."""
    return _untouched(qwen)


@cache
def _twins(family: str) -> tuple[QwenVL, Any]:
    from agents.tiny_model import mergers, tiny_qwen_vl, whisper

    qwen = tiny_qwen_vl(0, family)
    for merger in mergers(qwen.model):
        whisper(merger, IMAGE_SHARE)
    return qwen, _untouched(qwen)


@pytest.fixture(scope="session")
def twins() -> Callable[[str], tuple[QwenVL, Any]]:
    """Gives a tiny model of a family, which no test changes, and its untouched twin."""
    return _twins


def _count_encodes(qwen: QwenVL) -> list[int]:
    seen: list[int] = []
    inner = qwen.model.model.get_image_features

    def counted(pixels: Any, thw: Any, **more: Any) -> Any:
        seen.append(len(thw))
        return inner(pixels, thw, **more)

    qwen.model.model.get_image_features = counted
    return seen


@pytest.fixture(scope="session")
def count_encodes() -> Callable[[QwenVL], list[int]]:
    """Gives a list that grows by one number, how many images, with each pass of a model's vision tower."""
    return _count_encodes


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-sync", "--force-color-profile=srgb")


def _lacking(reason: str) -> NoReturn:
    if os.environ.get("MIMGENV_BROWSER") == "required":
        pytest.fail(f"MIMGENV_BROWSER is required: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """Skips, or fails where a browser is required."""
    return _lacking


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _lacking("playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        _lacking(f"none of {', '.join(BROWSERS)} is on the path")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *sandbox])
        yield opened
        opened.close()


@pytest.fixture
def bccd() -> str:
    """A source of photographs, where there is a copy."""
    folder = Path(os.environ.get("MIMGENV_DATA", ""), "odinw", "BCCD", "valid")
    if "MIMGENV_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("MIMGENV_DATA names no folder that holds odinw/BCCD/valid")
    return f"odinw:{folder}"
