"""What published models look like, without their weights: the shape of a model by its name.

Owns the numbers that stand in the `config.json` of each model on the hub, for machines that cannot reach it, and makes
models of such a shape with random weights, or with none. Knows nothing of training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from agents.attention import register
from agents.qwen_vl import ATTENTIONS, QwenVL, model_path
from agents.tiny_model import MEAN, PIXEL_BOUNDS, STD, tiny_tokenizer
from agents.vision import pixel_bounds


@dataclass(frozen=True, slots=True)
class _Text:
    """Widths of a language model, and whether its head is the embedding."""

    width: int
    inner: int
    layers: int
    heads: int
    key_values: int
    vocabulary: int
    tied: bool


@dataclass(frozen=True, slots=True)
class _Vision:
    """Widths of a vision tower; `sides` are the layers that see the whole image, or that DeepStack takes."""

    width: int
    inner: int
    layers: int
    sides: tuple[int, ...] = ()


_WINDOWS: Final = (7, 15, 23, 31)
_PUBLISHED: Final[dict[str, tuple[str, _Text, _Vision]]] = {
    "Qwen/Qwen2-VL-2B-Instruct": (
        "qwen2_vl",
        _Text(1536, 8960, 28, 12, 2, 151_936, True),
        _Vision(1280, 5120, 32),
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        "qwen2_vl",
        _Text(3584, 18944, 28, 28, 4, 152_064, False),
        _Vision(1280, 5120, 32),
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        _Text(2048, 11008, 36, 16, 2, 151_936, True),
        _Vision(1280, 3420, 32, _WINDOWS),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        _Text(3584, 18944, 28, 28, 4, 152_064, False),
        _Vision(1280, 3420, 32, _WINDOWS),
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        "qwen2_5_vl",
        _Text(8192, 29568, 80, 64, 8, 152_064, False),
        _Vision(1280, 3456, 32, _WINDOWS),
    ),
    "Qwen/Qwen3-VL-2B-Instruct": (
        "qwen3_vl",
        _Text(2048, 6144, 28, 16, 8, 151_936, True),
        _Vision(1024, 4096, 24, (5, 11, 17)),
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        _Text(2560, 9728, 36, 32, 8, 151_936, True),
        _Vision(1024, 4096, 24, (5, 11, 17)),
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl",
        _Text(4096, 12288, 36, 32, 8, 151_936, False),
        _Vision(1152, 4304, 27, (8, 16, 24)),
    ),
}
PUBLISHED: Final = tuple(_PUBLISHED)
"""Hub names whose shapes are written down here, each from the `config.json` of that model."""

_HEAD: Final = 128
"""Features of an attention head, of all of them."""
_ROPE: Final[dict[str, dict[str, Any]]] = {
    "qwen2_vl": {"rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "qwen2_5_vl": {"rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "qwen3_vl": {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
}
_VISION: Final[dict[str, dict[str, Any]]] = {
    "qwen2_vl": {"patch_size": 14, "mlp_ratio": 4},
    "qwen2_5_vl": {"patch_size": 14, "window_size": 112},
    "qwen3_vl": {"patch_size": 16, "num_position_embeddings": 2304},
}
_PATCHES_OF_14: Final = (56 * 56, PIXEL_BOUNDS[1], MEAN, STD)
_PIXELS: Final[dict[str, tuple[Any, ...]]] = {
    "qwen2_vl": _PATCHES_OF_14,
    "qwen2_5_vl": _PATCHES_OF_14,
    "qwen3_vl": (256 * 256, 16_777_216, (0.5,) * 3, (0.5,) * 3),
}
"""Of the image processors: least and most pixels, mean and deviation; from `preprocessor_config.json`."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model without its weights.

    Attributes:
        config: Its transformers configuration.
        pixels: Least and most pixels of its image processor, mean and deviation per channel.
        tokenizer: Its tokenizer; None where it cannot be had.
        source: In words, where these come from.
    """

    config: Any
    pixels: tuple[Any, ...]
    tokenizer: Any
    source: str


def model_shape(name: str) -> ModelShape:
    """The shape of a model: from its files where they can be had, else as written down here.

    Args:
        name: A directory, a hub name, or `tiny`.

    Raises:
        FileNotFoundError: If its files cannot be had and it is not in `PUBLISHED`.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = model_path(name)
    try:
        found = AutoConfig.from_pretrained(path), pixel_bounds(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        if name not in _PUBLISHED or Path(path).is_dir():
            rule = "a model directory, a hub name in reach, or one of"
            raise FileNotFoundError(f"{name} is not {rule} {', '.join(PUBLISHED)}") from error
        return _written_down(name)
    return ModelShape(*found, f"the files of {name}")


def random_model(
    shape: ModelShape, dtype: str, seed: int = 0, device: str = "cpu", layers: int | None = None
) -> QwenVL:
    """A model of a shape whose weights mean nothing.

    Args:
        shape: Widths, heads, vocabulary. Without a tokenizer the shipped one stands in; what it has no id for is
            never sampled.
        dtype: Of all weights.
        seed: Decides the weights.
        device: `cpu`, or `meta` for weights that take no memory.
        layers: Of the language model and of the vision tower, in place of the shape's own.
    """
    from transformers import AutoModelForImageTextToText

    register()
    config = copy.deepcopy(shape.config)
    config._attn_implementation = {"text_config": ATTENTIONS["sdpa"], "vision_config": "sdpa"}
    if layers is not None:
        _cut(config, layers)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
        return QwenVL(model.eval(), shape.tokenizer or tiny_tokenizer(), *shape.pixels)


def _cut(config: Any, layers: int) -> None:
    """Leaves the first layers; where a list says what each layer does, its end is cut off too."""
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = vision.depth = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[-layers:]
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if hasattr(vision, name):
            setattr(vision, name, [layers - 1])


def _written_down(name: str) -> ModelShape:
    from transformers import AutoConfig

    family, text, vision = _PUBLISHED[name]
    config = AutoConfig.for_model(
        family,
        text_config=_text(family, text),
        vision_config=_vision(family, text, vision),
        tie_word_embeddings=text.tied,
    )
    return ModelShape(config, _PIXELS[family], None, "agents/shapes.py, since the hub is out of reach")


def _text(family: str, text: _Text) -> dict[str, Any]:
    settings = {
        "vocab_size": text.vocabulary,
        "hidden_size": text.width,
        "intermediate_size": text.inner,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.key_values,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": text.tied,
        "rope_parameters": {"rope_type": "default", **_ROPE[family]},
    }
    return settings | ({"head_dim": _HEAD} if family == "qwen3_vl" else {})


def _vision(family: str, text: _Text, vision: _Vision) -> dict[str, Any]:
    settings = {"depth": vision.layers, "num_heads": 16, **_VISION[family]}
    if family == "qwen2_vl":  # here the width of the tower has another name
        return settings | {"embed_dim": vision.width, "hidden_size": text.width}
    settings |= {"hidden_size": vision.width, "intermediate_size": vision.inner, "out_hidden_size": text.width}
    name = "fullatt_block_indexes" if family == "qwen2_5_vl" else "deepstack_visual_indexes"
    return settings | {name: list(vision.sides)}
