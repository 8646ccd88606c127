"""The environment: one multi-image task per episode, played in turns of token ids.

Owns the episode: what is shown, what a turn does, when it ends and what is paid. What a task is lies in tasks/ and
datasets/, what a turn means in parsing.py and tools.py, what it is worth in rewards.py. Knows no models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from mimgenv.codec import Codec, default_codec
from mimgenv.curriculum import Difficulty, Learner
from mimgenv.errors import TURN_ERRORS, ConfigurationError, TaskError, TurnError
from mimgenv.geometry import BOX_FRAMES, MAX_PIXELS, View, area, smart_resize
from mimgenv.parsing import ToolCall, parse_grounding, parse_text_answer, parse_turn
from mimgenv.preview import EpisodeLog, OpenEpisode, ShownEpisode, transcript
from mimgenv.prompts import INSTRUCTIONS, first_text, image_line
from mimgenv.rewards import REWARDS, Outcome, Reward, reward_parts, succeeded, total_reward
from mimgenv.spaces import ImageSpace, TokenTurn, UnicodeText
from mimgenv.tasks.registry import load_task, open_source
from mimgenv.tasks.source import TaskSource
from mimgenv.tools import TOOLS, Tool, ToolContext, call_tool, resize
from mimgenv.types import Answer, Grounding, Image, Observation, Task, TextAnswer

logger = logging.getLogger(__name__)

STOPS: Final = ("answered", "void", "turn_limit", "token_limit", "image_limit", "env_error")
"""Why an episode ended, in order of precedence."""

CHARACTERS_PER_TOKEN: Final = 4
"""What a turn given as text is charged, since it is not tokenized."""

MAX_SIDE: Final = 16_384
MAX_TEXT: Final = 16_384
IMAGES: Final = ImageSpace(MAX_SIDE)

Actions: TypeAlias = Sequence[int] | npt.NDArray[np.int64] | str


class MultiImageEnv(gym.Env[Observation, Actions]):
    """Multi-image question answering and grounding.

    Description:
        An episode shows several images and a question. The agent thinks, may call visual tools that hand it new
        images, and answers with text or with a box in one of the images.

    Observation:
        `{"images": tuple of (H, W, 3) uint8, "text": str}`: what is new this turn. `text` holds one `<image>` marker
        per image, in order, labelled `Image-1: <image>`; numbering goes on over the episode.

    Action:
        The token ids of one turn, decoded by the codec: `<think>…</think>`, then one
        `<tool_call>{"name": …, "arguments": {…}}</tool_call>` or `<answer>…</answer>`. A grounding answer is
        `{"image": k, "label": …, "bbox_2d": [x1, y1, x2, y2]}`. A `str` is handed to the parser as it is.
        A bad turn gets a coded error, whose text is the next observation; it counts, and the episode goes on.

    Reward:
        Paid at the end: the weighted sum of the named parts of the preset. `grounding`: IoU (0 on a wrong image) or
        exact match, plus 0.5 if every turn was well formed and the last one answered.

    Episode end:
        `terminated` on an answer that parses, `truncated` on a budget. `info["stop"]` is one of `STOPS`.

    Info:
        `reward_parts` (dict), `error` (code or None), `stop` (None until the end), `task_id`, `task_type`,
        `answer_kind` (what the question wants, of `mimgenv.grammar.ANSWERS`), `budget` (turns, tokens and images
        left); at the end `success` (bool).

    Arguments:
        source: None for rendered tasks, or `odinw:/path/to/folder`, `curated:/path/to/file.jsonl` or
            `selected:/path/to/tasks.jsonl`.
        tasks: Task types to serve, or a group of them: `grounding` or `qa`; None for all.
        difficulty: 1 to 5; None for the ordinary range; or a schedule, such as a `mimgenv.Curriculum`, which is told
            of each success. Rendered tasks only.
        split: `train`, `val`, `test` or `test_ood`: disjoint ranges of seeds. Rendered tasks only.
        codec: Between ids and text; None for the small tokenizer that ships with the package.
        box_frame: How boxes are written; a key of `mimgenv.geometry.BOX_FRAMES`.
        tools: Names in `mimgenv.tools.TOOLS`, or instances of `Tool`.
        reward: A preset in `mimgenv.rewards.REWARDS`, or a mapping of your own.
        instructions: `full`, `brief` or `none`.
        max_turns, max_tokens, max_images: Budgets of an episode: turns, tokens over all turns, images in all.
        world: Of rendered tasks: `tabletop`, `sprites` or `tiny`; None for the first two in turn.
        max_pixels: An image with more pixels is shown smaller, sides in multiples of 28, also one that a tool
            returns; the original stays behind it for the zoom tool.
        render_mode: `rgb_array`, `ansi` or `html`; see `render`.

    Versions:
        v0: first.
    """

    metadata = {"render_modes": ["rgb_array", "ansi", "html"], "render_fps": 1}

    def __init__(
        self,
        source: str | TaskSource | None = None,
        tasks: str | Sequence[str] | None = None,
        difficulty: Difficulty = None,
        split: str = "train",
        codec: Codec | None = None,
        box_frame: str = "pixel",
        tools: Sequence[str | Tool] = tuple(TOOLS),
        reward: str | Reward = "grounding",
        instructions: str = "full",
        max_turns: int = 6,
        max_tokens: int = 4096,
        max_images: int = 12,
        world: str | None = None,
        max_pixels: int = MAX_PIXELS,
        render_mode: str | None = None,
    ) -> None:
        for what, value, table in (
            ("box_frame", box_frame, BOX_FRAMES),
            ("instructions", instructions, INSTRUCTIONS),
            ("reward", reward if isinstance(reward, str) else "grounding", REWARDS),
            ("render_mode", render_mode, (None, *self.metadata["render_modes"])),
        ):
            if value not in table:
                raise ConfigurationError(f"{what} {value!r} is not one of {list(table)}")
        if min(max_turns, max_tokens, max_images) < 1 or max_pixels < 28 * 28:
            raise ConfigurationError(f"budgets {max_turns}, {max_tokens}, {max_images}, {max_pixels} are too small")
        self.source = open_source(source, world, tasks, split, difficulty)
        self.codec = codec or default_codec()
        self.box_frame, self.instructions, self.render_mode = box_frame, instructions, render_mode
        self.tools = _tool_table(tools)
        self.reward: Reward = REWARDS[reward] if isinstance(reward, str) else reward
        self.max_turns, self.max_tokens, self.max_images = max_turns, max_tokens, max_images
        self.max_pixels = max_pixels
        shown = {"images": spaces.Sequence(ImageSpace(MAX_SIDE)), "text": UnicodeText(MAX_TEXT)}
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(shown))
        self.action_space = TokenTurn(self.codec.vocab_size, max_tokens)
        self._task: Task | None = None
        self._from_source = True
        self._views: list[View] = []
        self._answer: Answer | None = None
        self._stop: str | None = None
        self._parts: tuple[str, ...] = ()
        self._log: EpisodeLog | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode of a seed; without one, of a seed drawn from `np_random`.

        Args:
            seed: Which task. Seeds 0 … N-1 of a finite source visit each of its N tasks once.
            options: `{"task_id": id}` plays that task instead.

        Raises:
            TaskError: If the task does not exist or has more images than `max_images`.
        """
        super().reset(seed=seed)
        self._task = None  # no step, should the task not come about
        self._from_source = not (options and "task_id" in options)
        if options and "task_id" in options:
            task = load_task(options["task_id"])
        else:
            task = self.source.task(int(self.np_random.integers(2**31)) if seed is None else seed)
        if len(task.images) > self.max_images:
            raise TaskError(f"{task.task_id} has {len(task.images)} images, max_images is {self.max_images}")
        self._task = task
        self._views = [self._show(image, number) for number, image in enumerate(task.images, 1)]
        self._turns = self._tokens = self._tool_images = 0
        self._valid, self._answer, self._stop = True, None, None
        self._parts = tuple(reward_parts(self.reward, Outcome(task.truth, None, True, 0)))
        text = first_text(task, self.instructions, self.tools, self.box_frame)
        self._log = EpisodeLog(task, self._views, text) if self.render_mode in ("ansi", "html") else None
        return {"images": tuple(view.pixels.copy() for view in self._views), "text": text}, self._info(None)

    def step(self, action: Actions) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Plays one turn. Nothing an agent can send makes it raise.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
        """
        if self._task is None or self._stop is not None:
            raise gym.error.ResetNeeded("call reset() before step()")
        new_view, error = self._play(self._task, action)
        self._valid &= error is None
        self._stop = self._stop or self._why_stopped(error)
        done = self._stop is not None
        observation = self._reply(new_view if not done else None, error)
        info = self._info(error)
        reward = total_reward(self.reward, info["reward_parts"]) if done else 0.0
        if self._log is not None:
            self._log.add(self._read_leniently(action), info["error"], observation)
        if done and self._from_source and isinstance(self.source, Learner):
            self.source.record(info["task_type"], info["success"])
        return observation, reward, self._stop == "answered", done and self._stop != "answered", info

    def render(self) -> Image | str | None:
        """The episode so far; None without a render mode, and before the first reset.

        Returns:
            `rgb_array`: all images side by side, (H, W, 3) uint8. `ansi`: what was said, error codes and at the end
            the reward parts, as text. `html`: the viewer's page; the truth is in it once the episode has ended.
        """
        if self.render_mode is None or self._task is None:
            return None
        if self.render_mode == "rgb_array":
            height = max(view.size[1] for view in self._views)
            sides = [((0, height - view.size[1]), (0, 4), (0, 0)) for view in self._views]
            padded = [np.pad(v.pixels, side, constant_values=255) for v, side in zip(self._views, sides, strict=True)]
            return np.concatenate(padded, axis=1)
        if self.render_mode == "ansi":
            return transcript(self.shown())
        from mimgenv.viewer import episodes_page  # a command of its own: only where asked for

        return episodes_page([self.shown()], "Episode")

    def shown(self) -> ShownEpisode | OpenEpisode:
        """The episode so far as the viewer takes it, with its truth. Not for agents.

        Raises:
            gymnasium.error.ResetNeeded: If there is no episode, or none is kept: it is in modes `ansi` and `html`.
        """
        if self._log is None or self._task is None:
            raise gym.error.ResetNeeded(f"no episode is kept: render_mode is {self.render_mode!r}; or call reset()")
        if self._stop is None:
            return self._log.waiting()
        info = self._info(None)
        return self._log.finished(info, total_reward(self.reward, info["reward_parts"]), self._answer, self.box_frame)

    @property
    def views(self) -> tuple[View, ...]:
        """All images of the episode so far, Image-1 first, with the region of the original that each shows."""
        return tuple(self._views)

    @property
    def prediction(self) -> Answer | None:
        """The answer of the episode, mapped to the original image; None until it is given."""
        return self._answer

    def _show(self, original: Image, number: int) -> View:
        height, width = original.shape[:2]
        return self._fit(View(original, number, (0.0, 0.0, float(width), float(height))))

    def _fit(self, view: View) -> View:
        """The view, smaller where it has more pixels than may be shown."""
        width, height = view.size
        if height * width <= self.max_pixels:
            return view
        rows, columns = smart_resize(height, width, min_pixels=28 * 28, max_pixels=self.max_pixels)
        return View(resize(view.pixels, columns, rows), view.image, view.region)

    def _play(self, task: Task, action: Actions) -> tuple[View | None, TurnError | None]:
        """Carries out a turn: a new view, or an answer kept in `_answer`, or an error."""
        self._turns += 1
        try:
            turn = parse_turn(self._text_of(action))
            if isinstance(turn, ToolCall):
                return self._call(task, turn), None
            self._answer = self._read_answer(task, turn.text)
            return None, None
        except TurnError as error:
            return None, error

    def _text_of(self, action: Actions) -> str:
        left = self.max_tokens - self._tokens
        length = -(-len(action) // CHARACTERS_PER_TOKEN) if isinstance(action, str) else len(action)
        self._tokens += min(length, left)
        if length > left:
            raise TurnError("too_long", f"{left} tokens were left.")
        text = action if isinstance(action, str) else self.codec.decode_turn([int(index) for index in action])
        if any(token in text for token in self.codec.special_tokens):  # spelled out, it is as forged as by its id
            raise TurnError("bad_token")
        return text

    def _read_leniently(self, action: Actions) -> str:
        """An action as text for people: ids that are no tokens, and the one that ends the turn, are passed over."""
        if isinstance(action, str):
            return action
        ids = [int(index) for index in action if 0 <= index < self.codec.vocab_size]
        return self.codec.decode(ids[:-1] if ids and ids[-1] in self.codec.end_ids else ids)

    def _call(self, task: Task, call: ToolCall) -> View | None:
        view = self._tool_view(task, call)
        full = len(self._views) >= self.max_images
        if view is None or full:  # made even where the budget is used up: a bad call is an error, not one too many
            self._stop = self._why_stopped(None) or ("image_limit" if full else "env_error")
            return None
        return view

    def _tool_view(self, task: Task, call: ToolCall) -> View | None:
        """What a tool returns; None if it fails: a tool is users' code, its crash ends this episode, not the run."""
        context = ToolContext(tuple(self._views), task.images, self.box_frame, self.max_pixels)
        try:
            view = call_tool(self.tools, context, call.name, dict(call.arguments))
            if not isinstance(view, View) or not IMAGES.contains(view.pixels):
                raise TypeError(f"tool {call.name} returned no view of an image in {IMAGES}")
            return self._fit(view)
        except Exception as error:
            if isinstance(error, TurnError) and error.code in TURN_ERRORS:
                raise
            logger.exception("tool %s failed", call.name)
            return None

    def _read_answer(self, task: Task, text: str) -> Answer:
        if isinstance(task.truth, TextAnswer):
            return TextAnswer(parse_text_answer(text))
        written = parse_grounding(text)
        number = written.image if written.image is not None else task.named_image
        if number is None:
            raise TurnError("bad_answer", 'Name the image: "image".')
        view = ToolContext(self._views, task.images, self.box_frame).view(number)
        box = view.clip(written.box, self.box_frame)
        if area(box) <= 0:
            raise TurnError("bad_box")
        return Grounding(view.image, written.label, view.to_original(box, self.box_frame))

    def _why_stopped(self, error: TurnError | None) -> str | None:
        if self._answer is not None:
            return "answered"
        out_of_turns, out_of_tokens = self._turns >= self.max_turns, self._tokens >= self.max_tokens
        if error is not None and (out_of_turns or out_of_tokens):
            return "void"
        return "turn_limit" if out_of_turns else "token_limit" if out_of_tokens else None

    def _reply(self, new_view: View | None, error: TurnError | None) -> Observation:
        if new_view is not None:
            self._views.append(new_view)
            self._tool_images += 1
            return {"images": (new_view.pixels.copy(),), "text": image_line(len(self._views))}
        return {"images": (), "text": error.text if error is not None and self._stop is None else ""}

    def _info(self, error: TurnError | None) -> dict[str, Any]:
        task = self._task
        assert task is not None
        budget = {
            "turns": self.max_turns - self._turns,
            "tokens": self.max_tokens - self._tokens,
            "images": self.max_images - len(self._views),
        }
        info: dict[str, Any] = {"error": error.code if error else None, "stop": self._stop, "budget": budget}
        kind = "grounding" if isinstance(task.truth, Grounding) else "text"
        info |= {"task_id": task.task_id, "task_type": task.task_type, "answer_kind": kind}
        if self._stop is None:
            return info | {"reward_parts": dict.fromkeys(self._parts, 0.0)}
        outcome = Outcome(task.truth, self._answer, self._valid, self._tool_images)
        return info | {"reward_parts": reward_parts(self.reward, outcome), "success": succeeded(outcome)}


def _tool_table(tools: Sequence[str | Tool]) -> dict[str, Tool]:
    table: dict[str, Tool] = {}
    for tool in tools:
        if isinstance(tool, str):
            if tool not in TOOLS:
                raise ConfigurationError(f"tool {tool!r} is not one of {list(TOOLS)}")
            tool = TOOLS[tool]()
        if tool.name in table:
            raise ConfigurationError(f"two tools are named {tool.name!r}")
        table[tool.name] = tool
    return table
