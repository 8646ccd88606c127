"""Attention on image tokens: what stock transformers computes, and what can be known without it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents import gaze
from agents.gaze import ImageAttention, attention_by_position, image_attention
from agents.positions import expand
from agents.qwen_vl import QwenVL
from agents.tiny_model import tiny_qwen_vl
from agents.types import Action, Message, Trajectory, Turn
from mimgenv.codec import default_codec
from mimgenv.types import Image

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
CODEC = default_codec()
CALL = '<think>a</think><tool_call>{"name": "zoom", "arguments": {"image": 1, "bbox_2d": [0, 0, 42, 42]}}</tool_call>'
ANSWER = '<think>b</think><answer>{"image": 2, "label": "red circle", "bbox_2d": [7, 7, 21, 21]}</answer>'


def picture(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


def played(*turns: tuple[tuple[Image, ...], str]) -> Trajectory:
    """An episode, of the images shown and the text said at each turn."""
    made = [
        Turn(Message("Look: " + "<image>\n" * len(images) + "Go on.", images), Action(CODEC.encode_turn(said)), None)
        for images, said in turns
    ]
    return Trajectory("task", "referring", tuple(made), 1.0, {}, "answered", True)


SMALL, WIDE, TALL = picture(64, 64, 1), picture(64, 128, 2), picture(96, 64, 3)
ZOOMED = played(((SMALL, WIDE), CALL), ((TALL,), ANSWER))
"""Two images, and one more that a tool returned."""
SHORT = played(((WIDE,), ANSWER))


def stock_attentions(qwen: QwenVL, stock: Any, ids: torch.Tensor, images: tuple[Image, ...]) -> list[np.ndarray]:
    """(heads, T, T) of each layer of an untouched model, which finds positions and mask for itself."""
    patcher = qwen.patcher
    settings = {"image_mean": patcher.mean.tolist(), "image_std": patcher.std.tolist(), "patch_size": patcher.patch}
    made = Qwen2VLImageProcessorPil(min_pixels=patcher.min_pixels, max_pixels=patcher.max_pixels, **settings)(
        images=list(images), return_tensors="pt"
    )
    eager = copy.deepcopy(stock)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(
            input_ids=ids,
            pixel_values=made["pixel_values"],
            image_grid_thw=made["image_grid_thw"],
            mm_token_type_ids=(ids == qwen.chat.image_id).int(),
            output_attentions=True,
        )
    return [layer[0].numpy() for layer in out.attentions if layer is not None]


def layout(qwen: QwenVL, trajectory: Trajectory) -> tuple[list[int], list[int], list[int]]:
    """Ids, to which image each belongs (1-based, 0 for text), and where the policy's own tokens stand."""
    record = qwen.chat.record(trajectory)
    ids: list[int] = []
    image_of: list[int] = []
    own: list[int] = []
    for index, turn in zip(record.ids, record.turns, strict=True):
        if index != qwen.chat.image_id:
            own += [len(ids)] if turn else []
            ids, image_of = [*ids, index], [*image_of, 0]
            continue
        number = max(image_of, default=0) + 1
        rows, columns = qwen.grid(record.images[number - 1])
        ids, image_of = ids + [index] * rows * columns, image_of + [number] * rows * columns
    return ids, image_of, own


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_of_a_stock_models_attentions(twins: Callable[[str], Any], family: str) -> None:
    qwen, stock = twins(family)
    found = image_attention(qwen, [SHORT, ZOOMED])[1]
    ids, image_of, own = layout(qwen, ZOOMED)
    attentions = stock_attentions(qwen, stock, torch.tensor([ids]), ZOOMED.images)
    assert len(attentions) == (2 if family == "qwen3_5" else 4)
    for shares, images in ((found.first, (1, 2)), (found.returned, (3,))):
        keys = [key for key, image in enumerate(image_of) if image in images]
        expected = [np.mean([layer[:, at - 1, keys].sum(-1).mean() for layer in attentions]) for at in own]
        np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert np.ptp(found.first) > 1e-3  # there is something to measure


def test_a_model_that_looks_nowhere_in_particular_gives_images_their_even_share(
    make_qwen: Callable[..., QwenVL],
) -> None:
    qwen = make_qwen()
    with torch.no_grad():
        for layer in qwen.model.model.language_model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    found = image_attention(qwen, [ZOOMED])[0]
    _, image_of, own = layout(qwen, ZOOMED)
    assert len(found.even) == len(own)
    for place, first, returned, even in zip(own, found.first, found.returned, found.even, strict=True):
        seen = image_of[:place]
        assert first == pytest.approx((seen.count(1) + seen.count(2)) / place, abs=1e-6)
        assert returned == pytest.approx(seen.count(3) / place, abs=1e-6)
        assert even == pytest.approx(1 - seen.count(0) / place, abs=1e-12)


def test_images_that_tools_return_get_nothing_before_they_are_shown(qwen: QwenVL) -> None:
    found = image_attention(qwen, [ZOOMED])[0]
    before = len(ZOOMED.turns[0].action.ids)
    assert not found.returned[:before].any()
    assert (found.returned[before:] > 0).all()
    np.testing.assert_array_equal(found.share, found.first + found.returned)
    assert 0 < found.share.min() <= found.share.max() < 1


