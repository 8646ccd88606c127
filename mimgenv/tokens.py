"""Turns written token by token: one token per step, and the episode as arrays of fixed shape.

Owns what stands between a policy of single tokens and the environment, which is played in whole turns: `TokenActions`
collects the tokens and says which may come next (turn_rules.py), `FixedArrays` shows the episode as arrays that never
change their shape. Both change only the form; what a turn does and what it is worth is the environment's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from mimgenv.bounded_turn import Ids, Mask
from mimgenv.env import MAX_SIDE, MultiImageEnv
from mimgenv.errors import ConfigurationError
from mimgenv.grammar import TurnLimits
from mimgenv.tools import resize
from mimgenv.turn_rules import LIMITS, OpenTurn, TurnRules
from mimgenv.types import Image, Observation


class TokenActions(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """One token per step; at the end-of-turn token, or at the longest turn, the environment plays the turn.

    The masks, `action_masks()` and `info["action_mask"]`, hold what may come next so that the turn parses, can be
    carried out (but for a box that is inverted or empty), fits into the tokens left, and, where it calls a tool, leaves
    a turn and tokens for an answer; they are never empty. Free text may be cut into tokens in any way; text that the
    grammar forces, only as the codec itself writes it. A token outside the mask is no error: it is written like any
    other, the masks then allow every id to the end of that turn, and the environment judges what was written.

    A step that ends no turn pays 0 and shows nothing new: no images, no text; its `info` is that of the last turn,
    without an error.

    Args:
        env: A `MultiImageEnv`, maybe within wrappers that leave actions and observations as they are.
        limits: The longest thought, label and text answer that the masks allow.
        max_turn_tokens: The longest turn, end-of-turn token included; bounds also what is written against the masks.
        skip_forced: Writes a token unasked where it is the only legal one. The turns are the same, in fewer steps.

    Raises:
        ConfigurationError: If the shortest answer does not fit into `max_turn_tokens`, or the environment's
            `max_tokens` do not hold one in each of its turns.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Any],
        limits: TurnLimits = LIMITS,
        max_turn_tokens: int = 256,
        skip_forced: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(self, limits=limits, max_turn_tokens=max_turn_tokens, skip_forced=skip_forced)
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, MultiImageEnv):
            raise ConfigurationError(f"{type(inner).__name__} is not a MultiImageEnv")
        self._inner = inner
        self.rules = TurnRules(inner.codec, inner.tools, inner.box_frame, limits, max_turn_tokens, skip_forced)
        if inner.max_tokens < inner.max_turns * self.rules.reserve:
            least = f"{inner.max_turns} turns of at least {self.rules.reserve} tokens"
            raise ConfigurationError(f"{least} do not fit into max_tokens {inner.max_tokens}")
        self.action_space = spaces.Discrete(inner.codec.vocab_size)
        self._open: OpenTurn | None = None
        self._info: dict[str, Any] = {}
        self.turns: list[Ids] = []
        """The ids of the turns played in this episode."""

    @property
    def turn(self) -> Ids:
        """The ids of the turn being written."""
        return tuple(self._open.ids) if self._open else ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode, as the environment does; `info` holds `action_mask` besides, (V,) int8."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.turns = []
        self._begin(info)
        return observation, self._shown(info)

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Writes one token, and plays the turn if that ended it.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
        """
        if self._open is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        self._open.write(int(action))
        if not self._open.complete:
            return {"images": (), "text": ""}, 0.0, False, False, self._shown(self._info | {"error": None})
        self.turns.append(self.turn)
        observation, reward, terminated, truncated, info = self.env.step(self.turns[-1])
        self._open = None
        if not (terminated or truncated):
            self._begin(info)
        return observation, float(reward), terminated, truncated, self._shown(info)

    def action_masks(self) -> Mask:
        """Which tokens are legal now, (V,) bool; all of them once the episode is over."""
        return self._open.mask.copy() if self._open else np.ones(self._inner.codec.vocab_size, np.bool_)

    def _begin(self, info: dict[str, Any]) -> None:
        self._info = info
        extents = [view.extent(self._inner.box_frame) for view in self._inner.views]
        self._open = self.rules.turn(extents, info["answer_kind"], **info["budget"])

    def _shown(self, info: dict[str, Any]) -> dict[str, Any]:
        new = {key: dict(value) if isinstance(value, dict) else value for key, value in info.items()}
        return new | {"action_mask": self.action_masks().astype(np.int8)}


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """The shapes of an episode as arrays, and how it is laid out in them.

    Attributes:
        images: How many image slots there are.
        height: Of a slot, in pixels.
        width: Of a slot, in pixels.
        text_tokens: Length of the text.
        turn_tokens: Length of the turn being written.
        vocab_size: Ids are below it; it fills what is empty.
    """

    images: int
    height: int
    width: int
    text_tokens: int
    turn_tokens: int
    vocab_size: int

    @property
    def space(self) -> spaces.Dict:
        """The space of `arrays`."""
        pixels = spaces.Box(0, 255, (self.height, self.width, 3), np.uint8)
        whole = {
            "sizes": (MAX_SIDE, 2 * self.images),
            "text": (self.vocab_size, self.text_tokens),
            "turn": (self.vocab_size, self.turn_tokens),
            "lengths": (max(self.images, self.text_tokens, self.turn_tokens), 3),
        }
        boxes: dict[str, spaces.Space[Any]] = {f"image_{number}": pixels for number in range(1, self.images + 1)}
        return spaces.Dict(
            boxes | {name: spaces.Box(0, high, (size,), np.int64) for name, (high, size) in whole.items()}
        )

    def slot(self, image: Image) -> Image:
        """An image as it stands in its slot: at the upper left, black around it; shrunk if it is larger."""
        height, width = image.shape[:2]
        scale = min(1.0, self.height / height, self.width / width)
        if scale < 1:
            image = resize(image, max(1, int(width * scale)), max(1, int(height * scale)))
        slot = np.zeros((self.height, self.width, 3), np.uint8)
        slot[: image.shape[0], : image.shape[1]] = image
        return slot

    def arrays(
        self, slots: Sequence[Image], sizes: Sequence[tuple[int, int]], text: Sequence[int], turn: Sequence[int]
    ) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one step, all of them new.

        Args:
            slots: The images so far, each from `slot`.
            sizes: Width and height of each as the environment shows it.
            text: The ids of all that was said so far; the last of them are shown.
            turn: The ids of the turn being written.
        """
        text = text[-self.text_tokens :]
        empty = np.zeros((self.height, self.width, 3), np.uint8)
        shown = [*slots, *[empty] * (self.images - len(slots))]
        flat = [side for size in sizes for side in size]
        return {f"image_{number}": slot.copy() for number, slot in enumerate(shown, 1)} | {
            "sizes": _filled(flat, 2 * self.images, 0),
            "text": _filled(_known(text, self.vocab_size), self.text_tokens, self.vocab_size),
            "turn": _filled(_known(turn, self.vocab_size), self.turn_tokens, self.vocab_size),
            "lengths": np.array([len(slots), len(text), len(turn)]),
        }


