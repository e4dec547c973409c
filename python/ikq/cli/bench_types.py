"""`ikq bench types`: speed of products by type and instruction set."""

from __future__ import annotations

import argparse
import json
import sys

import ikq
from ikq.cli.numbers import whole_number
from ikq.recipes.problem import parse_types
from ikq.speed.type_speeds import COUNTS, TypeSpeed, kept_file, machine_name, measure_type_speeds

HELP = "speed of products with every tensor type, with the roofline beside it; kept for `ikq recipe`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.usage = "ikq bench types [--types LIST] [--isa NAME,...] [-t N] [--json]"
    parser.description = (
        "Multiplies matrices of random codes with 1 to 512 columns (tokens) as models do, from memory and "
        "not from caches. n = 1 is what generation takes, 32 what experts take in prompts, 512 what all "
        "others do. The roofline is what this machine would take at least, reading memory and multiplying "
        "codes side by side. Results are kept, for `ikq recipe` to predict speeds with so many threads. "
        "Leave the machine alone meanwhile."
    )
    add = parser.add_argument
    add("--types", action="append", metavar="LIST", help="types, families or -TYPE; all unless given")
    add(
        "--isa",
        metavar="NAME,...",
        help="instruction sets; all that this machine has but scalar unless given",
    )
    add("-t", "--threads", type=whole_number, default=1, metavar="N", help="threads that work at once (1)")
    add("--json", action="store_true", help="a list of {type, isa, n, gmacs, gbs}, for programs")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if args.threads < 1:
        raise ikq.RefusedError(f"-t {args.threads}: expected 1 or more")
    types = parse_types(args.types, all_types()) if args.types is not None else all_types()
    isas = ikq.available_isas() if args.isa is None else args.isa.split(",")
    if args.isa is None and len(isas) > 1:
        isas = [name for name in isas if name != "scalar"]

    def told(found: TypeSpeed) -> None:
        if sys.stderr.isatty():
            print(f"measured {found.type.name} with {found.isa}", file=sys.stderr)

    speeds = [
        found
        for isa in isas
        for found in measure_type_speeds(
            types, isa=isa, n_threads=args.threads, again=True, progress=told
        ).values()
    ]
    if args.json:
        print(json.dumps([row for found in speeds for row in _rows(found)], indent=1))
    else:
        _print_table(speeds, args.threads)
    return 0


def all_types() -> tuple[ikq.QuantType, ...]:
    """Types of weights in files, each once: interleaved forms are as fast as their plain twins."""
    return tuple(
        t
        for t in ikq.QuantType
        if t.is_storable and t.base is None and t.family not in ("integer", "activation", "interleaved")
    )


def _rows(found: TypeSpeed) -> list[dict[str, object]]:
    return [
        {
            "type": found.type.name,
            "isa": found.isa,
            "n": n,
            "gmacs": _digits(found.gmacs(n)),
            "gbs": _digits(found.gbs(n)),
        }
        for n in COUNTS
    ]


def _digits(x: float) -> float:
    """With five digits, however small."""
    return float(f"{x:.5g}")


def _print_table(speeds: list[TypeSpeed], n_threads: int) -> None:
    print(f"{machine_name()}, {n_threads} thread{'s' if n_threads > 1 else ''}")
    print("G multiply-adds/s (percent of the roofline); GB/s of weights for n = 1\n")
    heads = ["type", "isa", "GB/s", *(f"n = {n}" for n in COUNTS)]
    rows = [
        [s.type.name, s.isa, f"{s.gbs(1):.2f}"]
        + [f"{s.gmacs(n):.1f} ({100 * s.roofline(n):.0f})" for n in COUNTS]
        for s in speeds
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    n_left = 2
    for row in [heads, ["-" * w for w in widths], *rows]:
        cells = [
            c.ljust(w) if i < n_left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")
    reads = [s.read for s in speeds]
    peaks = {s.isa: s.peak for s in speeds if s.peak is not None}
    print(f"\nroofline: memory read at {min(reads) / 1e9:.1f} to {max(reads) / 1e9:.1f} GB/s", end="")
    print("".join(f"; {peak / 1e9:.0f} G multiply-adds/s with {isa}" for isa, peak in peaks.items()))
    print(f"kept in {kept_file(None)}")
