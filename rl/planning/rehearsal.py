"""One real step of a run, on a model of its widths that has two layers and random weights.

Goes through what a run goes through: episodes of its environment, collection, losses, the optimiser; so a setting that
cannot work fails here and not after hours. What is cut for time and memory is said. Shows nothing of what is learned:
random weights answer nothing right, so that rewards and stops are made up for an update to take place.
"""

from __future__ import annotations

import copy
import gc
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from torch import Tensor

from agents.hf_sampler import HFSampler
from agents.rollout import make_envs, run_episodes
from agents.sampling import SamplingParameters
from agents.shapes import ModelShape, random_model
from agents.types import Trajectory
from agents.vlm import VLMAgent
from mimgenv.turn_rules import TurnRules
from rl.collect import collect
from rl.config import TASKS_PER_SEED, TrainConfig
from rl.errors import TrainingStopped
from rl.planning.footprint import Held, blank_policy, held
from rl.planning.plan import shape_of
from rl.policy import COLD_START, Policy
from rl.sft import cold_start_set, sft_step
from rl.update import Updater

ROOM: Final = 8 * 2**30
"""Most bytes that a rehearsed model, its gradients and its optimiser may hold."""
SIZES: Final = ((2, None), (2, 8192), (1, 8192))
"""Layers and rows of the embedding, None for all of them: the first that has room is taken, or else the last."""
TURNS: Final = 2
TURN_TOKENS: Final = 16
LEGAL_TURN_TOKENS: Final = 32
"""Turns at most, and the longest of them: free, or under the grammar, which must be able to end them."""
CUT: Final[Mapping[str, Any]] = {
    "device": "cpu",
    "attention": "sdpa",
    "parallel": "ddp",
    "workers": 0,
    "refill": 0,
    "prompts_per_step": 1,
    "updates_per_step": 1,
    "rows_per_forward": 0,
    "mask_invalid_actions": False,
    "sft_tasks": 3,
    "sft_rows": 2,
}
"""What a rehearsal does not take from the run, beside the lengths of turns."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a rehearsed step found.

    Attributes:
        cuts: What was other than in the run, in words.
        planned, found: What the cut model was to hold, and the bytes of the tensors that it held.
        metrics: Of the updates, by phase.
        moved: How many of the trained tensors changed.
        trained: How many there are.
        seconds: Of the clock.
        peak: Most bytes that this process ever held.
    """

    cuts: tuple[str, ...]
    planned: Held
    found: Held
    metrics: Mapping[str, Mapping[str, float]]
    moved: int
    trained: int
    seconds: float
    peak: int


def rehearse(config: TrainConfig, shape: ModelShape | None = None) -> Rehearsal:
    """One update of SFT, where the run has a cold start, and one step of GRPO, where it has any.

    Args:
        config: Of the run.
        shape: Of its model; None: as `config.start` names it.

    Raises:
        TrainingStopped: If a guard of training finds something wrong, or no weight changed.
        ValueError: If settings cannot work together.
        MimgenvError: If the environment cannot be made or played.
    """
    began = time.perf_counter()
    gc.collect()  # models are parts of cycles: one that was rehearsed before may still be there
    shape = shape or shape_of(config.start)
    small, cuts = _small(config)
    size, planned = _size(small, shape)
    layers, vocabulary = size
    cuts = (*_size_cuts(*size), *cuts)
    with TemporaryDirectory() as folder:
        small = replace(small, output=folder)
        qwen = random_model(_narrowed(shape, vocabulary), small.dtype, small.seed, layers=layers)
        policy = Policy(qwen, small, "sft")
        before = _sums(policy.trained)
        metrics: dict[str, Mapping[str, float]] = {}
        with _gradients(policy.trained) as gradients:
            if small.cold_start:
                metrics["sft"] = _sft(policy)
            if small.steps:
                policy = Policy(qwen, small, "grpo")
                metrics["grpo"] = _grpo(policy)
        moved = sum(one != other for one, other in zip(before, _sums(policy.trained), strict=True))
    if metrics and not moved:
        raise TrainingStopped("an update changes weights", trained=len(policy.trained), changed=0)
    found = _found(policy, sum(gradients.values()), planned.reference)
    spent, peak = time.perf_counter() - began, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Rehearsal(cuts, planned, found, metrics, moved, len(policy.trained), spent, peak)


# ---------------------------------------------------------------- the two steps


def _sft(policy: Policy) -> dict[str, float]:
    config = policy.config
    policy.set_rate(config.sft_learning_rate)
    learned_from = cold_start_set(config, policy.qwen.chat)
    return sft_step(policy, learned_from.rows(len(learned_from.stages) - 1, 0))


