"""The parts of the benchmark beside TRL that decide what its figures mean."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other by bare names

from grpo_agreement import samples  # noqa: E402
from grpo_gpu import decode_bytes, update_flops  # noqa: E402
from grpo_vs_trl import middle, ratios, same_lengths  # noqa: E402
from grpo_work import SHAPES, Case, Head, Record, region, shown  # noqa: E402

CASE = Case(images=2, size=28, group=2, prompts=2, tokens=4)


def record(generation: float, update: float, step: float, tokens: int = 8, peak: float = 100.0) -> Record:
    phases = {"generation": generation, "update": update, "step": step}
    return {name: {"cpu": value, "wall": 9 * value} for name, value in phases.items()} | {
        "tokens": tokens,
        "peak": peak,
    }


def test_ratios_are_theirs_over_ours_in_time_and_ours_over_theirs_in_memory():
    theirs = [record(2, 8, 12, peak=400), record(2, 8, 12, peak=500), record(90, 90, 90, peak=300)]
    ours = [record(1, 2, 3, peak=200), record(1, 2, 3, peak=100), record(50, 50, 50, peak=100)]
    found = ratios({"trl": theirs, "ours": ours})
    assert found == {"generation": 2.0, "update": 4.0, "step": 4.0, "memory": 0.4}
    assert middle(theirs, "step", "wall") == 108


def test_sides_that_train_on_different_numbers_of_tokens_are_not_compared():
    assert same_lengths({"trl": [record(1, 1, 1)], "ours": [record(2, 2, 2)]}) == 8
    with pytest.raises(RuntimeError, match=r"\[7, 8\]"):
        same_lengths({"trl": [record(1, 1, 1)], "ours": [record(1, 1, 1, tokens=7)]})


def test_the_head_writes_its_script_then_never_a_special_token():
    head = Head(torch.nn.Parameter(torch.randn(6, 3)), never=(0, 5))
    head.script = [5, 2]
    hidden = torch.randn(4, 3)
    assert head(hidden).argmax(-1).tolist() == [5] * 4
    assert head(hidden).argmax(-1).tolist() == [2] * 4
    free = head(hidden).detach().softmax(-1)
    assert float(free[:, [0, 5]].max()) < 1e-12 < float(free[:, 1:5].min())


def test_attempts_of_a_group_see_the_same_images_unless_nothing_is_to_be_shared():
    def first(case: Case, row: int) -> bytes:
        return shown(case, 0, row)[0].tobytes()

    assert first(CASE, 0) == first(CASE, 1) != first(CASE, 2)
    alone = replace(CASE, shared=False)
    assert len({first(alone, row) for row in range(4)}) == 4
    assert region(CASE, 0, 0).tobytes() != region(CASE, 1, 0).tobytes()


def test_rows_of_trl_become_samples_with_one_placeholder_an_image():
    prompt, image = [3, 9, 9, 4, 9, 9, 5], 9
    found = {
        "prompt_ids": np.array([[0, *prompt]] * 4),
        "prompt_mask": np.array([[0] + [1] * 7] * 4),
        "completion_ids": np.array([[6, 7, 0]] * 4),
        "completion_mask": np.array([[1, 1, 0]] * 4),
        "trained": np.array([[1, 0, 0]] * 4),
        "old_per_token_logps": np.array([[-2.0, -3.0, 0.0]] * 4),
        "advantages": np.array([1.0, -1.0, 0.5, -0.5]),
    }
    (first, second), _ = samples(CASE, found, image)
    assert first.ids == (3, 9, 4, 9, 5, 6, 7)
    assert first.mask == (False,) * 5 + (True, False)
    assert first.logprobs[5] == -2.0
    assert (first.advantage, second.advantage) == (1.0, -1.0)
    assert len(first.images) == 2


def test_only_ours_is_counted_to_process_a_prompt_once_for_its_group():
    case = Case(images=4, size=448, group=8, prompts=1, tokens=256, shape="3b")
    shape = SHAPES["3b"]
    assert shape.text_parameters() == 36 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    ours, theirs = update_flops(case, "ours"), update_flops(case, "trl")
    prompt = 6 * (1024 * shape.text_parameters() + 4096 * shape.vision_parameters())
    assert theirs - ours == pytest.approx(7 * prompt)
    assert ours - prompt == pytest.approx(6 * 8 * 256 * shape.text_parameters())


def test_drawing_tokens_reads_the_layers_once_a_token_and_the_keys_and_values_of_every_row():
    case = Case(images=1, size=28, group=2, prompts=1, tokens=2, shape="eighth")
    values_a_token = 2 * 4 * 64
    assert decode_bytes(case) == 2 * 4 * (SHAPES["eighth"].text_parameters() + 2 * values_a_token * (1 + 1))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl==1.16.* and jmespath")
@pytest.mark.parametrize("words", [("grpo_gpu.py", "--toy"), ("grpo_vs_trl.py", "--quick", "--only", "tool_two_turns")])
def test_the_benchmark_runs_at_toy_size(words: tuple[str, ...]):
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:], "--repeat", "1"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found.get("tool_two_turns", found)) == {"generation", "update", "step", "memory"}
