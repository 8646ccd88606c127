"""Recipes: how settings are merged, what is refused by name, and what the shipped ones say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mimgenv.rewards import REWARDS
from mimgenv.tasks.registry import TASK_GROUPS
from rl.config import TrainConfig
from rl.recipes.recipe import SIZES, Claim, Recipe, Stage, read_recipe, recipe_names

SMALLEST = """
[arms]
"only" = ["learn"]
[stages.learn]
kind = "train"
[stages.evaluation]
kind = "evaluate"
"""

LAYERED = """
about = "Layers."
in_domain = ["referring"]
out_of_domain = ["locate", "counting"]

[arms]
"a" = ["learn"]
"b" = ["learn", "more"]
"c" = ["learn", "pick", "more"]

[settings]
steps = 1
temperature = 0.1

[stages.learn]
kind = "train"
steps = 2

[stages.more]
like = "learn"
group_size = 3

[stages.pick]
kind = "sample"

[stages.evaluation]
kind = "evaluate"

[tiny.settings]
prompts_per_step = 5

[tiny.learn]
prompts_per_step = 6
warmup = 6

[tiny.more]
warmup = 7

[paper]
skip = ["learn"]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def layered(tmp_path: Path) -> str:
    return written(tmp_path, LAYERED)


def settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    return dict(recipe.stages[stage].settings)


def assert_refused(folder: Path, text: str, said: str, **how: Any) -> None:
    path = written(folder, text)
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        read_recipe(path, **how)


# ---------------------------------------------------------------- merging


def test_what_is_said_of_every_stage_reaches_those_that_have_such_a_setting(layered: str) -> None:
    recipe = read_recipe(layered)
    assert settings(recipe, "pick") == {"temperature": 0.1}  # it has no steps
    assert settings(recipe, "evaluation") == {"temperature": 0.1}
    assert settings(recipe, "learn")["temperature"] == 0.1


def test_what_a_stage_says_wins_over_what_is_said_of_every_stage(layered: str) -> None:
    assert settings(read_recipe(layered), "learn")["steps"] == 2


def test_a_stage_that_is_like_another_begins_with_its_settings_and_its_kind(layered: str) -> None:
    more = read_recipe(layered, "paper").stages["more"]
    assert more.kind == "train"
    assert dict(more.settings) == {"temperature": 0.1, "steps": 2, "group_size": 3}


def test_what_a_size_says_of_every_stage_wins_over_what_all_sizes_say_of_every_stage(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST + "[settings]\nsteps = 2\n[tiny.settings]\nsteps = 9\n")
    assert settings(read_recipe(path), "learn")["steps"] == 9
    assert settings(read_recipe(path, "paper"), "learn")["steps"] == 2


@pytest.mark.parametrize("general", [{"given": {"steps": "9"}}, {}])
def test_what_is_said_of_a_stage_by_name_wins_over_what_is_said_of_every_stage_anywhere(
    tmp_path: Path, general: Any
) -> None:
    named = SMALLEST.replace('kind = "train"', 'kind = "train"\nsteps = 2') + "[tiny.settings]\nsteps = 9\n"
    assert settings(read_recipe(written(tmp_path, named), **general), "learn")["steps"] == 2


def test_what_a_size_says_of_a_stage_wins_over_what_it_says_of_every_stage(layered: str) -> None:
    assert settings(read_recipe(layered), "learn")["prompts_per_step"] == 6


def test_what_a_size_says_of_a_stage_holds_for_those_like_it_unless_it_says_more_of_them(layered: str) -> None:
    more = settings(read_recipe(layered), "more")
    assert (more["prompts_per_step"], more["warmup"]) == (6, 7)
    assert settings(read_recipe(layered), "learn")["warmup"] == 6


