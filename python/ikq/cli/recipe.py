"""`ikq recipe MODEL.gguf --imatrix F --size 240G -o recipe.txt`: the best mix of types for a budget."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import ikq
from ikq.recipes.budget import Use, parse_bytes
from ikq.recipes.explain import explanation_lines
from ikq.recipes.files import read_sensitivities, write_sensitivities
from ikq.recipes.pareto import pareto_page
from ikq.recipes.problem import DEFAULT_TYPES, parse_types
from ikq.recipes.recipe import Budget, Costs, Recipe, measure_costs, solve
from ikq.recipes.text import recipe_text, summary_lines
from ikq.whole_file import whole_file

NAME = "recipe"
HELP = "choose a type for every tensor: the least divergence for a size, a memory, a speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "ikq recipe MODEL.gguf --imatrix FILE (--size N | --bpw N | --ram N [--vram N]) [-o FILE]"
    parser.description = (
        "Encodes a sample of every tensor as every type, predicts from the activation statistics what that does to "
        "the model's output, and chooses the mix with the least predicted divergence. The result is a file for "
        "`ikq quantize --recipe`."
    )
    parser.epilog = (
        "Sizes: 240G, 3.5G (powers of 1000) or 11GiB. Types: names, families (legacy, k, i, iqk, trellis), "
        "llama.cpp for those that llama.cpp loads; -NAME leaves one out. Exit codes: 0 done, 1 error, 2 refused."
    )
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--imatrix", metavar="FILE", help="activation statistics, .dat or GGUF")
    parser.add_argument("-o", "--output", metavar="FILE", help="the recipe; standard output unless given")
    budget = parser.add_argument_group("budget (one of size, bpw, ram)")
    budget.add_argument("--size", metavar="N", type=_bytes, help="most bytes of the file")
    budget.add_argument("--bpw", metavar="N", type=_positive, help="most bits per weight, over all tensors")
    budget.add_argument(
        "--ram", metavar="N", type=_bytes, help="most bytes in main memory, cache and buffers included"
    )
    budget.add_argument("--vram", metavar="N", type=_bytes, help="with --ram: bytes on a second device")
    budget.add_argument("-c", "--ctx-size", type=int, metavar="N", help="positions of the cache (as trained)")
    budget.add_argument("-ctk", "--cache-type-k", default="f16", metavar="TYPE", help="cached keys (f16)")
    budget.add_argument("-ctv", "--cache-type-v", default="f16", metavar="TYPE", help="cached values (f16)")
    budget.add_argument(
        "-ub", "--ubatch-size", type=int, default=512, metavar="N", help="most tokens at once"
    )
    types = parser.add_argument_group("types")
    types.add_argument(
        "--types",
        action="append",
        default=[],
        metavar="LIST",
        help="what may be chosen; all weights' types unless given",
    )
    types.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="RE=TYPE",
        help="tensors with such names get this type; may be repeated, the first that fits holds",
    )
    types.add_argument(
        "--allow-requantize", action="store_true", help="choose for tensors that are quantized already"
    )
    sensitivity = parser.add_argument_group("sensitivities")
    sensitivity.add_argument(
        "--sensitivity", metavar="FILE.csv", help="measured values instead: tensor, type, divergence"
    )
    sensitivity.add_argument(
        "--write-sensitivity", metavar="FILE.csv", help="write what was predicted in that form"
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--explain", action="store_true", help="what a bit more or less of each tensor would do"
    )
    shown.add_argument(
        "--pareto", metavar="FILE.html", help="a page: size against divergence, with known mixes"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads; one per CPU unless given")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    budget = Budget(size=args.size, bpw=args.bpw, ram=args.ram, vram=args.vram)
    if all(getattr(budget, name) is None for name in ("size", "bpw", "ram")):
        raise ikq.RefusedError(
            "say how large the result may be: --size 240G, --bpw 3.4, or --ram 231G --vram 11G"
        )
    costs = _with_bar(args)
    use = Use(args.ctx_size, args.cache_type_k.lower(), args.cache_type_v.lower(), args.ubatch_size)
    recipe = solve(costs, budget, use=use)
    if args.write_sensitivity:
        write_sensitivities(args.write_sensitivity, _table(costs))
    if args.pareto:
        with whole_file(args.pareto) as f:
            f.write(pareto_page(costs, recipe).encode())
    _show(args, recipe)
    return 0


def _show(args: argparse.Namespace, recipe: Recipe) -> None:
    text = recipe_text(recipe, args.output or "recipe.txt")
    if args.output:
        with whole_file(args.output) as f:
            f.write(text.encode())
        for line in summary_lines(recipe):
            print(line)
    else:
        print(text, end="")
    if args.explain:
        # a recipe on standard output stays one
        out = sys.stdout if args.output else sys.stderr
        for line in explanation_lines(recipe):
            print(line, file=out)


def _with_bar(args: argparse.Namespace) -> Costs:
    """Samples the model, with a progress bar on a terminal."""
    table = None if args.sensitivity is None else read_sensitivities(args.sensitivity)
    types = parse_types(args.types) if args.types else DEFAULT_TYPES

    def measured(progress: Callable[[object], None] | None) -> Costs:
        return measure_costs(
            args.model,
            args.imatrix,
            types=types,
            fix=args.fix,
            allow_requantize=args.allow_requantize,
            n_threads=args.threads,
            sensitivities=table,
            progress=progress,
        )

    if not sys.stderr.isatty():
        return measured(None)
    from tqdm import tqdm

    with tqdm(desc=Path(args.model).name, unit=" tensors") as bar:
        return measured(lambda _: bar.update())


def _table(costs: Costs) -> dict[tuple[str, str], float]:
    return {
        (t.name, type.name): float(costs.divergence[i, k])
        for i, t in enumerate(costs.problem.tensors)
        for k, type in enumerate(t.types)
        if isinstance(type, ikq.QuantType)
    }


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
        if not 0 < value < 1000:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected bits per weight, such as 3.4") from None
    return value
