"""Sampling for data: which tasks are kept, what is written of them, and going on after a stop."""

from __future__ import annotations

import gc
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from tokenizers import Tokenizer

from agents.api_agent import EndpointError, data_url
from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL, save_qwen_vl
from agents.types import Action, History
from mimgenv import default_codec, load_task
from mimgenv.codec import Codec
from mimgenv.datasets.selected import Selected, read_selection
from mimgenv.errors import DatasetError
from mimgenv.records import EpisodeRecord, EpisodeTurn, read_records, write_records
from mimgenv.types import TextAnswer
from rl.config import TASKS_PER_SEED
from rl.recipes.rejection import Counts, SampleConfig, sample

spec = importlib.util.spec_from_file_location("chat_server", Path(__file__).parents[2] / "agents" / "chat_server.py")
assert spec is not None and spec.loader is not None
chat_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_server)
Reply = chat_server.Reply

Config = Callable[..., SampleConfig]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Makes configurations of an oracle that plays a few tasks."""

    def made(**given: Any) -> SampleConfig:
        usual = {"agent": "oracle", "output": str(tmp_path / "stage"), "count": 3, "attempts": 2}
        return SampleConfig(**{**usual, **given})

    return made


def attempt(task: int, number: int, mark: str) -> EpisodeRecord:
    """A record that is right (R), wrong (W), right after a turn that did not parse (M) or was empty (E), or cut (C)."""
    good = EpisodeTurn("", f"<answer>{number}</answer>", None, 0)
    turns = (EpisodeTurn("", "!" * (mark == "M"), "bad_turn", 0), good) if mark in "ME" else (good,)
    return EpisodeRecord(
        task_id=f"task {task}",
        task_type="counting",
        agent="somebody",
        question="How many?",
        turns=turns,
        reward=1.0,
        reward_parts={},
        stop="token_limit" if mark == "C" else "answered",
        success=mark not in "WC",
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
    few = {"kept": len(kept), "all_right": 1, "all_wrong": 1, "failed": 0, "unanswered": 0}
    assert counts == Counts(tasks=4, attempts=4, **few)


def test_attempts_that_said_nothing_and_those_that_did_not_answer_are_counted(config: Config) -> None:
    counts, _ = judged(config(keep="any_right"), "RCE WCW EEM")
    assert (counts.failed, counts.unanswered) == (3, 2)
    assert (counts.kept, counts.all_wrong) == (1, 2)


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
    found = {"tasks": 2, "attempts": 2, "kept": 1, "all_right": 0, "all_wrong": 1, "failed": 0, "unanswered": 0}
    assert json.loads(files["counts.json"]) == found


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


@pytest.fixture
def in_bytes(tmp_path: Path, make_qwen: Callable[..., QwenVL]) -> str:
    """The folder of a model without its weights, whose tokenizer writes texts byte by byte."""
    folder = tmp_path / "bytes"
    save_qwen_vl(make_qwen(), str(folder))
    (folder / "model.safetensors").unlink()
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["merges"] = []
    state["added_tokens"] = [token for token in state["added_tokens"] if token["special"]]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return str(folder)


@pytest.mark.parametrize("agent", ["oracle", "openai"])
def test_an_agent_without_tokens_of_its_own_plays_in_those_of_the_model_that_is_to_learn(
    config: Config, tmp_path: Path, server: Any, in_bytes: str, agent: str
) -> None:
    text = "<think>There are three of them, and no more.</think><answer>3</answer>"
    server.reply = lambda *_: Reply(text)
    name = f"openai:m@{server.url}" if agent == "openai" else agent
    stops = {}
    for start in ("tiny", in_bytes):
        output = str(tmp_path / Path(start).name / "stage")
        asked = config(agent=name, start=start, output=output, tasks=("counting",), max_tokens=26, count=6)
        with suppress(ValueError):  # none is kept
            sample(asked)
        stops[start] = {record.stop for record in played(asked)}
    assert stops == {"tiny": {"answered"}, in_bytes: {"void"}}


def test_a_model_that_is_to_learn_must_be_there(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none is not a directory"):
        sample(config(start=str(tmp_path / "none")))


# ---------------------------------------------------------------- a server


@pytest.fixture
def server() -> Iterator[Any]:
    pytest.importorskip("openai")
    with chat_server.serving() as chat:
        yield chat


def counted(server: Any, failing: Callable[[int], int] = lambda number: 200, **given: Any) -> SampleConfig:
    """A stage of counting tasks that a server solves, but for the requests at whose numbers it fails."""
    asked = SampleConfig(**{"agent": f"openai:m@{server.url}", "tasks": ("counting",), "count": 10, **given})
    env = gym.make("MultiImageTiny-v0", tasks=asked.tasks)
    begun = [env.reset(seed=(asked.seed + 1) * TASKS_PER_SEED + place) for place in range(asked.count)]
    tasks = [(message["images"][0], load_task(info["task_id"])) for message, info in begun]
    truths = {data_url(image): task.truth.text for image, task in tasks}  # type: ignore[union-attr]

    def solve(body: dict[str, Any], number: int) -> Any:
        first = next(part for part in body["messages"][0]["content"] if part["type"] == "image_url")
        text = f"<think>a</think><answer>{truths[first['image_url']['url']]}</answer>"
        return Reply(text, status=failing(number))

    server.reply = solve
    return asked


def test_a_request_that_fails_costs_one_attempt(server: Any, tmp_path: Path) -> None:
    asked = counted(server, lambda number: 400 if number == 3 else 200, attempts=2, output=str(tmp_path))
    counts = sample(asked)
    few = {"kept": 9, "all_right": 9, "all_wrong": 0, "failed": 1, "unanswered": 1}
    assert counts == Counts(tasks=10, attempts=2, **few)
    (lost,) = (record for record in played(asked) if not record.success)
    assert {(turn.action, turn.error) for turn in lost.turns} == {("", "bad_turn")}
    assert len(server.bodies) == 20  # one for each attempt: what is lost is not asked about again


def test_a_server_that_fails_at_more_than_a_tenth_of_a_portion_stops_the_stage_and_not_for_ever(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 5)
    asked = counted(server, lambda number: 400 if number in (3, 12, 14) else 200, attempts=2, output=str(tmp_path))
    said = f"2 of 10 attempts failed, at most a tenth may; the last: m at {server.url}: HTTP 400"
    with pytest.raises(EndpointError, match=f"^{re.escape(said)}$"):
        sample(asked)
    assert sorted(left(asked)) == ["attempts.jsonl"] and len(played(asked)) == 10
    counted(server, attempts=2)
    assert sample(asked).failed == 1


def test_a_tenth_of_each_portion_may_fail(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 5)
    asked = counted(server, lambda number: 400 if number in (3, 12) else 200, attempts=2, output=str(tmp_path))
    assert sample(asked).failed == 2


def test_a_server_that_refuses_all_stops_the_stage_at_once(server: Any, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="HTTP 401"):
        sample(counted(server, lambda number: 401 if number == 3 else 200, attempts=2, output=str(tmp_path)))
    assert left(SampleConfig(output=str(tmp_path))) == {}


def test_a_server_is_sent_a_seed_for_each_attempt_and_the_same_ones_after_a_stop(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 5)
    sent = {}
    for name, given in {"one": {}, "again": {}, "seed": {"seed": 1}, "rest": {}}.items():
        server.bodies.clear()
        (tmp_path / name).mkdir()
        if name == "rest":
            whole = (tmp_path / "again" / "attempts.jsonl").read_bytes().splitlines(keepends=True)
            (tmp_path / name / "attempts.jsonl").write_bytes(b"".join(whole[:10]))
        sample(counted(server, attempts=2, output=str(tmp_path / name), **given))
        sent[name] = {body["seed"] for body in server.bodies}
    assert len(sent["one"]) == 20 and sent["again"] == sent["one"]
    assert len(sent["rest"]) == 10 and sent["rest"] < sent["one"]
    assert not sent["seed"] & sent["one"]


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


def test_whole_portions_are_never_written_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 2)
    asked = config(count=5)
    sample(asked)
    path = Path(asked.output, "attempts.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]))

    def killed(path: Path, mode: str, **more: Any) -> Any:
        if mode == "rb":
            return open(path, mode, **more)
        with open(path, mode, **more):
            raise KeyboardInterrupt

    monkeypatch.setattr("mimgenv.records.open", killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        sample(asked)
    assert path.read_bytes() == b"".join(lines[:4])


def test_records_are_not_held(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.recipes.rejection.TOGETHER", 2)
    asked = config(count=7)

    def held() -> int:
        return sum(type(item) is EpisodeRecord for item in gc.get_objects())

    before, found = held(), []
    for _ in range(2):  # played, then read
        sample(asked, lambda done, most: found.append(held() - before))
    assert found == [0] * 6


def test_an_empty_line_is_passed_over(config: Config) -> None:
    asked = config()
    sample(asked)
    expected = left(asked)
    path = Path(asked.output, "attempts.jsonl")
    path.write_bytes(b"\n\n" + expected["attempts.jsonl"])
    sample(asked)
    assert left(asked)["trajectories.jsonl"] == expected["trajectories.jsonl"]


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
    ("places", "said"),
    [
        ([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)], "6 attempts, not 2 at each of 2 tasks"),
        ([(0, 0), (1, 0), (0, 1), (1, 1)], "2 attempts at one task lie behind each other, not some at task 0, task 1"),
        ([(0, 0), (0, 1), (1, 0), (2, 0)], "2 attempts at one task lie behind each other, not some at task 1, task 2"),
        ([(0, 0), (1, 0)], "2 attempts at one task lie behind each other, not some at task 0, task 1"),
    ],
    ids=["more", "mixed", "another task", "mixed within a portion"],
)
def test_attempts_that_are_not_those_of_the_stage_are_refused_and_left(
    config: Config, places: list[tuple[int, int]], said: str
) -> None:
    asked = config(count=2)
    path = Path(asked.output, "attempts.jsonl")
    path.parent.mkdir()
    write_records(path, [attempt(task, number, "R") for task, number in places])
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=f"^{re.escape(f'{path}: {said}')}$"):
        sample(asked)
    assert left(asked) == {"attempts.jsonl": before}


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
