"""Images in, hidden states out, of every family: what transformers computes; and what is kept between calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.qwen_vl import QwenVL, digest, expand, load_qwen_vl, model_path, save_qwen_vl
from agents.tiny_model import tiny_qwen_vl
from mimgenv.types import Image

Grid = tuple[int, int]
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
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


# ---------------------------------------------------------------- images


FIRST, SECOND, THIRD = (photograph(84, 84, seed) for seed in (1, 2, 3))


def frozen(qwen: QwenVL) -> QwenVL:
    qwen.model.model.visual.requires_grad_(False)
    return qwen


def test_equal_images_are_encoded_once(
    make_qwen: Callable[..., QwenVL], count_encodes: Callable[..., list[int]]
) -> None:
    qwen = make_qwen()
    seen = count_encodes(qwen)
    features = qwen.encode_images([FIRST, SECOND, FIRST.copy(), SECOND, FIRST])
    assert seen == [2]
    assert list(features) == [digest(FIRST), digest(SECOND)]
    assert qwen.encode_images([]) == {}
    assert seen == [2]


def test_under_a_frozen_tower_an_image_is_encoded_once_whatever_the_passes(
    make_qwen: Callable[..., QwenVL], count_encodes: Callable[..., list[int]]
) -> None:
    qwen = frozen(make_qwen())
    seen = count_encodes(qwen)
    first = qwen.encode_images([FIRST, SECOND])
    with torch.no_grad():
        again = qwen.encode_images([SECOND, THIRD])
    qwen.weights_changed()
    last = qwen.encode_images([THIRD, FIRST, SECOND])
    assert seen == [2, 1]
    assert list(last) == [digest(image) for image in (THIRD, FIRST, SECOND)]
    for features in (first, again):
        for key, value in features.items():
            assert torch.equal(value, last[key])
    assert not any(features.requires_grad for features in last.values())


def test_under_a_trained_tower_every_pass_with_gradients_encodes_anew(
    make_qwen: Callable[..., QwenVL], count_encodes: Callable[..., list[int]]
) -> None:
    qwen = make_qwen()
    seen = count_encodes(qwen)
    with torch.no_grad():
        kept = qwen.encode_images([FIRST])[digest(FIRST)]
        qwen.encode_images([FIRST])
    assert (seen, kept.requires_grad) == ([1], False)
    for _ in range(2):
        features = qwen.encode_images([FIRST])[digest(FIRST)]
        assert torch.autograd.grad(features.sum(), qwen.model.model.visual.merger.mlp[2].weight)[0].norm() > 0
    assert seen == [1, 1, 1]
    with torch.no_grad():
        qwen.encode_images([FIRST])
    assert seen == [1, 1, 1]  # the weights are the same


@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_were_written_to_are_noticed(make_qwen: Callable[..., QwenVL], trained: bool) -> None:
    """Even of a tower that is frozen by now, such as one that was loaded anew."""
    qwen = make_qwen()
    weight = qwen.model.model.visual.merger.mlp[2].weight
    with torch.no_grad():
        before = qwen.encode_images([FIRST])[digest(FIRST)]
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()
    qwen.model.model.visual.requires_grad_(trained)
    with torch.no_grad():
        after = qwen.encode_images([FIRST])[digest(FIRST)]
    assert float((after - before).abs().max()) > 0.01


def test_of_a_trained_tower_nothing_outlives_the_word_that_weights_changed(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    with torch.no_grad():
        before = qwen.encode_images([FIRST])[digest(FIRST)]
        qwen.model.model.visual.merger.mlp[2].weight.data.mul_(2)  # which leaves no trace
        qwen.weights_changed()
        assert qwen._features.held == 0
        after = qwen.encode_images([FIRST])[digest(FIRST)]
    assert float((after - before).abs().max()) > 0.01


def test_without_a_budget_nothing_is_kept(
    make_qwen: Callable[..., QwenVL], qwen: QwenVL, count_encodes: Callable[..., list[int]]
) -> None:
    patcher = qwen.patcher
    bounds = (patcher.min_pixels, patcher.max_pixels, patcher.mean, patcher.std)
    for budget, encodes in ((0, [2, 2]), (1 << 20, [2])):
        made = frozen(QwenVL(make_qwen().model, qwen.tokenizer, *bounds, vision_cache_bytes=budget))
        seen = count_encodes(made)
        for _ in range(2):
            assert len(made.encode_images([FIRST, SECOND])) == 2
        assert seen == encodes


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_the_same_features_to_the_last_bit_whatever_is_encoded_with_it(
    twins: Callable[[str], Any], family: str
) -> None:
    """A run that is resumed starts with nothing kept, and must not differ from one that was not stopped."""
    qwen, _ = twins(family)
    images = [photograph(*size, seed) for seed, size in enumerate([(84, 84), (64, 120), (84, 84), (224, 224)] * 2)]
    with torch.no_grad():
        together = qwen._encode(images)
        for image, features in zip(images, together, strict=True):
            assert torch.equal(qwen._encode([image])[0], features)


def test_more_images_than_fit_are_all_served(
    make_qwen: Callable[..., QwenVL], qwen: QwenVL, count_encodes: Callable[..., list[int]]
) -> None:
    patcher, one = qwen.patcher, 9 * 64 * 4
    bounds = (patcher.min_pixels, patcher.max_pixels, patcher.mean, patcher.std)
    made = frozen(QwenVL(make_qwen().model, qwen.tokenizer, *bounds, vision_cache_bytes=2 * one))
    seen = count_encodes(made)
    features = made.encode_images([FIRST, SECOND, THIRD])
    assert len(features) == 3
    assert made._features.held == 2 * one
    again = made.encode_images([THIRD, FIRST])
    assert seen == [3, 1]
    assert all(torch.allclose(again[key], features[key], atol=1e-6) for key in again)


def test_passing_features_on_does_not_change_them(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = frozen(make_qwen())
    features = qwen.encode_images([FIRST])[digest(FIRST)]
    before = features.clone()
    laid = expand(conversation(qwen.chat.image_id, 1), [(3, 3)], qwen.chat.image_id)
    mask = torch.ones(len(laid.ids), len(laid.ids), dtype=torch.bool).tril()[None, None]
    positions = torch.from_numpy(laid.positions)[:, None]
    hidden = qwen.hidden_states(torch.from_numpy(laid.ids)[None], positions, mask, features)
    hidden.sum().backward()
    assert torch.equal(features, before)
    assert features.grad is None and not features.requires_grad
    assert qwen.encode_images([FIRST])[digest(FIRST)].data_ptr() != before.data_ptr()
    assert torch.equal(qwen.encode_images([FIRST])[digest(FIRST)], before)


def test_two_models_that_see_with_one_tower_encode_an_image_once(
    make_qwen: Callable[..., QwenVL], count_encodes: Callable[..., list[int]]
) -> None:
    policy, reference = frozen(make_qwen()), make_qwen()
    expected = reference.encode_images([FIRST])[digest(FIRST)]
    reference.see_with(policy)
    seen, other = count_encodes(policy), count_encodes(reference)
    features = policy.encode_images([FIRST])[digest(FIRST)]
    with torch.no_grad():
        assert torch.equal(reference.encode_images([FIRST])[digest(FIRST)], features)
    assert (seen, other) == ([1], [])
    torch.testing.assert_close(features, expected)
    assert reference.model.model.visual is policy.model.model.visual


def test_a_tower_that_is_trained_cannot_be_shared(make_qwen: Callable[..., QwenVL], qwen: QwenVL) -> None:
    with pytest.raises(ValueError, match="a vision tower that is trained cannot be shared"):
        make_qwen().see_with(qwen)


# ---------------------------------------------------------------- hidden states and log-probs


def run(qwen: QwenVL, ids: list[int], grids: list[Grid], features: Any, cache: Any = None) -> Any:
    laid = expand(ids, grids, qwen.chat.image_id)
    mask = torch.ones(len(laid.ids), len(laid.ids), dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        return qwen.hidden_states(
            torch.from_numpy(laid.ids)[None], torch.from_numpy(laid.positions)[:, None], mask, features, cache
        )


def stock_hidden(qwen: QwenVL, stock: Any, ids: list[int], images: list[Image]) -> Any:
    """Of an untouched model, which finds positions and mask for itself."""
    patcher = qwen.patcher
    settings = {"image_mean": patcher.mean.tolist(), "image_std": patcher.std.tolist(), "patch_size": patcher.patch}
    made = Qwen2VLImageProcessorPil(min_pixels=patcher.min_pixels, max_pixels=patcher.max_pixels, **settings)(
        images=images, return_tensors="pt"
    )
    full = torch.from_numpy(expand(ids, [qwen.grid(image) for image in images], qwen.chat.image_id).ids)[None]
    with torch.no_grad():
        return stock.model(
            input_ids=full,
            pixel_values=made["pixel_values"],
            image_grid_thw=made["image_grid_thw"],
            mm_token_type_ids=(full == qwen.chat.image_id).int(),
        ).last_hidden_state


def encoded(qwen: QwenVL, images: list[Image]) -> Any:
    with torch.no_grad():
        features = qwen.encode_images(images)
    return torch.cat([features[digest(image)] for image in images])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_a_stock_forward(twins: Callable[[str], Any], family: str) -> None:
    qwen, stock = twins(family)
    images = [photograph(84, 84), photograph(64, 120)]
    ids = conversation(qwen.chat.image_id, 2)
    grids = [qwen.grid(image) for image in images]
    features = encoded(qwen, images)
    hidden = run(qwen, ids, grids, features)
    torch.testing.assert_close(hidden, stock_hidden(qwen, stock, ids, images), atol=5e-5, rtol=1e-5)
    dark = run(qwen, ids, grids, torch.zeros_like(features))
    assert float((dark - hidden)[0, -1].abs().max()) > 0.01  # the images are seen


def test_the_features_of_deepstack_stand_behind_the_main_ones_and_are_seen(twins: Callable[[str], Any]) -> None:
    qwen, _ = twins("qwen3_vl")
    images, ids = [photograph(96, 96)], conversation(qwen.chat.image_id, 1)
    features = encoded(qwen, images)
    assert features.shape == (9, 3 * 64)
    hidden = run(qwen, ids, [(3, 3)], features)
    for part in range(3):
        blind = features.clone()
        blind[:, 64 * part : 64 * (part + 1)] = 0
        assert float((run(qwen, ids, [(3, 3)], blind) - hidden)[0, -1].abs().max()) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_padded_on_the_left_and_a_step_after_it_give_the_states_of_one_row(
    twins: Callable[[str], Any], family: str
) -> None:
    from transformers import DynamicCache

    qwen, stock = twins(family)
    images = [photograph(84, 84)]
    ids = conversation(qwen.chat.image_id, 1)
    grids = [qwen.grid(image) for image in images]
    expected = stock_hidden(qwen, stock, [*ids, TEXT + 9], images)[0]
    laid = expand(ids, grids, qwen.chat.image_id)
    length, padding = len(laid.ids), 3
    real = torch.arange(padding + length) >= padding
    causal = torch.ones(len(real), len(real), dtype=torch.bool).tril()
    mask = ((causal & real) | torch.eye(len(real), dtype=torch.bool))[None, None]
    cache = DynamicCache(config=qwen.model.config.text_config)
    row = torch.nn.functional.pad(torch.from_numpy(laid.ids), (padding, 0), value=TEXT)[None]  # no word for padding
    where = torch.nn.functional.pad(torch.from_numpy(laid.positions), (padding, 0))[:, None]
    with torch.no_grad():
        hidden = qwen.hidden_states(row, where, mask, encoded(qwen, images), cache)
        look = torch.nn.functional.pad(real, (0, 1), value=True)[None, None, None]
        position = torch.full((3, 1, 1), laid.next_position)
        step = qwen.hidden_states(torch.tensor([[TEXT + 9]]), position, look, None, cache)
    torch.testing.assert_close(hidden[0, padding:], expected[:-1], atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(step[0, 0], expected[-1], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_so_does_a_prompt_of_one_token(twins: Callable[[str], Any], family: str) -> None:
    qwen, _ = twins(family)
    one, two = torch.tensor([[TEXT + 1]]), torch.tensor([[TEXT, TEXT + 1]])
    with torch.no_grad():
        alone = qwen.hidden_states(one, torch.zeros(3, 1, 1, dtype=torch.int64), None, None)
        padded = qwen.hidden_states(
            two, torch.zeros(3, 1, 2, dtype=torch.int64), torch.eye(2, dtype=torch.bool)[None, None], None
        )
    torch.testing.assert_close(padded[0, 1], alone[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "shares"), [(name, name != "qwen3_5") for name in FAMILIES])
def test_a_model_with_linear_attention_cannot_share_a_prompt_and_says_why(
    twins: Callable[[str], Any], family: str, shares: bool
) -> None:
    qwen, _ = twins(family)
    assert qwen.shares_prompts == shares
    assert ("linear attention" in qwen.unshareable) == (not shares)


def test_a_model_with_a_sliding_window_is_refused(make_qwen: Callable[..., QwenVL], qwen: QwenVL) -> None:
    model = make_qwen().model
    model.config.text_config.layer_types[1] = "sliding_attention"
    with pytest.raises(ValueError, match="full or linear attention are supported, not sliding_attention"):
        QwenVL(model, qwen.tokenizer, 784, 99_999, (0.5,) * 3, (0.5,) * 3)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_from_disk_as_it_was(family: str, tmp_path: Path) -> None:
    made = tiny_qwen_vl(3, family)
    qwen = QwenVL(made.model, made.tokenizer, 3136, 99_999, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_qwen_vl(qwen, str(tmp_path))
    loaded = load_qwen_vl(str(tmp_path))
    assert type(loaded.model) is type(qwen.model)
    expected = qwen.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (loaded.patcher.min_pixels, loaded.patcher.max_pixels) == (3136, 99_999)
    assert (loaded.patcher.patch, loaded.patcher.merge) == (qwen.patcher.patch, qwen.patcher.merge)
    assert loaded.patcher.mean.tolist() == qwen.patcher.mean.tolist()
    assert loaded.patcher.std.tolist() == qwen.patcher.std.tolist()
    assert loaded.tokenizer.get_vocab() == qwen.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == qwen.tokenizer.chat_template
    assert loaded.codec.end_ids == qwen.codec.end_ids
    assert loaded.codec.banned_ids == qwen.codec.banned_ids
    assert not loaded.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_computes_what_the_saved_one_did(
    twins: Callable[[str], Any], family: str, tmp_path: Path
) -> None:
    qwen, _ = twins(family)
    save_qwen_vl(qwen, str(tmp_path))
    loaded = load_qwen_vl(str(tmp_path))
    ids, images = conversation(qwen.chat.image_id, 1), [photograph(84, 84)]
    grids = [qwen.grid(image) for image in images]
    ours, theirs = (model.log_probs(run(model, ids, grids, encoded(model, images))[0]) for model in (loaded, qwen))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_itself_loads_what_was_saved(twins: Callable[[str], Any], family: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    qwen, stock = twins(family)
    save_qwen_vl(qwen, str(tmp_path))
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(stock)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == qwen.tokenizer.get_vocab()
    made = AutoImageProcessor.from_pretrained(tmp_path)(images=[photograph(100, 60)], return_tensors="np")
    np.testing.assert_allclose(made["pixel_values"], qwen.patcher.patches(photograph(100, 60)), atol=2e-6)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["processor_class"] == PROCESSOR_MAPPING_NAMES[family]
    written = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert written["video_processor_type"] == ("Qwen3" if family.startswith("qwen3") else "Qwen2") + "VLVideoProcessor"


def test_a_family_that_is_not_supported_is_refused_by_name(qwen: QwenVL, tmp_path: Path) -> None:
    save_qwen_vl(qwen, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "pixtral"}))
    with pytest.raises(ValueError, match="one of qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, not pixtral"):
        load_qwen_vl(str(tmp_path))


def test_an_attention_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="attention is one of sdpa, flex_attention, not eager"):
        load_qwen_vl("tiny", attention="eager")


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
