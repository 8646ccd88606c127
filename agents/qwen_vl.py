"""A model of the Qwen-VL kind as the sampler and the trainer see it: images in, hidden states and log-probs out.

Owns what is peculiar to these models: image tokens, features, masks, loading. Sampling is in hf_sampler.py, gradients
in `rl`. Positions are always given to the model, never left for it to infer: its own bookkeeping is hidden state that
goes stale between calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agents.attention import BRANCHED, FLEX, LONG, Branches, block_mask, dense_mask, find_branches, register
from agents.chat import Chat
from agents.positions import Expanded, Ids, expand
from agents.vision import FeatureCache, Patcher, digest, pixel_bounds, speed_up_vision
from mimgenv.codec import Codec
from mimgenv.types import Image

__all__ = ["Expanded", "Ids", "QwenVL", "digest", "expand", "load_codec", "load_qwen_vl", "model_path", "save_qwen_vl"]

MODEL_FILES: Final = ("config.json", "tokenizer.json")
TINY: Final = "tiny"
"""The name of the cold-started checkpoint that ships with the package."""
PROCESSORS: Final[Mapping[str, tuple[str, str]]] = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}
"""The families supported, by model type, and the processors each is saved with. All else is in a model's config."""
ATTENTIONS: Final[Mapping[str, str]] = {"sdpa": BRANCHED, "flex_attention": FLEX}
"""Attentions of the language model, and their names in transformers."""


