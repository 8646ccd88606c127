"""The configuration of a run: one flat record of all settings, with the ranges and combinations that can work.

Where settings come from is in settings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from rl.masking import KEEP_STOPS

if TYPE_CHECKING:
    from rl.loss import Objective

DTYPES: Final = ("float32", "bfloat16", "float16")
ATTENTIONS: Final = ("sdpa", "flex_attention")
PARALLEL: Final = ("ddp", "fsdp2")
LOSSES: Final = ("undivided", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "mig_grpo")
SCHEDULES: Final = ("linear", "cosine")
THOUGHTS: Final = ("label", "rationale", "annotations", "places")
SCRATCH: Final = "scratch"
"""A `start`: a tiny model that has learned nothing."""
RENDERED: Final = "rendered"
"""An `eval_source`: rendered tasks, whatever is trained on."""
TASKS_PER_SEED: Final = 2**24
"""The tasks of seed s begin at (s + 1) times this, beyond those of any cold start."""

_LEAST: Final = {
    "sft_tasks": 3,  # a third of them in each easier stage
    **dict.fromkeys(("sft_questions", "sft_rows", "sft_probe_every", "sft_probe_episodes", "save_every"), 1),
    **dict.fromkeys(("prompts_per_step", "max_turn_tokens", "updates_per_step", "eval_episodes"), 1),
    **dict.fromkeys(("steps", "sft_steps", "refill", "workers", "rows_per_forward", "lora_rank", "seed"), 0),
    **dict.fromkeys(("eval_every", "show_every", "warmup", "kept_gigabytes", "final_learning_rate"), 0),
    **dict.fromkeys(("sft_zoom", "sft_reflect", "sft_confirm"), 0),
    **dict.fromkeys(("learning_rate", "sft_learning_rate", "weight_decay", "sft_weight_decay"), 0),
}
_ABOVE_0: Final = ("temperature", "max_grad_norm", "max_drift", "lora_alpha")
_AT_MOST_1: Final = ("final_learning_rate",)
_ALLOWED: Final = {
    "dtype": DTYPES,
    "attention": ATTENTIONS,
    "parallel": PARALLEL,
    "loss": LOSSES,
    "sft_schedule": SCHEDULES,
    "sft_think": THOUGHTS,
}
NEEDED: Final = {
    "correction_cap": ("correction", lambda objective: objective.correction != "off"),
    "kl": ("beta", lambda objective: objective.beta > 0),
    "unbiased_kl": ("beta", lambda objective: objective.beta > 0),
    "clip_low": ("clip", lambda objective: objective.clip != "off"),
    "clip_high": ("clip", lambda objective: objective.clip != "off"),
}
"""Parts of the loss that mean something only with another."""

OBJECTIVE: Final = (
    *("ratio", "clip", "clip_low", "clip_high", "normaliser", "std"),
    *("beta", "kl", "unbiased_kl", "correction", "correction_cap"),
)
"""Options that stand in for those of the preset `loss`."""


def check_least(settings: object, least: Mapping[str, float]) -> None:
    """Refuses a setting below the least value of its name.

    Raises:
        ValueError: If there is one.
    """
    for name, bound in least.items():
        if not getattr(settings, name) >= bound:
            raise ValueError(f"{name} {getattr(settings, name)}: at least {bound}")


@dataclass(frozen=True, slots=True)
class EnvSettings:
    """Which episodes are played. What is None is as the environment's id has it.

    Attributes:
        env: Environment id.
        source: Where tasks come from, such as `odinw:/path` or `selected:/path/tasks.jsonl`; None renders them.
        eval_source: The same for the held-out evaluation; `rendered` renders them; None: as `source`.
        tasks: Task types or a group.
        world: Of rendered tasks.
        difficulty: 1 to 5 of rendered tasks.
        tools: Tools of the environment, such as `zoom`.
        reward: A reward preset.
        instructions: How much the environment explains.
        box_frame: How boxes are written.
        max_turns, max_tokens, max_images: Budgets of an episode: turns, tokens over all turns, images in all.
        max_pixels: Larger images are shown smaller.
    """

    env: str = "MultiImageTiny-v0"
    source: str | None = None
    eval_source: str | None = None
    tasks: str | tuple[str, ...] | None = None
    world: str | None = None
    difficulty: int | None = None
    tools: tuple[str, ...] | None = None
    reward: str = "grounding"
    instructions: str | None = None
    box_frame: str | None = None
    max_turns: int | None = None
    max_tokens: int | None = None
    max_images: int | None = None
    max_pixels: int | None = None

    def env_arguments(self, evaluation: bool = False) -> dict[str, Any]:
        """What `gym.make` is given, for training or for the held-out evaluation."""
        source = (self.eval_source or self.source) if evaluation else self.source
        chosen = {item.name: getattr(self, item.name) for item in fields(EnvSettings)}
        chosen |= {"source": None if source == RENDERED else source, "env": None, "eval_source": None}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True, slots=True)
class TrainConfig(EnvSettings):
    """Everything that decides a run. The defaults train a tiny model from scratch on a CPU in minutes.

    With a model of your own, set at least `learning_rate`, `max_turn_tokens`, `prompts_per_step` and `eval_episodes`.

    Attributes:
        start: `scratch` (a tiny model, cold-started), `tiny` (the shipped cold-started one), a directory or a hub name.
        output: Folder of the run.
        seed: Of every generator.
        device, dtype: Of the model.

        cold_start: Whether to run SFT first; None: only from `scratch`, or with `sft_data`.
        sft_data: Episodes to learn from, as JSONL (`mimgenv.records`), for all of `sft_steps`; None: those of an
            oracle, with a curriculum that ends by skill.
        sft_tasks: Tasks in the fixed cold-start set; a third as many easier ones come before them.
        sft_questions: Most questions about one set of images in a row, beside the easier ones'.
        sft_rows: Rows per update.
        sft_steps: Most updates.
        sft_learning_rate, sft_weight_decay: Of AdamW.
        sft_schedule: How that rate falls after the warm-up: `linear` over the second half, or `cosine`; to a twentieth.
        sft_think: What the oracle thinks: `label`, `rationale`, `annotations` or `places` (see `agents.oracle`).
        sft_zoom, sft_reflect, sft_confirm: How often the oracle zooms, looks again or confirms its box before it
            answers, where the environment has that tool; together at most 1.
        sft_stop_iou, sft_stop_type_iou, sft_stop_format: The cold start ends when the probe's mean IoU over grounding
            types, its least IoU of any of them, and its format rate reach these.
        sft_probe_every, sft_probe_episodes: Updates between probes, and greedy episodes of each (`val` split).

        steps: GRPO steps: each plays its prompts, then updates.
        prompts_per_step, group_size: Tasks per step, and attempts at each.
        refill: How often a step may play as many new tasks again in place of groups without reward variance.
        workers: Processes that make the scenes of coming steps; 0: they are made where they are needed.
        temperature: Of sampling; log-probs are those of the tempered distribution.
        max_turn_tokens: Longest turn.
        kept_gigabytes: Most GiB of keys and values that the sampler keeps from turn to turn.
        constrain_actions: Sample under the turn grammar: every turn is well-formed, though a box may be inverted or
            empty. Log-probs are those of that distribution.

        learning_rate, weight_decay, warmup, final_learning_rate: AdamW's; linear warm-up over so many steps, then
            linear to the share of `learning_rate` that the last step has.
        updates_per_step: Parts that a step's groups are divided into, an update each: from the second on the ratio is
            not 1, and the clip acts.
        rows_per_forward: Most groups in one forward and backward pass; 0: all of an update. Gradients add up, so that
            only memory and time change.
        loss: A preset of `rl.loss.PRESETS`; the following stand in for its choices, None: the preset's.
        ratio: `token`, `turn`, `sequence` or `product`; like the following, see `rl.loss`.
        clip, clip_low, clip_high: `ppo`, `cispo` or `off`, and how far below and above 1.
        normaliser: `token`, `sequence` or `constant`.
        std: `group`, `batch` or `off`.
        beta, kl, unbiased_kl: Weight of the KL to the reference, its estimator `k1`, `k2` or `k3`, and its gradient.
        correction, correction_cap: `off`, `token` or `sequence`: weights between sampler and trainer, and the largest.
        difficulty_part: The reward part whose mean says how hard a group is: hard ones weigh more (UniVG-R1); None: all
            groups weigh the same.
        recompute_old: The old log-probs are the trainer's own at the weights of the rollout; else the sampler's. None:
            only in half precision, where both round differently.
        mask_invalid_actions: Do not train on turns that the environment refused.
        keep_stops: Stop reasons whose trajectories are trained on: among answered, void, turn_limit, token_limit,
            image_limit, env_error.
        count_masked: Whether masked trajectories enter their group's mean and deviation.
        divide_by_masked: Whether they enter what the loss is divided by.
        max_grad_norm: Gradients are clipped to this.

        lora_rank, lora_alpha: Of adapters on the language model, in SFT and in GRPO; rank 0: full fine-tuning.
        train_vision: Whether the vision tower and the projector learn; None: only where the model is tiny (10 M
            parameters).
        gradient_checkpointing: Make activations again in the backward pass: less memory, more time.
        attention: `sdpa`, or `flex_attention` for a GPU.
        parallel: Under `torchrun`: `ddp`, every process holds the whole model; `fsdp2`, each a part of it.

        eval_every: GRPO steps between greedy evaluations on the probe's episodes; 0: only before and after.
        eval_episodes: Episodes of the evaluation before and after GRPO (`test` split), each of them played greedy,
            greedy with blank images, and sampled.
        save_every: Updates of the cold start, or steps of GRPO, between checkpoints.
        show_every: GRPO steps between pages of the latest episodes, and pictures of them in TensorBoard; 0: none.
        max_drift: The run stops when the KL of the trainer from its sampler, at the same weights, is greater for any
            kind of token; in nats per token.
    """

    start: str = "scratch"
    output: str = "runs/tiny"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    cold_start: bool | None = None
    sft_data: str | None = None
    sft_tasks: int = 4500
    sft_questions: int = 3
    sft_rows: int = 16
    sft_steps: int = 2500
    sft_learning_rate: float = 2e-3
    sft_weight_decay: float = 0.01
    sft_schedule: str = "linear"
    sft_think: str = "label"
    sft_zoom: float = 0.5
    sft_reflect: float = 0.0
    sft_confirm: float = 0.0
    sft_stop_iou: float = 0.44
    sft_stop_type_iou: float = 0.22
    sft_stop_format: float = 0.95
    sft_probe_every: int = 50
    sft_probe_episodes: int = 280

    steps: int = 350
    prompts_per_step: int = 28
    group_size: int = 8
    refill: int = 0
    workers: int = 0
    temperature: float = 1.0
    max_turn_tokens: int = 24
    kept_gigabytes: float = 1.0
    constrain_actions: bool = False

    learning_rate: float = 8e-4
    weight_decay: float = 0.0
    warmup: int = 30
    final_learning_rate: float = 0.1
    updates_per_step: int = 1
    rows_per_forward: int = 0
    loss: str = "undivided"
    ratio: str | None = None
    clip: str | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    normaliser: str | None = None
    std: str | None = None
    beta: float | None = None
    kl: str | None = None
    unbiased_kl: bool | None = None
    correction: str | None = None
    correction_cap: float | None = None
    difficulty_part: str | None = None
    recompute_old: bool | None = None
    mask_invalid_actions: bool = False
    keep_stops: tuple[str, ...] = tuple(stop for stop, kept in KEEP_STOPS.items() if kept)
    count_masked: bool = True
    divide_by_masked: bool = False
    max_grad_norm: float = 1.0

    lora_rank: int = 0
    lora_alpha: float = 32.0
    train_vision: bool | None = None
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    parallel: str = "ddp"

    eval_every: int = 50
    eval_episodes: int = 560
    save_every: int = 50
    show_every: int = 50
    max_drift: float = 0.1

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size {self.group_size}: an advantage is relative to a group of at least 2")
        check_least(self, _LEAST)
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        for name in _AT_MOST_1:
            if getattr(self, name) > 1:
                raise ValueError(f"{name} {getattr(self, name)}: at most 1")
        if self.dtype != "float32" and not self.lora_rank:
            raise ValueError(
                f"dtype {self.dtype}: small steps are lost on weights in half precision, so that all of a model is "
                "trained in float32; adapters (lora_rank) are float32 whatever the model is"
            )
        shares = (self.sft_zoom, self.sft_reflect, self.sft_confirm)
        if sum(shares) > 1:
            raise ValueError("sft_zoom {}, sft_reflect {}, sft_confirm {}: together at most 1".format(*shares))
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)} is not one of {list(allowed)}")
        unknown = set(self.keep_stops) - set(KEEP_STOPS)
        if unknown:
            raise ValueError(f"keep_stops {sorted(unknown)} are not among {list(KEEP_STOPS)}")
        if (self.source or "").startswith("selected:") and self.eval_source is None:
            rule = "held-out tasks would be the same; set eval_source, such as to rendered"
            raise ValueError(f"source {self.source}: {rule}")
        if self.updates_per_step > self.prompts_per_step:
            raise ValueError(
                f"updates_per_step {self.updates_per_step}: a step of {self.prompts_per_step} prompts has no more parts"
            )
        if self.correction not in (None, "off") and not self.recomputes_old:
            raise ValueError(
                f"correction {self.correction}: it compares the trainer's old log-probs with the sampler's, "
                "so recompute_old must be true"
            )
        if self.lora_rank and self.train_vision:
            raise ValueError(f"lora_rank {self.lora_rank}: beside adapters the vision tower stays frozen")

    @property
    def learns_first(self) -> bool:
        """Whether SFT comes before GRPO."""
        needed = self.start == SCRATCH or self.sft_data is not None
        return needed if self.cold_start is None else self.cold_start

    @property
    def recomputes_old(self) -> bool:
        """Whether old log-probs are the trainer's own."""
        return self.dtype != "float32" if self.recompute_old is None else self.recompute_old

    def objective(self) -> Objective:
        """The loss: its preset, with what stands in for parts of it.

        Raises:
            ValueError: If its choices do not go together.
        """
        from rl.loss import PRESETS  # torch: only when training

        chosen = {name: getattr(self, name) for name in OBJECTIVE}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        objective = replace(PRESETS[self.loss], **chosen)
        for name, (other, is_on) in NEEDED.items():
            if name in chosen and not is_on(objective):
                raise ValueError(f"{name} {chosen[name]}: nothing comes of it with {other} {getattr(objective, other)}")
        return objective
