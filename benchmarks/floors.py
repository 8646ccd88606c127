"""Floors: what agents that never look score on every task type, and whether the right answers are spread evenly.

    OMP_NUM_THREADS=1 python benchmarks/floors.py --episodes 1000 --workers 4

Policies learn their habits from as many tasks of the train split. The rule: no blind policy exceeds a mean IoU of 0.15,
or chance by more than 3 standard errors where the answer is text.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from runs import markdown

from agents.blind import BLIND_PLACES, BLIND_TEXTS, PEEKING, guess
from agents.habits import Asked, Habits, Key, learn_habits
from mimgenv.rewards import Outcome, answer_part, iou_part
from mimgenv.tasks.rendered import TASK_TYPES, WORLDS, RenderedTasks, worlds_of
from mimgenv.types import Grounding, Task

IOU_LIMIT = 0.15
CHANCE_ERRORS = 3
LEAST_P = 1e-4
"""About 50 tests in a run: one in 200 runs falls below this by chance."""

FEWEST_EXPECTED = 5
"""Fewer expected of each answer, and χ² is no longer distributed as it should be."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over tasks and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """Of one value per task, at least two."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@dataclass(frozen=True, slots=True)
class Floors:
    """What one task type gives away.

    Attributes:
        name: World and type.
        grounding: Whether scores are IoUs; else they are shares of right answers.
        blind: Score of each blind policy.
        peeking: Score of each that reads annotations; none where answers are text.
        chance: Mean over tasks of 1 / number of possible answers, and the standard error of a score at that level;
            nothing and no error for grounding.
        even_p: How likely answers as uneven as these are if all are equally likely; None where there is no choice.
    """

    name: str
    grounding: bool
    blind: Mapping[str, Score]
    peeking: Mapping[str, Score]
    chance: Score
    even_p: float | None

    def breaches(self, allowance: float = 0.0) -> list[str]:
        """What breaks the rule, in words.

        Args:
            allowance: Standard errors by which a mean IoU may exceed the limit, for few episodes.
        """
        found = []
        for policy, score in self.blind.items():
            limit = self.chance.mean + CHANCE_ERRORS * self.chance.error
            if self.grounding:
                limit = IOU_LIMIT + allowance * score.error
            if score.mean > limit:
                found.append(f"{self.name}: {policy} scores {score}, more than {limit:.3f}")
        if self.even_p is not None and self.even_p < LEAST_P:
            found.append(f"{self.name}: answers are uneven, p = {self.even_p:.1e}")
        return found


def without_pixels(task: Task) -> Task:
    """The task with black images of the same sizes that take no memory."""
    black = np.zeros(1, np.uint8)
    return replace(task, images=tuple(np.broadcast_to(black, image.shape) for image in task.images))


def draw_tasks(world: str, task_type: str, split: str, count: int) -> list[Task]:
    """The first tasks of a split, without pixels."""
    source = RenderedTasks(world, (task_type,), split)
    return [without_pixels(source.task(seed)) for seed in range(count)]


def measure(name: str, known: Iterable[Task], tasks: Sequence[Task]) -> Floors:
    """The floors of tasks of one type.

    Args:
        name: What to call it.
        known: Tasks to learn habits from.
        tasks: Tasks to play, at least two; all are answered in the same way.
    """
    habits = learn_habits(known)
    grounding = isinstance(tasks[0].truth, Grounding)
    choices = choices_of(tasks)
    return Floors(
        name,
        grounding,
        {policy: play(policy, habits, tasks) for policy in (BLIND_PLACES if grounding else BLIND_TEXTS)},
        {policy: play(policy, habits, tasks) for policy in (PEEKING if grounding else ())},
        Score(0.0, 0.0) if grounding else chance_level([len(choices[choice_key(task)]) for task in tasks]),
        even_p(tasks, choices),
    )


def play(policy: str, habits: Habits, tasks: Sequence[Task]) -> Score:
    """How a policy scores."""
    return Score.of([score(policy, habits, task) for task in tasks])


def score(policy: str, habits: Habits, task: Task) -> float:
    """IoU, or 1 for the right text, with the choices that `BlindAgent` makes in that task with seed 0."""
    answer = guess(policy, task, habits, np.random.default_rng([0, *task.task_id.encode()]))
    outcome = Outcome(task.truth, answer, valid=True, tool_images=0)
    return iou_part(outcome) or answer_part(outcome) or 0.0


def chance_level(choices: Sequence[int]) -> Score:
    """Of guessing among so many answers in each task."""
    shares = 1 / np.array(choices)
    return Score(float(shares.mean()), float(np.sqrt((shares * (1 - shares)).sum()) / len(shares)))


