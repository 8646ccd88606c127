"""From pixels to features: patches, the features that are kept, and a vision tower made fast.

Knows images and vision towers, no text. Qwen's image processor is followed to the last bit, so that a model sees in
training what it sees when it is served.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional

from mimgenv.geometry import smart_resize
from mimgenv.types import Image


def digest(image: Image) -> bytes:
    """Equal for equal images."""
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.shape).encode()).digest()


@dataclass(frozen=True, slots=True)
class Patcher:
    """Cuts images into patches as Qwen's image processor does.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches per side that become one token.
        frames: Times a still image is repeated.
        min_pixels, max_pixels: Bounds of an image's size after resizing.
        mean, std: (3,) float32, per channel, of pixels in [0, 1].
    """

    patch: int
    merge: int
    frames: int
    min_pixels: int
    max_pixels: int
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def size(self, image: Image) -> tuple[int, int]:
        """Height and width in pixels after resizing."""
        height, width = image.shape[:2]
        factor = self.patch * self.merge
        return smart_resize(height, width, factor=factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of tokens an image takes."""
        height, width = self.size(image)
        factor = self.patch * self.merge
        return height // factor, width // factor

    def patches(self, image: Image) -> npt.NDArray[np.float32]:
        """(patches, channels · frames · patch · patch) float32: the patches of a token stand together."""
        height, width = self.size(image)
        resized = PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.BICUBIC)
        pixels = (np.asarray(resized, np.float32) / 255 - self.mean) / self.std
        m, p = self.merge, self.patch
        blocks = pixels.transpose(2, 0, 1).reshape(3, height // p // m, m, p, width // p // m, m, p)
        ordered = blocks.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        still = np.broadcast_to(ordered, (*ordered.shape[:5], self.frames, p, p))
        return still.reshape(height // p * (width // p), -1).astype(np.float32, copy=False)

    def save(self, path: str, processor: str, video_processor: str) -> None:
        """Writes the configurations of the processors beside a model, given the classes a family has for them.

        That of videos is never used here, but no processor is made without one.
        """
        settings = {
            "processor_class": processor,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch,
            "temporal_patch_size": self.frames,
            "merge_size": self.merge,
            "image_mean": [float(value) for value in self.mean],
            "image_std": [float(value) for value in self.std],
        }
        image = {"image_processor_type": "Qwen2VLImageProcessor", **settings}
        video = {"video_processor_type": video_processor, **settings}
        for name, content in (("preprocessor_config", image), ("video_preprocessor_config", video)):
            Path(path, f"{name}.json").write_text(json.dumps(content, indent=1))


def pixel_bounds(path: str) -> tuple[int, int, list[float], list[float]]:
    """Smallest and largest size in pixels, mean and deviation, from the configuration beside a model."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    size = processor.size
    return size["shortest_edge"], size["longest_edge"], list(processor.image_mean), list(processor.image_std)


class FeatureCache:
    """Features of images by digest, as many as a budget allows; the longest unused go first.

    Args:
        budget: Most bytes held; with 0 nothing is kept.

    Attributes:
        held: Bytes held.
        version: Of the weights that all features held were made with.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self.version = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: bytes) -> Tensor | None:
        """The features kept under `key`, which now are the latest used; not to be written to."""
        if key in self._features:
            self._features.move_to_end(key)
        return self._features.get(key)

    def put(self, key: bytes, features: Tensor) -> None:
        """Keeps a copy, since features are views of a whole batch; what is larger than the budget is not kept."""
        if features.nbytes > self.budget or key in self._features:
            return
        self._features[key] = features.detach().clone()
        self.held += features.nbytes
        while self.held > self.budget:
            _, oldest = self._features.popitem(last=False)
            self.held -= oldest.nbytes

    def renew(self, version: int) -> None:
        """Forgets everything, if it is of another version of the weights."""
        if version != self.version:
            self.clear()
            self.version = version

    def clear(self) -> None:
        """Forgets everything."""
        self._features.clear()
        self.held = 0


def speed_up_vision(visual: Any) -> None:
    """Makes a stock vision tower fast for many small images; the result is the same.

    Stock code loops over images (or windows) in Python and runs a 3-D convolution whose kernel covers its whole input.
    Here, those of equal size are attended in one batch, and the convolution is the matrix product that it is. Acts on
    this instance only.
    """
    embed = visual.patch_embed
    embed.forward = types.MethodType(_embed_patches, embed)
    for block in visual.blocks:
        block.attn.forward = types.MethodType(_attend_chunks, block.attn)


def _embed_patches(self: Any, hidden_states: Tensor) -> Tensor:
    weight = self.proj.weight
    return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def _attend_chunks(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
) -> Tensor:
    """Tokens look at those of their own chunk, an image or a window: `cu_seqlens` (chunks + 1,) says where they end."""
    length = len(hidden_states)
    query, key, value = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    cos, sin = (part.unsqueeze(-2).float() for part in position_embeddings)
    parts = (_rotate(query, cos, sin), _rotate(key, cos, sin), value)
    sizes = cu_seqlens.diff()
    if bool((sizes == sizes[0]).all()):
        mixed = _attend_equal(parts, len(sizes), self.scaling)
    else:
        mixed = torch.empty_like(query)
        chunk_size = sizes.repeat_interleave(sizes)
        for size in sorted(set(sizes.tolist())):
            where = (chunk_size == size).nonzero()[:, 0]
            alike = tuple(part[where] for part in parts)
            mixed = mixed.index_copy(0, where, _attend_equal(alike, len(where) // size, self.scaling))
    projected: Tensor = self.proj(mixed.reshape(length, -1))
    return projected


def _attend_equal(parts: tuple[Tensor, ...], chunks: int, scale: float) -> Tensor:
    """Query, key and value (tokens, heads, features) of chunks of one size, to what is seen, of the same shape."""
    shape = parts[0].shape
    query, key, value = (part.reshape(chunks, -1, *shape[1:]).transpose(1, 2) for part in parts)
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return mixed.transpose(1, 2).reshape(shape)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
