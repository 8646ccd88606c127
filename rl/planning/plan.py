"""What a run will need and do, worked out before it begins: bytes of memory, and how much is played.

Weights, adapters, gradients and optimiser states are counted (footprint.py). What depends on the length of episodes
follows formulas, each beside what it computes, for the longest prompt seen and the longest attempt allowed: real runs
stay below. Knows no GPU, only how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from agents.positions import expand
from agents.qwen_vl import QwenVL
from agents.rollout import make_envs
from agents.shapes import ModelShape, model_shape
from agents.types import Budget, History, Message
from rl.config import SCRATCH, TrainConfig
from rl.log_probs import CHUNK_LOGITS
from rl.planning.footprint import Held, blank_policy, held, kept_per_token

LOOKED_AT: Final = 24
"""Tasks whose prompts are measured."""
REPLY: Final = 64
"""Tokens of an environment's reply, about, beside the image in it."""
SAMPLED_TOGETHER: Final = 128
"""Attempts that the sampler computes at a time."""
FEATURES: Final = 2**31
"""Most bytes of image features that are kept."""
LOGIT_COPIES: Final = 4
"""Tensors as large as the logits, float32, while log-probs are made of them."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of an episode.

    Attributes:
        prompt: The longest first prompt of `LOOKED_AT` tasks, image tokens included.
        images: Image tokens of the prompt that has most of them.
        sampled: The most that a policy may write.
        attempt: The most after the prompt: what is sampled, replies, and images that tools return.
    """

    prompt: int
    images: int
    sampled: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Work:
    """How much a run does.

    Attributes:
        sft_updates, grpo_steps: The most of each.
        played: Episodes of GRPO's rollouts, at most.
        evaluated: Episodes of probes and evaluations.
        tokens: The most that are sampled in all these.
    """

    sft_updates: int
    grpo_steps: int
    played: int
    evaluated: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs and does.

    Attributes:
        config: Of the run.
        shape: Of its model.
        parameters, trained: Numbers in the model, adapters included, and those among them that learn.
        held: Bytes held all the time.
        lengths: Of episodes.
        work: What is done.
        key_values: Bytes of the keys and values of a token.
        layer: Bytes that one layer of the language model keeps of a token for the backward pass.
        vision_learns: Whether the vision tower learns.
        shares: Whether the attempts of a group share a prompt.
        vocabulary: Tokens of the tokenizer.
    """

    config: TrainConfig
    shape: ModelShape
    parameters: int
    trained: int
    held: Held
    lengths: Lengths
    work: Work
    key_values: int
    layer: int
    vision_learns: bool
    shares: bool
    vocabulary: int

    @property
    def row(self) -> int:
        """Tokens of the longest packed row: a prompt and what follows it in each attempt, or in each question."""
        branches = max(self.config.group_size if self.config.steps else 1, _questions(self.config))
        lengths = self.lengths
        if not self.shares:
            return branches * (lengths.prompt + lengths.attempt)
        return lengths.prompt + branches * lengths.attempt

    def rollout(self, gpus: int = 1) -> dict[str, int]:
        """Bytes on each GPU while it samples, by what they are for; empty without GRPO.

        Keys and values: attempts at a time x (prompt + attempt) x 2 x layers x key-value heads x head width. What
        passes by, the largest of: a layer over all new prompts (6 widths + 3 inner widths, and a mask); a layer of the
        vision tower over all their patches (8 + 3); the logits of a draw.
        """
        config, lengths = self.config, self.lengths
        if not config.steps:
            return {}
        attempts = _share(config.prompts_per_step, gpus) * config.group_size
        together = min(SAMPLED_TOGETHER, attempts)
        each = (lengths.prompt + lengths.attempt) * self.key_values
        passing = max(self._prefill(together), self._seeing(attempts), together * self._vocabulary * 4 * LOGIT_COPIES)
        return {
            **self._standing(gpus),
            "keys and values": together * each,
            "kept from turn to turn": min(int(config.kept_gigabytes * 2**30), attempts * each),
            "passing by": passing,
        }

    def update(self, gpus: int = 1) -> dict[str, int]:
        """Bytes on each GPU in the backward pass of an update, by what they are for.

        Activations of one forward pass: layers x tokens x what a layer keeps of a token; with gradient checkpointing
        layers x tokens x width, and one layer made again.
        """
        divided = gpus if self.config.parallel == "fsdp2" else 1
        tokens = self.rows(gpus) * self.row
        buckets = 2 if gpus > 1 and divided == 1 else 1  # DDP sums them in a second place
        return {
            **self._standing(gpus),
            "gradients": buckets * self.held.gradients // divided,
            "activations": self.activations(tokens),
            "logits": self._logits(gpus),
        }

    def rows(self, gpus: int = 1) -> int:
        """Packed rows in one forward and backward pass of a GPU, the most of both phases."""
        config = self.config
        most = _share(_share(config.prompts_per_step, gpus), config.updates_per_step) if config.steps else 0
        most = max(most, _share(config.sft_rows, gpus) if self.work.sft_updates else 0)
        return min(most, config.rows_per_forward or most)

    def passes(self, gpus: int = 1) -> int:
        """The most passes of the model for single tokens that GRPO's rollouts wait for, one after another."""
        config = self.config
        attempts = _share(config.prompts_per_step, gpus) * config.group_size
        rounds = config.steps * (1 + config.refill)
        return rounds * _share(attempts, SAMPLED_TOGETHER) * self.lengths.sampled

    def longest(self, room: float, needs: Callable[[Plan], Mapping[str, int]]) -> int:
        """The most tokens that attempts may have on average to fit into so many bytes; 0 where none do.

        Args:
            room: Bytes of a GPU.
            needs: Such as `Plan.rollout`.
        """
        fits, too_long = 0, self.lengths.attempt + 1
        while too_long - fits > 1:
            tried = (fits + too_long) // 2
            lengths = replace(self.lengths, attempt=tried, sampled=min(tried, self.lengths.sampled))
            small = sum(needs(replace(self, lengths=lengths)).values()) <= room
            fits, too_long = (tried, too_long) if small else (fits, tried)
        return fits

    def activations(self, tokens: int) -> int:
        """Bytes that one forward pass over so many tokens keeps for its backward pass, in the language model."""
        text = self.shape.config.get_text_config()
        if not self.config.gradient_checkpointing:
            return int(text.num_hidden_layers * tokens * self.layer)
        width = text.hidden_size * getattr(torch, self.config.dtype).itemsize
        return int(tokens * (text.num_hidden_layers * width + self.layer))

    def _standing(self, gpus: int) -> dict[str, int]:
        """Held in rollouts and updates; fsdp2 divides all but the model itself, which rollouts put together."""
        divided = gpus if self.config.parallel == "fsdp2" and gpus > 1 else 1
        held, config = self.held, self.config
        shown = self.work.played // config.group_size + self.work.sft_updates * config.sft_rows
        if self.vision_learns:  # they are of no use after an update
            shown = max(config.prompts_per_step, config.sft_rows)
        text = self.shape.config.get_text_config()
        features = shown * self.lengths.images * text.hidden_size * getattr(torch, config.dtype).itemsize
        return {
            "weights": held.weights + (held.weights // divided if divided > 1 else 0),
            "adapters": held.adapters,
            "optimiser": held.optimizer // divided,
            "reference": held.reference,
            "image features": min(FEATURES, features),
        }

    @property
    def _vocabulary(self) -> int:
        return int(self.shape.config.get_text_config().vocab_size)

    def _prefill(self, together: int) -> int:
        """Of a layer over all new prompts, and of their mask."""
        text = self.shape.config.get_text_config()
        prompts, length = -(-together // self.config.group_size), self.lengths.prompt
        width = (6 * text.hidden_size + 3 * text.intermediate_size) * getattr(torch, self.config.dtype).itemsize
        return int(prompts * length * (width + length))

    def _seeing(self, attempts: int) -> int:
        """Of a layer of the vision tower over the images of all prompts."""
        vision = self.shape.config.vision_config
        inner = getattr(vision, "intermediate_size", 4 * vision.hidden_size)
        patches = attempts // self.config.group_size * self.lengths.images * vision.spatial_merge_size**2
        width = 8 * getattr(vision, "embed_dim", vision.hidden_size) + 3 * inner
        return int(patches * width * getattr(torch, self.config.dtype).itemsize)

    def _logits(self, gpus: int) -> int:
        """A chunk of logits, or those of all trained tokens where these are fewer."""
        branches = self.config.group_size if self.config.steps else _questions(self.config)
        tokens = self.rows(gpus) * branches * self.lengths.sampled
        return min(tokens, CHUNK_LOGITS // self.vocabulary) * self._vocabulary * 4 * LOGIT_COPIES


def plan(config: TrainConfig, shape: ModelShape | None = None) -> Plan:
    """Works out what a run will need and do. Makes scenes of a few tasks, but no model.

    Args:
        config: Of the run.
        shape: Of the model; None: as `config.start` names it.

    Raises:
        FileNotFoundError: If nothing is known of the model.
        ValueError: If the choices of the loss do not go together.
    """
    shape = shape or shape_of(config.start)
    policy = blank_policy(config, shape)
    lengths = measured_lengths(config, policy.qwen)
    trained = {id(parameter): parameter.numel() for parameter in policy.trained}
    text = shape.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Plan(
        config=config,
        shape=shape,
        parameters=sum(parameter.numel() for parameter in policy.qwen.model.parameters()),
        trained=sum(trained.values()),
        held=held(policy),
        lengths=lengths,
        work=_work(config, lengths),
        key_values=2 * text.num_hidden_layers * text.num_key_value_heads * head * getattr(torch, config.dtype).itemsize,
        layer=kept_per_token(config, shape),
        vision_learns=any(parameter.requires_grad for parameter in policy.qwen.model.model.visual.parameters()),
        shares=policy.qwen.shares_prompts,
        vocabulary=policy.qwen.codec.vocab_size if shape.tokenizer else text.vocab_size,
    )


def shape_of(start: str) -> ModelShape:
    """The shape of the model that a run starts with; that from scratch has the one of the shipped checkpoint."""
    return model_shape("tiny" if start == SCRATCH else start)


def measured_lengths(config: TrainConfig, qwen: QwenVL) -> Lengths:
    """Looks at the first prompts of some tasks, and at the budgets of the environment."""
    (env,) = make_envs(config.env, 1, codec=qwen.codec, **config.env_arguments())
    inner: Any = env.unwrapped
    prompts, images, largest, shown = [], [], 0, inner.max_images
    for seed in range(LOOKED_AT):
        observation, info = env.reset(seed=seed)
        message = Message(observation["text"], tuple(observation["images"]))
        prompt = qwen.chat.prompt(History(info["task_id"], (), message, Budget(**info["budget"])))
        grids = [qwen.grid(image) for image in prompt.images]
        prompts.append(len(expand(prompt.ids, grids, qwen.chat.image_id).ids))
        images.append(sum(rows * columns for rows, columns in grids))
        largest = max(largest, *(rows * columns for rows, columns in grids))
        shown = min(shown, len(grids))
    sampled = min(inner.max_turns * config.max_turn_tokens, inner.max_tokens)
    replies = inner.max_turns - 1
    returned = min(replies, inner.max_images - shown) if inner.tools else 0
    return Lengths(max(prompts), max(images), sampled, sampled + replies * REPLY + returned * largest)


def _work(config: TrainConfig, lengths: Lengths) -> Work:
    cold = config.learns_first
    updates = config.sft_steps if cold else 0
    rounds = config.steps * (1 + config.refill)
    played = rounds * config.prompts_per_step * config.group_size
    probes = updates // config.sft_probe_every + (
        max(config.steps - 1, 0) // config.eval_every if config.eval_every else 0
    )
    evaluated = 2 * 3 * config.eval_episodes + probes * config.sft_probe_episodes
    tokens = (played + evaluated) * lengths.sampled
    return Work(updates, config.steps, played, evaluated, tokens)


def _questions(config: TrainConfig) -> int:
    """Branches of a row of the cold start: recorded episodes have a row of their own."""
    return 1 if config.sft_data is not None else config.sft_questions


def _share(items: int, parts: int) -> int:
    """The most items that one of so many parts has."""
    return -(-items // parts)
