"""The losses: by hand, against TRL's and verl's own, and where their gradient is exactly nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.advantage import group_advantages
from rl.loss import PRESETS, Objective, PolicyLoss, Totals, policy_loss, sft_loss, token_weights

GOLDEN = Path(__file__).parent / "golden"
OLD = -2.0
LOW, HIGH = 0.2, 0.3
PLAIN = Objective(clip_low=LOW, clip_high=HIGH, normaliser="token")


@dataclass(frozen=True)
class Tokens:
    """The trained tokens of some trajectories."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    samples: Tensor
    turns: Tensor
    reference: Tensor
    sampled: Tensor

    def chosen(self, where: Tensor) -> Tokens:
        return Tokens(*(getattr(self, field.name)[where] for field in fields(self)))

    def loss(self, objective: Objective, totals: Totals | None = None, longest: int = 16) -> tuple[PolicyLoss, Tensor]:
        """The loss and its gradient by log-prob; by default these tokens are the whole update."""
        logprobs = self.logprobs.clone().requires_grad_()
        totals = totals or Totals(len(logprobs), len(self.samples.unique()))
        weights = token_weights(self.samples, objective.normaliser, totals, longest)
        given = logprobs, self.old, self.advantages, weights, self.samples, self.turns, objective
        found = policy_loss(*given, self.reference, self.sampled)
        (gradient,) = torch.autograd.grad(found.loss, logprobs)
        return found, gradient


def tokens(
    ratios: Sequence[float],
    advantages: Sequence[float],
    samples: Sequence[int] | None = None,
    turns: Sequence[int] | None = None,
    reference: Sequence[float] | None = None,
    sampled: Sequence[float] | None = None,
) -> Tokens:
    """Tokens with these ratios to the old policy, the reference and the sampler; each its own trajectory by default."""
    old = torch.full((len(ratios),), OLD, dtype=torch.float64)
    samples = range(len(ratios)) if samples is None else samples

    def less(values: Sequence[float] | None) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).log() if values is not None else torch.zeros_like(old)

    logprobs = old + less(ratios)
    return Tokens(
        logprobs,
        old,
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(list(samples)),
        torch.tensor(list(samples if turns is None else turns)),
        logprobs - less(reference),
        old - less(sampled),
    )


def golden(library: str) -> tuple[dict[str, Any], Tokens]:
    """What the library computed, and the tokens it was given: those that its mask trains."""
    stored = json.loads((GOLDEN / f"{library}.json").read_text())
    batch = {name: torch.tensor(values, dtype=torch.float64) for name, values in stored["batch"].items()}
    where = batch["mask"] > 0
    row, column = where.nonzero(as_tuple=True)
    turns = 2 * row + (column > 3)
    names = "logprobs", "old", "reference", "sampled"
    flat = {name: batch[name][where] for name in names}
    return stored, Tokens(advantages=batch["advantages"][row], samples=row, turns=turns, **flat)


TRL, TRL_TOKENS = golden("trl")
VERL, VERL_TOKENS = golden("verl")
TRAINED, TRAJECTORIES = 30, 6
TRL_TOTALS = Totals(TRAINED, TRAJECTORIES)
"""TRL counts the trajectory that is fully masked."""
VERL_TOTALS = Totals(TRAINED, TRAJECTORIES - 1)

# ---------------------------------------------------------------- against TRL and verl

