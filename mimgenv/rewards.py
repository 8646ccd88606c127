"""What a finished episode is worth: named parts as pure functions, and presets that weigh them.

To add a reward, write a function `Outcome -> float | None` (None: does not apply to this task) and pass
`reward={"name": (function, weight), …}` to the environment, or add a preset to `REWARDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from mimgenv.geometry import iou
from mimgenv.types import Answer, Grounding, TextAnswer

SUCCESS_IOU: Final = 0.5
"""A grounding answer is right when its IoU exceeds this (Acc@0.5, arXiv 2507.00748, section 4)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All a reward may look at.

    Attributes:
        truth: The task's.
        answer: The agent's, mapped to the original image; None if the episode ended without one.
        valid: Whether every turn parsed and could be carried out.
        tool_images: How many images tools returned.
    """

    truth: Answer
    answer: Answer | None
    valid: bool
    tool_images: int


Part: TypeAlias = Callable[[Outcome], float | None]
Reward: TypeAlias = Mapping[str, tuple[Part, float]]


def iou_part(outcome: Outcome) -> float | None:
    """IoU with the true box, 0 on a wrong image (arXiv 2507.00748, Eq. 3, r_acc). In [0, 1]; grounding only."""
    match outcome.truth, outcome.answer:
        case Grounding() as truth, Grounding() as answer:
            return iou(truth.box, answer.box) if truth.image == answer.image else 0.0
        case Grounding(), _:
            return 0.0
    return None


def image_part(outcome: Outcome) -> float | None:
    """1 if the answer names the right image, else 0; grounding only."""
    match outcome.truth, outcome.answer:
        case Grounding() as truth, Grounding() as answer:
            return float(truth.image == answer.image)
        case Grounding(), _:
            return 0.0
    return None


def answer_part(outcome: Outcome) -> float | None:
    """1 if the text equals the true one up to case, surrounding space and a final full stop; QA only."""
    match outcome.truth, outcome.answer:
        case TextAnswer(truth), TextAnswer(answer):
            return float(_normalise(truth) == _normalise(answer))
        case TextAnswer(), _:
            return 0.0
    return None


def _normalise(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def format_part(outcome: Outcome) -> float | None:
    """1 iff every turn parsed and the last one answered (arXiv 2507.00748, Eq. 3, r_format, over all turns)."""
    return float(outcome.valid and outcome.answer is not None)


def tool_gain_part(outcome: Outcome) -> float | None:
    """1 if a tool returned an image and the answer is right; the "tool-use reward gain" as DeepEyes pays it."""
    return float(outcome.tool_images > 0 and succeeded(outcome))


def accuracy_part(outcome: Outcome) -> float | None:
    """1 if the answer counts as right, else 0."""
    return float(succeeded(outcome))


def succeeded(outcome: Outcome) -> bool:
    """Whether the answer counts as right: IoU above 0.5 in the right image, or the right text."""
    return (iou_part(outcome) or 0.0) > SUCCESS_IOU or answer_part(outcome) == 1.0


_SCORE: Final[dict[str, tuple[Part, float]]] = {"iou": (iou_part, 1.0), "answer": (answer_part, 1.0)}

REWARDS: Final[dict[str, Reward]] = {
    "grounding": {**_SCORE, "format": (format_part, 0.5)},
    "image_aware_recon": {**_SCORE, "image": (image_part, 0.5), "format": (format_part, 0.5)},
    "tool_gain_recon": {**_SCORE, "format": (format_part, 0.2), "tool_gain": (tool_gain_part, 1.2)},
    "no_gain_recon": {**_SCORE, "format": (format_part, 0.2)},
    "accuracy": {"accuracy": (accuracy_part, 1.0)},
}
"""Presets. `*_recon` are reconstructions: MIRG-RL's dual reward (the weight of the image part is ours) and IMAgent's
gain for tool use (weights as in DeepEyes, `0.8 acc + 0.2 format + 1.2 tool`, with the answer at full weight), and the
same without the gain."""


def reward_parts(reward: Reward, outcome: Outcome) -> dict[str, float]:
    """The unweighted parts that apply to the task, by name."""
    values = {name: part(outcome) for name, (part, _) in reward.items()}
    return {name: value for name, value in values.items() if value is not None}


def total_reward(reward: Reward, parts: Mapping[str, float]) -> float:
    """The weighted sum of the parts."""
    return sum((reward[name][1] * value for name, value in parts.items()), 0.0)
