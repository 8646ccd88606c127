"""Rehearsed steps: that they update weights, hold what was planned, say what they cut, and fail where a run would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest

import rl.planning.rehearsal
from agents.shapes import model_shape
from rl.config import TrainConfig
from rl.errors import TrainingStopped
from rl.planning.rehearsal import rehearse

CONFIG = TrainConfig(start="tiny", group_size=4)
BOTH = {"sft", "grpo"}


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, beta=0.1, train_vision=False),
        replace(CONFIG, beta=0.1, train_vision=True),
        replace(CONFIG, lora_rank=4, dtype="bfloat16", beta=0.1, gradient_checkpointing=True),
    ],
)
def test_the_tensors_of_a_step_take_the_bytes_that_were_planned(config: TrainConfig) -> None:
    found = rehearse(replace(config, cold_start=True))
    assert found.found == found.planned
    assert found.found.gradients > 0
    assert found.found.optimizer > found.found.gradients
    assert (found.found.reference > 0) == (not config.lora_rank)


def test_a_step_updates_by_sft_and_by_grpo_where_the_run_does() -> None:
    both = rehearse(replace(CONFIG, cold_start=True))
    assert set(both.metrics) == BOTH
    assert both.metrics["sft"]["gradient/norm"] > 0
    assert both.metrics["grpo"]["gradient/norm"] > 0
    assert both.moved == both.trained > 0
    assert set(rehearse(replace(CONFIG, cold_start=False)).metrics) == {"grpo"}
    assert set(rehearse(replace(CONFIG, cold_start=True, steps=0)).metrics) == {"sft"}


def test_from_scratch_there_is_a_cold_start_unless_it_is_switched_off() -> None:
    scratch = replace(CONFIG, start="scratch")
    assert set(rehearse(scratch).metrics) == BOTH
    assert set(rehearse(replace(scratch, cold_start=False)).metrics) == {"grpo"}


def test_of_new_adapters_one_factor_moves_and_the_other_waits() -> None:
    found = rehearse(replace(CONFIG, lora_rank=4, cold_start=False))
    assert found.moved * 2 == found.trained


def test_the_losses_are_those_of_the_settings() -> None:
    plain, with_kl = rehearse(CONFIG), rehearse(replace(CONFIG, loss="mig_grpo"))
    assert "loss/kl" not in plain.metrics["grpo"]
    assert "loss/kl" in with_kl.metrics["grpo"]


def test_what_a_rehearsal_cuts_is_said() -> None:
    found = rehearse(replace(CONFIG, max_turn_tokens=500, prompts_per_step=3, sft_data="none.jsonl", cold_start=True))
    said = "; ".join(found.cuts)
    assert "2 text and 2 vision layers, random weights" in said
    assert "turns: 2 of 16 tokens at most" in said
    assert "prompts_per_step 1" in said
    assert "an oracle's episodes" in said
    assert "rewards and stops made up" in said


def test_what_is_not_cut_is_not_said_to_be() -> None:
    taught, played = rehearse(replace(CONFIG, steps=0, cold_start=True)), rehearse(CONFIG)
    assert not any(word in "; ".join(taught.cuts) for word in ("prompts_per_step", "device", "rewards", "oracle"))
    assert "prompts_per_step 1" in played.cuts
    assert "sft_rows 2" in taught.cuts
    assert "sft_rows 2" not in played.cuts


def test_turns_follow_the_grammar_where_the_run_constrains_them() -> None:
    counting = replace(CONFIG, tasks=("counting",), tools=(), cold_start=False)  # no box, which may be inverted
    free, legal = rehearse(counting), rehearse(replace(counting, constrain_actions=True))
    assert free.metrics["grpo"]["reward/format"] == 0
    assert legal.metrics["grpo"]["reward/format"] == 1


def test_a_model_without_room_is_cut_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.planning.rehearsal, "ROOM", 1)
    found = rehearse(replace(CONFIG, cold_start=False))
    assert "1 text and 1 vision layer, random weights" in found.cuts
    assert "at most 8192 rows of the embedding" in found.cuts
    assert found.found == found.planned


def test_a_tokenizer_with_ids_beyond_the_embedding_that_is_left_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.planning.rehearsal, "SIZES", ((1, 834),))
    found = rehearse(replace(CONFIG, cold_start=False), replace(model_shape("tiny"), tokenizer=object()))
    assert found.moved == found.trained


def test_a_setting_that_cannot_work_fails_in_the_rehearsal() -> None:
    with pytest.raises(gym.error.Error):
        rehearse(replace(CONFIG, env="Nothing-v0"))
    with pytest.raises(TrainingStopped, match="difficulty_part"):
        rehearse(replace(CONFIG, difficulty_part="nothing"))


def test_a_step_that_changes_no_weight_is_no_rehearsal() -> None:
    with pytest.raises(TrainingStopped, match="changes weights"):
        rehearse(replace(CONFIG, learning_rate=0.0))


def test_nothing_is_written_where_the_run_will_be(tmp_path: Path) -> None:
    rehearse(replace(CONFIG, cold_start=True, beta=0.1, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_step_at_the_widths_of_the_published_model_takes_what_was_planned() -> None:
    config = TrainConfig(
        env="MultiImageGrounding-v0",
        tasks=("referring",),
        start="Qwen/Qwen2.5-VL-7B-Instruct",
        dtype="bfloat16",
        lora_rank=32,
        gradient_checkpointing=True,
        loss="mig_grpo",
        max_turns=1,
        max_turn_tokens=1024,
        learning_rate=5e-5,
    )
    found = rehearse(config)
    assert found.found == found.planned
    assert found.planned.weights > 2 * (2 * 152_064 * 3584)  # embedding and head in full, two bytes a number
    assert found.moved * 2 == found.trained == 28
    assert found.peak < 9 * 10**9
