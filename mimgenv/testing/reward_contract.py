"""What every reward promises: named parts that are pure, finite and bounded, and no less for a better answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Final

from mimgenv.rewards import REWARDS, Outcome, Reward, reward_parts, total_reward
from mimgenv.types import Answer, Grounding, TextAnswer

TRUTHS: Final[tuple[Answer, ...]] = (
    Grounding(2, "mug", (10.0, 20.0, 50.0, 60.0)),
    Grounding(1, "red cube", (0.0, 0.0, 1.0, 1.0)),
    TextAnswer("3"),
    TextAnswer("B"),
)

TOOL_IMAGES: Final = (0, 1, 5)


def check_reward(reward: str | Reward) -> None:
    """Pays outcomes of every kind and asserts the rules of a reward.

    Args:
        reward: A preset in `mimgenv.rewards.REWARDS`, or a mapping from names to (part, weight).

    Raises:
        AssertionError: If a rule is broken; the message states it.
    """
    reward = REWARDS[reward] if isinstance(reward, str) else reward
    _is_a_table(reward)
    for truth in TRUTHS:
        _check_parts(reward, truth)
        for valid, tool_images in product((True, False), TOOL_IMAGES):
            _check_order(reward, truth, valid, tool_images)
        _check_tools_alone(reward, truth)


def _is_a_table(reward: Reward) -> None:
    assert reward, "a reward has at least one part"
    for name, (part, weight) in reward.items():
        assert isinstance(name, str) and name.strip(), f"a part has a name: {name!r}"
        assert callable(part), f"part {name} is a function of the outcome: {part!r}"
        assert math.isfinite(weight), f"part {name} has a finite weight: {weight}"


def answers(truth: Answer) -> tuple[Answer, ...]:
    """Answers to a truth, the best first: each is right in no way in which the one before it is not."""
    if isinstance(truth, TextAnswer):
        return truth, TextAnswer(f"not {truth.text}")
    x1, y1, x2, y2 = truth.box
    shares = (1.0, 0.9, 0.6, 0.4, 0.1, 0.0)
    inner = [Grounding(truth.image, truth.label, (x1, y1, x2, y1 + share * (y2 - y1))) for share in shares]
    away = (x2 + 5.0, y2 + 5.0, x2 + 9.0, y2 + 9.0)
    return (*inner, Grounding(truth.image, truth.label, away), Grounding(truth.image + 1, truth.label, truth.box))


def _outcomes(truth: Answer) -> Iterator[Outcome]:
    other = TextAnswer("3") if isinstance(truth, Grounding) else Grounding(1, "mug", (0.0, 0.0, 9.0, 9.0))
    for answer, valid, tool_images in product((*answers(truth), other, None), (True, False), TOOL_IMAGES):
        yield Outcome(truth, answer, valid, tool_images)


def _check_parts(reward: Reward, truth: Answer) -> None:
    forth = [reward_parts(reward, outcome) for outcome in _outcomes(truth)]
    back = [reward_parts(reward, outcome) for outcome in reversed([*_outcomes(truth)])][::-1]
    for outcome, parts, again in zip(_outcomes(truth), forth, back, strict=True):
        for name, value in parts.items():
            fits = isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1
            assert fits, f"part {name} is None or in [-1, 1], its weight scales: {value!r} for {outcome}"
        assert repr(parts) == repr(again), f"a part is a pure function of the outcome: {parts}, then {again}, {outcome}"
        same = parts.keys() == forth[0].keys()
        assert same, f"the truth alone decides which parts apply: {[*parts]} for {outcome}, {[*forth[0]]} before"


def _check_order(reward: Reward, truth: Answer, valid: bool, tool_images: int) -> None:
    better = math.inf
    for answer in answers(truth):
        outcome = Outcome(truth, answer, valid, tool_images)
        paid = _total(reward, outcome)
        assert paid <= better, f"a better answer never earns less: {paid}, not at most {better}, for {outcome}"
        better = paid
    silent = _total(reward, Outcome(truth, None, valid, tool_images))
    right = _total(reward, Outcome(truth, truth, valid, tool_images))
    assert silent <= right, f"no answer never earns more than the right one: {silent}, {right} for {truth}"


def _check_tools_alone(reward: Reward, truth: Answer) -> None:
    for answer in (answers(truth)[-1], None):
        none, *some = (_total(reward, Outcome(truth, answer, True, tool_images)) for tool_images in TOOL_IMAGES)
        assert max(some) <= none, f"tools alone earn nothing: {some}, not at most {none}, for {answer}"


def _total(reward: Reward, outcome: Outcome) -> float:
    return total_reward(reward, reward_parts(reward, outcome))