def test_the_command_line_wins_over_the_size_and_a_stage_of_it_over_all_stages(layered: str) -> None:
    given = {"prompts_per_step": "8", "learn.warmup": "9", "more.warmup": "10", "temperature": "0.5"}
    recipe = read_recipe(layered, given=given)
    assert settings(recipe, "learn") == {"temperature": 0.5, "steps": 2, "prompts_per_step": 6, "warmup": 9}
    assert settings(read_recipe(layered, given={"learn.prompts_per_step": "8"}), "learn")["prompts_per_step"] == 8
    assert settings(recipe, "more")["warmup"] == 10
    assert settings(recipe, "pick") == {"temperature": 0.5}
    like = settings(read_recipe(layered, given={"learn.prompts_per_step": "8", "learn.warmup": "9"}), "more")
    assert (like["prompts_per_step"], like["warmup"]) == (8, 7)  # the recipe says its warm-up by name


def test_words_of_the_command_line_become_what_the_setting_is(layered: str) -> None:
    given = {"learn.tasks": "locate,counting", "pick.tasks": "grounding", "learn.cold_start": "True"}
    given |= {"learn.difficulty": "none", "pick.constrain_actions": "false"}
    recipe = read_recipe(layered, given=given)
    learn, pick = settings(recipe, "learn"), settings(recipe, "pick")
    assert (learn["tasks"], learn["cold_start"], learn["difficulty"]) == (("locate", "counting"), True, None)
    assert (pick["tasks"], pick["constrain_actions"]) == ("grounding", False)


def test_a_stage_makes_its_configuration_and_what_is_given_wins(layered: str) -> None:
    config = read_recipe(layered).stages["learn"].config(steps=4, output="here")
    assert isinstance(config, TrainConfig)
    assert (config.steps, config.warmup, config.output, config.group_size) == (4, 6, "here", TrainConfig().group_size)


def test_a_configuration_that_cannot_work_is_refused_with_the_name_of_its_stage() -> None:
    with pytest.raises(ValueError, match="stage learn: group_size 1"):
        Stage("learn", "train", {"group_size": 1}).config()


# ---------------------------------------------------------------- arms


def test_a_recipe_is_what_its_file_says(layered: str) -> None:
    recipe = read_recipe(layered)
    assert (recipe.name, recipe.size, recipe.about) == ("mine", "tiny", "Layers.")
    assert recipe.arms == {"a": ("learn",), "b": ("learn", "more"), "c": ("learn", "pick", "more")}
    assert (recipe.in_domain, recipe.out_of_domain) == (("referring",), ("locate", "counting"))
    assert recipe.ends == dict.fromkeys(recipe.arms, "evaluation")


def test_what_arms_share_is_one_path_and_each_path_is_behind_the_one_it_goes_on_from(layered: str) -> None:
    assert read_recipe(layered).paths == (
        ("learn",),
        ("learn", "more"),
        ("learn", "pick"),
        ("learn", "pick", "more"),
    )
    assert read_recipe(layered).whole_paths[4:] == tuple(
        (*path, "evaluation") for path in (("learn",), ("learn", "more"), ("learn", "pick", "more"))
    )


def test_an_arm_may_end_with_an_evaluation_of_its_own(tmp_path: Path) -> None:
    text = SMALLEST.replace(
        '"only" = ["learn"]', '"only" = ["learn", "other"]\n"none" = ["other"]\n"usual" = ["learn"]'
    )
    recipe = read_recipe(written(tmp_path, text + "[stages.other]\nlike = 'evaluation'\nepisodes = 3\n"))
    assert recipe.arms == {"only": ("learn",), "none": (), "usual": ("learn",)}
    assert recipe.ends == {"only": "other", "none": "other", "usual": "evaluation"}
    assert recipe.paths == (("learn",),)
    assert recipe.whole_paths == (("learn",), ("learn", "other"), ("other",), ("learn", "evaluation"))


def test_stages_that_a_size_or_the_caller_skips_are_in_no_arm_and_equal_arms_are_one(layered: str) -> None:
    assert read_recipe(layered, "paper").arms == {"a": (), "b": ("more",), "c": ("pick", "more")}
    assert read_recipe(layered, skip=["pick"]).arms == {"a": ("learn",), "b": ("learn", "more")}
    without = read_recipe(layered, "paper", skip=["pick"])
    assert without.arms == {"a": (), "b": ("more",)}
    assert without.left_out == {"c": "b"}
    assert read_recipe(layered).left_out == {}


