"""The configuration: where settings come from, in which order, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from rl.config import LOSSES, OBJECTIVE, TrainConfig
from rl.loss import PRESETS, Objective
from rl.masking import KEEP_STOPS
from rl.settings import read_config

COUNTS = ("sft_questions", "sft_rows", "sft_probe_every", "sft_probe_episodes", "prompts_per_step")
COUNTS += ("max_turn_tokens", "eval_episodes", "save_every")


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_no_word_gives_the_defaults() -> None:
    assert read_config([]) == TrainConfig()


def test_a_key_and_its_value_may_be_two_words_or_one() -> None:
    assert read_config(["--steps", "7"]) == read_config(["--steps=7"]) == TrainConfig(steps=7)


def test_a_key_may_be_written_with_dashes() -> None:
    assert read_config(["--group-size=4", "--max-turn-tokens", "9"]) == TrainConfig(group_size=4, max_turn_tokens=9)


def test_a_value_may_hold_an_equals_sign_or_begin_with_a_dash() -> None:
    assert read_config(["--output=runs/a=b"]).output == "runs/a=b"
    assert read_config(["--output", "-0.5"]).output == "-0.5"


def test_the_last_word_wins() -> None:
    assert read_config(["--seed", "1", "--seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("--steps=12", "steps", 12),
        ("--temperature=1", "temperature", 1.0),
        ("--learning_rate=3e-4", "learning_rate", 3e-4),
        ("--env=MultiImageQA-v0", "env", "MultiImageQA-v0"),
        ("--recompute_old=true", "recompute_old", True),
        ("--std=none", "std", None),
        ("--clip_low=0.1", "clip_low", 0.1),
        ("--clip=none", "clip", None),
        ("--mask_invalid_actions=True", "mask_invalid_actions", True),
        ("--cold_start=false", "cold_start", False),
        ("--cold_start=none", "cold_start", None),
        ("--difficulty=none", "difficulty", None),
        ("--difficulty=3", "difficulty", 3),
        ("--source=none", "source", None),
        ("--source=odinw:/a,b", "source", "odinw:/a,b"),
        ("--tasks=qa", "tasks", "qa"),
        ("--tasks=referring,locate", "tasks", ("referring", "locate")),
        ("--tasks=referring,", "tasks", ("referring",)),
        ("--tools=zoom", "tools", ("zoom",)),
        ("--tools=", "tools", ()),
        ("--tools=none", "tools", None),
        ("--keep_stops=answered", "keep_stops", ("answered",)),
        ("--keep_stops=answered,void,turn_limit", "keep_stops", ("answered", "void", "turn_limit")),
        ("--output=none", "output", "none"),
    ],
)
def test_a_word_is_read_as_the_type_of_its_field(word: str, name: str, value: Any) -> None:
    found = getattr(read_config([word]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--steps=ten", "--steps ten: not a whole number"),
        ("--steps=1.5", "--steps 1.5: not a whole number"),
        ("--steps=none", "--steps none: not a whole number"),
        ("--temperature=hot", "--temperature hot: not a number"),
        ("--cold_start=maybe", "--cold_start maybe: true or false"),
        ("--recompute_old=1", "--recompute_old 1: true or false"),
    ],
)
def test_a_word_of_the_wrong_type_is_refused_by_name(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_config([word])


def test_an_unknown_key_is_refused_by_name_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"^--group_sise: unknown group_sise; known: .*group_size.*warmup"):
        read_config(["--group_sise", "4"])


@pytest.mark.parametrize(
    ("words", "refused"),
    [("--steps", "--steps"), ("--seed 3 --steps", "--steps"), ("--seed=1 steps 4", "steps"), ("--seed=1 -s 4", "-s")],
)
def test_words_that_are_no_key_and_value_are_refused(words: str, refused: str) -> None:
    with pytest.raises(ValueError, match=f"^{refused}: expected --key value$"):
        read_config(words.split())


# ---------------------------------------------------------------- recipes


def test_a_recipe_sets_what_it_names_and_words_after_it_win(tmp_path: Path) -> None:
    path = recipe(tmp_path, 'steps = 5\nseed = 3\ntools = ["zoom"]\ncold_start = false\nlearning_rate = 1e-4\n')
    assert read_config([path]) == TrainConfig(steps=5, seed=3, tools=("zoom",), cold_start=False, learning_rate=1e-4)
    assert read_config([path, "--steps", "9"]) == TrainConfig(
        steps=9, seed=3, tools=("zoom",), cold_start=False, learning_rate=1e-4
    )


def test_a_whole_number_in_a_recipe_is_a_number(tmp_path: Path) -> None:
    config = read_config([recipe(tmp_path, "temperature = 1\n")])
    assert config.temperature == 1.0
    assert type(config.temperature) is float


def test_an_unknown_key_of_a_recipe_is_refused_with_the_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, "stepps = 5\n")
    with pytest.raises(ValueError, match=f"^{path}: unknown stepps; known: "):
        read_config([path])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('steps = "5"', "steps"),
        ("steps = 5.5", "steps"),
        ("steps = true", "steps"),
        ('temperature = "hot"', "temperature"),
        ("temperature = false", "temperature"),
        ("cold_start = 1", "cold_start"),
        ("env = 3", "env"),
        ("tools = 3", "tools"),
        ('tools = "zoom"', "tools"),
        ("tools = [1, 2]", "tools"),
        ("difficulty = [1]", "difficulty"),
        ("[steps]\nvalue = 3", "steps"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_recipe_is_refused_by_file_and_name(
    tmp_path: Path, line: str, name: str
) -> None:
    path = recipe(tmp_path, line)
    with pytest.raises(ValueError, match=f"^{path}: {name} "):
        read_config([path])


@pytest.mark.parametrize(
    ("line", "value"), [('tasks = "qa"', "qa"), ('tasks = ["locate"]', ("locate",)), ("difficulty = 2", 2)]
)
def test_either_type_of_a_field_with_two_is_taken(tmp_path: Path, line: str, value: Any) -> None:
    assert getattr(read_config([recipe(tmp_path, line)]), line.split(" ")[0]) == value


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_config([recipe(tmp_path, "steps: 5")])


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        read_config(["none.toml"])


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


def test_the_same_is_refused_on_the_command_line() -> None:
    for word in ("--group_size=1", "--temperature=0", "--keep_stops=bored"):
        with pytest.raises(ValueError, match=word[2:].partition("=")[0]):
            read_config([word])


def test_the_stop_reasons_that_are_kept_by_default_are_those_of_the_mask() -> None:
    assert TrainConfig().keep_stops == tuple(stop for stop, kept in KEEP_STOPS.items() if kept)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_every_option_is_explained() -> None:
    words = (TrainConfig.__doc__ or "").replace(",", " ").replace(":", " ").split()
    assert [field.name for field in fields(TrainConfig) if field.name not in words] == []


# ---------------------------------------------------------------- what the environment is asked for


def test_what_is_not_set_is_left_to_the_environments_id() -> None:
    assert TrainConfig().env_arguments() == {"reward": "grounding"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "odinw:/a"),
        ("tasks", ("locate",)),
        ("difficulty", 2),
        ("tools", ("zoom",)),
        ("tools", ()),
        ("instructions", "brief"),
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


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "lora_vision"])
def test_what_cannot_be_offered_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name}: {name} is not offered: .{{20,}}"):
        read_config([f"--{name}", "0.9"])


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
        ({"sft_zoom": 7.0}, "sft_zoom 7.0: at most 1"),
        ({"dtype": "bfloat16"}, "small steps are lost on weights in half precision"),
    ],
)
def test_combinations_that_cannot_work_are_refused_with_the_reason(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
