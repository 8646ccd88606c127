"""rl: SFT and GRPO on trajectories, with action and trajectory masks. Knows no rewards, boxes or task types.

    >>> from rl import GRPOTrainer, TrainConfig
    >>> GRPOTrainer(TrainConfig(start="tiny", output="runs/mine")).train()

Names are exported lazily, so that reading a configuration needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_EXPORTS: Final = {
    "ColdStart": "rl.sft",
    "GRPOTrainer": "rl.trainer",
    "Result": "rl.trainer",
    "TrainConfig": "rl.config",
    "read_config": "rl.config",
    "sft_step": "rl.sft",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rl' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
