"""Settings: where they come from, in which order, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rl.config import EnvSettings, TrainConfig
from rl.settings import checked_settings, converted_setting, read_config


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
        ("--max_turns=3", "max_turns", 3),
        ("--max_turns=none", "max_turns", None),
        ("--world=none", "world", None),
        ("--world=tiny", "world", "tiny"),
        ("--source=none", "source", None),
        ("--eval_source=rendered", "eval_source", "rendered"),
        ("--sft_data=runs/a,b.jsonl", "sft_data", "runs/a,b.jsonl"),
        ("--sft_data=none", "sft_data", None),
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
    with pytest.raises(
        ValueError, match=r"^--group_sise: unknown group_sise \(group_size\?\); known: .*group_size.*warmup"
    ):
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
    with pytest.raises(ValueError, match=rf"^{path}: unknown stepps \(steps\?\); known: "):
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


def test_the_same_is_refused_on_the_command_line() -> None:
    for word in ("--group_size=1", "--temperature=0", "--keep_stops=bored"):
        with pytest.raises(ValueError, match=word[2:].partition("=")[0]):
            read_config([word])


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "lora_vision"])
def test_what_cannot_be_offered_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name}: {name} is not offered: .{{20,}}"):
        read_config([f"--{name}", "0.9"])


# ---------------------------------------------------------------- fields of other records


@dataclass(frozen=True, slots=True)
class Played(EnvSettings):
    """Settings that share those of the environment with a run."""

    attempts: int = 4


def test_a_table_may_be_of_other_fields_than_a_runs() -> None:
    found = checked_settings({"tools": ["zoom"], "attempts": 3}, "here", Played)
    assert Played(**found) == Played(tools=("zoom",), attempts=3)


def test_what_is_no_field_of_theirs_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^here: unknown steps; known: attempts, box_frame, .* world$"):
        checked_settings({"steps": 3}, "here", Played)
    with pytest.raises(ValueError, match=r"^here: unknown attempts; known: .*group_size"):
        checked_settings({"attempts": 3}, "here")


def test_a_value_of_the_wrong_type_for_them_is_refused_by_place_and_name() -> None:
    with pytest.raises(ValueError, match=r"^here: attempts '3' is not of type int$"):
        checked_settings({"attempts": "3"}, "here", Played)


def test_a_word_is_read_as_the_type_of_their_field() -> None:
    assert converted_setting("attempts", "3", Played) == 3
    assert converted_setting("tools", "zoom", Played) == ("zoom",)
    with pytest.raises(ValueError, match="^--attempts three: not a whole number$"):
        converted_setting("attempts", "three", Played)


def test_a_recipe_of_several_stages_is_sent_to_its_own_command(tmp_path: Path) -> None:
    path = recipe(tmp_path, 'about = "x"\n[arms]\nfull = ["sft"]\n')
    with pytest.raises(ValueError, match=f"^{path} is a recipe of several stages: python -m rl.reproduce {path}$"):
        read_config([path])
