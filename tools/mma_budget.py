#!/usr/bin/env python3
"""Issue slots per tensor core instruction of the matrix products, counted in their machine code; no GPU is needed.

    pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm
    python tools/mma_budget.py [--arch 80] [--tile 64] [--json OUT] [TYPE ...]

A scheduler issues one instruction per clock, and its tensor core takes several clocks for an int8 `mma` of 16 x 8 x 32
products. So the share of the tensor core's rate that a loop can reach is those clocks, divided by the instructions that
are issued for each such `mma`, if nothing waits. Counted is the loop over steps of 128 elements; the part that multiplies
32 of them runs four times in it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "tests/cuda"),
    str(Path(__file__).resolve().parent),
]
from nvrtc import TYPES, Specialisation, compile_, library  # noqa: E402
from sass_budget import machine_code  # noqa: E402
from sass_flow import blocks_of, loops_of  # noqa: E402

import ikq  # noqa: E402

CLOCKS = {80: 8, 86: 16, 89: 16, 90: 4}
"""Clocks of an int8 m16n8k32 per scheduler at the data sheet's rate. On sm_90 that is the rate of wgmma; what `mma` reaches
of it is to be measured."""
PARTS = 4  # of a step


def is_mma(instruction: str) -> bool:
    return "IMMA" in instruction


def counted(loop: list[str]) -> int:
    return sum(not x.startswith("NOP") for x in loop)


def per_mma(name: str, architecture: int, tile: int) -> tuple[float, float, int] | None:
    """Instructions per m16n8k32: all of a step's, those of the part that multiplies; and registers. None where a type has no
    such tile."""
    return per_mma_of(("mmq.cu", (f"IKQ_TYPE={name}", f"IKQ_TILE={tile}")), architecture, tile)


def per_mma_of(special: Specialisation, architecture: int, tile: int) -> tuple[float, float, int] | None:
    """The same of a kernel with the loop over steps of `matrix.cuh`."""
    kernels, cubin = compile_(special, architecture)
    (kernel,) = kernels
    blocks = blocks_of(machine_code(cubin, kernel.name))
    found = [[x for i in sorted(loop.body) for x in blocks[i].issued] for loop in loops_of(blocks)]
    with_mma = [loop for loop in sorted(found, key=len) if any(map(is_mma, loop))]
    if len(with_mma) < 2:
        return None
    inner, outer = with_mma[0], with_mma[-1]
    # smaller instructions count as the part of m16n8k32 that they are
    n_mma = sum(
        0.5 if re.search(r"IMMA\.16816", x) else 0.25 if "IMMA.8816" in x else 1.0 for x in inner if is_mma(x)
    )
    # what a warp's 32 rows and its fourth of the columns take in a step
    of_step = 2 * (tile // 32) * PARTS
    # the multiplying part may be written out for more than 32 elements, and before the loop as well
    turns, copies = of_step / n_mma, sum(map(is_mma, outer)) // sum(map(is_mma, inner))
    step = counted(outer) + (turns - copies) * counted(inner)
    return step / of_step, counted(inner) / n_mma, kernel.registers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=TYPES, type=str.lower)
    parser.add_argument("--arch", type=int, default=80, choices=sorted(CLOCKS))
    parser.add_argument("--tile", type=int, default=64, choices=(32, 64, 128))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if library() is None:
        raise SystemExit("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    rows = []
    print(
        "| type | bits | instructions per mma | share | of them multiplying | share | registers |\n"
        "|---|--:|--:|--:|--:|--:|--:|"
    )
    for name in sorted(arguments.types, key=lambda t: ikq.QuantType(t).bpw):
        bits = ikq.QuantType(name).bpw
        found = per_mma(name, arguments.arch, arguments.tile)
        if found is None:
            print(f"| {name} | {bits:.3f} | - | - | - | - | - |", flush=True)
            continue
        count, inner, registers = found
        share, multiplying = (min(1.0, CLOCKS[arguments.arch] / n) for n in (count, inner))
        rows.append(
            {
                "type": name,
                "instructions": count,
                "multiplying": inner,
                "share": share,
                "share_multiplying": multiplying,
            }
        )
        cells = [f"{count:.1f}", f"{share:.2f}", f"{inner:.1f}", f"{multiplying:.2f}", str(registers)]
        print(f"| {name} | {bits:.3f} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        document = {"arch": arguments.arch, "tile": arguments.tile, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
