"""No task type gives its answers away: blind policies stay at their floors, right answers are spread evenly."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agents.blind import BLIND_PLACES, BLIND_TEXTS, BlindAgent
from agents.habits import learn_habits
from agents.rollout import run_episodes
from mimgenv.tasks.rendered import TASK_TYPES, make_task
from mimgenv.types import Answer, Grounding, Task, TextAnswer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other by bare names

import floors  # noqa: E402
from floors import Score, chance_level, chi_square_p, choices_of, even_p, measure, measured  # noqa: E402

EPISODES = {"tiny": 150}
FEW = 40
"""Of each type in worlds that take long to draw."""


@pytest.mark.parametrize(("world", "task_type"), floors.served())
def test_no_blind_policy_exceeds_its_floor(world: str, task_type: str) -> None:
    assert measured((world, task_type, EPISODES.get(world, FEW))).breaches(allowance=3) == []


@pytest.mark.slow
@pytest.mark.parametrize(("world", "task_type"), floors.served())
def test_no_blind_policy_exceeds_its_floor_in_a_thousand_tasks(world: str, task_type: str) -> None:
    assert measured((world, task_type, 1000)).breaches() == []


def test_every_type_is_measured() -> None:
    assert {task_type for _, task_type in floors.served()} == set(TASK_TYPES)


@pytest.mark.parametrize("task_type", ["locate", "counting"])
def test_floors_are_what_blind_agents_score_in_episodes(task_type: str) -> None:
    known, tasks = (floors.draw_tasks("tiny", task_type, split, 60) for split in ("train", "test"))
    found = measure("x", known, tasks)
    for name, score in found.blind.items():
        agent = BlindAgent(name, learn_habits(known))
        played = run_episodes(agent, "MultiImageTiny-v0", range(60), tasks=(task_type,), split="test")
        rewards = [t.reward_parts.get("iou", 0.0) + t.reward_parts.get("answer", 0.0) for t in played]
        assert score.mean == pytest.approx(np.mean(rewards), abs=0.01)


# Types that do give their answers away


def made(kind: str, number: int, truth: Answer, question: str, images: int = 3, named: int | None = None) -> Task:
    pixels = tuple(np.zeros((84, 84, 3), np.uint8) for _ in range(images))
    return Task(f"{kind}:{number}", kind, pixels, question, truth, "why", ((),) * images, named)


def find(rng: np.random.Generator, number: int, image: int | None = None, centre: bool = False) -> Task:
    """A box of 14 pixels: in some image, somewhere."""
    x, y = (35.0, 35.0) if centre else map(float, rng.integers(0, 70, 2))
    truth = Grounding(image or int(rng.integers(1, 4)), "x", (x, y, x + 14, y + 14))
    return made("find", number, truth, "Find it.")


def choose(rng: np.random.Generator, number: int, answers: str = "ABCD") -> Task:
    return made("choose", number, TextAnswer(str(rng.choice([*answers]))), "Which of A, B, C, D?")


def count(rng: np.random.Generator, number: int, answers: str = "123") -> Task:
    return made("count", number, TextAnswer(str(rng.choice([*answers]))), "How many?")


def told(rng: np.random.Generator, number: int, telling: float) -> Task:
    """The question's wording tells the answer with some probability."""
    right, told = ["yes", "no"][rng.integers(2)], rng.random() < telling
    heard = right if told else ["yes", "no"][rng.integers(2)]
    return made("told", number, TextAnswer(right), {"yes": "Is it so?", "no": "Is it really so?"}[heard])


def floors_of(kind: Callable[[np.random.Generator, int], Task], episodes: int) -> list[str]:
    known, tasks = ([kind(np.random.default_rng([split, n]), n) for n in range(episodes)] for split in (0, 1))
    return measure("made", known, tasks).breaches(allowance=3)


@pytest.mark.parametrize("kind", [find, choose, count, lambda rng, n: told(rng, n, 0.0)])
@pytest.mark.parametrize("episodes", [FEW, 1000])
def test_honest_types_keep_the_rule(kind: Callable[[np.random.Generator, int], Task], episodes: int) -> None:
    assert floors_of(kind, episodes) == []


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (lambda rng, n: find(rng, n, image=2), "uneven"),
        (lambda rng, n: find(rng, n, centre=True), "constant scores"),
        (lambda rng, n: find(rng, n, image=1, centre=True), "image_1 scores"),
        (lambda rng, n: choose(rng, n, "A"), "copy scores"),
        (lambda rng, n: choose(rng, n, "ABC"), "uneven"),
        (lambda rng, n: count(rng, n, "2"), "constant scores"),
        (lambda rng, n: count(rng, n, "1111123"), "image_1 scores"),
        (lambda rng, n: told(rng, n, 0.5), "question scores"),
    ],
)
@pytest.mark.parametrize("episodes", [150, 1000])
def test_types_that_give_answers_away_break_it(
    kind: Callable[[np.random.Generator, int], Task], caught: str, episodes: int
) -> None:
    assert any(caught in breach for breach in floors_of(kind, episodes))


@pytest.mark.parametrize(
    "kind",
    [
        lambda rng, n: find(rng, n, image=2),
        lambda rng, n: find(rng, n, image=1, centre=True),
        lambda rng, n: choose(rng, n, "A"),
        lambda rng, n: count(rng, n, "2"),
    ],
)
def test_gross_faults_show_in_few_tasks(kind: Callable[[np.random.Generator, int], Task]) -> None:
    assert floors_of(kind, FEW)


