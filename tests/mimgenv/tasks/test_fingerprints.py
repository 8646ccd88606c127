"""Golden fingerprints: a hundred seeds of every task type, pixels, question and truth, never change unnoticed.

Where this fails, episodes have changed. If that was wanted, bump `-vN` and `GENERATOR_VERSION` once released;
`python tests/mimgenv/tasks/test_fingerprints.py` writes the new fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mimgenv.tasks.rendered import TASK_TYPES, RenderedTasks, worlds_of

GOLDEN = Path(__file__).with_suffix(".json")
SEEDS = 100
CASES = [
    *((None, task_type) for task_type in TASK_TYPES),
    *(("tiny", task_type) for task_type in TASK_TYPES if "tiny" in worlds_of(task_type)),
]


def name(world: str | None, task_type: str) -> str:
    return f"{world or 'ordinary'}/{task_type}"


def fingerprint(world: str | None, task_type: str) -> str:
    """Of seeds 0 to 79 of `train` and 80 to 99 of `test_ood`."""
    seen = hashlib.sha256()
    for seed in range(SEEDS):
        task = RenderedTasks(world, (task_type,), "train" if seed < 80 else "test_ood").task(seed)
        seen.update(repr((task.task_id, task.question, task.truth, task.rationale, task.objects)).encode())
        for image in task.images:
            seen.update(str(image.shape).encode() + image.tobytes())
    return seen.hexdigest()[:32]


@pytest.mark.parametrize(("world", "task_type"), CASES)
def test_a_hundred_seeds_have_the_golden_fingerprint(world: str | None, task_type: str) -> None:
    assert fingerprint(world, task_type) == json.loads(GOLDEN.read_text("utf-8"))[name(world, task_type)]


def test_every_type_has_a_fingerprint_and_no_two_are_equal() -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert set(golden) == {name(*case) for case in CASES}
    assert len(set(golden.values())) == len(golden)


if __name__ == "__main__":
    made = {name(*case): fingerprint(*case) for case in CASES}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
