"""rl: SFT and GRPO on trajectories, with action and trajectory masks; and papers as recipes made of such runs.

Training knows no rewards, boxes or task types. Recipes and their tables know task types, by name.

    >>> from rl import GRPOTrainer, TrainConfig
    >>> GRPOTrainer(TrainConfig(start="tiny", output="runs/mine")).train()

Names are exported lazily, so that reading a configuration needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_EXPORTS: Final = {
    "Batch": "rl.batch",
    "ColdStart": "rl.sft",
    "GRPOTrainer": "rl.trainer",
    "Objective": "rl.loss",
    "PRESETS": "rl.loss",
    "Policy": "rl.policy",
    "Result": "rl.trainer",
    "Sample": "rl.batch",
    "SampleGroup": "rl.collect",
    "Totals": "rl.loss",
    "TrainConfig": "rl.config",
    "TrainingStopped": "rl.errors",
    "Updater": "rl.update",
    "action_mask": "rl.masking",
    "group_advantages": "rl.advantage",
    "pack": "rl.batch",
    "policy_loss": "rl.loss",
    "read_config": "rl.settings",
    "sft_step": "rl.sft",
    "token_log_probs": "rl.log_probs",
    "token_weights": "rl.loss",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rl' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
