"""The trainer: a cold start, then GRPO, then what there is to show. It only sequences; the parts are elsewhere.

All randomness is derived from (seed, phase, step), so a resumed run goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from agents.evaluate import evaluate_agent
from agents.hf_sampler import HFSampler
from agents.qwen_vl import QwenVL, load_qwen_vl, save_qwen_vl
from agents.report import Report
from agents.rollout import make_envs, run_episodes
from agents.sampling import SamplingParameters
from agents.tiny_model import tiny_qwen_vl
from agents.vlm import VLMAgent
from mimgenv.records import write_records
from mimgenv.tasks.prefetch import PrefetchedTasks
from rl.batch import pack
from rl.checkpoint import Progress, checkpoints, load_checkpoint, restore_optimizer, save_checkpoint
from rl.collect import collect
from rl.config import CONFIG, TrainConfig
from rl.loss import grpo_loss
from rl.policy import descend, token_log_probs
from rl.sft import STAGE_IOU, ColdStart, sft_step
from rl.tracker import Tracker

SCRATCH: Final = "scratch"
COLD_START: Final = "cold_start"
TASKS_PER_SEED: Final = 2**24
"""GRPO's tasks of run seed s begin at (s + 1) times this, beyond those of any cold start."""
MODEL: Final = "model"

OnStep = Callable[[str, int, int, Mapping[str, float]], None]
"""Called after every update with phase, update, most updates of the phase, and metrics."""


