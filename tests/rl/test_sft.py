"""The cold start: who plays it, what is shown when, and that it is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from agents.chat import Chat
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL
from agents.rollout import run_episodes
from agents.types import History
from mimgenv import load_task
from mimgenv.tasks.rendered import QA_TYPES, TINY_TYPES
from mimgenv.tasks.siblings import siblings
from mimgenv.types import Task
from rl.batch import Sample, common_prefix
from rl.config import TrainConfig
from rl.loss import sft_loss
from rl.policy import Policy
from rl.sft import EARLIER_SHARE, EASY_QUESTIONS, ColdStart, curriculum, play_rows, sft_sample, sft_step

TINY, ZOOM = "MultiImageTiny-v0", "MultiImageTinyZoom-v0"
IMAGE = 12
TASK = load_task("rendered:tiny/group_grounding/any/train/4")


class Watched:
    """The oracle, and the ids of the tasks it played."""

    def __init__(self) -> None:
        self.oracle = OracleAgent(think="label", grid=7)
        self.tasks: list[str] = []

    def act(self, histories: Sequence[History]) -> list[str]:
        self.tasks += [history.task_id for history in histories]
        return self.oracle.act(histories)


def learned(chat: Chat, sample: Sample) -> str:
    """The text that is trained on."""
    return chat.codec.decode(index for index, on in zip(sample.ids, sample.mask, strict=True) if on)


def questions(chat: Chat, sample: Sample) -> str:
    """The text that is not."""
    return chat.codec.decode(index for index, on in zip(sample.ids, sample.mask, strict=True) if not on)


def played(chat: Chat, count: int, tasks: Sequence[Task] = (TASK,)) -> tuple[Mapping[str, Any], list[str]]:
    agent = Watched()
    return play_rows(agent, chat, TINY, {}, tasks, count), agent.tasks


def all_rows(pool: Mapping[str, Any]) -> list[list[Sample]]:
    return [row for rows in pool.values() for row in rows]


def cold_start(qwen: QwenVL, **settings: Any) -> ColdStart:
    return ColdStart(TrainConfig(**{"sft_tasks": 7, "sft_rows": 3, **settings}), qwen.chat)


# ---------------------------------------------------------------- rows


def test_every_token_of_the_author_is_learned_and_no_other(qwen: QwenVL) -> None:
    agent = OracleAgent(zoom=1.0, think="label", grid=7)
    (trajectory,) = run_episodes(agent, ZOOM, [0], codec=qwen.codec)
    sample = sft_sample(qwen.chat, trajectory)
    said = [qwen.codec.decode(turn.action.ids) for turn in trajectory.turns]
    assert len(said) == 2
    assert learned(qwen.chat, sample) == "".join(said)
    assert sample.advantage == 1.0
    assert len(sample.images) == 3


def test_a_row_is_a_task_and_questions_about_the_same_images(qwen: QwenVL) -> None:
    rows, tasks = played(qwen.chat, 3)
    (row,) = rows["group_grounding"]
    assert len(row) == 3
    assert tasks[0] == TASK.task_id
    assert len(set(tasks)) == 3
    for task_id, sample in zip(tasks, row, strict=True):
        task = load_task(task_id)
        assert task_id == TASK.task_id or task_id.startswith(TASK.task_id + "+")
        assert task.question in questions(qwen.chat, sample)
        assert task.truth.label in learned(qwen.chat, sample)  # type: ignore[union-attr]
    images = common_prefix(row, IMAGE)
    assert row[0].ids[:images].count(IMAGE) == len(TASK.images)  # so that they are computed once


def test_questions_are_the_most_samples_of_a_row(qwen: QwenVL) -> None:
    family = 1 + len(siblings(TASK))
    for count, expected in ((1, 1), (2, 2), (100, family)):
        rows, tasks = played(qwen.chat, count)
        assert len(rows["group_grounding"][0]) == expected == len(set(tasks))


def test_rows_come_by_the_type_of_their_task_in_the_order_of_the_tasks(qwen: QwenVL) -> None:
    tasks = [load_task(f"rendered:tiny/{name}/any/train/{k}") for k in (1, 2) for name in ("locate", "counting")]
    rows, _ = played(qwen.chat, 1, tasks)
    assert list(rows) == ["locate", "counting"]
    assert [task.question in questions(qwen.chat, row[0]) for task, row in zip(tasks[::2], rows["locate"])] == [
        True
    ] * 2
    assert [len(group) for group in rows.values()] == [2, 2]


def test_more_tasks_than_are_played_together_make_as_many_rows(qwen: QwenVL) -> None:
    tasks = [load_task(f"rendered:tiny/locate/1/train/{number}") for number in range(70)]
    rows, _ = played(qwen.chat, 2, tasks)
    assert len(rows["locate"]) == 70


# ---------------------------------------------------------------- the curriculum


def test_rendered_tasks_are_led_up_to_by_easier_ones() -> None:
    first, second, own = curriculum(TrainConfig(sft_tasks=90, sft_questions=5, tools=("zoom",)))
    assert (first.tasks, second.tasks, own.tasks) == (30, 30, 90)
    assert (first.questions, second.questions, own.questions) == (EASY_QUESTIONS, EASY_QUESTIONS, 5)
    shared = {"reward": "grounding", "tools": ("zoom",)}
    assert first.arguments == {**shared, "tasks": ("locate",), "difficulty": 1}
    assert second.arguments == {**shared, "tasks": ("locate",), "difficulty": second.arguments["difficulty"]}
    assert second.arguments["difficulty"] != 1
    assert own.arguments == shared


def test_photographs_have_one_stage_only() -> None:
    (own,) = curriculum(TrainConfig(source="odinw:/a", sft_tasks=90))
    assert own.arguments == {"reward": "grounding", "source": "odinw:/a"}


def test_sft_tasks_is_the_size_of_the_last_stage_and_its_types_have_equal_shares(qwen: QwenVL) -> None:
    pools = cold_start(qwen, sft_tasks=14).pools
    assert [len(all_rows(pool)) for pool in pools] == [4, 4, 14]
    assert {name: len(rows) for name, rows in pools[2].items()} == dict.fromkeys(TINY_TYPES, 2)
    assert [list(pool) for pool in pools[:2]] == [["locate"], ["locate"]]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sft_questions_is_the_most_samples_of_a_row_of_the_last_stage(qwen: QwenVL, count: int) -> None:
    assert max(len(row) for row in all_rows(cold_start(qwen, sft_questions=count).pools[2])) == count


def zooms(qwen: QwenVL, stage: int, **settings: Any) -> list[bool]:
    pool = cold_start(qwen, sft_questions=1, sft_tasks=40, **settings).pools[stage]
    return ["<tool_call>" in learned(qwen.chat, row[0]) for row in all_rows(pool)]


def test_sft_zoom_is_how_often_the_oracle_zooms_in_the_last_stage(qwen: QwenVL) -> None:
    assert sum(zooms(qwen, 2, env=ZOOM, sft_zoom=0.0)) == 0
    assert sum(zooms(qwen, 2, env=ZOOM, sft_zoom=1.0)) == 40
    assert 10 < sum(zooms(qwen, 2, env=ZOOM, sft_zoom=0.5)) < 30


def test_nothing_is_zoomed_where_there_is_no_tool_or_in_an_earlier_stage(qwen: QwenVL) -> None:
    assert sum(zooms(qwen, 2, sft_zoom=1.0)) == 0
    assert sum(zooms(qwen, 0, env=ZOOM, sft_zoom=1.0)) == 0


def test_the_cold_start_is_on_tasks_of_the_environment_that_is_asked_for(qwen: QwenVL) -> None:
    pools = cold_start(qwen, tasks="qa").pools
    assert set(pools[2]) == {name for name in QA_TYPES if name in TINY_TYPES}
    assert set(cold_start(qwen, tasks=("locate",), difficulty=2).pools[2]) == {"locate"}


def test_photographs_are_played_as_often_as_there_are_any(qwen: QwenVL, bccd: str) -> None:
    (pool,) = cold_start(qwen, source=bccd, sft_tasks=1000, sft_questions=1).pools
    assert len(all_rows(pool)) < 1000
    (few,) = cold_start(qwen, source=bccd, sft_tasks=5, sft_questions=1).pools
    assert len(all_rows(few)) == 5


# ---------------------------------------------------------------- what is shown when


def shown(start: ColdStart, stage: int, updates: int) -> list[Any]:
    """The rows of the first updates of a stage."""
    return [start.rows(stage, update) for update in range(updates)]


def as_ids(updates: Sequence[Any]) -> list[Any]:
    return [[[sample.ids for sample in row] for row in rows] for rows in updates]


def test_an_update_is_on_so_many_rows(qwen: QwenVL) -> None:
    assert {len(rows) for rows in shown(cold_start(qwen, sft_rows=5), 2, 4)} == {5}


def test_rows_are_a_function_of_seed_stage_and_update(qwen: QwenVL) -> None:
    start = cold_start(qwen)
    first = as_ids(shown(start, 2, 4))
    assert as_ids(shown(start, 2, 4)) == first == as_ids(shown(cold_start(qwen), 2, 4))
    assert first[0] != first[1]
    assert first != as_ids(shown(start, 1, 4))


def test_the_seed_decides_which_rows_of_a_pool_are_shown(qwen: QwenVL) -> None:
    def places(seed: int) -> list[Any]:
        start = cold_start(qwen, seed=seed)
        where = {id(row): (name, k) for name, rows in start.pools[2].items() for k, row in enumerate(rows)}
        return [where[id(row)] for row in start.rows(2, 0)]

    assert places(0) == places(0) != places(1)


def test_another_seed_plays_other_tasks(qwen: QwenVL) -> None:
    def images(seed: int) -> set[bytes]:
        pools = cold_start(qwen, seed=seed, sft_questions=1).pools
        return {row[0].images[0].tobytes() for pool in pools for row in all_rows(pool)}

    assert not images(0) & images(1)


def test_a_later_stage_now_and_then_shows_what_came_before(qwen: QwenVL) -> None:
    start = cold_start(qwen, sft_tasks=21)
    stages = [[row for rows in pool.values() for row in rows] for pool in start.pools]

    def stage_of(rows: Any) -> set[int]:
        return {next(n for n, pool in enumerate(stages) if any(row is other for other in pool)) for row in rows}

    for stage in (1, 2):
        seen = [stage_of(rows) for rows in shown(start, stage, 4 * EARLIER_SHARE)]
        for update, found in enumerate(seen):
            earlier = update % EARLIER_SHARE == EARLIER_SHARE - 1
            assert len(found) == 1
            assert (max(found) < stage) == earlier
        assert set.union(*seen) == set(range(stage + 1))
    assert set.union(*(stage_of(rows) for rows in shown(start, 0, 10))) == {0}


def test_a_type_is_shown_more_the_less_it_is_mastered(qwen: QwenVL) -> None:
    start = cold_start(qwen, sft_tasks=14, sft_rows=20)
    names = {id(row): name for name, rows in start.pools[2].items() for row in rows}

    def counts(skills: Mapping[str, float] | None) -> Counter[str]:
        updates = [update for update in range(25) if update % EARLIER_SHARE != EARLIER_SHARE - 1]
        return Counter(names[id(row)] for update in updates for row in start.rows(2, update, skills))

    even, skewed = counts(None), counts(dict.fromkeys(TINY_TYPES, 0.9) | {"counting": 0.0, "locate": 1.0})
    assert max(even.values()) < 2 * min(even.values())
    assert skewed["counting"] > 4 * max(count for name, count in skewed.items() if name != "counting")
    assert skewed["locate"] > 0  # what is mastered is not forgotten


# ---------------------------------------------------------------- an update


def some_rows(qwen: QwenVL) -> list[list[Sample]]:
    rows, _ = played(qwen.chat, 3)
    more, _ = played(qwen.chat, 1, [load_task("rendered:tiny/counting/any/train/6")])
    return [*rows["group_grounding"], *more["counting"]]


def test_an_update_reports_the_loss_before_it_and_lowers_it(make_qwen: Callable[..., QwenVL]) -> None:
    from rl.batch import pack
    from rl.log_probs import token_log_probs

    qwen = make_qwen()
    rows = some_rows(qwen)
    policy = Policy(qwen, TrainConfig(sft_learning_rate=1e-3), "sft")
    with torch.no_grad():
        expected = sft_loss(token_log_probs(qwen, pack(rows, qwen))[0]).item()
    metrics = [sft_step(policy, rows) for _ in range(6)]
    assert metrics[0]["loss/sft"] == pytest.approx(expected, rel=1e-6)
    assert metrics[0]["mask/tokens_trained"] == sum(sum(sample.mask) for row in rows for sample in row)
    assert metrics[-1]["loss/sft"] < expected - 0.3


@pytest.mark.parametrize("longest", [0.5, 1e9])
def test_the_gradient_is_clipped_and_logged_as_it_was(make_qwen: Callable[..., QwenVL], longest: float) -> None:
    qwen = make_qwen()
    before = [parameter.detach().clone() for parameter in qwen.model.parameters()]
    policy = Policy(qwen, TrainConfig(max_grad_norm=longest), "sft")
    policy.optimizer = torch.optim.SGD(policy.trained, 1.0)
    norm = sft_step(policy, some_rows(qwen))["gradient/norm"]
    moved = [now.detach() - then for now, then in zip(qwen.model.parameters(), before, strict=True)]
    length = float(torch.stack([part.norm() for part in moved]).norm())
    assert norm > 1
    assert length == pytest.approx(min(norm, longest), rel=1e-3)


def test_an_update_in_several_passes_is_the_update_in_one(make_qwen: Callable[..., QwenVL]) -> None:
    found = []
    for rows_per_forward in (0, 1, 3):
        policy = Policy(make_qwen(), TrainConfig(sft_learning_rate=1e-3), "sft")
        policy.optimizer = torch.optim.SGD(policy.trained, 0.1)
        metrics = sft_step(policy, some_rows(policy.qwen), rows_per_forward)
        weights = torch.cat([parameter.detach().flatten() for parameter in policy.trained])
        found.append((metrics["loss/sft"], metrics["gradient/norm"], weights))
    for loss, norm, weights in found[1:]:
        assert (loss, norm) == pytest.approx(found[0][:2], rel=1e-5)
        torch.testing.assert_close(weights, found[0][2], atol=1e-6, rtol=0)
