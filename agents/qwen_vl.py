"""A Qwen2.5-VL-type model as the sampler and the trainer see it: images in, hidden states and log-probs out.

Owns what is peculiar to the architecture: patches, image tokens, multimodal positions, loading. Sampling is in
hf_sampler.py, gradients in `rl`. Positions are always given to the model, never left for it to infer: its own
bookkeeping is hidden state that goes stale between calls.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional

from agents.chat import Chat
from mimgenv.codec import Codec
from mimgenv.geometry import smart_resize
from mimgenv.types import Image

MODEL_FILES: Final = ("config.json", "tokenizer.json")
TINY: Final = "tiny"
"""The name of the cold-started checkpoint that ships with the package."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Expanded:
    """Ids with every placeholder repeated to the number of tokens its image takes.

    Attributes:
        ids: (T,) int64.
        positions: (3, T) int64: time, height and width of multimodal RoPE.
        origin: (T,) int64: index into the compact ids, so that `mask[origin]` moves a mask along.
        next_position: Where the text after it goes on.
    """

    ids: Ids
    positions: Ids
    origin: Ids
    next_position: int


def expand(ids: Sequence[int], grids: Sequence[tuple[int, int]], image_id: int, start: int = 0) -> Expanded:
    """Expands compact ids and lays out their positions (Qwen2-VL, arXiv 2409.12191, section 2.1: M-RoPE).

    Args:
        ids: Compact ids: one `image_id` per image.
        grids: Rows and columns of tokens of each image, in order.
        image_id: The placeholder.
        start: The first position, for ids that continue others.

    Raises:
        ValueError: If the numbers of placeholders and grids differ.
    """
    compact = np.asarray(ids, np.int64)
    where = np.flatnonzero(compact == image_id)
    if len(where) != len(grids):
        raise ValueError(f"{len(where)} image placeholders, {len(grids)} image grids")
    repeats = np.ones(len(compact), np.int64)
    repeats[where] = [rows * columns for rows, columns in grids]
    origin = np.repeat(np.arange(len(compact)), repeats)
    advance = np.ones(len(compact), np.int64)
    advance[where] = [max(grid) for grid in grids]
    first = start + np.concatenate([[0], np.cumsum(advance)])
    positions = np.repeat(first[:-1][origin][None], 3, axis=0)
    begins = np.cumsum(repeats) - repeats
    for index, (rows, columns) in zip(where, grids, strict=True):
        span = slice(begins[index], begins[index] + rows * columns)
        down, across = np.divmod(np.arange(rows * columns), columns)
        positions[1, span] += down
        positions[2, span] += across
    return Expanded(compact[origin], positions, origin, int(first[-1]))


def digest(image: Image) -> bytes:
    """Equal for equal images."""
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.shape).encode()).digest()