_K3 = {"beta": 0.1}
_UNBIASED = {"beta": 0.1, "unbiased_kl": True}
_BY_TOKEN = {"correction": "token", "correction_cap": 1.2}
_BY_SEQUENCE = {"correction": "sequence", "correction_cap": 1.2}
_TRL_CISPO = {"clip": "cispo", "clip_low": 1.0, "clip_high": 0.3, "normaliser": "token"}
_TRL: Mapping[str, dict[str, Any]] = {
    "grpo": {},
    "grpo k3": _K3,
    "grpo unbiased k3": _UNBIASED,
    "bnpo": {"normaliser": "token", "clip_high": 0.28},
    "dapo": {"normaliser": "token", "clip_high": 0.28},
    "dapo k3": {"normaliser": "token", **_K3},
    "dr_grpo": {"normaliser": "constant"},
    "dr_grpo k3": {"normaliser": "constant", **_K3},
    "cispo": _TRL_CISPO,
    "cispo unbiased k3": {**_TRL_CISPO, "clip_high": 4.0, **_UNBIASED},
    "gspo": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    "gspo unbiased k3": {"ratio": "sequence", **_UNBIASED},
    "gspo by token": {"ratio": "sequence", "normaliser": "token"},
    "dapo token correction": {"normaliser": "token", **_BY_TOKEN},
    "grpo sequence correction": {**_BY_SEQUENCE, **_K3},
    "cispo sequence correction": {**_TRL_CISPO, **_BY_SEQUENCE},
    "gspo token correction": {"ratio": "sequence", **_BY_TOKEN},
}
_GSPO = {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1}
_CISPO = {"clip": "cispo", "clip_low": 0.2, "clip_high": 0.3}
_VERL: Mapping[str, dict[str, Any]] = {
    "vanilla token": {"normaliser": "token", "clip_high": 0.28},
    "vanilla sequence": {},
    "vanilla constant": {"normaliser": "constant"},
    "vanilla k1": {"normaliser": "token", "kl": "k1", "beta": 0.1},
    "vanilla k2": {"kl": "k2", "beta": 0.1},
    "vanilla k3": {"normaliser": "constant", "kl": "k3", "beta": 0.1},
    "gspo token": {"normaliser": "token", **_GSPO},
    "gspo sequence": _GSPO,
    "gspo constant": {"normaliser": "constant", **_GSPO},
    "cispo token": {"normaliser": "token", **_CISPO},
    "cispo sequence": _CISPO,
    "cispo constant": {"normaliser": "constant", "clip": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "vanilla token correction": {"normaliser": "token", **_BY_TOKEN, **_K3},
    "vanilla sequence correction": _BY_SEQUENCE,
    "cispo token correction": {"normaliser": "token", "clip": "cispo", **_BY_TOKEN},
    "gspo sequence correction": {"ratio": "sequence", **_BY_SEQUENCE},
}
_VERL_DIFFERS = {"vanilla dual clip", "gspo token correction"}


def test_every_golden_loss_is_compared() -> None:
    assert set(TRL["losses"]) == set(_TRL)
    assert set(VERL["losses"]) == set(_VERL) | _VERL_DIFFERS


@pytest.mark.parametrize("name", _TRL)
def test_loss_and_gradient_are_those_of_trl(name: str) -> None:
    found, gradient = TRL_TOKENS.loss(Objective(**_TRL[name]), TRL_TOTALS, TRL["longest"])
    assert found.loss.item() == pytest.approx(TRL["losses"][name]["loss"], rel=1e-6)
    assert gradient.tolist() == pytest.approx(TRL["losses"][name]["gradient"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", _VERL)
def test_loss_and_gradient_are_those_of_verl(name: str) -> None:
    found, gradient = VERL_TOKENS.loss(Objective(**_VERL[name]), VERL_TOTALS, VERL["longest"])
    assert found.loss.item() == pytest.approx(VERL["losses"][name]["loss"], rel=1e-6)
    assert gradient.tolist() == pytest.approx(VERL["losses"][name]["gradient"], rel=1e-6, abs=1e-9)


def test_a_trajectory_that_is_fully_masked_counts_for_trl_and_not_for_verl() -> None:
    for name in ("sequence", "constant"):
        objective = Objective(normaliser=name)  # type: ignore[arg-type]
        counted, small = TRL_TOKENS.loss(objective, TRL_TOTALS)
        left_out, large = TRL_TOKENS.loss(objective, VERL_TOTALS)
        trl = TRL["losses"]["grpo" if name == "sequence" else "dr_grpo"]["loss"]
        assert counted.loss.item() == pytest.approx(trl, rel=1e-6)
        assert left_out.loss.item() == pytest.approx(VERL["losses"][f"vanilla {name}"]["loss"], rel=1e-6)
        assert left_out.loss.item() == pytest.approx(6 / 5 * counted.loss.item(), rel=1e-6)
        assert large.tolist() == pytest.approx((6 / 5 * small).tolist(), rel=1e-6)


def test_unlike_verl_a_bad_action_made_much_likelier_is_not_left_alone() -> None:
    found, gradient = VERL_TOKENS.loss(Objective(normaliser="token"), VERL_TOTALS)
    stored = VERL["losses"]["vanilla dual clip"]
    same = np.isclose(gradient.tolist(), stored["gradient"], rtol=1e-6, atol=1e-9)
    ratio = (VERL_TOKENS.logprobs - VERL_TOKENS.old).exp()
    beyond = (ratio > 3) & (VERL_TOKENS.advantages < 0)
    assert same.tolist() == (~beyond).tolist()
    assert beyond.sum() == 1 and stored["gradient"][int(beyond.nonzero())] == 0.0
    surplus = (-VERL_TOKENS.advantages * (ratio - 3))[beyond].item() / TRAINED
    assert found.loss.item() - stored["loss"] == pytest.approx(surplus, rel=1e-6)


def test_unlike_verl_a_token_correction_of_a_sequence_ratio_is_shared_by_its_tokens() -> None:
    objective = Objective(ratio="sequence", correction="token", correction_cap=1.2)
    found, gradient = VERL_TOKENS.loss(objective, VERL_TOTALS)
    stored = VERL["losses"]["gspo token correction"]
    theirs = torch.tensor(stored["gradient"], dtype=torch.float64)
    assert found.loss.item() == pytest.approx(stored["loss"], rel=1e-6)
    assert gradient.tolist() != pytest.approx(theirs.tolist(), rel=1e-3)
    for sample in VERL_TOKENS.samples.unique():
        own = VERL_TOKENS.samples == sample
        assert gradient[own].sum().item() == pytest.approx(theirs[own].sum().item(), rel=1e-6)
        assert gradient[own].tolist() == pytest.approx([gradient[own][0].item()] * int(own.sum()))


# ---------------------------------------------------------------- clipping


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "low", "high"),
    [
        (1.0, 2.0, -2.0, 0, 0),
        (1.1, 2.0, -2.2, 0, 0),
        (1.5, 2.0, -2.6, 0, 1),  # above 1 + high: no more to gain
        (0.5, 2.0, -1.0, 0, 0),  # below 1 - low with a good action: it may come back
        (0.9, -2.0, 1.8, 0, 0),
        (0.5, -2.0, 1.6, 1, 0),  # below 1 - low: no more to lose
        (1.5, -2.0, 3.0, 0, 0),  # above 1 + high with a bad action: it may come back
    ],
)
def test_ppo_clips_where_going_on_would_pay(ratio: float, advantage: float, loss: float, low: int, high: int) -> None:
    found, gradient = tokens([ratio], [advantage]).loss(PLAIN)
    assert found.loss.item() == pytest.approx(loss)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (low, high)
    assert gradient.item() == (0.0 if low or high else pytest.approx(-ratio * advantage))


@pytest.mark.parametrize(("ratio", "bounded", "low", "high"), [(1.1, 1.1, 0, 0), (1.5, 1.3, 0, 1), (0.5, 0.8, 1, 0)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_bounds_a_weight_and_keeps_every_tokens_gradient(
    ratio: float, bounded: float, low: int, high: int, advantage: float
) -> None:
    found, gradient = tokens([ratio], [advantage]).loss(replace(PLAIN, clip="cispo"))
    assert found.loss.item() == pytest.approx(-bounded * advantage * (OLD + math.log(ratio)))
    assert gradient.item() == pytest.approx(-bounded * advantage)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (low, high)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 9.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_without_a_clip_the_ratio_is_not_bounded(ratio: float, advantage: float) -> None:
    found, gradient = tokens([ratio], [advantage]).loss(replace(PLAIN, clip="off"))
    assert found.loss.item() == gradient.item() == pytest.approx(-ratio * advantage)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (0, 0)


def test_on_the_policy_that_sampled_the_gradient_is_that_of_the_advantage_weighted_log_probs() -> None:
    for name in ("ppo", "cispo", "off"):
        _, gradient = tokens([1.0, 1.0, 1.0], [2.0, -1.0, 0.0]).loss(replace(PLAIN, clip=name))
        assert gradient.tolist() == pytest.approx([-2 / 3, 1 / 3, 0.0])


# ---------------------------------------------------------------- what the ratio is measured over


THREE = tokens([1.0, 1.21, 2.0, 0.5], [1.0, 1.0, 1.0, -3.0], samples=[0, 0, 0, 1], turns=[0, 0, 1, 2])
UNCLIPPED = replace(PLAIN, clip="off")


@pytest.mark.parametrize(
    ("ratio", "ratios"),
    [
        ("token", [1.0, 1.21, 2.0, 0.5]),
        ("turn", [1.1, 1.1, 2.0, 0.5]),
        ("sequence", [2.42 ** (1 / 3)] * 3 + [0.5]),
        ("product", [2.42] * 3 + [0.5]),
    ],
)
def test_a_ratio_is_measured_over_a_token_a_turn_or_a_trajectory(ratio: str, ratios: Sequence[float]) -> None:
    found, _ = THREE.loss(replace(UNCLIPPED, ratio=ratio))
    assert found.loss.item() == pytest.approx(-(sum(ratios[:3]) - 3 * ratios[3]) / 4)


def test_a_turns_ratio_passes_its_gradient_to_all_tokens_of_the_turn_alike() -> None:
    _, gradient = THREE.loss(replace(UNCLIPPED, ratio="turn"))
    assert gradient.tolist() == pytest.approx([-1.1 / 4, -1.1 / 4, -2.0 / 4, 1.5 / 4])
    _, clipped = THREE.loss(replace(PLAIN, ratio="turn"))
    assert clipped.tolist() == pytest.approx([-1.1 / 4, -1.1 / 4, 0.0, 0.0])


def test_equation_2_of_2507_00748_by_hand() -> None:
    ratios, reference = [1.5, 0.8, 2.0], [1.0, 2.0, 0.5]
    batch = tokens(ratios, [2.0, 2.0, -1.0], samples=[7, 7, 3], reference=reference)
    k3 = [1 / r - math.log(1 / r) - 1 for r in reference]
    found, gradient = batch.loss(PRESETS["mig_grpo"])
    assert found.policy.item() == pytest.approx(-(1.5 * 0.8 * 2.0 - 2.0) / 2)
    assert found.loss.item() == pytest.approx(found.policy.item() + 0.001 * ((k3[0] + k3[1]) / 2 + k3[2]) / 2)
    expected = [-1.2 + 0.001 * (1 - 1 / r) / 4 for r in reference[:2]] + [1.0 + 0.001 * (1 - 1 / 0.5) / 2]
    assert gradient.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ratio", ["token", "turn", "sequence", "product"])
def test_a_trajectorys_gradient_does_not_depend_on_the_others(ratio: str) -> None:
    objective = Objective(ratio=ratio, beta=0.1, correction="sequence")  # type: ignore[arg-type]
    own = TRL_TOKENS.samples == 2
    others = torch.where(own, TRL_TOKENS.logprobs, TRL_TOKENS.logprobs - 1.0)
    moved = replace(TRL_TOKENS, logprobs=others, advantages=torch.where(own, TRL_TOKENS.advantages, 5.0))
    before, after = TRL_TOKENS.loss(objective)[1], moved.loss(objective)[1]
    assert after[own].tolist() == before[own].tolist()
    assert after[~own].tolist() != pytest.approx(before[~own].tolist())


def test_any_number_may_name_a_trajectory_or_a_turn() -> None:
    renamed = replace(TRL_TOKENS, samples=900 - 7 * TRL_TOKENS.samples, turns=5000 - TRL_TOKENS.turns)
    for ratio in ("turn", "sequence"):
        objective = Objective(ratio=ratio, clip="off")  # type: ignore[arg-type]
        assert renamed.loss(objective)[1].tolist() == pytest.approx(TRL_TOKENS.loss(objective)[1].tolist())


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("normaliser", "weights"),
    [("token", [1 / 10] * 4), ("sequence", [1 / 9, 1 / 9, 1 / 9, 1 / 3]), ("constant", [1 / 60] * 4)],
)
def test_weights_by_hand(normaliser: Any, weights: Sequence[float]) -> None:
    found = token_weights(torch.tensor([4, 4, 4, 1]), normaliser, Totals(tokens=10, sequences=3), longest=20)
    assert found.tolist() == pytest.approx(weights)


@pytest.mark.parametrize("normaliser", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_add_up_to_the_whole(name: str, normaliser: Any) -> None:
    objective = replace(PRESETS[name], normaliser=normaliser, beta=0.1, correction="sequence")
    whole, gradient = TRL_TOKENS.loss(objective, TRL_TOTALS)
    parts = [TRL_TOKENS.samples <= 1, TRL_TOKENS.samples > 1]
    found = [TRL_TOKENS.chosen(part).loss(objective, TRL_TOTALS) for part in parts]
    for field in fields(PolicyLoss):
        added = sum(getattr(loss, field.name).item() for loss, _ in found)
        assert added == pytest.approx(getattr(whole, field.name).item(), rel=1e-6)
    assert torch.cat([part for _, part in found]).tolist() == pytest.approx(gradient.tolist(), rel=1e-6)


def test_totals_are_those_of_the_whole_update() -> None:
    samples = torch.tensor([0, 0, 1])
    for totals in (Totals(tokens=2, sequences=2), Totals(tokens=3, sequences=1)):
        with pytest.raises(ValueError, match=r"Totals\(tokens=3, sequences=2\), but .* those of the whole update"):
            token_weights(samples, "token", totals, 8)
    assert token_weights(samples, "token", Totals(3, 2), 8).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("normaliser", ["token", "sequence", "constant"])
@pytest.mark.parametrize("totals", [Totals(0, 0), Totals(30, 6)])
@pytest.mark.parametrize("name", PRESETS)
def test_where_nothing_is_trained_the_loss_is_zero_and_can_be_differentiated(
    name: str, totals: Totals, normaliser: Any
) -> None:
    empty = TRL_TOKENS.chosen(TRL_TOKENS.samples < 0)
    found, gradient = empty.loss(replace(PRESETS[name], normaliser=normaliser, correction="sequence"), totals)
    assert [getattr(found, field.name).item() for field in fields(found)] == [0.0] * 6
    assert gradient.shape == (0,)


# ---------------------------------------------------------------- the KL term


@pytest.mark.parametrize(
    ("kl", "value"), [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", math.log(2) - 0.5)]
)
def test_the_estimators_by_hand(kl: Any, value: float) -> None:
    batch = tokens([1.0, 1.0], [1.0, -3.0], reference=[2.0, 1.0])  # the policy gives the first token twice as much
    found, _ = batch.loss(replace(PLAIN, kl=kl, beta=0.5))
    assert found.policy.item() == pytest.approx(1.0)
    assert found.kl.item() == pytest.approx(value)
    assert found.loss.item() == pytest.approx(1.0 + 0.5 * value / 2)
    assert batch.loss(replace(PLAIN, kl=kl))[0].loss.item() == pytest.approx(1.0)


def expected_kl(kl: str, unbiased: bool) -> tuple[float, Tensor, float, Tensor]:
    """An estimator's mean over the samples of a policy and its gradient by the logits; then those of the KL itself."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()
    reference = torch.randn(6, generator=rng, dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    old, index = logprobs.detach(), torch.arange(6)
    objective = Objective(beta=1.0, kl=kl, unbiased_kl=unbiased)  # type: ignore[arg-type]
    found = policy_loss(logprobs, old, torch.zeros(6), old.exp(), index, index, objective, reference)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (gradient,) = torch.autograd.grad(found.loss, logits, retain_graph=True)
    (right,) = torch.autograd.grad(exact, logits)
    return found.loss.item(), gradient, exact.item(), right


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_kl_and_times_the_ratio_so_is_their_gradient(kl: str) -> None:
    mean, gradient, exact, right = expected_kl(kl, unbiased=False)
    assert mean == pytest.approx(exact)
    assert gradient.tolist() != pytest.approx(right.tolist(), rel=0.1)
    mean, gradient, exact, right = expected_kl(kl, unbiased=True)
    assert mean == pytest.approx(exact)
    assert gradient.tolist() == pytest.approx(right.tolist())


def test_the_mean_gradient_of_k1_is_nothing_and_that_of_k2_is_the_kls() -> None:
    assert expected_kl("k1", unbiased=False)[1].abs().max() < 1e-12
    mean, gradient, exact, right = expected_kl("k2", unbiased=False)
    assert mean != pytest.approx(exact, rel=0.05)
    assert gradient.tolist() == pytest.approx(right.tolist())


def test_the_kl_pulls_towards_the_reference_even_where_the_surrogate_is_clipped() -> None:
    _, gradient = tokens([1.5], [1.0], reference=[1.5]).loss(replace(PLAIN, beta=0.5))
    assert gradient.item() == pytest.approx(0.5 * (1 - 1 / 1.5))


# ---------------------------------------------------------------- sampler and trainer


def test_corrections_by_hand() -> None:
    batch = tokens([1.1, 1.0, 1.0], [1.0, 2.0, 3.0], samples=[0, 0, 1], sampled=[1.5, 0.5, 9.0])
    for name, weights in (("off", [1, 1, 1]), ("token", [1.5, 0.5, 2.0]), ("sequence", [0.75, 0.75, 2.0])):
        found, gradient = batch.loss(replace(PLAIN, correction=name, correction_cap=2.0))
        gains = [1.1 * weights[0], 2.0 * weights[1], 3.0 * weights[2]]
        assert found.loss.item() == pytest.approx(-sum(gains) / 3)
        assert gradient.tolist() == pytest.approx([-gain / 3 for gain in gains])


def test_the_kl_is_not_corrected() -> None:
    batch = tokens([1.0], [0.0], reference=[2.0], sampled=[1.5])
    plain, corrected = (batch.loss(replace(PLAIN, beta=1.0, correction=name))[0] for name in ("off", "token"))
    assert corrected.loss.item() == plain.loss.item() == pytest.approx(math.log(2) - 0.5)


def test_only_the_loss_has_a_gradient() -> None:
    found, _ = TRL_TOKENS.loss(MODERATE)
    assert [field.name for field in fields(found) if getattr(found, field.name).requires_grad] == ["loss"]


def test_drift_is_how_much_less_likely_the_tokens_have_become() -> None:
    found, _ = tokens([math.exp(-0.5), math.exp(-0.1)], [1.0, 1.0]).loss(PLAIN)
    assert found.drift.item() == pytest.approx(0.6)


# ---------------------------------------------------------------- no choice is dead, none is impossible

MODERATE = Objective(beta=0.1, correction="token", correction_cap=1.1)
OTHERS: Mapping[str, Sequence[Any]] = {
    "ratio": ["turn", "sequence", "product"],
    "clip": ["cispo", "off"],
    "clip_low": [0.1],
    "clip_high": [0.1],
    "normaliser": ["token", "constant"],
    "std": ["batch", "off"],
    "beta": [0.0],
    "kl": ["k1", "k2"],
    "unbiased_kl": [True],
    "correction": ["off", "sequence"],
    "correction_cap": [1.2],
}


def outcome(objective: Objective) -> tuple[float, list[float]]:
    """From rewards to loss and gradient, the six trajectories as two groups of three."""
    rewards = np.array([[1.0, 0.2, 0.4], [0.1, 0.3, 0.0]])
    advantages = group_advantages(rewards, np.ones((2, 3), bool), objective.std)
    found, gradient = replace(TRL_TOKENS, advantages=torch.tensor(advantages.flatten())[TRL_TOKENS.samples]).loss(
        objective
    )
    return found.loss.item(), gradient.tolist()


def test_every_choice_has_a_test() -> None:
    assert list(OTHERS) == [field.name for field in fields(Objective)]


@pytest.mark.parametrize("name", OTHERS)
def test_every_choice_changes_loss_and_gradient(name: str) -> None:
    values = [getattr(MODERATE, name), *OTHERS[name]]
    found = [outcome(replace(MODERATE, **{name: value})) for value in values]
    for index, (loss, gradient) in enumerate(found):
        for other_loss, other_gradient in found[:index]:
            assert loss != pytest.approx(other_loss, rel=1e-4)
            assert gradient != pytest.approx(other_gradient, rel=1e-4)


def test_the_presets_of_papers_are_six_different_objectives() -> None:
    """And the default, whose loss is DAPO's: only its advantages differ."""
    papers = {name: preset for name, preset in PRESETS.items() if name != "undivided"}
    assert list(papers) == ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "mig_grpo"]
    assert PRESETS["undivided"] == replace(PRESETS["dapo"], std="off")
    gradients = [tuple(outcome(objective)[1]) for objective in papers.values()]
    assert len(set(gradients)) == 6
    numbers = [(preset.clip_low, preset.clip_high, preset.beta) for preset in papers.values() if preset.clip != "off"]
    assert numbers == [(0.2, 0.2, 0.04), (0.2, 0.2, 0.0), (0.2, 0.28, 0.0), (3e-4, 4e-4, 0.0), (1.0, 4.0, 0.0)]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"ratio": "word"}, "ratio 'word' is not one of .*'product'"),
        ({"clip": "tanh"}, "clip 'tanh' is not one of"),
        ({"normaliser": "mean"}, "normaliser 'mean' is not one of"),
        ({"std": "all"}, "std 'all' is not one of"),
        ({"kl": "k4"}, "kl 'k4' is not one of"),
        ({"correction": "turn"}, "correction 'turn' is not one of"),
        ({"clip_low": 1.1}, "clip_low 1.1: .* no ratio is below 0"),
        ({"clip_low": -0.1}, "clip_low -0.1"),
        ({"clip_high": -0.1}, "clip_high -0.1: at least 0"),
        ({"beta": -0.1}, "beta -0.1: at least 0"),
        ({"beta": math.inf}, "beta inf"),
        ({"beta": math.nan}, "beta nan"),
        ({"correction_cap": 0.9}, "correction_cap 0.9: at least 1"),
        ({"kl": "k2", "unbiased_kl": True}, "the ratio would bias it"),
    ],
)
def test_impossible_choices_are_refused_with_the_reason(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**choices)


