"""Products of one build over those of another, one thread, from cache: how many times faster per type and columns.

    cargo build --release -p ikq-kernels --example matmul_speed     # in both checkouts
    python benches/kernel_speed.py BEFORE/target/release/examples/matmul_speed \\
        AFTER/target/release/examples/matmul_speed --check

BEFORE and AFTER are two builds of the example `matmul_speed`. They take turns, a process per type and round; a figure
is the best of the rounds, in billions of multiply-adds per second. With one column it is that of 64 rows of 2048
elements that stay in the cache. `--check`: exit code 1 if a type gains less than its bound.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

from side_by_side import exit_code, figure, geometric_mean, machine, table_head, table_row

BOUNDS: dict[str, dict[int, float]] = {
    "Q8_0": {1: 2.2, 2: 3.5, 8: 2.0},
    "Q4_K": {1: 2.2, 2: 3.5, 8: 2.0},
    "IQ4_KS": {1: 2.2, 2: 3.5, 8: 2.0},
    "IQ2_XXS": {1: 2.2, 2: 2.5, 8: 1.8},
    "IQ3_K": {1: 1.4, 2: 1.4, 8: 1.4},
    "IQ2_KT": {1: 1.4, 2: 1.4, 8: 1.4},
}
"""What a device form must gain over products from rows as files have them, on AVX-512."""

# `12.34 ( 56.7,  89.0)`: GB/s from memory, multiply-adds from memory and from cache
ONE_COLUMN = re.compile(r"[\d.]+ \(\s*[\d.]+,\s*([\d.]+)\)")
# `n=8 171.2 (73%)`
COLUMNS = re.compile(r"n=(\d+) ([\d.]+)")


def speeds(program: str, type_name: str, isa: str, counts: list[int]) -> dict[int, float]:
    """One run: multiply-adds per second, in billions, of each number of columns."""
    words = [program, isa, f"n={','.join(map(str, counts))}", type_name]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    line = next((line for line in lines if line.split()[:1] == [type_name]), None)
    if line is None:
        raise SystemExit(f"{program} measures no {type_name}")
    found = {int(n): float(v) for n, v in COLUMNS.findall(line)}
    if 1 in counts:
        found[1] = float(ONE_COLUMN.findall(line)[0])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", help="a build of the example `matmul_speed`")
    parser.add_argument("after", help="another one")
    parser.add_argument("--types", nargs="+", default=list(BOUNDS))
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 2, 4, 8, 32, 512])
    parser.add_argument("--isa", default="avx512", choices=["scalar", "avx2", "avx512"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="compare with what each type must gain")
    args = parser.parse_args()
    print(f"{machine()}, one thread, {args.isa}, G multiply-adds/s: before, after, ratio\n")
    print(table_head(["type"], [f"n = {n}" for n in args.columns]), flush=True)
    held, gains = True, {n: [] for n in args.columns}
    for name in args.types:
        best = [dict.fromkeys(args.columns, 0.0) for _ in range(2)]
        for _ in range(args.rounds):
            for figures, program in zip(best, (args.before, args.after), strict=True):
                for n, value in speeds(program, name, args.isa, args.columns).items():
                    figures[n] = max(figures[n], value)
        before, after = best
        cells = []
        for n in args.columns:
            ratio = after[n] / before[n]
            gains[n].append(ratio)
            short = args.check and exit_code([ratio], BOUNDS.get(name, {}).get(n, 0.0))
            held &= not short
            cells.append(
                f"{before[n]:.1f}, {after[n]:.1f}, **{ratio:.2f}**{' below its bound' if short else ''}"
            )
        print(table_row([name, *cells]), flush=True)
    print(table_row(["geometric mean", *(figure(geometric_mean(gains[n]), 2) for n in args.columns)]))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
