"""`ikq quantize [options] IN [OUT.gguf] TYPE [NTHREADS]`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import ikq
from ikq.cli import quantize_cluster, quantize_report, quantize_sequential
from ikq.cli.numbers import at_least, size
from ikq.cli.output_options import add_output_options
from ikq.cli.quantize_lines import (
    coverage_lines,
    feedback_lines,
    print_prediction,
    print_summary,
    tensor_lines,
    type_label,
)
from ikq.quantizing.options import EFFORTS, QuantizeOptions
from ikq.quantizing.pipeline import PlannedTensor, QuantizePlan, QuantizeResult
from ikq.recipes.files import recipe_type

NAME = "quantize"
HELP = "quantize a GGUF model or a checkpoint folder"
EXAMPLES = (
    "ikq quantize --imatrix model.imatrix.gguf model-bf16.gguf model-iq4_ks.gguf IQ4_KS",
    "ikq quantize --dry-run --custom-q 'ffn_down_exps=iq3_k' model-bf16.gguf IQ2_KL",
)

# Options that give some tensors a type, with the tensors.
TYPE_OPTIONS = {
    "--attn-q-type": "attn_q matrices",
    "--attn-k-type": "attn_k matrices",
    "--attn-v-type": "attn_v matrices",
    "--attn-qkv-type": "fused attn_qkv matrices",
    "--attn-output-type": "attn_output matrices",
    "--ffn-gate-type": "ffn_gate matrices (experts too)",
    "--ffn-up-type": "ffn_up matrices (experts too)",
    "--ffn-down-type": "ffn_down matrices (experts too)",
    "--token-embedding-type": "token_embd.weight",
    "--per-layer-token-embedding-type": "per_layer_token_embd.weight",
    "--output-tensor-type": "output.weight",
    "--ffn-gate-inp-type": "the MoE router ffn_gate_inp.weight, else kept",
    "--extra-output-tensor": "a second output matrix, output_extra.weight, if that is smaller",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-quantize know."""
    parser.description = (
        "Writes IN, a GGUF file or a checkpoint folder, with its matrices as TYPE: a type, or a mix such as "
        "Q4_K_M. OUT.gguf is ggml-model-TYPE.gguf beside IN unless given; NTHREADS is one per CPU. An "
        "interrupted run goes on with the same command."
    )
    parser.usage = "ikq quantize [options] IN [OUT.gguf] TYPE [NTHREADS]"
    parser.epilog = (
        "TYPE (a type or a mix): " + ", ".join(f.name for f in ikq.ftypes()) + ". "
        "Options that take a type: " + ", ".join(_writable_types()) + ". "
        "IN is a GGUF file, any shard of a split set, or a checkpoint folder of transformers. "
        "OUT defaults to ggml-model-TYPE.gguf beside IN (in it, if it is a folder); NTHREADS to one per CPU. "
        "Exit codes: 0 done, 1 error, 2 refused or wrong usage, 130 interrupted."
    )
    parser.add_argument(
        "words", nargs="+", metavar="IN [OUT.gguf] TYPE [NTHREADS]", help="as in the usage line"
    )
    _add_types(parser)
    _add_statistics(parser)
    _add_output(parser)
    _add_resuming(parser)
    _add_repacking(parser)
    quantize_sequential.add_options(parser)
    quantize_cluster.add_options(parser)
    quantize_report.add_option(parser)


