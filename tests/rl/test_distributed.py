"""Several ranks find what one process finds on the same groups, and a rank that stops ends the run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from agents.qwen_vl import QwenVL
from rl.distributed import Replicas, World
from rl.errors import CheckpointError

HERE: Final = Path(__file__).parent
CASES: Final = ("ddp-all", "fsdp2-all", "ddp-lora", "fsdp2-lora")
SLOW_CASES: Final = ("ddp-language", "fsdp2-language", "ddp-recomputed", "fsdp2-recomputed")
ALONE: Final = World()


def ranks_script() -> Any:
    spec = importlib.util.spec_from_file_location("on_two_ranks", HERE / "on_two_ranks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*command, str(HERE / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launched(cases: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Of every case, what a process alone found, and what either rank found."""
    script = ranks_script()
    alone = {}
    for trains in dict.fromkeys(case.split("-")[1] for case in cases):
        alone[trains] = script.case("ddp", trains, folder, ALONE)
        torch.save(alone[trains], folder / f"alone-{trains}.pt")
    running = start("on_two_ranks.py", str(folder), *cases)
    said, _ = running.communicate(timeout=240)
    assert running.returncode == 0, said
    ranks = {case: [torch.load(folder / f"{case}.{rank}.pt") for rank in range(2)] for case in cases}
    return {"folder": folder, **{case: (alone[case.split("-")[1]], *ranks[case]) for case in cases}}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launched(CASES, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launched(SLOW_CASES, tmp_path_factory.mktemp("ranks"))


@pytest.fixture
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder_and_cases: dict[str, Any] = request.getfixturevalue("quick" if request.param in CASES else "slow")
    alone, first, second = folder_and_cases[request.param]
    return {"case": request.param, "folder": folder_and_cases["folder"], "alone": alone, "ranks": [first, second]}


every_case = pytest.mark.parametrize(
    "found", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)], indirect=True
)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: float) -> None:
    """Relative to the norm of each tensor, or to 1 where that is less than 1e-3."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = max(float(expected.float().norm()), 1e-3)
        assert float((ours[name].float() - expected.float()).norm()) <= most * scale, name


# ---------------------------------------------------------------- two ranks equal one process


@every_case
def test_ranks_sum_to_the_gradients_of_one_process(found: dict[str, Any]) -> None:
    assert max(float(gradient.norm()) for gradient in found["alone"]["gradients"].values()) > 1
    for rank in found["ranks"]:
        assert_equal(rank["gradients"], found["alone"]["gradients"], 1e-4)


@every_case
def test_ranks_log_the_losses_and_norms_of_one_process_however_unevenly_they_are_loaded(found: dict[str, Any]) -> None:
    alone = found["alone"]["logged"]
    assert len(alone) == 4 and len({step["tokens"] for step in alone}) > 1
    assert min(step["norm"] for step in alone) > ranks_script().MOST  # so that clipping changes the weights
    for rank in found["ranks"]:
        for ours, theirs in zip(rank["logged"], alone, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@every_case
def test_ranks_end_with_the_weights_of_one_process(found: dict[str, Any]) -> None:
    first, second = found["ranks"]
    assert second["weights"] == {} and second["only_trained"] == []
    assert_equal(first["weights"], found["alone"]["weights"], 1e-4)
    before = found["alone"]["saved"][0]
    moved = [name for name, value in first["weights"].items() if float((value - before[name]).abs().max()) > 1e-4]
    assert set(found["alone"]["only_trained"]) <= {*moved, "lm_head.weight"}
    assert first["only_trained"] == found["alone"]["only_trained"]


@every_case
def test_each_rank_may_sample_as_much_as_it_likes(found: dict[str, Any]) -> None:
    alone = found["alone"]["played"]
    first, second = (rank["played"] for rank in found["ranks"])
    assert len(second) > len(first) == len(alone)
    for (ids, logprobs), (expected_ids, expected) in zip(first, alone, strict=True):
        assert ids == expected_ids
        assert logprobs == pytest.approx(expected, abs=1e-3)


@every_case
def test_what_one_process_saved_two_ranks_go_on_from(found: dict[str, Any]) -> None:
    assert_equal(found["ranks"][0]["resumed"], found["alone"]["weights"], 1e-4)


@every_case
def test_what_two_ranks_saved_one_process_goes_on_from(found: dict[str, Any]) -> None:
    saved = found["ranks"][0]["saved"]
    assert found["ranks"][1]["saved"] == ({}, {})
    assert saved[1].keys() == found["alone"]["saved"][1].keys()
    resumed = ranks_script().resumed("ddp", found["case"].split("-")[1], saved, ALONE)
    assert_equal(resumed, found["alone"]["weights"], 1e-4)


@every_case
def test_an_optimiser_that_has_done_nothing_is_saved_as_such(found: dict[str, Any]) -> None:
    assert list(found["ranks"][0]["fresh"]) == ["AdamW.sizes"]
    assert torch.equal(found["ranks"][0]["fresh"]["AdamW.sizes"], found["alone"]["fresh"]["AdamW.sizes"])


@every_case
def test_rank_0_saves_a_model_that_transformers_loads(found: dict[str, Any]) -> None:
    alone, both = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(found["folder"] / f"merged-{name}").state_dict()
        for name in (f"ddp-{found['case'].split('-')[1]}-1", f"{found['case']}-2")
    )
    assert_equal(both, alone, 1e-4)


@pytest.mark.parametrize("found", ["ddp-lora", "fsdp2-lora"], indirect=True)
def test_under_an_adapter_nothing_else_is_trained(found: dict[str, Any]) -> None:
    first, before = found["ranks"][0], ranks_script().learner("lora").model.state_dict()
    factors = [name for name in before if ".lora_" in name]
    assert first["only_trained"] == sorted(factors)
    assert all(torch.equal(before[name], value) for name, value in first["weights"].items() if name not in factors)


@pytest.mark.parametrize("found", ["ddp-lora", "fsdp2-lora"], indirect=True)
def test_every_rank_has_the_reference_under_the_adapter_before_and_after_training(found: dict[str, Any]) -> None:
    expected, _ = found["alone"]["reference"]
    for rank in found["ranks"]:
        before, after = rank["reference"]
        assert torch.equal(before, after)
        torch.testing.assert_close(before, expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- a rank that stops


def ended(how: str, within: float) -> str:
    began = time.monotonic()
    running = start("rank_that_stops.py", how)
    try:
        said, _ = running.communicate(timeout=within)
    finally:
        running.kill()
    assert running.returncode == 1, said
    assert time.monotonic() - began < within
    return said


def test_a_rank_that_is_killed_ends_the_run_and_is_named() -> None:
    said = ended("killed", 60)
    assert "Signal 9 (SIGKILL)" in said and "rank      : 1" in said


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_with_its_error() -> None:
    said = ended("failed", 60)
    assert "RuntimeError: no more tasks" in said and "This was rank 1 of 2" in said


@pytest.mark.slow
def test_a_rank_that_waits_too_long_for_another_says_so() -> None:
    said = ended("late", 90)
    assert "This was rank 0 of 2. If it lost its connection or waited longer than 5 s, another rank stopped" in said


# ---------------------------------------------------------------- alone


@pytest.mark.parametrize(("count", "size"), [(7, 3), (2, 4), (0, 2), (6, 1)])
def test_shares_are_in_order_complete_and_even_but_for_one(count: int, size: int) -> None:
    shares = [list(World(rank, size).share(range(count))) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_has_what_it_has() -> None:
    with World.join() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.total({"a": 2.5, "b": -1.0}) == {"a": 2.5, "b": -1.0}
        assert world.gather("own") == ["own"]
        world.barrier()


def test_a_kind_that_does_not_exist_is_refused(qwen: QwenVL) -> None:
    with pytest.raises(ValueError, match="kind is one of ddp, fsdp2, not horovod"):
        Replicas(qwen, ALONE, "horovod")


def test_the_optimiser_of_another_model_is_refused(make_qwen: Callable[..., QwenVL]) -> None:
    replicas = Replicas(make_qwen(), ALONE)
    optimizer = torch.optim.AdamW(replicas.trained())
    with pytest.raises(CheckpointError, match="checkpoint there: another model"):
        replicas.restore_optimizer(optimizer, {"AdamW.sizes": torch.tensor([5])}, Path("there"))
