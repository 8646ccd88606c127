"""LoRA on the language model, by peft: the policy is the model with its adapter, the reference the model without.

Adapters are put into the model in place, so that it is called as before and `QwenVL` knows nothing of them. Vision
tower, projector, embeddings and output head have none and are frozen. Two forms are saved: the adapter alone, as
peft and vLLM load it, and the model with the adapter folded into its weights, under the names of the base model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.qwen_vl import QwenVL, save_qwen_vl

ADAPTER: Final = "default"
"""peft's name of the one adapter; it stands in the names of parameters, never in a saved file."""
FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
PREFIX: Final = "base_model.model."
"""What peft puts before every name in a saved adapter."""


def has_lora(qwen: QwenVL) -> bool:
    """Whether the model has an adapter."""
    return any(isinstance(module, LoraLayer) for module in qwen.model.modules())


def add_lora(qwen: QwenVL, rank: int, alpha: float, *, seed: int) -> None:
    """Puts an adapter on every linear layer of the language model, in place, and freezes all else (arXiv 2106.09685).

    The model says the same as before until the first update: of the two factors of an adapter one begins at zero.
    Factors are float32, whatever the model is.

    Args:
        qwen: Without an adapter.
        rank: Of the factors, at least 1.
        alpha: What the adapter adds is scaled by alpha / rank.
        seed: Of the other factor's first values.

    Raises:
        ValueError: If the rank or alpha is out of range, or there is an adapter already.
    """
    if rank < 1 or alpha <= 0:
        raise ValueError(f"LoRA needs a rank of 1 or more and an alpha above 0, not {rank} and {alpha}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=_targets(qwen.model),
        base_model_name_or_path=qwen.model.config._name_or_path or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(qwen, config)


def lora_settings(qwen: QwenVL) -> dict[str, float]:
    """Rank and alpha of the adapter that the model has, by the names of a run's settings."""
    config = qwen.model.peft_config[ADAPTER]
    return {"lora_rank": config.r, "lora_alpha": float(config.lora_alpha)}


@contextmanager
def adapter_off(qwen: QwenVL) -> Iterator[None]:
    """Inside, the model is what it was before any training of its adapter: the reference."""
    layers = [module for module in qwen.model.modules() if isinstance(module, BaseTunerLayer)]
    flags = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]

    def enable(on: bool) -> None:
        for layer in layers:
            layer.enable_adapters(on)
        for parameter, flag in flags:  # peft changes them; FSDP remembers those it sees first
            parameter.requires_grad_(flag)

    enable(False)
    try:
        yield
    finally:
        enable(True)


# ---------------------------------------------------------------- saving


def save_adapter(qwen: QwenVL, path: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapter alone, as `peft.PeftModel.from_pretrained` and vLLM load it.

    Args:
        qwen: With an adapter.
        path: A directory, made if there is none.
        state: The model's state dict where the model does not hold all of it, such as `Replicas.weights()`.
    """
    tensors = get_peft_model_state_dict(qwen.model, None if state is None else dict(state), ADAPTER)
    whole = {PREFIX + name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    config = copy.copy(qwen.model.peft_config[ADAPTER])
    config.inference_mode = True
    config.save_pretrained(path)
    save_file(whole, Path(path, FILES[1]), metadata={"format": "pt"})


def load_adapter(qwen: QwenVL, path: str) -> None:
    """Puts a saved adapter on the model it was trained with, in place, and freezes all else.

    Raises:
        FileNotFoundError: If the directory holds no adapter.
        ValueError: If it is one for another model, or there is an adapter already.
    """
    missing = [file for file in FILES if not Path(path, file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} holds no adapter: {', '.join(missing)} missing")
    config = LoraConfig.from_pretrained(path)
    config.inference_mode = False
    _inject(qwen, config)
    saved = {name.removeprefix(PREFIX): value for name, value in load_file(Path(path, FILES[1])).items()}
    own = {name: value.shape for name, value in get_peft_model_state_dict(qwen.model, None, ADAPTER).items()}
    if own != {name: value.shape for name, value in saved.items()}:
        raise ValueError(
            f"{path} is an adapter for another model: {len(saved)} factors, {len(own)} here, or of other sizes"
        )
    set_peft_model_state_dict(qwen.model, saved, ADAPTER)


def merged_weights(qwen: QwenVL, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of a model that needs no adapter to say the same, under the names of the base model.

    The model itself is left alone, to the last bit; weights without an adapter are its own, not copies.

    Args:
        qwen: With an adapter or without.
        state: Its state dict where the model does not hold all of it, such as `Replicas.weights()`.
    """
    given: Mapping[str, Tensor] = qwen.model.state_dict() if state is None else state
    merged = {name.replace(".base_layer.", "."): v for name, v in given.items() if not _is_factor(name)}
    for name, module in qwen.model.named_modules():
        if isinstance(module, LoraLayer):
            down, up = (given[f"{name}.{factor}.{ADAPTER}.weight"].float() for factor in ("lora_A", "lora_B"))
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (weight.float() + up @ down * module.scaling[ADAPTER]).to(weight.dtype)
    return merged


def save_merged(qwen: QwenVL, path: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes `merged_weights` as a model directory that `load_qwen_vl`, transformers and vLLM load."""
    with torch.device("meta"):
        model = type(qwen.model)(copy.deepcopy(qwen.model.config))
    model.load_state_dict(merged_weights(qwen, state), assign=True)
    model.tie_weights()
    model.generation_config = qwen.model.generation_config
    plain = copy.copy(qwen)
    plain.model = model
    save_qwen_vl(plain, path)


# ---------------------------------------------------------------- parts


def _targets(model: Any) -> str:
    """A pattern that matches the linear layers of the language model by their full names, and no others.

    By full names, since a vision tower has layers of the same last names.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    inside = [name for name in linear if name.startswith("model.language_model.")]
    return "|".join(sorted({re.sub(r"\d+", r"\\d+", re.escape(name)) for name in inside}))


def _inject(qwen: QwenVL, config: LoraConfig) -> None:
    if has_lora(qwen):
        raise ValueError("the model has an adapter already; save it merged to start another on top")
    inject_adapter_in_model(config, qwen.model, ADAPTER)
    cast_adapter_dtype(qwen.model, ADAPTER)
    qwen.model.train(qwen.model.training)  # what is new is in training mode, whatever the model is in


def _is_factor(name: str) -> bool:
    return f".{ADAPTER}." in name and ".lora_" in name
