"""A tiny, randomly initialised Qwen-VL that trains on a CPU in minutes, in the form of a real checkpoint.

The real architecture at 0.4 M parameters: Qwen2.5-VL's, unless another family is asked for. What makes it learn fast
at this size: a large initial scale, a short RoPE base, and M-RoPE sections of one, so that time, height and width each
see all frequencies.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from agents.attention import register
from agents.qwen_vl import ATTENTIONS, QwenVL
from mimgenv.codec import default_codec

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's turns without a system prompt, which would only make a tiny model's prompts longer."""

PIXEL_BOUNDS: Final = (28 * 28, 12_845_056)
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
WIDE_PATCHES: Final = ((32 * 32, 16_777_216), (0.5,) * 3, (0.5,) * 3)
"""Size bounds, mean and standard deviation of the families with patches of 16 pixels."""
FAMILY: Final = "qwen2_5_vl"
HIDDEN: Final = 64
HEADS: Final = 4


# What families differ in, by model type.
_EACH_ALL: Final = {"mrope_section": [1] * (HIDDEN // HEADS // 2)}
_INTERLEAVED: Final = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
_ROPE: Final[dict[str, dict[str, Any]]] = {
    "qwen2_vl": _EACH_ALL,
    "qwen2_5_vl": _EACH_ALL,
    "qwen3_vl": _INTERLEAVED,
    "qwen3_5": {**_INTERLEAVED, "partial_rotary_factor": 1.0},
}
_TEXT: Final[dict[str, dict[str, Any]]] = {
    "qwen3_vl": {"head_dim": HIDDEN // HEADS},
    "qwen3_5": {
        "head_dim": HIDDEN // HEADS,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
_LEARNED_PLACES: Final = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "patch_size": 16,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 64,
}
_VISION: Final[dict[str, dict[str, Any]]] = {
    "qwen2_vl": {"embed_dim": 48, "hidden_size": HIDDEN, "mlp_ratio": 2, "patch_size": 14},
    "qwen2_5_vl": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "patch_size": 14,
        "out_hidden_size": HIDDEN,
        "window_size": 84,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {**_LEARNED_PLACES, "deepstack_visual_indexes": [0, 1]},
    "qwen3_5": _LEARNED_PLACES,
}


def tiny_tokenizer() -> Any:
    """The shipped tokenizer with a chat template, as a Hugging Face tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=default_codec().tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_qwen_vl(seed: int = 0, family: str = FAMILY, attention: str = "sdpa") -> QwenVL:
    """A fresh model of a family, such as `qwen3_vl`; `seed` decides its weights. `attention`: see `load_qwen_vl`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(family, **_configuration(tokenizer, family))
    register()
    config._attn_implementation = {"text_config": ATTENTIONS[attention], "vision_config": "sdpa"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    for merger in mergers(model):  # images start as a whisper, so that text is learned first
        whisper(merger, 0.15)
    bounds = (PIXEL_BOUNDS, MEAN, STD) if config.vision_config.patch_size == 14 else WIDE_PATCHES
    return QwenVL(model.eval(), tokenizer, *bounds[0], *bounds[1:])


def mergers(model: Any) -> list[Any]:
    """The modules through which all that a vision tower has to say goes to the language model."""
    return [model.model.visual.merger, *getattr(model.model.visual, "deepstack_merger_list", ())]


def whisper(merger: Any, share: float) -> None:
    """Multiplies what a merger says by `share`."""
    last = merger.mlp[2] if hasattr(merger, "mlp") else merger.linear_fc2
    with torch.no_grad():
        last.weight.mul_(share)


def _configuration(tokenizer: Any, family: str = FAMILY) -> dict[str, Any]:
    index = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_TEXT.get(family, {}),
    }
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 20.0, **_ROPE[family]}
    special = {
        "image_token_id": index("<|image_pad|>"),
        "video_token_id": index("<|video_pad|>"),
        "vision_start_token_id": index("<|vision_start|>"),
        "vision_end_token_id": index("<|vision_end|>"),
    }
    vision = {"depth": 2, "num_heads": 3, "initializer_range": 0.1, **_VISION[family]}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **special}
