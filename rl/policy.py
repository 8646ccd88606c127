"""The policy: a model that learns, what of it is trained, its optimiser, its reference, and what is saved of it.

One policy serves one phase of a run. With adapters (rl/lora.py) the model under them stays as it is, and is the
reference once GRPO begins; without, all that is not frozen learns, and the reference is a copy from the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor

from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from agents.tiny_model import tiny_qwen_vl
from rl.batch import Batch
from rl.checkpoint import Progress, optimizer_tensors, read_checkpoint, reading, restore_optimizer, write_checkpoint
from rl.config import TrainConfig
from rl.log_probs import token_log_probs
from rl.lora import adapter_off, add_lora, has_lora, load_adapter, save_adapter, save_merged

COLD_START: Final = "cold_start"
"""The model that GRPO begins with, in the folder of the run."""
SCRATCH: Final = "scratch"
TINY: Final = ("scratch", "tiny")
"""Starts whose vision tower learns unless told otherwise."""


class Policy:
    """A model that learns in one phase.

    Args:
        qwen: The model.
        config: Of the run.
        phase: `sft` or `grpo`.
    """

    def __init__(self, qwen: QwenVL, config: TrainConfig, phase: str) -> None:
        self.qwen, self.config, self.phase = qwen, config, phase
        self._choose_trained()
        if config.gradient_checkpointing:
            qwen.model.gradient_checkpointing_enable()
        rate, decay = config.learning_rate, config.weight_decay
        if phase == "sft":
            rate, decay = config.sft_learning_rate, config.sft_weight_decay
        self.trained = [parameter for parameter in qwen.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, rate, betas=(0.9, 0.95), weight_decay=decay)
        self._reference: QwenVL | None = None

    def _choose_trained(self) -> None:
        config, model = self.config, self.qwen.model
        if not config.lora_rank:
            model.requires_grad_(True)
            vision = config.start in TINY if config.train_vision is None else config.train_vision
            model.model.visual.requires_grad_(vision)
        elif not has_lora(self.qwen):
            add_lora(self.qwen, config.lora_rank, config.lora_alpha, seed=config.seed)

    @classmethod
    def start(cls, config: TrainConfig, phase: str) -> Self:
        """A policy that has learned nothing yet."""
        return cls(_first_model(config), config, phase)

    @classmethod
    def resume(cls, config: TrainConfig, path: Path) -> Self:
        """The policy of a checkpoint, as it was.

        Raises:
            CheckpointError: If the checkpoint cannot be gone on from.
        """
        progress, tensors = read_checkpoint(path)
        with reading(path):
            qwen = _under_adapter(config, progress.phase) if config.lora_rank else _load(str(path), config)
            if config.lora_rank:
                load_adapter(qwen, str(path))
        policy = cls(qwen, config, progress.phase)
        restore_optimizer(policy.optimizer, tensors, path)
        return policy

    def next_phase(self, phase: str) -> Self:
        """A policy of another phase that goes on from what was learned; adapters are merged, and new ones put on."""
        self.save_whole(Path(self.config.output) / COLD_START)
        qwen = _under_adapter(self.config, phase) if self.config.lora_rank else self.qwen
        return type(self)(qwen, self.config, phase)

    # ---------------------------------------------------------------- learning

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) and entropies (N,) of the trained tokens; see `token_log_probs`."""
        again = self.config.gradient_checkpointing and torch.is_grad_enabled()
        self.qwen.model.train(again)  # in training mode alone are activations made again; there is no dropout
        try:
            return token_log_probs(self.qwen, batch, temperature)
        finally:
            self.qwen.model.eval()

    def clear(self) -> None:
        """Forgets the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Clips the gradients to the run's `max_grad_norm`; returns their norm before that."""
        return float(torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm))

    def advance(self) -> None:
        """One step of the optimiser along the gradients; they are forgotten."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.qwen.weights_changed()

    @contextmanager
    def reference(self) -> Iterator[QwenVL]:
        """The model that GRPO began with; no gradients are needed of it."""
        if self.config.lora_rank:
            with adapter_off(self.qwen):
                yield self.qwen
            return
        if self._reference is None:
            self._reference = _load(str(Path(self.config.output) / COLD_START), self.config)
            self._reference.model.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in self.qwen.model.model.visual.parameters()):
                self._reference.see_with(self.qwen)
        yield self._reference

    # ---------------------------------------------------------------- saving

    def checkpoint(self, folder: Path, progress: Progress) -> Path:
        """Saves all that it takes to go on: of a model with an adapter the adapter alone."""
        save = save_adapter if self.config.lora_rank else save_qwen_vl
        tensors = optimizer_tensors(self.optimizer)
        return write_checkpoint(folder, progress, tensors, lambda path: save(self.qwen, str(path)))

    def save_whole(self, path: Path) -> None:
        """Writes a model directory that transformers and vLLM load, complete or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (save_merged if self.config.lora_rank else save_qwen_vl)(self.qwen, str(partial))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)


def _load(path: str, config: TrainConfig) -> QwenVL:
    return load_qwen_vl(path, config.device, config.dtype, config.attention)


def _under_adapter(config: TrainConfig, phase: str) -> QwenVL:
    """The model that the adapters of a phase are put on."""
    merged = Path(config.output) / COLD_START
    return _load(str(merged), config) if phase == "grpo" and merged.is_dir() else _first_model(config)


def _first_model(config: TrainConfig) -> QwenVL:
    if config.start != SCRATCH:
        return _load(config.start, config)
    qwen = tiny_qwen_vl(config.seed)
    qwen.model.to(config.device)
    for parameter in qwen.model.parameters():  # not the buffers, as where a checkpoint is loaded
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    return qwen
