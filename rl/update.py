"""From a step's samples to updates of the policy: old and reference log-probs, the loss, its gradient, the optimiser.

An update is one or several forward and backward passes over packed rows. Its loss is a sum over tokens whose weights
come from totals over the whole update, so that how it is divided into passes changes memory and time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl.batch import Batch, pack, parts
from rl.collect import SampleGroup, totals
from rl.config import TrainConfig
from rl.guards import batch_kinds, check_counts, check_drift, check_finite, check_sight
from rl.log_probs import token_log_probs
from rl.loss import Totals, policy_loss, token_weights
from rl.policy import Policy


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        batch: Its rows.
        old: (N,) log-probs that the ratio is relative to; None: the policy's own, as it stands in the update.
        reference: (N,) log-probs of the reference; None without a KL.
    """

    batch: Batch
    old: Tensor | None
    reference: Tensor | None


class Updater:
    """Updates a policy.

    Args:
        policy: What learns.
        config: Of the run.
        longest: The most tokens that a trajectory may have.
    """

    def __init__(self, policy: Policy, config: TrainConfig, longest: int) -> None:
        self.policy, self.config, self.longest = policy, config, longest
        self.objective = config.objective()
        self._has_seen = False

    def step(self, groups: Sequence[SampleGroup], number: int = 0) -> dict[str, float]:
        """`updates_per_step` updates, or one per group where these are fewer.

        Args:
            groups: With at least one trained token each.
            number: Of the step, for what is said where a guard stops the run.

        Returns:
            What to log, means over the updates.

        Raises:
            TrainingStopped: If a guard finds that to go on would be a waste.
        """
        count = min(self.config.updates_per_step, len(groups))
        updates = [groups[begin::count] for begin in range(count)]
        passes = [self._passes(update, first=update is updates[0]) for update in updates]
        self._look(passes[0][0].batch)
        logged = [self._update(*each, number, first=each[1] is passes[0]) for each in zip(updates, passes, strict=True)]
        names = dict.fromkeys(name for update in logged for name in update)
        means = {name: [update[name] for update in logged if name in update] for name in names}
        return {name: sum(values) / len(values) for name, values in means.items()}

    def _look(self, batch: Batch) -> None:
        """The first batch of a run, or of one that goes on, is looked at with and without its images."""
        if not self._has_seen:
            check_sight(lambda given: self.policy.log_probs(given, self.config.temperature)[0], batch)
        self._has_seen = True

    def _passes(self, groups: Sequence[SampleGroup], first: bool) -> list[Pass]:
        """The passes of an update, with log-probs at the weights of the rollout."""
        rows = parts([group.samples for group in groups], self.config.rows_per_forward or len(groups))
        return [self._pass(pack(some, self.policy.qwen).to(self.policy.qwen.device), first) for some in rows]

    @torch.no_grad()
    def _pass(self, batch: Batch, first: bool) -> Pass:
        check_counts(batch, self.policy.qwen)
        temperature = self.config.temperature
        old = None if self.config.recompute_old else batch.sampled
        if self.config.recompute_old and not first:  # in the first update the policy is still the old one
            old = self.policy.log_probs(batch, temperature)[0]
        if self.objective.beta == 0:
            return Pass(batch, old, None)
        with self.policy.reference() as reference:
            return Pass(batch, old, token_log_probs(reference, batch, temperature)[0])

    def _update(
        self, groups: Sequence[SampleGroup], passes: Sequence[Pass], number: int, first: bool
    ) -> dict[str, float]:
        """One step of the optimiser."""
        divided, trained = totals(groups, self.config.divide_by_masked), totals(groups, count_masked=False)
        self.policy.clear()
        found = [self._backward(each, divided, trained) for each in passes]
        summed = {name: sum(metrics[name] for metrics, _ in found) for name in found[0][0]}
        summed["gradient/norm"] = self.policy.clip()
        batches = [each.batch for each in passes]
        check_finite(summed, batches, Path(self.config.output), number)
        if first:  # the weights are still those that the sampler had
            sampled, recomputed = torch.cat([batch.sampled for batch in batches]), torch.cat([new for _, new in found])
            kinds = torch.cat([batch_kinds(batch, self.policy.qwen.codec) for batch in batches])
            summed |= check_drift(sampled, recomputed, kinds, self.config.max_drift)
        self.policy.advance()
        return summed

    def _backward(self, given: Pass, divided: Totals, trained: Totals) -> tuple[dict[str, float], Tensor]:
        """Adds the gradient of one pass.

        Returns:
            Its share of what to log, means over the trained tokens; and its log-probs (N,).
        """
        batch = given.batch
        logprobs, entropies = self.policy.log_probs(batch, self.config.temperature)
        loss = policy_loss(
            logprobs,
            logprobs.detach() if given.old is None else given.old,
            batch.advantages,
            token_weights(batch.samples, self.objective.normaliser, divided, self.longest),
            batch.samples,
            batch.turns,
            self.objective,
            reference=given.reference,
            sampled=batch.sampled,
        )
        loss.loss.backward()  # type: ignore[no-untyped-call]
        sums = {"kl": loss.kl, "clip_low": loss.clipped_low, "clip_high": loss.clipped_high, "drift": loss.drift}
        sums["entropy"] = entropies.sum()
        means = {f"loss/{name}": float(value) / trained.tokens for name, value in sums.items()}
        return {"loss/policy": loss.policy.item(), **means}, logprobs.detach()
