"""Roles by their names: `openai:MODEL@http://host:port/v1`, agents that play here, and stand-ins that know the task.

A stand-in needs images that come from tasks. With `task` as proposer and critic and agents as solvers, curation runs
with no model at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from agents.api_agent import Endpoint, EndpointSettings, Pace
from agents.curation.plan import Named
from agents.curation.roles import AgentRole, EndpointRole, Request, Role, answer_text
from agents.curation.sets import ImageSets, TaskSets
from agents.types import Agent
from mimgenv import ENVIRONMENTS, load_task
from mimgenv.errors import ConfigurationError
from mimgenv.tasks.source import TaskSource

NAMES: Final = "task, oracle, blind:NAME, vlm:PATH or openai:MODEL@http://host:port/v1"
HABIT_TASKS: Final = 16
"""Tasks of each type that blind agents learn their habits from."""


def task_role(request: Request) -> str:
    """Knows the task that the images come from: proposes its question, solves it, and approves of nothing else."""
    task = load_task(request.task_id)
    truth = answer_text(task.truth)
    if request.job == "solve":
        return truth
    if request.job == "propose":
        said = json.loads(truth)
        told = {"answer": said["answer"]} if "answer" in said else {"grounding": said}
        return json.dumps({"question": task.question, "task_type": task.task_type, **told})
    right = request.proposal == truth and request.question == task.question
    return json.dumps({"answerable": right, "unique": right, "reason": task.rationale})


class Roles:
    """Opens roles; roles of one name are one role.

    Args:
        sets: Where the images come from.
        settings: Of an endpoint, from its name without `openai:`.
        per_minute: Most requests a minute to all endpoints together; 0 for no limit.
        seed: Of agents.
    """

    def __init__(
        self, sets: ImageSets, settings: Callable[[str], EndpointSettings], per_minute: int = 0, seed: int = 0
    ) -> None:
        self._sets, self._settings, self._seed = sets, settings, seed
        self._pace = Pace(per_minute)
        self._open: dict[str, Role] = {}

    def __call__(self, name: str) -> Named:
        """The role of a name, with the name.

        Raises:
            ConfigurationError: If there is no such role, or it knows tasks only and the images come from none.
        """
        if name not in self._open:
            self._open[name] = self._make(name)
        return name, self._open[name]

    def _make(self, name: str) -> Role:
        kind, _, rest = name.partition(":")
        if kind == "openai":
            return EndpointRole(Endpoint(self._settings(rest), self._pace))
        if kind == "vlm" and rest:
            from agents.vlm import VLMAgent

            # The shipped checkpoint knows only what it was trained on: its own environment's way of asking.
            known = ENVIRONMENTS["MultiImageTiny-v0"] if rest == "tiny" else {}
            asked = {name: known[name] for name in ("instructions", "max_pixels") if name in known}
            return AgentRole(VLMAgent.load(rest, temperature=0.0, max_tokens=256), **asked)
        if name not in ("task", "oracle") and kind != "blind":
            raise ConfigurationError(f"role {name!r} is not one of {NAMES}")
        if not isinstance(self._sets, TaskSets):
            raise ConfigurationError(f"role {name!r} knows tasks only, and these images come from none")
        return task_role if name == "task" else AgentRole(self._knowing(name, rest, self._sets.source))

    def _knowing(self, name: str, policy: str, source: TaskSource) -> Agent:
        from agents.blind import LEARNING, BlindAgent
        from agents.habits import learn_habits, training_tasks
        from agents.oracle import OracleAgent

        if name == "oracle":
            return OracleAgent()
        habits = learn_habits(training_tasks(source, HABIT_TASKS)) if policy in LEARNING else None
        return BlindAgent(policy, habits, seed=self._seed)
