"""Shapes of published models: the counts of the hub, files before what is written down, models of random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.qwen_vl import model_path
from agents.shapes import PUBLISHED, ModelShape, model_shape, random_model
from agents.tiny_model import tiny_qwen_vl

COUNTS = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}
"""Parameters as the hub gives them for the published weights."""
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def tiny_shape(family: str) -> ModelShape:
    qwen = tiny_qwen_vl(family=family)
    cut = qwen.patcher
    return ModelShape(qwen.model.config, (cut.min_pixels, cut.max_pixels, cut.mean, cut.std), qwen.tokenizer, "a test")


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_every_shape_that_is_written_down_has_a_published_count() -> None:
    assert set(COUNTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_as_many_parameters_as_its_published_weights(name: str) -> None:
    qwen = random_model(model_shape(name), "bfloat16", device="meta")
    assert qwen.model.num_parameters() == COUNTS[name]
    assert {parameter.device.type for parameter in qwen.model.parameters()} == {"meta"}


def test_it_is_said_that_a_shape_is_written_down_here() -> None:
    shape = model_shape(SEVEN)
    assert "agents/shapes.py" in shape.source
    assert shape.tokenizer is None


def test_files_that_can_be_had_win_over_what_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_path("tiny"), tmp_path / SEVEN)
    monkeypatch.chdir(tmp_path)
    shape = model_shape(SEVEN)
    assert shape.config.text_config.hidden_size == 64
    assert shape.tokenizer is not None
    assert shape.source == f"the files of {SEVEN}"


def test_a_directory_that_cannot_be_read_is_no_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SEVEN).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a model directory"):
        model_shape(SEVEN)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(FileNotFoundError, match=r"Qwen/Nothing is not .* Qwen/Qwen2.5-VL-7B-Instruct"):
        model_shape("Qwen/Nothing")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_model_of_fewer_layers_still_reads_text_and_images(family: str) -> None:
    qwen = random_model(tiny_shape(family), "float32", layers=1)
    assert len(qwen.model.model.language_model.layers) == len(qwen.model.model.visual.blocks) == 1
    assert getattr(qwen.model.config.text_config, "layer_types", None) in (None, ["full_attention"])
    image = np.zeros((64, 64, 3), np.uint8)
    (features,) = qwen.encode_images([image]).values()
    ids = torch.tensor([[5, *[qwen.chat.image_id] * len(features), 6]])
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    assert qwen.hidden_states(ids, positions, None, features).isfinite().all()


def test_a_cut_model_keeps_a_layer_that_attends_to_the_whole_image() -> None:
    qwen = random_model(tiny_shape("qwen2_5_vl"), "float32", layers=1)
    assert qwen.model.model.visual.fullatt_block_indexes == [0]


def test_the_seed_decides_the_weights_and_draws_nothing_from_others() -> None:
    shape = tiny_shape("qwen2_5_vl")
    state = torch.get_rng_state()
    first, again, other = (weights(random_model(shape, "float32", seed).model) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_shape_is_not_changed_by_the_models_made_of_it() -> None:
    shape = tiny_shape("qwen2_5_vl")
    random_model(shape, "float32", layers=1)
    assert shape.config.text_config.num_hidden_layers == 4
