"""The GRPO work that ours and TRL are both given: one model, prompts, images, a tool, lengths, and the clock.

Knows neither trainer. Whatever could differ between the two sides and is not the trainers' own doing is here.
"""

from __future__ import annotations

import importlib.util
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

Picture = npt.NDArray[np.uint8]
Record = dict[str, Any]
"""Of a step: CPU and wall seconds by phase, tokens trained on, and the most MiB held so far."""

PIXEL_BOUNDS: Final = (28 * 28, 12_845_056)
QUESTION: Final = "Question {}: which picture has the red circle?"
CALL: Final = '<tool_call>\n{"name": "zoom", "arguments": {"image": 1}}\n</tool_call><|im_end|>'
SEEN: Final = "the region"
UNLIKELY: Final = -40.0
"""Added to a logit: e^-40 is beyond what a float32 draw can hit."""


@dataclass(frozen=True, slots=True)
class Case:
    """What one step does.

    Attributes:
        images: Shown with the question.
        size: Their side in pixels.
        turns: All but the last are a tool call, which is answered with an image of the attempt's own.
        group: Attempts at each prompt.
        prompts: Per step.
        tokens: Of the last turn.
        shape: The model's, of `SHAPES`.
        device: Of the model.
        dtype: Of the model.
        shared: False: every attempt has images of its own, so that nothing can be shared.
        attention: Of ours, as `agents.qwen_vl.load_qwen_vl` takes it.
    """

    images: int
    size: int
    turns: int = 1
    group: int = 8
    prompts: int = 4
    tokens: int = 64
    shape: str = "eighth"
    device: str = "cpu"
    dtype: str = "float32"
    shared: bool = True
    attention: str = "sdpa"

    @property
    def rows(self) -> int:
        """Attempts per step."""
        return self.prompts * self.group


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Qwen2.5-VL: text width, layers, heads, key-value heads and inner width, then the vision tower's,
    and the rows of the embedding (at least the tokenizer's)."""

    width: int
    layers: int
    heads: int
    key_values: int
    inner: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_inner: int
    window: int
    vocabulary: int = 0

    def text_parameters(self) -> int:
        """Of the layers, without embedding and head."""
        keys = self.width * self.key_values // self.heads
        return self.layers * (2 * self.width * (self.width + keys) + 3 * self.width * self.inner)

    def vision_parameters(self) -> int:
        """Of the layers, without what comes before and after."""
        return self.vision_layers * (4 * self.vision_width**2 + 3 * self.vision_width * self.vision_inner)


SHAPES: Final = {
    "eighth": Shape(256, 4, 4, 1, 1376, 160, 4, 4, 428, 56),
    "3b": Shape(2048, 36, 16, 2, 11008, 1280, 32, 16, 3420, 112, 151_936),
}
"""`3b` is Qwen2.5-VL-3B; `eighth` has an eighth of its widths and an eighth of its layers, rounded."""


class Head(nn.Linear):
    """The head over the vocabulary, tied to the embedding. Special tokens are made too unlikely to be drawn, so that
    every turn has the length it is given; and it can be told what to write.

    Attributes:
        script: Ids that the coming calls write, one each.
    """

    def __init__(self, weight: nn.Parameter, never: tuple[int, ...]) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        self.weight = weight
        self.script: list[int] = []
        with torch.no_grad():
            self.bias.zero_()
            self.bias[list(never)] = UNLIKELY

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits, of one id alone while there is a script."""
        logits = super().forward(hidden)
        if self.script:
            logits = logits.clone()
            logits[..., self.script.pop(0)] += 1e4
        return logits


def tokenizer() -> Any:
    """The shipped tokenizer under the chat template of Qwen3-VL, which TRL knows to hold tool calls."""
    from agents.tiny_model import tiny_tokenizer

    made = tiny_tokenizer()
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        raise ImportError("the chat template comes with TRL: pip install 'trl==1.16.*' jmespath")
    made.chat_template = (Path(found.origin).parent / "chat_templates" / "qwen3_vl.jinja").read_text("utf-8")
    return made


def model(case: Case, words: Any) -> Any:
    """A randomly initialised Qwen2.5-VL; the same weights on every call."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(**_configuration(SHAPES[case.shape], words))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(case.device):
        made = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=getattr(torch, case.dtype))
    unused = range(len(words), config.text_config.vocab_size)
    made.lm_head = Head(made.get_input_embeddings().weight, (*words.added_tokens_decoder, *unused))
    made.generation_config.eos_token_id = words.convert_tokens_to_ids("<|im_end|>")
    made.generation_config.pad_token_id = words.convert_tokens_to_ids("<|endoftext|>")
    return made.eval()


def _configuration(shape: Shape, words: Any) -> dict[str, Any]:
    half = shape.width // shape.heads // 2
    text = {
        "vocab_size": max(len(words), shape.vocabulary),
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_values,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": words.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": words.convert_tokens_to_ids("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
        },
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_inner,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.width,
        "window_size": shape.window,
        "fullatt_block_indexes": list(
            range(shape.vision_layers // 4 - 1, shape.vision_layers, shape.vision_layers // 4)
        ),
        "patch_size": 14,
    }
    places = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    places |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    special = {name: words.convert_tokens_to_ids(token) for name, token in places.items()}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **special}


def noise(size: int, *key: int) -> Picture:
    """An image that compresses no better than any other; the key decides it."""
    return np.random.default_rng([size, *key]).integers(0, 256, (size, size, 3), np.uint8)


def shown(case: Case, step: int, row: int) -> list[Picture]:
    """The images of an attempt's prompt."""
    owner = row // case.group if case.shared else row + 1000
    return [noise(case.size, 0, step, owner, number) for number in range(case.images)]


def question(case: Case, step: int, row: int) -> str:
    """The text of an attempt's prompt."""
    return QUESTION.format(10 + row // case.group)


def region(case: Case, row: int, turn: int) -> Picture:
    """What the tool answers: an image of the attempt's own."""
    return noise(min(case.size, 112), 1, row, turn)


def rewards(case: Case, step: int) -> npt.NDArray[np.float64]:
    """One per attempt: no two of a group are equal."""
    return np.random.default_rng([2, step]).random(case.rows)


class Environment:
    """The tool, as TRL takes it and as the prompt explains it. Attempts are numbered in the order they are made."""

    def __init__(self, case: Case, row: int) -> None:
        self._case, self._row, self._calls, self._steps = case, row, 0, 0

    def reset(self, **_: Any) -> None:
        """A new attempt."""
        self._calls, self._steps = 0, self._steps + 1

    def zoom(self, image: int) -> list[Any]:
        """Shows a region of an image, enlarged.

        Args:
            image: Number of the image.
        """
        picture = Image.fromarray(region(self._case, self._row, self._calls))
        self._calls += 1
        return [{"type": "image", "image": picture}, {"type": "text", "text": SEEN}]

    def get_reward(self) -> float:
        """Of the attempt."""
        return float(rewards(self._case, self._steps)[self._row])


@dataclass(slots=True)
class Spent:
    """CPU and wall seconds."""

    cpu: float
    wall: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu - other.cpu, self.wall - other.wall)


def now(device: str) -> Spent:
    """Both clocks, once the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    return Spent(time.process_time(), time.perf_counter())


def peak_megabytes(device: str) -> float:
    """Most memory this process ever held: of the machine, or of the device."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
