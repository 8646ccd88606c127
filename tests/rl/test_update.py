"""Updates: what a step of the optimiser is made of, however it is divided into passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents.qwen_vl import QwenVL, save_qwen_vl
from mimgenv.types import Image
from rl.batch import Sample, pack
from rl.collect import SampleGroup
from rl.config import TrainConfig
from rl.guards import TrainingStopped, load_batches
from rl.log_probs import token_log_probs
from rl.policy import COLD_START, Policy
from rl.update import Updater

IMAGE = 12
"""The placeholder of the tiny model's tokenizer."""


def picture(seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (28, 56, 3), np.uint8)


def attempt(rng: np.random.Generator, prompt: Sequence[int], images: Sequence[Image]) -> Sample:
    """Two turns after a prompt, of random tokens with random log-probs."""
    own, said, more = (rng.integers(20, 800, size).tolist() for size in rng.integers(2, 6, 3))
    ids = (*prompt, *own, *said, *more)
    mask = (False,) * len(prompt) + (True,) * len(own) + (False,) * len(said) + (True,) * len(more)
    logprobs = tuple(-5 - float(rng.random()) if on else 0.0 for on in mask)
    return Sample(ids, mask, logprobs, tuple(images), float(rng.normal()))


def made(groups: int = 4, size: int = 3) -> list[SampleGroup]:
    rng = np.random.default_rng(3)
    found = []
    for number in range(groups):
        prompt = [30, IMAGE, 40 + number, 50]
        found.append(SampleGroup(tuple(attempt(rng, prompt, [picture(number)]) for _ in range(size)), (7,), number))
    return found


def config_of(**settings: Any) -> TrainConfig:
    """What was sampled here has arbitrary log-probs: no guard is to mind."""
    return TrainConfig(**{"learning_rate": 1e-3, "std": None, "max_drift": 1e9, **settings})


def moved(qwen: QwenVL, groups: Sequence[SampleGroup], **settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """How far the weights go in a plain step down the gradient, and what is logged."""
    policy = Policy(qwen, config_of(max_grad_norm=1e9, **settings), "grpo")
    policy.optimizer = torch.optim.SGD(policy.trained, 1e-3)
    before = torch.cat([parameter.detach().clone().flatten() for parameter in policy.trained])
    metrics = Updater(policy, policy.config, longest=24).step(groups)
    return torch.cat([parameter.detach().flatten() for parameter in policy.trained]) - before, metrics


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "mig_grpo"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_update_in_several_passes_is_the_update_in_one(
    make_qwen: Callable[..., QwenVL], loss: str, masked: bool
) -> None:
    product = loss == "mig_grpo"  # of ratios to arbitrary log-probs, which would be astronomical
    settings = {"loss": loss, "beta": 0.0, "divide_by_masked": masked, "recompute_old": product}
    whole, metrics = moved(make_qwen(), made(), **settings)
    assert float(whole.abs().max()) > 1e-5
    for rows_per_forward in (1, 3):
        found, logged = moved(make_qwen(), made(), rows_per_forward=rows_per_forward, **settings)
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-3)
        assert logged == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_masked_attempts_make_the_loss_smaller_where_they_are_divided_by(make_qwen: Callable[..., QwenVL]) -> None:
    for loss, factor in (("dapo", "tokens"), ("grpo", "sequences")):
        settings = {"loss": loss, "beta": 0.0, "clip": "off"}
        without, _ = moved(make_qwen(), made(), divide_by_masked=False, **settings)
        with_them, _ = moved(make_qwen(), made(), divide_by_masked=True, **settings)
        tokens = sum(group.tokens() for group in made())
        share = {"tokens": tokens / (tokens + 4 * 7), "sequences": 12 / (12 + 4)}[factor]
        torch.testing.assert_close(with_them, without * share, atol=1e-6, rtol=1e-3)


