"""Checkpoints: a model directory anyone can load, plus what it takes to go on as if nothing had happened.

A checkpoint is written beside its final name and renamed when it is complete, so that a kill at any moment leaves the
last one intact. All randomness of a run is a function of (seed, phase, step): weights, optimiser and progress are all
there is to save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl

VERSION: Final = 1
KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: `sft` or `grpo`.
        step: Updates of this phase so far.
        stage: Stage of the cold start's curriculum.
        stage_step: Updates before that stage began.
        skills: Score by task type at the last probe of the cold start.
    """

    phase: str
    step: int
    stage: int = 0
    stage_step: int = 0
    skills: Mapping[str, float] = field(default_factory=dict)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("[0-9]-*")  # not those under way: their names begin with a dot
    return sorted((path for path in found if (path / "progress.json").is_file()), key=lambda path: path.name)


def save_checkpoint(folder: Path, qwen: QwenVL, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Writes `folder/checkpoints/<order>-<phase>-<step>` and drops all but the newest."""
    order = {"sft": 0, "grpo": 1}[progress.phase]
    final = folder / "checkpoints" / f"{order}-{progress.phase}-{progress.step:07d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_qwen_vl(qwen, str(partial))
    _save_optimizer(optimizer, partial / "optimizer.safetensors")
    (partial / "progress.json").write_text(json.dumps({"version": VERSION, **asdict(progress)}))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, device: str, dtype: str) -> tuple[QwenVL, Progress, dict[str, torch.Tensor]]:
    """The model, the progress, and the optimiser's tensors for `restore_optimizer`.

    Raises:
        ValueError: If it was written by another version.
    """
    state: dict[str, Any] = json.loads((path / "progress.json").read_text())
    version = state.pop("version", None)
    if version != VERSION:
        raise ValueError(f"{path} is of checkpoint version {version}, not {VERSION}")
    return load_qwen_vl(str(path), device, dtype), Progress(**state), load_file(path / "optimizer.safetensors")


def _save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state = optimizer.state_dict()["state"]
    tensors = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    save_file({name: value.detach().clone() for name, value in tensors.items()}, path)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Gives a fresh optimiser over the same parameters its state back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