def test_what_an_objective_needs_must_be_given() -> None:
    one = torch.zeros(1)
    given = one, one, one, one, one.long(), one.long()
    with pytest.raises(ValueError, match="beta 0.1 needs the log-probs of the reference"):
        policy_loss(*given, Objective(beta=0.1))
    with pytest.raises(ValueError, match="correction 'token' needs the log-probs that the sampler gave"):
        policy_loss(*given, Objective(correction="token"))
    assert policy_loss(*given, Objective()).kl.item() == 0.0


@pytest.mark.parametrize("wrong", range(8))
def test_tensors_must_have_one_value_per_token(wrong: int) -> None:
    given = [torch.zeros(3) for _ in range(4)] + [torch.zeros(3, dtype=torch.int64) for _ in range(2)]
    more = [torch.zeros(3), torch.zeros(3)]
    (given + more)[wrong].resize_(1).zero_()
    with pytest.raises(ValueError, match=r"one value per token.*\(1,\)"):
        policy_loss(*given, Objective(), *more)


def test_tensors_of_rows_are_refused() -> None:
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"one value per token.*\(2, 3\)"):
        policy_loss(rows, rows, rows, rows, rows.long(), rows.long(), Objective())


# ---------------------------------------------------------------- SFT


def test_the_sft_loss_is_the_mean_cross_entropy_in_nats() -> None:
    assert float(sft_loss(torch.tensor([-1.0, -3.0, -2.0]))) == 2.0


def test_the_sft_losses_of_micro_batches_add_up() -> None:
    parts = [sft_loss(torch.tensor(part), tokens=3) for part in ([-1.0, -3.0], [-2.0])]
    assert [float(part) for part in parts] == pytest.approx([4 / 3, 2 / 3])


def test_the_sft_loss_of_no_token_is_zero() -> None:
    assert sft_loss(torch.zeros(0, requires_grad=True)).item() == 0.0