def test_a_step_has_as_many_updates_as_it_is_told_and_the_clip_acts_from_the_second_on(
    make_qwen: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    qwen = make_qwen()
    policy = Policy(qwen, config_of(updates_per_step=3, recompute_old=True, learning_rate=3e-2), "grpo")
    real = policy.optimizer.step
    monkeypatch.setattr(policy.optimizer, "step", lambda *given: (steps.append(1), real(*given)))
    metrics = Updater(policy, policy.config, 24).step(made())
    assert len(steps) == 3
    assert metrics["loss/clip_low"] + metrics["loss/clip_high"] > 0
    once = Policy(make_qwen(), config_of(recompute_old=True, learning_rate=3e-2), "grpo")
    metrics = Updater(once, once.config, 24).step(made())
    assert (metrics["loss/clip_low"], metrics["loss/clip_high"], metrics["loss/drift"]) == (0.0, 0.0, 0.0)


def test_old_log_probs_are_those_before_the_first_update_or_the_samplers(make_qwen: Callable[..., QwenVL]) -> None:
    groups = made()
    sampled = float(np.mean([v for g in groups for s in g.samples for v, on in zip(s.logprobs, s.mask) if on]))
    with torch.no_grad():
        batch = pack([group.samples for group in groups], make_qwen())
        own = float(token_log_probs(make_qwen(), batch)[0].mean())
    _, metrics = moved(make_qwen(), groups, recompute_old=False)
    assert metrics["loss/drift"] == pytest.approx(sampled - own, rel=1e-4)
    _, metrics = moved(make_qwen(), groups, recompute_old=True)
    assert metrics["loss/drift"] == 0.0


def test_the_reference_is_the_model_that_grpo_began_with(make_qwen: Callable[..., QwenVL], tmp_path: Any) -> None:
    save_qwen_vl(make_qwen(), str(tmp_path / COLD_START))
    settings = {"output": str(tmp_path), "beta": 0.5, "kl": "k3"}
    _, metrics = moved(make_qwen(), made(), **settings)
    assert metrics["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    other = make_qwen()
    with torch.no_grad():
        other.model.model.language_model.norm.weight.mul_(0.5)
    _, metrics = moved(other, made(), **settings)
    assert metrics["loss/kl"] > 0.01


def test_gradients_on_masked_tokens_are_exactly_zero(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    held: list[torch.Tensor] = []
    real = qwen.hidden_states

    def watched(*given: Any) -> torch.Tensor:
        hidden = real(*given)
        if hidden.requires_grad:  # not where the guard looks
            hidden.retain_grad()
            held.append(hidden)
        return hidden

    qwen.hidden_states = watched  # type: ignore[method-assign]
    groups = made()
    moved(qwen, groups, recompute_old=True)
    (hidden,) = held
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1).flatten().nonzero()[:, 0].tolist()
    sources = pack([group.samples for group in groups], qwen).sources.tolist()
    assert touched == sorted(set(sources))  # the place before each trained token, and no other


def test_a_token_that_is_masked_leaves_no_trace_in_the_update(make_qwen: Callable[..., QwenVL]) -> None:
    def with_last_token(token: int) -> list[SampleGroup]:
        groups = made()
        (first, *others) = groups[0].samples
        last = replace(first, ids=(*first.ids, token), mask=(*first.mask, False), logprobs=(*first.logprobs, -9.0))
        return [replace(groups[0], samples=(last, *others)), *groups[1:]]

    one, _ = moved(make_qwen(), with_last_token(300))
    other, _ = moved(make_qwen(), with_last_token(301))
    assert torch.equal(one, other)


# ---------------------------------------------------------------- guards


def test_a_run_that_does_not_see_its_images_is_stopped(
    make_qwen: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    qwen = make_qwen()
    real = qwen.encode_images
    monkeypatch.setattr(qwen, "encode_images", lambda images: {key: value * 0 for key, value in real(images).items()})
    with pytest.raises(TrainingStopped, match="grey images change the log-probs"):
        moved(qwen, made())


def test_images_are_looked_at_in_the_first_step_only(
    make_qwen: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(make_qwen(), config_of(), "grpo")
    updater = Updater(policy, policy.config, 24)
    forwards: list[int] = []
    real = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda *given: (forwards.append(1), real(*given))[1])
    updater.step(made(), 1)
    updater.step(made(), 2)
    assert len(forwards) == 2 + 1 + 1


def test_a_sampler_that_drifts_from_the_trainer_stops_the_run(
    make_qwen: Callable[..., QwenVL],
) -> None:
    with pytest.raises(TrainingStopped, match="sampler and trainer agree on"):
        moved(make_qwen(), made(), max_drift=0.1)
    _, metrics = moved(make_qwen(), made(), max_drift=1e9)
    assert metrics["sampler/kl/other"] > 0.1


def test_an_update_that_is_no_number_stops_the_run_before_the_weights_change(
    make_qwen: Callable[..., QwenVL], tmp_path: Any
) -> None:
    qwen = make_qwen()
    before = [parameter.detach().clone() for parameter in qwen.model.parameters()]
    groups = made()
    (first, *others) = groups[0].samples
    broken = [SampleGroup((replace(first, advantage=float("nan")), *others)), *groups[1:]]
    policy = Policy(qwen, config_of(output=str(tmp_path)), "grpo")
    with pytest.raises(TrainingStopped, match="finite"):
        Updater(policy, policy.config, 24).step(broken, 7)
    assert all(torch.equal(now, then) for now, then in zip(qwen.model.parameters(), before, strict=True))
    (batch,), values = load_batches(tmp_path / "nan" / "step-7")
    assert bool(batch.advantages.isnan().any())
    assert np.isnan(values["loss/policy"])
