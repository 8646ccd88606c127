"""Patches and features: everything that was made faster, or is kept, equals what transformers computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.qwen_vl import QwenVL
from agents.tiny_model import MEAN, PIXEL_BOUNDS, STD, tiny_tokenizer
from agents.vision import FeatureCache, Patcher, digest
from mimgenv.types import Image

Grid = tuple[int, int]
Twins = Callable[[str], Any]
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def photograph(height: int, width: int, seed: int = 0) -> Image:
    """Smooth enough that resizing filters agree, rough enough that they do not agree exactly."""
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.integers(0, 256, (-(-height // 6), -(-width // 6), 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(6, 0).repeat(6, 1)[:height, :width])


def processor(patcher: Patcher) -> Any:
    """The image processor of transformers with the same settings."""
    return Qwen2VLImageProcessorPil(
        min_pixels=patcher.min_pixels,
        max_pixels=patcher.max_pixels,
        patch_size=patcher.patch,
        image_mean=patcher.mean.tolist(),
        image_std=patcher.std.tolist(),
    )


def assert_same_patches(patcher: Patcher, image: Image) -> None:
    made = processor(patcher)(images=[image], return_tensors="np")
    assert (1, *(2 * side for side in patcher.grid(image))) == tuple(made["image_grid_thw"][0].tolist())
    np.testing.assert_allclose(patcher.patches(image), made["pixel_values"], atol=2e-6)


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("height", "width"),
    [(28, 28), (84, 84), (56, 140), (64, 96), (100, 100), (75, 62), (95, 60), (20, 30), (480, 640), (168, 170)],
)
def test_an_image_is_resized_and_cut_as_transformers_does_it(
    twins: Twins, family: str, height: int, width: int
) -> None:
    assert_same_patches(twins(family)[0].patcher, photograph(height, width))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pixel_bounds_decide_the_size(twins: Twins, family: str) -> None:
    patcher = twins(family)[0].patcher
    area = (patcher.patch * patcher.merge) ** 2
    bounded = replace(patcher, min_pixels=4 * area, max_pixels=9 * area)
    for height, width in [(28, 28), (84, 84), (300, 100), (1000, 20)]:
        assert_same_patches(bounded, photograph(height, width))
    assert bounded.grid(photograph(28, 28)) == (2, 2) != patcher.grid(photograph(28, 28))


def test_a_family_has_its_own_patches_and_normalisation(twins: Twins) -> None:
    older, newer = (twins(family)[0].patcher for family in ("qwen2_5_vl", "qwen3_vl"))
    image = photograph(224, 224)
    assert (older.grid(image), newer.grid(image)) == ((8, 8), (7, 7))
    assert newer.patches(np.full((32, 32, 3), 255, np.uint8)).min() == 1.0  # (1 - 0.5) / 0.5
    assert older.patches(np.full((28, 28, 3), 255, np.uint8)).min() > 1.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_sizes_are_those_of_transformers(twins: Twins, family: str, seed: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    patcher = twins(family)[0].patcher
    height, width = (int(side) for side in np.random.default_rng(seed).integers(20, 900, 2))
    image = np.zeros((height, width, 3), np.uint8)
    factor = patcher.patch * patcher.merge
    assert patcher.size(image) == smart_resize(height, width, factor, patcher.min_pixels, patcher.max_pixels)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (10, 300)])
def test_sizes_of_slivers_are_those_of_transformers(qwen: QwenVL, height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    image = np.zeros((height, width, 3), np.uint8)
    assert qwen.patcher.size(image) == smart_resize(height, width, 28, *PIXEL_BOUNDS)


# ---------------------------------------------------------------- the vision tower


def windowed(window_size: int, seed: int = 0) -> tuple[QwenVL, Any]:
    """A tiny model whose windows are as wide as said, and the same one untouched."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from agents.tiny_model import _configuration

    settings = _configuration(tiny_tokenizer())
    settings["vision_config"] |= {"window_size": window_size, "depth": 3, "fullatt_block_indexes": [1]}
    torch.manual_seed(seed)
    untouched = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).eval()
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).eval()
    model.load_state_dict(untouched.state_dict())
    return QwenVL(model, tiny_tokenizer(), *PIXEL_BOUNDS, MEAN, STD), untouched


