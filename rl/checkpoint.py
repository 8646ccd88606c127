"""Checkpoints: a model anyone can load, plus what it takes to go on as if nothing had happened.

A checkpoint is written beside its final name, forced to the disk and renamed when it is complete, so that a kill at any
moment leaves the last one intact. All randomness of a run is a function of (seed, phase, step): weights, optimiser and
progress are all there is to save. What is saved of the model is the caller's choice, all of it or an adapter; nothing
is known of models here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from rl.errors import CheckpointError

VERSION: Final = 2
KEPT: Final = 2
PROGRESS: Final = "progress.json"
OPTIMIZER: Final = "optimizer.safetensors"

Tensors = dict[str, torch.Tensor]

_NAME: Final = re.compile(r"[0-9]-[a-z]+-[0-9]{7}\+*")
_ORDER: Final = {"sft": 0, "grpo": 1}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: `sft` or `grpo`.
        step: Updates of this phase so far.
        stage: Stage of the cold start's curriculum.
        stage_step: Updates before that stage began.
        skills: Score by task type at the last probe of the cold start.
        tasks: Tasks that GRPO has taken from its stream so far.
    """

    phase: str
    step: int
    stage: int = 0
    stage_step: int = 0
    skills: Mapping[str, float] = field(default_factory=dict)
    tasks: int = 0


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in (folder / "checkpoints").glob("*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if (path / PROGRESS).is_file()), key=lambda path: path.name)


# ---------------------------------------------------------------- writing


def write_checkpoint(folder: Path, progress: Progress, tensors: Tensors, save_model: Callable[[Path], None]) -> Path:
    """Writes `folder/checkpoints/<order>-<phase>-<step>` and drops all but the newest.

    A step that was saved before gets a name of its own, with a `+`: nothing is taken away before its successor is
    complete.

    Args:
        folder: Of the run.
        progress: Where the run stands.
        tensors: Of the optimiser, from `optimizer_tensors`.
        save_model: Writes what is to be kept of the model into a directory.

    Returns:
        The checkpoint.
    """
    final = folder / "checkpoints" / f"{_ORDER[progress.phase]}-{progress.phase}-{progress.step:07d}"
    while final.exists():
        final = final.with_name(final.name + "+")
    for remains in final.parent.glob(".*.partial"):
        shutil.rmtree(remains)
    partial = _partial(final)
    partial.mkdir(parents=True)
    save_model(partial)
    save_file(tensors, partial / OPTIMIZER)
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)}
    state = {"version": VERSION, "files": sizes, "progress": asdict(progress)}
    (partial / PROGRESS).write_text(json.dumps(state, indent=1))
    _force_to_disk(partial)
    os.replace(partial, final)
    _sync(final.parent)
    for old in checkpoints(folder)[:-KEPT]:
        os.replace(old, _partial(old))  # at once: half a checkpoint must not look like one
        shutil.rmtree(_partial(old))
    return final


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The state of an optimiser and the sizes of its parameters, by `<kind>.<number of the parameter>.<name>`."""
    kind = type(optimizer).__name__
    tensors = {f"{kind}.sizes": _sizes(optimizer)}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{kind} keeps {name} as {type(value).__name__}; only tensors can be saved")
            tensors[f"{kind}.{index}.{name}"] = value.detach().contiguous().clone()
    return tensors


def _sizes(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    return torch.tensor([parameter.numel() for group in optimizer.param_groups for parameter in group["params"]])


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _force_to_disk(folder: Path) -> None:
    for path in (*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- reading


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside, with a file or in a library, is a `CheckpointError` of `path`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(path, f"{type(error).__name__}: {reason}") from error


def read_checkpoint(path: Path) -> tuple[Progress, Tensors]:
    """The progress, and the optimiser's tensors for `restore_optimizer`; all files are as long as they were written.

    Raises:
        CheckpointError: If it is none, of another version, or a file is missing, cut off or unreadable.
    """
    if not (path / PROGRESS).is_file():
        raise CheckpointError(path, f"no {PROGRESS}, so it is no checkpoint")
    with reading(path):
        text = (path / PROGRESS).read_text()
        try:
            state: dict[str, Any] = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise CheckpointError(path, f"{PROGRESS} is cut off or no checkpoint's: {error}") from error
        if state.get("version") != VERSION:
            raise CheckpointError(path, f"of checkpoint version {state.get('version')}, not {VERSION}")
        for name, size in state["files"].items():
            if not (path / name).is_file():
                raise CheckpointError(path, f"{name} is missing")
            if (found := (path / name).stat().st_size) != size:
                raise CheckpointError(path, f"{name} is of {found} bytes, {size} were written")
        return Progress(**state["progress"]), load_file(path / OPTIMIZER)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, path: Path | str = "of an optimiser") -> None:
    """Gives a fresh optimiser over the same parameters its state back, bit for bit.

    Args:
        optimizer: Of the same kind, over parameters of the same sizes in the same order.
        tensors: From `optimizer_tensors`.
        path: Of the checkpoint, for the error.

    Raises:
        CheckpointError: If they are of another kind of optimiser or of another model.
    """
    kind, own = type(optimizer).__name__, _sizes(optimizer)
    if f"{kind}.sizes" not in tensors:
        saved = sorted({key.partition(".")[0] for key in tensors})
        raise CheckpointError(path, f"the optimiser is {kind}, the saved one {', '.join(saved) or 'none'}")
    sizes = tensors[f"{kind}.sizes"]
    if not torch.equal(sizes, own):
        theirs, ours = (f"{int(some.sum())} numbers in {len(some)} parameters" for some in (sizes, own))
        raise CheckpointError(path, f"another model: it has {theirs}, this one {ours}, or in another order")
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        if key != f"{kind}.sizes":
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
