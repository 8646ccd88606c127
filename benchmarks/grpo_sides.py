"""The two sides of the GRPO benchmark, each in a process of its own that takes one step for every line it reads.

python benchmarks/grpo_sides.py (ours | trl) CASE_AS_JSON

Ours calls what `rl.trainer` calls. TRL is its `GRPOTrainer`, timed by wrapping three of its methods.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpo_work import (
    CALL,
    PIXEL_BOUNDS,
    SEEN,
    Case,
    Environment,
    Record,
    Spent,
    model,
    now,
    peak_megabytes,
    question,
    region,
    rewards,
    shown,
    tokenizer,
)
from PIL import Image

# ---------------------------------------------------------------- ours


def qwen(case: Case, words: Any) -> Any:
    """The model as ours sees it, with the tool in its template where there is one."""
    from transformers.utils import get_json_schema

    from agents.attention import register
    from agents.qwen_vl import ATTENTIONS, QwenVL
    from agents.tiny_model import MEAN, STD

    register()
    made = model(case, words)
    made.set_attn_implementation({"text_config": ATTENTIONS[case.attention], "vision_config": "sdpa"})
    if case.turns > 1:
        schema = json.dumps([get_json_schema(Environment(case, 0).zoom)])
        words.chat_template = "{%- set tools = " + schema + " %}" + words.chat_template
    return QwenVL(made, words, *PIXEL_BOUNDS, MEAN, STD)


def settings(case: Case) -> Any:
    """Our configuration: all weights learn, old log-probs are the policy's own, as in TRL."""
    from rl.config import TrainConfig

    return TrainConfig(
        prompts_per_step=case.prompts,
        group_size=case.group,
        max_turn_tokens=case.tokens,
        learning_rate=1e-6,
        loss="dapo",
        std="group",
        recompute_old=True,
        train_vision=True,
        max_drift=1e9,  # the tool call is forced on the sampler, which the trainer cannot know
        device=case.device,
        dtype=case.dtype,
    )


