"""The guards: each fires on what it is for, names it, and lets a healthy batch of a tiny model pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL, load_qwen_vl
from agents.rollout import run_episodes
from agents.tiny_model import tiny_qwen_vl
from mimgenv.codec import Codec, default_codec
from rl import guards
from rl.batch import Batch, Sample, pack
from rl.guards import (
    KINDS,
    LEAST_SIGHT,
    MOST_DRIFT,
    MOST_IDLE,
    TrainingStopped,
    batch_kinds,
    check_busy,
    check_counts,
    check_drift,
    check_finite,
    check_sight,
    load_batches,
    token_kinds,
)
from rl.log_probs import token_log_probs
from rl.sft import sft_sample

THINKING = "<think>red one</think>\n<answer>B</answer>"
CALLING = '<think>look</think><tool_call>{"name": "zoom"}</tool_call>'


@pytest.fixture(scope="module")
def tiny() -> QwenVL:
    """The shipped model."""
    return load_qwen_vl("tiny")


@pytest.fixture(scope="module")
def healthy(tiny: QwenVL) -> Batch:
    """Episodes of an oracle that zooms in every other one, two attempts to a row."""
    trajectories = run_episodes(OracleAgent(zoom=0.5), "MultiImageTiny-v0", [0, 0, 1, 1, 2, 2], codec=tiny.codec)
    samples = [sft_sample(tiny.chat, trajectory) for trajectory in trajectories]
    assert len({len(sample.images) for sample in samples}) > 1
    return pack([samples[:2], samples[2:4], samples[4:]], tiny)


def log_probs_of(qwen: QwenVL) -> Callable[[Batch], Tensor]:
    def log_probs(batch: Batch) -> Tensor:
        return token_log_probs(qwen, batch)[0].detach()

    return log_probs


# ---------------------------------------------------------------- counts


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rows(qwen: QwenVL, *images: np.ndarray) -> Batch:
    """Two rows of one sample each, with these images after a token of text each."""
    ids = [20, *[index for _ in images for index in (qwen.chat.image_id, 21)], 22]
    sample = Sample(tuple(ids), (*[False] * (len(ids) - 1), True), (0.0,) * len(ids), images)
    return pack([[sample], [sample]], qwen)


def test_a_healthy_batch_has_as_many_placeholders_as_its_images_need(tiny: QwenVL, healthy: Batch) -> None:
    check_counts(healthy, tiny)
    check_counts(rows(tiny, picture(56, 84, 0), picture(28, 28, 1)), tiny)
    check_counts(rows(tiny), tiny)


def test_placeholders_that_meet_where_branches_and_rows_do_are_of_different_images(tiny: QwenVL) -> None:
    def shown(width: int, *text: int) -> Sample:
        ids = (*text, tiny.chat.image_id)
        return Sample(ids, (False,) * len(ids), (0.0,) * len(ids), (picture(28, width, width),))

    branches = pack([[shown(28, 20), shown(56, 20)]], tiny)
    rows = pack([[shown(56, 20)], [shown(84)]], tiny)
    for batch, first, second in ((branches, 1, 2), (rows, 2, 3)):
        assert batch.ids.flatten().tolist() == [20] + [tiny.chat.image_id] * (first + second)
        check_counts(batch, tiny)
        with pytest.raises(TrainingStopped, match=f"found image 1 of 2, placeholders {first}, places {second}"):
            check_counts(replace(batch, images=batch.images[::-1]), tiny)


def test_a_missing_image_stops_the_run(tiny: QwenVL, healthy: Batch) -> None:
    images = len(healthy.images)
    rule = "each image has as many placeholders in a row as its grid has places"
    found = f"images {images - 1}, runs of placeholders {images}"
    with pytest.raises(TrainingStopped, match=f"^training stopped: {rule}; found {found}$") as caught:
        check_counts(replace(healthy, images=healthy.images[1:]), tiny)
    assert caught.value.rule == rule
    assert caught.value.values == {"images": images - 1, "runs_of_placeholders": images}
    assert isinstance(caught.value, RuntimeError)


def test_images_that_changed_places_stop_the_run_although_the_total_is_right(tiny: QwenVL) -> None:
    batch = rows(tiny, picture(56, 84, 0), picture(28, 28, 1))
    with pytest.raises(TrainingStopped, match="found image 1 of 4, placeholders 6, places 1"):
        check_counts(replace(batch, images=batch.images[::-1]), tiny)


def test_a_placeholder_that_was_overwritten_stops_the_run(tiny: QwenVL, healthy: Batch) -> None:
    ids = healthy.ids.clone()
    ids[tuple((ids == tiny.chat.image_id).nonzero()[-1])] = 20
    with pytest.raises(TrainingStopped, match=f"found image {len(healthy.images)} of {len(healthy.images)}, "):
        check_counts(replace(healthy, ids=ids), tiny)


# ---------------------------------------------------------------- sight


def test_a_model_that_sees_passes_by_far(tiny: QwenVL, healthy: Batch) -> None:
    check_sight(log_probs_of(tiny), healthy)
    check_sight(log_probs_of(tiny), healthy, 1000 * LEAST_SIGHT)


def test_so_does_a_fresh_model(healthy: Batch) -> None:
    check_sight(log_probs_of(tiny_qwen_vl(0)), healthy, 100 * LEAST_SIGHT)


def test_a_model_whose_images_get_lost_stops_the_run(healthy: Batch) -> None:
    blind = load_qwen_vl("tiny")
    encode = blind.encode_images
    blind.encode_images = lambda images, *rest: {  # type: ignore[method-assign]
        name: torch.zeros_like(features) for name, features in encode(images, *rest).items()
    }
    found = f"mean difference 0.0, images {len(healthy.images)}, tokens {len(healthy.targets)}"
    with pytest.raises(TrainingStopped, match=f"trained tokens by 1e-06 nats or more; found {found}"):
        check_sight(log_probs_of(blind), healthy)


def test_only_the_images_are_blanked_and_they_are_grey(healthy: Batch) -> None:
    asked: list[Batch] = []

    def log_probs(batch: Batch) -> Tensor:
        asked.append(batch)
        return torch.full((len(batch.targets),), float(len(asked)))

    check_sight(log_probs, healthy, 1.0)
    assert asked[0] is healthy
    assert [image.shape for image in asked[1].images] == [image.shape for image in healthy.images]
    assert all((image == 127).all() for image in asked[1].images)
    for field in fields(Batch):
        if field.name != "images":
            assert getattr(asked[1], field.name) is getattr(healthy, field.name)


def test_how_much_must_be_seen_can_be_chosen(healthy: Batch) -> None:
    def log_probs(batch: Batch) -> Tensor:
        return torch.full((len(batch.targets),), 0.0 if batch is healthy else 0.25)

    check_sight(log_probs, healthy, 0.25)
    with pytest.raises(TrainingStopped, match="by 0.26 nats or more; found mean difference 0.25"):
        check_sight(log_probs, healthy, 0.26)
    with pytest.raises(TrainingStopped, match="found mean difference nan"):
        check_sight(lambda batch: log_probs(batch) * math.nan, healthy)


def test_a_batch_that_cannot_show_it_passes(tiny: QwenVL, healthy: Batch) -> None:
    nothing = replace(healthy, targets=healthy.targets[:0], sources=healthy.sources[:0])
    for batch in (rows(tiny), nothing):
        check_sight(log_probs_of(tiny), batch, math.inf)


# ---------------------------------------------------------------- kinds


def marked(text: str, codec: Codec) -> list[tuple[str, str]]:
    """The turn as (kind, text) with neighbours of one kind joined."""
    ids = codec.encode_turn(text)
    joined: list[tuple[str, list[int]]] = []
    for index, kind in zip(ids, token_kinds(ids, codec), strict=True):
        if not joined or joined[-1][0] != kind:
            joined.append((kind, []))
        joined[-1][1].append(index)
    return [(kind, codec.decode(some)) for kind, some in joined]


TURNS: list[tuple[str, list[tuple[str, str]]]] = [
    (
        THINKING,
        [
            ("thought", "<think>red one</think>"),
            ("other", "\n"),
            ("answer", "<answer>B</answer>"),
            ("other", "<|im_end|>"),
        ],
    ),
    (
        CALLING,
        [
            ("thought", "<think>look</think>"),
            ("call", '<tool_call>{"name": "zoom"}</tool_call>'),
            ("other", "<|im_end|>"),
        ],
    ),
    ("hm", [("other", "hm<|im_end|>")]),
    ("<answer>cut", [("answer", "<answer>cut"), ("other", "<|im_end|>")]),
    (
        "so <think>é漢🙂<answer>B</answer> yes",
        [("other", "so "), ("thought", "<think>é漢🙂"), ("answer", "<answer>B</answer>"), ("other", " yes<|im_end|>")],
    ),
    ("</think>x", [("other", "</think>x<|im_end|>")]),
    ("", [("other", "<|im_end|>")]),
]


@pytest.mark.parametrize(("text", "expected"), TURNS)
def test_a_token_is_of_the_part_that_its_tags_say(text: str, expected: list[tuple[str, str]]) -> None:
    assert marked(text, default_codec()) == expected


def bytewise() -> Codec:
    """A tokenizer with no token for a tag: every byte is one, as a byte-level BPE's may be."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return Codec(tokenizer)


