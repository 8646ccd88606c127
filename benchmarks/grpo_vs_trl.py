"""One GRPO step of ours beside one of TRL 1.16: the same model, prompts, images and lengths, on one thread.

pip install -e '.[train]' 'trl==1.16.*' jmespath
OMP_NUM_THREADS=1 python benchmarks/grpo_vs_trl.py [--repeat 5] [--only [4x224 …]] [--scaling] [--quick]

Each side and case has a process of its own; they take steps in turn. First both are given the same completions: their
losses and gradients must agree. The last line is JSON: TRL's CPU time over ours by phase, our peak memory over TRL's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from grpo_work import Case, Record
from runs import markdown

HERE: Final = Path(__file__).parent
CASES: Final = {
    "2x112": Case(2, 112),
    "4x112": Case(4, 112),
    "2x224": Case(2, 224),
    "4x224": Case(4, 224),
    "tool_two_turns": Case(2, 112, turns=2),
}
MORE: Final = {"tool_4x224": Case(4, 224, turns=2)}
"""Measured when asked for."""
SIDES: Final = ("trl", "ours")
PHASES: Final = ("generation", "update", "step")
CLOSE: Final = 1e-4
"""Most that losses may differ by, and gradients relative to their norm."""
SCALED: Final = {"group": (2, 4, 8, 16, 32), "images": (1, 2, 4, 8), "turns": (1, 2, 3, 4)}
BASE: Final = Case(4, 112, prompts=2)


def environment() -> dict[str, str]:
    """One thread, no network, our packages on the path."""
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **single, "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": path}


class Worker:
    """A side in a process of its own, taking steps of a case when asked."""

    def __init__(self, side: str, case: Case, steps: int) -> None:
        words = [sys.executable, str(HERE / "grpo_sides.py"), side, json.dumps(asdict(case)), str(steps)]
        visible = {"CUDA_VISIBLE_DEVICES": ""} if case.device == "cpu" else {}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self._process = subprocess.Popen(words, env=environment() | visible, **pipes)

    def step(self) -> Record:
        """One step.

        Raises:
            RuntimeError: If the process ended instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"a side ended before its step:\n{self._errors.read()[-4000:]}")
        record: Record = json.loads(line)
        return record

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()


def measure(case: Case, repeat: int, sides: Sequence[str] = SIDES) -> dict[str, list[Record]]:
    """Steps of each side, in turn; a first one of each warms up and is left out."""
    workers = {side: Worker(side, case, repeat + 1) for side in sides}
    found: dict[str, list[Record]] = {side: [] for side in sides}
    for _ in range(repeat + 1):
        for side, worker in workers.items():
            found[side].append(worker.step())
    for worker in workers.values():
        worker.close()
    return {side: records[1:] for side, records in found.items()}


def middle(records: Sequence[Record], phase: str, clock: str = "cpu") -> float:
    """Median seconds of a phase."""
    return statistics.median(record[phase][clock] for record in records)


def peak(records: Sequence[Record]) -> float:
    """Most megabytes the process ever held, imports included."""
    return max(record["peak"] for record in records)


