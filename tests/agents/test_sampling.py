"""Sampling parameters: what is refused."""

from __future__ import annotations

import pytest

from agents.sampling import SamplingParameters


@pytest.mark.parametrize(("temperature", "max_tokens"), [(-0.1, 8), (1.0, 0), (1.0, -1)])
def test_a_negative_temperature_and_an_empty_turn_are_refused(temperature: float, max_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"temperature {temperature} must be >= 0, max_tokens {max_tokens} >= 1"):
        SamplingParameters(temperature, max_tokens)


def test_temperature_zero_and_one_token_are_legal() -> None:
    assert SamplingParameters(0.0, 1) == SamplingParameters(temperature=0.0, max_tokens=1)
