"""The cold start: who plays it, what is shown when, and that it is learned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.annotated_reasoning import places, reasoning
from agents.chat import Chat
from agents.evaluate import evaluate_agent
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL
from agents.rollout import make_envs, run_episodes
from agents.types import History
from mimgenv import load_task
from mimgenv.errors import DatasetError
from mimgenv.records import EpisodeRecord, write_records
from mimgenv.tasks.rendered import QA_TYPES, TINY_TYPES
from mimgenv.tasks.siblings import siblings
from mimgenv.types import Task
from rl.batch import Sample, common_prefix
from rl.config import TrainConfig
from rl.loss import sft_loss
from rl.policy import Policy
from rl.sft import (
    EARLIER_SHARE,
    EASY_QUESTIONS,
    ColdStart,
    RecordedSet,
    cold_start_set,
    curriculum,
    play_rows,
    sft_sample,
    sft_step,
)

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


def calls(qwen: QwenVL, stage: int, tool: str = "zoom", **settings: Any) -> int:
    """How many of 40 episodes of a stage call the tool."""
    pool = cold_start(qwen, sft_questions=1, **{"sft_tasks": 40, **settings}).pools[stage]
    return sum(f'{{"name": "{tool}"' in learned(qwen.chat, row[0]) for row in all_rows(pool))


SHARES = {"sft_zoom": "zoom", "sft_reflect": "visual_reflection", "sft_confirm": "visual_confirmation"}
ALL_TOOLS: Mapping[str, Any] = {"env": ZOOM, "tools": tuple(SHARES.values()), **dict.fromkeys(SHARES, 0.0)}


@pytest.mark.parametrize(("option", "tool"), SHARES.items())
def test_the_share_of_a_tool_is_how_often_the_oracle_calls_it_in_the_last_stage(
    qwen: QwenVL, option: str, tool: str
) -> None:
    assert calls(qwen, 2, tool, **ALL_TOOLS) == 0
    assert calls(qwen, 2, tool, **{**ALL_TOOLS, option: 1.0}) == 40
    assert 10 < calls(qwen, 2, tool, **{**ALL_TOOLS, option: 0.5}) < 30
    for other in set(SHARES.values()) - {tool}:
        assert calls(qwen, 2, other, **{**ALL_TOOLS, option: 1.0}) == 0


@pytest.mark.parametrize(("option", "tool"), SHARES.items())
def test_no_tool_is_called_where_there_is_none_or_no_budget_or_in_an_earlier_stage(
    qwen: QwenVL, option: str, tool: str
) -> None:
    settings = {**ALL_TOOLS, option: 1.0, "sft_tasks": 6}
    assert calls(qwen, 2, tool, **settings) == 6
    assert calls(qwen, 2, tool, **{**settings, "tools": ()}) == 0
    assert calls(qwen, 2, tool, **{**settings, "max_images": 2}) == 0
    assert calls(qwen, 2, tool, **{**settings, "max_turns": 1}) == 0
    assert calls(qwen, 0, tool, **settings) == 0


@pytest.mark.parametrize(
    ("think", "thought"),
    [
        ("label", lambda task: f"{task.truth.label.split()[0]}: {task.truth.label}"),
        ("rationale", lambda task: task.rationale),
        ("annotations", reasoning),
        ("places", places),
    ],
)
def test_the_oracle_thinks_as_it_is_told_to(qwen: QwenVL, think: str, thought: Callable[[Task], str]) -> None:
    start = cold_start(qwen, tasks=("referring",), sft_tasks=3, sft_questions=1, sft_think=think)
    source: Any = make_envs(TINY, 1, **start.stages[2].arguments)[0].unwrapped
    tasks = [source.source.task(2 * 3 + index) for index in range(3)]  # the third stage begins after two of 3 tasks
    assert [learned(qwen.chat, row[0]).split("</think>")[0] for row in all_rows(start.pools[2])] == [
        f"<think>{thought(task)}" for task in tasks
    ]


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


# ---------------------------------------------------------------- recorded episodes


class Opening:
    """Says the same things in every episode, one a turn, then the truth."""

    def __init__(self, *said: str) -> None:
        self.said, self.oracle = said, OracleAgent(think="label", grid=7)

    def act(self, histories: Sequence[History]) -> list[str]:
        turns = zip(histories, self.oracle.act(histories), strict=True)
        return [(*self.said, *[truth] * 9)[len(history.turns)] for history, truth in turns]


ZOOMS = '<think>t</think><tool_call>{"name": "zoom", "arguments": {"image": 1, "bbox_2d": [0, 0, 42, 42]}}</tool_call>'


def records(agent: Any, count: int, env: str = ZOOM, **arguments: Any) -> tuple[EpisodeRecord, ...]:
    report = evaluate_agent(agent, env, count, split="train", blind_episodes=0, **arguments)
    return tuple(report.records)


@pytest.fixture(scope="module")
def five() -> tuple[EpisodeRecord, ...]:
    """Episodes of two turns, of one turn, and one that begins with a bad turn."""
    zoomed = records(OracleAgent(zoom=0.5, think="label", grid=7), 4)
    (stumbled,) = records(Opening("hm"), 1, first_seed=4)
    found = (*zoomed, stumbled)
    assert Counter(len(record.turns) for record in found) == {1: 2, 2: 3}
    assert [turn.error for turn in stumbled.turns] == ["bad_turn", None]
    return found


def written(record: EpisodeRecord) -> str:
    """All that the author of an episode wrote; every turn is closed."""
    return "".join(f"{turn.action}<|im_end|>" for turn in record.turns)


def recorded(qwen: QwenVL, folder: Path, found: Sequence[EpisodeRecord], **settings: Any) -> RecordedSet:
    path = folder / "trajectories.jsonl"
    write_records(path, found)
    return RecordedSet(TrainConfig(**{"env": ZOOM, "sft_rows": 3, "sft_data": str(path), **settings}), qwen.chat)


def test_of_a_recorded_episode_all_that_its_author_wrote_is_learned_and_nothing_else(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    samples = recorded(qwen, tmp_path, five).samples
    assert [learned(qwen.chat, sample) for sample in samples] == [written(record) for record in five]
    for record, sample in zip(five, samples, strict=True):
        said = questions(qwen.chat, sample).replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
        assert all(f"\n{turn.message}<|im_end|>" in said for turn in record.turns)
        assert [image.shape[1::-1] for image in sample.images] == [(view.width, view.height) for view in record.views]
        assert sample.advantage == 1.0


def test_a_recorded_episode_is_learned_as_one_that_is_played(qwen: QwenVL, tmp_path: Path) -> None:
    agent = OracleAgent(zoom=0.5, think="label", grid=7)
    played = run_episodes(agent, ZOOM, range(4), codec=qwen.codec)
    direct = [sft_sample(qwen.chat, trajectory) for trajectory in played]
    again = recorded(qwen, tmp_path, records(agent, 4)).samples
    assert [(one.ids, one.mask) for one in again] == [(one.ids, one.mask) for one in direct]
    pixels = [[image.tobytes() for image in one.images] for one in direct]
    assert [[image.tobytes() for image in one.images] for one in again] == pixels


def test_what_the_cold_start_learns_from_is_recorded_where_a_file_is_named(qwen: QwenVL) -> None:
    assert isinstance(cold_start_set(TrainConfig(), qwen.chat), ColdStart)
    config = TrainConfig(sft_data="a.jsonl", tools=("zoom",))
    found = cold_start_set(config, qwen.chat)
    assert isinstance(found, RecordedSet)
    assert [stage.arguments for stage in found.stages] == [config.env_arguments()]  # no curriculum leads up to it


def order(found: RecordedSet, updates: int, stage: int = 0) -> list[int]:
    """Places in the file of the rows of the first updates."""
    places = {id(sample): place for place, sample in enumerate(found.samples)}
    rows = [row for update in range(updates) for row in found.rows(stage, update)]
    assert {len(row) for row in rows} == {1}
    return [places[id(row[0])] for row in rows]


@pytest.mark.parametrize("rows", [1, 3, 5, 12])
def test_every_recorded_episode_is_shown_once_a_pass_and_each_pass_has_its_order(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path, rows: int
) -> None:
    found = recorded(qwen, tmp_path, five, sft_rows=rows)
    shown = order(found, -(-60 // rows))[:60]
    passes = [tuple(shown[first : first + 5]) for first in range(0, 60, 5)]
    assert {tuple(sorted(places)) for places in passes} == {tuple(range(5))}
    assert len(set(passes)) > 8  # of 120 orders, drawn 12 times
    assert shown == order(recorded(qwen, tmp_path, five, sft_rows=3), 20)  # however many rows an update has


def test_the_order_of_recorded_episodes_is_a_function_of_seed_and_update(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    found = recorded(qwen, tmp_path, five)
    first = order(found, 10)
    assert order(found, 10) == first == order(recorded(qwen, tmp_path, five), 10)
    assert order(recorded(qwen, tmp_path, five, seed=1), 10) != first


def test_two_records_of_one_task_both_serve(qwen: QwenVL, tmp_path: Path) -> None:
    zoomed, plain, stumbled = (records(agent, 2) for agent in (OracleAgent(zoom=1.0), OracleAgent(), Opening("hm")))
    found = (zoomed[0], plain[0], plain[1], stumbled[0], zoomed[0])
    assert Counter(record.task_id for record in found).most_common(1) == [(zoomed[0].task_id, 4)]
    samples = recorded(qwen, tmp_path, found).samples
    assert [learned(qwen.chat, sample) for sample in samples] == [written(record) for record in found]


def test_more_episodes_than_are_played_together_all_serve_in_their_order(qwen: QwenVL, tmp_path: Path) -> None:
    found = records(OracleAgent(grid=7), 70, TINY, tasks=("locate",))[::-1]
    samples = recorded(qwen, tmp_path, found, env=TINY).samples
    assert [learned(qwen.chat, one) for one in samples] == [written(record) for record in found]


def refusal(qwen: QwenVL, folder: Path, found: Sequence[EpisodeRecord], **settings: Any) -> str:
    """What is said after the name of the file."""
    start = recorded(qwen, folder, found, **settings)
    with pytest.raises(DatasetError) as raised:
        start.rows(0, 0)
    said = str(raised.value)
    assert said.startswith(str(start.config.sft_data))
    return said.removeprefix(str(start.config.sft_data))


@pytest.mark.parametrize("split", ["val", "test", "test_ood"])
def test_episodes_on_tasks_that_runs_are_measured_on_are_refused(qwen: QwenVL, tmp_path: Path, split: str) -> None:
    report = evaluate_agent(OracleAgent(think="label", grid=7), TINY, 3, split=split, blind_episodes=0)
    assert refusal(qwen, tmp_path, report.records).startswith(f": 3 of 3 episodes are on tasks of {split}:")


def test_a_file_without_an_episode_is_refused(qwen: QwenVL, tmp_path: Path) -> None:
    assert refusal(qwen, tmp_path, []) == " holds no episodes"


def test_a_file_that_is_not_there_is_named(qwen: QwenVL, tmp_path: Path) -> None:
    start = RecordedSet(TrainConfig(sft_data=str(tmp_path / "none.jsonl")), qwen.chat)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        start.rows(0, 0)


def test_a_record_of_an_unknown_version_is_refused_with_its_line(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    start = recorded(qwen, tmp_path, five)
    path = Path(str(start.config.sft_data))
    lines = path.read_text("utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "version": 2})
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(DatasetError, match=r"trajectories\.jsonl, line 2: unknown version 2; this reader knows 1$"):
        start.rows(0, 0)


def test_an_episode_that_the_environment_shows_otherwise_is_refused_with_its_task(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    assert "turn 1: the environment says" in refusal(qwen, tmp_path, five, instructions="full")
    assert f": task {five[0].task_id}, turn 1: images of " in refusal(qwen, tmp_path, five, max_pixels=56 * 56)
    assert "the environment says 'Error (unknown_tool)" in refusal(qwen, tmp_path, five, tools=())


def test_an_episode_whose_boxes_are_written_otherwise_is_refused_though_no_message_tells_it(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    said = refusal(qwen, tmp_path, five, box_frame="norm1000")
    assert said == (f": in the record of {five[0].task_id} boxes are written as pixel, the environment's as norm1000")


def test_an_episode_that_ends_otherwise_is_refused_with_both_ends(qwen: QwenVL, tmp_path: Path) -> None:
    (zoomed,) = records(OracleAgent(zoom=1.0), 1)
    sooner = f": task {zoomed.task_id}: played again there are errors [None] and the end turn_limit, recorded are "
    assert refusal(qwen, tmp_path, [zoomed], max_turns=1) == sooner + "[None, None] and answered"
    sooner = sooner.replace("[None]", "['too_long']").replace("turn_limit", "void")
    assert refusal(qwen, tmp_path, [zoomed], max_tokens=5) == sooner + "[None, None] and answered"
    (twice,) = records(Opening(ZOOMS, ZOOMS), 1, max_turns=3)
    assert recorded(qwen, tmp_path, [twice], max_turns=3).rows(0, 0)
    assert "the end image_limit, recorded" in refusal(qwen, tmp_path, [twice], max_turns=3, max_images=3)
    assert refusal(qwen, tmp_path, [replace(zoomed, stop="void")]).endswith("recorded are [None, None] and void")


def test_an_episode_of_a_task_that_is_not_known_is_refused(
    qwen: QwenVL, five: Sequence[EpisodeRecord], tmp_path: Path
) -> None:
    unknown = replace(five[0], task_id="rendered:tiny/chess/any/train/4")
    assert "rendered:tiny/chess/any/train/4" in refusal(qwen, tmp_path, [*five[1:], unknown])


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
