"""What an evaluation found: estimates, a row per task type, and the files it is kept in.

Owns the statistics over episode records. Scores are worked out from the record (truth and answer), not from the
reward, so that reward presets can be compared and a file of records can be summarised again later. Plays nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.types import Trajectory
from mimgenv.records import EpisodeRecord, write_records
from mimgenv.rewards import Outcome, answer_part, iou_part
from mimgenv.types import Grounding
from mimgenv.viewer import ShownEpisode, write_page

Z95: Final = 1.96
"""Standard errors from the mean of a normal distribution to the end of its 95 % interval."""

PAGE_EPISODES: Final = 60
"""Episodes on a page: more make it slow to open."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how surely it is known.

    Attributes:
        mean: Of the episodes played.
        half_width: Of the 95 % confidence interval of the mean, by normal approximation: 1.96 · s / √n with s the
            sample standard deviation (n - 1). Too narrow for a handful of episodes, 0 where all are equal, nan for one.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per episode, at least one."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), Z95 * spread / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class Row:
    """What a set of episodes amounts to; a line of the table.

    Attributes:
        name: A task type, or a group of them.
        episodes: How many.
        score: IoU (0 on a wrong image) or exact match, by what the task asks for; in [0, 1].
        success: Share of episodes whose answer counts as right.
        reward: Total reward.
        reward_parts: Mean of each unweighted part, over the episodes that have it.
        turns: Mean number.
        tool_calls: Calls per episode by tool; tools that were never called are left out.
        sees: Image sensitivity: score minus score with blank images, paired by task, over the episodes that were
            played both ways; None if none was.
    """

    name: str
    episodes: int
    score: Estimate
    success: float
    reward: Estimate
    reward_parts: Mapping[str, float]
    turns: float
    tool_calls: Mapping[str, float]
    sees: Estimate | None = None

    @property
    def format(self) -> float | None:
        """Share of well-formed episodes; None where the reward has no such part."""
        return self.reward_parts.get("format")


def score(record: EpisodeRecord) -> float:
    """IoU (0 on a wrong image) or exact match, whatever the reward was; in [0, 1]."""
    outcome = Outcome(record.truth, record.prediction, valid=True, tool_images=0)
    overlap = iou_part(outcome)
    return overlap if overlap is not None else answer_part(outcome) or 0.0


def summarise(name: str, records: Sequence[EpisodeRecord], blank: Sequence[EpisodeRecord] = ()) -> Row:
    """The row of some episodes, at least one.

    Args:
        name: What they are called.
        records: The episodes.
        blank: Episodes played with blank images; those whose task is among `records` are compared with theirs.
    """
    parts = dict.fromkeys(part for record in records for part in record.reward_parts)
    calls = Counter(tool for record in records for tool in record.tool_calls)
    return Row(
        name=name,
        episodes=len(records),
        score=Estimate.of([score(record) for record in records]),
        success=statistics.fmean(record.success for record in records),
        reward=Estimate.of([record.reward for record in records]),
        reward_parts={
            part: statistics.fmean(r.reward_parts[part] for r in records if part in r.reward_parts) for part in parts
        },
        turns=statistics.fmean(len(record.turns) for record in records),
        tool_calls={tool: count / len(records) for tool, count in sorted(calls.items())},
        sees=_sees(records, blank),
    )


