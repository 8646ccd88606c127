"""Sampling parameters and legal ids: what is found again, and what is refused."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest

from agents.sampling import SamplingParameters, legal_ids
from agents.types import Action
from mimgenv.codec import default_codec
from mimgenv.turn_rules import TurnRules

CODEC = default_codec()
WALK = partial(TurnRules(CODEC, {}).turn, [(84.0, 84.0)], "text", turns=1, tokens=64, images=0)
SAID = CODEC.encode_turn("<think></think><answer>7</answer>")


@pytest.mark.parametrize(("temperature", "max_tokens"), [(-0.1, 8), (1.0, 0), (1.0, -1)])
def test_a_negative_temperature_and_an_empty_turn_are_refused(temperature: float, max_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"temperature {temperature} must be >= 0, max_tokens {max_tokens} >= 1"):
        SamplingParameters(temperature, max_tokens)


def test_temperature_zero_and_one_token_are_legal() -> None:
    assert SamplingParameters(0.0, 1) == SamplingParameters(temperature=0.0, max_tokens=1)


def test_the_legal_ids_of_an_action_are_those_of_its_walk_one_row_per_id() -> None:
    turn, legal = WALK(), legal_ids(Action(SAID, walk=WALK))
    assert legal.shape == (len(SAID), CODEC.vocab_size)
    for row, index in zip(legal, SAID, strict=True):
        np.testing.assert_array_equal(row, turn.mask)
        turn.write(index)
    assert legal.sum(1).max() > 100
    assert np.flatnonzero(legal[-1]).tolist() == [CODEC.end_ids[0]]


def test_they_are_found_again_after_pickling() -> None:
    action = pickle.loads(pickle.dumps(Action(SAID, walk=WALK)))
    np.testing.assert_array_equal(legal_ids(action), legal_ids(Action(SAID, walk=WALK)))


def test_an_id_that_was_not_legal_is_refused() -> None:
    wrong = CODEC.encode("</answer>")[0]
    for place in (0, len(SAID) - 1):
        with pytest.raises(ValueError, match=f"id {wrong}, number {place + 1} of {len(SAID)}, was not legal"):
            legal_ids(Action((*SAID[:place], wrong, *SAID[place + 1 :]), walk=WALK))
    with pytest.raises(ValueError, match="was not legal"):
        legal_ids(Action((*SAID, SAID[-1]), walk=WALK))


def test_a_turn_that_was_drawn_freely_has_none() -> None:
    with pytest.raises(ValueError, match="drawn freely"):
        legal_ids(Action(SAID))


def test_actions_are_equal_whatever_their_walks() -> None:
    assert Action(SAID, walk=WALK) == Action(SAID)
