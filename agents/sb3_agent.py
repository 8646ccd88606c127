"""The agent that plays a policy of single tokens, and what it must know of how that was trained.

Owns the vocabulary such a policy writes with, the settings that lie beside its weights, and the way from a history to
the arrays that it was trained on. What may be written comes from mimgenv/turn_rules.py. Trains nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models

from agents.rollout import open_env
from agents.types import Action, History
from mimgenv.codec import END_TOKENS, Codec
from mimgenv.errors import ConfigurationError
from mimgenv.geometry import View
from mimgenv.grammar import TurnLimits
from mimgenv.tokens import ArrayLayout
from mimgenv.turn_rules import OpenTurn, TurnRules
from mimgenv.types import Image

LIMITS: Final = TurnLimits(thought=0, label=1, text=1)
"""No thought and a label of one character: what is left to decide is where."""
MAX_TURN_TOKENS: Final = 16
TEXT_TOKENS: Final = 32
LABEL: Final = "?"
SURVEYED: Final = 200
"""Training tasks from whose questions the words of the vocabulary are taken."""


def codec_of_pieces(pieces: Sequence[str]) -> Codec:
    """A codec with one id for each piece of text and one that ends a turn; other text has no ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([END_TOKENS[0]])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    return Codec(tokenizer)


def answer_pieces(images: int, side: int, step: int) -> list[str]:
    """The pieces of a grounding answer, whole phrases, so that turns are short; coordinates are multiples of `step`.

    Args:
        images: The most images of an episode.
        side: The longest side of an image, in pixels.
        step: Between coordinates, in pixels.
    """
    numbers = range(0, side + 1, step)
    phrases = ["<think>", '</think><answer>{"image": ', *(f'{image}, "label": "' for image in range(1, images + 1))]
    phrases += [LABEL, '", "bbox_2d": [', *(f"{number}, " for number in numbers)]
    return phrases + [f"{number}]}}</answer>" for number in numbers]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a policy was trained on: all that is needed to show it the same arrays again.

    Attributes:
        algorithm: A key of `ALGORITHMS`.
        env: The id.
        arguments: For `gym.make`, besides the codec.
        pieces: The vocabulary.
        box_frame: How boxes are written.
        layout: The arrays.
    """

    algorithm: str
    env: str
    arguments: dict[str, Any]
    pieces: tuple[str, ...]
    box_frame: str
    layout: ArrayLayout

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, path: Path) -> Settings:
        """From JSON."""
        read = json.loads(path.read_text())
        return cls(**read | {"pieces": tuple(read["pieces"]), "layout": ArrayLayout(**read["layout"])})


def survey(algorithm: str, env_id: str, arguments: dict[str, Any], step: int) -> Settings:
    """The settings for an environment, from a look at its first tasks: sizes, numbers of images, words.

    Args:
        algorithm: A key of `ALGORITHMS`.
        env_id: Of a `MultiImageEnv`.
        arguments: For `gym.make`. A policy answers in its first turn, without tools.
        step: Between coordinates, in pixels.

    Raises:
        ConfigurationError: If the id is of another kind of environment, or a task wants an answer other than a box.
    """
    arguments = dict[str, Any](max_turns=1, tools=()) | arguments
    env = open_env(env_id, arguments)
    words, images, width, height = set[str](), 0, 0, 0
    for seed in range(min(SURVEYED, len(env.source))):
        observation, info = env.reset(seed=seed)
        if info["answer_kind"] != "grounding":
            raise ConfigurationError(f"{info['task_type']} wants a text answer, these policies write boxes only")
        words |= set(re.findall(r"[\w-]{2,}", observation["text"]))  # one character would be a label
        images = max(images, len(env.views))
        width, height = (
            max(side, *(view.size[axis] for view in env.views)) for axis, side in enumerate((width, height))
        )
    pieces = (*answer_pieces(images, max(width, height), step), *sorted(words))
    layout = ArrayLayout(images, height, width, TEXT_TOKENS, MAX_TURN_TOKENS, codec_of_pieces(pieces).vocab_size)
    return Settings(algorithm, env_id, arguments | {"max_images": images}, pieces, env.box_frame, layout)


@dataclass(frozen=True, slots=True)
class _Writing:
    """A turn being written, and what its episode shows."""

    turn: OpenTurn
    slots: tuple[Image, ...]
    sizes: tuple[tuple[int, int], ...]
    text: tuple[int, ...]


class SB3Agent:
    """Plays a trained policy, always the likeliest token; sees what `FixedArrays` shows.

    Args:
        settings: What it was trained on.
        model: A Stable-Baselines3 model.
    """

    def __init__(self, settings: Settings, model: Any) -> None:
        self.settings, self.model = settings, model
        self.codec = codec_of_pieces(settings.pieces)
        self._rules = TurnRules(self.codec, {}, settings.box_frame, LIMITS, MAX_TURN_TOKENS, skip_forced=True)

    @classmethod
    def load(cls, folder: str | Path) -> SB3Agent:
        """From what `train` has written."""
        from agents.sb3_network import ALGORITHMS

        settings = Settings.read(Path(folder, "settings.json"))
        return cls(settings, ALGORITHMS[settings.algorithm].load(Path(folder, "model.zip"), device="cpu"))

    def act(self, histories: Sequence[History]) -> list[Action]:
        """The next turn of each episode, token by token, all episodes together.

        Raises:
            ConfigurationError: If an episode has more images than the policy can see.
        """
        writings = [self._begin(history) for history in histories]
        while waiting := [writing for writing in writings if not writing.turn.complete]:
            for writing, index in zip(waiting, self._choose(waiting), strict=True):
                writing.turn.write(int(index))
        return [self._action(writing.turn) for writing in writings]

    def _begin(self, history: History) -> _Writing:
        messages = [*(turn.message for turn in history.turns), history.message]
        images, layout = [image for message in messages for image in message.images], self.settings.layout
        if len(images) > layout.images:
            raise ConfigurationError(f"{len(images)} images, the policy was trained on {layout.images}")
        extents = [View(image, 1, (0, 0, 1, 1)).extent(self.settings.box_frame) for image in images]
        said = [index for turn in history.turns for index in (*self.codec.encode(turn.message.text), *turn.action.ids)]
        return _Writing(
            turn=self._rules.turn(extents, "grounding", **asdict(history.budget)),
            slots=tuple(layout.slot(image) for image in images),
            sizes=tuple((image.shape[1], image.shape[0]) for image in images),
            text=(*said, *self.codec.encode(history.message.text)),
        )

    def arrays(self, writing: _Writing) -> dict[str, npt.NDArray[Any]]:
        """What `FixedArrays` shows at this place."""
        return self.settings.layout.arrays(writing.slots, writing.sizes, writing.text, writing.turn.ids)

    def _choose(self, writings: Sequence[_Writing]) -> npt.NDArray[np.int64]:
        shown = [self.arrays(writing) for writing in writings]
        batch = {key: np.stack([arrays[key] for arrays in shown]) for key in shown[0]}
        masks = {"action_masks": np.stack([writing.turn.mask for writing in writings])}
        chosen, _ = self.model.predict(
            batch, deterministic=True, **masks if self.settings.algorithm == "masked" else {}
        )
        return np.asarray(chosen)

    def _action(self, turn: OpenTurn) -> Action:
        return Action(tuple(turn.ids), finish_reason="stop" if turn.ids[-1] in self.codec.end_ids else "length")
