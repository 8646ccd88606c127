"""The reference sampler: a stock transformers model, sampled token by token.

Each distinct image is encoded once and each distinct prompt is computed once, however many completions are asked of
it: a GRPO group costs one prompt. A prompt that goes on from a turn of the call before costs only what is new in it.
Log-probs are those of the distribution the token was drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from agents.kv_cache import Conversation, KeptRow, KeptRows, KeyValues, key_values, stacked
from agents.qwen_vl import Expanded, QwenVL, digest, expand
from agents.sampling import Prompt, SamplingParameters
from agents.types import Action
from mimgenv.turn_rules import OpenTurn
from mimgenv.types import Image

KEPT_BYTES: Final = 2**30
"""Most bytes of keys and values held between two calls, unless the sampler is told another number."""


@dataclass(frozen=True, slots=True)
class _Start:
    """A distinct prompt: what of it is to be computed, and what that goes on from.

    Attributes:
        new: The part to be computed.
        images: The digests of those among `new`.
        past: What comes before; None where nothing does.
    """

    new: Expanded
    images: tuple[bytes, ...]
    past: KeptRow | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """Rows to be completed.

    Attributes:
        cache: A transformers cache of all tokens of each row.
        real: (R, T) bool: which of its columns hold a token of the row.
        hidden: (R, hidden): of the last token.
        position: (R,) int64: of the next token.
    """

    cache: Any
    real: Tensor
    hidden: Tensor
    position: Tensor


class HFSampler:
    """Samples from a `QwenVL`.

    Keys and values are kept from one call of `sample` to the next, where prompts go on from the completions. `sync`
    must be called when the model's weights have changed in between. Models with layers of linear attention keep none.

    Args:
        qwen: The model.
        seed: Of the generator; `generator` may be saved and restored.
        rows: Most completions computed at a time.
        kept_bytes: Most bytes of keys and values held between calls; 0 keeps none.
    """

    def __init__(self, qwen: QwenVL, seed: int = 0, rows: int = 128, kept_bytes: int = KEPT_BYTES) -> None:
        self.qwen, self.rows, self.kept_bytes = qwen, rows, kept_bytes
        self.generator = torch.Generator(device=qwen.device).manual_seed(seed)
        self._kept = KeptRows(kept_bytes)

    def sync(self) -> None:
        """The weights have changed: nothing computed with the old ones is used any more."""
        self._kept = KeptRows(self.kept_bytes)
        self.qwen.weights_changed()

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Action]:
        """One completion per prompt, in order."""
        shown = {id(image): image for prompt in prompts for image in prompt.images}
        digests = {key: digest(image) for key, image in shown.items()}
        images = {digests[key]: image for key, image in shown.items()}
        keys = [(prompt.ids, tuple(digests[id(image)] for image in prompt.images)) for prompt in prompts]
        starts = {key: _start(self.qwen, key, images, self._kept.find(key)) for key in dict.fromkeys(keys)}
        self._kept = KeptRows(self.kept_bytes)
        features = self.qwen.encode_images([images[each] for start in starts.values() for each in start.images])
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].images), keys[i]))
        actions: dict[int, Action] = {}
        for begin in range(0, len(order), self.rows):
            chunk = order[begin : begin + self.rows]
            ready = _computed(self.qwen, [(keys[i], starts[keys[i]]) for i in chunk], features)
            turns = [walk() if (walk := prompts[i].walk) else None for i in chunk]
            completions = _completed(self.qwen, ready, turns, parameters, self.generator)
            if self.qwen.shares_prompts:
                self._keep([keys[i] for i in chunk], completions, ready)
            actions |= {i: replace(c, walk=prompts[i].walk) for i, c in zip(chunk, completions, strict=True)}
        return [actions[i] for i in range(len(prompts))]

    def _keep(self, prompts: Sequence[Conversation], actions: Sequence[Action], ready: _Ready) -> None:
        """Keeps what is behind each completion: all but its last token went through the model."""
        said = [((*ids, *action.ids[:-1]), images) for (ids, images), action in zip(prompts, actions, strict=True)]
        lengths = torch.tensor([len(action.ids) - 1 for action in actions], device=ready.real.device)
        steps = torch.arange(ready.cache.get_seq_length() - ready.real.shape[1], device=ready.real.device)
        self._kept.keep(said, key_values(ready.cache, torch.cat([ready.real, steps < lengths[:, None]], dim=1)))


def _start(qwen: QwenVL, conversation: Conversation, images: Mapping[bytes, Image], past: KeptRow | None) -> _Start:
    ids, digests = conversation
    whole = expand(ids, [qwen.grid(images[each]) for each in digests], qwen.chat.image_id)
    length = past.length if past else 0
    begin = int(np.searchsorted(whole.origin, length))
    new = Expanded(whole.ids[begin:], whole.positions[:, begin:], whole.origin[begin:], whole.next_position)
    return _Start(new, digests[ids[:length].count(qwen.chat.image_id) :], past)


def _computed(qwen: QwenVL, rows: Sequence[tuple[Conversation, _Start]], features: dict[bytes, Tensor]) -> _Ready:
    """Equal rows are computed once; those that go on from the same source in one pass, and so those that begin."""
    sources: dict[int | None, dict[Conversation, _Start]] = {}
    for key, start in rows:
        sources.setdefault(id(start.past.source) if start.past else None, {})[key] = start
    parts = [_prefilled(qwen, list(group.values()), features) for group in sources.values()]
    place = {key: number for number, key in enumerate(key for group in sources.values() for key in group)}
    index = torch.tensor([place[key] for key, _ in rows], device=qwen.device)
    where = torch.tensor([start.new.next_position for _, start in rows], device=qwen.device)
    hidden = torch.cat([hidden for *_, hidden in parts])[index]
    if len(parts) > 1:
        past = stacked([key_values(cache, real) for cache, real, _ in parts]).rows(index)
        return _Ready(past.cache(_text_config(qwen)), past.real, hidden, where)
    ((cache, real, _),) = parts
    cache.reorder_cache(index)  # linear attention has no other way to select rows
    return _Ready(cache, real[index], hidden, where)


def _prefilled(qwen: QwenVL, starts: Sequence[_Start], features: dict[bytes, Tensor]) -> tuple[Any, Tensor, Tensor]:
    """Computes what is new in prompts that go on from one source, or from nothing: a cache of the whole prompts, which
    of its columns hold a token (U, T), and the hidden states of the last tokens (U, hidden)."""
    ids, positions, real = (tensor.to(qwen.device) for tensor in _left_padded([start.new for start in starts]))
    kept = [start.past for start in starts if start.past]
    past = KeyValues((), real[:, :0])
    if kept:
        past = kept[0].source.rows(torch.tensor([row.row for row in kept], device=qwen.device))
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=qwen.device).tril()
    own = (causal & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=qwen.device)
    mask = torch.cat([past.real[:, None, :].expand(-1, length, -1), own], dim=2)
    images = [features[each] for start in starts for each in start.images]
    cache = past.cache(_text_config(qwen))
    hidden = qwen.hidden_states(ids, positions, mask[:, None], torch.cat(images) if images else None, cache)
    return cache, torch.cat([past.real, real], dim=1), hidden[:, -1]


def _text_config(qwen: QwenVL) -> Any:
    return qwen.model.config.get_text_config()


def _completed(
    qwen: QwenVL,
    ready: _Ready,
    turns: Sequence[OpenTurn | None],
    parameters: SamplingParameters,
    generator: torch.Generator,
) -> list[Action]:
    """One completion per row; the cache grows by all tokens but the last ones drawn."""
    hidden, look = ready.hidden, ready.real
    padded = not bool(look.all())
    ends = torch.tensor(qwen.codec.end_ids, device=hidden.device)
    done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    drawn: list[tuple[Tensor, Tensor]] = []
    while True:
        drawn.append(_draw(qwen, hidden, parameters.temperature, generator, turns))
        token = drawn[-1][0]
        done |= torch.isin(token, ends)
        if bool(done.all()) or len(drawn) == parameters.max_tokens:
            break
        look = torch.nn.functional.pad(look, (0, 1), value=True)
        positions = (ready.position + len(drawn) - 1)[None, :, None].expand(3, -1, -1)
        mask = look[:, None, None, :] if padded else None
        hidden = qwen.hidden_states(token[:, None], positions, mask, None, ready.cache)[:, -1]
    if not bool(torch.stack([logprobs for _, logprobs in drawn]).isfinite().all()):
        raise FloatingPointError("log-probs of drawn tokens must be finite: the weights hold what is no number")
    ids, logprobs = (torch.stack(column, 1).tolist() for column in zip(*drawn, strict=True))
    return _cut(ids, logprobs, qwen.codec.end_ids)


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


def _draw(
    qwen: QwenVL, hidden: Tensor, temperature: float, generator: torch.Generator, turns: Sequence[OpenTurn | None]
) -> tuple[Tensor, Tensor]:
    """The next token of each row (R,), and its log-probability (R,); turns are written on."""
    distribution = qwen.log_probs(hidden, temperature or 1.0)
    if any(turns):
        illegal = ~_legal(turns, distribution.shape[1]).to(hidden.device)
        distribution = distribution.masked_fill(illegal, float("-inf")).log_softmax(-1)
    token = distribution.argmax(-1) if temperature == 0 else _sample(distribution.exp(), generator)
    if any(turns):
        _write(turns, token.tolist())
    return token, distribution.gather(1, token[:, None])[:, 0]


def _legal(turns: Sequence[OpenTurn | None], width: int) -> Tensor:
    """Which tokens each row may draw (R, width); all, where it has no turn being written."""
    legal = np.ones((len(turns), width), np.bool_)
    for row, turn in enumerate(turns):
        if turn is not None and not turn.complete:
            legal[row, : len(turn.mask)], legal[row, len(turn.mask) :] = turn.mask, False
    return torch.from_numpy(legal)


def _write(turns: Sequence[OpenTurn | None], tokens: Sequence[int]) -> None:
    """Writes each row's token where it has a turn being written."""
    for turn, index in zip(turns, tokens, strict=True):
        if turn is not None and not turn.complete:
            turn.write(index)


def _sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row (B, V) -> (B,), by inverting the cumulative distribution: several times faster on a CPU than
    `torch.multinomial`. A token of probability 0 is never drawn, which holds for a sum in order, as a GPU's is not."""
    if probabilities.is_cuda:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    cumulative = probabilities.cumsum(-1)
    uniform = torch.rand(len(cumulative), 1, generator=generator, device=cumulative.device)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=probabilities.shape[-1] - 1
    )


def _cut(ids: list[list[int]], logprobs: list[list[float]], ends: tuple[int, ...]) -> list[Action]:
    """Rows cut after their first end-of-turn token; a walk ends with one too."""
    actions = []
    for row, values in zip(ids, logprobs, strict=True):
        stop = next((index + 1 for index, token in enumerate(row) if token in ends), None)
        stopped = "length" if stop is None else "stop"
        actions.append(Action(tuple(row[:stop]), tuple(values[:stop]), stopped))  # type: ignore[arg-type]
    return actions
