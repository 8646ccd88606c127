"""Shared by all tests: one thread, and a tiny model that sees its images."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, by whichever test needs it first
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@pytest.fixture(scope="session")
def stock(qwen: QwenVL) -> Any:
    """The same weights in an untouched transformers model: nothing sped up, positions and masks of its own."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(qwen.model.config)
    model.load_state_dict(qwen.model.state_dict())
    return model.eval()


@pytest.fixture
def bccd() -> str:
    """A source of photographs, where there is a copy."""
    folder = Path(os.environ.get("MIMGENV_DATA", ""), "odinw", "BCCD", "valid")
    if "MIMGENV_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("MIMGENV_DATA names no folder that holds odinw/BCCD/valid")
    return f"odinw:{folder}"
