"""The nouns of curation: what is wanted, who takes part, what came of each candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from agents.curation.roles import Role
from mimgenv.datasets.curated import Item
from mimgenv.errors import ConfigurationError

UNANSWERED: Final = "unanswered"
KEPT: Final = "kept"

LOSSES: Final[dict[str, tuple[str, ...]]] = {
    "propose": ("bad_proposal",),
    "deduplicate": ("duplicate",),
    "solve/hidden": ("bad_solution", "solved_without_images"),
    "solve/shown": ("bad_solution", "too_hard", "too_easy"),
    "judge": ("bad_verdict", "not_answerable", "not_unique"),
}
"""The stages in order, and why a candidate is lost there; in each it may also be `UNANSWERED`."""

Named: TypeAlias = tuple[str, Role]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted.

    Attributes:
        items: How many items to make.
        candidates: Most questions to ask for.
        seed: Of everything that is drawn.
        attempts: Answers of solvers who see the images.
        hidden_attempts: Answers of solvers who do not.
        share: Least and most share of right answers among the first, bounds included.
        hidden_share: Most share of right answers among the second.
        parallel: Most requests under way at a time.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    items: int
    candidates: int
    seed: int = 0
    attempts: int = 4
    hidden_attempts: int = 2
    share: tuple[float, float] = (0.25, 0.75)
    hidden_share: float = 0.0
    parallel: int = 4

    def __post_init__(self) -> None:
        counts = (self.items, self.attempts, self.hidden_attempts, self.parallel)
        if min(counts) < 1 or self.candidates < self.items or self.seed < 0:
            raise ConfigurationError(f"items, attempts, parallel {counts} must be above 0, candidates at least items")
        if not 0 <= self.share[0] <= self.share[1] <= 1 or not 0 <= self.hidden_share < 1:
            raise ConfigurationError(f"shares {self.share}, {self.hidden_share} must be in order and within [0, 1]")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part, each with a name for the provenance; several solvers take turns over the attempts."""

    proposer: Named
    solvers: tuple[Named, ...]
    hidden_solvers: tuple[Named, ...]
    critic: Named


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed item and what was found out about it.

    Attributes:
        number: Of its set of images.
        item: As it will stand in the file, with its provenance so far.
    """

    number: int
    item: Item

    def noted(self, key: str, notes: Sequence[Mapping[str, Any]]) -> Candidate:
        """With more entries in a list of its provenance."""
        known = self.item.provenance
        return replace(self, item=replace(self.item, provenance={**known, key: [*known.get(key, ()), *notes]}))


Fate: TypeAlias = str | tuple[str, str]
"""`KEPT`, or the stage and the reason of a loss."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    Attributes:
        kept: The items, with their candidates' numbers, in order.
        fates: Of every candidate, by its number.
    """

    kept: tuple[Candidate, ...]
    fates: Mapping[int, Fate]
