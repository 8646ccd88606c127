"""Sampling for data: which tasks are kept, what is written of them, and going on after a stop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from tokenizers import Tokenizer

from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.types import Action, History
from mimgenv import default_codec
from mimgenv.codec import Codec
from mimgenv.datasets.selected import Selected, read_selection
from mimgenv.records import EpisodeRecord, EpisodeTurn, read_records, write_records
from mimgenv.types import TextAnswer
from rl.recipes.rejection import TASKS_PER_SEED, Counts, SampleConfig, sample

Config = Callable[..., SampleConfig]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Makes configurations of an oracle that plays a few tasks."""

    def made(**given: Any) -> SampleConfig:
        usual = {"agent": "oracle", "output": str(tmp_path / "stage"), "count": 3, "attempts": 2}
        return SampleConfig(**{**usual, **given})

    return made


def attempt(task: int, number: int, mark: str) -> EpisodeRecord:
    """A record that is right (R), wrong (W), or right after a turn that did not parse (M)."""
    good = EpisodeTurn("", f"<answer>{number}</answer>", None, 0)
    turns = (EpisodeTurn("", "!", "bad_turn", 0), good) if mark == "M" else (good,)
    return EpisodeRecord(
        task_id=f"task {task}",
        task_type="counting",
        agent="somebody",
        question="How many?",
        turns=turns,
        reward=1.0,
        reward_parts={},
        stop="answered",
        success=mark != "W",
        tool_calls=(),
        truth=TextAnswer("1"),
        prediction=TextAnswer("1"),
        views=(),
    )


def judged(config: SampleConfig, marks: str) -> tuple[Counts, list[EpisodeRecord]]:
    """Judges attempts of which nothing is left to be played: `RW WW` are two tasks with two attempts each."""
    tasks = marks.split()
    records = [attempt(task, number, mark) for task, word in enumerate(tasks) for number, mark in enumerate(word)]
    Path(config.output).mkdir()
    write_records(Path(config.output, "attempts.jsonl"), records)
    return sample(replace(config, count=len(tasks), attempts=len(tasks[0]))), records


def left(config: SampleConfig) -> dict[str, bytes]:
    """The files of the stage."""
    return {path.name: path.read_bytes() for path in sorted(Path(config.output).iterdir())}


def played(config: SampleConfig) -> list[EpisodeRecord]:
    return read_records(Path(config.output, "attempts.jsonl"))


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all_right", ["task 0"]), ("any_right", ["task 0", "task 1", "task 3"]), ("varying", ["task 1", "task 3"])],
)
def test_a_task_is_kept_by_how_many_of_its_attempts_are_right(config: Config, keep: str, kept: list[str]) -> None:
    asked = config(keep=keep)
    counts, _ = judged(asked, "RRRR RRWR WWWW WWWR")
    assert [record.task_id for record in read_records(Path(asked.output, "trajectories.jsonl"))] == kept
    assert counts == Counts(tasks=4, attempts=4, kept=len(kept), all_right=1, all_wrong=1)


def test_a_right_answer_after_a_malformed_turn_is_not_right(config: Config) -> None:
    asked = config(keep="varying", gives="tasks")
    counts, _ = judged(asked, "MM RM RR")
    assert (counts.all_right, counts.all_wrong) == (1, 1)
    assert [(item.task_id, item.right) for item in read_selection(Path(asked.output, "tasks.jsonl"))] == [("task 1", 1)]


def test_of_a_task_that_is_kept_the_first_right_attempt_is_the_trajectory(config: Config) -> None:
    asked = config(keep="any_right")
    _, records = judged(asked, "RRR WMR WRR")
    found = read_records(Path(asked.output, "trajectories.jsonl"))
    assert found == [records[0], records[5], records[7]]


def test_tasks_are_written_with_how_often_they_were_right_and_by_whom(config: Config) -> None:
    asked = config(keep="any_right", gives="tasks")
    judged(asked, "RRR WWW WRW")
    assert read_selection(Path(asked.output, "tasks.jsonl")) == (
        Selected("task 0", "counting", attempts=3, right=3, by="somebody"),
        Selected("task 2", "counting", attempts=3, right=1, by="somebody"),
    )