@pytest.mark.parametrize(("text", "expected"), TURNS)
def test_tags_are_found_where_they_are_cut_into_many_tokens(text: str, expected: list[tuple[str, str]]) -> None:
    codec = bytewise()
    assert len(codec.encode("<think>")) == 7
    assert marked(text, codec) == expected


def test_a_token_that_lies_in_two_parts_is_of_the_first() -> None:
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<think>a</", "think><answ", "er>", "B", "<|im_end|>"]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="B"))
    tokenizer.decoder = decoders.Fuse()
    kinds = token_kinds((0, 1, 2, 3, 4), Codec(tokenizer))
    assert kinds == ("thought", "thought", "answer", "answer", "other")


def test_the_tokens_of_a_batch_have_kinds_by_turn(tiny: QwenVL, healthy: Batch) -> None:
    first, second = tiny.codec.encode("<think>a"), tiny.codec.encode("b</think>c")
    targets = torch.tensor([*first, *second])
    turns = torch.tensor([0] * len(first) + [1] * len(second))
    batch = replace(healthy, targets=targets, turns=turns)
    assert [KINDS[kind] for kind in batch_kinds(batch, tiny.codec)] == ["thought", "thought", "other", "other", "other"]
    batch = replace(batch, turns=turns * 0)
    assert [KINDS[kind] for kind in batch_kinds(batch, tiny.codec)] == ["thought"] * 4 + ["other"]


