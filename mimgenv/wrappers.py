"""Wrappers that change the form of actions or observations, never the content."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from mimgenv.env import CHARACTERS_PER_TOKEN, MultiImageEnv
from mimgenv.spaces import UnicodeText
from mimgenv.types import Observation


class TextActions(gym.Wrapper[Observation, str, Observation, Any], RecordConstructorArgs):
    """Actions are text: handed to the parser without tokenizing, charged a token per four characters."""

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        inner = env.unwrapped
        assert isinstance(inner, MultiImageEnv)
        self.action_space = UnicodeText(inner.max_tokens * CHARACTERS_PER_TOKEN)
