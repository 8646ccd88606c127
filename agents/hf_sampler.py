"""The reference sampler: a stock transformers model, sampled token by token.

Each distinct image is encoded once and each distinct prompt is computed once, however many completions are asked of
it: a GRPO group costs one prompt. Log-probs are those of the distribution the token was drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agents.qwen_vl import Expanded, QwenVL, digest, expand
from agents.sampling import Prompt, SamplingParameters
from agents.types import Action


class HFSampler:
    """Samples from a `QwenVL`.

    Args:
        qwen: The model; its weights may change between calls.
        seed: Of the generator; `generator` may be saved and restored.
        rows: Most completions computed at a time.
    """

    def __init__(self, qwen: QwenVL, seed: int = 0, rows: int = 128) -> None:
        self.qwen, self.rows = qwen, rows
        self.generator = torch.Generator(device=qwen.device).manual_seed(seed)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Action]:
        """One completion per prompt, in order."""
        features = self.qwen.encode_images([image for prompt in prompts for image in prompt.images])
        keys = [(prompt.ids, tuple(digest(image) for image in prompt.images)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].images), keys[i]))
        actions: dict[int, Action] = {}
        for begin in range(0, len(order), self.rows):
            chunk = order[begin : begin + self.rows]
            distinct = list(dict.fromkeys(keys[i] for i in chunk))
            first = {key: next(i for i in chunk if keys[i] == key) for key in distinct}
            unique = [prompts[first[key]] for key in distinct]
            rows = torch.tensor([distinct.index(keys[i]) for i in chunk], device=self.qwen.device)
            completions = _complete(self.qwen, unique, features, rows, parameters, self.generator)
            actions.update(zip(chunk, completions, strict=True))
        return [actions[i] for i in range(len(prompts))]


def _complete(
    qwen: QwenVL,
    prompts: Sequence[Prompt],
    features: dict[bytes, Tensor],
    rows: Tensor,
    parameters: SamplingParameters,
    generator: torch.Generator,
) -> list[Action]:
    """Completes `prompts[rows[i]]` for each i, in one batch."""
    from transformers import DynamicCache

    laid = [expand(p.ids, [qwen.grid(image) for image in p.images], qwen.chat.image_id) for p in prompts]
    ids, positions, real = _left_padded(laid)
    ids, positions, real = (tensor.to(qwen.device) for tensor in (ids, positions, real))
    images = [features[digest(image)] for prompt in prompts for image in prompt.images]
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=qwen.device).tril()
    mask = (causal & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=qwen.device)
    cache = DynamicCache(config=qwen.model.config.text_config)
    hidden = qwen.hidden_states(ids, positions, mask[:, None], torch.cat(images) if images else None, cache)[:, -1]
    cache.batch_select_indices(rows)
    hidden, real = hidden[rows], real[rows]
    position = torch.tensor([expanded.next_position for expanded in laid], device=qwen.device)[rows]
    padded = not bool(real.all())
    ends = torch.tensor(qwen.codec.end_ids, device=qwen.device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=qwen.device)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for step in range(parameters.max_tokens):
        token, logprob = _draw(qwen, hidden, parameters.temperature, generator)
        tokens.append(token)
        logprobs.append(logprob)
        done |= torch.isin(token, ends)
        if bool(done.all()) or step == parameters.max_tokens - 1:
            break
        real = torch.cat([real, real.new_ones(len(rows), 1)], dim=1)
        where = (position + step)[None, :, None].expand(3, -1, -1)
        look = real[:, None, None, :] if padded else None
        hidden = qwen.hidden_states(token[:, None], where, look, None, cache)[:, -1]
    return _cut(torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist(), qwen.codec.end_ids)


def _left_padded(laid: Sequence[Expanded]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, T), positions (3, B, T) and which tokens are real (B, T), prompts ending together."""
    length = max(len(expanded.ids) for expanded in laid)
    ids = np.zeros((len(laid), length), np.int64)
    positions = np.zeros((3, len(laid), length), np.int64)
    real = np.zeros((len(laid), length), bool)
    for row, expanded in enumerate(laid):
        begin = length - len(expanded.ids)
        ids[row, begin:], positions[:, row, begin:], real[row, begin:] = expanded.ids, expanded.positions, True
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(real)


def _draw(qwen: QwenVL, hidden: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The next token of each row (B,), and its log-probability (B,)."""
    distribution = qwen.log_probs(hidden, temperature or 1.0)
    token = distribution.argmax(-1) if temperature == 0 else _sample(distribution.exp(), generator)
    return token, distribution.gather(1, token[:, None])[:, 0]


def _sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row (B, V) -> (B,), by inverting the cumulative distribution: several times faster on a CPU than
    `torch.multinomial`. A token of probability 0 is never drawn."""
    cumulative = probabilities.cumsum(-1)
    uniform = torch.rand(len(cumulative), 1, generator=generator, device=cumulative.device)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=probabilities.shape[-1] - 1
    )


def _cut(ids: list[list[int]], logprobs: list[list[float]], ends: tuple[int, ...]) -> list[Action]:
    """Rows cut after their first end-of-turn token."""
    actions = []
    for row, values in zip(ids, logprobs, strict=True):
        stop = next((index + 1 for index, token in enumerate(row) if token in ends), None)
        stopped = "length" if stop is None else "stop"
        actions.append(Action(tuple(row[:stop]), tuple(values[:stop]), stopped))  # type: ignore[arg-type]
    return actions