@dataclass(frozen=True, slots=True)
class Result:
    """Held-out metrics before and after GRPO; `sampled` at the training temperature, else greedy."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    before_sampled: Mapping[str, float]
    after_sampled: Mapping[str, float]


class GRPOTrainer:
    """Trains a VLM on an environment.

    Args:
        config: Of the run.
        resume: Go on from the last complete checkpoint in `config.output`.
        on_step: Told of every update, such as by a progress bar.

    Raises:
        FileExistsError: If the output folder holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is none.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None) -> None:
        self.config = config
        self.folder = Path(config.output)
        self._on_step = on_step or (lambda *_: None)
        saved = checkpoints(self.folder)
        if saved and not resume:
            raise FileExistsError(f"{self.folder} holds a run: pass --resume, or another --output")
        if resume and not saved:
            raise FileNotFoundError(f"{self.folder} holds no complete checkpoint")
        self._tensors: dict[str, torch.Tensor] = {}
        if resume:
            loaded = load_checkpoint(saved[-1], config.device, config.dtype)
            self.qwen, self.progress, self._tensors = loaded
        else:
            self.qwen = _fresh_model(config)
            cold = config.start == SCRATCH if config.cold_start is None else config.cold_start
            self.progress = Progress("sft" if cold else "grpo", 0)
        self.sampler = HFSampler(self.qwen, config.seed)

    def train(self) -> Result:
        """Runs to the end and writes `model/`, `curve.png`, `episodes.html`, `before.json` and `after.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1))
        self.tracker = Tracker(self.folder, self.progress.phase, self.progress.step)
        if self.progress.phase == "sft":
            self._cold_start()
        if self.progress.step == 0:
            save_qwen_vl(self.qwen, str(self.folder / COLD_START))
            self._evaluate_both("before")
        self._grpo()
        self._evaluate_both("after")
        save_qwen_vl(self.qwen, str(self.folder / MODEL))
        self.tracker.close()
        return self._finish()

    # ---------------------------------------------------------------- cold start

    def _cold_start(self) -> None:
        config = self.config
        optimizer = self._optimizer(config.sft_learning_rate, config.sft_weight_decay)
        cold_start = ColdStart(config, self.qwen.chat)
        while self.progress.step < config.sft_steps:
            state = self.progress
            began = time.process_time()
            _set_rate(optimizer, config.sft_learning_rate * _ramp(state.step, 30, config.sft_steps, 0.5, 0.05))
            rows = cold_start.rows(state.stage, state.step - state.stage_step, state.skills)
            metrics = sft_step(self.qwen, optimizer, rows, config.max_grad_norm)
            metrics |= {"stage": float(state.stage), "time/update": time.process_time() - began}
            self.progress = replace(state, step=state.step + 1)
            done = False
            if self.progress.step % config.sft_probe_every == 0:
                done, probed = self._probe(cold_start)
                metrics |= probed
            self.tracker.log("sft", self.progress.step, metrics)
            self._on_step("sft", self.progress.step, config.sft_steps, metrics)
            if self.progress.step % config.save_every == 0:
                save_checkpoint(self.folder, self.qwen, optimizer, self.progress)
            if done:
                break
        self.progress = Progress("grpo", 0)  # saved with a fresh optimiser: a run killed from here on is done with SFT
        optimizer = self._optimizer(config.learning_rate, config.weight_decay)
        save_checkpoint(self.folder, self.qwen, optimizer, self.progress)

    def _probe(self, cold_start: ColdStart) -> tuple[bool, dict[str, float]]:
        """Measures the stage's own tasks; moves on to the next stage, or tells that the cold start is done."""
        config, state = self.config, self.progress
        stage = cold_start.stages[state.stage]
        last = state.stage == len(cold_start.stages) - 1
        episodes = config.sft_probe_episodes if last else min(64, config.sft_probe_episodes)
        report = self.evaluate(episodes, 0.0, None if last else stage.arguments)
        metrics = report.metrics("probe/")
        measured = report.metrics()
        iou = (report.grounding or report.all).score.mean  # where there are only QA tasks, their accuracy
        if not last:
            if iou >= STAGE_IOU:
                self.progress = Progress("sft", state.step, state.stage + 1, state.step)
            return False, metrics
        self.progress = replace(state, skills={row.name: row.score.mean for row in report.rows})
        least = min((value for name, value in measured.items() if name.startswith("iou/")), default=iou)
        flawless = [t.stop == "answered" and all(turn.error is None for turn in t.turns) for t in report.trajectories]
        well_formed = np.mean(flawless) >= config.sft_stop_format
        return bool(iou >= config.sft_stop_iou and least >= config.sft_stop_type_iou and well_formed), metrics

    # ---------------------------------------------------------------- GRPO

    def _grpo(self) -> None:
        config = self.config
        optimizer = self._optimizer(config.learning_rate, config.weight_decay)
        reference = None
        if config.beta > 0:
            reference = load_qwen_vl(str(self.folder / COLD_START), config.device, config.dtype)
        with self._training_envs() as envs:
            while self.progress.step < config.steps:
                step = self.progress.step
                rate = config.learning_rate * _ramp(step, config.warmup, config.steps, 1.0, config.final_learning_rate)
                _set_rate(optimizer, rate)
                metrics = self._grpo_step(step, envs, optimizer, reference) | {"learning_rate": rate}
                self.progress = Progress("grpo", step + 1)
                if config.eval_every and (step + 1) % config.eval_every == 0 and step + 1 < config.steps:
                    metrics |= self.evaluate(config.sft_probe_episodes, 0.0).metrics("held_out/")
                self.tracker.log("grpo", step + 1, metrics)
                self._on_step("grpo", step + 1, config.steps, metrics)
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    save_checkpoint(self.folder, self.qwen, optimizer, self.progress)

    @contextmanager
    def _training_envs(self) -> Iterator[list[Any]]:
        """One environment per rollout of an update; they share a source, which may make its tasks ahead."""
        config = self.config
        arguments = {"codec": self.qwen.codec, **config.env_arguments()}
        with ExitStack() as open_sources:
            if config.workers:
                (first,) = make_envs(config.env, 1, **arguments)
                ahead = PrefetchedTasks(first.unwrapped.source, config.workers, 2 * config.prompts_per_step)
                arguments["source"] = open_sources.enter_context(ahead)
            yield make_envs(config.env, config.prompts_per_step * config.group_size, **arguments)

    def _grpo_step(
        self, step: int, envs: list[Any], optimizer: torch.optim.Optimizer, reference: QwenVL | None
    ) -> dict[str, float]:
        """Rollouts, advantages, one update."""
        config, began = self.config, time.process_time()
        self._seed_sampler("grpo", step)
        first = (config.seed + 1) * TASKS_PER_SEED + step * config.prompts_per_step
        starts = [first + task for task in range(config.prompts_per_step) for _ in range(config.group_size)]
        trajectories = run_episodes(self._agent(config.temperature), envs, starts)
        size = config.group_size
        groups = [trajectories[begin : begin + size] for begin in range(0, len(trajectories), size)]
        collected = collect(groups, self.qwen.chat, config)
        played = time.process_time()
        metrics = collected.metrics | {"time/rollout": played - began}
        if collected.rows:
            metrics |= self._update(collected.rows, collected.denominator, optimizer, reference)
        return metrics | {"time/update": time.process_time() - played}

    def _update(
        self, rows: Any, denominator: float, optimizer: torch.optim.Optimizer, reference: QwenVL | None
    ) -> dict[str, float]:
        config = self.config
        batch = pack(rows, self.qwen).to(self.qwen.device)
        logprobs = token_log_probs(self.qwen, batch, config.temperature)
        anchored = None
        if reference is not None:
            with torch.no_grad():
                anchored = token_log_probs(reference, batch, config.temperature)
        loss = grpo_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            anchored,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            beta=config.beta,
            denominator=denominator,
        )
        norm = descend(self.qwen, optimizer, loss.loss, config.max_grad_norm)
        values = {"policy": loss.policy, "kl": loss.kl, "clip_fraction": loss.clip_fraction, "drift": loss.drift}
        return {f"loss/{name}": value.item() for name, value in values.items()} | {"gradient/norm": norm}

    # ---------------------------------------------------------------- evaluation and output

    def evaluate(
        self, episodes: int, temperature: float, arguments: Mapping[str, Any] | None = None, split: str = "val"
    ) -> Report:
        """Plays held-out episodes: of a split of rendered tasks, or of the evaluation source.

        Args:
            episodes: How many, the same ones every time.
            temperature: 0 for greedy.
            arguments: Of the environment, in place of the run's own.
            split: `val` steers the run (probes), `test` is what is reported; there greedy episodes are played with
                blank images too, for the image sensitivity.
        """
        self._seed_sampler("evaluation", 0)
        chosen = self.config.env_arguments(evaluation=True) if arguments is None else dict(arguments)
        chosen["blind_episodes"] = None if split == "test" and temperature == 0 else 0
        agent = self._agent(temperature)
        return evaluate_agent(agent, self.config.env, episodes, split=split, parallel=128, **chosen)

    def _evaluate_both(self, when: str) -> None:
        """Greedy and sampled held-out metrics to `<when>.json`, greedy episodes to `<when>.jsonl`."""
        episodes = self.config.eval_episodes
        greedy = self.evaluate(episodes, 0.0, split="test")
        sampled = self.evaluate(episodes, self.config.temperature, split="test")
        write_records(self.folder / f"{when}.jsonl", greedy.records)
        both = {"greedy": greedy.metrics(), "sampled": sampled.metrics()}
        (self.folder / f"{when}.json").write_text(json.dumps(both, indent=1))

    def _finish(self) -> Result:
        from rl.report import draw_curve, write_episodes

        both = {when: json.loads((self.folder / f"{when}.json").read_text()) for when in ("before", "after")}
        draw_curve(self.folder)
        write_episodes(self.folder)
        before, after = both["before"], both["after"]
        return Result(before["greedy"], after["greedy"], before["sampled"], after["sampled"])

    # ---------------------------------------------------------------- parts

    def _agent(self, temperature: float) -> VLMAgent:
        return VLMAgent(self.qwen.chat, self.sampler, SamplingParameters(temperature, self.config.max_turn_tokens))

    def _seed_sampler(self, phase: str, step: int) -> None:
        number = np.random.SeedSequence([self.config.seed, *phase.encode(), step]).generate_state(1, np.uint64)[0]
        self.sampler.generator.manual_seed(int(number) >> 1)

    def _optimizer(self, rate: float, decay: float) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(self.qwen.model.parameters(), rate, betas=(0.9, 0.95), weight_decay=decay)
        if self._tensors:
            restore_optimizer(optimizer, self._tensors)
            self._tensors = {}
        return optimizer


def _fresh_model(config: TrainConfig) -> QwenVL:
    if config.start == SCRATCH:
        qwen = tiny_qwen_vl(config.seed)
        qwen.model.to(config.device)
        for parameter in qwen.model.parameters():  # not the buffers, as where a checkpoint is loaded
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        return qwen
    return load_qwen_vl(config.start, config.device, config.dtype)


def _ramp(step: int, warmup: int, steps: int, decay_share: float, final: float) -> float:
    """Linear warm-up, then linear decay over the last `decay_share` of the steps, down to `final`; in (0, 1]."""
    up = min(1.0, (step + 1) / max(warmup, 1))
    left = (1 - step / steps) / decay_share
    return up * max(final, min(1.0, left))


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
