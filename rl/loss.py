"""Losses as pure functions of the log-probs of trained tokens. Knows no model, no reward and no config.

A loss is a sum over trained tokens, loss = Σ_t w_t · (−gain_t · c_t + β · KL_t), and each of its parts is one choice:

    ratio       token      r_t = π(t) / π_old(t)                           GRPO, arXiv 2402.03300, Eq. 3
                turn       geometric mean of r_t over the tokens of a turn, as `sequence` for each turn
                sequence   geometric mean of r_t over the trajectory       GSPO, arXiv 2507.18071, Eq. 7
                product    product of r_t over the trajectory              arXiv 2507.00748, Eq. 2
    clip        ppo        gain = min(r A, clip(r) A)                      PPO, arXiv 1707.06347, Eq. 7
                cispo      gain = detached clip(r) · A · log π(t)          MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5
                off        gain = r A
    normaliser  token      w = 1 / all tokens                              DAPO, arXiv 2503.14476, Eq. 8
                sequence   w = 1 / (sequences · tokens of its own)         GRPO, Eq. 3
                constant   w = 1 / (sequences · longest completion)        Dr.GRPO, arXiv 2503.20783
    kl          k1, k2, k3 estimators of KL(π ‖ reference)                 Schulman 2020; k3: GRPO, Eq. 4
    correction  token      c = min(π_old(t) / sampler(t), cap)             truncated importance sampling:
                sequence   c = min(Π π_old(t) / sampler(t), cap)           Yao et al. 2025

Here a sequence is a trajectory's trained tokens, those of all its turns. Where TRL 1.16 or verl 0.9 has a loss, ours
equals it, gradient included, but for three things we leave out: verl's dual clip (`clip_ratio_c`, arXiv 1912.09729),
verl's clamp of log-ratios to ±20, and TRL's second bound (`delta`). A sequence or turn ratio passes its gradient
to all its tokens, as in TRL; verl's GSPO differs from that only under a token correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from rl.advantage import Std

Ratio = Literal["token", "turn", "sequence", "product"]
Clip = Literal["ppo", "cispo", "off"]
Normaliser = Literal["token", "sequence", "constant"]
KL = Literal["k1", "k2", "k3"]
Correction = Literal["off", "token", "sequence"]

_CHOICES: Final = {
    "ratio": Ratio,
    "clip": Clip,
    "normaliser": Normaliser,
    "std": Std,
    "kl": KL,
    "correction": Correction,
}


@dataclass(frozen=True, slots=True)
class Objective:
    """What is optimised: one choice for each part of the loss and of the advantages.

    Attributes:
        ratio: What the policy's change is measured over.
        clip: How the ratio is bounded.
        clip_low: Its least value is 1 − this; in [0, 1], and 1 is no bound. `off` uses neither.
        clip_high: Its largest value is 1 + this; infinity is no bound.
        normaliser: What the sum over tokens is divided by.
        std: What advantages are divided by; see `rl.advantage`.
        beta: Weight of the KL to the reference.
        kl: Its estimator. On the policy that sampled, the gradient of k1 is 0 on average, that of k2 the KL's own.
        unbiased_kl: Multiply the estimate by the ratio, so that k1 and k3 have the KL's gradient too (DeepSeek-V3.2,
            arXiv 2512.02556); TRL's `use_bias_correction_kl`, which is on by default there.
        correction: Importance weights between the sampler and the trainer, where they compute log-probs differently.
        correction_cap: Largest of these weights.

    Raises:
        ValueError: If a name is unknown, a number is out of its range, or choices contradict each other.
    """

    ratio: Ratio = "token"
    clip: Clip = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    normaliser: Normaliser = "sequence"
    std: Std = "group"
    beta: float = 0.0
    kl: KL = "k3"
    unbiased_kl: bool = False
    correction: Correction = "off"
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {list(get_args(choices))}")
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low {self.clip_low}: within 0 and 1, as no ratio is below 0")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high {self.clip_high}: at least 0, or even an unchanged policy is clipped")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta {self.beta}: at least 0 and finite; below 0 it would drive the policy away")
        if self.unbiased_kl and self.kl == "k2":
            raise ValueError("kl 'k2' with unbiased_kl: its gradient is the KL's already, and the ratio would bias it")
        if not self.correction_cap >= 1:
            raise ValueError(f"correction_cap {self.correction_cap}: at least 1, the weight where nothing is corrected")


PRESETS: Final[Mapping[str, Objective]] = MappingProxyType(
    {
        "grpo": Objective(beta=0.04),  # arXiv 2402.03300, section 4.2
        "dr_grpo": Objective(normaliser="constant", std="off"),  # arXiv 2503.20783
        "dapo": Objective(clip_high=0.28, normaliser="token"),  # arXiv 2503.14476, section 4.1
        "gspo": Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4),  # arXiv 2507.18071, section 5.1
        "cispo": Objective(clip="cispo", clip_low=1.0, clip_high=4.0, normaliser="token"),  # bound 5: arXiv 2510.13786
        "undivided": Objective(clip_high=0.28, normaliser="token", std="off"),  # DAPO, but for Dr.GRPO's advantages
        "mig_grpo": Objective(ratio="product", clip="off", beta=0.001),  # arXiv 2507.00748, Eq. 2; KL: token mean
    }
)


@dataclass(frozen=True, slots=True)
class Totals:
    """What one update trains on, over all its micro-batches and processes.

    Whether masked trajectories count is the caller's switch: TRL counts them as sequences, verl does not.

    Attributes:
        tokens: Trained tokens.
        sequences: Trajectories.
    """

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss and what to log of it, all scalar sums over tokens: they add up over micro-batches and processes.

    Attributes:
        loss: What is minimised; a weighted sum.
        policy: The loss without the KL; a weighted sum.
        kl: Estimates of KL(policy ‖ reference), 0 without a reference; like those below a plain sum, to be divided by
            the number of tokens for a mean.
        clipped_low: Tokens whose ratio the lower bound changed; under `ppo` only where that stops their gradient.
        clipped_high: The same of the upper bound.
        drift: Old − new log-prob: how far the policy has moved from the one before the update.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    drift: Tensor


def token_weights(samples: Tensor, normaliser: Normaliser, totals: Totals, longest: int) -> Tensor:
    """The weight of each trained token in the loss.

    Args:
        samples: (N,) int64, the number of each token's trajectory; a trajectory is never split over micro-batches.
        normaliser: What the sum over tokens is divided by.
        totals: Of the whole update, so that micro-batches add up.
        longest: Most tokens of a completion, what `constant` divides by: the budget, not the longest seen.

    Returns:
        (N,) float32.

    Raises:
        ValueError: If the totals are less than what is here.
    """
    here = Totals(len(samples), len(samples.unique()))
    if here.tokens > totals.tokens or here.sequences > totals.sequences:
        raise ValueError(f"{here}, but {totals} in all: totals are those of the whole update")
    ones = torch.ones(len(samples), device=samples.device)
    if normaliser == "token":
        return ones / totals.tokens
    return ones / (totals.sequences * (longest if normaliser == "constant" else _sums(ones, samples)))


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    samples: Tensor,
    turns: Tensor,
    objective: Objective,
    reference: Tensor | None = None,
    sampled: Tensor | None = None,
) -> PolicyLoss:
    """The loss of a (micro-)batch; 0, with a gradient of nothing, where no token is trained.

    Args:
        logprobs: (N,) of the trained tokens under the policy, in nats; the only tensor that has a gradient.
        old_logprobs: (N,) under the policy before the update, as the trainer computes them.
        advantages: (N,).
        weights: (N,) from `token_weights`.
        samples: (N,) int64, the number of each token's trajectory.
        turns: (N,) int64, the number of its turn, unique in the batch.
        objective: Of the run.
        reference: (N,) log-probs under the reference; None where beta is 0.
        sampled: (N,) log-probs that the sampler gave; None where nothing is corrected.

    Raises:
        ValueError: If the tensors differ in shape, or one is missing that the objective needs.
    """
    _check(logprobs, objective, old_logprobs, advantages, weights, samples, turns, reference, sampled)
    ratio = _ratio(logprobs - old_logprobs, samples, turns, objective.ratio)
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    gain = _GAINS[objective.clip](ratio, ratio.clamp(low, high), advantages, logprobs)
    if sampled is not None and objective.correction != "off":
        gain = gain * _correction(old_logprobs - sampled, samples, objective)
    policy, estimates = -(weights * gain).sum(), torch.zeros_like(logprobs)
    if reference is not None:
        estimates = _ESTIMATORS[objective.kl](reference - logprobs) * (ratio if objective.unbiased_kl else 1.0)
    loss = policy + objective.beta * (weights * estimates).sum()
    below, above = _clipped(ratio, low, high, advantages, objective.clip)
    drift = (old_logprobs - logprobs).sum()
    logged = (value.detach() for value in (policy, estimates.sum(), below.sum(), above.sum(), drift))
    return PolicyLoss(loss, *logged)


def sft_loss(logprobs: Tensor, tokens: int | None = None) -> Tensor:
    """Mean cross-entropy of the trained tokens, in nats; 0 for none.

    Args:
        logprobs: (N,).
        tokens: Those of the whole update, of which these may be a part; None: N.
    """
    return -logprobs.sum() / max(len(logprobs) if tokens is None else tokens, 1)


# ---------------------------------------------------------------- the parts

_GAINS: Final[Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
    "ppo": lambda ratio, clipped, advantages, _: torch.minimum(ratio * advantages, clipped * advantages),
    "cispo": lambda _, clipped, advantages, logprobs: clipped.detach() * advantages * logprobs,
    "off": lambda ratio, _, advantages, __: ratio * advantages,
}
"""What a token gains, of its ratio, its clipped ratio, its advantage and its log-prob."""

_ESTIMATORS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "k1": lambda log_ratio: -log_ratio,
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: log_ratio.expm1() - log_ratio,
}
"""Of the log-prob under the reference less that under the policy."""


def _ratio(log_ratio: Tensor, samples: Tensor, turns: Tensor, over: Ratio) -> Tensor:
    """Each token's ratio of policy to old policy; (N,)."""
    if over == "token":
        return log_ratio.exp()
    if over == "product":
        return _sums(log_ratio, samples).exp()
    index = turns if over == "turn" else samples
    return (_sums(log_ratio, index) / _sums(torch.ones_like(log_ratio), index)).exp()