def test_shares_do_not_depend_on_how_many_scores_are_held(qwen: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image_attention(qwen, [ZOOMED])[0]
    held: list[int] = []
    softmax = torch.Tensor.softmax

    def counted(scores: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        held.append(scores.numel())
        return softmax(scores, *args, **given)

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    parted = image_attention(qwen, [ZOOMED], block_scores=5000)[0]
    np.testing.assert_allclose(parted.first, whole.first, atol=1e-6)
    np.testing.assert_allclose(parted.returned, whole.returned, atol=1e-6)
    assert 2500 < max(held) <= 5000


def test_episodes_without_tokens_or_without_images_are_measured_too(qwen: QwenVL) -> None:
    silent, blind = image_attention(qwen, [played(), played(((), ANSWER))])
    assert len(silent.share) == 0
    assert len(blind.share) == len(SHORT.turns[0].action.ids)
    assert not blind.share.any() and not blind.even.any()


def test_half_precision_gives_nearly_the_same(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    exact = image_attention(qwen, [ZOOMED])[0]
    qwen.model.to(torch.bfloat16)
    qwen.weights_changed()
    rough = image_attention(qwen, [ZOOMED])[0]
    np.testing.assert_allclose(rough.share, exact.share, atol=0.02)
    assert not np.allclose(rough.share, exact.share, atol=1e-6)


# The model is left as it was


def state(qwen: QwenVL) -> tuple[str, int, torch.Tensor]:
    """The attention, the hooks, and what the model says."""
    laid = expand(qwen.chat.record(SHORT).ids, [qwen.grid(WIDE)], qwen.chat.image_id)
    ids, positions = torch.from_numpy(laid.ids)[None], torch.from_numpy(laid.positions)[:, None]
    with torch.no_grad():
        features = torch.cat(list(qwen.encode_images([WIDE]).values()))
        hidden = qwen.hidden_states(ids, positions, None, features)
        logits = qwen.model.lm_head(hidden)
    inner = qwen.model.model.language_model
    return inner.config._attn_implementation, len(inner._forward_pre_hooks), logits


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_a_model_says_the_same_before_and_after(attention: str) -> None:
    qwen = tiny_qwen_vl(0, attention=attention)
    name, hooks, logits = state(qwen)
    image_attention(qwen, [ZOOMED, SHORT])
    assert state(qwen)[:2] == (name, hooks)
    assert torch.equal(state(qwen)[2], logits)


def test_so_it_does_after_an_error_on_the_way(
    make_qwen: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    qwen = make_qwen()
    name, hooks, logits = state(qwen)

    def broken(*args: Any) -> None:
        assert qwen.model.model.language_model.config._attn_implementation == gaze.WATCHED
        raise MemoryError("no room for scores")

    with monkeypatch.context() as patched:
        patched.setattr(gaze, "_shares", broken)
        with pytest.raises(MemoryError, match="no room for scores"):
            image_attention(qwen, [SHORT])
    assert state(qwen)[:2] == (name, hooks)
    assert torch.equal(state(qwen)[2], logits)


def test_what_the_model_says_while_it_is_watched_is_what_it_says_otherwise(qwen: QwenVL) -> None:
    said: list[torch.Tensor] = []
    hook = qwen.model.model.language_model.register_forward_hook(lambda _, __, out: said.append(out.last_hidden_state))
    try:
        image_attention(qwen, [SHORT])
        state(qwen)
    finally:
        hook.remove()
    assert torch.equal(*said)


# The summary


def measured(*shares: tuple[float, float, float]) -> ImageAttention:
    """Of (first, returned, even) at each position."""
    return ImageAttention(*np.array(shares, np.float64).reshape(-1, 3).T)


THREE = [
    measured((0.5, 0.0, 0.25), (0.25, 0.25, 0.5), (0.1, 0.2, 0.4)),
    measured((0.25, 0.0, 0.75), (0.25, 0.5, 0.25)),
    measured((0.75, 0.0, 0.5)),
]


def test_means_and_errors_by_position_by_hand() -> None:
    curve = attention_by_position(THREE, least=2)
    assert curve.positions == (0, 1)
    assert curve.share == pytest.approx((0.5, 0.625))
    assert curve.error == pytest.approx((0.25 / 3**0.5, 0.125))
    assert curve.first == pytest.approx((0.5, 0.25))
    assert curve.returned == pytest.approx((0.0, 0.375))
    assert curve.even == pytest.approx((0.5, 0.375))
    assert curve.counts == (3, 2)
    assert (curve.episodes, curve.longest) == (3, 3)


@pytest.mark.parametrize(("least", "kept"), [(2, 2), (3, 1), (4, 0)])
def test_positions_that_few_episodes_reach_are_left_out_and_counted(least: int, kept: int) -> None:
    curve = attention_by_position(THREE, least)
    assert curve.positions == tuple(range(kept))
    assert len(curve.share) == len(curve.error) == len(curve.even) == len(curve.counts) == kept
    assert (curve.episodes, curve.longest) == (3, 3)


def test_no_episodes_give_an_empty_curve() -> None:
    curve = attention_by_position([])
    assert (curve.positions, curve.episodes, curve.longest) == ((), 0, 0)


def test_a_curve_goes_through_json() -> None:
    curve = attention_by_position(THREE, least=2)
    read = json.loads(json.dumps(asdict(curve)))
    assert read["positions"] == [0, 1]
    assert read["error"] == list(curve.error)


def test_one_episode_is_not_enough_for_an_error() -> None:
    with pytest.raises(ValueError, match="needs 2 episodes or more, not 1"):
        attention_by_position(THREE, least=1)


def test_shares_of_one_trajectory_have_one_length() -> None:
    with pytest.raises(ValueError, match="1, 1 and 2 shares of one trajectory"):
        ImageAttention(np.zeros(1), np.zeros(1), np.zeros(2))