def _sees(records: Sequence[EpisodeRecord], blank: Sequence[EpisodeRecord]) -> Estimate | None:
    unseen = {record.task_id: score(record) for record in blank}
    differences = [score(record) - unseen[record.task_id] for record in records if record.task_id in unseen]
    return Estimate.of(differences) if differences else None


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found. Everything but the fields is worked out from the records.

    Attributes:
        name: Whose.
        records: One per episode, in the order of the seeds.
        trajectories: The same episodes as token ids and images; they hold all images, which the page shares.
        tools: Names of the environment's tools.
        blank: Records of the same tasks, or the first of them, played with blank images; may be empty.

    Raises:
        ValueError: If records and trajectories differ in number, or there are none.
    """

    name: str
    records: tuple[EpisodeRecord, ...]
    trajectories: tuple[Trajectory, ...]
    tools: tuple[str, ...]
    blank: tuple[EpisodeRecord, ...] = ()

    def __post_init__(self) -> None:
        if not self.records or len(self.records) != len(self.trajectories):
            raise ValueError(f"{len(self.records)} records, {len(self.trajectories)} trajectories; at least 1 of each")

    @property
    def episodes(self) -> tuple[ShownEpisode, ...]:
        """All episodes with the images they were played on."""
        return tuple(map(self._shown, range(len(self.records))))

    @property
    def rows(self) -> tuple[Row, ...]:
        """One per task type, grounding types first."""
        groups: dict[tuple[bool, str], list[EpisodeRecord]] = {}
        for record in self.records:
            groups.setdefault((not isinstance(record.truth, Grounding), record.task_type), []).append(record)
        # Sorted by the kind of answer alone: within it, types stay in the order in which the seeds served them.
        return tuple(self._row(key[1], groups[key]) for key in sorted(groups, key=lambda key: key[0]))

    @property
    def grounding(self) -> Row | None:
        """All episodes scored by IoU; None if there were none."""
        located = [record for record in self.records if isinstance(record.truth, Grounding)]
        return self._row("grounding", located) if located else None

    @property
    def qa(self) -> Row | None:
        """All episodes scored by exact match; None if there were none."""
        told = [record for record in self.records if not isinstance(record.truth, Grounding)]
        return self._row("qa", told) if told else None

    @property
    def all(self) -> Row:
        """All episodes."""
        return self._row("all", self.records)

    def _row(self, name: str, records: Sequence[EpisodeRecord]) -> Row:
        return summarise(name, records, self.blank)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Numbers for a tracker, such as `reward/total`, `reward/iou`, `episode/turns`, `tool/zoom`, `iou/referring`.

        Where episodes were also played with blank images, `sees/all` and `sees/referring` are the image sensitivity.

        Args:
            prefix: Put before every key, such as `test/`.
        """
        whole = self.all
        values = {"reward/total": whole.reward.mean}
        values |= {f"reward/{part}": value for part, value in whole.reward_parts.items()}
        values |= {"episode/turns": whole.turns, "episode/success": whole.success}
        values |= {"episode/tool_calls": sum(whole.tool_calls.values())}
        values |= {f"tool/{tool}": whole.tool_calls.get(tool, 0.0) for tool in self.tools}
        located = {record.task_type for record in self.records if isinstance(record.truth, Grounding)}
        for row in self.rows:
            values[f"{'iou' if row.name in located else 'answer'}/{row.name}"] = row.score.mean
        values |= {f"sees/{row.name}": row.sees.mean for row in (whole, *self.rows) if row.sees is not None}
        return {prefix + key: value for key, value in values.items()}

    def write(self, folder: str | Path, page: int = PAGE_EPISODES) -> tuple[Path, ...]:
        """Writes `episodes.jsonl`, which holds all records, and `episodes.html`, which shows some of them.

        The records of episodes with blank images, if there are any, go to `blank.jsonl`.

        Args:
            folder: Made if need be; files of these names are replaced.
            page: Most episodes on the page; task types have equal shares as far as they go.

        Returns:
            The files, in that order.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        records, shown, blank = folder / "episodes.jsonl", folder / "episodes.html", folder / "blank.jsonl"
        write_records(records, self.records)
        chosen = evenly([record.task_type for record in self.records], page)
        write_page(shown, [self._shown(index) for index in chosen], f"{self.name}: {len(self.records)} episodes")
        blank.unlink(missing_ok=True)  # of an evaluation before this one
        if not self.blank:
            return records, shown
        write_records(blank, self.blank)
        return records, shown, blank

    def _shown(self, index: int) -> ShownEpisode:
        return ShownEpisode(self.records[index], self.trajectories[index].images)


def evenly(names: Sequence[str], count: int) -> list[int]:
    """At most `count` indices, in order, that give every distinct name an equal share as far as it goes."""
    seen: Counter[str] = Counter()
    ranks = []
    for index, name in enumerate(names):
        ranks.append((seen[name], index))
        seen[name] += 1
    return sorted(index for _, index in sorted(ranks)[:count])
