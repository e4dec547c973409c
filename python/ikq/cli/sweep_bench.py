"""`ikq sweep-bench`: speed at every depth of the context."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ikq
from ikq.cli.model_options import add_ignored, add_loading, fitted, load_options, print_ignored
from ikq.cli.numbers import whole_number
from ikq.speed.measure import SweepRow, sweep

NAME = "sweep-bench"
HELP = "measure speed over the depth of the context, as a table, CSV, JSON lines or a plot"
EXAMPLES = (
    "ikq sweep-bench -m model.gguf -c 8192",
    "ikq sweep-bench -m model.gguf -c 8192 -ub 512 --plot depth.png",
)

_COLUMNS = {"PP": 6, "TG": 6, "N_KV": 6, "T_PP s": 8, "S_PP t/s": 8, "T_TG s": 8, "S_TG t/s": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-sweep-bench know."""
    parser.usage = "ikq sweep-bench -m FILE.gguf [-c N] [-ub N] [options]"
    parser.description = (
        "At every depth (multiples of -ub) generates some tokens, forgets them, and reads the next part of a "
        "prompt of random tokens."
    )
    parser.add_argument("-m", "--model", required=True, metavar="FILE.gguf", help="the model")
    parser.add_argument(
        "-n", "--n-gen", type=whole_number, metavar="N", help="generated tokens (a quarter of -ub)"
    )
    parser.add_argument(
        "-nrep", "--repetitions", type=whole_number, default=1, metavar="N", help="median of N (1)"
    )
    parser.add_argument("-wb", "--warmup-batch", action="store_true", default=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--output-format", choices=("table", "md", "jsonl", "csv"), default="table", help="form of the result"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw both speeds (needs matplotlib)")
    add_loading(parser)
    parser.set_defaults(ctx_size=4096)
    add_ignored(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    options = load_options(args)
    n_prompt = options["n_ubatch"]
    n_gen = max(1, n_prompt // 4) if args.n_gen is None else args.n_gen
    for option, value, low in (("-n", n_gen, 0), ("-nrep", args.repetitions, 1)):
        if value < low:
            raise ikq.RefusedError(f"{option} {value}: expected {low} or more")
    if args.plot:
        _check_plot(args.plot)
    print_ignored(args)
    with ikq.Model.load(args.model, **fitted(args.model, options)) as model:
        if max(n_prompt, n_gen) > model.n_ctx:
            raise ikq.RefusedError(
                f"the context of {model.n_ctx} holds no part of {max(n_prompt, n_gen)} tokens: "
                "raise -c or lower -ub"
            )
        facts = {"n_kv_max": model.n_ctx, "n_ubatch": n_prompt, "n_threads": model.n_threads}
        memory = model.memory
        mib = (memory.mapped + memory.copied) / 2**20
        cache = model.sequence_bytes(model.n_ctx) / 2**20
        print(
            f"weights {mib:.1f} MiB, {model.explain().why_memory}; cache {cache:.1f} MiB; "
            f"{model.n_threads} threads",
            file=sys.stderr,
        )
        rows = _printed(
            sweep(model, n_prompt=n_prompt, n_gen=n_gen, repetitions=args.repetitions),
            args.output_format,
            facts,
        )
    if args.plot:
        _plot(rows, args.plot, Path(args.model).name)
    return 0


def _printed(rows: Iterator[SweepRow], form: str, facts: dict[str, Any]) -> list[SweepRow]:
    """Prints rows as they come; returns them."""
    found: list[SweepRow] = []
    writer = None
    if form in ("table", "md"):
        print("|" + "|".join(f" {head:>{width}} " for head, width in _COLUMNS.items()) + "|")
        print("|" + "|".join("-" * (width + 1) + ":" for width in _COLUMNS.values()) + "|")
    for r in rows:
        found.append(r)
        values = facts | {
            "pp": r.pp,
            "tg": r.tg,
            "n_kv": r.n_kv,
            "t_pp": round(r.t_pp, 6),
            "speed_pp": round(r.s_pp, 4),
            "t_tg": round(r.t_tg, 6),
            "speed_tg": round(r.s_tg, 4),
        }
        if form == "jsonl":
            print(json.dumps(values), flush=True)
        elif form == "csv":
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(values), lineterminator="\n")
                writer.writeheader()
            writer.writerow(values)
            sys.stdout.flush()
        else:
            print(
                f"| {r.pp:6d} | {r.tg:6d} | {r.n_kv:6d} | {r.t_pp:8.3f} | {r.s_pp:8.2f} | {r.t_tg:8.3f} "
                f"| {r.s_tg:8.2f} |",
                flush=True,
            )
    return found


def _check_plot(file: str) -> None:
    """Finds out before the measurement whether a plot can be written.

    Raises:
        UnsupportedError: matplotlib is not installed, or does not know the kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ikq.UnsupportedError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    known = Figure().canvas.get_supported_filetypes()
    if Path(file).suffix[1:].lower() not in known:
        raise ikq.UnsupportedError(
            f"--plot {file}: the name must end with one of .{', .'.join(sorted(known))}"
        )


def _plot(rows: list[SweepRow], file: str, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    depths = [r.n_kv for r in rows]
    for axis, name, speeds in (
        (axes[0], f"prompt, {rows[0].pp} at once", [r.s_pp for r in rows]),
        (axes[1], "generation", [r.s_tg for r in rows]),
    ):
        axis.plot(depths, speeds, marker="o")
        axis.set_ylim(bottom=0)
        axis.set_ylabel("tokens per second")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("tokens in the cache")
    figure.suptitle(title)
    figure.savefig(file)
