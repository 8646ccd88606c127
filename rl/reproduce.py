"""The command: `python -m rl.reproduce RECIPE [--size tiny] [--seeds 0 1 2] [--output DIR] [--STAGE.KEY VALUE …]`.

Runs the arms of a recipe for every seed, seeds side by side, and ends with tables, plots and a page. A stage lies in a
folder named after the path that leads to it, `OUTPUT/seed-0/base/cot/sft`: what two arms share is done once, and the
same command, given again, goes on where it was stopped. With `--dry-run` nothing is trained: it says what would run,
plans memory and steps, and rehearses one step of a two-layer model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import gymnasium as gym

from mimgenv.errors import MimgenvError
from mimgenv.tasks.prefetch import end_with_parent
from rl.errors import CheckpointError, TrainingStopped
from rl.recipes.evaluation import EVALUATION
from rl.recipes.pipeline import check_stages, folder_of, run_seed
from rl.recipes.recipe import SIZES, Recipe, read_recipe, recipe_names
from rl.recipes.report import ArmRun, write_report

NAME: Final = "recipe.txt"
"""Which recipe a folder is of."""
PRINTED: Final = ("claims.md", "ablation.md", "grounding.md", "retention.md")
"""Tables that the command prints; all of them are in files."""


def arm_runs(recipe: Recipe, seeds: Sequence[int], output: Path) -> list[ArmRun]:
    """The arms of every seed as the report takes them, whether complete or not."""
    runs = []
    for seed, (arm, path) in product(seeds, recipe.arms.items()):
        home = folder_of(output, seed)
        folders = {Path(home, *path[: end + 1]): recipe.stages[name].kind for end, name in enumerate(path)}
        trained, sampled = (tuple(f for f, k in folders.items() if k == kind) for kind in ("train", "sample"))
        runs.append(ArmRun(arm, seed, Path(home, *path, recipe.ends[arm]), trained, sampled))
    return runs


def run_recipe(recipe: Recipe, seeds: Sequence[int], output: Path, workers: int) -> None:
    """Runs a recipe for every seed, at most `workers` of them side by side.

    Raises:
        ValueError, MimgenvError, TrainingStopped: Of the first seed that cannot go on; those that run beside it end
            first.
    """
    if workers == 1:
        for seed in seeds:
            run_seed(recipe, seed, output)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        running: list[Future[None]] = [pool.submit(run_seed, recipe, seed, output) for seed in seeds]
        for future in as_completed(running):
            future.result()


def report(recipe: Recipe, seeds: Sequence[int], output: Path) -> list[Path]:
    """Writes the report of what lies in a folder: of these seeds, and of those that were run before.

    Returns:
        Its files; none where no arm was evaluated yet, so that an earlier report stays.
    """
    before = (int(home.name.removeprefix("seed-")) for home in output.glob("seed-*"))
    runs = arm_runs(recipe, sorted({*seeds, *before}), output)
    if not any((run.folder / EVALUATION).exists() for run in runs):
        return []
    return write_report(output, recipe, runs)


def claim(output: Path, recipe: Recipe) -> None:
    """Says in a folder which recipe it is of.

    Raises:
        ValueError: If it is of another.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, own = output / NAME, f"{recipe.name}, size {recipe.size}"
    if path.exists() and path.read_text("utf-8") != own:
        raise ValueError(f"{output} is of {path.read_text('utf-8')}: take another --output")
    path.write_text(own, "utf-8")


# ---------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rl.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed is a setting, and no short form of --seeds
    )
    add = parser.add_argument
    add("recipe", help=f"{', '.join(recipe_names())}, or a path to a .toml file")
    add("--size", choices=SIZES, default=SIZES[0], help="tiny: minutes on a CPU; paper: the paper's; default: tiny")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--arms", nargs="+", metavar="ARM", help="only these arms; default: all")
    add("--skip", nargs="+", default=[], metavar="STAGE", help="stages that arms pass over")
    add("--workers", type=int, help="seeds side by side; default: all, one on a GPU")
    add("--output", type=Path, help="default: runs/RECIPE, or runs/RECIPE-paper")
    add("--dry-run", action="store_true", help="say what would run, plan it, and rehearse one step")
    return parser


def _given(words: Sequence[str]) -> dict[str, str]:
    """`--KEY VALUE` and `--STAGE.KEY VALUE`."""
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (not equals and not rest):
            raise ValueError(f"{word}: expected --STAGE.KEY VALUE")
        given[name] = text if equals else rest.pop(0)
    return given


def _chosen(recipe: Recipe, arms: Sequence[str] | None) -> Recipe:
    if arms is None:
        return recipe
    unknown = [arm for arm in arms if arm not in recipe.arms]
    if unknown:
        raise ValueError(f"arms {unknown} are not among {list(recipe.arms)}")
    return replace(recipe, arms={arm: recipe.arms[arm] for arm in arms})


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 where it is wrong or a stage cannot go on, 130 where it was interrupted."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the seeds' processes
    options, rest = _parser().parse_known_args(words)
    try:
        whole = read_recipe(options.recipe, options.size, options.skip, _given(rest))
        recipe = _chosen(whole, options.arms)
        output = options.output or Path("runs", recipe.name if recipe.size == SIZES[0] else f"{recipe.name}-paper")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("a recipe runs each seed on one process; under torchrun train stages alone with rl.train")
        for arm, same in recipe.left_out.items():
            print(f"the arm {arm!r} is left out: without what is skipped it is {same!r}")
        check_stages(recipe)
        if options.dry_run:
            from rl.recipes.dry_run import dry_run

            for text in dry_run(recipe):
                print(text, end="\n\n", flush=True)
            return 0
        claim(output, recipe)
        on_cpu = all(stage.config().device == "cpu" for stage in recipe.stages.values())
        try:
            run_recipe(recipe, options.seeds, output, options.workers or (len(options.seeds) if on_cpu else 1))
        finally:  # of what there is, also where a seed could not go on
            files = report(whole, options.seeds, output)
    except (ValueError, OSError, gym.error.Error, MimgenvError, TrainingStopped, CheckpointError) as error:
        print(f"rl.reproduce: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rl.reproduce: stopped; the same command goes on", file=sys.stderr)
        return 130
    for file in files:
        print(file.read_text("utf-8") if file.name in PRINTED else file)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