def choice_key(task: Task) -> Key:
    """Equal for tasks with the same choice: of images to point to, or of answers."""
    asked = Asked.of(task)
    return (asked.named_image, len(asked.sizes)) if asked.grounding else asked.group


def chosen(task: Task) -> str:
    """What is to be chosen: the number of the image, or the answer."""
    return str(task.truth.image) if isinstance(task.truth, Grounding) else task.truth.text


def choices_of(tasks: Sequence[Task]) -> dict[Key, tuple[str, ...]]:
    """What could be right in each group of tasks that leave the same choice."""
    groups: dict[Key, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[choice_key(task)].append(task)
    return {key: _choices(group) for key, group in groups.items()}


def _choices(group: Sequence[Task]) -> tuple[str, ...]:
    """Any image, or the one that is named; or an option's letter, or else any answer that occurs and at least two."""
    asked = Asked.of(group[0])
    if asked.grounding:
        return tuple(str(n) for n in range(1, len(asked.sizes) + 1) if asked.named_image in (None, n))
    seen = tuple(sorted({chosen(task) for task in group}))
    return tuple(asked.options) or (seen if len(seen) > 1 else (*seen, "another"))


def even_p(tasks: Sequence[Task], choices: Mapping[Key, Sequence[str]]) -> float | None:
    """The p-value of χ² for evenly spread right answers, over all groups; None where no group has a choice."""
    groups: dict[Key, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        groups[choice_key(task)][chosen(task)] += 1
    statistic, freedom = 0.0, 0
    for key, counts in groups.items():
        expected = counts.total() / len(choices[key])
        if len(choices[key]) > 1 and expected >= FEWEST_EXPECTED:
            statistic += sum((counts[answer] - expected) ** 2 / expected for answer in choices[key])
            freedom += len(choices[key]) - 1
    return chi_square_p(statistic, freedom) if freedom else None


def chi_square_p(statistic: float, freedom: int) -> float:
    """The share of the χ² distribution above a statistic: the regularised incomplete gamma function Q(k/2, χ²/2).

    From Q(1/2, x) = erfc(√x) and Q(1, x) = exp(-x) by Q(a + 1, x) = Q(a, x) + x^a exp(-x) / Γ(a + 1).
    """
    x, a = statistic / 2, 0.5 if freedom % 2 else 1.0
    share = math.erfc(math.sqrt(x)) if freedom % 2 else math.exp(-x)
    while x > 0 and a < freedom / 2:
        share += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return share


def row(floors: Floors) -> list[object]:
    """A line of the table."""
    known = [] if floors.grounding else [floors.chance]
    p = "" if floors.even_p is None else f"{floors.even_p:.4f}"
    return [
        floors.name,
        *known,
        *floors.blind.values(),
        *floors.peeking.values(),
        p,
        "no" if floors.breaches() else "yes",
    ]


def tables(every: Sequence[Floors]) -> str:
    """Two Markdown tables: boxes, and text."""
    boxes = [row(floors) for floors in every if floors.grounding]
    texts = [row(floors) for floors in every if not floors.grounding]
    box_header = ("task", *BLIND_PLACES, *(f"*{name}*" for name in PEEKING), "image χ² p", "within")
    text_header = ("task", "chance", *BLIND_TEXTS, "answer χ² p", "within")
    return markdown(box_header, boxes) + "\n\n" + markdown(text_header, texts)


def measured(job: tuple[str, str, int]) -> Floors:
    """The floors of a type in a world."""
    world, task_type, count = job
    known = draw_tasks(world, task_type, "train", count)
    return measure(f"{world}/{task_type}", known, draw_tasks(world, task_type, "test", count))


def served() -> list[tuple[str, str]]:
    """Every world and type."""
    return [(world, task_type) for world in WORLDS for task_type in TASK_TYPES if world in worlds_of(task_type)]


def main() -> None:
    """Prints the tables; ends with status 1 if the rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000, help="of each type, to play and to learn from")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--tasks", nargs="+", default=list(TASK_TYPES), choices=list(TASK_TYPES), metavar="TYPE")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    pairs = [(world, name) for world, name in served() if world in options.worlds and name in options.tasks]
    jobs = [(*pair, options.episodes) for pair in pairs]
    with ProcessPoolExecutor(options.workers) as pool:
        every = list((pool.map if options.workers > 1 else map)(measured, jobs))
    print(tables(every))
    breaches = [breach for floors in every for breach in floors.breaches()]
    sys.exit("\n".join(breaches) or None)


if __name__ == "__main__":
    main()