def test_a_size_may_have_domains_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "in_domain = ['referring']\n" + SMALLEST + "[tiny]\nin_domain = ['locate']\n")
    assert read_recipe(path).in_domain == ("locate",)
    assert read_recipe(path, "paper").in_domain == ("referring",)


CLAIM = """
[[claims]]
says = "more is better"
better = "b"
worse = "a"
"""


def test_claims_are_about_arms_that_the_size_has(tmp_path: Path) -> None:
    path = written(tmp_path, LAYERED + CLAIM + CLAIM.replace("more is", "all is").replace('"b"', '"c"'))
    assert read_recipe(path).claims == (Claim("more is better", "b", "a"), Claim("all is better", "c", "a"))
    assert [claim.better for claim in read_recipe(path, skip=["pick"]).claims] == ["b"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (CLAIM.replace('"a"', '"z"'), "mine.toml, claim 'more is better': unknown z"),
        (CLAIM + "best = 1\n", "mine.toml, claims: unknown best"),
        (CLAIM.replace("worse", "split"), "mine.toml, claims: worse missing"),
        (CLAIM + "types = 'some'\n", "mine.toml, claim 'more is better': types 'some' is not one of all, in_domain"),
        (CLAIM + "split = 'val'\n", "mine.toml, claim 'more is better': split 'val' is not one of test, test_ood"),
    ],
)
def test_a_claim_that_cannot_be_held_against_anything_is_refused(tmp_path: Path, more: str, said: str) -> None:
    assert_refused(tmp_path, LAYERED + more, said)


# ---------------------------------------------------------------- what is refused


def test_the_smallest_recipe_is_accepted(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, SMALLEST)).arms == {"only": ("learn",)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[stagez.learn]\n", "mine.toml: unknown stagez"),
        ("[tiny.lern]\nsteps = 1\n", "mine.toml, [tiny]: unknown lern"),
        ("[tiny]\nskip = ['lern']\n", "mine.toml, skip: unknown lern"),
        ("[tiny]\nskip = ['evaluation']\n", "mine.toml, skip: unknown evaluation"),
        ("[tiny.learn]\nstepz = 1\n", "mine.toml, stage learn: unknown stepz"),
        ("[tiny.learn]\nattempts = 1\n", "mine.toml, stage learn: unknown attempts"),
        ("[tiny.learn]\nlike = 'evaluation'\n", "mine.toml, stage learn: unknown like"),
        ("[tiny.learn]\nkind = 'sample'\n", "mine.toml, stage learn: unknown kind"),
        ("[tiny.learn]\nseed = 1\n", "mine.toml, stage learn: unknown seed"),
        ("[tiny.learn]\noutput = 'x'\n", "mine.toml, stage learn: unknown output"),
        ("[settings]\nstepz = 1\n", "mine.toml, settings: unknown stepz"),
        ("[settings]\nseed = 1\n", "mine.toml, settings: unknown seed"),
        ("[tiny.settings]\nstepz = 1\n", "mine.toml, settings: unknown stepz"),
        ("[tiny.learn]\nsteps = 'many'\n", "mine.toml, stage learn: steps 'many' is not of type int"),
        ("[stages.x]\nkind = 'dance'\n", "mine.toml, stage x: kind 'dance' is not one of train, sample, evaluate"),
        ("[stages.x]\nsteps = 1\n", "mine.toml, stage x: kind None is not one of"),
        ("[stages.x]\nlike = 'y'\n", "mine.toml, stage x: like 'y' is no stage, or itself like another"),
        ("[stages.x]\nlike = 'learn'\n[stages.y]\nlike = 'x'\n", "mine.toml, stage y: like 'x' is no stage, or itself"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused_by_name(tmp_path: Path, more: str, said: str) -> None:
    assert_refused(tmp_path, SMALLEST + more, said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["learn"]', '["learn", "lern"]', "mine.toml, arm 'only': unknown lern"),
        ('["learn"]', '["evaluation", "learn"]', "mine.toml, arm 'only': an evaluation can but end it"),
        ('"only" = ["learn"]', "", "mine.toml: there are no arms"),
        ('kind = "train"', 'kind = "sample"', "mine.toml, arm 'only': no stage of it trains"),
        ('kind = "evaluate"', 'kind = "train"', "mine.toml: a stage 'evaluation' of kind 'evaluate' is needed"),
        ("stages.evaluation", "stages.examination", "mine.toml: a stage 'evaluation' of kind 'evaluate' is needed"),
    ],
)
def test_arms_that_lead_nowhere_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SMALLEST
    assert_refused(tmp_path, SMALLEST.replace(old, new), said)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"skip": ["lern"]}, "mine.toml, skip: unknown lern"),
        ({"given": {"lern.steps": "1"}}, "--lern.steps: 'lern' is not one of the stages learn, evaluation"),
        ({"given": {"learn.stepz": "1"}}, "mine.toml, stage learn: unknown stepz"),
        ({"given": {"learn.kind": "sample"}}, "mine.toml, stage learn: unknown kind"),
        ({"given": {"stepz": "1"}}, "mine.toml, settings: unknown stepz"),
        ({"given": {"learn.steps": "many"}}, "--steps many: not a whole number"),
        ({"size": "huge"}, "size 'huge' is not one of tiny, paper"),
    ],
)
def test_what_the_caller_cannot_say_is_refused_by_name(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    assert_refused(tmp_path, SMALLEST, said, **how)


def test_an_arm_from_which_every_training_is_skipped_is_refused(layered: str) -> None:
    with pytest.raises(ValueError, match="mine.toml, arm 'c': no stage of it trains"):
        read_recipe(layered, skip=["learn", "more"])


def test_an_unknown_recipe_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match="recipe 'mig' is not one of imagent_recon, mig_grpo, mirg_recon"):
        read_recipe("mig")