# ---------------------------------------------------------------- drift


def test_a_sampler_and_a_trainer_that_agree_pass(tiny: QwenVL, healthy: Batch) -> None:
    recomputed = log_probs_of(tiny)(healthy)
    noise = torch.randn(len(recomputed), generator=torch.Generator().manual_seed(0)) * 0.01  # half precision's
    kinds = torch.arange(len(recomputed)) % 4
    metrics = check_drift(recomputed.detach() + noise, recomputed, kinds)
    assert set(metrics) == {f"sampler/{what}/{kind}" for what in ("kl", "difference") for kind in KINDS}
    assert all(0.003 < value < 0.03 for name, value in metrics.items() if "difference" in name)
    assert all(0 < value < 2e-4 for name, value in metrics.items() if "kl" in name)


def test_drift_is_measured_by_kind() -> None:
    sampled, recomputed = torch.tensor([-1.0, -1.0, -2.0, -3.0]), torch.tensor([-1.0, -1.5, -2.0, -2.75])
    found = check_drift(sampled, recomputed, torch.tensor([0, 0, 2, 3]), most=1.0)
    half, quarter = math.exp(-0.5) - 1 + 0.5, math.exp(0.25) - 1 - 0.25
    expected = {
        "sampler/kl/thought": half / 2,
        "sampler/difference/thought": 0.25,
        "sampler/kl/answer": 0.0,
        "sampler/difference/answer": 0.0,
        "sampler/kl/other": quarter,
        "sampler/difference/other": 0.25,
    }
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "name"), list(enumerate(KINDS)))
def test_drift_of_one_kind_stops_the_run_and_is_named(kind: int, name: str) -> None:
    sampled = torch.full((400,), -1.0)
    recomputed, kinds = sampled.clone(), torch.arange(400) % 4
    recomputed[kinds == kind] -= 1.0
    rule = f"sampler and trainer agree on {name} tokens to a KL of {MOST_DRIFT} nats"
    with pytest.raises(TrainingStopped, match=f"{rule}; found kind {name}, KL 0.367.*, tokens 100"):
        check_drift(sampled, recomputed, kinds)
    check_drift(sampled, recomputed, kinds, most=0.4)


