"""What the verbs `perplexity` and `kld` share: options, loading, writing a base, the lines they print."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ikq
from ikq.cli import cluster_options, quality_cluster
from ikq.cli.kld_report import facts, head, row, statistics
from ikq.cli.model_options import add_ignored, add_loading, fitted, load_options, print_ignored
from ikq.cli.notes import note_on_stderr
from ikq.cli.numbers import number, whole_number
from ikq.evaluate import (
    Base,
    Divergence,
    ModelBase,
    Perplexity,
    Sink,
    Windows,
    base_writer,
    compact_writer,
    cut,
    measure_divergence,
    measure_perplexity,
    open_base,
    text_tokens,
)
from ikq.evaluate.compact import SHARE
from ikq.evaluate.windows import window_bos
from ikq.files.outputs import check_outputs
from ikq.files.text_files import read_literally

__all__ = ["add_options", "compare", "duration", "measure", "read_text"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of both verbs; names are those that users of llama-perplexity know."""
    parser.add_argument("-m", "--model", required=True, metavar="FILE.gguf", help="the model")
    parser.add_argument("-f", "--file", metavar="FILE", help="the text (UTF-8), taken literally")
    parser.add_argument("--chunks", type=whole_number, default=-1, metavar="N", help="most windows (-1: all)")
    parser.add_argument(
        "--kl-divergence-base", metavar="FILE", help="file with the distributions of a base model"
    )
    parser.add_argument(
        "--compact",
        nargs="?",
        type=number,
        const=SHARE,
        metavar="SHARE",
        help=f"write a compact base file, of at most this share of the full size ({SHARE})",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object at the end, nothing else")
    parser.add_argument("--no-escape", action="store_true", help=argparse.SUPPRESS)
    cluster_options.add_options(parser)
    add_loading(parser)
    parser.set_defaults(ctx_size=512, ppl_stride=0)
    add_ignored(parser)


def measure(args: argparse.Namespace) -> int:
    """Perplexity of the model; writes the base file if one is named."""
    if args.compact is not None and not args.kl_divergence_base:
        raise ikq.RefusedError("--compact is a form of base files: name one with --kl-divergence-base FILE")
    cluster_options.check(args)
    quality_cluster.check_writing(args)
    check_outputs(
        [("--kl-divergence-base", args.kl_divergence_base)], [("the model", args.model), ("-f", args.file)]
    )
    text = read_text(args.file)
    options = load_options(args)
    print_ignored(args)
    stride = args.ppl_stride
    running = []
    with ExitStack() as stack:
        results: Iterator[Perplexity]
        if args.cluster is None:
            n_ctx = max(4, args.ctx_size) + max(0, stride) // 2
            model = stack.enter_context(_model(args.model, options, n_ctx))
            windows = _windows(model.tokenizer, text, args, stride)
            sink = _sink(stack, args, windows, model.spec.n_vocab)
            results = _timed(measure_perplexity(model, windows, sink), windows.n)
        else:
            windows = _windows(cluster_options.tokenizer(args, args.model), text, args, stride)
            results = quality_cluster.perplexities(args, options, windows)
        for found in results:
            running.append(found.value)
            if not args.json:
                print(f"[{found.n_windows}]{found.value:.4f},", end="", flush=True)
    if args.json:
        plain = found._asdict() | {
            "model": args.model, "n_ctx": windows.n_ctx, "stride": stride, "running": running
        }  # fmt: skip
        print(json.dumps(plain))
        return 0
    print(f"\n{found.n_windows} windows of {windows.n_ctx} tokens, {found.n_scored} tokens scored")
    if args.kl_divergence_base:
        print(f"{args.kl_divergence_base}: {Path(args.kl_divergence_base).stat().st_size} bytes written")
    print(f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}")
    return 0


def compare(args: argparse.Namespace, base_model: str | None = None) -> int:
    """Distance of the model from a base file or another model."""
    cluster_options.check(args)
    options = load_options(args)
    print_ignored(args)
    if base_model is not None and options["fit"]:
        raise ikq.RefusedError(
            "--fit fills the GPU with one model: write the base's distributions first (--write), and compare "
            "with them"
        )
    with ExitStack() as stack:
        for found in _divergences(stack, args, options, base_model):
            if args.json:
                continue
            if found.n_windows == 1:
                print(head())
            print(row(found), flush=True)
    if args.json:
        print(json.dumps({"model": args.model, "base": base_model or args.kl_divergence_base} | facts(found)))
        return 0
    print("\n" + "\n".join(statistics(found)))
    return 0


def _divergences(
    stack: ExitStack, args: argparse.Namespace, options: dict[str, Any], base_model: str | None
) -> Iterator[Divergence]:
    """What models make that are loaded here, or on the nodes of a cluster."""
    if args.chunks == 0:
        raise ikq.RefusedError("0 windows: nothing to measure")
    if args.cluster is not None:
        windows = None
        if base_model is not None:
            windows = _windows(cluster_options.tokenizer(args, base_model), read_text(args.file), args)
        return quality_cluster.divergences(args, options, base_model or args.kl_divergence_base, windows)
    base: Base
    if base_model is None:
        n_ctx = open_base(args.kl_divergence_base).windows.n_ctx
        model = stack.enter_context(_model(args.model, options, n_ctx))
        base = open_base(args.kl_divergence_base, _bos(model))
    else:
        text, n_ctx = read_text(args.file), max(4, args.ctx_size)
        model = stack.enter_context(_model(args.model, options, n_ctx))
        # adapters are the compared model's
        other = stack.enter_context(_model(base_model, options | {"lora": ()}, n_ctx))
        base = ModelBase(other, _windows(other.tokenizer, text, args))
    n = base.windows.n if args.chunks < 0 else min(args.chunks, base.windows.n)
    return _timed(measure_divergence(model, base, args.chunks), n)


def _model(path: str, options: dict[str, Any], n_ctx: int) -> ikq.Model:
    return ikq.Model.load(path, **fitted(path, options | {"n_ctx": n_ctx}))


def read_text(path: str | None) -> str:
    """A text file as it is.

    Raises:
        RefusedError: none is named.
        FormatError: it is not UTF-8.
    """
    if path is None:
        raise ikq.RefusedError("no text: give one with -f FILE")
    return read_literally(path, note_on_stderr)


def _bos(model: ikq.Model) -> int | None:
    """The token that windows begin with; none where the file has no tokenizer."""
    try:
        return window_bos(model.tokenizer)
    except (ikq.FormatError, ikq.UnsupportedError):
        return None


def _windows(tokenizer: ikq.Tokenizer, text: str, args: argparse.Namespace, stride: int = 0) -> Windows:
    tokens = text_tokens(tokenizer, text)
    bos = window_bos(tokenizer)
    return cut(tokens, n_ctx=args.ctx_size, chunks=args.chunks, stride=stride, bos=bos)


def _sink(stack: ExitStack, args: argparse.Namespace, windows: Windows, n_vocab: int) -> Sink | None:
    path = args.kl_divergence_base
    if not path:
        return None
    if args.compact is None:
        return stack.enter_context(base_writer(path, windows, n_vocab))
    return stack.enter_context(compact_writer(path, windows, n_vocab, args.compact))


class _Counted(Protocol):
    @property
    def n_windows(self) -> int: ...


_Found = TypeVar("_Found", bound=_Counted)


def _timed(results: Iterator[_Found], n: int) -> Iterator[_Found]:
    """Says on standard error, after the first window, how long all will take."""
    start = time.perf_counter()
    for found in results:
        if found.n_windows == 1:
            seconds = time.perf_counter() - start
            print(f"{n} windows, {seconds:.2f} seconds each - ETA {duration(seconds * n)}", file=sys.stderr)
        yield found


def duration(seconds: float) -> str:
    """Minutes, or hours and minutes."""
    minutes = seconds / 60
    return (
        f"{minutes:.2f} minutes" if minutes < 60 else f"{minutes // 60:.0f} hours {minutes % 60:.0f} minutes"
    )
