"""The policy: a model that learns, what of it is trained, its optimiser, its reference, and what is saved of it.

One policy serves one phase of a run. With adapters (rl/lora.py) the model under them stays as it is, and is the
reference once GRPO begins; without, all that is not frozen learns, and the reference is a copy from the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor

from agents.qwen_vl import QwenVL, load_qwen_vl
from agents.tiny_model import tiny_qwen_vl
from rl.batch import Batch
from rl.checkpoint import Progress, read_checkpoint, reading, write_checkpoint
from rl.config import SCRATCH, TrainConfig
from rl.distributed import ALONE, Replicas, World
from rl.errors import CheckpointError
from rl.log_probs import token_log_probs
from rl.lora import FILES as ADAPTER_FILES
from rl.lora import adapter_off, add_lora, has_lora, load_adapter, lora_settings, save_adapter, save_merged

COLD_START: Final = "cold_start"
"""The model that GRPO begins with, in the folder of the run."""
TINY: Final = 10_000_000
"""The vision tower of a model of fewer parameters learns unless told otherwise."""


class Policy:
    """A model that learns in one phase, on one process or on several.

    Args:
        qwen: The model, equal on all ranks.
        config: Of the run.
        phase: `sft` or `grpo`.
        world: The ranks that train it together.
    """

    def __init__(self, qwen: QwenVL, config: TrainConfig, phase: str, world: World = ALONE) -> None:
        self.qwen, self.config, self.world = qwen, config, world
        self._choose_trained()
        if config.gradient_checkpointing:
            model = qwen.model  # the old name warns where the new one is known
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        rate, decay = config.learning_rate, config.weight_decay
        if phase == "sft":
            rate, decay = config.sft_learning_rate, config.sft_weight_decay
        self._replicas = Replicas(qwen, world, config.parallel)
        self.trained = self._replicas.trained()
        self.optimizer = torch.optim.AdamW(self.trained, rate, betas=(0.9, 0.95), weight_decay=decay)
        self._reference: QwenVL | None = None

    def _choose_trained(self) -> None:
        config, model = self.config, self.qwen.model
        if not config.lora_rank:
            model.requires_grad_(True)
            vision = model.num_parameters() < TINY if config.train_vision is None else config.train_vision
            model.model.visual.requires_grad_(vision)
        elif not has_lora(self.qwen):
            add_lora(self.qwen, config.lora_rank, config.lora_alpha, seed=config.seed)

    @property
    def folder(self) -> Path:
        """Where this rank writes what it alone has to say."""
        alone = self.world.size == 1
        return Path(self.config.output) if alone else Path(self.config.output, f"rank-{self.world.rank}")

    @classmethod
    def start(cls, config: TrainConfig, phase: str, world: World = ALONE) -> Self:
        """A policy that has learned nothing yet."""
        return cls(_first_model(config), config, phase, world)

    @classmethod
    def resume(cls, config: TrainConfig, path: Path, world: World = ALONE) -> Self:
        """The policy of a checkpoint, as it was, on however many ranks.

        Raises:
            CheckpointError: If the checkpoint cannot be gone on from.
        """
        progress, tensors = read_checkpoint(path)
        if (path / ADAPTER_FILES[0]).is_file() != bool(config.lora_rank):
            held = "a whole model" if config.lora_rank else "adapters"
            raise CheckpointError(path, f"it holds {held}, but lora_rank is {config.lora_rank}")
        with reading(path):
            qwen = _under_adapter(config, progress.phase, path) if config.lora_rank else _load(str(path), config)
            if config.lora_rank:
                load_adapter(qwen, str(path))
                for name, value in lora_settings(qwen).items():
                    if value != getattr(config, name):
                        raise CheckpointError(path, f"{name} {getattr(config, name)}, but its adapters have {value}")
        policy = cls(qwen, config, progress.phase, world)
        policy._replicas.restore_optimizer(policy.optimizer, tensors, path)
        return policy

    def next_phase(self, phase: str) -> Self:
        """A policy of another phase that goes on from what was learned; adapters are merged, and new ones put on."""
        path = Path(self.config.output) / COLD_START
        self.save_whole(path)
        return type(self)(_load(str(path), self.config), self.config, phase, self.world)

    # ---------------------------------------------------------------- learning

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) and entropies (N,) of the trained tokens; see `token_log_probs`.

        With a gradient to be called in a pass of `backward`, without one inside `whole`.
        """
        again = self.config.gradient_checkpointing and torch.is_grad_enabled()
        self.qwen.model.train(again)  # in training mode alone are activations made again; there is no dropout
        try:
            return token_log_probs(self.qwen, batch, temperature)
        finally:
            self.qwen.model.eval()

    def backward(self, passes: Sequence[Callable[[], Tensor]]) -> float:
        """Fresh gradients: those of the losses that the passes of all ranks make.

        Returns:
            The sum of these losses.
        """
        self.optimizer.zero_grad(set_to_none=True)
        return self.world.total({"loss": self._replicas.backward(passes)})["loss"]

    def clip(self) -> float:
        """Clips the gradients to the run's `max_grad_norm`; returns their norm before that."""
        return self._replicas.clip(self.config.max_grad_norm)

    def advance(self) -> None:
        """One step of the optimiser along the gradients; they are forgotten."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.qwen.weights_changed()

    def whole(self) -> AbstractContextManager[QwenVL]:
        """Inside, this rank may sample from the model, and call it without gradients, at its own pace."""
        return self._replicas.whole()

    @contextmanager
    def reference(self) -> Iterator[QwenVL]:
        """The model that GRPO began with, to be called inside `whole`; no gradients are needed of it."""
        if self.config.lora_rank:
            with adapter_off(self.qwen):
                yield self.qwen
            return
        if self._reference is None:
            self._reference = _load(str(Path(self.config.output) / COLD_START), self.config)
            self._reference.model.requires_grad_(False)
            if self.world.size == 1 and not any(p.requires_grad for p in self.qwen.model.model.visual.parameters()):
                self._reference.see_with(self.qwen)
        yield self._reference

    # ---------------------------------------------------------------- saving

    def checkpoint(self, folder: Path, progress: Progress) -> None:
        """Saves all that it takes to go on: of a model with an adapter the adapter alone. All ranks take part."""
        adapters = bool(self.config.lora_rank)
        state, tensors = self._state(only_trained=adapters), self._replicas.optimizer_tensors(self.optimizer)
        save = save_adapter if adapters else save_merged
        if self.world.is_main:
            write_checkpoint(folder, progress, tensors, lambda path: save(self.qwen, str(path), state))
        self.world.barrier()

    def save_whole(self, path: Path) -> None:
        """Writes a model directory that transformers and vLLM load, complete or not at all. All ranks take part."""
        state = self._state()
        if self.world.is_main:
            partial = path.with_name(f".{path.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_merged(self.qwen, str(partial), state)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
        self.world.barrier()

    def _state(self, only_trained: bool = False) -> dict[str, Tensor] | None:
        """The weights of a model that is spread over ranks, on rank 0; None where every rank holds all of them."""
        return self._replicas.weights(only_trained) if self.world.size > 1 else None


def _load(path: str, config: TrainConfig) -> QwenVL:
    return load_qwen_vl(path, config.device, config.dtype, config.attention)


def _under_adapter(config: TrainConfig, phase: str, path: Path) -> QwenVL:
    """The model that the adapters of a checkpoint were put on."""
    if phase != "grpo":
        return _first_model(config)
    merged = Path(config.output) / COLD_START
    if not merged.is_dir():
        raise CheckpointError(path, f"{merged}, the model under its adapters, is gone")
    return _load(str(merged), config)


def _first_model(config: TrainConfig) -> QwenVL:
    if config.start != SCRATCH:
        return _load(config.start, config)
    qwen = tiny_qwen_vl(config.seed, attention=config.attention)
    qwen.model.to(config.device)
    for parameter in qwen.model.parameters():  # not the buffers, as where a checkpoint is loaded
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    return qwen
