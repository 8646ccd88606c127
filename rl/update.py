"""From a step's samples to updates of the policy: old and reference log-probs, the loss, its gradient, the optimiser.

An update is one or several forward and backward passes over packed rows. Its loss is a sum over tokens whose weights
come from totals over the whole update, so that how it is divided into passes changes memory and time only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from rl.batch import Batch, pack, parts
from rl.collect import SampleGroup, totals
from rl.config import TrainConfig
from rl.distributed import World
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
        world = self.policy.world
        count = min(self.config.updates_per_step, int(world.total({"groups": len(groups)})["groups"]))
        updates = [[group for group in groups if group.number % count == begin] for begin in range(count)]
        with self.policy.whole(), torch.no_grad():
            passes = [self._passes(update, first=begin == 0) for begin, update in enumerate(updates)]
            self._look([given.batch for some in passes for given in some])
        logged = [self._update(*each, number, first=each[1] is passes[0]) for each in zip(updates, passes, strict=True)]
        names = dict.fromkeys(name for update in logged for name in update)
        means = {name: [update[name] for update in logged if name in update] for name in names}
        return {name: sum(values) / len(values) for name, values in means.items()}

    def _look(self, batches: Sequence[Batch]) -> None:
        """The first batch with images of a run, or of one that goes on, is looked at with and without them."""
        first = next((batch for batch in batches if batch.images), None)
        if first is not None and not self._has_seen:
            check_sight(lambda given: self.policy.log_probs(given, self.config.temperature)[0], first)
            self._has_seen = True

    def _passes(self, groups: Sequence[SampleGroup], first: bool) -> list[Pass]:
        """The passes of an update, with log-probs at the weights of the rollout."""
        rows = parts([group.samples for group in groups], self.config.rows_per_forward or max(len(groups), 1))
        return [self._pass(pack(some, self.policy.qwen), first) for some in rows]

    def _pass(self, batch: Batch, first: bool) -> Pass:
        check_counts(batch, self.policy.qwen)
        temperature = self.config.temperature
        old = None if self.config.recomputes_old else batch.sampled
        if self.config.recomputes_old and not first:  # in the first update the policy is still the old one
            old = self.policy.log_probs(batch, temperature)[0]
        if self.objective.beta == 0:
            return Pass(batch, old, None)
        with self.policy.reference() as reference:
            return Pass(batch, old, token_log_probs(reference, batch, temperature)[0])

    def _update(
        self, groups: Sequence[SampleGroup], passes: Sequence[Pass], number: int, first: bool
    ) -> dict[str, float]:
        """One step of the optimiser."""
        world = self.policy.world
        trained = everyones(totals(groups, count_masked=False), world)
        if not trained.tokens:
            return {}
        divided = everyones(totals(groups, count_masked=True), world) if self.config.divide_by_masked else trained
        sums: Counter[str] = Counter()
        found: list[Tensor] = []
        self.policy.backward([partial(self._loss, given, divided, sums, found) for given in passes])
        summed = world.total(sums)
        metrics = {"loss/policy": summed.pop("policy")}
        metrics |= {f"loss/{name}": value / trained.tokens for name, value in summed.items()}
        metrics["gradient/norm"] = self.policy.clip()
        batches = [given.batch for given in passes]
        check_finite(metrics, batches, self.policy.folder, number)
        if first and batches:  # the weights are still those that the sampler had
            kinds = torch.cat([batch_kinds(batch, self.policy.qwen.codec) for batch in batches])
            sampled = torch.cat([batch.sampled for batch in batches])
            metrics |= check_drift(sampled, torch.cat(found), kinds, self.config.max_drift)
        self.policy.advance()
        return metrics

    def _loss(self, given: Pass, divided: Totals, sums: Counter[str], found: list[Tensor]) -> Tensor:
        """The loss of one pass; adds to the sums that are logged, and to the log-probs that were found."""
        batch = given.batch.to(self.policy.qwen.device)
        logprobs, entropies = self.policy.log_probs(batch, self.config.temperature)
        loss = policy_loss(
            logprobs,
            logprobs.detach() if given.old is None else given.old.to(logprobs.device),
            batch.advantages,
            token_weights(batch.samples, self.objective.normaliser, divided, self.longest),
            batch.samples,
            batch.turns,
            self.objective,
            reference=given.reference,
            sampled=batch.sampled,
        )
        logged = {"policy": loss.policy, "clip_low": loss.clipped_low, "clip_high": loss.clipped_high}
        logged |= {"drift": loss.drift, "entropy": entropies.sum()}
        logged |= {"kl": loss.kl} if given.reference is not None else {}
        sums.update({name: float(value) for name, value in logged.items()})
        found.append(logprobs.detach())
        return loss.loss


def everyones(own: Totals, world: World) -> Totals:
    """The totals of all ranks."""
    return Totals(**{name: int(value) for name, value in world.total(asdict(own)).items()})
