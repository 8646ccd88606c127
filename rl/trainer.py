"""The trainer: a cold start, then GRPO, then what there is to show. It only sequences; the parts are elsewhere.

All randomness is derived from (seed, phase, step), so a resumed run goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from agents.evaluate import evaluate_agent, record_of
from agents.hf_sampler import HFSampler
from agents.report import Report
from agents.rollout import make_envs, run_episodes
from agents.sampling import SamplingParameters
from agents.types import Trajectory
from agents.vlm import VLMAgent
from mimgenv.records import write_records
from mimgenv.tasks.prefetch import PrefetchedTasks
from mimgenv.turn_rules import TurnRules
from mimgenv.viewer import ShownEpisode
from rl.batch import parts
from rl.checkpoint import Progress, checkpoints, read_checkpoint
from rl.collect import Group, collect, varying
from rl.config import TASKS_PER_SEED, TrainConfig
from rl.distributed import ALONE, World
from rl.guards import check_busy
from rl.policy import COLD_START, Policy
from rl.settings import CONFIG
from rl.sft import STAGE_IOU, ColdStart, RecordedSet, cold_start_set, sft_step
from rl.tracker import Tracker
from rl.update import Updater

MODEL: Final = "model"
SFT_WARMUP: Final = 30
SFT_FINAL: Final = 0.05
"""Updates of the cold start's warm-up, or a tenth of them all, and the share of its rate that the last update has."""
SHOWN: Final = 16
"""Episodes of a step that are shown, where any are: whole groups, so that attempts at one task can be compared."""

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
        world: The ranks that train together, each with a trainer of its own.

    Raises:
        FileExistsError: If the output folder holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is none.
        CheckpointError: If the checkpoint cannot be gone on from.
        ValueError: If the choices of the loss do not go together.
    """

    def __init__(
        self, config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None, world: World = ALONE
    ) -> None:
        config.objective()  # refused here, not after hours of cold start
        self.config, self.world = config, world
        self.folder = Path(config.output)
        self._on_step = on_step or (lambda *_: None)
        _check_machine(config, world)
        saved = checkpoints(self.folder)
        if saved and not resume:
            raise FileExistsError(f"{self.folder} holds a run: pass --resume, or another --output")
        if resume and not saved:
            raise FileNotFoundError(f"{self.folder} holds no complete checkpoint: start it again without --resume")
        self.progress = (
            read_checkpoint(saved[-1])[0] if resume else Progress("sft" if config.learns_first else "grpo", 0)
        )
        self._is_fresh, self._idle = not resume, 0
        started = Policy.resume(config, saved[-1], world) if resume else None
        self._follow(started or Policy.start(config, self.progress.phase, world))
        world.barrier()  # nothing is written before all have looked at what is there

    def train(self) -> Result:
        """Runs to the end and writes `model/`, `curve.png`, `episodes.html`, `before.json` and `after.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world.is_main:
            (self.folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1))
            self.tracker = Tracker(self.folder, self.progress.phase, self.progress.step)
        if self._is_fresh and self.progress.phase == "grpo":
            self.policy.save_whole(self.folder / COLD_START)
        if self._is_fresh:  # from here on there is something to resume
            self.policy.checkpoint(self.folder, self.progress)
        if self.progress.phase == "sft":
            self._cold_start()
        if self.progress.step == 0:
            self._evaluate_both("before")
        self._grpo()
        self._evaluate_both("after")
        self.policy.save_whole(self.folder / MODEL)
        return self._finish()

    def _log(self, phase: str, step: int, most: int, metrics: Mapping[str, float]) -> None:
        if self.world.is_main:
            self.tracker.log(phase, step, metrics)
            self._on_step(phase, step, most, metrics)

    def _follow(self, policy: Policy) -> None:
        """Samples from this policy from now on, under rules of its codec where actions are constrained."""
        config, codec = self.config, policy.qwen.codec
        self.policy = policy
        self.sampler = HFSampler(policy.qwen, config.seed, kept_bytes=int(config.kept_gigabytes * 2**30))
        self._rules: TurnRules | None = None
        if config.constrain_actions:
            (env,) = make_envs(config.env, 1, codec=codec, **config.env_arguments())
            inner: Any = env.unwrapped
            self._rules = TurnRules(codec, inner.tools, inner.box_frame, max_turn_tokens=config.max_turn_tokens)

    # ---------------------------------------------------------------- cold start

    def _cold_start(self) -> None:
        config = self.config
        cold_start = cold_start_set(config, self.policy.qwen.chat)
        while self.progress.step < config.sft_steps:
            state = self.progress
            began = time.perf_counter()
            share = _SCHEDULES[config.sft_schedule](state.step, config.sft_steps)
            self.policy.set_rate(config.sft_learning_rate * share)
            rows = cold_start.rows(state.stage, state.step - state.stage_step, state.skills)
            metrics = sft_step(self.policy, rows, config.rows_per_forward, state.step + 1)
            metrics |= {"stage": float(state.stage), "time/update": time.perf_counter() - began}
            self.progress = replace(state, step=state.step + 1)
            done = False
            if self.progress.step % config.sft_probe_every == 0:
                probed = self._probe(cold_start)
                done, self.progress, measured = self.world.gather(probed)[0]  # ranks may differ in the last bit
                metrics |= measured
            self._log("sft", self.progress.step, config.sft_steps, metrics)
            if self.progress.step % config.save_every == 0:
                self.policy.checkpoint(self.folder, self.progress)
            if done:
                break
        self._follow(self.policy.next_phase("grpo"))
        self.progress = Progress("grpo", 0)  # a run killed from here on is done with SFT
        self.policy.checkpoint(self.folder, self.progress)

    def _probe(self, cold_start: ColdStart | RecordedSet) -> tuple[bool, Progress, dict[str, float]]:
        """Measures the stage's own tasks: whether the cold start is done, where it stands, and what was measured."""
        config, state = self.config, self.progress
        stage = cold_start.stages[state.stage]
        last = state.stage == len(cold_start.stages) - 1
        episodes = config.sft_probe_episodes if last else min(64, config.sft_probe_episodes)
        report = self.evaluate(episodes, 0.0, None if last else stage.arguments)
        metrics = report.metrics("probe/")
        measured = report.metrics()
        iou = (report.grounding or report.all).score.mean  # where there are only QA tasks, their accuracy
        if not last:
            following = Progress("sft", state.step, state.stage + 1, state.step)
            return False, following if iou >= STAGE_IOU else state, metrics
        least = min((value for name, value in measured.items() if name.startswith("iou/")), default=iou)
        flawless = [t.stop == "answered" and all(turn.error is None for turn in t.turns) for t in report.trajectories]
        well_formed = np.mean(flawless) >= config.sft_stop_format
        skilled = bool(iou >= config.sft_stop_iou and least >= config.sft_stop_type_iou and well_formed)
        done = skilled and config.sft_data is None  # a recorded set is gone through, however skilled
        return done, replace(state, skills={row.name: row.score.mean for row in report.rows}), metrics

    # ---------------------------------------------------------------- GRPO

    def _grpo(self) -> None:
        config = self.config
        with self._training_envs() as envs:
            longest = config.max_turn_tokens * envs[0].unwrapped.max_turns
            updater = Updater(self.policy, config, longest)
            while self.progress.step < config.steps:
                step = self.progress.step + 1
                share = _ramp(step - 1, config.warmup, config.steps, 1.0, config.final_learning_rate)
                self.policy.set_rate(config.learning_rate * share)
                metrics = self._grpo_step(envs, updater) | {"learning_rate": config.learning_rate * share}
                if config.eval_every and step % config.eval_every == 0 and step < config.steps:
                    metrics |= self.evaluate(config.sft_probe_episodes, 0.0).metrics("held_out/")
                self._log("grpo", step, config.steps, metrics)
                if step % config.save_every == 0 or step == config.steps:
                    self.policy.checkpoint(self.folder, self.progress)

    @contextmanager
    def _training_envs(self) -> Iterator[list[Any]]:
        """One environment per rollout of a round; they share a source, which may make its tasks ahead."""
        config = self.config
        arguments = {"codec": self.policy.qwen.codec, **config.env_arguments()}
        with ExitStack() as open_sources:
            if config.workers:
                (first,) = make_envs(config.env, 1, **arguments)
                ahead = PrefetchedTasks(first.unwrapped.source, config.workers, 2 * config.prompts_per_step)
                arguments["source"] = open_sources.enter_context(ahead)
            prompts = len(self.world.share(range(config.prompts_per_step)))
            yield make_envs(config.env, max(1, prompts * config.group_size), **arguments)

    def _grpo_step(self, envs: list[Any], updater: Updater) -> dict[str, float]:
        """Rollouts, advantages, updates."""
        began = time.perf_counter()
        groups = self._rollouts(envs)
        self.sampler.sync()  # what was kept from turn to turn makes room
        collected = collect(groups, self.policy.qwen.chat, self.config, self.world)
        played = time.perf_counter()
        metrics = collected.metrics | {"time/rollout": played - began}
        self._idle = 0 if metrics["mask/tokens_trained"] else self._idle + 1
        check_busy(self._idle, metrics)
        if not self._idle:
            metrics |= updater.step(collected.groups, self.progress.step)
        return metrics | {"time/update": time.perf_counter() - played}

    def _rollouts(self, envs: list[Any]) -> list[Group]:
        """This rank's groups of one step: a round, and more rounds while too few groups vary."""
        config = self.config
        self._begin_sampling("grpo", self.progress.step)
        groups: list[Group] = []
        shown: dict[int, ShownEpisode] = {}
        tasks, step = self.progress.tasks, self.progress.step + 1
        due = config.show_every > 0 and step % config.show_every == 0

        def show(index: int, env: Any, trajectory: Trajectory) -> None:
            if due and index < max(SHOWN, config.group_size) and index not in shown:
                shown[index] = ShownEpisode(record_of(trajectory, env.unwrapped, "policy"), trajectory.images)

        for _ in range(1 + config.refill):
            first = (config.seed + 1) * TASKS_PER_SEED + tasks
            own = self.world.share(range(first, first + config.prompts_per_step))
            starts = [task for task in own for _ in range(config.group_size)]
            with self.policy.whole():
                trajectories = run_episodes(self._agent(config.temperature), envs, starts, on_finish=show)
            groups += parts(trajectories, config.group_size)
            tasks += config.prompts_per_step
            if config.refill and varying(groups, config, self.world).sum() >= config.prompts_per_step:
                break
        if due and self.world.is_main:
            self.tracker.show("grpo", step, [shown[index] for index in sorted(shown)])
        self.progress = replace(self.progress, step=step, tasks=tasks)
        return groups

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
        self._begin_sampling("evaluation", 0)
        chosen = self.config.env_arguments(evaluation=True) if arguments is None else dict(arguments)
        chosen["blind_episodes"] = None if split == "test" and temperature == 0 else 0
        agent = self._agent(temperature)
        parallel = min(128, self.config.prompts_per_step * self.config.group_size)
        with self.policy.whole():  # every rank plays all of them, and finds the same
            return evaluate_agent(agent, self.config.env, episodes, split=split, parallel=parallel, **chosen)

    def _evaluate_both(self, when: str) -> None:
        """Greedy and sampled held-out metrics to `<when>.json`, greedy episodes to `<when>.jsonl`."""
        episodes = self.config.eval_episodes
        greedy = self.evaluate(episodes, 0.0, split="test")
        sampled = self.evaluate(episodes, self.config.temperature, split="test")
        if not self.world.is_main:
            return
        write_records(self.folder / f"{when}.jsonl", greedy.records)
        both = {"greedy": greedy.metrics(), "sampled": sampled.metrics()}
        (self.folder / f"{when}.json").write_text(json.dumps(both, indent=1))

    def _finish(self) -> Result:
        from rl.report import draw_curve, write_episodes

        both = {when: json.loads((self.folder / f"{when}.json").read_text()) for when in ("before", "after")}
        if self.world.is_main:
            self.tracker.close()
            draw_curve(self.folder)
            write_episodes(self.folder)
        before, after = both["before"], both["after"]
        return Result(before["greedy"], after["greedy"], before["sampled"], after["sampled"])

    # ---------------------------------------------------------------- parts

    def _agent(self, temperature: float) -> VLMAgent:
        parameters = SamplingParameters(temperature, self.config.max_turn_tokens)
        return VLMAgent(self.policy.qwen.chat, self.sampler, parameters, self._rules)

    def _begin_sampling(self, phase: str, step: int) -> None:
        """What is sampled from here on depends on the weights and this moment of the run alone."""
        self.sampler.sync()
        words = [self.config.seed, *phase.encode(), step]
        if phase == "grpo" and not self.world.is_main:  # each rank draws for itself; evaluations are alike on all
            words.append(self.world.rank)
        number = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
        self.sampler.generator.manual_seed(int(number) >> 1)


def _check_machine(config: TrainConfig, world: World) -> None:
    """Refuses what this machine, or so many ranks, cannot do, before anything is written."""
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {config.device}: torch finds no GPU")
    if config.attention == "flex_attention" and device.type == "cpu":
        raise ValueError("attention flex_attention: it has no backward pass on a CPU; use sdpa")
    if config.sft_data is not None and not Path(config.sft_data).is_file():
        raise FileNotFoundError(f"sft_data {config.sft_data}: there is no such file")
    if config.workers and world.size > 1:
        raise ValueError(f"workers {config.workers}: on several ranks each would make the tasks of all; use 0")


def _ramp(step: int, warmup: int, steps: int, decay_share: float, final: float) -> float:
    """Linear warm-up, then linear decay over the last `decay_share` of the steps, down to `final`; in (0, 1]."""
    up = min(1.0, (step + 1) / max(warmup, 1))
    left = (1 - step / steps) / decay_share
    return up * max(final, min(1.0, left))


def _cosine(step: int, warmup: int, steps: int, final: float) -> float:
    """Linear warm-up, then half a cosine down to `final`; in (0, 1]."""
    gone = max(0.0, (step - warmup) / max(steps - warmup, 1))
    return min(1.0, (step + 1) / max(warmup, 1)) * (final + (1 - final) * (1 + math.cos(math.pi * gone)) / 2)


_SCHEDULES: Final[Mapping[str, Callable[[int, int], float]]] = {
    "linear": lambda step, steps: _ramp(step, min(SFT_WARMUP, steps // 10), steps, 0.5, SFT_FINAL),
    "cosine": lambda step, steps: _cosine(step, min(SFT_WARMUP, steps // 10), steps, SFT_FINAL),
}
"""Shares of the cold start's learning rate, by `sft_schedule`."""
