"""`ikq imatrix`: activation statistics of a text, which tell `quantize` what matters."""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

import ikq
from ikq.cli import cluster_options, imatrix_cluster
from ikq.cli.imatrix_covariance import CovarianceParts, PartialCovariances
from ikq.cli.imatrix_report import coverage_lines, facts, similarity_lines, statistics_lines
from ikq.cli.model_options import add_ignored, add_loading, fitted, load_options, print_ignored
from ikq.cli.numbers import size, whole_number
from ikq.cli.quality import duration, read_text
from ikq.evaluate import Perplexity, Windows
from ikq.evaluate.perplexity import estimate
from ikq.files.outputs import check_outputs, is_same_file
from ikq.statistics.calibrate import (
    ChunksDone,
    coverage,
    load_state,
    run_chunks,
    run_identity,
    save_state,
    state_path,
    wanted_tensors,
    windows_of,
)

NAME = "imatrix"
HELP = "compute an importance matrix from a text; merge and inspect them"
EXAMPLES = (
    "ikq imatrix -m model-bf16.gguf -f calibration.txt -o model.imatrix.gguf",
    "ikq imatrix --in-file model.imatrix.gguf --show-statistics -m model-bf16.gguf",
)

_DEFAULT_OUTPUT = "imatrix.dat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-imatrix know."""
    parser.usage = (
        "ikq imatrix -m FILE.gguf -f TEXT [-o OUT] [--chunks N] [options]\n"
        "       ikq imatrix --in-file A --in-file B -o OUT\n"
        "       ikq imatrix --in-file A --show-statistics"
    )
    parser.description = (
        "Runs a text through the model in chunks of -c tokens and writes, for every matrix and expert, the "
        "mean squared input of each column. The text is taken literally: no escapes. The same command goes "
        "on where an interrupted one has stopped."
    )
    _add_files(parser)
    _add_going_on(parser)
    _add_collecting(parser)
    _add_shown(parser)
    cluster_options.add_options(parser)
    add_loading(parser)
    parser.set_defaults(ctx_size=512)
    add_ignored(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What is read and written."""
    add = parser.add_argument
    add("-m", "--model", metavar="FILE.gguf", help="the model")
    add("-f", "--file", metavar="TEXT", help="the text (UTF-8), taken literally")
    add("-o", "--output", "--output-file", metavar="OUT", help=f"the file to write ({_DEFAULT_OUTPUT})")
    add(
        "--output-format",
        choices=("dat", "gguf"),
        help="dat: of ik_llama.cpp; gguf: of llama.cpp, with counts per expert (as OUT's ending says)",
    )
    add(
        "--in-file",
        action="append",
        default=[],
        metavar="FILE",
        help="statistics to add (either form); may be repeated; without -f only these are merged",
    )
    add(
        "--covariance",
        metavar="FILE",
        help="write the covariances of the layers' inputs as well, for `ikq quantize --error-feedback`",
    )
    add(
        "--in-covariance",
        action="append",
        default=[],
        metavar="FILE",
        help="covariances to add up into those of --covariance; may be repeated; without -f",
    )
    add(
        "--max-ram",
        metavar="N(M|G)",
        type=size,
        help="most bytes of covariances in memory; what is more takes further passes over the text (half of "
        "the memory that is available)",
    )


def _add_going_on(parser: argparse.ArgumentParser) -> None:
    """What an interrupted run leaves, and what becomes of it."""
    add = parser.add_argument
    add(
        "-ofreq",
        "--output-frequency",
        type=whole_number,
        default=10,
        metavar="N",
        help="write OUT, and what is needed to go on, every N chunks (10; 0: at the end)",
    )
    add(
        "--save-frequency",
        type=whole_number,
        default=0,
        metavar="N",
        help="keep a copy OUT.at_K every N chunks",
    )
    add("--restart", action="store_true", help="start anew, whatever an interrupted run left")


def _add_collecting(parser: argparse.ArgumentParser) -> None:
    """Which part of the text is run, and what of it counts."""
    add = parser.add_argument
    add(
        "--chunk",
        "--from-chunk",
        type=whole_number,
        default=0,
        metavar="N",
        help="leave out the first N chunks",
    )
    add("--chunks", type=whole_number, default=-1, metavar="N", help="most chunks (-1: all)")
    add("--no-ppl", action="store_true", help="do not compute the perplexity on the way")
    add("--parse-special", action="store_true", help="names of control tokens in the text mean the tokens")
    add(
        "--process-output",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the input of the output matrix as well (default)",
    )
    add("--all-experts", action="store_true", help="count every token for every expert; marked in OUT")


def _add_shown(parser: argparse.ArgumentParser) -> None:
    """What is told of the result, and flags of other programs."""
    add = parser.add_argument
    add("-lsim", "--layer-similarity", action="store_true", help="how much each layer changes")
    add("--show-statistics", action="store_true", help="numbers about each tensor")
    add("--report", metavar="FILE.json", help="coverage and numbers as JSON")
    for flag in ("--no-escape", "--resume"):
        add(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in ("--verbosity", "--output-tensor-name"):
        add(flag, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    for option, value in (
        ("--output-frequency", args.output_frequency),
        ("--save-frequency", args.save_frequency),
        ("--chunk", args.chunk),
    ):
        if value < 0:
            raise ikq.RefusedError(f"{option} {value}: expected 0 or more")
    cluster_options.check(args)
    imatrix_cluster.check(args)
    _check_targets(args)
    if args.file is not None:
        if args.model is None:
            raise ikq.RefusedError("a text needs a model: give one with -m FILE.gguf")
        return _collect(args)
    if args.in_covariance:
        if args.covariance is None:
            raise ikq.RefusedError("where to? Give --covariance OUT to merge covariances")
        ikq.Covariances.merge(args.in_covariance, args.covariance)
        print(f"{args.covariance}: covariances of {len(args.in_covariance)} files")
        if not args.in_file:
            return 0
    elif args.covariance is not None:
        raise ikq.RefusedError("--covariance needs a text (-f TEXT), or files to merge (--in-covariance)")
    if not args.in_file:
        raise ikq.RefusedError(
            "nothing to do: give a model and a text (-m FILE.gguf -f TEXT), or files to merge or to look at "
            "(--in-file)"
        )
    if args.output is None and not args.show_statistics and args.report is None:
        raise ikq.RefusedError("where to? Give -o OUT to merge, or --show-statistics to look at a file")
    wanted = _wanted(args.model)
    statistics = ikq.ActivationStatistics.merged(_inputs(args, wanted))
    if args.output is not None:
        statistics.write(args.output, _form(args))
    _finish(args, statistics, wanted, [], {"in_files": args.in_file})
    return 0


def _form(args: argparse.Namespace) -> Literal["dat", "gguf"]:
    """The output's form; copies have it whatever their names end in."""
    if args.output_format is not None:
        return cast(Literal["dat", "gguf"], args.output_format)
    return "gguf" if str(args.output).lower().endswith(".gguf") else "dat"


def _wanted(model: str | None) -> dict[str, int] | None:
    if model is None:
        return None
    with ikq.GGUFReader(model) as reader:
        return wanted_tensors(reader.tensors)


def _inputs(args: argparse.Namespace, wanted: dict[str, int] | None) -> list[ikq.ActivationStatistics]:
    size = args.ctx_size or 512
    read = [ikq.ActivationStatistics.open(f, chunk_size=size, n_expert=wanted) for f in args.in_file]
    if args.model is not None:
        _check_sizes(args, read)
    for file, statistics in zip(args.in_file, read, strict=True):
        print(f"{file}: {len(statistics)} entries, {statistics.n_chunks} chunks", file=sys.stderr)
    return read


def _check_sizes(args: argparse.Namespace, read: list[ikq.ActivationStatistics]) -> None:
    """Files of another model are refused before anything is run."""
    with ikq.GGUFReader(args.model) as reader:
        shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    for file, statistics in zip(args.in_file, read, strict=True):
        for name, entry in statistics.items():
            if name not in shapes:
                continue
            shape = shapes[name]
            n_expert = shape[0] if len(shape) == 3 else 1
            # a row may be written as a column
            expected = n_expert * (shape[-1] if shape[-1] > 1 else max(shape))
            if entry.sums.size != expected:
                raise ikq.ShapeError(
                    f"{file} has {entry.sums.size} values for `{name}`, {args.model} needs {expected}: "
                    "is it of another model?"
                )


def _collect(args: argparse.Namespace) -> int:
    text = read_text(args.file)
    options = load_options(args) | {"n_ctx": max(4, args.ctx_size)}
    print_ignored(args)
    args.output = args.output or _DEFAULT_OUTPUT
    if any(is_same_file(Path(f), Path(args.output)) for f in args.in_file):
        raise ikq.RefusedError(
            f"{args.output} is an --in-file and the output: an interrupted run would count it twice; "
            "choose another -o"
        )
    if args.in_covariance:
        raise ikq.RefusedError("--in-covariance merges files: leave out -f, and merge afterwards")
    state = state_path(args.output)
    wanted = _wanted(args.model)
    others = _inputs(args, wanted)
    if others:
        # that they can be merged is found out now, too
        ikq.ActivationStatistics.merged([ikq.ActivationStatistics({}, all_experts=args.all_experts), *others])

    def load() -> ikq.Model:
        return ikq.Model.load(args.model, **fitted(args.model, options))

    with ExitStack() as stack:
        # nodes of a cluster have models of their own
        model = stack.enter_context(load()) if args.cluster is None else None
        windows = windows_of(
            cluster_options.tokenizer(args, args.model) if model is None else model.tokenizer,
            text,
            n_ctx=args.ctx_size,
            skip=args.chunk,
            parse_special=args.parse_special,
        )
        if args.chunks == 0:
            raise ikq.RefusedError("0 chunks: nothing to collect")
        files = [*_files(args.model), *(Path(a.path) for a in args.lora)]
        identity = run_identity(files, windows.tokens, _options(args, windows))
        if args.chunks > 0:
            windows = replace(windows, n=min(windows.n, args.chunks))
        parts = CovarianceParts.of(args, windows, identity)
        with ExitStack() as collecting:
            collector: ikq.ActivationCollector
            if model is None:
                collector = sums = imatrix_cluster.collector_of(args)
                steps = imatrix_cluster.steps_of(args, windows, options, sums)
            else:
                collector = collecting.enter_context(
                    model.collect_activations(
                        all_experts=args.all_experts,
                        similarity=args.layer_similarity,
                        output=args.process_output,
                        covariance_layers=parts.first,
                    )
                )
                steps = functools.partial(run_chunks, model, windows, collector)
            job = _Job(args, collector, others, state, identity, parts.partial(parts.first))
            if not args.restart:
                job.resume(windows.n)
            job.run(steps, windows)
            statistics = job.write()
            similarity = collector.layer_similarity()
            parts.finish(collector, parts.first)
        if model is not None:
            for layers in parts.later:
                _pass(args, model, windows, identity, parts, layers)
    parts.join()
    state.unlink(missing_ok=True)
    ppl = job.perplexity
    extra = {"model": args.model, "perplexity": None if ppl is None else ppl._asdict()}
    _finish(args, statistics, wanted, similarity, extra)
    if ppl is not None:
        print(f"Final estimate: PPL = {ppl.value:.4f} +/- {ppl.error:.5f}")
    return 0


def _pass(
    args: argparse.Namespace,
    model: ikq.Model,
    windows: Windows,
    identity: str,
    parts: CovarianceParts,
    layers: range,
) -> None:
    """One more pass over the text, for the covariances of some layers."""
    with model.collect_activations(output=False, covariance_layers=layers) as collector:
        state = state_path(parts.path(layers))
        job = _Job(args, collector, None, state, parts.identity(layers), parts.partial(layers))
        if not args.restart:
            job.resume(windows.n)
        print(f"layers {layers.start} to {layers.stop - 1}:")
        job.run(functools.partial(run_chunks, model, windows, collector), windows)
        parts.finish(collector, layers)
    state.unlink(missing_ok=True)


def _check_targets(args: argparse.Namespace) -> None:
    """Finds out before hours of work what would stop results from being written, or be replaced by them."""
    inputs = [
        ("the model", args.model),
        ("-f", args.file),
        *(("--in-covariance", f) for f in args.in_covariance),
    ]
    output = _DEFAULT_OUTPUT if args.output is None and args.file is not None else args.output
    written = [("-o", output), ("--covariance", args.covariance)]
    check_outputs(written, inputs, are_gguf=True)
    check_outputs([("--report", args.report)], [*inputs, *(("--in-file", f) for f in args.in_file), *written])


def _files(model: str) -> list[Path]:
    with ikq.GGUFReader(model) as reader:
        return [shard.path for shard in reader.shards]


def _options(args: argparse.Namespace, windows: Windows) -> dict[str, Any]:
    """What decides the result besides model and text; plans, threads and batches do not."""
    names = (
        "all_experts", "cache_type_k", "cache_type_v", "compute", "layer_similarity", "no_ppl", "override_kv",
        "process_output", "smart_expert_reduction",
    )  # fmt: skip
    found = {name: getattr(args, name) for name in names} | {"n_ctx": windows.n_ctx, "bos": windows.bos}
    return found | ({"lora": [a.scale for a in args.lora]} if args.lora else {})


class _Job:
    """A run with its output and the state beside it."""

    def __init__(
        self,
        args: argparse.Namespace,
        collector: ikq.ActivationCollector,
        others: list[ikq.ActivationStatistics] | None,
        state: Path,
        identity: str,
        covariances: PartialCovariances | None,
    ) -> None:
        self.args, self.collector, self.others = args, collector, others
        self.state, self.identity = state, identity
        self.covariances = covariances
        self.n_done = 0
        self.losses: NDArray[np.float64] = np.zeros(0)
        self.perplexity: Perplexity | None = None

    def resume(self, n: int) -> None:
        """Takes over what an interrupted run left."""
        try:
            saved = load_state(self.state)
        except ikq.FormatError as e:
            print(f"note: {e}; starting anew", file=sys.stderr)
            return
        if saved is None:
            return
        if saved.identity != self.identity or saved.n_done > n:
            raise ikq.RefusedError(
                f"{self.state} is from a run with another model, text, options or version of ikq "
                f"({saved.n_done} chunks): repeat that command to finish it, choose another -o, or drop it "
                "with --restart"
            )
        if self.covariances is not None:
            try:
                self.covariances.restore(self.collector, saved.n_done)
            except (ikq.FormatError, OSError) as e:
                print(f"note: {e}; starting anew", file=sys.stderr)
                return
        self.collector.restore(saved.collector)
        self.n_done, self.losses = saved.n_done, saved.losses
        if len(self.losses):
            self.perplexity = estimate(self.losses, self.n_done)
        print(f"going on after chunk {saved.n_done} of {n} ({self.state})", file=sys.stderr)

    def run(self, steps_of: Callable[..., Iterator[ChunksDone]], windows: Windows) -> None:
        """Runs the chunks that are left; Ctrl-C keeps those that are done.

        Args:
            steps_of: `run_chunks`, or what does the same elsewhere.
            windows: the chunks.
        """
        args, first, start = self.args, self.n_done, time.perf_counter()
        perplexity = not args.no_ppl and self.others is not None
        steps = steps_of(first=first, losses=self.losses, perplexity=perplexity)
        interrupts = _Interrupts()
        with interrupts.watched():
            while True:
                try:
                    with interrupts.at_once():
                        done = next(steps, None)
                except KeyboardInterrupt:
                    self._interrupted(windows.n)
                if done is None:
                    break
                self._took(done)
                if done.n_chunks == first + 1:
                    seconds = time.perf_counter() - start
                    left = duration(seconds * (windows.n - first))
                    print(
                        f"{windows.n - first} chunks, {seconds:.2f} seconds each - ETA {left}",
                        file=sys.stderr,
                    )
                running = "" if self.perplexity is None else f"{self.perplexity.value:.4f}"
                print(f"[{done.n_chunks}]{running},", end="", flush=True)
                if (
                    self.others is not None
                    and args.save_frequency
                    and done.n_chunks % args.save_frequency == 0
                ):
                    self.write(f"{args.output}.at_{done.n_chunks}")
                often = args.output_frequency and done.n_chunks % args.output_frequency == 0
                if often and done.n_chunks < windows.n:
                    # what cannot be written (values that are not finite) must not be gone on from
                    if self.others is not None:
                        self.write()
                    self._save()
                if interrupts.asked:
                    self._interrupted(windows.n)
        print()

    def _took(self, done: ChunksDone) -> None:
        if done.take is not None:
            done.take()
        self.n_done, self.losses, self.perplexity = done.n_chunks, done.losses, done.perplexity

    def _save(self) -> None:
        if self.covariances is not None:
            self.covariances.write(self.collector, self.n_done)
        save_state(self.state, self.identity, self.n_done, self.losses, self.collector)

    def _interrupted(self, n: int) -> None:
        if self.n_done == 0:
            raise KeyboardInterrupt("interrupted before the first chunk was done: nothing is written")
        self._save()
        if self.others is not None:
            self.write()
        raise KeyboardInterrupt(
            f"interrupted after {self.n_done} of {n} chunks, which are in {self.args.output}; "
            "the same command goes on from there"
        )

    def write(self, path: str | None = None) -> ikq.ActivationStatistics:
        """Writes what is there."""
        statistics = self.collector.statistics(self.args.file)
        statistics = ikq.ActivationStatistics.merged([statistics, *(self.others or [])])
        statistics.write(path or self.args.output, _form(self.args))
        return statistics


class _Interrupts:
    """Ctrl-C stops the model at once, and waits while results are counted or written."""

    def __init__(self) -> None:
        self.asked = False
        self._now = False

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if self._now or self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Takes over the signal while the block runs."""
        before = signal.signal(signal.SIGINT, self._signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Ctrl-C interrupts the block."""
        self._now = True
        try:
            yield
        finally:
            self._now = False


def _finish(
    args: argparse.Namespace,
    statistics: ikq.ActivationStatistics,
    wanted: dict[str, int] | None,
    similarity: list[ikq.LayerSimilarity],
    extra: dict[str, Any],
) -> None:
    """Prints the tables and writes the report."""
    found = coverage(statistics, wanted)
    if args.show_statistics:
        print("\n".join([*statistics_lines(statistics), ""]))
    if similarity:
        print("\n".join([*similarity_lines(similarity), ""]))
    print("\n".join(coverage_lines(found, wanted, statistics.counts_are_exact)))
    if args.report:
        report = extra | {"output": args.output} | facts(statistics, found, wanted, similarity)
        Path(args.report).write_text(json.dumps(report, indent=1) + "\n")
    if args.output is not None:
        form = {"dat": ".dat, of ik_llama.cpp", "gguf": "GGUF, of llama.cpp"}[_form(args)]
        print(f"{args.output}: {len(statistics)} entries from {statistics.n_chunks} chunks ({form})")
