"""Packing: a group in one row gives every token the log-prob it has in a row of its own, and the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.attention import dense_mask
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL
from agents.rollout import run_episodes
from agents.tiny_model import PIXEL_BOUNDS
from mimgenv.types import Image
from rl.batch import Batch, Sample, common_prefix, pack
from rl.log_probs import token_log_probs
from rl.sft import sft_sample

IMAGE = 12
"""The placeholder of the tiny model's tokenizer."""
PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=PIXEL_BOUNDS[0], max_pixels=PIXEL_BOUNDS[1])


def picture(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


FIRST, SECOND = picture(56, 84, 1), picture(28, 28, 2)


def text(rng: np.random.Generator, length: int) -> list[int]:
    """Ids of ordinary tokens."""
    return [int(index) for index in rng.integers(20, 800, length)]


def made(turns: Sequence[tuple[list[int], list[int]]], images: Sequence[Image], seed: int = 0) -> Sample:
    """A sample of turns: what was said to the policy, and what it said."""
    rng = np.random.default_rng(seed)
    ids = [index for said, own in turns for index in (*said, *own)]
    mask = [on for said, own in turns for on in (*[False] * len(said), *[True] * len(own))]
    logprobs = [-float(rng.random()) if on else 0.0 for on in mask]
    return Sample(tuple(ids), tuple(mask), tuple(logprobs), tuple(images), float(rng.normal()))


def zooming_group(count: int = 4) -> list[Sample]:
    """Attempts of two turns at one task: one prompt with two images, then a tool image of each attempt's own."""
    rng = np.random.default_rng(7)
    prompt = [*text(rng, 3), IMAGE, *text(rng, 2), IMAGE, *text(rng, 4)]
    samples = []
    for number in range(count):
        zoomed = picture(28 * (1 + number % 3), 56, 10 + number)
        reply = [*text(rng, 2), IMAGE, *text(rng, 2)]
        turns = [(prompt, text(rng, 3 + 2 * number)), (reply, text(rng, 7 - number))]
        samples.append(made(turns, (FIRST, SECOND, zoomed), number))
    return samples


def answering_group() -> list[Sample]:
    """Attempts of one turn at another task; one of them is a single token."""
    rng = np.random.default_rng(8)
    prompt = [*text(rng, 5), IMAGE, *text(rng, 9)]
    return [made([(prompt, text(rng, length))], (FIRST,), length) for length in (1, 6, 12)]


def lone_sample() -> list[Sample]:
    rng = np.random.default_rng(9)
    return [made([(text(rng, 6), text(rng, 4))], ())]


GROUPS = [zooming_group(), answering_group(), lone_sample()]
ALL = [sample for group in GROUPS for sample in group]


def by_sample(batch: Batch, values: Any) -> list[list[float]]:
    """Values of the trained tokens, by sample."""
    return [values[batch.samples == number].tolist() for number in range(int(batch.samples.max()) + 1)]


def log_probs(qwen: QwenVL, groups: Sequence[Sequence[Sample]]) -> list[list[float]]:
    batch = pack(groups, qwen)
    with torch.no_grad():
        return by_sample(batch, token_log_probs(qwen, batch)[0])


def assert_close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], most: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(list(theirs), abs=most, rel=0)


# ---------------------------------------------------------------- packed equals alone


@pytest.mark.parametrize("group", GROUPS, ids=["zooming", "answering", "lone"])
def test_a_packed_group_gives_the_log_probs_of_one_row_per_sample(qwen: QwenVL, group: list[Sample]) -> None:
    assert_close(log_probs(qwen, [group]), log_probs(qwen, [[sample] for sample in group]), 1e-5)


def test_rows_of_different_lengths_do_too(qwen: QwenVL) -> None:
    lengths = (pack(GROUPS, qwen).segments >= 0).sum(1).tolist()
    assert len(set(lengths)) == 3
    alone = [log_probs(qwen, [[sample]])[0] for sample in ALL]
    assert_close(log_probs(qwen, GROUPS), alone, 1e-5)
    assert_close(log_probs(qwen, GROUPS[::-1]), [log_probs(qwen, [[s]])[0] for g in GROUPS[::-1] for s in g], 1e-5)


