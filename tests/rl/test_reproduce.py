"""The command: a recipe runs from nothing to its report, once, goes on after a stop, and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rl.config import RENDERED
from rl.recipes.pipeline import Found, alone_in
from rl.recipes.recipe import read_recipe, recipe_names
from rl.reproduce import arm_runs, main
from rl.tracker import read_metrics

RECIPE = """
about = "A small one."
in_domain = ["referring"]
out_of_domain = ["locate"]

[arms]
"base" = []
"SFT" = ["cot", "sft"]
"w/o rejection sampling" = ["cot", "sft", "grpo"]
"full" = ["cot", "sft", "reject", "grpo"]

[[claims]]
says = "RL pays"
better = "full"
worse = "SFT"

[settings]
start = "tiny"
tasks = ["referring", "static_difference"]

[stages.cot]
kind = "sample"
agent = "vlm:tiny"
count = 4
attempts = 2
keep = "any_right"

[stages.sft]
kind = "train"
cold_start = true
steps = 0
sft_steps = 2
sft_rows = 2
sft_learning_rate = 1e-4
sft_probe_every = 1000
save_every = 1
eval_episodes = 1

[stages.reject]
kind = "sample"
first = 1000
count = 6
attempts = 4
keep = "varying"
gives = "tasks"

[stages.grpo]
kind = "train"
cold_start = false
loss = "mig_grpo"
group_size = 4
prompts_per_step = 2
steps = 3
warmup = 0
save_every = 1
eval_every = 0
eval_episodes = 1
show_every = 0

