"""Packing, for every family of models: a group in one row has the log-probs and the gradients of a row per sample.

Compared with rows of one sample, and with an untouched model of transformers that sees pixels and finds positions and
masks for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents.qwen_vl import QwenVL, digest
from agents.tiny_model import mergers, tiny_qwen_vl, whisper
from mimgenv.types import Image
from rl.batch import Sample, pack
from rl.log_probs import token_log_probs

IMAGE = 12
"""The placeholder of the tiny model's tokenizer."""
SHARING = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
FAMILIES = [*SHARING, "qwen3_5"]


@pytest.fixture(autouse=True)
def short_rows_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches have a pass of their own, as in the long rows of a real model; test_batch.py has dense masks."""
    monkeypatch.setattr("agents.qwen_vl.LONG", 2)


ADAPTED = r".*language_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)"


def fresh(family: str) -> QwenVL:
    """A tiny model that a test may change, whose images are seen in every log-prob."""
    qwen = tiny_qwen_vl(0, family)
    for merger in mergers(qwen.model):
        whisper(merger, 1 / 0.15)
    return qwen


# ---------------------------------------------------------------- samples


def picture(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


def text(rng: np.random.Generator, length: int) -> list[int]:
    """Ids of ordinary tokens."""
    return [int(index) for index in rng.integers(20, 800, length)]


def sample_of(turns: Sequence[tuple[list[int], list[int]]], images: Sequence[Image]) -> Sample:
    """Of turns: what was said to the policy, and what it said."""
    ids = [index for said, own in turns for index in (*said, *own)]
    mask = [on for said, own in turns for on in (*[False] * len(said), *[True] * len(own))]
    return Sample(tuple(ids), tuple(mask), (0.0,) * len(ids), tuple(images))


def zooming_group() -> list[Sample]:
    """Attempts of three turns at one task with two images; each gets two tool images of its own, of its own sizes."""
    rng = np.random.default_rng(7)
    prompt = [*text(rng, 3), IMAGE, *text(rng, 2), IMAGE, *text(rng, 4)]
    shown = (picture(64, 96, 1), picture(32, 32, 2))
    samples = []
    for number in range(3):
        turns = [(prompt, text(rng, 3 + 2 * number))]
        turns += [([*text(rng, 2), IMAGE, *text(rng, 2)], text(rng, 6 - number)) for _ in range(2)]
        tools = [picture(32 * (1 + (number + turn) % 3), 64, 10 * number + turn) for turn in range(2)]
        samples.append(sample_of(turns, (*shown, *tools)))
    return samples


def answering_group() -> list[Sample]:
    """Attempts of one turn, one of them of a single token: a shorter row, which is padded."""
    rng = np.random.default_rng(8)
    prompt = [*text(rng, 5), IMAGE, *text(rng, 6)]
    return [sample_of([(prompt, text(rng, length))], (picture(64, 64, 3),)) for length in (1, 5, 9)]


def lone_group() -> list[Sample]:
    """One attempt without an image."""
    rng = np.random.default_rng(9)
    return [sample_of([(text(rng, 6), text(rng, 4))], ())]


GROUPS = [zooming_group(), answering_group(), lone_group()]
ALL = [sample for group in GROUPS for sample in group]
ALONE = [[sample] for sample in ALL]
WEIGHTS = torch.randn(200, generator=torch.Generator().manual_seed(0))


def log_probs(qwen: QwenVL, groups: Sequence[Sequence[Sample]]) -> Any:
    """Of the trained tokens, sample by sample."""
    return token_log_probs(qwen, pack(groups, qwen))[0]


def one_by_one(qwen: QwenVL) -> Any:
    return torch.cat([log_probs(qwen, [group]) for group in ALONE])


def gradients(logprobs: Any, model: Any) -> dict[str, Any]:
    """Of a weighted sum of log-probs, by the name of the weight."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = (WEIGHTS[: len(logprobs)] * logprobs).sum()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same_gradients(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """A key's bias shifts all scores of a query alike: its gradient is rounding, small beside that of the others."""
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        difference = ours[name] - gradient
        if name.endswith("qkv.bias"):
            gradient, difference = (torch.cat(each.chunk(3)[::2]) for each in (gradient, difference))
        if not name.endswith("k_proj.bias"):
            assert float(gradient.norm()) > 0, name
            assert float(difference.norm()) <= 1e-4 * float(gradient.norm()), name