def _grpo(policy: Policy) -> dict[str, float]:
    config, qwen = policy.config, policy.qwen
    policy.set_rate(config.learning_rate)
    if config.objective().beta > 0 and not config.lora_rank:
        policy.save_whole(Path(config.output, COLD_START))  # the reference is read from there
    envs = make_envs(config.env, config.group_size, codec=qwen.codec, **config.env_arguments())
    inner: Any = envs[0].unwrapped
    rules = None
    if config.constrain_actions:
        rules = TurnRules(qwen.codec, inner.tools, inner.box_frame, max_turn_tokens=config.max_turn_tokens)
    parameters = SamplingParameters(config.temperature, config.max_turn_tokens)
    sampler = HFSampler(qwen, config.seed, kept_bytes=int(config.kept_gigabytes * 2**30))
    agent = VLMAgent(qwen.chat, sampler, parameters, rules)
    group = run_episodes(agent, envs, [(config.seed + 1) * TASKS_PER_SEED] * config.group_size)
    sampler.sync()
    collected = collect([_made_up(group, config)], qwen.chat, config)
    longest = config.max_turn_tokens * inner.max_turns
    return collected.metrics | Updater(policy, config, longest).step(collected.groups)


def _made_up(group: Sequence[Trajectory], config: TrainConfig) -> list[Trajectory]:
    """The group with rewards that differ, and a stop that is trained on."""
    paid = enumerate(group)
    return [replace(attempt, reward=n / len(group), stop=config.keep_stops[0]) for n, attempt in paid]


# ---------------------------------------------------------------- what is cut


def _small(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings of a rehearsal, and in words what of the run they leave out."""
    cold = config.learns_first
    tokens = LEGAL_TURN_TOKENS if config.constrain_actions else TURN_TOKENS
    chosen = {**CUT, "cold_start": cold, "max_turn_tokens": min(config.max_turn_tokens, tokens)}
    chosen["max_turns"] = min(config.max_turns or TURNS, TURNS)
    cuts = [f"turns: {chosen['max_turns']} of {chosen['max_turn_tokens']} tokens at most"]
    if config.sft_data is not None and not Path(config.sft_data).exists():
        chosen["sft_data"] = None
        cuts.append("an oracle's episodes in place of those not yet sampled")
    named = (*_SAID, *(_SAID_OF_SFT if cold else ()), *(_SAID_OF_GRPO if config.steps else ()))
    cuts += [f"{name} {chosen[name]}" for name in named if chosen[name] != getattr(config, name)]
    if config.steps:
        cuts.append("rewards and stops made up, since random weights answer nothing right")
    return replace(config, **chosen), tuple(cuts)


_SAID: Final = ("device", "attention", "parallel")
_SAID_OF_SFT: Final = ("sft_rows",)
_SAID_OF_GRPO: Final = ("prompts_per_step", "updates_per_step", "refill", "mask_invalid_actions")
"""Settings that are named where they are cut: always, with a cold start, with GRPO."""


def _size(config: TrainConfig, shape: ModelShape) -> tuple[tuple[int, int | None], Held]:
    """The first of `SIZES` that has room, and what it holds."""
    for size in SIZES:
        layers, vocabulary = size
        planned = held(blank_policy(config, _narrowed(shape, vocabulary), layers))
        needed = planned.weights + planned.adapters + planned.gradients + planned.optimizer + planned.reference
        if needed <= ROOM:
            break
    return size, planned


def _size_cuts(layers: int, vocabulary: int | None) -> tuple[str, ...]:
    model = f"{layers} text and {layers} vision layer{'s' if layers > 1 else ''}, random weights"
    return (model,) if vocabulary is None else (model, f"at most {vocabulary} rows of the embedding")


def _narrowed(shape: ModelShape, vocabulary: int | None) -> ModelShape:
    if vocabulary is None:
        return shape
    config = copy.deepcopy(shape.config)
    config.text_config.vocab_size = min(vocabulary, config.text_config.vocab_size)
    return replace(shape, config=config, tokenizer=None)  # its own would have ids beyond


# ---------------------------------------------------------------- what is measured


def _sums(tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Differ for a tensor that has changed, all but certainly."""
    return [(float(t.detach().double().sum()), float(t.detach().double().square().sum())) for t in tensors]


@contextmanager
def _gradients(trained: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each gradient that was made inside."""
    found: dict[int, int] = {}

    def note(parameter: Tensor) -> None:
        assert parameter.grad is not None
        found[id(parameter)] = parameter.grad.nbytes

    hooks = [parameter.register_post_accumulate_grad_hook(note) for parameter in trained]  # type: ignore[no-untyped-call]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _found(policy: Policy, gradients: int, reference: int) -> Held:
    """What a policy holds after an update, by the memory of its tensors."""
    named = dict(policy.qwen.model.named_parameters())
    memory = {name: tensor.untyped_storage().nbytes() for name, tensor in named.items()}
    adapters = sum(size for name, size in memory.items() if ".lora_" in name)
    state = policy.optimizer.state_dict()["state"]
    moments = sum(value.untyped_storage().nbytes() for values in state.values() for value in values.values())
    if policy._reference is not None:
        copied = policy._reference.model
        own = {id(parameter) for parameter in policy.qwen.model.parameters()}
        reference = sum(p.nbytes for p in copied.parameters() if id(p) not in own)
    return Held(sum(memory.values()) - adapters, adapters, gradients, moments, reference)