class QwenVL:
    """A model with what it takes to feed it.

    Args:
        model: A `...ForConditionalGeneration` of one of the families supported.
        tokenizer: Its Hugging Face tokenizer, with a chat template.
        min_pixels, max_pixels: Bounds of the image processor.
        image_mean, image_std: Per channel, of pixels in [0, 1].
        vision_cache_bytes: Most bytes of image features kept between calls; with 0 none are.

    Raises:
        ValueError: If the model is of no family supported, or has layers of a kind that none has.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        min_pixels: int,
        max_pixels: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        vision_cache_bytes: int = 2 << 30,
    ) -> None:
        _check_family(model.config.model_type)
        self.model = model
        self.tokenizer = tokenizer
        self.codec = Codec(tokenizer.backend_tokenizer)
        self.chat = Chat(self.codec, self._render)
        vision, text = model.config.vision_config, model.config.text_config
        self.patcher = Patcher(
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
            min_pixels,
            max_pixels,
            np.asarray(image_mean, np.float32),
            np.asarray(image_std, np.float32),
        )
        self._layer_types = frozenset(getattr(text, "layer_types", None) or ())
        if strange := sorted(self._layer_types - {"full_attention", "linear_attention"}):
            raise ValueError(f"layers of full or linear attention are supported, not {', '.join(strange)}")
        self._attention = text._attn_implementation
        self._features = FeatureCache(vision_cache_bytes)
        self._banned = torch.tensor(sorted(self.codec.banned_ids), dtype=torch.int64)
        speed_up_vision(model.model.visual)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def unshareable(self) -> str:
        """Why samples cannot share a prompt in a packed row; empty where they can."""
        if "linear_attention" not in self._layer_types:
            return ""
        return "layers of linear attention carry one state along the row, so that a branch would see those before it"

    @property
    def shares_prompts(self) -> bool:
        """Whether samples may share a prompt in a packed row; otherwise every sample needs a row of its own."""
        return not self.unshareable

    def grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of tokens an image takes."""
        return self.patcher.grid(image)

    def encode_images(self, images: Sequence[Image]) -> dict[bytes, Tensor]:
        """Features (tokens, features) of each distinct image, by digest; not to be written to.

        Every image is encoded once, and not again while its features are kept: with a frozen tower they always may
        be, with a trained one until its weights change and not while gradients flow. The features of DeepStack stand
        behind the main ones, along the last axis.
        """
        distinct = {digest(image): image for image in images}
        if torch.is_grad_enabled() and self._vision_is_trained():
            return dict(zip(distinct, self._encode(list(distinct.values())), strict=True))
        self._features.renew(self._vision_version())
        found = {key: self._features.get(key) for key in distinct}
        missing = [key for key, features in found.items() if features is None]
        with torch.no_grad():
            made = dict(zip(missing, self._encode([distinct[key] for key in missing]), strict=True))
        for key, features in made.items():
            self._features.put(key, features)
        return {key: made[key] if features is None else features for key, features in found.items()}

    def weights_changed(self) -> None:
        """Forgets what depends on weights that are trained: the features of images, unless the tower is frozen."""
        if self._vision_is_trained():
            self._features.clear()

    def see_with(self, other: QwenVL) -> None:
        """Takes over the vision tower of a model, and the features it keeps: what both see is encoded once.

        Raises:
            ValueError: If that tower is trained, so that this model would change with it.
        """
        if other._vision_is_trained():
            raise ValueError("a vision tower that is trained cannot be shared with another model")
        self.model.model.visual, self._features = other.model.model.visual, other._features

    def _vision_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.model.visual.parameters())

    def _vision_version(self) -> int:
        """Differs after the tower was written to in place, by an optimiser or by loading: a belt to the braces."""
        return sum(parameter._version for parameter in self.model.model.visual.parameters())

    def _encode(self, images: Sequence[Image]) -> list[Tensor]:
        """Features (tokens, features) of each image, in one pass of the vision tower."""
        if not images:
            return []
        pixels = torch.from_numpy(np.concatenate([self.patcher.patches(image) for image in images]))
        merge = self.patcher.merge
        thw = torch.tensor([(1, rows * merge, columns * merge) for rows, columns in map(self.grid, images)])
        found = self.model.model.get_image_features(pixels.to(self.device), thw.to(self.device), return_dict=True)
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
        return [torch.cat(features, dim=-1) for features in zip(*layers, strict=True)]

    def packed_mask(self, segments: Tensor) -> Any:
        """What `hidden_states` takes as the mask of packed rows, given their segments (B, T) int64."""
        if self._attention == FLEX:
            return block_mask(segments)
        parted = self._attention == BRANCHED and self.shares_prompts and segments.shape[1] >= LONG
        return find_branches(segments) if parted else dense_mask(segments)

    def hidden_states(
        self, ids: Tensor, positions: Tensor, mask: Any, features: Tensor | None, cache: Any = None
    ) -> Tensor:
        """Runs the language model.

        Args:
            ids: (B, T) int64, expanded.
            positions: (3, B, T) int64.
            mask: (B, 1, T, past + T) bool, True where a token may look; or what `packed_mask` gave; None for a plain
                causal step.
            features: (image tokens, features), in the order of the placeholders, rows first; None without images.
            cache: A transformers cache to read and extend.

        Returns:
            (B, T, hidden).

        Raises:
            ValueError: If the number of placeholders and of feature rows differ.
        """
        embeddings = self.model.get_input_embeddings()(ids)
        placeholders = ids == self.chat.image_id
        count = 0 if features is None else len(features)
        if int(placeholders.sum()) != count:
            raise ValueError(f"{int(placeholders.sum())} image tokens, {count} feature rows")
        more: dict[str, Any] = {}
        if isinstance(mask, Branches):
            more["branches"], mask = mask, mask.mask  # a mask of four dimensions is handed on as it is
        if features is not None:
            main, *layers = torch.split(features.to(embeddings.dtype), embeddings.shape[-1], dim=-1)
            embeddings = embeddings.masked_scatter(placeholders[..., None], main)
            if layers:
                more |= {"visual_pos_masks": placeholders, "deepstack_visual_embeds": layers}
        hidden: Tensor = self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=self._masks(mask),
            past_key_values=cache,
            use_cache=cache is not None,
            **more,
        ).last_hidden_state
        return hidden

    def _masks(self, mask: Any) -> Any:
        """The mask as the language model takes it: by kind of layer, where its family knows several."""
        if not self._layer_types:
            return mask
        recurrent = "linear_attention" in self._layer_types and mask is not None and mask.shape[-2] > 1
        return {"full_attention": mask, "linear_attention": _read(mask) if recurrent else None}

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """(N, hidden) to (N, V) float32 log-probabilities of the next token; media and role tokens have none."""
        logits = self.model.lm_head(hidden).float() / temperature
        logits = logits.index_fill(-1, self._banned.to(logits.device), float("-inf"))
        if logits.shape[-1] > self.codec.vocab_size:  # rows of the embedding that no token uses
            logits[..., self.codec.vocab_size :] = float("-inf")
        return functional.log_softmax(logits, dim=-1)


