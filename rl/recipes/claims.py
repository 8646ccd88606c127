"""What a paper claims, held against what the arms of its recipe reached.

Owns which figure a claim is about, and in which words a difference between two arms is judged. Knows no tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mimgenv.tasks.rendered import QA_TYPES
from rl.recipes.recipe import Claim
from rl.recipes.results import Difference, OverSeeds, Results

NOT_MEASURED: Final = "not measured"
DECIMALS: Final = 2
"""Of the figures, as people read them: a difference that is 0 to as many is none."""
GROUPS: Final = {"all": "AVG", "in_domain": "In-domain", "out_of_domain": "Out-of-domain"}
"""`Claim.types`, and the name of that group of types in `Results.groups`."""
RETAINED: Final = {"locate": ("locate",), "qa": tuple(QA_TYPES)}
"""`Claim.types` that are no multi-image grounding, and their types."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured of a claim, in the seeds that have both of its arms.

    Attributes:
        claim: Which.
        better, worse: What the arm reached that the claim says is better, and worse.
        difference: Better minus worse.
    """

    claim: Claim
    better: OverSeeds
    worse: OverSeeds
    difference: Difference

    @property
    def verdict(self) -> str:
        """In plain words; more than a pointer only where the whole interval of the difference is on one side."""
        least = -self.claim.margin
        mean = self.difference.mean
        if not self.difference.n:
            return NOT_MEASURED
        if not self.claim.margin and round(mean, DECIMALS) == 0:
            return "no difference"
        if self.difference.clear_of(least):
            return "holds" if mean > least else "contradicted"
        return "points this way" if mean > least else "points the other way"


def findings(results: Results) -> list[Finding]:
    """One per claim of the recipe, in its order."""
    return [_finding(results, claim) for claim in results.recipe.claims]


def _finding(results: Results, claim: Claim) -> Finding:
    better, worse = (_measure(results, claim, arm) for arm in (claim.better, claim.worse))
    difference = better - worse
    return Finding(claim, better.of(difference.values), worse.of(difference.values), difference)


def _measure(results: Results, claim: Claim, arm: str) -> OverSeeds:
    """The figure that a claim is about, of one arm."""
    if claim.measure == "accuracy":
        types = RETAINED.get(claim.types) or results.groups[GROUPS[claim.types]]
        return results.accuracy(arm, claim.split, types)
    keys = claim.measure.split("/")
    if keys[0] == "tool_calls":
        return results.calls(arm, claim.split, *keys[1:])
    return results.figure(arm, claim.split, "all", *keys)