def test_a_packed_group_gives_the_log_probs_of_an_untouched_model(
    qwen: QwenVL, stock: Any, stock_log_probs: Callable[..., Tensor]
) -> None:
    expected = [stock_log_probs(qwen, stock, sample).tolist() for sample in ALL]
    assert_close(log_probs(qwen, GROUPS), expected, 2e-5)


def test_episodes_that_were_really_played_do_too(
    qwen: QwenVL, stock: Any, stock_log_probs: Callable[..., Tensor]
) -> None:
    agent = OracleAgent(zoom=1.0, think="label", grid=7)
    played = run_episodes(agent, "MultiImageTinyZoom-v0", [0, 0, 1], codec=qwen.codec)
    samples = [sft_sample(qwen.chat, trajectory) for trajectory in played]
    samples[1] = replace(samples[1], mask=tuple(on and at > 30 for at, on in enumerate(samples[1].mask)))
    expected = [stock_log_probs(qwen, stock, sample).tolist() for sample in samples]
    assert_close(log_probs(qwen, [samples[:2], samples[2:]]), expected, 2e-5)


def test_a_packed_group_gives_the_gradients_of_one_row_per_sample(qwen: QwenVL) -> None:
    weights = torch.randn(200, generator=torch.Generator().manual_seed(0))

    def gradients(batches: Sequence[Sequence[Sequence[Sample]]]) -> list[Any]:
        logprobs = torch.cat([token_log_probs(qwen, pack(groups, qwen))[0] for groups in batches])
        loss = (weights[: len(logprobs)] * logprobs).sum()
        return list(torch.autograd.grad(loss, list(qwen.model.parameters())))

    packed = gradients([GROUPS])
    alone = gradients([[[sample]] for sample in ALL])
    for ours, theirs in zip(packed, alone, strict=True):
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())


def test_a_branch_cannot_see_another_branch(qwen: QwenVL) -> None:
    group = zooming_group()
    before = log_probs(qwen, [group])
    changed = replace(
        group[1],
        ids=tuple(820 - index if on else index for index, on in zip(group[1].ids, group[1].mask, strict=True)),
        images=(FIRST, SECOND, picture(56, 56, 99)),
    )
    after = log_probs(qwen, [[group[0], changed, *group[2:]]])
    assert_close([after[0], *after[2:]], [before[0], *before[2:]], 1e-6)
    assert max(abs(a - b) for a, b in zip(after[1], before[1], strict=True)) > 0.1


def test_every_branch_sees_the_prefix(qwen: QwenVL) -> None:
    group = zooming_group()
    before = log_probs(qwen, [group])
    other = [replace(sample, images=(picture(56, 84, 50), *sample.images[1:])) for sample in group]
    for ours, theirs in zip(log_probs(qwen, [other]), before, strict=True):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-3


def test_a_masked_token_is_read_but_not_trained_on(qwen: QwenVL) -> None:
    """Its own log-prob is nowhere in the batch: only the tokens after it change when it changes."""
    (sample,) = lone_sample()
    first, *rest = [index for index, on in enumerate(sample.mask) if on]
    masked = replace(sample, mask=tuple(index in rest for index in range(len(sample.ids))))
    batch = pack([[masked]], qwen)
    assert batch.targets.tolist() == [sample.ids[index] for index in rest]
    assert log_probs(qwen, [[masked]])[0] == pytest.approx(log_probs(qwen, [[sample]])[0][1:], abs=1e-6)
    last = replace(sample, mask=tuple(index == first for index in range(len(sample.ids))))
    swapped = replace(last, ids=tuple(777 if index in rest else own for index, own in enumerate(last.ids)))
    assert log_probs(qwen, [[swapped]]) == log_probs(qwen, [[last]])


def test_a_shared_prefix_is_computed_once_and_its_images_are_held_once(qwen: QwenVL) -> None:
    group = zooming_group()
    batch = pack([group], qwen)
    prefix = int((batch.segments == 0).sum())
    alone = [pack([[sample]], qwen).ids.shape[1] for sample in group]
    assert batch.ids.shape == (1, sum(alone) - 3 * prefix)
    assert prefix == 9 + 6 + 1  # the texts of the prompt, and its images of 2x3 tokens and of 1
    assert len(batch.images) == 2 + 4
    assert [len(pack([[sample]], qwen).images) for sample in group] == [3] * 4