class Ours:
    """Our sampler, collection and update, in the order in which the trainer calls them."""

    def __init__(self, case: Case) -> None:
        from agents.hf_sampler import HFSampler
        from agents.sampling import SamplingParameters
        from agents.vlm import VLMAgent
        from rl.policy import Policy
        from rl.update import Updater

        self.case, self.config = case, settings(case)
        self.qwen = qwen(case, tokenizer())
        self.sampler = HFSampler(self.qwen)
        self.agent = VLMAgent(self.qwen.chat, self.sampler, SamplingParameters(1.0, case.tokens))
        self.updater = Updater(Policy(self.qwen, self.config, "grpo"), self.config, case.tokens)
        self.call = list(self.qwen.codec.encode(CALL))

    def step(self, number: int) -> Record:
        """One step of GRPO."""
        from rl.collect import collect

        case = self.case
        histories = self._histories(number)
        begun = now(case.device)
        histories = self._play(histories)
        generated = now(case.device)
        groups = collect(self._groups(histories, number), self.qwen.chat, self.config).groups
        if not case.shared:
            groups = [replace(group, samples=(sample,)) for group in groups for sample in group.samples]
        collected = now(case.device)
        self.updater.step(groups)
        self.sampler.sync()
        ended = now(case.device)
        tokens = sum(group.tokens() for group in groups)
        return record(case, generated - begun, ended - collected, ended - begun, tokens)

    def _histories(self, step: int) -> list[Any]:
        from agents.types import Budget, History, Message

        case, histories = self.case, []
        for row in range(case.rows):
            message = Message("<image>" * case.images + question(case, step, row), tuple(shown(case, step, row)))
            histories.append(History(str(row // case.group), (), message, Budget(case.turns, 10**6, case.turns)))
        return histories

    def _play(self, histories: list[Any]) -> list[Any]:
        """All turns of all attempts; what waits in the last histories is not answered."""
        from agents.types import Message, Turn

        for turn in range(self.case.turns):
            self.qwen.model.lm_head.script[:] = self.call if turn < self.case.turns - 1 else []
            actions = self.agent.act(histories)
            for row, (history, action) in enumerate(zip(histories, actions, strict=True)):
                answer = f"<tool_response>\n<image>{SEEN}\n</tool_response>"
                message = Message(answer, (region(self.case, row, turn),))
                turns = (*history.turns, Turn(history.message, action, None))
                histories[row] = replace(history, turns=turns, message=message)
        return histories

    def _groups(self, histories: list[Any], step: int) -> list[list[Any]]:
        from agents.types import Trajectory

        paid = rewards(self.case, step)
        played = [
            Trajectory(history.task_id, "none", history.turns, float(reward), {}, "answered", True)
            for history, reward in zip(histories, paid, strict=True)
        ]
        return [played[begin : begin + self.case.group] for begin in range(0, len(played), self.case.group)]


# ---------------------------------------------------------------- TRL


def processor(words: Any) -> Any:
    """The stock processor without its video half, which alone needs torchvision."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    class ImageProcessor(Qwen2_5_VLProcessor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            for name in ("image", "video"):
                token = f"<|{name}_pad|>"
                setattr(self, f"{name}_token", token)
                setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
            for name in ("start", "end"):
                setattr(self, f"vision_{name}_token", f"<|vision_{name}|>")
                setattr(self, f"vision_{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>"))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    images = Qwen2VLImageProcessorPil(min_pixels=PIXEL_BOUNDS[0], max_pixels=PIXEL_BOUNDS[1])
    return ImageProcessor(images, words, words.chat_template)


def dataset(case: Case, steps: int) -> Any:
    """The prompts of all steps, in order."""
    from datasets import Dataset

    rows = []
    for step in range(steps):
        for row in range(0, case.rows, case.group):
            pictures = [Image.fromarray(each) for each in shown(case, step, row)]
            asked = [{"role": "user", "content": question(case, step, row)}]
            rows.append({"prompt": asked, "images": pictures})
    return Dataset.from_list(rows)


def trl_trainer(case: Case, steps: int, rate: float = 1e-6) -> Any:
    """TRL's trainer on the same work; settings that change neither work nor result are left at their defaults."""
    from trl import GRPOConfig, GRPOTrainer

    words = tokenizer()
    words.padding_side = "left"
    config = GRPOConfig(
        output_dir=str(Path(tempfile.gettempdir(), "grpo_vs_trl")),
        per_device_train_batch_size=case.rows,
        num_generations=case.group,
        max_completion_length=case.tokens if case.turns == 1 else 1024,
        max_steps=steps,
        max_tool_calling_iterations=case.turns - 1 or None,
        generation_kwargs={"max_new_tokens": case.tokens},
        learning_rate=rate,
        lr_scheduler_type="constant",
        epsilon_high=0.28,
        gradient_checkpointing=False,
        use_cpu=case.device == "cpu",
        bf16=case.dtype == "bfloat16",
        shuffle_dataset=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    made: list[Environment] = []

    def environment() -> Environment:
        made.append(Environment(case, len(made)))
        return made[-1]

    drawn = np.random.default_rng(0)
    paid = (
        {"environment_factory": environment}
        if case.turns > 1
        else {"reward_funcs": lambda completions, **_: drawn.random(len(completions)).tolist()}
    )
    data = dataset(case, steps)
    trainer = GRPOTrainer(
        model=model(case, words), args=config, train_dataset=data, processing_class=processor(words), **paid
    )
    if case.turns > 1:
        _force_call(trainer, words(CALL)["input_ids"])
    return trainer


def _force_call(trainer: Any, call: list[int]) -> None:
    """Has the first turn of every attempt write the tool call."""
    stock = trainer._generate_single_turn

    @functools.wraps(stock)
    def generate(*arguments: Any, has_tool_images: bool = False, **named: Any) -> Any:
        trainer.model.lm_head.script[:] = [] if has_tool_images else call
        return stock(*arguments, has_tool_images=has_tool_images, **named)

    trainer._generate_single_turn = generate


def trl_steps(case: Case, steps: int, wait: Callable[[], None], tell: Callable[[Record], None]) -> None:
    """Trains; before each step waits, after each tells what it took."""
    from transformers import TrainerCallback

    trainer = trl_trainer(case, steps)
    marks: dict[str, Spent] = {}
    tokens: list[int] = []

    def timed(name: str) -> None:
        stock = getattr(trainer, name)

        @functools.wraps(stock)
        def method(*arguments: Any, **named: Any) -> Any:
            begun = now(case.device)
            result = stock(*arguments, **named)
            marks[name] = now(case.device)
            marks[f"{name} took"] = marks[name] - begun
            if name == "_generate_and_score_completions":
                mask = result["completion_mask"] * result.get("tool_mask", 1)
                tokens.append(int(mask.sum()))
            return result

        setattr(trainer, name, method)

    for name in ("_generate", "_generate_and_score_completions", "_prepare_inputs"):
        timed(name)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait()
            marks["step"] = now(case.device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended = now(case.device)
            spent = (marks["_generate took"], ended - marks["_prepare_inputs"], ended - marks["step"])
            tell(record(case, *spent, tokens[-1]))

    trainer.add_callback(Steps())
    trainer.train()


# ---------------------------------------------------------------- the process


def record(case: Case, generation: Spent, update: Spent, step: Spent, tokens: int) -> Record:
    """What is told of a step."""
    phases = {"generation": asdict(generation), "update": asdict(update), "step": asdict(step)}
    return {**phases, "tokens": tokens, "peak": peak_megabytes(case.device)}


def main() -> None:
    side, case, steps = sys.argv[1], Case(**json.loads(sys.argv[2])), int(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes elsewhere

    def tell(value: Record) -> None:
        print(json.dumps(value), file=out, flush=True)

    lines: Iterator[str] = iter(sys.stdin)

    def wait() -> None:
        if next(lines, "") == "":
            sys.exit()

    if case.device == "cpu":
        torch.set_num_threads(1)
    if side == "trl":
        trl_steps(case, steps, wait, tell)
        return
    ours = Ours(case)
    for number in range(steps):
        wait()
        tell(ours.step(number))


if __name__ == "__main__":
    main()
