"""A tiny, randomly initialised Qwen2.5-VL that trains on a CPU in minutes, in the form of a real checkpoint.

The real architecture at 0.4 M parameters. What makes it learn fast at this size: a large initial scale, a short
RoPE base, and M-RoPE sections of one, so that time, height and width each see all frequencies.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from agents.qwen_vl import QwenVL
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


def tiny_tokenizer() -> Any:
    """The shipped tokenizer with a chat template, as a Hugging Face tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=default_codec().tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_qwen_vl(seed: int = 0) -> QwenVL:
    """A fresh model; `seed` decides its weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    config = Qwen2_5_VLConfig(**_configuration(tokenizer))
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # images start as a whisper, so that text is learned first
        model.model.visual.merger.mlp[2].weight.mul_(0.15)
    return QwenVL(model.eval(), tokenizer, *PIXEL_BOUNDS, MEAN, STD)


def _configuration(tokenizer: Any) -> dict[str, Any]:
    index = tokenizer.convert_tokens_to_ids
    hidden, heads = 64, 4
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 20.0,
            "mrope_section": [1] * (hidden // heads // 2),
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 3,
        "patch_size": 14,
        "out_hidden_size": hidden,
        "window_size": 84,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    special = {
        "image_token_id": index("<|image_pad|>"),
        "video_token_id": index("<|video_pad|>"),
        "vision_start_token_id": index("<|vision_start|>"),
        "vision_end_token_id": index("<|vision_end|>"),
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **special}