# ---------------------------------------------------------------- packed equals alone


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_log_probs_of_one_row_per_sample(twins: Callable[[str], Any], family: str) -> None:
    qwen, _ = twins(family)
    with torch.no_grad():
        torch.testing.assert_close(log_probs(qwen, GROUPS), one_by_one(qwen), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_log_probs_of_an_untouched_model(
    twins: Callable[[str], Any], family: str, stock_log_probs: Callable[..., Any]
) -> None:
    qwen, stock = twins(family)
    with torch.no_grad():
        expected = torch.cat([stock_log_probs(qwen, stock, sample) for sample in ALL])
        torch.testing.assert_close(log_probs(qwen, GROUPS), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_gradients_of_an_untouched_model(
    twins: Callable[[str], Any], family: str, stock_log_probs: Callable[..., Any]
) -> None:
    qwen, stock = twins(family)
    theirs = gradients(torch.cat([stock_log_probs(qwen, stock, sample) for sample in ALL]), stock)
    assert_same_gradients(gradients(log_probs(qwen, GROUPS), qwen.model), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_takes_one_row_only_where_the_model_can_share_a_prompt(
    twins: Callable[[str], Any], family: str
) -> None:
    qwen, _ = twins(family)
    rows = len(GROUPS) if family in SHARING else len(ALL)
    assert pack(GROUPS, qwen).ids.shape[0] == rows


@pytest.mark.parametrize("family", SHARING)
def test_a_branch_cannot_see_the_images_of_another(twins: Callable[[str], Any], family: str) -> None:
    """Nor can DeepStack, which adds features to hidden states past the mask of the attention."""
    qwen, _ = twins(family)
    first, second, third = zooming_group()
    other = Sample(second.ids, second.mask, second.logprobs, (*second.images[:2], *[picture(64, 64, 99)] * 2))
    with torch.no_grad():
        before, after = (log_probs(qwen, [[first, middle, third]]) for middle in (second, other))
    samples = pack([[first, second, third]], qwen).samples
    torch.testing.assert_close(after[samples != 1], before[samples != 1], atol=1e-5, rtol=0)
    assert float((after - before)[samples == 1].abs().max()) > 0.01


# ---------------------------------------------------------------- with less memory


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_computes_every_layer_again_and_changes_nothing(family: str) -> None:
    """Layers do so in training mode only."""
    qwen = fresh(family)
    expected = gradients(log_probs(qwen, GROUPS), qwen.model)
    calls: list[str] = []
    for name, layer in [
        ("text", qwen.model.model.language_model.layers[1]),
        ("image", qwen.model.model.visual.blocks[0]),
    ]:
        layer.mlp.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    qwen.model.gradient_checkpointing_enable()
    gradients(log_probs(qwen, GROUPS), qwen.model)
    assert sorted(calls) == ["image", "text"]
    qwen.model.train()
    found = gradients(log_probs(qwen, GROUPS), qwen.model)
    assert sorted(calls) == ["image"] * 3 + ["text"] * 3
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_does_with_a_frozen_vision_tower(family: str) -> None:
    qwen = fresh(family)
    qwen.model.model.visual.requires_grad_(False)
    expected = gradients(log_probs(qwen, GROUPS), qwen.model)
    qwen.model.train()
    qwen.model.gradient_checkpointing_enable()
    assert_same_gradients(gradients(log_probs(qwen, GROUPS), qwen.model), expected)


# ---------------------------------------------------------------- with adapters


def adapted(family: str) -> tuple[QwenVL, Any]:
    """A model with adapters on its language model, away from zero, all else frozen; and what wraps it."""
    peft = pytest.importorskip("peft")
    qwen = fresh(family)
    wrapped = peft.get_peft_model(qwen.model, peft.LoraConfig(r=4, target_modules=ADAPTED))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in qwen.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return qwen, wrapped


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_learn_from_packed_rows_what_they_learn_from_one_row_per_sample(
    family: str, checkpointing: bool
) -> None:
    qwen, _ = adapted(family)
    theirs = gradients(one_by_one(qwen), qwen.model)
    assert theirs and all("lora" in name and "visual" not in name for name in theirs)
    if checkpointing:
        qwen.model.train()
        qwen.model.gradient_checkpointing_enable()
    assert_same_gradients(gradients(log_probs(qwen, GROUPS), qwen.model), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_adapters_a_model_is_what_it_was_and_merged_it_is_what_it_became(
    twins: Callable[[str], Any], family: str
) -> None:
    qwen, wrapped = adapted(family)
    before, _ = twins(family)
    with torch.no_grad():
        learned = log_probs(qwen, GROUPS)
        with wrapped.disable_adapter():
            torch.testing.assert_close(log_probs(qwen, GROUPS), log_probs(before, GROUPS), atol=1e-5, rtol=0)
        assert float((learned - log_probs(before, GROUPS)).abs().max()) > 0.1
        qwen.model = wrapped.merge_and_unload()
        torch.testing.assert_close(log_probs(qwen, GROUPS), learned, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- vision once


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", [False, True])
def test_images_are_encoded_once_over_all_passes_or_once_per_pass_with_gradients(
    family: str, trained: bool, count_encodes: Callable[..., list[int]]
) -> None:
    """Old log-probs, two passes of learning, each followed by a step, and a reference over the same rows."""
    qwen = fresh(family)
    qwen.model.model.visual.requires_grad_(trained)
    learned = [weight for weight in qwen.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learned, 1e-3)
    seen = count_encodes(qwen)
    distinct = len({digest(image) for sample in ALL for image in sample.images})
    with torch.no_grad():
        old = log_probs(qwen, GROUPS)
        log_probs(qwen, GROUPS)
    for _ in range(2):
        log_probs(qwen, GROUPS).sum().backward()
        optimizer.step()
        qwen.weights_changed()
    with torch.no_grad():
        new = log_probs(qwen, GROUPS)
        fresh_eyes = QwenVL(qwen.model, qwen.tokenizer, *settings(qwen), vision_cache_bytes=0)
        assert torch.equal(new, log_probs(fresh_eyes, GROUPS))  # nothing stale was served
    assert float((new - old).abs().max()) > 1e-3
    assert seen[:-1] == ([distinct] * 4 if trained else [distinct])


def settings(qwen: QwenVL) -> tuple[Any, ...]:
    return qwen.patcher.min_pixels, qwen.patcher.max_pixels, qwen.patcher.mean, qwen.patcher.std
