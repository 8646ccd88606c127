"""What fills a role: agents that play, endpoints that are asked, stand-ins that know the task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.api_agent import Endpoint, EndpointSettings
from agents.curation.cast import Roles, task_role
from agents.curation.roles import AgentRole, EndpointRole, Request
from agents.curation.sets import FolderSets, open_sets
from agents.types import History
from mimgenv import load_task
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import iou
from mimgenv.types import Grounding

LOCATE = load_task("rendered:tabletop/locate/any/train/3")
COUNTING = load_task("rendered:tiny/counting/any/train/3")


def request(task: Any = COUNTING, **values: Any) -> Request:
    grounding = isinstance(task.truth, Grounding)
    asked = Request("solve", "Solve.", task.question, task.images, True, 7, grounding, "", task.task_id)
    return replace(asked, **values)


class Says:
    """An agent that says one thing; keeps what it saw."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.seen: list[History] = []

    def act(self, histories: Sequence[History]) -> list[str]:
        self.seen += histories
        return [self.text for _ in histories]


def test_an_agent_solves_what_it_would_read_in_the_environment() -> None:
    agent = Says("<think>x</think><answer> 5 </answer>")
    assert json.loads(AgentRole(agent)(request())) == {"answer": "5"}
    (history,) = agent.seen
    assert history.message.text.endswith(COUNTING.question)
    assert all(np.array_equal(*pair) for pair in zip(history.message.images, COUNTING.images, strict=True))
    assert (history.task_id, history.budget.turns) == (COUNTING.task_id, 1)
    assert "tool_call" not in history.message.text


def test_images_that_are_not_shown_are_grey() -> None:
    agent = Says("<think>x</think><answer>5</answer>")
    AgentRole(agent)(request(shown=False))
    assert all(len(np.unique(image)) == 1 for image in agent.seen[0].message.images)


def test_a_box_comes_back_in_pixels_of_the_original() -> None:
    agent = Says('<think>x</think><answer>{"image": 1, "label": "mug", "bbox_2d": [250, 500, 500, 1000]}</answer>')
    said = json.loads(AgentRole(agent, box_frame="norm1000")(request(LOCATE)))
    height, width = LOCATE.images[0].shape[:2]
    assert said == {"image": 1, "bbox_2d": [width / 4, height / 2, width / 2, height], "label": "mug"}


@pytest.mark.parametrize("text", ["5", "", "<think>x</think>", "<think>x</think><answer></answer>"])
def test_a_turn_that_is_none_is_no_answer(text: str) -> None:
    assert AgentRole(Says(text))(request()) == ""
    assert AgentRole(Says(text))(request(job="judge")) == ""


def test_an_agent_that_proposes_or_judges_reads_the_instructions_and_is_taken_at_its_word() -> None:
    agent = Says('<think>x</think><answer>{"unique": true}</answer>')
    asked = request(job="judge", instructions="Judge it.", proposal='{"answer": "3"}')
    assert AgentRole(agent)(asked) == '{"unique": true}'
    text = agent.seen[0].message.text
    assert "Judge it." in text and COUNTING.question in text and 'Claimed answer: {"answer": "3"}' in text
    assert "<think>your reasoning</think>" not in text


def test_an_endpoint_gets_the_images_only_where_they_are_shown(server: Any) -> None:
    role = EndpointRole(Endpoint(EndpointSettings("m", server.url)))
    assert role(request()) == "hello"
    role(request(shown=False, seed=2**31 + 5))
    kinds = [[part["type"] for part in body["messages"][0]["content"]] for body in server.bodies]
    assert kinds[0].count("image_url") == len(COUNTING.images) and kinds[1] == ["text"]
    assert [body["seed"] for body in server.bodies] == [7, 5]
    assert COUNTING.question in server.bodies[1]["messages"][0]["content"][0]["text"]


# By name


def test_the_oracle_is_right_and_a_blind_agent_is_a_stand_in() -> None:
    roles = Roles(open_sets("rendered", 0, "tiny", ["counting"]), EndpointSettings.parse)
    name, oracle = roles("oracle")
    assert (name, json.loads(oracle(request()))) == ("oracle", {"answer": COUNTING.truth.text})  # type: ignore[union-attr]
    said = json.loads(oracle(request(LOCATE)))
    assert isinstance(LOCATE.truth, Grounding) and iou(said["bbox_2d"], LOCATE.truth.box) > 0.9
    assert json.loads(roles("blind:format")[1](request())) == {"answer": "?"}
    assert "answer" in json.loads(roles("blind:constant")[1](request()))


def test_one_name_is_one_role() -> None:
    roles = Roles(open_sets("rendered", 0), EndpointSettings.parse)
    assert roles("oracle")[1] is roles("oracle")[1]


@pytest.mark.parametrize("name", ["", "vlm:", "random", "openai:", "openai:model", "blind:chess"])
def test_a_name_that_is_no_role_is_refused(name: str) -> None:
    pytest.importorskip("openai")
    with pytest.raises(ConfigurationError):
        Roles(open_sets("rendered", 0), EndpointSettings.parse)(name)


@pytest.mark.parametrize("name", ["task", "oracle", "blind:copy"])
def test_who_knows_only_tasks_is_refused_for_other_images(name: str, tmp_path: Any) -> None:
    import PIL.Image

    for number in range(2):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ConfigurationError, match="come from none"):
        Roles(FolderSets(tmp_path), EndpointSettings.parse)(name)


@pytest.mark.parametrize("task", [LOCATE, COUNTING])
def test_the_task_proposes_its_question_and_approves_of_nothing_else(task: Any) -> None:
    proposed = json.loads(task_role(request(task, job="propose")))
    assert (proposed["question"], proposed["task_type"]) == (task.question, task.task_type)
    solved = task_role(request(task))
    assert json.loads(task_role(request(task, job="judge", proposal=solved)))["answerable"] is True
    for other in ({"proposal": '{"answer": "17"}'}, {"proposal": solved, "question": "Other?"}):
        assert json.loads(task_role(request(task, job="judge", **other)))["answerable"] is False


def test_how_a_solver_is_asked_can_be_chosen() -> None:
    agent = Says("<think>x</think><answer>5</answer>")
    AgentRole(agent, instructions="none", max_pixels=84 * 84)(request())
    (history,) = agent.seen
    assert history.message.text.startswith("Image-1: <image>")
    assert {image.shape for image in history.message.images} == {(84, 84, 3)}
