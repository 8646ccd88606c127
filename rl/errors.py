"""What stops a run: a checkpoint that cannot be gone on from, or a guard that found that to go on would be a waste."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from.

    Args:
        path: The checkpoint.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"checkpoint {path}: {reason}")
        self.path, self.reason = path, reason


class TrainingStopped(RuntimeError):
    """A guard found that to go on would be a waste.

    Args:
        rule: What must hold.
        **values: What was found instead, by name.
    """

    def __init__(self, rule: str, **values: object) -> None:
        found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        super().__init__(f"training stopped: {rule}; found {found}")
        self.rule, self.values = rule, values
