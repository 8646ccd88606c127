"""An environment in which a random policy gets every kind of episode, and what a small run is compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import mimgenv
from agents.qwen_vl import QwenVL
from mimgenv.env import MultiImageEnv
from mimgenv.tasks.prefetch import PrefetchedTasks
from rl.batch import Sample

WHIMS = "Whims-v0"


class Whims(MultiImageEnv):
    """The tiny world, but judged by ids alone: a random policy's rewards differ, and so do its stops and errors.

    Pays the share of even ids in the episode. In training, where no turn is read back, it takes the turns whose first
    id is no multiple of 3, and says that the turns ran out where the last id is a multiple of 4.
    """

    def reset(self, **given: Any) -> Any:
        self.said: list[int] = []
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        ids = [int(index) for index in action]
        self.said += ids
        over = terminated or truncated
        tasks = self.source.source if isinstance(self.source, PrefetchedTasks) else self.source
        if getattr(tasks, "split", None) == "train":
            info["error"] = info["error"] if ids[0] % 3 == 0 else None
            info["stop"] = "turn_limit" if over and ids[-1] % 4 == 0 else info["stop"]
        paid = sum(index % 2 == 0 for index in self.said) / len(self.said) if over else 0.0
        return observation, paid, terminated, truncated, info


gym.register(WHIMS, entry_point=Whims, kwargs=mimgenv.ENVIRONMENTS["MultiImageTiny-v0"])


@pytest.fixture(scope="session")
def whims() -> str:
    """The id of an environment that pays a random policy."""
    return WHIMS


def _stock_log_probs(qwen: QwenVL, stock: Any, sample: Sample) -> Tensor:
    inputs: dict[str, Any] = {}
    counts = iter(())
    if sample.images:
        cut = qwen.patcher
        bounds = {"min_pixels": cut.min_pixels, "max_pixels": cut.max_pixels, "patch_size": cut.patch}
        processor = Qwen2VLImageProcessorPil(image_mean=cut.mean.tolist(), image_std=cut.std.tolist(), **bounds)
        images = processor(images=list(sample.images), return_tensors="pt")
        inputs = {"pixel_values": images["pixel_values"], "image_grid_thw": images["image_grid_thw"]}
        counts = iter((images["image_grid_thw"].prod(-1) // 4).tolist())
    image = qwen.chat.image_id
    ids: list[int] = []
    trained: list[int] = []
    for index, on in zip(sample.ids, sample.mask, strict=True):
        trained += [len(ids)] if on else []
        ids += [index] * next(counts) if index == image else [index]
    full = torch.tensor([ids])
    logits = stock(input_ids=full, mm_token_type_ids=(full == image).int(), **inputs).logits[0]
    logits = logits.index_fill(-1, torch.tensor(sorted(qwen.codec.banned_ids)), float("-inf"))
    where = torch.tensor(trained)
    return logits.log_softmax(-1)[where - 1].gather(1, full[0, where][:, None])[:, 0]


@pytest.fixture(scope="session")
def stock_log_probs() -> Callable[[QwenVL, Any, Sample], Tensor]:
    """Of a sample's trained tokens, from a pass of an untouched model over the sample alone."""
    return _stock_log_probs