def _correction(log_ratio: Tensor, samples: Tensor, objective: Objective) -> Tensor:
    """Truncated importance weights; (N,)."""
    over = _sums(log_ratio, samples) if objective.correction == "sequence" else log_ratio
    return over.exp().clamp(max=objective.correction_cap)


def _clipped(ratio: Tensor, low: float, high: float, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Whether the lower and the upper bound changed a token; (N,) each."""
    below, above = (ratio < low) & (clip != "off"), (ratio > high) & (clip != "off")
    return (below & (advantages < 0), above & (advantages > 0)) if clip == "ppo" else (below, above)


def _sums(values: Tensor, index: Tensor) -> Tensor:
    """For each token the sum of the values of all tokens with the same number; (N,)."""
    place = index.unique(return_inverse=True)[1]
    return torch.zeros_like(values).index_add(0, place, values)[place]


def _check(logprobs: Tensor, objective: Objective, *others: Tensor | None) -> None:
    *_, reference, sampled = others
    shapes = [tuple(tensor.shape) for tensor in (logprobs, *others) if tensor is not None]
    if logprobs.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"one value per token is needed in every tensor, but the shapes are {shapes}")
    if objective.beta > 0 and reference is None:
        raise ValueError(f"beta {objective.beta} needs the log-probs of the reference")
    if objective.correction != "off" and sampled is None:
        raise ValueError(f"correction {objective.correction!r} needs the log-probs that the sampler gave")
