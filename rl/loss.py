"""Losses as pure functions of log-probs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss and what to log of it; all are scalars.

    Attributes:
        loss: What is minimised.
        policy: The clipped surrogate alone.
        kl: Mean k3 estimate of KL(policy ‖ reference), 0 without a reference.
        clip_fraction: Share of tokens whose ratio was clipped.
        drift: Mean of old − new log-prob: how far the sampler's policy was from the trained one.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    drift: Tensor


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimator of KL(policy ‖ reference) per token, >= 0 (Schulman 2020; GRPO, arXiv 2402.03300, Eq. 4)."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - log_ratio - 1


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    reference: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    beta: float = 0.0,
    denominator: float | None = None,
) -> PolicyLoss:
    """The token-level clipped surrogate, plus β times the KL to a reference (DAPO, arXiv 2503.14476, Eq. 8).

    Args:
        logprobs: (N,) of the trained tokens under the policy.
        old_logprobs: (N,) under the policy that sampled them.
        advantages: (N,).
        reference: (N,) under the reference; None leaves the KL out.
        clip_low: The ratio is clipped to at least 1 − this.
        clip_high: The ratio is clipped to at most 1 + this.
        beta: Weight of the KL.
        denominator: What the sum is divided by; None: N. 0 tokens give a loss of 0.
    """
    total = max(denominator if denominator is not None else float(len(logprobs)), 1.0)
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
    kl = k3(logprobs, reference) if reference is not None else torch.zeros_like(logprobs)
    policy = surrogate.sum() / total
    with torch.no_grad():
        outside = (clipped * advantages < ratio * advantages).float()
        clip_fraction, drift = outside.sum() / total, (old_logprobs - logprobs).sum() / total
    return PolicyLoss(policy + beta * kl.sum() / total, policy, kl.detach().sum() / total, clip_fraction, drift)


def sft_loss(logprobs: Tensor) -> Tensor:
    """Mean cross-entropy of the trained tokens, in nats; 0 for none."""
    return -logprobs.sum() / max(len(logprobs), 1)
