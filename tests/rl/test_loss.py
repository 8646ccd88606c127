"""The losses, by hand, and where their gradient is exactly nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rl.loss import PolicyLoss, grpo_loss, k3, sft_loss

OLD = -2.0
LOW, HIGH = 0.2, 0.3


def loss_of(
    ratios: Sequence[float], advantages: Sequence[float], denominator: float | None = None
) -> tuple[PolicyLoss, Tensor]:
    """The loss of tokens with these ratios, and its gradient by log-prob."""
    logprobs = (OLD + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    old = torch.full_like(logprobs, OLD).detach()
    signs = torch.tensor(advantages, dtype=torch.float64)
    loss = grpo_loss(logprobs, old, signs, clip_low=LOW, clip_high=HIGH, denominator=denominator)
    (gradient,) = torch.autograd.grad(loss.loss, logprobs)
    return loss, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0),
        (1.1, 2.0, -2.2, 0),
        (1.5, 2.0, -2.6, 1),  # above 1 + high: no more to gain
        (0.5, 2.0, -1.0, 0),  # below 1 - low with a good action: it may come back
        (0.9, -2.0, 1.8, 0),
        (0.5, -2.0, 1.6, 1),  # below 1 - low: no more to lose
        (1.5, -2.0, 3.0, 0),  # above 1 + high with a bad action: it may come back
    ],
)
def test_the_surrogate_is_clipped_where_going_on_would_pay(
    ratio: float, advantage: float, loss: float, clipped: int
) -> None:
    found, gradient = loss_of([ratio], [advantage])
    assert found.loss.item() == pytest.approx(loss)
    assert found.policy.item() == found.loss.item()
    assert found.clip_fraction.item() == clipped
    assert gradient.item() == (0.0 if clipped else pytest.approx(-ratio * advantage))


def test_clip_low_and_clip_high_are_two_bounds() -> None:
    def value(ratio: float, advantage: float, low: float, high: float) -> float:
        logprobs = torch.tensor([OLD + math.log(ratio)])
        inputs = logprobs, torch.tensor([OLD]), torch.tensor([advantage])
        return float(grpo_loss(*inputs, clip_low=low, clip_high=high).loss)

    assert value(1.5, 1.0, 0.2, 0.28) == pytest.approx(-1.28)
    assert value(1.5, 1.0, 0.2, 0.4) == pytest.approx(-1.4)
    assert value(1.5, 1.0, 0.3, 0.28) == pytest.approx(-1.28)
    assert value(0.5, -1.0, 0.2, 0.28) == pytest.approx(0.8)
    assert value(0.5, -1.0, 0.3, 0.28) == pytest.approx(0.7)
    assert value(0.5, -1.0, 0.2, 0.4) == pytest.approx(0.8)


def test_every_token_counts_the_same() -> None:
    found, gradient = loss_of([1.0, 1.1, 1.5, 0.5], [1.0, 1.0, 1.0, -1.0])
    assert found.loss.item() == pytest.approx((-1.0 - 1.1 - 1.3 + 0.8) / 4)
    assert found.clip_fraction.item() == 0.5
    assert gradient.tolist() == pytest.approx([-0.25, -0.275, 0.0, 0.0])


def test_on_the_policy_that_sampled_the_gradient_is_that_of_the_advantage_weighted_log_probs() -> None:
    _, gradient = loss_of([1.0, 1.0, 1.0], [2.0, -1.0, 0.0])
    assert gradient.tolist() == pytest.approx([-2 / 3, 1 / 3, 0.0])


def test_the_denominator_divides_the_sum() -> None:
    mean, _ = loss_of([1.0, 1.1], [1.0, 1.0])
    half, gradient = loss_of([1.0, 1.1], [1.0, 1.0], denominator=4.0)
    assert mean.loss.item() == pytest.approx(-2.1 / 2)
    assert half.loss.item() == pytest.approx(-2.1 / 4)
    assert gradient.tolist() == pytest.approx([-0.25, -0.275])


def test_drift_is_how_much_less_likely_the_tokens_have_become() -> None:
    found, _ = loss_of([math.exp(-0.5), math.exp(-0.1)], [1.0, 1.0])
    assert found.drift.item() == pytest.approx(0.3)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_no_token_gives_a_loss_of_zero_that_can_be_differentiated(beta: float) -> None:
    empty = torch.zeros(0, requires_grad=True)
    found = grpo_loss(empty, empty.detach(), empty.detach(), empty.detach(), beta=beta)
    found.loss.backward()
    values = [found.loss, found.policy, found.kl, found.clip_fraction, found.drift]
    assert [value.item() for value in values] == [0.0] * 5
    assert sft_loss(empty).item() == 0.0


def test_a_denominator_of_zero_divides_by_one() -> None:
    found, _ = loss_of([1.0], [1.0], denominator=0.0)
    assert found.loss.item() == -1.0


# ---------------------------------------------------------------- the KL term


def test_k3_is_zero_at_equality_and_above_zero_elsewhere() -> None:
    logprobs = torch.linspace(-5, 0, 41, dtype=torch.float64)
    assert k3(logprobs, logprobs).tolist() == [0.0] * 41
    shifted = torch.cat([k3(logprobs, logprobs + delta) for delta in (-2.0, -1e-3, 1e-3, 2.0)])
    assert bool((shifted > 0).all())


def test_k3_by_hand() -> None:
    assert float(k3(torch.tensor(-1.0), torch.tensor(-1.0 + math.log(2)))) == pytest.approx(2 - math.log(2) - 1)


def test_the_mean_of_k3_over_samples_of_the_policy_is_the_kl() -> None:
    policy, reference = (torch.randn(6, generator=torch.Generator().manual_seed(k)).log_softmax(0) for k in (0, 1))
    mean = (policy.exp() * k3(policy, reference)).sum()
    assert float(mean) == pytest.approx(float((policy.exp() * (policy - reference)).sum()), rel=1e-5)


def test_beta_weighs_the_kl_to_the_reference() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.8])
    inputs = logprobs, logprobs, torch.tensor([1.0, -3.0])
    kl = float(k3(logprobs, reference).mean())
    none, weighed = grpo_loss(*inputs), grpo_loss(*inputs, reference, beta=0.1)
    assert none.kl.item() == 0.0
    assert none.loss.item() == pytest.approx(1.0)
    assert weighed.kl.item() == pytest.approx(kl)
    assert weighed.policy.item() == pytest.approx(1.0)
    assert weighed.loss.item() == pytest.approx(1.0 + 0.1 * kl)
    watched = grpo_loss(*inputs, reference, beta=0.0)
    assert (watched.loss.item(), watched.kl.item()) == pytest.approx((1.0, kl))


def test_the_kl_pulls_towards_the_reference_even_where_the_surrogate_is_clipped() -> None:
    logprobs = torch.tensor([OLD + math.log(1.5)], requires_grad=True)
    found = grpo_loss(logprobs, torch.tensor([OLD]), torch.tensor([1.0]), torch.tensor([OLD]), beta=0.5)
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    assert gradient.item() == pytest.approx(0.5 * (1 - 1 / 1.5))


def test_the_kl_is_divided_as_the_surrogate_is() -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.8])
    found = grpo_loss(logprobs, logprobs, torch.zeros(2), reference, beta=2.0, denominator=10.0)
    assert found.loss.item() == pytest.approx(2 * float(k3(logprobs, reference).sum()) / 10)
    assert found.kl.item() == pytest.approx(float(k3(logprobs, reference).sum()) / 10)


# ---------------------------------------------------------------- SFT


def test_the_sft_loss_is_the_mean_cross_entropy_in_nats() -> None:
    assert float(sft_loss(torch.tensor([-1.0, -3.0, -2.0]))) == 2.0