# ---------------------------------------------------------------- what stands where


def test_the_fields_of_a_batch_by_hand(qwen: QwenVL) -> None:
    one = Sample((50, IMAGE, 51, 60, 61), (False, False, False, True, True), (0, 0, 0, -1.0, -2.0), (SECOND,), 0.5)
    two = Sample((50, IMAGE, 51, 70), (False, False, False, True), (0, 0, 0, -3.0), (SECOND,), -0.25)
    longer = Sample((50, 52, 53, 54, 55, 56, 80), (False,) * 6 + (True,), (0,) * 6 + (-4.0,), (), 2.0)
    batch = pack([[one, two], [longer]], qwen)
    assert batch.ids.tolist() == [[50, IMAGE, 51, 60, 61, 70, 0], [50, 52, 53, 54, 55, 56, 80]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 0, 0, 1]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4, 3, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert batch.sources.tolist() == [2, 3, 2, 12]
    assert batch.targets.tolist() == [60, 61, 70, 80]
    assert batch.sampled.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert batch.advantages.tolist() == [0.5, 0.5, -0.25, 2.0]
    assert batch.samples.tolist() == [0, 0, 1, 2]
    assert batch.turns.tolist() == [0, 0, 1, 2]
    assert batch.legal is None
    assert len(batch.images) == 1


def test_the_turns_of_a_batch_are_numbered_through(qwen: QwenVL) -> None:
    turns = pack([zooming_group(2), answering_group()], qwen).turns.tolist()
    lengths = [3, 7, 5, 6, 1, 6, 12]  # two turns of each that zoomed, one of each that answered
    assert turns == [number for number, length in enumerate(lengths) for _ in range(length)]