def stock_features(qwen: QwenVL, model: Any, images: Sequence[Image]) -> list[Any]:
    """Of an untouched model: those of DeepStack, if it has any, behind the main ones."""
    made = processor(qwen.patcher)(images=list(images), return_tensors="pt")
    found = model.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True)
    layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    return [torch.cat(each, -1) for each in zip(*layers, strict=True)]


def assert_same_features(qwen: QwenVL, untouched: Any, images: Sequence[Image]) -> None:
    with torch.no_grad():
        features = qwen._encode(images)
        expected = stock_features(qwen, untouched, images)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert float(theirs.std()) > 0.01


SQUARE, WIDE, TALL = (84, 84), (56, 140), (112, 84)
UNEQUAL = [TALL, SQUARE, TALL, (28, 28), WIDE, SQUARE]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[SQUARE], [SQUARE] * 4, [WIDE] * 2, [SQUARE, WIDE, TALL], UNEQUAL])
def test_the_vision_tower_made_fast_equals_the_stock_one(twins: Twins, family: str, sizes: list[Grid]) -> None:
    assert_same_features(*twins(family), [photograph(*size, seed) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("sizes", [[(112, 168)] * 2, [(140, 84)] * 2, [(112, 112), (140, 84), (28, 168)]])
def test_it_does_so_with_window_attention_too(sizes: list[Grid]) -> None:
    images = [photograph(*size, seed) for seed, size in enumerate(sizes)]
    assert_same_features(*windowed(56), images)
    with torch.no_grad():  # where a window holds the whole image, something else comes out
        wide, narrow = (stock_features(*windowed(window), images) for window in (1120, 56))
    assert float((wide[0] - narrow[0]).abs().max()) > 1e-3


def without_keys(name: str, gradient: Any) -> Any:
    """A key's bias shifts all scores of a query alike, so that its gradient is rounding and nothing else."""
    if not name.endswith("qkv.bias"):
        return gradient
    query, _, value = gradient.chunk(3)
    return torch.cat([query, value])


def assert_same_gradients(qwen: QwenVL, untouched: Any, images: Sequence[Image]) -> None:
    found = []
    for model, features in (
        (qwen.model, qwen.encode_images(images).values()),
        (untouched, stock_features(qwen, untouched, images)),
    ):
        loss = torch.cat(list(features)).square().sum()
        named = {name: p for name, p in model.model.visual.named_parameters() if p.requires_grad}
        found.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    for name, theirs in found[1].items():
        ours, theirs = (without_keys(name, gradient) for gradient in (found[0][name], theirs))
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[SQUARE] * 2, UNEQUAL])
def test_the_gradient_of_the_fast_tower_is_that_of_the_stock_one(twins: Twins, family: str, sizes: list[Grid]) -> None:
    assert_same_gradients(*twins(family), [photograph(*size, seed) for seed, size in enumerate(sizes)])


def test_so_it_is_with_windows() -> None:
    assert_same_gradients(*windowed(56), [photograph(112, 112, seed) for seed in range(2)])


