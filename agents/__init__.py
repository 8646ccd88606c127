"""agents: plays mimgenv. An agent is a function of histories; `run_episodes` is the loop that asks it.

    >>> from agents import OracleAgent, evaluate_agent
    >>> report = evaluate_agent(OracleAgent(), "MultiImageQA-v0", episodes=200)

Names are exported lazily, so that the import is light: torch and transformers come in with `VLMAgent.load` only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_EXPORTS: Final = {
    "Action": "agents.types",
    "Agent": "agents.types",
    "BlindAgent": "agents.blind",
    "History": "agents.types",
    "Message": "agents.types",
    "OracleAgent": "agents.oracle",
    "RandomAgent": "agents.random_agent",
    "Report": "agents.report",
    "SB3Agent": "agents.sb3_agent",
    "Trajectory": "agents.types",
    "Turn": "agents.types",
    "VLMAgent": "agents.vlm",
    "evaluate_agent": "agents.evaluate",
    "run_episodes": "agents.rollout",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
