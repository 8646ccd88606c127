"""A plan and a rehearsal in words: for someone who wants to know whether a run fits, and what it does for days.

Only words and sums are here; what is said comes from plan.py and rehearsal.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, TypeAlias

from rl.config import TrainConfig
from rl.planning.plan import LOOKED_AT, Plan
from rl.planning.rehearsal import Rehearsal

GPUS: Final = (1, 8)
"""Numbers of GPUs that memory is worked out for."""
A_GPU: Final = 80 * 10**9
"""Bytes of the GPU that a run is said to fit on, or not."""
FILLED: Final = 0.9
"""The share of it that tensors may fill: the rest is the allocator's."""
MILLISECONDS: Final = 30
"""Of a pass for single tokens: an example, to make days of a number of passes."""
WIDTH: Final = 90

Pairs: TypeAlias = Iterator[tuple[str, str]]
"""A word, and what is said of it."""


def describe_plan(made: Plan) -> str:
    """A plan in words, and its memory as a table."""
    return listed(_plan_words(made)) + "\n\n" + "\n".join(line.rstrip() for line in _memory(made))


def _plan_words(made: Plan) -> Pairs:
    config, work, lengths = made.config, made.work, made.lengths
    how = f"adapters of rank {config.lora_rank}" if config.lora_rank else "weights of the model itself"
    yield "shape", f"of {config.start}, from {made.shape.source}"
    yield "parameters", f"{made.parameters:,} in {config.dtype}; {made.trained:,} learn: {how}"
    counted = "" if made.shape.tokenizer else "; text by the shipped tokenizer, which makes more tokens"
    yield "prompt", f"{lengths.prompt:,} tokens at most, {lengths.images:,} of images ({LOOKED_AT} tasks{counted})"
    yield "attempt", f"{lengths.attempt:,} tokens at most after that, {lengths.sampled:,} of them sampled"
    if work.sft_updates:
        yield "SFT", f"{work.sft_updates:,} updates of {config.sft_rows} rows at most"
    if work.grpo_steps:
        yield "GRPO", f"{work.grpo_steps:,} steps of {config.prompts_per_step} tasks x {config.group_size} attempts"
        yield "", f"{work.played:,} episodes; {config.updates_per_step * work.grpo_steps:,} updates"
    yield "evaluation", f"{work.evaluated:,} episodes, probes included"
    yield "sampled", f"{work.tokens:,} tokens at most"
    if work.grpo_steps:
        passes = {gpus: made.passes(gpus) for gpus in _counts(config)}
        listed = "; ".join(f"{count:,} on {_on(config, gpus)}" for gpus, count in passes.items())
        yield "waits for", f"at most so many passes for single tokens, one after another: {listed}"
    if work.grpo_steps and config.device != "cpu":
        days = min(passes.values()) * MILLISECONDS / 1000 / 86400
        yield "", f"(were a pass {MILLISECONDS} ms, {min(passes.values()):,} would take {days:.1f} days)"


def _counts(config: TrainConfig) -> tuple[int, ...]:
    return GPUS if config.device != "cpu" else GPUS[:1]


def _on(config: TrainConfig, gpus: int) -> str:
    if config.device == "cpu":
        return "a CPU"
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs {config.parallel}"


@dataclass(frozen=True, slots=True)
class _Column:
    """Of the table of memory: what a GPU is doing, how many there are, and the bytes it needs."""

    doing: str
    gpus: int
    needs: Callable[[Plan], Mapping[str, int]]
    parts: Mapping[str, int]


def _memory(made: Plan) -> Iterator[str]:
    """The table of memory, with a column for what a GPU does, for each number of GPUs."""
    doing = {"sampling": Plan.rollout, "learning": Plan.update}
    uses = [(n, word, partial(doing[word], gpus=n)) for n in _counts(made.config) for word in doing]
    columns = [_Column(word, n, needs, parts) for n, word, needs in uses if (parts := needs(made))]
    sums = [sum(column.parts.values()) for column in columns]
    unit, size = ("GiB", 2**30) if max(sums) >= 2**30 else ("MiB", 2**20)
    yield _row("", [_on(made.config, column.gpus) for column in columns])
    yield _row(f"{unit} at most, while", [column.doing for column in columns])
    for name in dict.fromkeys(name for column in columns for name in column.parts):
        cells = [column.parts.get(name, 0) for column in columns]
        if any(cells):
            yield _row(name, [f"{cell / size:.2f}" if cell else "" for cell in cells])
    yield _row("in all", [f"{total / size:.2f}" for total in sums])
    if made.config.device != "cpu":
        yield from _verdict(made, columns)
    again = ", of one layer at a time" if made.config.gradient_checkpointing else ""
    yield f"Activations: {made.rows()} rows of {made.row:,} tokens, {made.layer:,} bytes a token and layer{again}."
    if made.vision_learns:
        yield "The vision tower learns: its activations come on top."


def _verdict(made: Plan, columns: Sequence[_Column]) -> Iterator[str]:
    room = FILLED * A_GPU
    longest = [made.longest(room, column.needs) for column in columns]
    whole = made.lengths.attempt
    yield _row("fits on 80 GB", ["yes" if n == whole else f"to {n:,}" if n else "no" for n in longest])
    if min(longest) < whole:
        yield "To so many tokens: of the attempts of a pass on average; they may be longer, but seldom are."


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:22}" + "".join(f"{cell:>14}" for cell in cells)


# ---------------------------------------------------------------- a rehearsal


def describe_rehearsal(found: Rehearsal) -> str:
    """A rehearsed step in words."""
    return listed(_rehearsal_words(found))


def _rehearsal_words(found: Rehearsal) -> Pairs:
    yield "rehearsed", f"a real step in {found.seconds:.0f} s, with {found.peak / 1e9:.1f} GB at most, but with:"
    yield "", "; ".join(found.cuts)
    for phase, metrics in found.metrics.items():
        shown = [f"{name} {metrics[name]:.3g}" for name in _SHOWN if name in metrics]
        yield phase.upper(), ", ".join(shown)
    factors = ": of an adapter's two factors one waits for the other" if found.found.adapters else ""
    yield "weights", f"{found.moved} of {found.trained} trained tensors changed{factors}"
    held, planned = (sum(asdict(one).values()) for one in (found.found, found.planned))
    agree = "as planned" if found.found == found.planned else f"but {planned:,} were planned"
    yield "held", f"{held:,} bytes of weights, adapters, gradients and optimiser, {agree}"


_SHOWN: Final = ("loss/sft", "loss/policy", "loss/kl", "gradient/norm", "mask/tokens_trained", "episode/turns")


def listed(pairs: Pairs) -> str:
    """Pairs as text: names in a column, what is said beside them, wrapped."""
    found = []
    for name, said in pairs:
        first, *rest = textwrap.wrap(said, WIDTH - 14)
        found += [f"{name:>12}  {first}", *(f"{'':14}{line}" for line in rest)]
    return "\n".join(found)
