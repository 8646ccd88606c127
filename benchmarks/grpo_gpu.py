"""One GRPO step on a GPU: a model of Qwen2.5-VL-3B's shape in bfloat16, four images of 448 x 448, G = 8, 256 tokens.

pip install -e '.[train]' 'trl==1.16.*' jmespath
python benchmarks/grpo_gpu.py [--attention flex_attention] [--repeat 3]
python benchmarks/grpo_gpu.py --toy          # at toy size on a CPU: whether it runs

The sides run one after the other, since each fills the device. Two ceilings are measured first, by a matrix product and
by a copy; how near each side comes to them counts the products with the layers' parameters and the reads that it
itself does, no attention, embedding or head: a lower bound.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from grpo_vs_trl import PHASES, SIDES, measure, middle, peak
from grpo_work import SHAPES, Case, Record
from runs import markdown

GPU: Final = Case(4, 448, prompts=1, tokens=256, shape="3b", device="cuda", dtype="bfloat16")
TOY: Final = Case(2, 112, prompts=1, group=4, tokens=16)
PATCH: Final = 14
MERGED: Final = 28
"""Sides in pixels of what the vision tower takes as one token, and of what the language model does."""


def update_flops(case: Case, side: str) -> float:
    """Of one forward and backward pass: 6 per parameter and token."""
    copies = 1 if side == "ours" else case.group
    seen = case.images * (case.size // MERGED) ** 2
    text = copies * seen + case.group * case.tokens
    patches = copies * case.images * (case.size // PATCH) ** 2
    shape = SHAPES[case.shape]
    return 6.0 * case.prompts * (shape.text_parameters() * text + shape.vision_parameters() * patches)


def decode_bytes(case: Case) -> float:
    """Read while the tokens of a turn are drawn: all layers once a token, and the keys and values of every row."""
    shape, size = SHAPES[case.shape], getattr(torch, case.dtype).itemsize
    seen = case.images * (case.size // MERGED) ** 2
    kept = 2 * shape.layers * shape.width * shape.key_values // shape.heads
    return float(case.tokens * size * (shape.text_parameters() + case.rows * kept * (seen + case.tokens / 2)))


def per_second(play: Callable[[], object], amount: float, device: str) -> float:
    """Best of five rates."""
    rates = []
    for _ in range(6):
        began = time.perf_counter()
        play()
        if device != "cpu":
            torch.cuda.synchronize()
        rates.append(amount / (time.perf_counter() - began))
    return max(rates[1:])


def ceilings(case: Case) -> tuple[float, float]:
    """Floating-point operations and bytes a second that the device reaches."""
    side = 8192 if case.device != "cpu" else 512
    square = torch.randn(side, side, device=case.device, dtype=getattr(torch, case.dtype))
    there = torch.empty_like(square)
    arithmetic = per_second(lambda: square @ square, 2.0 * side**3, case.device)
    return arithmetic, per_second(lambda: there.copy_(square), 2.0 * square.nbytes, case.device)


def row(case: Case, side: str, records: list[Record], arithmetic: float, bandwidth: float) -> list[object]:
    """Of the table."""
    seconds = {phase: middle(records, phase, "wall") for phase in PHASES}
    rates = [f"{records[0]['tokens'] / value:,.0f}" for value in seconds.values()]
    used = (
        update_flops(case, side) / seconds["update"] / arithmetic,
        decode_bytes(case) / seconds["generation"] / bandwidth,
    )
    return [side, *rates, seconds["step"], round(peak(records)), *(f"{share:.1%}" for share in used)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a small model on the CPU")
    parser.add_argument("--attention", default="sdpa", help="of ours: sdpa or flex_attention")
    parser.add_argument("--repeat", type=int, default=3, help="steps of each side that count")
    options = parser.parse_args()
    case = replace(TOY if options.toy else GPU, attention=options.attention)
    if case.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU: --toy runs on a CPU")
    if options.toy and case.attention != "sdpa":
        parser.error(f"{case.attention} has no backward pass on a CPU")
    arithmetic, bandwidth = ceilings(case)
    if case.device != "cpu":
        torch.cuda.empty_cache()
    found = {side: measure(case, options.repeat, (side,))[side] for side in SIDES}
    name = torch.cuda.get_device_name() if case.device != "cpu" else "CPU, toy size"
    print(f"{name}, {datetime.date.today()}, ours with {case.attention}")
    print(f"ceilings: {arithmetic / 1e12:.2f} TFLOP/s, {bandwidth / 1e9:.0f} GB/s\n")
    phases = [f"{phase}, tokens/s" for phase in PHASES]
    header = ["side", *phases, "step, s", "peak MiB", "arithmetic used in update", "bandwidth used in generation"]
    print(markdown(header, [row(case, side, records, arithmetic, bandwidth) for side, records in found.items()]))
    speed = {phase: middle(found["trl"], phase, "wall") / middle(found["ours"], phase, "wall") for phase in PHASES}
    memory = peak(found["ours"]) / peak(found["trl"])
    print("\n" + json.dumps({name: round(value, 3) for name, value in (speed | {"memory": memory}).items()}))


if __name__ == "__main__":
    main()
