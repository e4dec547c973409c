"""`ikq bench cuda`: products on a GPU in tiles beside those by cuBLAS."""

from __future__ import annotations

import argparse
import json
import sys

from ikq.cli.numbers import whole_number
from ikq.recipes.problem import parse_types
from ikq.speed.cuda_blas import COLUMNS, SHAPES, BlasTable, Measured, measure_blas, offered_types

HELP = "products on a GPU, in tiles and by cuBLAS: from how many tokens on cuBLAS is quicker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.usage = (
        "ikq bench cuda [-dev CUDA0] [--types LIST] [--columns N,...] [--shapes ROWSxN,...] [-o FILE]"
    )
    parser.description = (
        "Multiplies matrices of random codes with many columns (tokens of a prompt) on a GPU: in tiles of "
        "quantized weights, as models do, and by NVIDIA's cuBLAS after decoding the weights to bf16, by "
        "turns. The file of -o says from how many columns on cuBLAS is quicker, for each type. Models use it "
        "where IKQ_CUDA_BLAS names the file, and not otherwise: with it, the last bits of a token's results "
        "depend on how many tokens a step has. It needs cuBLAS: pip install 'ikq[cublas]'."
    )
    add = parser.add_argument
    add("-dev", "--device", default="CUDA0", metavar="NAME", help="the GPU (CUDA0)")
    add("--types", action="append", metavar="LIST", help="types, families or -TYPE; all unless given")
    add("--columns", type=_counts, default=COLUMNS, metavar="N,...", help="numbers of columns (96 to 2048)")
    add("--shapes", type=_shapes, default=SHAPES, metavar="ROWSxN,...", help="rows and elements of matrices")
    add("-r", "--repetitions", type=whole_number, default=5, metavar="N", help="measurements of each (5)")
    add("--json", action="store_true", help="the table as JSON, for programs")
    add("-o", "--output", metavar="FILE", help="write the table, for IKQ_CUDA_BLAS")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(whole_number(part) for part in text.split(","))


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    sizes = [tuple(whole_number(n) for n in part.lower().split("x")) for part in text.split(",")]
    shapes = [(size[0], size[1]) for size in sizes if len(size) == 2 and min(size) > 0]
    if len(shapes) != len(sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: expected rows and elements, such as 4096x4096")
    return tuple(shapes)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    types = offered_types()
    if args.types is not None:
        types = parse_types(args.types, types)

    def told(found: Measured) -> None:
        if sys.stderr.isatty():
            print(f"measured {_name(found)}", file=sys.stderr)

    table = measure_blas(
        types,
        device=args.device,
        columns=args.columns,
        shapes=args.shapes,
        turns=args.repetitions,
        progress=told,
    )
    if args.output is not None:
        table.write(args.output)
    if args.json:
        print(json.dumps(table.to_json(), indent=1))
    else:
        print("\n".join(_lines(table)))
        if args.output is not None:
            print(f"IKQ_CUDA_BLAS={args.output} lets models use it")
    return 0


def _name(found: Measured) -> str:
    return f"{found.type} {found.n_rows}x{found.n}, {found.n_columns} columns"


def _lines(table: BlasTable) -> list[str]:
    lines = [f"{table.device}, compute capability {table.compute_capability}, cuBLAS {table.cublas}"]
    if table.emulated:
        lines.append("this is the tests' stand-in for a GPU: these times mean nothing")
    lines.append(f"{'what':40} {'tiles us':>10} {'cuBLAS us':>10} {'cuBLAS is quicker':>18}")
    lines += [
        f"{_name(m):40} {m.tiles * 1e6:10.1f} {m.cublas * 1e6:10.1f} {m.tiles / m.cublas:17.2f}x"
        for m in table.measured
    ]
    lines += [
        f"{name}: cuBLAS {'never' if n is None else f'from {n} columns on'}"
        for name, n in table.columns_from.items()
    ]
    return lines