[stages.evaluation]
kind = "evaluate"
episodes = 2
attention_episodes = 0
"""
STAGES = ("cot", "cot/sft", "cot/sft/grpo", "cot/sft/reject", "cot/sft/reject/grpo")
ENDS = (".", "cot/sft", "cot/sft/grpo", "cot/sft/reject/grpo")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def finished(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one seed of the recipe."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert main([recipe, "--seeds", "0", "--output", str(output)]) == 0
    return output


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it cannot go on: one line."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("rl.reproduce: ") and said.count("\n") == 1
    return said.removeprefix("rl.reproduce: ").strip()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- from nothing to the report


def test_a_stage_lies_where_its_path_leads_and_every_arm_ends_with_its_evaluation(finished: Path) -> None:
    seed = finished / "seed-0"
    done = {path.parent.relative_to(seed).as_posix() for path in seed.rglob("done.json")}
    assert done == {*STAGES, *(f"{end}/evaluation".removeprefix("./") for end in ENDS)}
    assert set(read(seed / "cot/sft/evaluation/evaluation.json")) == {"test", "test_ood"}
    assert all((seed / path / "model").is_dir() == path.endswith(("sft", "grpo")) for path in STAGES)


def test_what_arms_share_is_done_once_and_each_stage_says_what_came_of_it(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe, "--arms", "SFT", "w/o rejection sampling", "--seeds", "0", "--output", str(tmp_path)]
    assert main([*words, "--grpo.steps=1"]) == 0
    said = capsys.readouterr().out.splitlines()
    stages = [line.partition(": ")[0] for line in said if line.startswith("seed 0, ")]
    names = ["cot", "cot > sft", "cot > sft > grpo", "cot > sft > evaluation", "cot > sft > grpo > evaluation"]
    assert stages == [f"seed 0, {name}" for name in names]
    assert [line for line in said if line.startswith("**")] == [  # the tables that are printed
        "**Claims of the paper, and what was measured**",
        "**Ablation: what each arm gets right**",
        "**Multi-image grounding, the columns of MIG-Bench**",
    ] + [line for line in said if line.startswith("**Retention: ")]
    assert said[-1].endswith(".png")
    kept = read(tmp_path / "seed-0/cot/counts.json")["kept"]
    assert f"{kept} of 4 tasks kept" in said[0] and kept > 0
    assert str(tmp_path / "report.html") in said


def test_each_stage_goes_on_from_what_those_before_it_on_its_path_left(finished: Path) -> None:
    seed = finished / "seed-0"
    sft, with_tasks = seed / "cot/sft", seed / "cot/sft/reject/grpo"
    learned, full, without = (read(folder / "config.json") for folder in (sft, with_tasks, seed / "cot/sft/grpo"))
    assert (learned["start"], learned["sft_data"]) == ("tiny", f"{seed}/cot/trajectories.jsonl")
    assert full["start"] == without["start"] == f"{sft}/model"
    assert full["sft_data"] is None
    assert (full["source"], full["eval_source"]) == (f"selected:{sft}/reject/tasks.jsonl", RENDERED)
    assert (without["source"], without["eval_source"]) == (None, None)


def test_the_model_that_samples_or_is_evaluated_is_the_last_one_that_was_trained(recipe: str) -> None:
    stages = read_recipe(recipe).stages
    for name in ("reject", "evaluation"):
        assert Found().given(stages[name]) == {}
        trained = Found().after(stages["sft"], Path("a/sft")).after(stages["reject"], Path("a/sft/reject"))
        assert trained.given(stages[name]) == {"start": "a/sft/model"}
        assert trained.after(stages["grpo"], Path("a/grpo")).given(stages[name]) == {"start": "a/grpo/model"}


def test_each_arm_is_evaluated_with_the_model_that_it_ends_with(
    recipe: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("evaluation/done.json"):
        path.unlink()
    asked: list[Any] = []
    monkeypatch.setattr("rl.recipes.pipeline._RUN", {"evaluate": lambda config: str(asked.append(config))})
    assert main([recipe, "--seeds", "0", "--output", str(tmp_path / "copy")]) == 0
    seed = tmp_path / "copy/seed-0"
    assert [config.start for config in asked] == ["tiny", *(str(seed / end / "model") for end in ENDS[1:])]


def test_training_on_tasks_that_were_kept_ends_elsewhere_than_training_on_any(finished: Path) -> None:
    sft = finished / "seed-0/cot/sft"
    ends = [weights(folder) for folder in (sft, sft / "grpo", sft / "reject/grpo")]
    assert len(set(ends)) == 3


def test_the_report_shows_the_arms_and_takes_what_each_left(recipe: str, finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "A small one." in page and "w/o rejection sampling" in page and "RL pays" in page
    assert "Not all is there" not in page
    assert {path.name for path in (finished / "tables").iterdir()} >= {"ablation.md", "ablation.csv"}
    runs = {run.arm: run for run in arm_runs(read_recipe(recipe), [0], finished)}
    assert list(runs) == ["base", "SFT", "w/o rejection sampling", "full"]
    full = runs["full"]
    seed = finished / "seed-0"
    assert (full.seed, full.folder) == (0, seed / "cot/sft/reject/grpo/evaluation")
    assert full.train_folders == (seed / "cot/sft", seed / "cot/sft/reject/grpo")
    assert full.sample_folders == (seed / "cot", seed / "cot/sft/reject")
    assert (runs["base"].train_folders, runs["base"].folder) == ((), seed / "evaluation")


# ---------------------------------------------------------------- again, and after a stop


def test_a_long_stage_says_now_and_then_how_far_it_is(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe, "--seeds", "0", "--arms", "SFT", "--output"]
    assert main([*words, str(tmp_path / "short")]) == 0
    assert f"{tmp_path}/short/seed-0" not in capsys.readouterr().out.partition("**")[0]
    monkeypatch.setattr("rl.recipes.pipeline.EVERY", -1.0)
    assert main([*words, str(tmp_path / "long")]) == 0
    said = capsys.readouterr().out.splitlines()
    home = f"{tmp_path}/long/seed-0/cot"
    assert [line for line in said if line.startswith(home)] == [
        *(f"{home}: tasks {done} of 4" for done in (0, 4)),
        *(f"{home}/sft: sft {step} of 2" for step in (1, 2)),
    ]


def test_a_recipe_that_is_done_does_nothing_but_its_report(
    recipe: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "seed-0").rglob("*")}
    (finished / "report.html").unlink()
    monkeypatch.setattr("rl.recipes.pipeline._RUN", {})
    capsys.readouterr()
    assert main([recipe, "--seeds", "0", "--output", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "seed-0").rglob("*")} == before
    assert "seed 0" not in capsys.readouterr().out
    assert (finished / "report.html").exists()


def forked(words: Sequence[str]) -> int:
    """Begins the command in a copy of this process, which has what takes seconds to import."""
    child = os.fork()
    if child == 0:  # never comes back to pytest
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            main(words)
        finally:
            os._exit(0)
    return child


def kill_when(child: int, reached: Callable[[], bool]) -> None:
    """Kills the command at a moment."""
    while not reached():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while sampling": lambda sft: (sft.parent / "attempts.jsonl").exists(),
    "in SFT": lambda sft: len(read_metrics(sft)) == 1,
    "in GRPO": lambda sft: len(read_metrics(sft / "reject/grpo")) == 2,
    "between stages": lambda sft: (sft / "reject/done.json").exists(),
    "before the last evaluation": lambda sft: (sft / "reject/grpo/done.json").exists(),
}


def test_a_recipe_that_is_killed_again_and_again_ends_with_the_same_weights_and_figures(
    recipe: str, finished: Path, tmp_path: Path
) -> None:
    words = [recipe, "--arms", "full", "--seeds", "0", "--output", str(tmp_path)]
    seed = tmp_path / "seed-0"
    for reached in MOMENTS.values():
        kill_when(forked(words), partial(reached, seed / "cot/sft"))
    assert not (seed / "cot/sft/reject/grpo/evaluation/evaluation.json").exists()
    assert main(words) == 0
    for name in ("cot/attempts.jsonl", "cot/trajectories.jsonl", "cot/sft/reject/tasks.jsonl"):
        assert (seed / name).read_bytes() == (finished / "seed-0" / name).read_bytes()
    for name in ("cot/sft", "cot/sft/reject/grpo"):
        assert weights(seed / name) == weights(finished / "seed-0" / name)
    name = "cot/sft/reject/grpo/evaluation/evaluation.json"
    assert (seed / name).read_bytes() == (finished / "seed-0" / name).read_bytes()


def test_an_output_may_be_moved(
    recipe: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    assert main([recipe, "--seeds", "0", "--output", str(tmp_path / "moved")]) == 0
    assert "seed 0" not in capsys.readouterr().out


def test_an_interrupted_recipe_says_how_to_go_on(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("rl.recipes.pipeline._RUN", {"sample": interrupted})
    assert main([recipe, "--seeds", "0", "--output", str(tmp_path), "--arms", "SFT"]) == 130
    assert capsys.readouterr().err == "rl.reproduce: stopped; the same command goes on\n"


# ---------------------------------------------------------------- what cannot go on


def test_where_a_stage_cannot_go_on_the_arms_that_do_without_it_still_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sampled(config: Any) -> str:
        if config.gives == "tasks":
            raise ValueError("nothing is kept")
        return "kept"

    def evaluated(config: Any) -> str:
        Path(config.output, "evaluation.json").write_text("{}")
        return "evaluated"

    kinds = {"sample": sampled, "train": lambda config: "trained", "evaluate": evaluated}
    monkeypatch.setattr("rl.recipes.pipeline._RUN", kinds)
    said = refused([recipe, "--seeds", "0", "--output", str(tmp_path)], capsys)
    assert said == "nothing is kept"
    done = {path.parent.relative_to(tmp_path / "seed-0").as_posix() for path in tmp_path.rglob("done.json")}
    assert done == {"evaluation", "cot", "cot/sft", "cot/sft/evaluation", "cot/sft/grpo", "cot/sft/grpo/evaluation"}
    assert "Not all is there" in (tmp_path / "report.html").read_text()


def test_two_commands_do_not_run_in_one_folder(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [recipe, "--seeds", "0", "--arms", "base", "--output", str(tmp_path)]
    home = tmp_path / "seed-0"
    with alone_in(home):
        assert refused(words, capsys) == f"{home}: another command is at work in it"
    assert main(words) == 0


def test_a_folder_of_another_recipe_or_size_is_refused_and_its_report_stays(
    recipe: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (finished / "report.html").read_bytes()
    words = [recipe, "--seeds", "0", "--output", str(finished), "--size", "paper"]
    assert refused(words, capsys) == f"{finished} is of small, size tiny: take another --output"
    assert (finished / "report.html").read_bytes() == page


def test_the_report_is_of_all_that_lies_in_the_folder(recipe: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(finished / "seed-0", tmp_path / "run/seed-7")
    assert main([recipe, "--seeds", "0", "--arms", "full", "--output", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "seeds 0, 7" in page and "w/o rejection sampling" in page and "Not all is there" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--start", "/no/such"], "stage sft: /no/such is not a model directory"),
        (["--cot.agent", "vlm:/no/such"], "stage cot: /no/such is not a model directory"),
        (["--start", "scratch"], "stage sft: it would begin with random weights"),
    ],
)
def test_what_no_stage_could_begin_with_is_refused_at_once(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert refused([recipe, *words, "--arms", "full", "--output", str(tmp_path / "run")], capsys).startswith(said)


def test_several_ranks_are_refused(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused([recipe, "--output", str(tmp_path / "run")], capsys)
    assert said.startswith("a recipe runs each seed on one process")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grpo.kl=k1", "--grpo.beta=0"], "stage grpo: kl k1: nothing comes of it with beta 0.0"),
        (["--cot.env=Nowhere-v0"], "stage cot: Environment `Nowhere` doesn't exist."),
        (["--reject.reward=gold"], "stage reject: reward 'gold' is not one of"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_at_once(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert refused([recipe, *words, "--output", str(tmp_path / "run")], capsys).startswith(said)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_describes_every_stage_and_leaves_nothing_behind(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([recipe, "--dry-run", "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0].removeprefix("-- ") for line in said.splitlines() if line.startswith("-- ")] == [
        *("cot", "sft", "grpo", "reject", "evaluation")
    ]
    assert said.count("rehearsed  a real step") == 2
    assert not (tmp_path / "run").exists()


def test_an_arm_that_becomes_another_is_named(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rl.recipes.pipeline._RUN", dict.fromkeys(("sample", "train", "evaluate"), lambda config: "x"))
    assert main([recipe, "--skip", "reject", "--seeds", "0", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the arm 'full' is left out: without what is skipped it is 'w/o rejection sampling'\n" in said


# ---------------------------------------------------------------- seeds


def test_seeds_run_in_processes_of_their_own_and_one_that_cannot_go_on_leaves_the_others_alone(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = [recipe, "--arms", "base", "--evaluation.temperature=1", "--output", str(tmp_path), "--seeds", "3", "4"]
    warm.append("--evaluation.episodes=28")
    three, four = (tmp_path / f"seed-{seed}" / "evaluation" for seed in (3, 4))
    three.mkdir(parents=True)
    (three / "stage.json").write_text('{"kind": "train"}')
    assert f"{three} was begun with" in refused([*warm, "--workers", "2"], capsys)
    assert (four / "done.json").exists() and not (three / "done.json").exists()
    (three / "stage.json").unlink()
    assert main([*warm, "--workers", "1"]) == 0
    assert "seed 4" not in capsys.readouterr().out
    assert read(three / "evaluation.json") != read(four / "evaluation.json")
    assert "seeds 3, 4" in (tmp_path / "report.html").read_text()


# ---------------------------------------------------------------- what is refused


def test_a_folder_that_was_begun_with_other_settings_is_refused_with_their_names(
    recipe: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe, "--seeds", "0", "--output", str(finished)]
    said = refused([*words, "--sft.sft_rows", "3", "--sft.sft_learning_rate", "0.1"], capsys)
    changes = "sft_learning_rate 0.0001, now 0.1, sft_rows 2, now 3"
    assert said == f"{finished}/seed-0/cot/sft was begun with {changes}: take another --output, or remove it"
    assert "seed-0/cot was begun with count 4, now 5" in refused([*words, "--cot.count=5"], capsys)
    assert "sft was begun with max_grad_norm None, now 0.5" in refused([*words, "--sft.max_grad_norm", "0.5"], capsys)


def test_stages_that_were_skipped_lead_to_other_folders(recipe: str, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    words = [recipe, "--seeds", "0", "--output", str(copy), "--skip", "cot", "sft", "--arms", "w/o rejection sampling"]
    assert main([*words, "--grpo.steps", "1"]) == 0
    assert read(copy / "seed-0/grpo/config.json")["start"] == "tiny"
    assert weights(copy / "seed-0/cot/sft/grpo") == weights(finished / "seed-0/cot/sft/grpo")


def test_a_stage_that_keeps_nothing_ends_its_recipe(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe, "--seeds", "0", "--output", str(tmp_path), "--arms", "full", "--cot.agent", "random"]
    said = refused(words, capsys)
    assert said == f"{tmp_path}/seed-0/cot: of 4 tasks none is kept (any_right); 4 all wrong"
    assert not (tmp_path / "seed-0/cot/done.json").exists()
    assert not (tmp_path / "report.html").exists()  # nothing was evaluated that it could show


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "ful"], "arms ['ful'] are not among ['base', 'SFT', 'w/o rejection sampling', 'full']"),
        (["--skip", "reject", "grop"], "small.toml, skip: unknown grop"),
        (["--grop.steps", "1"], "--grop.steps: 'grop' is not one of the stages"),
        (["--grpo.stepz", "1"], "small.toml, stage grpo: unknown stepz"),
        (["--grpo.group_size", "1"], "stage grpo: group_size 1"),
        (["--seed", "1"], "small.toml, settings: unknown seed"),
        (["--grpo.steps"], "--grpo.steps: expected --STAGE.KEY VALUE"),
        (["--cot.agent", "chess"], "agent 'chess' is not one of"),
        (["--env", "NoSuch-v0"], "NoSuch"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in refused([recipe, "--seeds", "0", "--output", str(tmp_path), *words], capsys)


def test_an_unknown_recipe_is_refused_with_the_names_of_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "recipe 'mig' is not one of imagent_recon, mig_grpo, mirg_recon" in refused(["mig"], capsys)
    assert "none.toml" in refused(["none.toml"], capsys)


# ---------------------------------------------------------------- the shipped ones

LITTLE: dict[str, dict[str, Any]] = {
    "train": {
        "sft_tasks": 6,
        "sft_steps": 2,
        "sft_rows": 2,
        "sft_probe_every": 1000,
        "prompts_per_step": 2,
        "eval_episodes": 1,
    },
    "sample": {"count": 32},
    "evaluate": {"episodes": 7, "attention_episodes": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_runs_from_nothing_to_its_report(name: str, tmp_path: Path) -> None:
    stages = read_recipe(name).stages.values()
    words = [f"--{stage.name}.{key}={value}" for stage in stages for key, value in LITTLE[stage.kind].items()]
    words += [f"--{stage.name}.steps=2" for stage in stages if stage.kind == "train" and stage.config().steps]
    # A model of two updates is never right: where it would sample, the shipped one does.
    words += [f"--{stage.name}.agent=vlm:tiny" for stage in stages if stage.settings.get("agent") == "policy"]
    assert main([name, "--seeds", "0", "--output", str(tmp_path), *words]) == 0
    arms = read_recipe(name).arms
    assert len(list(tmp_path.rglob("evaluation.json"))) == len(arms)
    assert "Not all is there" not in (tmp_path / "report.html").read_text()
