#!/usr/bin/env python3
"""Instructions per weight of the matrix-vector kernels, counted in their machine code; no GPU is needed.

    pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm
    python tools/sass_budget.py [--arch 90] [--columns 1] [--json OUT] [--classes] [TYPE ...]

A GPU that reads weights at its full bandwidth can spend so many instructions on each; what needs more is slower than
memory. Counted is the loop over units: its instructions, divided by the weights that a lane decodes in a turn (of which
there are two in a loop that is unrolled). What stands outside the loop is not in it. Types whose rows are computed together
(cuda/together.cuh) are counted in the same way: a turn of the loop is a unit of 32 rows, of which a lane decodes 256 weights
on the tensor cores, and everything that a lane executes in it counts, also what brings activations into shared memory,
addresses, and barriers of the warp. --classes also prints how many
instructions of which kind a lane needs for 32 weights. The table says where a type stands against the budget of an H200 (4.3 TB/s,
132 multiprocessors at 1.98 GHz, four instructions a clock for 32 lanes each), of which it should take 0.7 at most.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests/cuda")]
from nvrtc import TYPES, candidates, compile_, library  # noqa: E402

import ikq  # noqa: E402

H200_PER_BIT = 4 * 32 * 132 * 1.98e9 / (8 * 4.3e12)
SHARE = 0.7
# dot instructions of a lane's 32 weights, where they are more than the eight of the product
DOTS = {"q2_k": 16, "iq4_kss": 10, "iq1_kt": 40, "iq2_kt": 40, "iq3_kt": 40, "iq4_kt": 44}
# integer tensor instructions of a lane's 256 weights, for types of which rows are computed together: 64 with weights, one with sums
# of activations, and eight with scales
TENSOR = {"iq1_kt": 65, "iq2_kt": 65, "iq4_kt": 73}


def found_nvdisasm() -> str | None:
    """In NVIDIA's packages, those that IKQ_NVRTC names among them, or on the path."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    folders = [f for p in packages for f in p.glob("*/bin")] + [f.parents[1] / "bin" for f in candidates()]
    beside = (str(f / "nvdisasm") for f in folders if (f / "nvdisasm").is_file())
    return next(beside, None) or shutil.which("nvdisasm")


def nvdisasm() -> str:
    found = found_nvdisasm()
    if found is None:
        raise SystemExit("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    return found


def machine_code(cubin: bytes, kernel: str) -> list[str]:
    """Labels and instructions of a kernel, in order."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        text = subprocess.run([nvdisasm(), "-c", f.name], capture_output=True, text=True, check=True).stdout
    body = text.split(f".text.{kernel}:", 1)[1].split("\n.section", 1)[0].split("//------", 1)[0]
    out = []
    for line in body.splitlines():
        label = re.match(r"(\.L_x_\d+):", line.strip())
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line)
        if label:
            out.append(label[1] + ":")
        elif instruction:
            out.append(instruction[1])
    return out


def loops(code: list[str]) -> list[list[str]]:
    """Instructions between labels and the branches that go back to them."""
    at: dict[str, int] = {}
    found = []
    for i, line in enumerate(code):
        if line.endswith(":"):
            at[line[:-1]] = i
        target = re.search(r"BRA\S*\s+.*?`\((\.L_x_\d+)\)", line)
        if target and target[1] in at:
            found.append([x for x in code[at[target[1]] : i + 1] if not x.endswith(":")])
    return found


def turns_of(loop: list[str], instruction: str, per_turn: int) -> float:
    return sum(instruction in line for line in loop) / per_turn


def class_of(instruction: str) -> str:
    """The name of an instruction without its predicate and its variants."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def per_weight(name: str, architecture: int, columns: int) -> tuple[float, int, dict[str, float]]:
    """Instructions per weight, registers, and instructions per 32 weights by class, the most frequent first."""
    kernels, cubin = compile_(("mmv.cu", (f"IKQ_TYPE={name}",)), architecture)
    kernel = f"mmv_{name}_c{columns}"
    if columns == 1 and name in TENSOR:
        # sm_75 has tensor instructions of a fourth of the size
        instruction, per_turn, weights = "IMMA", TENSOR[name] * (4 if architecture < 80 else 1), 256
    else:
        instruction, per_turn, weights = "IDP", DOTS.get(name, 8), 32
        per_turn += (per_turn if name == "q2_k" else 8) * (columns - 1)
    found = [
        loop for loop in loops(machine_code(cubin, kernel)) if turns_of(loop, instruction, per_turn) >= 1
    ]
    if not found:
        raise SystemExit(f"no loop with products in {kernel}")
    # loops that have the same products and more are around it, or are parts that compilers place behind the kernel's end
    loop = min(found, key=lambda loop: len(loop) / turns_of(loop, instruction, per_turn))
    turns = turns_of(loop, instruction, per_turn)
    if turns != int(turns):
        raise SystemExit(
            f"{kernel} has {turns * per_turn:g} {instruction}, which are not {per_turn} per turn"
        )
    useful = [x for x in loop if not x.startswith("NOP")]
    classes = {c: 32 * n / (weights * turns) for c, n in Counter(map(class_of, useful)).most_common()}
    return len(useful) / (weights * turns), next(k.registers for k in kernels if k.name == kernel), classes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=TYPES)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--columns", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--classes", action="store_true")
    arguments = parser.parse_args()
    if library() is None:
        raise SystemExit("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    rows = []
    print("| type | bits | instructions per weight | budget | share | registers |\n|---|--:|--:|--:|--:|--:|")
    for name in sorted(arguments.types, key=lambda t: ikq.QuantType(t).bpw):
        bits = ikq.QuantType(name).bpw
        count, registers, classes = per_weight(name, arguments.arch, arguments.columns)
        budget = H200_PER_BIT * bits
        rows.append(
            {"type": name, "bits": bits, "instructions": count, "budget": budget, "registers": registers}
        )
        mark = "" if count <= SHARE * budget else " over"
        print(
            f"| {name} | {bits:.3f} | {count:.2f} | {budget:.2f} | {count / budget:.2f}{mark} | {registers} |",
            flush=True,
        )
        if arguments.classes:
            print("  " + ", ".join(f"{c} {n:g}" for c, n in classes.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"arch": arguments.arch, "columns": arguments.columns, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