def _add_types(parser: argparse.ArgumentParser) -> None:
    """Types, by tensor, and how they are encoded."""
    types = parser.add_argument_group("types")
    types.add_argument(
        "--pure", action="store_true", help="TYPE for every matrix that no option names, without its rules"
    )
    for option, what in TYPE_OPTIONS.items():
        types.add_argument(option, metavar="TYPE", help=f"type of {what}")
    types.add_argument(
        "--custom-q",
        metavar="RE=TYPE,...",
        action="append",
        default=[],
        help="types by regular expression on the name, first match wins; may be repeated",
    )
    types.add_argument(
        "--tensor-type",
        metavar="RE=TYPE",
        action="append",
        default=[],
        help="one such rule, after those of --custom-q; the expression may contain commas; may be repeated",
    )
    types.add_argument(
        "--tensor-type-file", metavar="FILE", help="a text file of such rules, one or a list of them per line"
    )
    types.add_argument(
        "--recipe",
        metavar="FILE",
        help="a recipe (`ikq recipe` makes one): such rules, and TYPE, which may be left out",
    )
    types.add_argument("--leave-output-tensor", action="store_true", help="output.weight stays as it is")
    types.add_argument(
        "--symmetric-q40", action="store_true", help="Q4_0 with the levels -7 to 7 instead of -8 to 7"
    )
    types.add_argument(
        "--biased",
        action="store_true",
        help="scales as fitted: the least squared error, but smaller matrices, and mixes that diverge more",
    )
    types.add_argument(
        "--clamp",
        action="store_true",
        help="cut off weights that are larger than their type can keep (65504 in F16); else they are refused",
    )
    types.add_argument("--unbiased", action="store_true", help="the opposite, which is the default")
    types.add_argument(
        "--allow-requantize", action="store_true", help="accept tensors that are quantized already"
    )


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    """What is known of the activations."""
    statistics = parser.add_argument_group("statistics")
    statistics.add_argument("--imatrix", metavar="FILE", help="importance matrix, .dat or GGUF")
    statistics.add_argument(
        "--error-feedback",
        metavar="FILE",
        help="covariances (ikq imatrix --covariance): columns make good the errors of earlier ones",
    )
    statistics.add_argument(
        "--effort",
        choices=EFFORTS,
        default="normal",
        help="max, with --error-feedback or --sequential: codes and scales are chosen again when a row is "
        "done, in up to four rounds; and layers of --sequential are made in up to eight, not four",
    )
    for option, what in [("--include-weights", "only"), ("--exclude-weights", "no")]:
        statistics.add_argument(
            option,
            metavar="NAME",
            action="append",
            default=[],
            help=f"use {what} imatrix entries with NAME in their names; may be repeated",
        )
    statistics.add_argument(
        "--hide-imatrix", action="store_true", help="do not write which imatrix was used into the file"
    )
    statistics.add_argument(
        "--ignore-imatrix-rules",
        action="store_true",
        help="do not refuse types that need an imatrix where it has nothing",
    )
    statistics.add_argument(
        "--allow-missing",
        action="store_true",
        help="accept an imatrix without data for some tensors, or for more than 5 %% of a tensor's experts",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """What is written, and into how many files."""
    output = parser.add_argument_group("output")
    add_output_options(output)
    output.add_argument(
        "--only-layer",
        metavar="N",
        type=at_least(0),
        help="only the tensors of this layer, for --reuse by the run that writes all of them",
    )
    output.add_argument(
        "--keep-split", action="store_true", help="split the output as the input is; one file stays one"
    )
    output.add_argument(
        "--dry-run", action="store_true", help="print types, sizes, memory, disk and time; write nothing"
    )


def _add_resuming(parser: argparse.ArgumentParser) -> None:
    """What earlier runs have left."""
    again = parser.add_argument_group("going on and using what is there")
    again.add_argument(
        "--restart",
        action="store_true",
        help="begin anew; without it the same command goes on where an interrupted one ended",
    )
    again.add_argument(
        "--reuse",
        metavar="OLD.gguf",
        action="append",
        default=[],
        help="take tensors from an older output of ikq where source, type, imatrix and encoder are the same; "
        "may be repeated",
    )
    again.add_argument(
        "--partial-requant",
        action="store_true",
        help="finished shards of the output stay if they are what this command writes (bytes are checked)",
    )
    again.add_argument(
        "--max-ram",
        metavar="N(M|G)",
        type=size,
        help="most bytes in work at a time, default half of the memory that is available",
    )


def _add_repacking(parser: argparse.ArgumentParser) -> None:
    """Interleaved types."""
    moving = parser.add_argument_group("interleaved types (no weight changes, TYPE is ignored)")
    moving.add_argument("--repack", action="store_true", help="tensors in their interleaved types")
    moving.add_argument("--unrepack", action="store_true", help="interleaved tensors in their plain types")
    moving.add_argument(
        "--repack-pattern",
        metavar="RE,...",
        action="append",
        default=[],
        help="only tensors whose names match one of these; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if args.repack or args.unrepack:
        words = split_repack_words(args.words)
    elif args.recipe:
        words = split_recipe_words(args.words, args.recipe)
    else:
        words = split_words(args.words)
    source, destination, type_name, n_threads = words
    quantize_sequential.check(args)
    quantize_cluster.check(args)
    given_first = options(args)
    if args.sequential:
        # there are no covariances yet, which effort is about
        given_first["effort"] = "normal"
    plan = _plan(source, destination, type_name, given_first)
    if args.sequential and not args.dry_run:
        quantize_sequential.prepare(args, plan, type_name, n_threads, options(args))
        plan = _plan(source, destination, type_name, options(args))
    quantize_report.check(args, plan)
    for line in coverage_lines(plan):
        print(line)
    if args.keep_split and len(plan.shards) == 1:
        print(f"note: {source} is one file, and so is the output")
    for line in feedback_lines(plan, args.error_feedback):
        print(line)
    lines = tensor_lines(plan)
    given = {"type": type_name, "n_threads": n_threads, "reuse": args.reuse} | options(args)
    if args.dry_run:
        for line in lines.values():
            print(line)
        quantize_report.finish(args, plan, given)
        print_summary(plan, None)
        print_prediction(plan, n_threads, args.max_ram, measure_errors=bool(args.report))
        return 0
    how = functools.partial(
        quantize_cluster.runner(args, plan, type_name, options(args)),
        n_threads=n_threads,
        restart=args.restart,
        reuse=args.reuse,
        partial_requant=args.partial_requant,
        max_ram=args.max_ram,
        measure_errors=bool(args.report),
        clamp=args.clamp,
    )
    if sys.stderr.isatty() and sys.stdout.isatty():
        result = run_with_bar(plan, how)
    else:
        result = how(
            progress=lambda t, _: print(lines[t.name], flush=True),
            on_note=lambda text: print(text, flush=True),
        )
    quantize_report.finish(args, result, given)
    if args.sequential:
        quantize_sequential.tidy(plan)
    print_summary(plan, result)
    return 0


def _plan(source: str, destination: str | None, type_name: str, options: QuantizeOptions) -> QuantizePlan:
    try:
        return ikq.plan_quantization(source, destination, type_name, **options)
    except ikq.MissingImatrixError:
        # the refusal names what is missing; what is there is shown as well
        lenient: QuantizeOptions = {**options, "allow_missing": True, "ignore_imatrix_rules": True}
        shown = ikq.plan_quantization(source, destination, type_name, **lenient)
        for line in coverage_lines(shown):
            print(line)
        raise


def options(args: argparse.Namespace) -> QuantizeOptions:
    """The command line's options as keywords: they have the same names."""
    given = vars(args)
    return cast("QuantizeOptions", {name: given[name] for name in QuantizeOptions.__annotations__})


def split_words(words: list[str]) -> tuple[str, str | None, str, int | None]:
    """Input, output, TYPE and number of threads from the positional words.

    As in llama-quantize, the second word is TYPE if it is one, else the output.

    Raises:
        ikq.errors.RefusedError: Too few or too many words, or a number of threads that is none.
    """
    names = {f.name for f in ikq.ftypes()}
    source, rest = words[0], words[1:]
    destination = None
    if rest and not (rest[0].upper() in names or rest[0].isdigit()) and len(rest) > 1:
        destination, rest = rest[0], rest[1:]
    if not rest:
        raise ikq.errors.RefusedError(
            f"TYPE is missing: ikq quantize {source} [OUT.gguf] TYPE [NTHREADS], for example "
            f"ikq quantize {source} Q4_K; `ikq quantize --help` lists the types"
        )
    type_name, rest = rest[0], rest[1:]
    if len(rest) > 1:
        raise ikq.errors.RefusedError(f"too many arguments: {' '.join(rest[1:])}")
    n_threads = None
    if rest:
        try:
            n_threads = int(rest[0])
        except ValueError:
            raise ikq.errors.RefusedError(
                f"NTHREADS must be a number, got {rest[0]!r} (options come before or after the words)"
            ) from None
    return source, destination, type_name, n_threads


def split_repack_words(words: list[str]) -> tuple[str, str | None, str, int | None]:
    """As `split_words`, for `--repack IN [OUT] [TYPE] [NTHREADS]`: TYPE may be left out and is ignored.

    Raises:
        ikq.errors.RefusedError: As `split_words`.
    """
    names = {f.name for f in ikq.ftypes()}
    if words[-1].isdigit() and len(words) > 1:
        source, *rest, n_threads = words
        has_type = bool(rest) and (rest[-1].upper() in names or rest[-1].isdigit())
        words = [source, *rest, *([] if has_type else ["COPY"]), n_threads]
    elif words[-1].upper() not in names:
        words = [*words, "COPY"]
    source, destination, _, threads = split_words(words)
    return source, destination, "COPY", threads


def split_recipe_words(words: list[str], recipe: str) -> tuple[str, str | None, str, int | None]:
    """As `split_words`, for `--recipe FILE IN [OUT] [TYPE] [NTHREADS]`: FILE may name TYPE.

    Raises:
        OSError: The recipe cannot be read.
        ikq.errors.RefusedError: As `split_words`.
    """
    names = {f.name for f in ikq.ftypes()}
    own = recipe_type(recipe)
    is_named = any(word.upper() in names for word in words[1:])
    if own is None and not is_named and len(words) > 1 and words[-1].lower().endswith(".gguf"):
        raise ikq.RefusedError(
            f"{recipe} does not say what TYPE the file is: give TYPE behind {words[-1]}, or write a line "
            "`# type: NAME` into the recipe"
        )
    if own is not None and not is_named:
        if own.upper() not in names:
            raise ikq.RefusedError(f"{recipe}: `# type: {own}` is no TYPE; `ikq quantize --help` lists all")
        has_threads = len(words) > 1 and words[-1].isdigit()
        at = len(words) - 1 if has_threads else len(words)
        words = [*words[:at], own, *words[at:]]
    return split_words(words)


def run_with_bar(plan: QuantizePlan, how: Callable[..., QuantizeResult]) -> QuantizeResult:
    """Runs with a progress bar over the source's bytes; the bar goes to the terminal's stderr.

    Args:
        plan: what is run.
        how: `plan.run` with everything but the callbacks.
    """
    from tqdm import tqdm

    with tqdm(
        total=sum(t.bytes_in for t in plan.tensors),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        desc=Path(plan.destination).name,
    ) as bar:

        def progress(t: PlannedTensor, _: float) -> None:
            bar.set_postfix_str(f"{t.name} -> {type_label(t.to_type)}", refresh=False)

        return how(progress=progress, on_bytes=bar.update, on_note=bar.write)


def _writable_types() -> list[str]:
    return [t.name.lower() for t in ikq.QuantType if t.can_encode]