# ---------------------------------------------------------------- the shipped ones


def test_each_paper_has_its_recipe() -> None:
    assert recipe_names() == ("imagent_recon", "mig_grpo", "mirg_recon")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", recipe_names())
def test_every_stage_of_a_shipped_recipe_has_a_configuration_that_can_work(name: str, size: str) -> None:
    recipe = read_recipe(name, size)
    assert "full" in recipe.arms and recipe.about.strip()
    for stage in recipe.stages.values():
        config = stage.config(seed=0, output="x")
        if isinstance(config, TrainConfig):
            config.objective()


@pytest.mark.parametrize("name", recipe_names())
def test_the_types_of_a_shipped_recipe_are_grounding_types_each_of_one_domain(name: str) -> None:
    recipe = read_recipe(name)
    both = (*recipe.in_domain, *recipe.out_of_domain)
    assert len(both) == len(set(both))
    assert set(both) <= set(TASK_GROUPS["grounding"])


def values(recipe: Recipe, stage: str, names: Sequence[str]) -> dict[str, Any]:
    config = recipe.stages[stage].config()
    return {name: getattr(config, name) for name in names}


PUBLISHED: dict[str, dict[str, Any]] = {
    "cot": {"attempts": 4, "keep": "all_right", "gives": "trajectories"},
    "sft": {
        "sft_learning_rate": 1e-4,
        "sft_schedule": "cosine",
        "sft_rows": 32,
        "max_turn_tokens": 1024,
        "cold_start": True,
        "steps": 0,
        "train_vision": None,
    },
    "reject": {"agent": "policy", "keep": "varying", "gives": "tasks"},
    "grpo": {
        "loss": "mig_grpo",
        "learning_rate": 5e-5,
        "group_size": 8,
        "prompts_per_step": 8,
        "rows_per_forward": 2,
        "beta": 0.001,
        "temperature": 0.7,
        "max_turn_tokens": 1024,
        "reward": "grounding",
        "cold_start": False,
        "train_vision": None,
    },
}