def _filled(values: Sequence[int], length: int, empty: int) -> npt.NDArray[np.int64]:
    array = np.full(length, empty, np.int64)
    array[: len(values)] = values
    return array


def _known(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Ids, with the size of the vocabulary in place of those out of range."""
    return [index if 0 <= index < vocab_size else vocab_size for index in ids]


class FixedArrays(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Shows the whole episode so far at every step, in arrays of fixed shape: for policies without a memory.

    The observation has an entry per image that an episode may hold, `image_1`, …, (H, W, 3) uint8, black where there
    is none yet; and 1-D int64: `sizes`, width and height of each image as the environment shows it; `text`, the ids of
    what the environment said and of the turns played, the last of them where they are too many; `turn`, the ids of
    the turn being written; `lengths`, how many images, ids of text and ids of the turn there are. The size of the
    vocabulary stands where there is no id, or one that is out of range.

    An image larger than its slot is shown smaller, in its own proportions; boxes remain in the environment's frame.

    Args:
        env: A `TokenActions`, maybe within wrappers that leave observations as they are.
        height: Of an image slot, in pixels.
        width: Of an image slot, in pixels.
        text_tokens: How many ids of text are shown.
    """

    def __init__(
        self, env: gym.Env[Observation, int], height: int = 84, width: int = 84, text_tokens: int = 256
    ) -> None:
        RecordConstructorArgs.__init__(self, height=height, width=width, text_tokens=text_tokens)
        super().__init__(env)
        self._tokens = _token_actions(env)
        inner = self._tokens.unwrapped
        assert isinstance(inner, MultiImageEnv)
        turn_tokens = min(self._tokens.rules.max_turn_tokens, inner.max_tokens)
        self.layout = ArrayLayout(inner.max_images, height, width, text_tokens, turn_tokens, inner.codec.vocab_size)
        self.observation_space = self.layout.space
        self._encode = inner.codec.encode
        self._slots: list[Image] = []
        self._sizes: list[tuple[int, int]] = []
        self._text: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Starts an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._slots, self._sizes, self._text = [], [], []
        return self._shown(observation), info

    def step(self, action: int) -> tuple[dict[str, npt.NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Writes one token."""
        played = len(self._tokens.turns)
        observation, reward, terminated, truncated, info = self.env.step(action)
        for turn in self._tokens.turns[played:]:
            self._text += turn
        return self._shown(observation), float(reward), terminated, truncated, info

    def action_masks(self) -> Mask:
        """Which tokens are legal now, (V,) bool."""
        return self._tokens.action_masks()

    def _shown(self, new: Observation) -> dict[str, npt.NDArray[Any]]:
        self._slots += [self.layout.slot(image) for image in new["images"]]
        self._sizes += [(image.shape[1], image.shape[0]) for image in new["images"]]
        self._text += self._encode(new["text"])
        return self.layout.arrays(self._slots, self._sizes, self._text, self._tokens.turn)


def _token_actions(env: gym.Env[Any, Any]) -> TokenActions:
    while not isinstance(env, TokenActions):
        if not isinstance(env, gym.Wrapper):
            raise ConfigurationError(f"there is no TokenActions in {env}")
        env = env.env
    return env