def test_legal_ids_stand_beside_their_tokens_and_where_sampling_was_free_all_are_legal(qwen: QwenVL) -> None:
    width = -(-qwen.codec.vocab_size // 8)
    bits = np.arange(2 * width, dtype=np.uint8).reshape(2, width)
    one = Sample((50, 51, 60, 52, 61), (False, False, True, False, True), (0,) * 5, (), legal=bits)
    two = Sample((50, 51, 70), (False, False, True), (0,) * 3, ())
    legal = pack([[two, one]], qwen).legal
    assert legal is not None
    assert legal.tolist() == [[255] * width, *bits.tolist()]


def test_a_row_of_legal_ids_is_needed_for_each_trained_id() -> None:
    with pytest.raises(ValueError, match="2 trained ids, 1 rows of legal ids"):
        Sample((1, 2, 3), (False, True, True), (0.0,) * 3, (), legal=np.zeros((1, 4), np.uint8))


def test_a_token_looks_at_its_prefix_and_its_own_branch_up_to_itself(qwen: QwenVL) -> None:
    one = Sample((50, 51, 60, 61), (False, False, True, True), (0,) * 4, ())
    two = Sample((50, 51, 70), (False, False, True), (0,) * 3, ())
    mask = dense_mask(pack([[one, two]], qwen).segments)[0, 0]
    rows = ["".join("x" if on else "." for on in row) for row in mask.tolist()]
    assert rows == ["x....", "xx...", "xxx..", "xxxx.", "xx..x"]


def test_padding_is_looked_at_by_padding_only(qwen: QwenVL) -> None:
    mask = dense_mask(pack(GROUPS, qwen).segments)[:, 0]
    padding = pack(GROUPS, qwen).segments < 0
    assert int(padding.sum()) > 0
    assert not bool((mask & padding[:, None, :] & ~padding[:, :, None]).any())
    assert bool(mask.any(-1).all())  # no row of the attention is empty


def test_a_batch_moves_to_a_device_whole(qwen: QwenVL) -> None:
    moved = pack(GROUPS, qwen).to(torch.device("meta"))
    tensors = [moved.ids, moved.positions, moved.segments, moved.sources, moved.targets]
    tensors += [moved.sampled, moved.advantages, moved.samples, moved.turns]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(moved.images) == 7


# ---------------------------------------------------------------- the common prefix


def sample_of(ids: Sequence[int], trained: int, images: Sequence[Image] = ()) -> Sample:
    """Trained from index `trained` on."""
    mask = tuple(index >= trained for index in range(len(ids)))
    return Sample(tuple(ids), mask, (0.0,) * len(ids), tuple(images))


def test_the_common_prefix_ends_where_ids_differ() -> None:
    assert common_prefix([sample_of([1, 2, 3, 4, 5], 4), sample_of([1, 2, 9, 4, 5], 4)], IMAGE) == 2
    assert common_prefix([sample_of([1, 2, 3], 2), sample_of([7, 2, 3], 2)], IMAGE) == 0


def test_the_common_prefix_ends_before_an_image_that_differs() -> None:
    ids = [1, IMAGE, 2, IMAGE, 3, 4]
    same = [sample_of(ids, 5, (FIRST, SECOND)), sample_of(ids, 5, (FIRST.copy(), SECOND.copy()))]
    assert common_prefix(same, IMAGE) == 5
    assert common_prefix([same[0], sample_of(ids, 5, (FIRST, picture(28, 28, 3)))], IMAGE) == 3
    assert common_prefix([same[0], sample_of(ids, 5, (picture(56, 84, 3), SECOND))], IMAGE) == 1


def test_the_common_prefix_ends_before_the_first_trained_token_of_any_sample() -> None:
    ids = [1, 2, 3, 4, 5, 6]
    assert common_prefix([sample_of(ids, 5), sample_of(ids, 3)], IMAGE) == 3
    assert common_prefix([sample_of(ids, 4)], IMAGE) == 4


def test_one_sample_has_all_before_its_first_trained_token_in_common_with_itself() -> None:
    assert common_prefix([sample_of([1, IMAGE, 2, 3, 4], 3, (FIRST,))], IMAGE) == 3


def test_a_sample_that_is_not_trained_on_leaves_at_least_its_last_token_to_its_branch(qwen: QwenVL) -> None:
    ids = [30, 31, 32, 33]
    assert common_prefix([sample_of(ids, 9), sample_of(ids, 9)], IMAGE) == 3
    batch = pack([[sample_of(ids, 9), sample_of(ids, 3)]], qwen)
    assert batch.targets.tolist() == [33]
    assert batch.samples.tolist() == [1]


def test_a_longer_sample_may_go_on_where_a_shorter_one_ends(qwen: QwenVL) -> None:
    short, long = sample_of([30, 31, 32], 2), sample_of([30, 31, 32, 33, 34], 2)
    assert common_prefix([short, long], IMAGE) == 2
    assert_close(log_probs(qwen, [[short, long]]), [log_probs(qwen, [[s]])[0] for s in (short, long)], 1e-5)


@pytest.mark.parametrize("differ", ["ids", "image"])
def test_samples_with_nothing_in_common_can_be_packed_too(qwen: QwenVL, differ: str) -> None:
    rng = np.random.default_rng(1)
    begins = ([[40], [41]], [[IMAGE], [IMAGE]])[differ == "image"]
    images = ([(), ()], [(FIRST,), (SECOND,)])[differ == "image"]
    group = [made([([*begin, 50, 51], text(rng, 3))], pair) for begin, pair in zip(begins, images, strict=True)]
    assert common_prefix(group, IMAGE) == 0
    assert_close(log_probs(qwen, [group]), [log_probs(qwen, [[sample]])[0] for sample in group], 1e-5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("mask", "logprobs"), [((False,), (0.0, 0.0)), ((False, True), (0.0,))])
def test_a_sample_refuses_lists_of_different_lengths(mask: tuple[bool, ...], logprobs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"2 ids, {len(mask)} mask flags, {len(logprobs)} log-probs"):
        Sample((1, 2), mask, logprobs, ())


def test_the_first_token_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="nothing before it"):
        Sample((1, 2), (True, True), (0.0, 0.0), ())


@pytest.mark.parametrize("images", [(), (FIRST, SECOND)])
def test_placeholders_and_images_are_counted(qwen: QwenVL, images: tuple[Image, ...]) -> None:
    with pytest.raises(ValueError, match=f"1 image placeholders, {len(images)} images"):
        pack([[sample_of([1, IMAGE, 2], 2, images)]], qwen)