@pytest.mark.parametrize(("gives", "other"), [("trajectories", "tasks"), ("tasks", "trajectories")])
def test_a_stage_leaves_its_attempts_its_counts_and_what_it_gives(config: Config, gives: str, other: str) -> None:
    asked = config(keep="any_right", gives=gives)
    judged(asked, "RW WW")
    files = left(asked)
    assert sorted(files) == sorted(["attempts.jsonl", "counts.json", f"{gives}.jsonl"])
    assert json.loads(files["counts.json"]) == {"tasks": 2, "attempts": 2, "kept": 1, "all_right": 0, "all_wrong": 1}


@pytest.mark.parametrize(
    ("keep", "marks", "said"),
    [
        ("all_right", "RW WR", "of 2 tasks none is kept (all_right); 0 all wrong"),
        ("varying", "RR WW WW", "of 3 tasks none is kept (varying); 2 all wrong"),
        ("any_right", "WW MM", "of 2 tasks none is kept (any_right); 2 all wrong"),
    ],
)
def test_where_nothing_is_kept_there_is_nothing_to_go_on_with(config: Config, keep: str, marks: str, said: str) -> None:
    asked = config(keep=keep)
    with pytest.raises(ValueError, match=re.escape(f"{asked.output}: {said}") + "$"):
        judged(asked, marks)
    assert json.loads(left(asked)["counts.json"])["kept"] == 0
    assert "trajectories.jsonl" not in left(asked)


# ---------------------------------------------------------------- what is played


def test_attempts_at_a_task_lie_behind_each_other_and_tasks_in_order(config: Config) -> None:
    asked = config(count=3, attempts=2, tasks=("locate", "counting"))
    sample(asked)
    ids = [record.task_id for record in played(asked)]
    assert ids[::2] == ids[1::2] and len(set(ids)) == 3
    env = gym.make("MultiImageTiny-v0", tasks=("locate", "counting"))
    first = TASKS_PER_SEED
    assert ids[::2] == [env.reset(seed=first + place)[1]["task_id"] for place in range(3)]


def test_tasks_are_those_that_are_trained_on(config: Config) -> None:
    asked = config()
    sample(asked)
    assert all("/train/" in record.task_id for record in played(asked))


def test_tasks_that_are_passed_over_are_the_first_ones_of_the_seed(config: Config, tmp_path: Path) -> None:
    all_of_them, later = config(count=5), config(count=2, first=3, output=str(tmp_path / "later"))
    sample(all_of_them), sample(later)
    assert [r.task_id for r in played(all_of_them)][6:] == [r.task_id for r in played(later)]


def test_another_seed_plays_other_tasks(config: Config, tmp_path: Path) -> None:
    asked = [config(seed=seed, output=str(tmp_path / str(seed))) for seed in (0, 1)]
    for each in asked:
        sample(each)
    zero, one = ({record.task_id for record in played(each)} for each in asked)
    assert len(zero) == len(one) == 3 and not zero & one


def test_an_oracle_is_right_and_a_random_agent_is_wrong(config: Config, tmp_path: Path) -> None:
    assert sample(config()).all_right == 3
    asked = config(agent="random", output=str(tmp_path / "random"))
    with pytest.raises(ValueError, match="3 all wrong"):
        sample(asked)
    assert {record.agent for record in played(asked)} == {"random"}


def test_tasks_that_are_kept_can_be_played(config: Config) -> None:
    asked = config(gives="tasks", count=4)
    sample(asked)
    env = gym.make("MultiImageTiny-v0", source=f"selected:{asked.output}/tasks.jsonl")
    served = [env.reset(seed=seed)[1]["task_id"] for seed in range(4)]
    assert sorted(served) == sorted({record.task_id for record in played(asked)})


# ---------------------------------------------------------------- a model


