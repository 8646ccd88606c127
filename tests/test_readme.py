"""The README says what is true: its examples run, and its commands name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mimgenv.geometry import View
from mimgenv.scenes.flat import Flat
from mimgenv.tasks.draft import Draft, draw_count, draw_kinds, finish
from mimgenv.tasks.program import Find
from mimgenv.types import Grounding

README = Path(__file__).parents[1] / "README.md"
PYTHON = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """What the examples define, run in the order of the page with the names their text mentions."""
    names: dict[str, Any] = {"View": View, "Draft": Draft, "Find": Find}
    names |= {"draw_kinds": draw_kinds, "draw_count": draw_count}
    for block in PYTHON:
        exec(block, names)
    return names


def test_the_readme_has_the_examples_it_is_meant_to_have() -> None:
    assert len(PYTHON) == 4


def test_the_screen_of_api_plays_an_episode_and_the_shipped_model(written: dict[str, Any]) -> None:
    assert written["terminated"]
    assert len(written["trajectories"]) == 8
    assert all(trajectory.stop == "answered" for trajectory in written["trajectories"])


def test_the_task_type_of_the_readme_finds_the_red_object(written: dict[str, Any]) -> None:
    world, rng = Flat(), np.random.default_rng(0)
    drafts = (written["find_the_red_one"](world, rng, None) for _ in range(100))
    draft = next(d for d in drafts if any(thing.kind.colour == "red" for thing in d.scenes[0].things))
    truth = finish(draft, world, "made:1", "red").truth
    assert isinstance(truth, Grounding)
    assert truth.label.startswith("red ")


def test_the_tool_of_the_readme_shows_an_image_without_colours(written: dict[str, Any]) -> None:
    env: gym.Env[Any, Any] = written["env"]
    env.reset(seed=0)
    call = '<think>?</think><tool_call>{"name": "grey", "arguments": {"image": 1}}</tool_call>'
    image = env.step(call)[0]["images"][0]
    assert (image == image[..., :1]).all()


def test_both_commands_install_into_an_environment_of_their_own_and_run() -> None:
    commands = re.findall(r"<!-- (\w+)-command -->\n```bash\n(.*?)\n```", README.read_text("utf-8"), re.DOTALL)
    assert [name for name, _ in commands] == ["train", "test"]
    for (_, command), module in zip(commands, ("rl.train", "pytest"), strict=True):
        assert command.startswith("python3 -m venv ")
        assert command.endswith(f"-m {module}")
