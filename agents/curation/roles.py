"""Who takes part in curation: a proposer, solvers with and without images, a critic; each asked in one way.

Owns the request, and what fills a role: an endpoint, any agent, or any function from a request to a text. What is asked
lies in `prompts`, what the answers mean in `answers`, and who is asked when in `pipeline`.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import gymnasium as gym

from agents.api_agent import Endpoint, user_message
from agents.rollout import run_episodes
from agents.types import Agent, codec_of
from mimgenv.env import MultiImageEnv
from mimgenv.errors import TurnError
from mimgenv.geometry import MAX_PIXELS
from mimgenv.parsing import AnswerText, parse_turn
from mimgenv.prompts import image_line
from mimgenv.tasks.source import TaskSource
from mimgenv.types import Answer, Grounding, Image, Task, TextAnswer
from mimgenv.wrappers import BlankImages

Job: TypeAlias = Literal["propose", "solve", "judge"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a role is asked once.

    Attributes:
        job: Which role is asked.
        instructions: What to do, and the JSON to answer with.
        question: What the agent of the item will read, with options; empty for a proposer.
        images: Of the item, each (H, W, 3) uint8.
        shown: Whether the role may see them.
        seed: For whoever draws; another one for each request.
        grounding: Whether the question wants a box.
        proposal: What is claimed to be right, as JSON; for the critic only.
        task_id: Of the task whose images these are; empty where they are of none. For stand-ins that know tasks.
    """

    job: Job
    instructions: str
    question: str
    images: tuple[Image, ...]
    shown: bool
    seed: int
    grounding: bool = False
    proposal: str = ""
    task_id: str = ""

    @property
    def words(self) -> str:
        """All of it but the images."""
        told = [f"Question: {self.question}"] if self.question else []
        claimed = [f"Claimed answer: {self.proposal}"] if self.proposal else []
        return "\n".join([self.instructions, *told, *claimed])

    @property
    def text(self) -> str:
        """All of it, with one marker per image that is shown."""
        lines = [image_line(number) for number in range(1, len(self.images) + 1)] if self.shown else []
        return "\n".join([*lines, self.words])


class Role(Protocol):
    """Takes part in curation: a function from a request to the text of an answer. Threads may share it."""

    def __call__(self, request: Request) -> str:
        """The answer as written, JSON if all is well.

        Raises:
            EndpointError: If there is no answer now, but may be one later: nothing is held against the item.
        """
        ...


class EndpointRole:
    """A model behind a server.

    Args:
        endpoint: Shared by as many roles as one likes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def __call__(self, request: Request) -> str:
        """The model's answer."""
        message = user_message(request.text, request.images if request.shown else ())
        return self.endpoint.ask([message], request.seed % 2**31)


NO_TURN: Final = ""
"""What an agent role says where the agent's turn was none: no role accepts it as an answer."""


class AgentRole:
    """Any agent: it plays the request as an episode of one turn, without tools.

    A solver reads what it reads in the environment, and its box is mapped back to the original image; images that are
    not shown are grey. Asked to propose or to judge, it reads the instructions as a question with a text answer.

    Args:
        agent: Asked by one thread at a time.
        box_frame: How it writes boxes.
        instructions: What a solver is told beside the question: `full`, `brief` or `none`.
        max_pixels: Larger images are shown smaller.
    """

    def __init__(
        self, agent: Agent, box_frame: str = "pixel", instructions: str = "full", max_pixels: int = MAX_PIXELS
    ) -> None:
        self.agent, self.box_frame, self.instructions, self.max_pixels = agent, box_frame, instructions, max_pixels
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> str:
        """What the agent answered, as the JSON of a solver, or as it wrote it."""
        solves = request.job == "solve"
        codec = codec_of(self.agent)
        inner = MultiImageEnv(
            source=_Asked(_task(request)),
            tools=(),
            box_frame=self.box_frame,
            instructions=self.instructions if solves else "none",
            max_turns=1,
            max_images=len(request.images),
            max_pixels=self.max_pixels,
            codec=codec,
        )
        env: gym.Env[Any, Any] = inner if request.shown else BlankImages(inner)
        with self._lock:
            (played,) = run_episodes(self.agent, [env], [0])
        if solves:
            return NO_TURN if inner.prediction is None else answer_text(inner.prediction)
        try:
            turn = parse_turn(inner.codec.decode_turn(played.turns[0].action.ids))
        except TurnError:
            return NO_TURN
        return turn.text if isinstance(turn, AnswerText) else NO_TURN


def answer_text(answer: Answer) -> str:
    """The JSON of an answer as a solver writes it: boxes in pixels of the original."""
    if isinstance(answer, TextAnswer):
        return json.dumps({"answer": answer.text})
    return json.dumps({"image": answer.image, "bbox_2d": list(answer.box), "label": answer.label})


def _task(request: Request) -> Task:
    """The request as a task; its truth, which nobody is shown, only says what kind of answer is wanted."""
    unknown = Grounding(1, "unknown", (0.0, 0.0, 1.0, 1.0)) if request.grounding else TextAnswer("unknown")
    return Task(
        task_id=request.task_id,
        task_type="curation",
        images=request.images,
        question=request.question if request.job == "solve" else request.words,
        truth=unknown,
        rationale="",
        objects=((),) * len(request.images),
    )


class _Asked(TaskSource):
    """A source of one task."""

    task_types = ("curation",)

    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return 1

    def task(self, seed: int) -> Task:
        """The task."""
        return self._task