class QwenVL:
    """A model with what it takes to feed it.

    Args:
        model: A `Qwen2_5_VLForConditionalGeneration`.
        tokenizer: Its Hugging Face tokenizer, with a chat template.
        min_pixels, max_pixels: Bounds of the image processor.
        image_mean, image_std: Per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        min_pixels: int,
        max_pixels: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.codec = Codec(tokenizer.backend_tokenizer)
        self.chat = Chat(self.codec, self._render)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.mean = np.asarray(image_mean, np.float32)
        self.std = np.asarray(image_std, np.float32)
        vision = model.config.vision_config
        self.patch, self.merge, self.frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        self._banned = torch.tensor(sorted(self.codec.banned_ids))
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

    def size(self, image: Image) -> tuple[int, int]:
        """Height and width in pixels after the image processor's resizing."""
        height, width = image.shape[:2]
        factor = self.patch * self.merge
        return smart_resize(height, width, factor=factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of tokens an image takes."""
        height, width = self.size(image)
        factor = self.patch * self.merge
        return height // factor, width // factor

    def patches(self, image: Image) -> npt.NDArray[np.float32]:
        """(patches, channels · frames · patch · patch) float32, in the order of Qwen2-VL's image processor."""
        height, width = self.size(image)
        resized = PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.BICUBIC)
        pixels = (np.asarray(resized, np.float32) / 255 - self.mean) / self.std
        m, p = self.merge, self.patch
        blocks = pixels.transpose(2, 0, 1).reshape(3, height // p // m, m, p, width // p // m, m, p)
        ordered = blocks.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        still = np.broadcast_to(ordered, (*ordered.shape[:5], self.frames, p, p))
        return still.reshape(height // p * (width // p), -1).astype(np.float32, copy=False)

    def encode_images(self, images: Sequence[Image]) -> dict[bytes, Tensor]:
        """Features (tokens, hidden) of each distinct image, by digest: every image is encoded once."""
        distinct = {digest(image): image for image in images}
        if not distinct:
            return {}
        pixels = torch.from_numpy(np.concatenate([self.patches(image) for image in distinct.values()]))
        grids = [self.grid(image) for image in distinct.values()]
        thw = torch.tensor([(1, rows * self.merge, columns * self.merge) for rows, columns in grids])
        pixels, thw = pixels.to(self.device), thw.to(self.device)
        features = self.model.model.get_image_features(pixels, thw, return_dict=True).pooler_output
        return dict(zip(distinct, features, strict=True))

    def hidden_states(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, features: Tensor | None, cache: Any = None
    ) -> Tensor:
        """Runs the language model.

        Args:
            ids: (B, T) int64, expanded.
            positions: (3, B, T) int64.
            mask: (B, 1, T, past + T) bool, True where a token may look; None for a plain causal step.
            features: (image tokens, hidden), in the order of the placeholders, rows first; None without images.
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
        if features is not None:
            embeddings = embeddings.masked_scatter(placeholders[..., None], features.to(embeddings.dtype))
        hidden: Tensor = self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """(N, hidden) to (N, V) float32 log-probabilities of the next token; media and role tokens have none."""
        logits = self.model.lm_head(hidden).float() / temperature
        logits = logits.index_fill(-1, self._banned.to(logits.device), float("-inf"))
        if logits.shape[-1] > self.codec.vocab_size:  # rows of the embedding that no token uses
            logits[..., self.codec.vocab_size :] = float("-inf")
        return functional.log_softmax(logits, dim=-1)


def speed_up_vision(visual: Any) -> None:
    """Makes the stock vision tower fast for many small images; the result is the same.

    Stock code loops over images in Python and runs a 3-D convolution whose kernel covers its whole input. Equal-sized
    images are attended in one batch and the convolution is the matrix product that it is. Acts on this instance only.
    """
    embed = visual.patch_embed
    embed.forward = types.MethodType(_embed_patches, embed)
    for block in visual.blocks:
        if hasattr(block.attn, "stock_forward"):  # this model has been here before
            continue
        block.attn.stock_forward = block.attn.forward
        block.attn.forward = types.MethodType(_attend_images, block.attn)


def _embed_patches(self: Any, hidden_states: Tensor) -> Tensor:
    weight = self.proj.weight
    return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def _attend_images(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    length, chunks = len(hidden_states), len(cu_seqlens) - 1
    if length % chunks or position_embeddings is None or bool((cu_seqlens.diff() != length // chunks).any()):
        stock: Tensor = self.stock_forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        return stock
    query, key, value = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    cos, sin = (part.unsqueeze(-2).float() for part in position_embeddings)
    query, key = (_rotate(part, cos, sin) for part in (query, key))
    batch = [part.reshape(chunks, length // chunks, self.num_heads, -1).transpose(1, 2) for part in (query, key, value)]
    mixed = functional.scaled_dot_product_attention(batch[0], batch[1], batch[2], scale=self.scaling)
    projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(length, -1))
    return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def model_path(name: str) -> str:
    """A directory or hub name; `tiny` is the checkpoint that ships with the package."""
    return str(files("agents").joinpath("assets/tiny")) if name == TINY else name


def load_qwen_vl(name: str, device: str = "cpu", dtype: str = "float32") -> QwenVL:
    """Loads a Qwen2.5-VL-type model from a directory or the hub.

    Args:
        name: A directory, a hub name such as `Qwen/Qwen2.5-VL-7B-Instruct`, or `tiny`.
        device: Such as `cpu` or `cuda`.
        dtype: Such as `float32` or `bfloat16`.

    Raises:
        FileNotFoundError: If `name` looks like a directory and is none, or lacks a model's files.
    """
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    path = model_path(name)
    if Path(path).is_dir():
        missing = [file for file in MODEL_FILES if not (Path(path) / file).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} holds no model: {', '.join(missing)} missing")
    elif path.startswith((".", "/")) or path.count("/") > 1:  # a hub name has one slash at most
        raise FileNotFoundError(f"{path} is not a directory")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return QwenVL(model.to(device).eval(), AutoTokenizer.from_pretrained(path), *_pixel_bounds(path))


def _pixel_bounds(path: str) -> tuple[int, int, list[float], list[float]]:
    """Size bounds and normalisation from the image processor's configuration."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    size = processor.size
    return size["shortest_edge"], size["longest_edge"], list(processor.image_mean), list(processor.image_std)


def save_qwen_vl(qwen: QwenVL, path: str) -> None:
    """Writes a directory that `load_qwen_vl`, transformers and vLLM load."""
    qwen.model.save_pretrained(path)
    qwen.tokenizer.save_pretrained(path)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": qwen.min_pixels,
        "max_pixels": qwen.max_pixels,
        "patch_size": qwen.patch,
        "temporal_patch_size": qwen.frames,
        "merge_size": qwen.merge,
        "image_mean": [float(value) for value in qwen.mean],
        "image_std": [float(value) for value in qwen.std],
    }
    Path(path, "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