def _read(mask: Tensor) -> Tensor:
    """(B, T) bool: False at padding on the left, which neither looks at another token nor is looked at."""
    length = mask.shape[-2]
    others = mask[:, 0, :, -length:] & ~torch.eye(length, dtype=torch.bool, device=mask.device)
    read = others.any(-1) | others.any(-2)
    read[:, -1] = True  # a prompt may be of one token
    return read


def model_path(name: str) -> str:
    """A directory or hub name; `tiny` is the checkpoint that ships with the package."""
    return str(files("agents").joinpath("assets/tiny")) if name == TINY else name


def load_codec(name: str) -> Codec:
    """The codec of a model, from its tokenizer alone: no weights are read.

    Args:
        name: As `load_qwen_vl` takes it.

    Raises:
        FileNotFoundError: If `name` looks like a directory and is none, or lacks a model's files.
    """
    from transformers import AutoTokenizer

    return Codec(AutoTokenizer.from_pretrained(_checked_path(name)).backend_tokenizer)


def load_qwen_vl(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    vision_cache_bytes: int = 2 << 30,
) -> QwenVL:
    """Loads a model of any family in `PROCESSORS` from a directory or the hub.

    Args:
        name: A directory, a hub name such as `Qwen/Qwen2.5-VL-7B-Instruct`, or `tiny`.
        device: Such as `cpu` or `cuda`.
        dtype: Such as `float32` or `bfloat16`.
        attention: `sdpa`, or `flex_attention`, which is for a GPU: packed rows then skip the blocks nobody looks at.
        vision_cache_bytes: Most bytes of image features kept between calls; with 0 none are.

    Raises:
        FileNotFoundError: If `name` looks like a directory and is none, or lacks a model's files.
        ValueError: If the model's family or the attention is not supported.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedConfig

    if attention not in ATTENTIONS:
        raise ValueError(f"attention is one of {', '.join(ATTENTIONS)}, not {attention}")
    register()
    path = _checked_path(name)
    _check_family(PreTrainedConfig.get_config_dict(path)[0].get("model_type"))
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation={"text_config": ATTENTIONS[attention], "vision_config": "sdpa"},
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    return QwenVL(model.to(device).eval(), tokenizer, *pixel_bounds(path), vision_cache_bytes)


def _checked_path(name: str) -> str:
    path = model_path(name)
    if Path(path).is_dir():
        missing = [file for file in MODEL_FILES if not (Path(path) / file).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} holds no model: {', '.join(missing)} missing")
    elif path.startswith((".", "/")) or path.count("/") > 1:  # a hub name has one slash at most
        raise FileNotFoundError(f"{path} is not a directory")
    return path


def _check_family(model_type: str | None) -> None:
    if model_type not in PROCESSORS:
        raise ValueError(f"the family of a model is one of {', '.join(PROCESSORS)}, not {model_type}")


def save_qwen_vl(qwen: QwenVL, path: str) -> None:
    """Writes a directory that `load_qwen_vl`, transformers and vLLM load."""
    qwen.model.save_pretrained(path)
    qwen.tokenizer.save_pretrained(path)
    qwen.patcher.save(path, *PROCESSORS[qwen.model.config.model_type])