def ratios(found: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """TRL's time over ours by phase, and our memory over TRL's: rounded, of CPU time."""
    times = {phase: middle(found["trl"], phase) / middle(found["ours"], phase) for phase in PHASES}
    return {name: round(value, 3) for name, value in times.items()} | {
        "memory": round(peak(found["ours"]) / peak(found["trl"]), 3)
    }


def same_lengths(found: Mapping[str, Sequence[Record]]) -> int:
    """How many tokens each step trained on.

    Raises:
        RuntimeError: If it was not always the same.
    """
    counts = {record["tokens"] for records in found.values() for record in records}
    if len(counts) != 1:
        raise RuntimeError(f"both sides must train on as many tokens in every step, not on {sorted(counts)}")
    return int(counts.pop())


def rows(name: str, found: Mapping[str, Sequence[Record]]) -> list[list[object]]:
    """Of the table: TRL, ours, and what the one takes over the other."""
    lines: list[list[object]] = []
    for side, records in found.items():
        seconds = [middle(records, phase) for phase in PHASES]
        lines.append([name, side, *seconds, middle(records, "step", "wall"), round(peak(records))])
    shares = ratios(found)
    wall = middle(found["trl"], "step", "wall") / middle(found["ours"], "step", "wall")
    times = [f"{value:.2f}×" for value in (*(shares[phase] for phase in PHASES), wall)]
    return [*lines, [name, "**TRL / ours**", *times, f"{1 / shares['memory']:.2f}×"]]


def agreement(case: Case) -> Record:
    """Loss and gradients of both sides on the same completions.

    Raises:
        RuntimeError: If they differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            words = [sys.executable, str(HERE / "grpo_agreement.py"), side]
            words += [json.dumps(asdict(case)), str(Path(folder, "trl.npz"))]
            done = subprocess.run(words, env=environment(), capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"no agreement could be measured:\n{done.stderr[-4000:]}")
    found: Record = json.loads(done.stdout)
    apart = max(abs(found["loss"] - found["trl_loss"]), found["gradients"])
    if found["tokens"] != found["trl_tokens"] or apart > CLOSE:
        raise RuntimeError(f"both sides must find the same loss and gradients on the same completions: {found}")
    return found


def compared(names: Sequence[str], repeat: int, quick: bool) -> dict[str, dict[str, float]]:
    """Prints the tables of all cases, and returns their ratios."""
    cases = {
        name: replace(case, prompts=1, group=4, tokens=32) if quick else case
        for name, case in (CASES | MORE).items()
        if name in names
    }
    checked = ("tokens", "logprobs", "loss", "trl_loss", "norm", "trl_norm", "gradients")
    header = ["case", "tokens", "log-probs apart", "our loss", "TRL's", "our gradient norm", "TRL's", "gradients apart"]
    lines: list[list[object]] = []
    for name, case in cases.items():
        found = agreement(replace(case, prompts=1))
        lines.append([name, *(value if isinstance(value := found[each], int) else f"{value:.4g}" for each in checked)])
    print("Both on the same completions:\n\n" + markdown(header, lines) + "\n", flush=True)
    header = ["case", "side", *(f"{phase}, CPU s" for phase in PHASES), "step, wall s", "peak MiB"]
    measured = {name: measure(case, repeat) for name, case in cases.items()}
    print(markdown(header, [line for name, found in measured.items() for line in rows(name, found)]))
    counts = ", ".join(f"{name} {same_lengths(found)}" for name, found in measured.items())
    print(f"\nTokens trained on in a step, both sides: {counts}\n", flush=True)
    return {name: ratios(found) for name, found in measured.items()}


def scaling(repeat: int) -> str:
    """What ours costs as one thing grows; beside it, the same number of attempts that have nothing in common."""
    header = ["what", "of it", *("generation", "without sharing", "gain", "update", "without sharing", "gain")]
    lines: list[list[object]] = []
    for name, values in SCALED.items():
        for value in values:
            case = replace(BASE, **{name: value})
            pair = [measure(replace(case, shared=shared), repeat, ("ours",))["ours"] for shared in (True, False)]
            line: list[object] = [name, value]
            for phase in ("generation", "update"):
                shared, alone = (middle(records, phase) for records in pair)
                line += [shared, alone, f"{alone / shared:.2f}×"]
            lines.append(line)
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="steps of each side that count")
    parser.add_argument("--only", nargs="*", choices=CASES | MORE, default=list(CASES))
    parser.add_argument("--scaling", action="store_true", help="also what ours costs against G, images and turns")
    parser.add_argument("--quick", action="store_true", help="one prompt, G = 4, 32 tokens: whether it runs")
    options = parser.parse_args()
    found = compared(options.only, options.repeat, options.quick) if options.only else {}
    if options.scaling:
        print(scaling(max(1, options.repeat // 2)) + "\n", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