@pytest.mark.parametrize(
    ("sizes", "calls"), [([SQUARE] * 3, 1), ([WIDE] * 2 + [SQUARE], 2), ([SQUARE, WIDE] * 4, 2), (UNEQUAL, 4)]
)
def test_images_of_equal_size_are_attended_in_one_batch(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, sizes: list[Grid], calls: int
) -> None:
    qwen, _ = twins("qwen2_vl")
    attend, seen = functional.scaled_dot_product_attention, []

    def counted(query: Any, *rest: Any, **more: Any) -> Any:
        seen.append(query.shape)
        return attend(query, *rest, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        qwen._encode([photograph(*size, seed) for seed, size in enumerate(sizes)])
    assert len(seen) == calls * len(qwen.model.model.visual.blocks)


def test_a_model_may_be_wrapped_twice(make_qwen: Callable[..., QwenVL], stock: Any) -> None:
    model = make_qwen().model
    for _ in range(2):
        qwen = QwenVL(model, tiny_tokenizer(), *PIXEL_BOUNDS, MEAN, STD)
        assert_same_features(qwen, stock, [photograph(*size) for size in (SQUARE, WIDE)])


def test_speeding_up_one_model_leaves_others_as_they_are(qwen: QwenVL, stock: Any) -> None:
    assert "forward" not in vars(stock.model.visual.blocks[0].attn)
    assert "forward" in vars(qwen.model.model.visual.blocks[0].attn)


# ---------------------------------------------------------------- what is kept


def test_the_digest_tells_apart_what_differs_in_a_pixel_or_in_shape_only() -> None:
    image = photograph(28, 56)
    other = image.copy()
    other[0, 0, 0] ^= 1
    turned = image.reshape(56, 28, 3)
    assert digest(image) == digest(image.copy())
    assert len({digest(image), digest(other), digest(turned)}) == 3


def test_the_longest_unused_features_go_when_the_budget_is_spent() -> None:
    cache = FeatureCache(3 * 40)
    for key in (b"a", b"b", b"c"):
        cache.put(key, torch.zeros(10))
    assert cache.get(b"a") is not None
    cache.put(b"d", torch.zeros(10))
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key) is not None] == [b"a", b"c", b"d"]
    cache.put(b"e", torch.zeros(20))
    assert [key for key in (b"a", b"c", b"d", b"e") if cache.get(key) is not None] == [b"d", b"e"]


def test_no_more_bytes_are_held_than_the_budget_allows() -> None:
    cache, rng = FeatureCache(1000), np.random.default_rng(0)
    for number in range(200):
        cache.put(bytes([number]), torch.zeros(int(rng.integers(1, 120))))
        kept = [cache.get(bytes([key])) for key in range(200)]
        assert cache.held == sum(features.nbytes for features in kept if features is not None) <= 1000
    assert len(cache) > 1


def test_what_is_larger_than_the_budget_is_not_kept_and_turns_out_nothing() -> None:
    cache = FeatureCache(40)
    cache.put(b"a", torch.zeros(10))
    cache.put(b"b", torch.zeros(11))
    assert (cache.get(b"a") is not None, cache.get(b"b")) == (True, None)
    nothing = FeatureCache(0)
    nothing.put(b"a", torch.zeros(1))
    assert (len(nothing), nothing.held) == (0, 0)


def test_keeping_the_same_twice_holds_it_once() -> None:
    cache = FeatureCache(100)
    for _ in range(2):
        cache.put(b"a", torch.zeros(10))
    assert (len(cache), cache.held) == (1, 40)


def test_what_is_kept_is_a_copy_without_a_graph() -> None:
    """A view would hold the features of all images that were encoded with it."""
    cache, batch = FeatureCache(1000), torch.arange(40.0, requires_grad=True)
    cache.put(b"a", (2 * batch)[:4])
    (kept,) = [cache.get(b"a")]
    assert kept is not None and kept.tolist() == [0.0, 2.0, 4.0, 6.0]
    assert not kept.requires_grad and kept.untyped_storage().nbytes() == 16


def test_another_version_of_the_weights_forgets_and_the_same_does_not() -> None:
    cache = FeatureCache(1000)
    cache.renew(7)
    cache.put(b"a", torch.zeros(10))
    cache.renew(7)
    assert len(cache) == 1
    cache.renew(8)
    assert (len(cache), cache.held) == (0, 0)
