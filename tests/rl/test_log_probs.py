"""Log-probs of a batch: those of a stock model, for little work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL
from agents.rollout import make_envs, run_episodes
from agents.sampling import SamplingParameters
from agents.vlm import VLMAgent
from mimgenv.turn_rules import TurnRules
from rl.batch import Sample, pack
from rl.collect import collect
from rl.config import TrainConfig
from rl.log_probs import token_log_probs, unpacked
from rl.masking import action_mask

IMAGE = 12


def sample_of(seed: int, trained: int = 4) -> Sample:
    """One image, then text, the last tokens trained on; equal seeds differ in the trained tokens only."""
    picture = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
    ids = (30, IMAGE, 31, 32, *np.random.default_rng([seed, trained]).integers(20, 800, trained).tolist())
    mask = (False,) * 4 + (True,) * trained
    return Sample(ids, mask, (0.0,) * len(ids), (picture,))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_of_what_was_sampled_are_those_it_was_sampled_with(qwen: QwenVL, temperature: float) -> None:
    agent = VLMAgent(qwen.chat, HFSampler(qwen, 3), SamplingParameters(temperature, 12))
    groups, said = [], 0
    for seed in range(2):
        played = run_episodes(agent, "MultiImageTiny-v0", [seed] * 3)
        said += sum(len(turn.action.ids) for trajectory in played for turn in trajectory.turns)
        records = [(qwen.chat.record(trajectory), trajectory) for trajectory in played]
        groups.append([Sample(r.ids, action_mask(r, t), r.logprobs, r.images) for r, t in records])
    batch = pack(groups, qwen)
    with torch.no_grad():
        logprobs, _ = token_log_probs(qwen, batch, temperature)
        other, _ = token_log_probs(qwen, batch, 2 * temperature)
    assert len(logprobs) == said > 100
    torch.testing.assert_close(logprobs, batch.sampled, atol=2e-5, rtol=0)
    assert float((other - batch.sampled).abs().max()) > 0.1


def test_the_vocabulary_is_touched_at_the_trained_tokens_only_and_equal_images_are_encoded_once(
    make_qwen: Callable[..., QwenVL],
) -> None:
    qwen = make_qwen()
    rows: list[int] = []
    images: list[int] = []
    log_probs, features = qwen.log_probs, qwen.model.model.get_image_features

    def counted(hidden: Any, temperature: float) -> Any:
        rows.append(len(hidden))
        return log_probs(hidden, temperature)

    def encoded(pixels: Any, thw: Any, **more: Any) -> Any:
        images.append(len(thw))
        return features(pixels, thw, **more)

    qwen.log_probs = counted  # type: ignore[method-assign]
    qwen.model.model.get_image_features = encoded
    batch = pack([[sample_of(1), sample_of(1, 5)], [sample_of(2)], [sample_of(1)]], qwen)
    assert len(batch.images) == 3
    token_log_probs(qwen, batch)
    assert rows == [4 + 5 + 4 + 4]
    assert images == [2]


def test_a_batch_without_images_needs_none(qwen: QwenVL) -> None:
    sample = Sample((30, 31, 32), (False, False, True), (0.0,) * 3, ())
    with torch.no_grad():
        (value,) = token_log_probs(qwen, pack([[sample]], qwen))[0].tolist()
    assert -20 < value < 0


# ---------------------------------------------------------------- in chunks


def gradients(qwen: QwenVL, chunk_logits: int, legal: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropies, and the gradient of a weighted sum of the former."""
    batch = pack([[sample_of(1), sample_of(1, 5)], [sample_of(2, 9)]], qwen)
    if legal:
        bits = torch.full((len(batch.targets), -(-qwen.codec.vocab_size // 8)), 0b01011011, dtype=torch.uint8)
        bits[torch.arange(len(bits)), batch.targets // 8] |= (1 << (batch.targets % 8)).to(torch.uint8)
        batch = replace(batch, legal=bits)
    qwen.model.zero_grad()
    logprobs, entropies = token_log_probs(qwen, batch, 0.8, chunk_logits)
    (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    found = [parameter.grad.flatten() for parameter in qwen.model.parameters() if parameter.grad is not None]
    return logprobs.detach(), entropies, torch.cat(found)


@pytest.mark.parametrize("legal", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 7])
def test_in_chunks_of_the_tokens_all_is_the_same(make_qwen: Callable[..., QwenVL], tokens: int, legal: bool) -> None:
    qwen = make_qwen()
    whole = gradients(qwen, 2**24, legal)
    chunked = gradients(qwen, tokens * qwen.codec.vocab_size, legal)
    assert len(whole[0]) == 18
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_no_more_than_a_chunk_of_logits_is_held(make_qwen: Callable[..., QwenVL]) -> None:
    """What autograd saves for the backward pass, by size: nothing of vocabulary times tokens but within a chunk."""
    qwen = make_qwen()
    vocab, hidden, tokens = qwen.codec.vocab_size, qwen.model.config.text_config.hidden_size, 40

    def largest(chunk: int) -> int:
        saved: list[int] = []
        batch = pack([[sample_of(1, tokens)]], qwen)

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[-1:] == (vocab,) and len(tensor) != hidden:  # not the weights of the head
                saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            token_log_probs(qwen, batch, 1.0, chunk * vocab)
        return max(saved, default=0)

    assert largest(tokens) == tokens * vocab
    assert largest(5) == 0  # made again, chunk by chunk, in the backward pass


def test_entropies_are_those_of_the_distribution_sampled_from(qwen: QwenVL) -> None:
    batch = pack([[sample_of(1)]], qwen)
    with torch.no_grad():
        _, hot = token_log_probs(qwen, batch, 50.0)
        _, plain = token_log_probs(qwen, batch, 1.0)
        _, cold = token_log_probs(qwen, batch, 0.01)
    free = qwen.codec.vocab_size - len(qwen.codec.banned_ids)
    assert hot.tolist() == pytest.approx([np.log(free)] * 4, rel=1e-2)
    assert bool((plain < hot).all() and (cold < plain).all())


# ---------------------------------------------------------------- constrained


def test_log_probs_of_constrained_turns_are_those_among_the_legal_ids(qwen: QwenVL) -> None:
    """The sampler's and the trainer's are of one distribution: the trainer walks the same rules over the same ids."""
    (env,) = make_envs("MultiImageTinyZoom-v0", 1, codec=qwen.codec)
    inner: Any = env.unwrapped
    rules = TurnRules(qwen.codec, inner.tools, inner.box_frame, max_turn_tokens=40)
    agent = VLMAgent(qwen.chat, HFSampler(qwen, 3), SamplingParameters(1.5, 40), rules)
    played = run_episodes(agent, [env], [0, 1, 2])
    played += [replace(played[0], reward=9.0)]
    config = TrainConfig(temperature=1.5, prompts_per_step=2, constrain_actions=True)
    groups = collect([played[:2], played[2:]], qwen.chat, config).groups
    batch = pack([group.samples for group in groups], qwen)
    assert batch.legal is not None
    legal = unpacked(batch.legal, qwen.codec.vocab_size)
    assert bool(legal.gather(1, batch.targets[:, None]).all())
    assert 0 < int(legal.sum(1).min()) < 3  # tags are forced
    with torch.no_grad():
        among, _ = token_log_probs(qwen, batch, 1.5)
        free, _ = token_log_probs(qwen, replace(batch, legal=None), 1.5)
    torch.testing.assert_close(among, batch.sampled, atol=1e-4, rtol=0)
    assert float((free - batch.sampled).abs().max()) > 0.1


def test_bits_are_unpacked_little_end_first() -> None:
    flags = np.random.default_rng(0).random((3, 21)) < 0.5
    bits = torch.from_numpy(np.packbits(flags, 1, "little"))
    assert torch.equal(unpacked(bits, 21), torch.from_numpy(flags))
    assert not bool(unpacked(bits[:, :1], 10)[:, 8:].any())  # no id beyond the bits is legal