SAMPLED: dict[str, Any] = {
    "agent": "policy",
    "tasks": ("referring", "static_difference"),
    "count": 4,
    "attempts": 3,
    "keep": "any_right",
}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> SampleConfig:
    """A stage in which the shipped model has played, three tasks at a time."""
    made = SampleConfig(**SAMPLED, output=str(tmp_path_factory.mktemp("sampled")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.recipes.rejection.TOGETHER", 3)
        sample(made)
    return made


def turns(config: SampleConfig) -> list[str]:
    return [turn.action for record in played(config) for turn in record.turns]


def test_attempts_of_a_model_differ_within_a_task(sampled: SampleConfig) -> None:
    said = [record.turns[0].action for record in played(sampled)]
    assert any(len(set(said[begin : begin + 3])) > 1 for begin in range(0, 12, 3))
    assert {record.agent for record in played(sampled)} == {"policy"}


def test_the_same_seed_leaves_the_same_files_and_another_samples_differently(
    sampled: SampleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 3)
    again = replace(sampled, output=str(tmp_path / "again"))
    sample(again)
    assert left(again) == left(sampled)
    moved = replace(sampled, output=str(tmp_path / "moved"), first=1)
    sample(moved)
    assert [r.task_id for r in played(moved)][:9] == [r.task_id for r in played(sampled)][3:]
    assert turns(moved)[:9] != turns(sampled)[3:]


def test_a_model_that_is_sampled_cold_says_the_same_in_all_attempts(sampled: SampleConfig, tmp_path: Path) -> None:
    cold = replace(sampled, output=str(tmp_path), temperature=0.01)
    sample(cold)
    said = turns(cold)
    assert said[0::3] == said[1::3] == said[2::3]


@pytest.mark.parametrize("change", [{"max_turn_tokens": 3}, {"start": "fresh"}], ids=["short turns", "another model"])
def test_a_model_is_right_only_if_it_has_learned_and_may_end_its_turns(
    sampled: SampleConfig, tmp_path: Path, make_qwen: Callable[..., QwenVL], change: dict[str, Any]
) -> None:
    save_qwen_vl(make_qwen(), str(tmp_path / "fresh"))
    start = str(tmp_path / "fresh") if "start" in change else sampled.start
    with pytest.raises(ValueError, match="4 all wrong"):
        sample(replace(sampled, output=str(tmp_path / "other"), **{**change, "start": start}))


def test_under_the_turn_grammar_even_an_untrained_model_writes_turns_that_parse(
    config: Config, tmp_path: Path, make_qwen: Callable[..., QwenVL]
) -> None:
    save_qwen_vl(make_qwen(), str(tmp_path / "fresh"))
    errors = {}
    for constrained in (False, True):
        output = str(tmp_path / str(constrained))
        asked = config(agent="policy", start=str(tmp_path / "fresh"), constrain_actions=constrained, output=output)
        with pytest.raises(ValueError, match="none is kept"):
            sample(replace(asked, tasks=("locate",), max_turn_tokens=48))
        errors[constrained] = {turn.error for record in played(asked) for turn in record.turns}
    assert errors[False] & {"bad_turn", "too_long"}
    assert errors[True] <= {None, "bad_box"}


def test_attempts_at_the_same_task_differ_by_seed_and_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 2)
    tasks = SampleConfig(agent="oracle", output=str(tmp_path), gives="tasks", count=2, attempts=1, tasks=("referring",))
    sample(tasks)
    served = f"selected:{tmp_path}/tasks.jsonl"  # two tasks, over and over: the same for every seed
    said = {}
    for name, given in {"": {}, "seed": {"seed": 1}, "first": {"first": 2}}.items():
        output = str(tmp_path / f"other {name}")
        sample(SampleConfig(source=served, output=output, count=4, attempts=4, keep="any_right", **given))
        said[name] = turns(replace(tasks, output=output))
        ids = [record.task_id for record in played(replace(tasks, output=output))]
        assert ids[:8] == ids[8:] and len(set(ids)) == 2
        assert said[name][:8] != said[name][8:]
    assert said[""] != said["seed"] and said[""] != said["first"]


def test_an_agent_has_a_seed_of_its_own_too(tmp_path: Path) -> None:
    tasks = SampleConfig(agent="oracle", output=str(tmp_path), gives="tasks", count=1, attempts=1, tasks=("counting",))
    sample(tasks)
    said = []
    for seed in (0, 1):
        given: dict[str, Any] = {"agent": "random", "source": f"selected:{tmp_path}/tasks.jsonl", "seed": seed}
        other = SampleConfig(output=str(tmp_path / str(seed)), count=1, attempts=1, **given)
        with pytest.raises(ValueError, match="1 all wrong"):
            sample(other)
        said.append(turns(other))
    assert said[0] != said[1]


class Foreign(OracleAgent):
    """Speaks a tokenizer of its own, in which the ids of two digits are swapped."""

    def __init__(self) -> None:
        super().__init__()
        state = json.loads(default_codec().tokenizer.to_str())
        vocabulary = state["model"]["vocab"]
        vocabulary["2"], vocabulary["3"] = vocabulary["3"], vocabulary["2"]
        self.codec = Codec(Tokenizer.from_str(json.dumps(state)))

    def act(self, histories: Sequence[History]) -> list[Action]:  # type: ignore[override]
        return [Action(self.codec.encode_turn(turn)) for turn in super().act(histories)]


def test_an_agent_plays_in_its_own_tokens(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.by_name.agent_by_name", lambda *_, **__: Foreign())
    assert sample(config(tasks=("odd_one_out_qa",), count=6)).all_right == 6


# ---------------------------------------------------------------- stopping and going on


def cuts(content: bytes) -> list[int]:
    """Lengths at which a file may have been cut off: at the ends of its lines, before their newlines, within them."""
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    return [0, 1, *(cut for end in ends for cut in (end - 50, end - 1, end))]


def test_a_stage_that_was_stopped_at_any_moment_goes_on_to_the_same_files(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 2)
    whole = config(count=5)
    sample(whole)
    expected = left(whole)
    stopped = replace(whole, output=str(tmp_path / "stopped"))
    for cut in cuts(expected["attempts.jsonl"]):
        folder = tmp_path / "stopped"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        (folder / "attempts.jsonl").write_bytes(expected["attempts.jsonl"][:cut])
        sample(stopped)
        assert left(stopped) == expected, cut


@pytest.mark.parametrize("lines", [2, 9, 10])
def test_what_a_model_samples_after_a_stop_is_what_it_would_have_sampled(
    sampled: SampleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 3)
    kept = left(sampled)["attempts.jsonl"].splitlines(keepends=True)[:lines]
    (tmp_path / "attempts.jsonl").write_bytes(b"".join(kept) + b'{"version": 1, "task')
    stopped = replace(sampled, output=str(tmp_path))
    sample(stopped)
    assert left(stopped) == left(sampled)


def test_what_was_played_is_not_played_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 2)
    asked = config(count=5)
    sample(asked)
    path = Path(asked.output, "attempts.jsonl")
    marked = path.read_text().replace('"agent": "oracle"', '"agent": "before"')
    path.write_text("".join(marked.splitlines(keepends=True)[:9]))
    begun: list[tuple[int, int]] = []
    sample(asked, lambda done, most: begun.append((done, most)))
    assert begun == [(4, 5), (5, 5)]
    assert [record.agent for record in played(asked)] == ["before"] * 8 + ["oracle"] * 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 0}, "count 0: at least 1"),
        ({"attempts": 0}, "attempts 0: at least 1"),
        ({"first": -1}, "first -1: at least 0"),
        ({"seed": -1}, "seed -1: at least 0"),
        ({"max_turn_tokens": 0}, "max_turn_tokens 0: at least 1"),
        ({"keep": "best"}, "keep 'best' is not one of ['all_right', 'any_right', 'varying']"),
        ({"gives": "gold"}, "gives 'gold' is not one of ['trajectories', 'tasks']"),
        ({"keep": "varying", "attempts": 1}, "attempts 1: one attempt cannot vary"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        SampleConfig(**given)
