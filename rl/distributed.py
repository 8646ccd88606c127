"""Training on several processes started by `torchrun`: who does what, sums over all, and one model on all of them.

A process is a *rank*. Each plays its share of the tasks and trains on what it played. A loss is a sum with weights from
totals over all ranks, so gradients are summed over ranks, never averaged. Knows no batches and no losses: a pass is
any function that makes one. Nothing is home-made: DDP, FSDP2 and DTensor are torch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from agents.qwen_vl import QwenVL
from rl.checkpoint import Tensors, optimizer_tensors, restore_optimizer

KINDS: Final = ("ddp", "fsdp2")
TIMEOUT: Final = 1800.0
"""Seconds that a rank waits for the others: more than the longest that one of them plays alone."""

CPU: Final = torch.device("cpu")

T = TypeVar("T")
Pass = Callable[[], Tensor]
"""Makes a loss with a gradient; may say more to whoever wrote it."""


@dataclass(frozen=True, slots=True)
class World:
    """All ranks, as one of them sees them. The default is a process alone.

    Every method but `share` and `is_main` is to be called by all ranks, in the same order.

    Attributes:
        rank: Of this process, 0 to size - 1.
        size: How many there are.
        device: Of this rank.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @staticmethod
    @contextmanager
    def join(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[World]:
        """The world that `torchrun` started this process in, or one of its own.

        Where a rank fails or is killed, the others lose their connection or are stopped by `torchrun`, which says which
        one was first.

        Args:
            device: `cpu`, or `cuda` for this rank's own GPU.
            timeout: Seconds to wait for other ranks before giving up.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            yield World(device=torch.device(device))
            return
        own, backend = torch.device(device), "gloo"
        if own.type == "cuda":
            own, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(own)
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
        try:
            yield World(rank, size, own)
        except BaseException as error:
            error.add_note(
                f"This was rank {rank} of {size}. If it lost its connection or waited longer than {timeout:g} s, "
                "another rank stopped before it: see that rank's error and torchrun's summary."
            )
            raise  # without closing the group, which would wait for ranks that never come
        distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all ranks hold: contiguous, in order, of lengths that differ by 1 at most."""
        begin, end = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[begin:end]

    def gather(self, own: T) -> list[T]:
        """What every rank holds, by rank; it must pickle."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, own)
        return found

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks, in float64; ranks may lack names that others have."""
        every = self.gather(dict(values))
        names = dict.fromkeys(name for some in every for name in some)
        return {name: sum(some.get(name, 0.0) for some in every) for name in names}

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            distributed.barrier()


ALONE: Final = World()


class _Root(nn.Module):
    """What DDP and FSDP2 take for the model's forward: any pass through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, made: Pass) -> Tensor:
        return made()


class Replicas:
    """One model on all ranks: gradients are summed over them, and each steps its optimiser alike.

    With `ddp` every rank holds all of the model; with `fsdp2` a part of every layer, put together when it is needed.
    Vision tower, embeddings and output head are put together as one: a rank without images does not run the tower, so
    it cannot wait there for the others. Alone, the model stays as it is.

    Freeze, add adapters and load weights before; make the optimiser after, from `trained()`.

    Args:
        qwen: Equal on all ranks; its model is changed in place and must be called inside `backward` or `whole` only.
        world: Of this rank.
        kind: `ddp` or `fsdp2`.

    Raises:
        ValueError: If there is no such kind.
    """

    def __init__(self, qwen: QwenVL, world: World, kind: str = "ddp") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind}")
        self.qwen, self.world = qwen, world
        self._module: nn.Module = _Root(qwen.model)
        if world.size == 1:
            return
        qwen.model.get_input_embeddings().register_forward_hook(self._touch_vision)
        if kind == "ddp":
            self._module = DistributedDataParallel(self._module)
            return
        mesh = init_device_mesh(world.device.type, (world.size,))
        for layer in qwen.model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        root = fully_shard(self._module, mesh=mesh, reshard_after_forward=False)
        with torch.no_grad():  # FSDP takes what is run first for the root
            root(self._idle)
        root.reshard()  # an optimiser must be given the parts, not the whole

    def trained(self) -> list[nn.Parameter]:
        """What learns, for the optimiser."""
        return [parameter for parameter in self.qwen.model.parameters() if parameter.requires_grad]

    def backward(self, passes: Sequence[Pass]) -> float:
        """Adds the gradients of the losses of all ranks' passes, in as many rounds as the busiest rank has passes.

        A rank with fewer passes, or none, takes part with a loss of nothing. Ranks talk to each other about gradients
        in the last round only. With `fsdp2` a pass runs the model once: what is compared with (old or reference
        log-probs) is made before, inside `whole`.

        Args:
            passes: Of this rank.

        Returns:
            The sum of this rank's losses.
        """
        rounds = max(self.world.gather(len(passes)))
        total = 0.0
        for number in range(rounds):
            with self._talking(number == rounds - 1):
                loss = self._module(passes[number] if number < len(passes) else self._idle)
                (loss * self.world.size).backward()  # DDP and FSDP2 divide by it
            total += float(loss.detach())
        return total

    def clip(self, most: float) -> float:
        """Scales the gradients down to a global norm of `most`; returns their norm before that, equal on all ranks."""
        norm = nn.utils.clip_grad_norm_(self.trained(), most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @contextmanager
    def whole(self) -> Iterator[QwenVL]:
        """Inside, each rank holds the whole model and may call it as it likes, alone, without gradients."""
        shards = [module for module in self._module.modules() if isinstance(module, FSDPModule)]
        for shard in shards:
            shard.set_reshard_after_forward(False, recurse=False)
            shard.unshard()
        try:
            yield self.qwen
        finally:
            for shard in shards:
                shard.reshard()
                shard.set_reshard_after_forward(shard is not self._module, recurse=False)

    # ---------------------------------------------------------------- saving

    def weights(self, only_trained: bool = False) -> Tensors:
        """The model's state dict, put together: on rank 0; the others help and get nothing.

        Args:
            only_trained: Leave out what is frozen, such as the model under an adapter.
        """
        state = self.qwen.model.state_dict()
        if only_trained:
            kept = {name for name, parameter in self.qwen.model.named_parameters() if parameter.requires_grad}
            state = {name: value for name, value in state.items() if name in kept}
        return self._put_together(state)

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """Its state as `rl.checkpoint` writes it, put together: on rank 0; the others help and get nothing."""
        return self._put_together(optimizer_tensors(optimizer))

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, tensors: Tensors, path: Path) -> None:
        """Gives a fresh optimiser its state back, however many ranks it was saved from.

        Args:
            optimizer: Over `trained()`.
            tensors: All of them, on every rank.
            path: Of the checkpoint, for the error.

        Raises:
            CheckpointError: If they are of another kind of optimiser or of another model.
        """
        owners = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
        parts: Tensors = {}
        for name, value in tensors.items():
            _, index, *_ = name.split(".")
            owner = owners.get(int(index)) if index.isdigit() else None
            if isinstance(owner, DTensor) and value.shape == owner.shape:  # not a count of steps
                value = distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)
            parts[name] = value
        restore_optimizer(optimizer, parts, path)

    # ---------------------------------------------------------------- parts

    def _put_together(self, tensors: Mapping[str, Tensor]) -> Tensors:
        found: Tensors = {}
        for name, value in tensors.items():
            full = value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()
            if self.world.is_main:
                found[name] = full if self.world.size == 1 else full.cpu()
        return found

    def _idle(self) -> Tensor:
        """A loss of nothing that every weight takes part in, so that a rank without work waits nowhere."""
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.world.device)
        mask = self.qwen.packed_mask(ids)
        hidden = self.qwen.hidden_states(ids, ids.expand(3, 1, 1), mask, None)
        return 0.0 * self.qwen.model.lm_head(hidden).float().sum()

    def _touch_vision(self, module: nn.Module, given: Any, embeddings: Tensor) -> Tensor:
        """Adds nothing to the embeddings, but from every trained weight of the vision tower.

        So that those have a gradient, zero if need be, on all ranks or on none, and the backward pass goes all the way
        down on all of them: otherwise ranks with images and ranks without would wait for each other.
        """
        trained = [weight for weight in self.qwen.model.model.visual.parameters() if weight.requires_grad]
        if not trained or not torch.is_grad_enabled():
            return embeddings
        nothing = sum((0.0 * weight.sum() for weight in trained), start=torch.zeros((), device=embeddings.device))
        return embeddings + nothing.to(embeddings.dtype)

    def _talking(self, last: bool) -> Any:
        """A context in which gradients are exchanged after the backward pass, or kept until the last one."""
        if isinstance(self._module, DistributedDataParallel):
            return nullcontext() if last else self._module.no_sync()
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(last)
        return nullcontext()
