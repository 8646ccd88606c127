"""The configuration: its defaults, what it is turned into, and what is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import gymnasium as gym
import pytest

from agents import oracle
from rl import trainer
from rl.config import LOSSES, OBJECTIVE, RENDERED, SCHEDULES, THOUGHTS, EnvSettings, TrainConfig
from rl.loss import PRESETS, Objective
from rl.masking import KEEP_STOPS

COUNTS = ("sft_questions", "sft_rows", "sft_probe_every", "sft_probe_episodes", "prompts_per_step")
COUNTS += ("max_turn_tokens", "eval_episodes", "save_every")
SHARES = ("sft_zoom", "sft_reflect", "sft_confirm")
NO_TOOL = dict.fromkeys(SHARES, 0.0)


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size 1: "),
        ({"temperature": 0.0}, "temperature 0.0: "),
        ({"sft_tasks": 2}, "sft_tasks 2: at least 3"),
        *[({name: 0}, f"{name} 0: at least 1") for name in COUNTS],
        ({"temperature": -1.0}, "temperature -1.0: "),
        ({"keep_stops": ("answered", "bored")}, r"keep_stops \['bored'\] are not among \['answered', "),
    ],
)
def test_what_cannot_work_is_refused_with_its_value(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**settings)


def test_the_stop_reasons_that_are_kept_by_default_are_those_of_the_mask() -> None:
    assert TrainConfig().keep_stops == tuple(stop for stop, kept in KEEP_STOPS.items() if kept)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_every_option_is_explained() -> None:
    said = f"{EnvSettings.__doc__} {TrainConfig.__doc__}".replace(",", " ").replace(":", " ").split()
    assert [field.name for field in fields(TrainConfig) if field.name not in said] == []


# ---------------------------------------------------------------- what the environment is asked for


def test_what_is_not_set_is_left_to_the_environments_id() -> None:
    assert TrainConfig().env_arguments() == {"reward": "grounding"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "odinw:/a"),
        ("tasks", ("locate",)),
        ("world", "tabletop"),
        ("difficulty", 2),
        ("tools", ("zoom",)),
        ("tools", ()),
        ("instructions", "brief"),
        ("box_frame", "norm1000"),
        ("max_turns", 3),
        ("max_tokens", 99),
        ("max_images", 0),
        ("max_pixels", 3136),
        ("reward", "accuracy"),
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_what_is_set_reaches_the_environment(name: str, value: Any, evaluation: bool) -> None:
    arguments = TrainConfig(**{name: value}).env_arguments(evaluation)
    assert arguments == {"reward": "grounding", name: value}


def test_the_evaluation_may_have_a_source_of_its_own() -> None:
    config = TrainConfig(source="odinw:/train", eval_source="odinw:/valid")
    assert config.env_arguments()["source"] == "odinw:/train"
    assert config.env_arguments(evaluation=True)["source"] == "odinw:/valid"


@pytest.mark.parametrize("source", [None, "selected:/tasks.jsonl"])
def test_the_evaluation_may_be_of_rendered_tasks_whatever_is_trained_on(source: str | None) -> None:
    config = TrainConfig(source=source, eval_source=RENDERED, world="tiny")
    rendered = {"reward": "grounding", "world": "tiny"}
    assert config.env_arguments(evaluation=True) == rendered
    assert config.env_arguments() == (rendered if source is None else rendered | {"source": source})


def test_every_setting_of_an_environment_is_one_that_environments_take() -> None:
    given = {"world": "tiny", "tasks": ("locate",), "tools": ("zoom",), "difficulty": 2, "instructions": "brief"}
    given |= {"box_frame": "unit", "max_turns": 3, "max_tokens": 99, "max_images": 1, "max_pixels": 3136}
    made: Any = gym.make("mimgenv:MultiImageQA-v0", **TrainConfig(**given).env_arguments()).unwrapped
    beside = {"env", "source", "eval_source", "reward"}
    assert {field.name for field in fields(EnvSettings)} == given.keys() | beside
    for name in ("box_frame", "instructions", "max_turns", "max_tokens", "max_images", "max_pixels"):
        assert getattr(made, name) == given[name]


# ---------------------------------------------------------------- the loss


BESIDE: Mapping[str, Mapping[str, Any]] = {
    "kl": {"beta": 0.1},
    "unbiased_kl": {"beta": 0.1},
    "correction_cap": {"correction": "token"},
    "clip_low": {"clip": "ppo"},
    "clip_high": {"clip": "ppo"},
}
"""What a part of the loss needs to mean something."""


@pytest.mark.parametrize(
    ("name", "value", "beside"),
    [
        ("kl", "k1", {"beta": 0.0}),
        ("unbiased_kl", True, {"beta": 0.0}),
        ("correction_cap", 3.0, {"correction": "off"}),
        ("clip_low", 0.1, {"clip": "off"}),
        ("clip_high", 0.1, {"clip": "off"}),
    ],
)
def test_a_part_of_the_loss_that_nothing_comes_of_is_refused(name: str, value: Any, beside: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} {value}: nothing comes of it with {next(iter(beside))}"):
        TrainConfig(**{name: value, **beside}).objective()


def test_options_that_may_be_none_are_so_by_default() -> None:
    """A run's own file leaves them out, so that `None` must be what they are without it."""
    nullable = [item for item in fields(TrainConfig) if "None" in str(item.type)]
    assert len(nullable) > 10
    assert {item.default for item in nullable} == {None}


