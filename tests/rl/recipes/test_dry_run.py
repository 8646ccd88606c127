"""What is said of a recipe before it runs: every stage once, what it goes on from, and whether it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rl.config import TrainConfig
from rl.planning.plan import plan
from rl.planning.rehearsal import rehearse
from rl.planning.words import describe_plan, describe_rehearsal
from rl.recipes.dry_run import dry_run
from rl.recipes.recipe import SIZES, read_recipe, recipe_names

RECIPE = """
about = "A test."
[arms]
"short" = ["base"]
"long" = ["base", "cot", "sft", "reject", "grpo"]
"wild" = ["base", "grpo"]
[settings]
tasks = ["locate"]
[stages.base]
kind = "train"
start = "tiny"
cold_start = true
steps = 0
[stages.cot]
kind = "sample"
agent = "oracle"
count = 1234
[stages.sft]
kind = "train"
start = "tiny"
cold_start = true
steps = 0
[stages.reject]
kind = "sample"
gives = "tasks"
keep = "varying"
[stages.grpo]
kind = "train"
start = "tiny"
steps = 7
group_size = 4
[stages.evaluation]
kind = "evaluate"
episodes = 77
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def said(recipe_file: str) -> str:
    return "\n\n".join(dry_run(read_recipe(recipe_file), rehearsed=False))


def section(said: str, stage: str) -> str:
    """What is said of a stage."""
    (found,) = [part for part in said.split("\n-- ") if part.startswith(f"{stage}: ")]
    return " ".join(found.split())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", recipe_names())
def test_of_every_shipped_recipe_every_stage_is_described_once_and_in_100_columns(name: str, size: str) -> None:
    recipe = read_recipe(name, size)
    said = "\n\n".join(dry_run(recipe, rehearsed=False))
    assert all(len(line) <= 100 for line in said.splitlines())
    stages = {path[-1] for path in recipe.whole_paths}
    assert all(section(said, stage) for stage in stages)
    assert said.count("\n-- ") == len(stages)


def test_a_published_model_out_of_reach_is_said_to_be_written_down() -> None:
    config = TrainConfig(start="Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16", lora_rank=32, device="cuda")
    said = " ".join(describe_plan(plan(config)).split())
    assert "from agents/shapes.py, since the hub is out of reach" in said
    assert "text by the shipped tokenizer" in said
    assert "8,372,907,008 in bfloat16; 80,740,352 learn: adapters of rank 32" in said


def test_arms_are_shown_as_the_stages_they_lead_through(said: str) -> None:
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "short base > evaluation" in lines
    assert "wild base > grpo > evaluation" in lines


def test_a_stage_says_what_it_goes_on_from(said: str) -> None:
    assert "begins with tiny learns from episodes of an oracle" in section(said, "base")
    assert "begins with the model of base learns from the trajectories of cot" in section(said, "sft")
    grpo = section(said, "grpo")
    assert "2 times for every seed" in grpo
    assert "begins with the model of sft, or the model of base" in grpo
    assert "plays the tasks of reject, or any tasks of MultiImageTiny-v0" in grpo


def test_a_stage_says_how_much_it_does(said: str) -> None:
    assert "1,234 tasks" in section(said, "cot")
    assert "agent oracle" in section(said, "cot")
    assert "agent the model of sft" in section(said, "reject")
    assert "tasks, by the rule varying" in section(said, "reject")
    assert "7 steps of 28 tasks x 4 attempts 784 episodes; 7 updates" in section(said, "grpo")
    assert "77 episodes of each split (test, test_ood)" in section(said, "evaluation")
    assert "3 times for every seed" in section(said, "evaluation")


def test_parts_of_memory_add_up_to_what_is_said_in_all() -> None:
    config = TrainConfig(start="Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16", lora_rank=32, device="cuda")
    rows = [line.split("  ") for line in describe_plan(plan(config)).splitlines()]
    table = {row[0]: [float(cell) for cell in row[1:] if cell] for row in rows if row[0] in ("weights", "in all")}
    made = plan(config)
    sums = [made.rollout(1), made.update(1), made.rollout(8), made.update(8)]
    assert table["in all"] == [round(sum(parts.values()) / 2**30, 2) for parts in sums]
    assert table["weights"] == [15.45] * 4


def test_it_is_said_whether_a_run_fits_and_how_long_its_attempts_may_be() -> None:
    small = TrainConfig(
        start="Qwen/Qwen2.5-VL-7B-Instruct",
        dtype="bfloat16",
        lora_rank=32,
        device="cuda",
        prompts_per_step=8,
        rows_per_forward=1,
        gradient_checkpointing=True,
    )
    long = replace(small, max_turn_tokens=50_000, max_tokens=50_000)
    whole = replace(small, start="Qwen/Qwen2.5-VL-72B-Instruct")
    verdicts = [" ".join(describe_plan(plan(config)).split()) for config in (small, long, whole)]
    assert "fits on 80 GB yes yes yes yes" in verdicts[0]
    assert "fits on 80 GB to " in verdicts[1]
    assert "fits on 80 GB no no no no" in verdicts[2]


def test_a_run_on_a_cpu_is_not_measured_by_a_gpu(said: str) -> None:
    assert "80 GB" not in said
    assert "GPU" not in said
    assert "MiB at most" in said


def test_a_rehearsed_step_says_that_it_held_what_was_planned() -> None:
    found = rehearse(TrainConfig(start="tiny", group_size=2))
    said = " ".join(describe_rehearsal(found).split())
    assert "as planned" in said
    assert "rewards and stops made up" in said
    assert f"{found.moved} of {found.trained} trained tensors changed" in said
    other = replace(found, planned=replace(found.planned, weights=1))
    assert "were planned" in describe_rehearsal(other)


def test_every_stage_that_trains_is_rehearsed(recipe_file: str) -> None:
    said = list(dry_run(read_recipe(recipe_file)))
    assert sum("as planned" in part for part in said) == 3
