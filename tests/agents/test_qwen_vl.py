"""Images in, hidden states out: everything that was made faster equals what transformers computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.qwen_vl import QwenVL, digest, expand, load_qwen_vl, model_path, save_qwen_vl
from agents.tiny_model import MEAN, PIXEL_BOUNDS, STD, tiny_tokenizer
from mimgenv.types import Image

Grid = tuple[int, int]
TEXT = 100
"""The id of an ordinary token."""


def photograph(height: int, width: int, seed: int = 0) -> Image:
    """Smooth enough that resizing filters agree, rough enough that they do not agree exactly."""
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.integers(0, 256, (-(-height // 6), -(-width // 6), 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(6, 0).repeat(6, 1)[:height, :width])


def conversation(image_id: int, images: int) -> list[int]:
    """Text and placeholders in turn, with text at both ends."""
    ids = [TEXT, TEXT + 1]
    for number in range(images):
        ids += [image_id, TEXT + 2 + number, TEXT + 3 + number]
    return ids


def processor(minimum: int = PIXEL_BOUNDS[0], maximum: int = PIXEL_BOUNDS[1]) -> Any:
    return Qwen2VLImageProcessorPil(min_pixels=minimum, max_pixels=maximum)


def stock_patches(image: Image, minimum: int = PIXEL_BOUNDS[0], maximum: int = PIXEL_BOUNDS[1]) -> Any:
    made = processor(minimum, maximum)(images=[image], return_tensors="np")
    return made["pixel_values"], tuple(int(side) for side in made["image_grid_thw"][0])


# ---------------------------------------------------------------- expand


@pytest.mark.parametrize(
    "grids", [[], [(3, 3)], [(2, 5)], [(5, 2), (1, 1), (3, 4)], [(1, 7), (7, 1)], [(4, 4), (4, 4), (2, 6), (6, 2)]]
)
def test_positions_are_those_of_transformers(qwen: QwenVL, stock: Any, grids: list[Grid]) -> None:
    laid = expand(conversation(qwen.chat.image_id, len(grids)), grids, qwen.chat.image_id)
    ids = torch.from_numpy(laid.ids)[None]
    thw = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids]) if grids else None
    positions, delta = stock.model.get_rope_index(ids, (ids == qwen.chat.image_id).int(), image_grid_thw=thw)
    np.testing.assert_array_equal(laid.positions, positions[:, 0].numpy())
    assert laid.next_position == int(delta) + len(laid.ids)


def test_an_image_takes_rows_times_columns_tokens_and_advances_by_its_longer_side() -> None:
    laid = expand([7, 9, 7], [(2, 3)], image_id=9)
    assert laid.ids.tolist() == [7, 9, 9, 9, 9, 9, 9, 7]
    assert laid.positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert laid.next_position == 5


def test_origin_moves_a_mask_along() -> None:
    laid = expand([7, 9, 8, 9, 6], [(1, 2), (2, 1)], image_id=9)
    mask = np.array([False, True, False, False, True])
    assert laid.ids.tolist() == [7, 9, 9, 8, 9, 9, 6]
    assert mask[laid.origin].tolist() == [False, True, True, False, False, False, True]
    assert np.array([7, 9, 8, 9, 6])[laid.origin].tolist() == laid.ids.tolist()


@pytest.mark.parametrize("grids", [[], [(1, 1)], [(1, 1)] * 3])
def test_placeholders_and_grids_are_counted(grids: list[Grid]) -> None:
    with pytest.raises(ValueError, match=f"2 image placeholders, {len(grids)} image grids"):
        expand([7, 9, 9, 7], grids, image_id=9)


@pytest.mark.parametrize("cut", range(9))
def test_a_continuation_goes_on_where_the_whole_would(cut: int) -> None:
    ids, grids = [7, 9, 8, 9, 9, 6, 5, 9], [(2, 3), (4, 1), (1, 1), (3, 3)]
    whole = expand(ids, grids, image_id=9)
    images = ids[:cut].count(9)
    before = expand(ids[:cut], grids[:images], image_id=9)
    after = expand(ids[cut:], grids[images:], image_id=9, start=before.next_position)
    assert [*before.ids, *after.ids] == whole.ids.tolist()
    np.testing.assert_array_equal(np.concatenate([before.positions, after.positions], axis=1), whole.positions)
    assert after.next_position == whole.next_position


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize(("height", "width"), [(28, 28), (84, 84), (56, 140), (224, 112)])
def test_patches_of_a_fitting_image_are_those_of_transformers(qwen: QwenVL, height: int, width: int) -> None:
    image = photograph(height, width)
    patches, thw = stock_patches(image)
    np.testing.assert_allclose(qwen.patches(image), patches, atol=1e-6)
    assert (1, *(2 * side for side in qwen.grid(image))) == thw


@pytest.mark.parametrize(
    ("height", "width"),
    [(100, 100), (75, 62), (60, 60), (95, 60), (60, 95), (20, 30), (480, 640), (490, 650), (168, 170)],
)
def test_an_image_is_resized_as_transformers_resizes_it(qwen: QwenVL, height: int, width: int) -> None:
    image = photograph(height, width)
    patches, thw = stock_patches(image)
    assert (1, *(2 * side for side in qwen.grid(image))) == thw
    np.testing.assert_allclose(qwen.patches(image), patches, atol=1e-6)


def test_the_pixel_bounds_decide_the_size(qwen: QwenVL) -> None:
    bounded = QwenVL(qwen.model, qwen.tokenizer, 4 * 784, 9 * 784, MEAN, STD)
    for height, width in [(28, 28), (84, 84), (300, 100), (1000, 20)]:
        image = photograph(height, width)
        patches, thw = stock_patches(image, 4 * 784, 9 * 784)
        assert (1, *(2 * side for side in bounded.grid(image))) == thw
        np.testing.assert_allclose(bounded.patches(image), patches, atol=1e-6)
    assert bounded.grid(photograph(28, 28)) == (2, 2) != qwen.grid(photograph(28, 28))


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_those_of_transformers(qwen: QwenVL, seed: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = (int(side) for side in np.random.default_rng(seed).integers(20, 900, 2))
    image = np.zeros((height, width, 3), np.uint8)
    assert qwen.size(image) == smart_resize(height, width, 28, *PIXEL_BOUNDS)


@pytest.mark.xfail(strict=True, reason="below half a token wide, qwen-vl-utils and transformers give different sizes")
@pytest.mark.parametrize(("height", "width"), [(5, 9), (10, 300)])
def test_sizes_of_slivers_are_those_of_transformers(qwen: QwenVL, height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert qwen.size(np.zeros((height, width, 3), np.uint8)) == smart_resize(height, width, 28, *PIXEL_BOUNDS)


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


def stock_features(model: Any, images: Sequence[Image]) -> Any:
    made = processor()(images=list(images), return_tensors="pt")
    with torch.no_grad():
        return model.model.get_image_features(
            made["pixel_values"], made["image_grid_thw"], return_dict=True
        ).pooler_output


def assert_same_features(qwen: QwenVL, untouched: Any, images: Sequence[Image]) -> None:
    with torch.no_grad():
        features = qwen.encode_images(images)
    for image, expected in zip(images, stock_features(untouched, images), strict=True):
        torch.testing.assert_close(features[digest(image)], expected, atol=1e-5, rtol=0)
        assert float(expected.std()) > 0.01


SQUARE, WIDE, TALL = (84, 84), (56, 140), (112, 84)


@pytest.mark.parametrize(
    "sizes", [[SQUARE], [SQUARE] * 4, [WIDE] * 2, [SQUARE, WIDE, TALL], [TALL, SQUARE, TALL, (28, 28)]]
)
def test_the_vision_tower_made_fast_equals_the_stock_one(qwen: QwenVL, stock: Any, sizes: list[Grid]) -> None:
    assert_same_features(qwen, stock, [photograph(*size, seed) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("sizes", [[(112, 168)] * 2, [(140, 84)] * 2, [(112, 112), (140, 84), (28, 168)]])
def test_it_does_so_with_window_attention_too(sizes: list[Grid]) -> None:
    images = [photograph(*size, seed) for seed, size in enumerate(sizes)]
    assert_same_features(*windowed(56), images)
    wide = stock_features(windowed(1120)[1], images)  # where a window holds the whole image, something else comes out
    narrow = stock_features(windowed(56)[1], images)
    assert float((wide[0] - narrow[0]).abs().max()) > 1e-3


def test_the_gradient_of_the_fast_tower_is_that_of_the_stock_one() -> None:
    qwen, untouched = windowed(56)
    images = [photograph(112, 112, seed) for seed in range(2)]
    torch.cat(list(qwen.encode_images(images).values())).square().sum().backward()
    made = processor()(images=images, return_tensors="pt")
    features = untouched.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True)
    torch.cat(list(features.pooler_output)).square().sum().backward()
    pairs = zip(qwen.model.model.visual.parameters(), untouched.model.visual.parameters(), strict=True)
    for ours, theirs in pairs:
        assert float((ours.grad - theirs.grad).norm()) <= 1e-4 * float(theirs.grad.norm())


@pytest.mark.parametrize(
    ("sizes", "fast"), [([SQUARE] * 3, True), ([(84, 168)], True), ([SQUARE, WIDE], False), ([(112, 84)], False)]
)
def test_images_are_attended_in_one_batch_where_all_windows_are_equal(
    make_qwen: Callable[..., QwenVL], sizes: list[Grid], fast: bool
) -> None:
    qwen = make_qwen()
    stock_calls = []
    for block in qwen.model.model.visual.blocks:
        inner = block.attn.stock_forward

        def counted(*arguments: Any, inner: Any = inner, **more: Any) -> Any:
            stock_calls.append(1)
            return inner(*arguments, **more)

        block.attn.stock_forward = counted
    with torch.no_grad():
        qwen.encode_images([photograph(*size, seed) for seed, size in enumerate(sizes)])
    assert (not stock_calls) == fast


def test_a_model_may_be_wrapped_twice(make_qwen: Callable[..., QwenVL], stock: Any) -> None:
    model = make_qwen().model
    for _ in range(2):
        qwen = QwenVL(model, tiny_tokenizer(), *PIXEL_BOUNDS, MEAN, STD)
        assert_same_features(qwen, stock, [photograph(*size) for size in (SQUARE, WIDE)])


def test_speeding_up_one_model_leaves_others_as_they_are(qwen: QwenVL, stock: Any) -> None:
    assert not hasattr(stock.model.visual.blocks[0].attn, "stock_forward")
    assert hasattr(qwen.model.model.visual.blocks[0].attn, "stock_forward")


# ---------------------------------------------------------------- images


def test_equal_images_are_encoded_once(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    seen: list[int] = []
    inner = qwen.model.model.get_image_features

    def counted(pixels: Any, thw: Any, **more: Any) -> Any:
        seen.append(len(thw))
        return inner(pixels, thw, **more)

    qwen.model.model.get_image_features = counted
    first, second = photograph(84, 84, 1), photograph(84, 84, 2)
    with torch.no_grad():
        features = qwen.encode_images([first, second, first.copy(), second, first])
    assert seen == [2]
    assert list(features) == [digest(first), digest(second)]
    assert qwen.encode_images([]) == {}
    assert seen == [2]


def test_the_digest_tells_apart_what_differs_in_a_pixel_or_in_shape_only() -> None:
    image = photograph(28, 56)
    other = image.copy()
    other[0, 0, 0] ^= 1
    turned = image.reshape(56, 28, 3)
    assert digest(image) == digest(image.copy())
    assert len({digest(image), digest(other), digest(turned)}) == 3


# ---------------------------------------------------------------- hidden states and log-probs


def run(qwen: QwenVL, ids: list[int], grids: list[Grid], features: Any, cache: Any = None) -> Any:
    laid = expand(ids, grids, qwen.chat.image_id)
    mask = torch.ones(len(laid.ids), len(laid.ids), dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        return qwen.hidden_states(
            torch.from_numpy(laid.ids)[None], torch.from_numpy(laid.positions)[:, None], mask, features, cache
        )


def test_hidden_states_are_those_of_a_stock_forward(qwen: QwenVL, stock: Any) -> None:
    images = [photograph(84, 84), photograph(56, 112)]
    ids = conversation(qwen.chat.image_id, 2)
    features = torch.cat(list(stock_features(stock, images)))
    hidden = run(qwen, ids, [qwen.grid(image) for image in images], features)
    made = processor()(images=images, return_tensors="pt")
    full = torch.from_numpy(expand(ids, [qwen.grid(image) for image in images], qwen.chat.image_id).ids)[None]
    with torch.no_grad():
        expected = stock.model(
            input_ids=full,
            pixel_values=made["pixel_values"],
            image_grid_thw=made["image_grid_thw"],
            mm_token_type_ids=(full == qwen.chat.image_id).int(),
        ).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    dark = run(qwen, ids, [qwen.grid(image) for image in images], torch.zeros_like(features))
    assert float((dark - hidden)[0, -1].abs().max()) > 0.01  # the images are seen


@pytest.mark.parametrize("rows", [0, 8, 10])
def test_image_tokens_and_features_are_counted(qwen: QwenVL, rows: int) -> None:
    features = torch.zeros(rows, 64) if rows else None
    with pytest.raises(ValueError, match=f"9 image tokens, {rows} feature rows"):
        run(qwen, conversation(qwen.chat.image_id, 1), [(3, 3)], features)


def test_log_probs_are_those_of_the_tempered_logits_without_media_and_role_tokens(qwen: QwenVL) -> None:
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    banned = sorted(qwen.codec.banned_ids)
    allowed = [index for index in range(qwen.codec.vocab_size) if index not in qwen.codec.banned_ids]
    for temperature in (1.0, 0.5):
        with torch.no_grad():
            log_probs = qwen.log_probs(hidden, temperature)
            logits = qwen.model.lm_head(hidden)
        assert torch.isneginf(log_probs[:, banned]).all()
        expected = torch.log_softmax(logits[:, allowed] / temperature, dim=-1)
        torch.testing.assert_close(log_probs[:, allowed], expected, atol=1e-5, rtol=1e-5)
    assert qwen.chat.image_id in banned
    assert not set(qwen.codec.end_ids) & set(banned)


def test_rows_of_the_embedding_that_no_token_uses_have_no_probability(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    size = qwen.codec.vocab_size
    wider = torch.nn.Linear(64, size + 37, bias=False)
    with torch.no_grad():
        wider.weight[:size] = qwen.model.lm_head.weight
        wider.weight[size:] = 10 * qwen.model.lm_head.weight[100]
    hidden = qwen.model.lm_head.weight[100:101].detach() * 10
    with torch.no_grad():
        expected = qwen.log_probs(hidden)
        qwen.model.lm_head = wider
        assert int(qwen.model.lm_head(hidden).argmax()) >= size
        log_probs = qwen.log_probs(hidden)
    assert torch.isneginf(log_probs[:, size:]).all()
    torch.testing.assert_close(log_probs[:, :size], expected)


# ---------------------------------------------------------------- on disk


def test_a_model_comes_back_from_disk_as_it_was(make_qwen: Callable[..., QwenVL], tmp_path: Path) -> None:
    made = make_qwen(seed=3)
    qwen = QwenVL(made.model, made.tokenizer, 3136, 99_999, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_qwen_vl(qwen, str(tmp_path))
    loaded = load_qwen_vl(str(tmp_path))
    expected = qwen.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (loaded.min_pixels, loaded.max_pixels) == (3136, 99_999)
    assert loaded.mean.tolist() == qwen.mean.tolist()
    assert loaded.std.tolist() == qwen.std.tolist()
    assert loaded.tokenizer.get_vocab() == qwen.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == qwen.tokenizer.chat_template
    assert loaded.codec.end_ids == qwen.codec.end_ids
    assert loaded.codec.banned_ids == qwen.codec.banned_ids
    assert not loaded.model.training


def test_a_loaded_model_computes_what_the_saved_one_did(qwen: QwenVL, tmp_path: Path) -> None:
    save_qwen_vl(qwen, str(tmp_path))
    loaded = load_qwen_vl(str(tmp_path))
    ids = conversation(qwen.chat.image_id, 1)
    images = [photograph(84, 84)]

    def log_probs(model: QwenVL) -> Any:
        with torch.no_grad():
            features = torch.cat(list(model.encode_images(images).values()))
            return model.log_probs(run(model, ids, [(3, 3)], features)[0])

    assert torch.equal(log_probs(loaded), log_probs(qwen))


def test_the_type_of_the_weights_can_be_chosen(qwen: QwenVL, tmp_path: Path) -> None:
    save_qwen_vl(qwen, str(tmp_path))
    assert load_qwen_vl(str(tmp_path), dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_qwen_vl(str(tmp_path)).model.dtype == torch.float32


@pytest.mark.parametrize("name", ["/none/at/all", "./none", "../none", "runs/none/model"])
def test_a_missing_directory_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} is not a directory"):
        load_qwen_vl(name)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_directory_without_a_models_files_says_which(qwen: QwenVL, tmp_path: Path, file: str) -> None:
    save_qwen_vl(qwen, str(tmp_path))
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no model: {file} missing"):
        load_qwen_vl(str(tmp_path))


def test_tiny_is_the_name_of_a_folder_of_the_package_and_other_names_stay() -> None:
    assert Path(model_path("tiny")).parts[-3:] == ("agents", "assets", "tiny")
    assert model_path("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
