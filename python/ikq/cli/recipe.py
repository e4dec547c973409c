"""`ikq recipe MODEL.gguf --imatrix F --size 240G -o recipe.txt`: the best mix of types for a budget."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ikq
from ikq.cli import cluster_options
from ikq.cli.notes import note_on_stderr
from ikq.cli.numbers import at_least, positive_number, whole_number
from ikq.errors import UsageError
from ikq.files.outputs import check_outputs
from ikq.files.text_files import read_literally
from ikq.files.whole_file import whole_file
from ikq.recipes.budget import Use, parse_bytes
from ikq.recipes.covariances import InputCovariances, write_diagonal
from ikq.recipes.explain import explanation_lines
from ikq.recipes.pareto import pareto_page
from ikq.recipes.probes import N_WINDOWS, Probes, check_runs, probe
from ikq.recipes.problem import DEFAULT_TYPES, Problem, parse_types
from ikq.recipes.recipe import Budget, Costs, Recipe, check_size, measure_costs, open_problem, solve
from ikq.recipes.speed import Speeds, kept_speeds, measure_speeds
from ikq.recipes.tables import read_sensitivities, write_sensitivities
from ikq.recipes.text import recipe_text, summary_lines
from ikq.speed.type_speeds import TypeSpeed

NAME = "recipe"
HELP = "choose a type for every tensor: the least divergence for a size, a memory, a speed"
EXAMPLES = (
    "ikq recipe model-bf16.gguf --imatrix model.imatrix.gguf --size 240G -o recipe.txt",
    "ikq recipe model-bf16.gguf --imatrix model.imatrix.gguf --ram 231G --vram 11G -o recipe.txt",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = (
        "ikq recipe MODEL.gguf (--imatrix | --covariance) FILE (--size N | --bpw N | --ram N [--vram N])\n"
        "                  [-o FILE]"
    )
    parser.description = (
        "Encodes a sample of every tensor as every type, predicts from the activation statistics what that "
        "does to the model's output, and chooses the mix with the least predicted divergence. The result is "
        "a file for `ikq quantize --recipe`."
    )
    parser.epilog = (
        "Sizes: 240G, 3.5G (powers of 1000) or 11GiB. Types: names, families (legacy, k, i, iqk, trellis), "
        "llama.cpp for those that llama.cpp loads; --types=-NAME leaves one out. Exit codes: 0 done, 1 error,"
        " 2 refused or wrong usage."
    )
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--imatrix", metavar="FILE", help="activation statistics, .dat or GGUF")
    parser.add_argument(
        "--covariance",
        metavar="FILE",
        help="covariances (`ikq imatrix --covariance`): errors are measured under them; without --imatrix "
        "their diagonal is written beside the recipe as one",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the recipe; standard output unless given")
    _add_budget(parser)
    _add_types(parser)
    _add_sensitivity(parser)
    _add_shown(parser)
    cluster_options.add_options(parser)
    parser.add_argument(
        "-t", "--threads", type=at_least(1), metavar="N", help="threads; one per CPU unless given"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    """How large and how slow the result may be."""
    budget = parser.add_argument_group("budget (one of size, bpw, ram)")
    budget.add_argument("--size", metavar="N", type=_bytes, help="most bytes of the file")
    budget.add_argument(
        "--bpw", metavar="N", type=positive_number, help="most bits per weight, over all tensors"
    )
    budget.add_argument(
        "--ram", metavar="N", type=_bytes, help="most bytes in main memory, cache and buffers included"
    )
    budget.add_argument("--vram", metavar="N", type=_bytes, help="with --ram: bytes on a second device")
    budget.add_argument(
        "--min-tg", type=positive_number, metavar="N", help="least tokens per second generated"
    )
    budget.add_argument(
        "--min-pp", type=positive_number, metavar="N", help="least tokens per second of prompts"
    )
    budget.add_argument(
        "--vram-bandwidth", metavar="N", type=_bytes, help="bytes per second that the second device reads"
    )
    budget.add_argument(
        "-c", "--ctx-size", type=at_least(1), metavar="N", help="positions of the cache (as trained)"
    )
    budget.add_argument("-ctk", "--cache-type-k", default="f16", metavar="TYPE", help="cached keys (f16)")
    budget.add_argument("-ctv", "--cache-type-v", default="f16", metavar="TYPE", help="cached values (f16)")
    budget.add_argument(
        "-ub", "--ubatch-size", type=at_least(1), default=512, metavar="N", help="most tokens at once"
    )


def _add_types(parser: argparse.ArgumentParser) -> None:
    """What there is to choose from."""
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


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    """Where the effect of a type on the output comes from."""
    sensitivity = parser.add_argument_group("sensitivities")
    sensitivity.add_argument(
        "--sensitivity", metavar="FILE.csv", help="measured values instead: tensor, type, divergence"
    )
    sensitivity.add_argument(
        "--write-sensitivity", metavar="FILE.csv", help="write what was predicted in that form"
    )
    sensitivity.add_argument(
        "--probe",
        type=whole_number,
        metavar="N",
        help="measure them: N mixes of about the wanted size are run on -f; 40 to 100 are good",
    )
    sensitivity.add_argument("-f", "--file", metavar="TEXT", help="with --probe: a text of the model's use")
    sensitivity.add_argument(
        "--chunks",
        type=whole_number,
        default=N_WINDOWS,
        metavar="N",
        help=f"with --probe: windows of 512 ({N_WINDOWS})",
    )


def _add_shown(parser: argparse.ArgumentParser) -> None:
    """What is shown beside the recipe."""
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--explain", action="store_true", help="what a bit more or less of each tensor would do"
    )
    shown.add_argument(
        "--pareto", metavar="FILE.html", help="a page: size against divergence, with known mixes"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    budget = Budget(
        size=args.size,
        bpw=args.bpw,
        ram=args.ram,
        vram=args.vram,
        min_tg=args.min_tg,
        min_pp=args.min_pp,
        vram_bandwidth=args.vram_bandwidth,
    )
    budget.check()
    # what would be missed after minutes of work
    cluster_options.check(args)
    if args.cluster is not None and args.probe is None:
        raise ikq.RefusedError("--cluster is for --probe: all else takes one machine minutes")
    text = _text(args) if args.probe is not None else ""
    check_outputs(
        [
            ("-o", args.output),
            ("--pareto", args.pareto),
            ("--write-sensitivity", args.write_sensitivity),
        ],
        [
            ("the model", args.model),
            ("--imatrix", args.imatrix),
            ("--covariance", args.covariance),
            ("--sensitivity", args.sensitivity),
            ("-f", args.file),
        ],
    )
    covariances = None if args.covariance is None else ikq.Covariances(args.covariance)
    problem = open_problem(
        args.model,
        args.imatrix if covariances is None else _statistics(args, covariances),
        types=_types(args),
        fix=args.fix,
        allow_requantize=args.allow_requantize,
    )
    check_size(problem, budget)
    full = None if covariances is None else InputCovariances(covariances)
    costs = _with_bar(args, problem, full)
    use = Use(args.ctx_size, args.cache_type_k.lower(), args.cache_type_v.lower(), args.ubatch_size)
    speeds = _speeds(args, costs)
    recipe = solve(costs, budget, use=use, speeds=speeds)
    if args.probe is not None:
        costs = _probed(args, recipe, text).costs
        recipe = solve(costs, budget, use=use, speeds=speeds)
    if args.write_sensitivity:
        write_sensitivities(args.write_sensitivity, _table(costs))
    if args.pareto:
        with whole_file(args.pareto) as f:
            f.write(pareto_page(costs, recipe).encode())
    _show(args, recipe)
    return 0


def _types(args: argparse.Namespace) -> tuple[ikq.QuantType, ...]:
    """What may be chosen."""
    if not args.types:
        return DEFAULT_TYPES
    try:
        return parse_types(args.types)
    except UsageError:
        raise
    except ikq.RefusedError as e:
        everything = open_problem(args.model, args.imatrix, allow_requantize=args.allow_requantize)
        raise ikq.RefusedError(f"{e}; with all of them {everything.smallest}") from None


def _statistics(args: argparse.Namespace, covariances: ikq.Covariances) -> str:
    """The imatrix that goes with covariances: the one that was given, or their diagonal."""
    if args.imatrix is not None:
        return str(args.imatrix)
    if args.output is None:
        raise ikq.RefusedError(
            "--covariance without --imatrix needs -o FILE: their diagonal is written beside FILE, as the "
            "imatrix to quantize with"
        )
    path = Path(args.output).with_suffix(".imatrix.gguf")
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".ikq-recipe-") as folder:
        new = Path(folder) / path.name
        write_diagonal(covariances, new)
        if path.exists() and not filecmp.cmp(new, path, shallow=False):
            raise ikq.RefusedError(
                f"{path} exists and is not the diagonal of {args.covariance}, which would be written there; "
                "give it as --imatrix, or another -o"
            )
        new.replace(path)
    return str(path)


def _speeds(args: argparse.Namespace, costs: Costs) -> Speeds | None:
    """Speeds of all types in question: measured where a speed was asked for, else only if they are known."""
    types = {k for t in costs.problem.tensors for k in t.types if isinstance(k, ikq.QuantType)}
    if args.min_tg is None and args.min_pp is None:
        return kept_speeds(types, n_threads=args.threads)

    def told(found: TypeSpeed) -> None:
        print(f"measured the speed of {found.type.name}", file=sys.stderr)

    return measure_speeds(sorted(types), n_threads=args.threads, progress=told)


def _text(args: argparse.Namespace) -> str:
    """The text of `--probe`, if that makes sense."""
    if not args.file:
        raise ikq.RefusedError("--probe needs a text to measure on: -f TEXT")
    check_runs(args.probe)
    if args.chunks < 1:
        raise ikq.RefusedError(f"--chunks {args.chunks}: expected 1 or more")
    return read_literally(args.file, note_on_stderr)


def _probed(args: argparse.Namespace, recipe: Recipe, text: str) -> Probes:
    """Measures sensitivities about a recipe; progress and what was found go to standard error."""
    out = Path(args.output) if args.output else Path.cwd() / "recipe.txt"

    def told(run: int, predicted: float, measured: float) -> None:
        print(f"[{run}/{args.probe}] predicted {predicted:.6f}, measured {measured:.6f}", file=sys.stderr)

    how: dict[str, Any] = {
        "n_windows": args.chunks,
        "n_threads": args.threads,
        "folder": out.absolute().parent,
        "progress": told,
    }
    if args.cluster is None:
        found = probe(recipe, text, args.probe, **how)
    else:
        from ikq.cluster import probe_on_cluster

        where = {"path_map": args.path_map, "on_note": note_on_stderr}
        found = probe_on_cluster(recipe, text, args.probe, args.cluster, **how, **where)
    for line in found.lines():
        print(line, file=sys.stderr)
    return found


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


def _with_bar(args: argparse.Namespace, problem: Problem, covariances: InputCovariances | None) -> Costs:
    """Samples the model, with a progress bar on a terminal."""
    table = None if args.sensitivity is None else read_sensitivities(args.sensitivity)

    def measured(progress: Callable[[object], None] | None) -> Costs:
        return measure_costs(
            problem,
            n_threads=args.threads,
            sensitivities=table,
            covariances=covariances,
            progress=progress,
        )

    if not sys.stderr.isatty():
        return measured(None)
    from tqdm import tqdm

    with tqdm(desc=Path(args.model).name, unit=" tensors", total=len(problem.tensors)) as bar:
        return measured(lambda _: bar.update())


def _table(costs: Costs) -> dict[tuple[str, str], float]:
    return {
        (t.name, to.name): float(costs.divergence[i, k])
        for i, t in enumerate(costs.problem.tensors)
        for k, to in enumerate(t.types)
        if isinstance(to, ikq.QuantType)
    }


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