def test_the_objective_is_the_preset_with_what_stands_in_for_its_parts() -> None:
    given = {
        "ratio": "turn",
        "clip": "cispo",
        "clip_low": 0.11,
        "clip_high": 0.33,
        "normaliser": "constant",
        "std": "batch",
        "beta": 0.07,
        "kl": "k1",
        "unbiased_kl": True,
        "correction": "sequence",
        "correction_cap": 3.0,
    }
    assert TrainConfig().objective() == PRESETS["undivided"]
    assert set(given) == set(OBJECTIVE) == {field.name for field in fields(Objective)}
    for loss, preset in PRESETS.items():
        for name, value in given.items():
            parts = {**BESIDE.get(name, {}), name: value}
            config = TrainConfig(**{"recompute_old": True, "loss": loss, **parts})
            assert config.objective() == replace(preset, **parts)


def test_every_preset_is_an_option() -> None:
    assert set(LOSSES) == set(PRESETS)


def test_every_schedule_and_every_way_to_think_is_an_option() -> None:
    assert set(SCHEDULES) == set(trainer._SCHEDULES)
    assert set(THOUGHTS) == set(oracle.THOUGHTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ppo"}, "loss ppo is not one of"),
        ({"attention": "flash"}, "attention flash is not one of"),
        ({"updates_per_step": 9, "prompts_per_step": 8}, "a step of 8 prompts has no more parts"),
        ({"correction": "token"}, "so recompute_old must be true"),
        ({"lora_rank": 4, "train_vision": True}, "beside adapters the vision tower stays frozen"),
        ({"refill": -1}, "refill -1: at least 0"),
        ({"steps": -1}, "steps -1: at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan: at least 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm 0.0: must be above 0"),
        ({"max_drift": float("nan")}, "max_drift nan: must be above 0"),
        ({"final_learning_rate": 7.0}, "final_learning_rate 7.0: at most 1"),
        *[({name: -0.1}, f"{name} -0.1: at least 0") for name in SHARES],
        *[({**NO_TOOL, name: 1.1}, "sft_zoom.* sft_reflect.* sft_confirm.*: together at most 1") for name in SHARES],
        (dict.fromkeys(SHARES, 0.4), "sft_zoom.* sft_reflect.* sft_confirm.*: together at most 1"),
        ({"sft_schedule": "square"}, r"sft_schedule square is not one of \['linear', 'cosine'\]"),
        ({"sft_think": "hard"}, r"sft_think hard is not one of \['label', 'rationale', 'annotations', 'places'\]"),
        ({"dtype": "bfloat16"}, "small steps are lost on weights in half precision"),
    ],
)
def test_combinations_that_cannot_work_are_refused_with_the_reason(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_selected_tasks_are_not_what_a_run_is_measured_on() -> None:
    with pytest.raises(ValueError, match=r"^source selected:/a: held-out tasks would be the same; set eval_source"):
        TrainConfig(source="selected:/a")
    assert TrainConfig(source="selected:/a", eval_source="rendered").env_arguments(evaluation=True).keys() == {"reward"}


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, True),
        ({"start": "tiny"}, False),
        ({"start": "tiny", "sft_data": "a.jsonl"}, True),
        ({"start": "tiny", "cold_start": True}, True),
        ({"cold_start": False}, False),
        ({"sft_data": "a.jsonl", "cold_start": False}, False),
    ],
)
def test_sft_comes_first_from_scratch_with_recorded_episodes_or_where_it_is_asked_for(
    settings: Mapping[str, Any], first: bool
) -> None:
    assert TrainConfig(**settings).learns_first is first
