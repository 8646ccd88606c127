"""Plans: the published model at full size, what grows with what, and what an episode may have at most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest

from agents.positions import expand
from agents.shapes import model_shape
from agents.types import Budget, History, Message
from rl.config import TrainConfig
from rl.planning.plan import LOOKED_AT, SAMPLED_TOGETHER, Plan, plan

SEVEN = TrainConfig(
    env="MultiImageTiny-v0",
    start="Qwen/Qwen2.5-VL-7B-Instruct",
    dtype="bfloat16",
    lora_rank=32,
    gradient_checkpointing=True,
    rows_per_forward=2,
    prompts_per_step=64,
)
TINY = TrainConfig(start="tiny")


@pytest.fixture(scope="module")
def seven() -> Plan:
    return plan(SEVEN)


@pytest.fixture(scope="module")
def tiny() -> Plan:
    return plan(TINY)


def test_the_published_model_and_its_adapters_are_counted_in_full(seven: Plan) -> None:
    widths = [3584 + 3584, 3584 + 512, 3584 + 512, 3584 + 3584, 3 * (3584 + 18944)]
    adapters = 28 * 32 * sum(widths)
    assert seven.trained == adapters == 80_740_352
    assert seven.parameters == 8_292_166_656 + adapters
    assert seven.held.weights == 2 * 8_292_166_656
    assert seven.held.adapters == seven.held.gradients == 4 * adapters


def test_keys_and_values_of_a_token_are_two_for_every_layer_and_key_value_head(seven: Plan) -> None:
    assert seven.key_values == 2 * 28 * 4 * 128 * 2
    each = (seven.lengths.prompt + seven.lengths.attempt) * seven.key_values
    assert seven.rollout()["keys and values"] == SAMPLED_TOGETHER * each
    assert seven.rollout(8)["keys and values"] == 64 * each  # 8 tasks of 8 attempts each


def test_a_checkpointed_pass_keeps_the_input_of_each_layer_and_one_layer_whole(seven: Plan) -> None:
    plain = replace(seven, config=replace(SEVEN, gradient_checkpointing=False))
    assert seven.activations(1000) == 1000 * (28 * 3584 * 2 + seven.layer)
    assert plain.activations(1000) == 1000 * 28 * seven.layer
    assert seven.update()["activations"] == seven.activations(2 * seven.row)


def test_a_row_holds_the_prompt_once_where_it_can_be_shared(tiny: Plan) -> None:
    lengths = tiny.lengths
    assert tiny.row == lengths.prompt + 8 * lengths.attempt
    assert replace(tiny, shares=False).row == 8 * (lengths.prompt + lengths.attempt)


def test_recorded_episodes_have_rows_of_their_own() -> None:
    taught = replace(TINY, cold_start=True, steps=0)
    asked, recorded = plan(taught), plan(replace(taught, sft_data="trajectories.jsonl"))
    assert asked.row - recorded.row == (taught.sft_questions - 1) * asked.lengths.attempt


def test_ddp_holds_gradients_twice_and_fsdp2_divides_what_learns(seven: Plan) -> None:
    spread = replace(seven, config=replace(SEVEN, parallel="fsdp2"))
    assert seven.update(1)["gradients"] == seven.held.gradients
    assert seven.update(8)["gradients"] == 2 * seven.held.gradients
    assert spread.update(8)["gradients"] == seven.held.gradients // 8
    assert seven.update(8)["optimiser"] == seven.held.optimizer
    assert spread.update(8)["optimiser"] == seven.held.optimizer // 8
    assert spread.update(8)["weights"] == seven.held.weights * 9 // 8  # rollouts put the model together


def test_a_run_without_grpo_samples_nothing_to_learn_from() -> None:
    made = plan(replace(TINY, cold_start=True, steps=0))
    assert made.rollout() == {}
    assert made.update()["activations"] > 0
    assert (made.work.played, made.passes()) == (0, 0)


def test_work_counts_what_is_played_and_what_is_only_evaluated(tiny: Plan) -> None:
    work = tiny.work
    assert (work.sft_updates, work.grpo_steps, work.played) == (0, 350, 350 * 28 * 8)
    assert work.evaluated == 6 * 560 + 6 * 280  # before and after three times; six probes before the last step
    assert work.tokens == (work.played + work.evaluated) * tiny.lengths.sampled
    assert tiny.passes() == 350 * 2 * tiny.lengths.sampled  # 224 attempts are two portions
    assert tiny.passes(2) == 350 * tiny.lengths.sampled


def test_refilled_steps_and_a_cold_start_add_to_the_work() -> None:
    refilled, taught = plan(replace(TINY, refill=2)), plan(replace(TINY, cold_start=True))
    assert refilled.work.played == 3 * 350 * 28 * 8
    assert taught.work.sft_updates == 2500
    assert taught.work.evaluated == 6 * 560 + (6 + 50) * 280


def test_the_longest_attempt_that_fits_is_the_last_that_does(seven: Plan) -> None:
    long = replace(seven, lengths=replace(seven.lengths, attempt=10_000, sampled=10_000))
    room = 40 * 10**9
    found = long.longest(room, Plan.rollout)

    def needed(attempt: int) -> int:
        return sum(replace(long, lengths=replace(long.lengths, attempt=attempt, sampled=attempt)).rollout().values())

    assert needed(found) <= room < needed(found + 1)
    assert long.longest(10**9, Plan.rollout) == 0
    assert long.longest(10**12, Plan.rollout) == 10_000


def prompts(config: TrainConfig) -> list[int]:
    """Tokens of first prompts, those of images among them."""
    from agents.shapes import random_model

    qwen = random_model(model_shape("tiny"), "float32", device="meta")
    env: Any = gym.make(config.env, codec=qwen.codec, **config.env_arguments()).unwrapped
    found = []
    for seed in range(LOOKED_AT):
        observation, info = env.reset(seed=seed)
        message = Message(observation["text"], tuple(observation["images"]))
        prompt = qwen.chat.prompt(History(info["task_id"], (), message, Budget(**info["budget"])))
        found.append(len(expand(prompt.ids, [qwen.grid(image) for image in prompt.images], qwen.chat.image_id).ids))
    return found


def test_a_prompt_is_as_long_as_the_longest_that_was_seen(tiny: Plan) -> None:
    seen = prompts(TINY)
    assert tiny.lengths.prompt == max(seen) > min(seen)
    assert 0 < tiny.lengths.images < tiny.lengths.prompt


def test_an_attempt_is_bounded_by_turns_and_by_tokens() -> None:
    by_turns = plan(replace(TINY, max_turns=3, max_turn_tokens=10)).lengths
    by_tokens = plan(replace(TINY, max_turns=3, max_turn_tokens=10, max_tokens=25)).lengths
    assert (by_turns.sampled, by_tokens.sampled) == (30, 25)
    assert by_turns.attempt == 30 + 2 * 64


def test_images_that_tools_return_make_an_attempt_longer() -> None:
    looking = replace(TINY, tools=("zoom",), max_turns=3, max_images=12)
    without = replace(looking, tools=())
    assert plan(looking).lengths.attempt == plan(without).lengths.attempt + 2 * 9  # of 84 x 84 pixels: 3 x 3 tokens


def test_a_loss_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing comes of it"):
        plan(replace(TINY, kl="k1"))


def test_recorded_episodes_alone_make_a_plan_of_sft() -> None:
    config = TrainConfig(start="tiny", sft_data="none.jsonl", sft_steps=7)
    assert plan(config).work.sft_updates == 7
    assert plan(replace(config, sft_data=None)).work.sft_updates == 0
