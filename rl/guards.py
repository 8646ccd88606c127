"""Guards: what stops a run that trains blind, drifts from its sampler, or breaks, before it wastes hours.

Each guard looks at a batch and raises `TrainingStopped` with the rule and the values that break it. When they are
asked is the trainer's business. Knows batches, and the tags of a turn as text; no rewards, no boxes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.qwen_vl import QwenVL
from mimgenv.codec import Codec
from mimgenv.types import Image
from rl.batch import Batch
from rl.errors import TrainingStopped

GREY: Final = 127
LEAST_SIGHT: Final = 1e-6
"""Nats. Images that reach the language model move log-probs by far more; images that do not move them by nothing."""
MOST_DRIFT: Final = 0.1
"""Nats per token. Rounding in half precision costs a hundredth of it."""

MOST_IDLE: Final = 20
"""Steps of a policy that has nothing left to learn, or cannot."""

KINDS: Final = ("thought", "call", "answer", "other")
_KIND_OF_TAG: Final = {"think": "thought", "tool_call": "call", "answer": "answer"}
_TAG: Final = re.compile(r"<(/?)(think|tool_call|answer)>")


# ---------------------------------------------------------------- images


def check_counts(batch: Batch, qwen: QwenVL) -> None:
    """Every image has a run of placeholders as long as its grid is large, in the order of the images.

    Totals alone would not do: two images of different sizes may change places.

    Raises:
        TrainingStopped: Otherwise.
    """
    rule = "each image has as many placeholders in a row as its grid has places"
    grids = [rows * columns for rows, columns in map(qwen.grid, batch.images)]
    found = _runs(batch, qwen.chat.image_id)
    if len(found) != len(grids):
        raise TrainingStopped(rule, images=len(grids), runs_of_placeholders=len(found))
    for number, (run, grid) in enumerate(zip(found, grids), 1):
        if run != grid:
            raise TrainingStopped(rule, image=f"{number} of {len(grids)}", placeholders=run, places=grid)


def _runs(batch: Batch, image_id: int) -> list[int]:
    """Lengths of the runs of placeholders; a run ends where its row or branch does."""
    ids, segments = batch.ids.cpu().numpy(), batch.segments.cpu().numpy()
    rows = np.arange(len(ids))[:, None]
    owner = np.where(ids == image_id, 1 + segments + rows * (segments.max(initial=0) + 2), -1).ravel()
    edges = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
    return [int(end - begin) for begin, end in pairwise(edges) if owner[begin] >= 0]


def check_sight(log_probs: Callable[[Batch], Tensor], batch: Batch, least: float = LEAST_SIGHT) -> None:
    """The log-probs of the trained tokens depend on the images.

    Args:
        log_probs: Of a batch's trained tokens, (N,).
        batch: One without images or trained tokens shows nothing, and passes.
        least: Mean absolute difference, in nats, that grey images in place of the real ones must make.

    Raises:
        TrainingStopped: If it is smaller.
    """
    if not batch.images or not len(batch.targets):
        return
    grey = replace(batch, images=tuple(np.full_like(image, GREY) for image in batch.images))
    with torch.no_grad():
        difference = float((log_probs(batch) - log_probs(grey)).abs().mean())
    if not difference >= least:
        rule = f"grey images change the log-probs of trained tokens by {least} nats or more"
        raise TrainingStopped(rule, mean_difference=difference, images=len(batch.images), tokens=len(batch.targets))


# ---------------------------------------------------------------- drift between sampler and trainer


def token_kinds(ids: Sequence[int], codec: Codec) -> tuple[str, ...]:
    """What each token of one turn is a part of, one of `KINDS`: by the tags around its first character.

    Tags belong to what they enclose; what is never closed lasts to the next opening tag, or the end.
    """
    pieces = [codec.decode([index]) for index in ids]  # a tag is ASCII: it outlives letters cut in two
    kinds: list[str] = []
    text, kind = "".join(pieces), "other"
    for tag in _TAG.finditer(text):
        closing, name = tag.groups()
        kinds += [kind] * (tag.start() - len(kinds))
        kind = kind if closing else _KIND_OF_TAG[name]
        kinds += [kind] * (tag.end() - len(kinds))
        kind = "other" if closing else kind
    kinds += [kind] * (len(text) + 1 - len(kinds))
    begins = accumulate(map(len, pieces), initial=0)
    ends = codec.end_ids
    return tuple("other" if index in ends else kinds[begin] for index, begin in zip(ids, begins))


def batch_kinds(batch: Batch, codec: Codec) -> Tensor:
    """(N,) int64: the kind of each trained token, as an index into `KINDS`."""
    lengths = torch.unique_consecutive(batch.turns, return_counts=True)[1].tolist()
    turns = batch.targets.cpu().split(lengths)
    return torch.tensor([KINDS.index(kind) for ids in turns for kind in token_kinds(ids.tolist(), codec)]).long()


def check_drift(sampled: Tensor, recomputed: Tensor, kinds: Tensor, most: float = MOST_DRIFT) -> dict[str, float]:
    """The trainer finds the log-probs that the sampler reported, for every kind of token.

    Split by kind, because the few tokens of an answer would drown among those of a thought.

    Args:
        sampled: (N,), when the tokens were sampled.
        recomputed: (N,), with the same weights.
        kinds: (N,), indices into `KINDS`.
        most: KL of the trainer from the sampler, in nats per token, by the estimator k3 = r - 1 - log r with
            r = exp(recomputed - sampled).

    Returns:
        By kind that occurs, `sampler/kl/<kind>` and the mean absolute difference `sampler/difference/<kind>`.

    Raises:
        TrainingStopped: If the KL of a kind is greater, or no number.
    """
    log_ratio = (recomputed.detach().double() - sampled.double()).cpu()
    k3, kinds = torch.expm1(log_ratio) - log_ratio, kinds.cpu()
    metrics: dict[str, float] = {}
    for number, kind in enumerate(KINDS):
        own = kinds == number
        if not own.any():
            continue
        divergence, difference = float(k3[own].mean()), float(log_ratio[own].abs().mean())
        if not divergence <= most:
            rule = f"sampler and trainer agree on {kind} tokens to a KL of {most} nats"
            raise TrainingStopped(rule, kind=kind, KL=divergence, mean_difference=difference, tokens=int(own.sum()))
        metrics |= {f"sampler/kl/{kind}": divergence, f"sampler/difference/{kind}": difference}
    return metrics


# ---------------------------------------------------------------- steps that teach nothing


def check_busy(idle: int, metrics: Mapping[str, float], most: int = MOST_IDLE) -> None:
    """Now and then a step trains a token.

    Args:
        idle: Steps in a row that trained none.
        metrics: Of the last of them, with the mean reward and the stops.
        most: Steps to wait.

    Raises:
        TrainingStopped: If there were as many.
    """
    if idle >= most:
        stops = {name: round(value, 2) for name, value in metrics.items() if name.startswith("stop/")}
        rule = f"in {most} steps at least one group has rewards that vary (raise group_size or refill, or cold_start)"
        raise TrainingStopped(rule, steps=idle, mean_reward=metrics["reward/total"], **stops)


# ---------------------------------------------------------------- what is no number


def check_finite(values: Mapping[str, float], batches: Sequence[Batch], folder: Path, step: int) -> None:
    """Losses and gradient norms are numbers; else the batches of the update are kept for a closer look.

    Args:
        values: By name.
        batches: What the update was made of.
        folder: Of the run; the batches go to `nan/step-<step>` in it.
        step: Number of the update.

    Raises:
        TrainingStopped: If a value is infinite or no number; it names the folder for `load_batches`.
    """
    bad = {name: value for name, value in values.items() if not np.isfinite(value)}
    if bad:
        path = folder / "nan" / f"step-{step}"
        save_batches(path, batches, values, step)
        raise TrainingStopped("losses and gradient norms are finite", **bad, step=step, batches_kept_in=path)


def save_batches(path: Path, batches: Sequence[Batch], values: Mapping[str, float], step: int) -> None:
    """Writes `k.safetensors` and the images `k.npz` of each batch k, and `update.json` with values and ids of rows."""
    path.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(batches):
        columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: value for name, value in columns.items() if isinstance(value, Tensor)}
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path / _tensors(number))
        np.savez_compressed(path / _images(number), *batch.images)
    rows = [[row[kept >= 0].tolist() for row, kept in zip(batch.ids, batch.segments)] for batch in batches]
    # As text, since JSON has no word for what is no number.
    found = {"step": step, "values": {name: str(value) for name, value in values.items()}, "ids": rows}
    (path / "update.json").write_text(json.dumps(found))


def load_batches(path: Path) -> tuple[list[Batch], dict[str, float]]:
    """The batches and values that `save_batches` wrote, to run the update again."""
    found = json.loads((path / "update.json").read_text())
    batches = [_load_batch(path, number) for number in range(len(found["ids"]))]
    return batches, {name: float(value) for name, value in found["values"].items()}


def _load_batch(path: Path, number: int) -> Batch:
    with np.load(path / _images(number)) as stored:
        images: tuple[Image, ...] = tuple(stored[f"arr_{index}"] for index in range(len(stored.files)))
    columns: dict[str, Any] = dict.fromkeys(field.name for field in fields(Batch))
    return Batch(**columns | load_file(path / _tensors(number)) | {"images": images})


def _tensors(number: int) -> str:
    return f"{number}.safetensors"


def _images(number: int) -> str:
    return f"{number}.npz"
