"""A model behind a server: what is sent, what a failure means, and playing through it."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from agents.api_agent import APIAgent, Endpoint, EndpointError, EndpointSettings, Pace, data_url, user_message
from agents.rollout import run_episodes
from mimgenv import load_task
from mimgenv.errors import ConfigurationError

pytest.importorskip("openai")
spec = importlib.util.spec_from_file_location("chat_server", Path(__file__).with_name("chat_server.py"))
assert spec is not None and spec.loader is not None
chat_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_server)
Reply, busy = chat_server.Reply, chat_server.busy

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
BLUE = np.full((2, 2, 3), (0, 0, 255), np.uint8)


@pytest.fixture
def server() -> Iterator[Any]:
    with chat_server.serving() as chat:
        yield chat


def endpoint(server: Any, **settings: Any) -> Endpoint:
    return Endpoint(EndpointSettings("some-model", server.url, **settings))


def ask(server: Any, **settings: Any) -> str:
    return endpoint(server, **settings).ask([user_message("hi", [])])


def pixels_of(part: dict[str, Any]) -> Any:
    prefix, _, data = part["image_url"]["url"].partition(",")
    assert prefix == "data:image/png;base64"
    return np.array(PIL.Image.open(io.BytesIO(base64.b64decode(data))))


# What is sent


def test_images_stand_where_their_markers_stood() -> None:
    message = user_message("A <image> B <image>", [RED, BLUE])
    first, red, second, blue = message["content"]
    assert (first, second) == ({"type": "text", "text": "A "}, {"type": "text", "text": " B "})
    assert np.array_equal(pixels_of(red), RED) and np.array_equal(pixels_of(blue), BLUE)
    assert data_url(RED) == red["image_url"]["url"]


def test_as_many_images_as_markers_are_needed() -> None:
    with pytest.raises(ValueError, match="1 image markers, 2 images"):
        user_message("<image>", [RED, BLUE])


def test_a_request_holds_the_model_the_sampling_and_the_seed(server: Any) -> None:
    made = endpoint(server, temperature=0.25, max_tokens=77)
    assert made.ask([user_message("hi", [])], seed=5) == "hello"
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("some-model", 0.25, 77, 5)
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_the_key_comes_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    made = endpoint(server)
    made.ask([user_message("hi", [])])
    assert server.headers[0]["authorization"] == "Bearer sk-hidden"
    assert "sk-hidden" not in repr(vars(made)) + repr(made.settings)
    monkeypatch.delenv("OPENAI_API_KEY")
    ask(server)
    assert "sk-hidden" not in server.headers[1]["authorization"]


# Failures


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: Any, status: int) -> None:
    server.reply = lambda body, number: busy(status) if number < 3 else Reply("at last")
    assert ask(server, retries=3) == "at last"
    assert len(server.bodies) == 4


def test_after_all_retries_there_is_no_answer(server: Any) -> None:
    server.reply = lambda body, number: busy()
    with pytest.raises(EndpointError, match=r"some-model at http://127.*HTTP 429") as raised:
        ask(server, retries=2)
    assert (len(server.bodies), raised.value.hopeless) == (3, False)


@pytest.mark.parametrize(("status", "hopeless"), [(401, True), (403, True), (404, True), (400, False), (422, False)])
def test_what_asking_again_does_not_change_is_not_asked_again(server: Any, status: int, hopeless: bool) -> None:
    server.reply = lambda body, number: Reply(status=status)
    with pytest.raises(EndpointError) as raised:
        ask(server)
    assert (len(server.bodies), raised.value.hopeless) == (1, hopeless)
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{", b"[]", b"3", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe", b"null"]
)
def test_what_is_no_completion_is_no_answer(server: Any, body: bytes) -> None:
    server.reply = lambda *_: Reply(body=body)
    with pytest.raises(EndpointError):
        ask(server, retries=0)


def test_an_answer_without_text_is_empty(server: Any) -> None:
    server.reply = lambda *_: Reply(body=b'{"choices": [{"message": {"role": "assistant", "content": null}}]}')
    assert ask(server) == ""


def test_a_slow_server_runs_out_of_time(server: Any) -> None:
    server.reply = lambda body, number: Reply("late", delay=1.0)
    with pytest.raises(EndpointError, match=r"no answer within 0.05 s"):
        ask(server, timeout=0.05, retries=0)


def test_a_server_that_is_not_there_gives_no_answer() -> None:
    with pytest.raises(EndpointError, match="APIConnectionError"):
        Endpoint(EndpointSettings("m", "http://127.0.0.1:9/v1", retries=0)).ask([user_message("hi", [])])


# Settings and pace


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "model@",
        "@http://h/v1",
        "model@ftp://h/v1",
        "m@http:///v1",
        "m@http://user:pw@h/v1",
        "m@http://pw@h/v1",
        "m@http://h?key=3",
    ],
)
def test_a_name_that_is_no_endpoint_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        EndpointSettings.parse(text)
    assert "pw" not in str(raised.value) and "key" not in str(raised.value)


def test_an_endpoint_is_named_by_its_model_and_address() -> None:
    settings = EndpointSettings.parse("org/model:7b@http://h:8000/v1/", timeout=3)
    assert (settings.model, settings.base_url, settings.timeout) == ("org/model:7b", "http://h:8000/v1", 3)


@pytest.mark.parametrize("number", [{"timeout": 0}, {"retries": -1}, {"per_minute": -1}, {"max_tokens": 0}])
def test_a_number_that_cannot_work_is_refused(number: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot work"):
        EndpointSettings("m", "http://h/v1", **number)


def test_a_pace_lets_through_so_many_a_minute_and_no_more() -> None:
    clock = [100.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    pace = Pace(120, lambda: clock[0], sleep)
    for _ in range(4):
        pace.wait()
    assert waits == pytest.approx([0.5, 0.5, 0.5])
    clock[0] += 60  # a pause gives no right to a rush afterwards
    pace.wait()
    pace.wait()
    assert waits == pytest.approx([0.5, 0.5, 0.5, 0.5])


def test_retries_keep_the_pace_too(server: Any) -> None:
    server.reply = lambda body, number: busy() if number < 3 else Reply("done")
    assert ask(server, per_minute=600) == "done"
    gaps = np.diff(server.times)
    assert len(gaps) == 3 and (gaps > 0.08).all()


# Playing


def test_an_agent_plays_what_the_model_writes(server: Any) -> None:
    task = load_task("rendered:tiny/counting/any/test/1")
    for text, success in ((f"<think>a</think><answer>{task.truth.text}</answer>", True), ("no turn", False)):  # type: ignore[union-attr]
        server.reply = lambda *_, text=text: Reply(text)
        (played,) = run_episodes(APIAgent(endpoint(server)), "MultiImageQA-v0", [task.task_id], max_turns=1)
        assert played.success is success
    content = server.bodies[0]["messages"][0]["content"]
    shown = [pixels_of(part) for part in content if part["type"] == "image_url"]
    assert all(np.array_equal(*pair) for pair in zip(shown, task.images, strict=True))
    assert task.question in content[-1]["text"]


def test_answers_come_back_in_the_order_of_the_histories(server: Any) -> None:
    ids = [f"rendered:tiny/counting/any/test/{number}" for number in range(4)]
    truths = {load_task(task_id).images[0].tobytes(): load_task(task_id).truth.text for task_id in ids}  # type: ignore[union-attr]

    def solve(body: dict[str, Any], number: int) -> Any:
        first = next(part for part in body["messages"][0]["content"] if part["type"] == "image_url")
        text = f"<think>a</think><answer>{truths.get(pixels_of(first).tobytes())}</answer>"
        return Reply(text, delay=0.05 * (3 - number))

    server.reply = solve
    played = run_episodes(APIAgent(endpoint(server)), "MultiImageQA-v0", ids)
    assert [trajectory.success for trajectory in played] == [True] * 4


def test_a_later_turn_repeats_what_was_said_before(server: Any) -> None:
    call = '<think>look</think><tool_call>{"name": "visual_reflection", "arguments": {"image": 1}}</tool_call>'
    server.reply = lambda body, number: Reply(call if number == 0 else "<think>x</think><answer>3</answer>")
    agent = APIAgent(endpoint(server))
    arguments = {"max_turns": 2, "tools": ("visual_reflection",)}
    run_episodes(agent, "MultiImageQA-v0", ["rendered:tiny/locate/any/test/4"], **arguments)
    first, second = (body["messages"] for body in server.bodies)
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[:2] == [*first, {"role": "assistant", "content": call}]
    assert [part["type"] for part in second[2]["content"]] == ["text", "image_url"]


# ---------------------------------------------------------------- requests that fail, and seeds


ANSWER = "<think>x</think><answer>3</answer>"
IDS = [f"rendered:tiny/counting/any/test/{number}" for number in range(4)]


def test_a_request_that_fails_stops_all_unless_the_agent_is_told_what_to_do(server: Any) -> None:
    server.reply = lambda body, number: Reply(ANSWER, status=400 if number == 1 else 200)
    with pytest.raises(EndpointError, match="HTTP 400"):
        run_episodes(APIAgent(endpoint(server)), "MultiImageQA-v0", IDS)


def test_a_turn_whose_request_failed_is_empty_and_its_episode_is_not_asked_about_again(server: Any) -> None:
    server.reply = lambda body, number: Reply(ANSWER, status=400 if number == 1 else 200)
    agent, errors = APIAgent(endpoint(server)), []
    agent.on_error = errors.append
    played = run_episodes(agent, "MultiImageQA-v0", IDS, max_turns=3)
    assert [str(error) for error in errors] == [f"some-model at {server.url}: HTTP 400"]
    (lost,) = (trajectory for trajectory in played if trajectory.stop != "answered")
    assert [turn.error for turn in lost.turns] == ["bad_turn"] * 3
    assert len(server.bodies) == 4


def test_an_error_that_no_other_request_is_spared_stops_all(server: Any) -> None:
    server.reply = lambda body, number: Reply(ANSWER, status=403 if number == 1 else 200)
    agent, errors = APIAgent(endpoint(server)), []
    agent.on_error = errors.append
    with pytest.raises(EndpointError, match="HTTP 403"):
        run_episodes(agent, "MultiImageQA-v0", IDS)
    assert errors == []


def test_seeds_are_sent_only_where_the_agent_has_some_and_go_by_the_order_of_the_histories(server: Any) -> None:
    server.reply = lambda *_: Reply(ANSWER)
    sent = []
    for seed in (None, 5, 5, 6):
        server.bodies.clear()
        agent = APIAgent(endpoint(server))
        agent.seeds = None if seed is None else np.random.default_rng(seed)
        run_episodes(agent, "MultiImageQA-v0", IDS, max_turns=1)
        sent.append({json.dumps(body["messages"]): body.get("seed") for body in server.bodies})
    assert set(sent[0].values()) == {None}
    assert sent[1] == sent[2] and len(set(sent[1].values())) == 4
    assert not {*sent[1].values()} & {*sent[3].values()}
