"""What a policy holds in memory, counted on the model itself: weights, gradients, optimiser, activations.

The model may be on the meta device, where a weight has a shape and takes no memory; it is built and frozen by the code
that trains it. Knows nothing of episodes: how long rows are is the caller's matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from agents.shapes import ModelShape, random_model
from rl.config import TrainConfig
from rl.policy import Policy

META: Final = "meta"


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a run holds from its first update to its end.

    Attributes:
        weights: Of the model, without adapters.
        adapters: Of the adapters.
        gradients: Of what is trained.
        optimizer: AdamW's two moments of what is trained, and a counter for each tensor.
        reference: A copy of the weights, where there is a KL and no adapter to switch off; without the vision tower
            where that is frozen.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    reference: int


def blank_policy(config: TrainConfig, shape: ModelShape, layers: int | None = None) -> Policy:
    """A policy on the meta device: all that is trained, and no weights."""
    with torch.device(META):
        qwen = random_model(shape, config.dtype, device=META, layers=layers)
        return Policy(qwen, config, "grpo")


def held(policy: Policy) -> Held:
    """Counts what a policy holds, whether its weights are there or on the meta device."""
    config, model = policy.config, policy.qwen.model
    size = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    adapters = sum(bytes_ for name, bytes_ in size.items() if ".lora_" in name)
    weights, gradients = sum(size.values()) - adapters, sum(parameter.nbytes for parameter in policy.trained)
    frozen = sum(parameter.nbytes for parameter in model.model.visual.parameters() if not parameter.requires_grad)
    copied = config.objective().beta > 0 and not config.lora_rank
    counters = len(policy.trained) * torch.float32.itemsize
    return Held(weights, adapters, gradients, 2 * gradients + counters, weights - frozen if copied else 0)


def kept_per_token(config: TrainConfig, shape: ModelShape, tokens: int = 64) -> int:
    """Bytes that a layer of the language model keeps of a token for the backward pass.

    Counted by running the model without weights, of two layers and of one. Off a GPU attention keeps its scores too,
    which grow with the square of the length and are taken off here; what remains is a few percent above what the
    attention in use keeps.
    """
    short, long = (_kept(config, shape, 2, n) - _kept(config, shape, 1, n) for n in (tokens, 2 * tokens))
    return (4 * short - long) // (2 * tokens)


def _kept(config: TrainConfig, shape: ModelShape, layers: int, tokens: int) -> int:
    """Bytes that a pass over so many tokens keeps for the backward pass, beside the weights."""
    policy = blank_policy(replace(config, gradient_checkpointing=False), shape, layers)
    model = policy.qwen.model
    weights = {_place(parameter) for parameter in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _place(tensor) not in weights:
            found[_place(tensor)] = tensor
        return tensor

    with torch.device(META), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(ids),
            position_ids=ids.expand(3, 1, tokens),
            attention_mask=None,
            use_cache=False,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _place(tensor: Tensor) -> int:
    """Equal for tensors that are views of the same memory."""
    return int(tensor.untyped_storage()._cdata)