def test_the_few_tokens_of_an_answer_are_not_drowned_by_those_of_a_thought() -> None:
    sampled, kinds = torch.zeros(1000), torch.zeros(1000, dtype=torch.int64)
    recomputed = sampled.clone()
    recomputed[-5:], kinds[-5:] = 1.5, 2
    assert float((torch.expm1(recomputed) - recomputed).mean()) < MOST_DRIFT
    with pytest.raises(TrainingStopped, match="answer tokens"):
        check_drift(sampled, recomputed, kinds)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6])
def test_what_is_no_number_is_drift(value: float) -> None:
    with pytest.raises(TrainingStopped, match="thought tokens"):
        check_drift(torch.zeros(2), torch.tensor([0.0, value]), torch.zeros(2, dtype=torch.int64))


def test_a_batch_without_trained_tokens_has_no_drift() -> None:
    assert check_drift(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) == {}


# ---------------------------------------------------------------- what is no number


def test_finite_values_pass_and_leave_nothing(healthy: Batch, tmp_path: Path) -> None:
    check_finite({"loss": -3.0, "norm": 1e30}, [healthy], tmp_path, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_stops_the_run_and_keeps_the_batches(
    healthy: Batch, tiny: QwenVL, tmp_path: Path, value: float
) -> None:
    path = tmp_path / "nan" / "step-7"
    other = rows(tiny, picture(56, 84, 0), picture(28, 28, 1))
    with pytest.raises(TrainingStopped, match=f"found norm {value}, step 7, batches kept in {path}"):
        check_finite({"loss": 2.5, "norm": value}, [healthy, other], tmp_path, 7)
    batches, values = load_batches(path)
    assert values == pytest.approx({"loss": 2.5, "norm": value}, nan_ok=True)
    assert len(batches) == 2
    for found, expected in zip(batches, (healthy, other)):
        assert_same(found, expected)
    found = json.loads((path / "update.json").read_text(), parse_constant=pytest.fail)
    assert found["step"] == 7
    assert found["ids"][0] == [row[row_ids >= 0].tolist() for row, row_ids in zip(healthy.ids, healthy.segments)]


def assert_same(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, field.name
        elif field.name != "images":
            assert mine == theirs, field.name
    assert len(found.images) == len(expected.images)
    for mine, theirs in zip(found.images, expected.images):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == np.uint8


def test_a_batch_that_was_kept_gives_the_same_log_probs(healthy: Batch, tiny: QwenVL, tmp_path: Path) -> None:
    guards.save_batches(tmp_path, [healthy], {}, 1)
    ((loaded,), _) = load_batches(tmp_path)
    assert torch.equal(log_probs_of(tiny)(loaded), log_probs_of(tiny)(healthy))


def test_columns_that_share_memory_or_order_are_kept_too(healthy: Batch, tmp_path: Path) -> None:
    turned = replace(healthy, positions=healthy.positions.transpose(1, 2).contiguous().transpose(1, 2))
    turned = replace(turned, samples=turned.targets[:], images=())
    guards.save_batches(tmp_path, [turned], {}, 1)
    assert_same(load_batches(tmp_path)[0][0], turned)


def test_the_batches_of_an_update_and_their_images_keep_their_order(tiny: QwenVL, tmp_path: Path) -> None:
    made = [rows(tiny, picture(28, 28 * (1 + number % 3), number)) for number in range(11)]
    made.append(rows(tiny, *[picture(28, 28, number) for number in range(12)]))
    guards.save_batches(tmp_path, made, {}, 1)
    for found, expected in zip(load_batches(tmp_path)[0], made, strict=True):
        assert_same(found, expected)


# ---------------------------------------------------------------- steps that teach nothing


def test_a_run_whose_steps_teach_nothing_is_stopped_with_what_they_ended_in() -> None:
    metrics = {"reward/total": 0.25, "stop/void": 1.0}
    check_busy(MOST_IDLE - 1, metrics)
    with pytest.raises(TrainingStopped, match=f"steps {MOST_IDLE}, mean reward 0.25, stop/void 1.0"):
        check_busy(MOST_IDLE, metrics)
