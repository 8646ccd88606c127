"""Agents by their names: who is made, and what it takes from the environment it is to play in."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from agents.blind import BlindAgent
from agents.by_name import NAMES, agent_by_name
from agents.evaluate import evaluate_agent, main
from agents.oracle import OracleAgent
from agents.random_agent import RandomAgent
from agents.rollout import open_env, run_episodes
from mimgenv.codec import Codec, default_codec
from mimgenv.env import MultiImageEnv
from mimgenv.errors import ConfigurationError
from mimgenv.records import read_records

spec = importlib.util.spec_from_file_location("chat_server", Path(__file__).with_name("chat_server.py"))
assert spec is not None and spec.loader is not None
chat_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_server)

TINY, ZOOM = "MultiImageTiny-v0", "MultiImageTinyZoom-v0"
TURN = "<think>x</think><answer>3</answer>"


def tiny(env: str = TINY, **arguments: Any) -> MultiImageEnv:
    return open_env(env, arguments)


@pytest.fixture
def server() -> Iterator[Any]:
    pytest.importorskip("openai")
    with chat_server.serving() as chat:
        chat.reply = lambda body, number: chat_server.Reply(TURN)
        yield chat


def turns(env: str, name: str, **options: Any) -> list[str]:
    report = evaluate_agent(agent_by_name(name, tiny(env), **options), env, 6, blind_episodes=0)
    return [turn.action for record in report.records for turn in record.turns]


def test_the_oracle_takes_its_box_frame_from_the_environment_and_is_an_upper_bound() -> None:
    agent = agent_by_name("oracle", tiny(box_frame="unit"))
    assert isinstance(agent, OracleAgent)
    report = evaluate_agent(agent, TINY, 14, box_frame="unit", blind_episodes=0)
    assert report.all.reward.mean == pytest.approx(1.5, abs=1e-3)


def test_the_oracles_options_reach_it() -> None:
    assert not any("zoom" in turn for turn in turns(ZOOM, "oracle"))
    assert sum("zoom" in turn for turn in turns(ZOOM, "oracle", zoom=1.0)) == 6
    halves = [turns(ZOOM, "oracle", zoom=0.5, seed=seed) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]
    assert turns(ZOOM, "oracle", grid=7) != turns(ZOOM, "oracle")


def test_a_random_agent_knows_the_tools_and_the_seed() -> None:
    assert isinstance(agent_by_name("random", tiny()), RandomAgent)
    assert any("zoom" in turn for turn in turns(ZOOM, "random"))
    assert not any("zoom" in turn for turn in turns(TINY, "random"))
    assert turns(TINY, "random") == turns(TINY, "random") != turns(TINY, "random", seed=1)


def test_a_blind_agent_learns_its_habits_from_the_environments_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, int]] = []
    monkeypatch.setattr("agents.habits.training_tasks", lambda source, count: asked.append((source, count)) or [])
    monkeypatch.setattr("agents.habits.learn_habits", lambda tasks: None)
    env = tiny()
    assert isinstance(agent_by_name("blind:whole_image", env), BlindAgent)
    assert asked == []
    monkeypatch.setattr("agents.blind.LEARNING", ("whole_image",))
    agent_by_name("blind:whole_image", env)
    assert asked == [(env.source, 64)]


def test_a_model_is_constrained_by_the_rules_of_the_environment() -> None:
    env = tiny(ZOOM)
    free, held = (agent_by_name("vlm:tiny", env, max_tokens=48, constrain=constrain) for constrain in (False, True))
    assert free.rules is None  # type: ignore[attr-defined]
    rules = held.rules  # type: ignore[attr-defined]
    assert (rules.box_frame, rules.max_turn_tokens, rules.codec) == (env.box_frame, 48, held.codec)  # type: ignore[attr-defined]
    assert held.parameters == free.parameters  # type: ignore[attr-defined]


def test_a_policy_of_another_box_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Policy:
        class settings:
            box_frame = "unit"

    monkeypatch.setattr("agents.sb3_agent.SB3Agent.load", lambda path: Policy())
    assert isinstance(agent_by_name("sb3:some/folder", tiny(box_frame="unit")), Policy)
    with pytest.raises(ConfigurationError, match="some/folder writes boxes as unit, not as pixel"):
        agent_by_name("sb3:some/folder", tiny())


def test_a_model_behind_a_server_plays_with_the_sampling_asked_for(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    agent = agent_by_name(f"openai:org/model@{server.url}", tiny(), temperature=0.25, max_tokens=77)
    (played,) = run_episodes(agent, TINY, ["rendered:tiny/counting/any/test/4"])
    assert tiny().codec.decode_turn(played.turns[0].action.ids) == TURN
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("org/model", 0.25, 77)
    assert server.headers[0]["authorization"] == "Bearer sk-hidden"


def test_a_model_behind_a_server_reads_its_own_turns_by_the_codec_of_the_environment(server: Any) -> None:
    tokenizer = Tokenizer.from_str(default_codec().tokenizer.to_str())
    tokenizer.add_tokens(["Größe"])
    codec = Codec(tokenizer)
    agent = agent_by_name(f"openai:m@{server.url}", tiny(codec=codec))
    server.reply = lambda body, number: chat_server.Reply("Größe" if number == 0 else TURN)
    run_episodes(agent, TINY, ["rendered:tiny/counting/any/test/4"], codec=codec)
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Größe"}


def test_the_command_line_evaluates_a_model_behind_a_server(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"openai:org/model@{server.url}"
    main(["--env", TINY, "--agent", name, "--episodes", "2", "--blind_episodes", "0", "--max_tokens", "9"])
    (folder,) = Path("runs").iterdir()
    assert folder.name == "evaluate-openai-model-MultiImageTiny-v0"
    assert {record.agent for record in read_records(folder / "episodes.jsonl")} == {name}
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(0.0, 9)}


def test_a_server_that_gives_no_answer_ends_the_command_in_one_line(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda *_: chat_server.Reply(status=401)
    with pytest.raises(SystemExit):
        main(["--env", TINY, "--agent", f"openai:m@{server.url}", "--episodes", "1", "--output", str(tmp_path)])
    assert capsys.readouterr().err.endswith("HTTP 401\n")


@pytest.mark.parametrize("name", ["magic", "", "vlm", "vlm:", "sb3:", "oracle:x", "random:1"])
def test_a_name_that_is_no_agents_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        agent_by_name(name, tiny())
    assert str(raised.value) == f"agent {name!r} is not one of {NAMES}"


@pytest.mark.parametrize("name", ["openai:", "openai:model", "openai:m@http://user:pw@h/v1"])
def test_a_server_that_is_misnamed_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(ConfigurationError, match="an endpoint is") as raised:
        agent_by_name(name, tiny())
    assert "pw" not in str(raised.value)


def test_every_name_is_told_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert NAMES in told


@pytest.mark.parametrize("thought", ["label", "rationale", "annotations"])
def test_an_oracle_with_thoughts_plays_as_a_cold_start_learns_from_it(thought: str) -> None:
    agent = agent_by_name(f"oracle:{thought}", tiny(ZOOM), zoom=0.5, seed=3)
    same = OracleAgent.for_env(tiny(ZOOM), zoom=0.5, think=thought, seed=3)
    assert isinstance(agent, OracleAgent)
    assert vars(agent) == vars(same)
    with pytest.raises(ConfigurationError, match="oracle:aloud"):
        agent_by_name("oracle:aloud", tiny())