# The statistics


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"),
    [
        (3.841459, 1, 0.05),
        (5.991465, 2, 0.05),
        (6.634897, 1, 0.01),
        (16.918978, 9, 0.05),
        (29.588298, 10, 0.001),
        (0.0, 1, 1.0),
        (0.0, 6, 1.0),
        (100.0, 99, 0.4529585),
        (4000.0, 2, 0.0),
    ],
)
def test_the_p_value_of_chi_square_is_that_of_the_tables(statistic: float, freedom: int, p: float) -> None:
    assert chi_square_p(statistic, freedom) == pytest.approx(p, abs=2e-5)


def test_even_answers_have_p_values_spread_evenly() -> None:
    rng, values = np.random.default_rng(0), []
    for _ in range(300):
        tasks = [count(rng, n) for n in range(60)]
        p = even_p(tasks, choices_of(tasks))
        assert p is not None
        values.append(p)
    assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.09
    assert 0.4 <= np.mean(values) <= 0.6


def test_groups_of_different_sizes_are_tested_together() -> None:
    tasks = [made("count", n, TextAnswer(str(n % 2)), "?", images=2) for n in range(20)]
    tasks += [made("count", n, TextAnswer(str(n % 3)), "?", images=3) for n in range(30)]
    assert even_p(tasks, choices_of(tasks)) == 1.0
    uneven = [made("count", n, TextAnswer(str(min(n % 3, 1))), "?", images=2) for n in range(30)]
    # In one group (10, 20) where (15, 15) is expected: χ² 3.333; (10, 10, 10) in the other adds freedom alone.
    both = uneven + tasks[20:]
    assert even_p(both, choices_of(both)) == pytest.approx(chi_square_p(10 / 3, 3))


def test_a_group_too_small_for_chi_square_is_left_out() -> None:
    tasks = [made("count", n, TextAnswer(str(n % 2)), "?") for n in range(9)]
    assert even_p(tasks, choices_of(tasks)) is None


def test_a_question_that_names_the_image_leaves_no_choice() -> None:
    tasks = [made("find", n, Grounding(2, "x", (0.0, 0.0, 9.0, 9.0)), "In Image-2", named=2) for n in range(50)]
    assert choices_of(tasks) == {(2, 3): ("2",)}
    assert even_p(tasks, choices_of(tasks)) is None


def test_what_could_be_right_is_any_image_an_option_or_an_answer_that_occurs() -> None:
    rng = np.random.default_rng(0)
    assert [*choices_of([find(rng, 0, image=2)]).values()] == [("1", "2", "3")]
    assert [*choices_of([choose(rng, 0, "A")]).values()] == [("A", "B", "C", "D")]
    assert [*choices_of([count(rng, n) for n in range(30)]).values()] == [("1", "2", "3")]
    assert [*choices_of([count(rng, n, "2") for n in range(30)]).values()] == [("2", "another")]


def test_chance_is_the_mean_over_tasks_and_its_error_that_of_guessing() -> None:
    # 1/2 and 1/4: mean 3/8; variances 1/4 and 3/16, of the mean (7/16) / 4.
    level = chance_level([2, 4])
    assert (level.mean, level.error) == pytest.approx((0.375, math.sqrt(7) / 8))


def test_a_score_is_a_mean_with_its_standard_error() -> None:
    found = Score.of([0.0, 1.0, 1.0, 1.0])
    assert (found.mean, found.error) == pytest.approx((0.75, 0.25))
    assert str(found) == "0.750 ± 0.250"


def test_tasks_are_kept_without_their_pixels() -> None:
    (kept,) = floors.draw_tasks("tiny", "locate", "test", 1)
    drawn = make_task("tiny", "locate", None, "test", 0)
    assert floors.Asked.of(kept) == floors.Asked.of(drawn)
    assert (kept.truth, kept.objects) == (drawn.truth, drawn.objects)
    assert not kept.images[0].any()
    assert kept.images[0].strides == (0, 0, 0)


# The command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "floors.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_line_prints_a_line_per_world_and_type() -> None:
    done = run("--worlds", "tiny", "--tasks", "locate", "counting", "--episodes", "40", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line]
    assert rows[0][1 : 1 + len(BLIND_PLACES)] == list(BLIND_PLACES)
    assert rows[3][2 : 2 + len(BLIND_TEXTS)] == list(BLIND_TEXTS)
    assert [row[0] for row in rows] == ["task", "---", "tiny/locate", "task", "---", "tiny/counting"]
    assert [row[-1] for row in (rows[2], rows[5])] == ["yes", "yes"]
    assert {len(row) for row in rows[:3]} == {len(rows[0])}


def test_the_command_line_fails_where_the_rule_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = measure("made", [], [choose(np.random.default_rng(n), n, "A") for n in range(60)])
    monkeypatch.setattr(floors, "measured", lambda job: broken)
    monkeypatch.setattr(sys, "argv", ["floors.py", "--worlds", "tiny", "--tasks", "locate"])
    with pytest.raises(SystemExit) as stopped:
        floors.main()
    assert "made: copy scores 1.000" in str(stopped.value.code)