@pytest.mark.parametrize("stage", PUBLISHED)
def test_the_published_numbers_of_2507_00748_are_those_of_the_recipe(stage: str) -> None:
    assert values(read_recipe("mig_grpo", "paper"), stage, tuple(PUBLISHED[stage])) == PUBLISHED[stage]


def test_2507_00748_trains_adapters_on_the_language_model_of_a_7b_model_and_answers_in_one_turn() -> None:
    recipe = read_recipe("mig_grpo", "paper")
    for name in ("sft", "grpo"):
        config = recipe.stages[name].config()
        assert (config.start, config.max_turns) == ("Qwen/Qwen2.5-VL-7B-Instruct", 1)
        assert config.lora_rank > 0 and config.train_vision is None


def test_2507_00748_pays_one_part_iou_and_half_a_part_format() -> None:
    assert {name: weight for name, (_, weight) in REWARDS["grounding"].items()} == {
        "iou": 1.0,
        "answer": 1.0,
        "format": 0.5,
    }


def test_the_loss_of_2507_00748_is_a_product_ratio_without_a_clip() -> None:
    objective = read_recipe("mig_grpo", "paper").stages["grpo"].config().objective()
    assert (objective.ratio, objective.clip, objective.std, objective.beta) == ("product", "off", "group", 0.001)


def test_the_arms_of_2507_00748_are_its_ablation() -> None:
    assert read_recipe("mig_grpo", "paper").arms == {
        "base": (),
        "CoT-SFT": ("cot", "sft"),
        "w/o cold start": ("reject", "grpo"),
        "w/o rejection sampling": ("cot", "sft", "grpo"),
        "full": ("cot", "sft", "reject", "grpo"),
    }


def test_2509_21788_differs_in_nothing_but_the_image_reward_from_its_ablation() -> None:
    for size in SIZES:
        stages = read_recipe("mirg_recon", size).stages
        full, without = dict(stages["grpo"].settings), dict(stages["grpo_object"].settings)
        assert (full.pop("reward"), without.pop("reward")) == ("image_aware_recon", "grounding")
        assert full == without


def test_2512_08980_has_no_cold_start_as_published_and_each_ablation_turns_off_what_it_names() -> None:
    recipe = read_recipe("imagent_recon", "paper")
    assert recipe.arms["full"] == ("grpo",) and recipe.stages["grpo"].config().cold_start is False
    full = recipe.stages["grpo"].config()
    changed = {}
    for arm, path in recipe.arms.items():
        if path and path[-1] != "grpo":
            other = recipe.stages[path[-1]].config()
            names = (item.name for item in fields(TrainConfig))
            changed[arm] = {name for name in names if getattr(other, name) != getattr(full, name)}
    assert changed == {
        "no tools": {"tools", "reward"},
        "w/o both masks": {"constrain_actions", "keep_stops"},
        "w/o action mask": {"constrain_actions"},
        "w/o trajectory mask": {"keep_stops"},
        "w/o tool gain": {"reward"},
        "w/o gain and masks": {"reward", "constrain_actions", "keep_stops"},
    }
    gain, none = REWARDS["tool_gain_recon"], REWARDS["no_gain_recon"]
    assert {name: part for name, part in gain.items() if name != "tool_gain"} == none
    assert {
        path[-1]: recipe.stages[path[-1]].config().tools for path in recipe.whole_paths if "evaluation" in path[-1]
    } == {
        "evaluation": ("visual_reflection", "visual_confirmation"),
        "evaluation_no_tools": (),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", recipe_names())
def test_no_arm_of_a_shipped_recipe_meets_a_task_in_two_stages(name: str, size: str) -> None:
    recipe = read_recipe(name, size)
    for path in recipe.arms.values():
        ranges = []
        for stage in (recipe.stages[visited] for visited in path):
            config = stage.config()
            if stage.kind == "sample":
                ranges.append(range(config.first, config.first + config.count))
            elif config.steps:
                ranges.append(range(config.steps * config.prompts_per_step * (1 + config.refill)))
        edges = sorted((numbers.start, numbers.stop) for numbers in ranges)
        assert all(before[1] <= after[0] for before, after in pairwise(edges)), (name, size, path)
