"""Log-probs of a batch: those of a stock model, for little work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL
from agents.rollout import run_episodes
from agents.sampling import SamplingParameters
from agents.vlm import VLMAgent
from rl.batch import Sample, pack
from rl.masking import action_mask
from rl.policy import token_log_probs

IMAGE = 12


def sample_of(seed: int, trained: int = 4) -> Sample:
    """One image, then text, the last tokens trained on; equal seeds differ in the trained tokens only."""
    picture = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
    ids = (30, IMAGE, 31, 32, *np.random.default_rng([seed, trained]).integers(20, 800, trained).tolist())
    mask = (False,) * 4 + (True,) * trained
    return Sample(ids, mask, (0.0,) * len(ids), (picture,))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_of_what_was_sampled_are_those_it_was_sampled_with(qwen: QwenVL, temperature: float) -> None:
    agent = VLMAgent(qwen.chat, HFSampler(qwen, 3), SamplingParameters(temperature, 12))
    groups, said = [], 0
    for seed in range(2):
        played = run_episodes(agent, "MultiImageTiny-v0", [seed] * 3)
        said += sum(len(turn.action.ids) for trajectory in played for turn in trajectory.turns)
        records = [(qwen.chat.record(trajectory), trajectory) for trajectory in played]
        groups.append([Sample(r.ids, action_mask(r, t), r.logprobs, r.images) for r, t in records])
    batch = pack(groups, qwen)
    with torch.no_grad():
        logprobs = token_log_probs(qwen, batch, temperature)
        other = token_log_probs(qwen, batch, 2 * temperature)
    assert len(logprobs) == said > 100
    torch.testing.assert_close(logprobs, batch.old_logprobs, atol=2e-5, rtol=0)
    assert float((other - batch.old_logprobs).abs().max()) > 0.1


def test_the_vocabulary_is_touched_at_the_trained_tokens_only_and_equal_images_are_encoded_once(
    make_qwen: Callable[..., QwenVL],
) -> None:
    qwen = make_qwen()
    rows: list[int] = []
    images: list[int] = []
    log_probs, features = qwen.log_probs, qwen.model.model.get_image_features

    def counted(hidden: Any, temperature: float) -> Any:
        rows.append(len(hidden))
        return log_probs(hidden, temperature)

    def encoded(pixels: Any, thw: Any, **more: Any) -> Any:
        images.append(len(thw))
        return features(pixels, thw, **more)

    qwen.log_probs = counted  # type: ignore[method-assign]
    qwen.model.model.get_image_features = encoded
    batch = pack([[sample_of(1), sample_of(1, 5)], [sample_of(2)], [sample_of(1)]], qwen)
    assert len(batch.images) == 3
    token_log_probs(qwen, batch)
    assert rows == [4 + 5 + 4 + 4]
    assert images == [2]


def test_a_batch_without_images_needs_none(qwen: QwenVL) -> None:
    sample = Sample((30, 31, 32), (False, False, True), (0.0,) * 3, ())
    with torch.no_grad():
        (value,) = token_log_probs(qwen, pack([[sample]], qwen)).tolist()
    assert -20 < value < 0
