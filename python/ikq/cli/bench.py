"""`ikq bench`: speed of models with several settings."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ikq
from ikq.cli import bench_cuda, bench_types
from ikq.cli.lora_options import add_lora
from ikq.cli.model_options import (
    CPU_MOE_LAYERS,
    GPU_LAYERS,
    add_ignored,
    add_placement,
    fitted,
    n_layers,
    placement_options,
    print_ignored,
    print_unused_rules,
    reduction,
)
from ikq.cli.numbers import at_least, whole_number
from ikq.inference.devices import chosen_devices
from ikq.speed.measure import Timings, Workload, bench

NAME = "bench"
HELP = "measure speed: prompt and generation, several settings, as a table, CSV or JSON"
EXAMPLES = (
    "ikq bench -m model.gguf -p 512 -n 128",
    "ikq bench types --types Q4_K,IQ4_KS",
    "ikq bench cuda -o cublas.json",
)

MIB = 1024 * 1024


class _Setting(NamedTuple):
    """An option of loading that may have several values.

    Attributes:
        flags: Names on the command line.
        key: Keyword of `Model.load`.
        default: Value unless given.
        parse: Makes a value of a word.
        help: For the list of options.
        column: Heading where the values are worth a column.
    """

    flags: tuple[str, ...]
    key: str
    default: Any
    parse: Callable[[str], Any]
    help: str
    column: str


_PLACING = ("devices", "tensor_split", "override_tensor", "cpu_moe", "cache_rotation", "swa_full")
"""Options of `add_placement` that rows tell."""


def _switch(text: str) -> bool:
    return {"0": False, "1": True}[text]


_SETTINGS = (
    _Setting(("-t", "--threads"), "n_threads", None, at_least(1), "threads", "threads"),
    _Setting(
        ("-ub", "--ubatch-size"), "n_ubatch", 512, at_least(1), "most tokens computed at once", "n_ubatch"
    ),
    _Setting(("-ctk", "--cache-type-k"), "cache_type_k", "f16", str, "type of cached keys", "type_k"),
    _Setting(("-ctv", "--cache-type-v"), "cache_type_v", "f16", str, "type of cached values", "type_v"),
    _Setting(("-fmoe", "--fused-moe"), "fused_moe", True, _switch, "up and gate experts in one pass", "fmoe"),
    _Setting(
        ("-fug", "--fused-up-gate"), "fused_up_gate", True, _switch, "up and gate in one pass at all", "fug"
    ),
    _Setting(
        ("-muge", "--merge-up-gate-experts"), "merge_up_gate_experts", False, _switch, "as one matrix", "muge"
    ),
    _Setting(
        ("-mmp", "--mmap"),
        "mmap",
        "auto",
        {"0": "off", "1": "on", "auto": "auto"}.__getitem__,
        "0: copy weights, 1: keep them mapped, auto: copy them to huge pages if memory allows",
        "mmap",
    ),
    _Setting(GPU_LAYERS, "n_gpu_layers", None, n_layers, "layers on GPUs, or on what -dev names", "ngl"),
    _Setting(
        CPU_MOE_LAYERS, "n_cpu_moe", 0, at_least(0), "layers whose experts stay on the CPU", "n_cpu_moe"
    ),
)


_WITHOUT_DEFAULT = {"n_threads": "one per CPU", "n_gpu_layers": "all with -dev, else 0"}
"""What options without a default do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-bench know."""
    parser.usage = (
        "ikq bench -m FILE.gguf [-p N,...] [-n N,...] [options]\n"
        "       ikq bench types [options]\n       ikq bench cuda [options]"
    )
    parser.description = (
        "Measures tokens per second. Options take several values joined by commas, and may be repeated; "
        "all combinations are measured. The tokens are random, the same ones in each repetition. With -np, "
        "several sequences are computed in common steps, and all their tokens count: prompts of -p tokens "
        "each, then -n tokens each after them."
    )
    add = parser.add_argument
    add("-m", "--model", action="append", metavar="FILE.gguf", help="may be repeated")
    add("-p", "--n-prompt", action="append", type=_counts, metavar="N,...", help="prompt lengths (512)")
    add("-n", "--n-gen", action="append", type=_counts, metavar="N,...", help="generated tokens (128)")
    add("-d", "--n-depth", action="append", type=_counts, metavar="N,...", help="tokens in the cache before")
    add("-pg", action="append", default=[], type=_pair, metavar="PP,TG", help="a prompt and tokens after it")
    add(
        "-gp",
        action="append",
        default=[],
        type=_pair,
        metavar="PP,TG",
        help="the same, timing the tokens only",
    )
    add(
        "-np",
        "--parallel",
        action="append",
        type=_counts,
        metavar="N,...",
        help="sequences in common steps",
    )
    add(
        "-c",
        "--ctx-size",
        type=whole_number,
        default=0,
        metavar="N",
        help="positions that the cache is made for, when they are more than a test takes",
    )
    add("-r", "--repetitions", type=whole_number, default=5, metavar="N", help="of each test (5)")
    add(
        "-w",
        "--warmup",
        type=whole_number,
        choices=(0, 1),
        default=1,
        help="run each test untimed before (1)",
    )
    add("-o", "--output", choices=("md", "csv", "json", "jsonl"), default="md", help="form (md)")
    for s in _SETTINGS:
        shown = _WITHOUT_DEFAULT.get(s.key, str(s.default))
        add(
            *s.flags,
            dest=s.key,
            action="append",
            type=_values(s.parse),
            metavar="VALUE,...",
            help=f"{s.help} ({shown})",
        )
    add("--compute", choices=("auto", "f32"), default="auto", help="f32: exact products, slow (auto)")
    add("-ser", "--smart-expert-reduction", type=reduction, metavar="K,T", help="drop light experts, see run")
    add_lora(parser)
    add_placement(parser, switches_have_values=True)
    add("-b", "--batch-size", help=argparse.SUPPRESS)
    add("-tgb", "--threads-gen-batch", help=argparse.SUPPRESS)
    add_ignored(parser, switches_have_values=True)
    parser.set_defaults(wrong_usage=parser.error)
    others = parser.add_subparsers(title="instead of a model", metavar="types, cuda", prog="ikq bench")
    types = others.add_parser("types", help=bench_types.HELP, allow_abbrev=False)
    bench_types.add_arguments(types)
    types.set_defaults(run=bench_types.run)
    gpu = others.add_parser("cuda", help=bench_cuda.HELP, allow_abbrev=False)
    bench_cuda.add_arguments(gpu)
    gpu.set_defaults(run=bench_cuda.run)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if args.model is None:
        args.wrong_usage("the following arguments are required: -m/--model (or `types`, `cuda`)")
    if args.repetitions < 1:
        raise ikq.RefusedError(f"-r {args.repetitions}: expected 1 or more")
    if args.ctx_size < 0:
        raise ikq.RefusedError(f"-c {args.ctx_size}: expected 0 or more")
    workloads = _workloads(args)
    settings = [{s.key: v for s, v in zip(_SETTINGS, vs, strict=True)} for vs in _combinations(args)]
    layers = [n for x in settings if (n := x["n_gpu_layers"]) is not None]
    print_ignored(args, max(layers, default=None))
    rows = _rows(args, workloads, settings)
    # columns that say something: key and heading
    varied = [(s.key, s.column) for s in _SETTINGS[1:] if {x[s.key] for x in settings} != {s.default}]
    if args.parallel is not None:
        varied.append(("n_parallel", "parallel"))
    {"md": _print_md, "csv": _print_csv, "json": _print_json, "jsonl": _print_jsonl}[args.output](
        rows, varied
    )
    return 0


def _workloads(args: argparse.Namespace) -> list[Workload]:
    """Tests in the order of llama-bench; of parallel sequences in that of llama-batched-bench."""
    prompts, gens = _joined(args.n_prompt, [512]), _joined(args.n_gen, [128])
    found = []
    for depth in _joined(args.n_depth, [0]):
        if args.parallel is not None:
            for pp, tg, n in itertools.product(prompts, gens, _joined(args.parallel, [])):
                found += [Workload(pp, 0, depth, n)] if pp else []
                found += [Workload(0, tg, depth + pp, n)] if tg else []
            continue
        found += [Workload(n, 0, depth) for n in prompts if n]
        found += [Workload(0, n, depth) for n in gens if n]
        found += [Workload(pp, tg, depth) for pp, tg in args.pg]
    found += [Workload(0, tg, pp) for pp, tg in args.gp]
    if any(w.n_parallel < 1 for w in found):
        raise ikq.RefusedError("-np 0: expected 1 or more")
    if not found:
        raise ikq.RefusedError("there is nothing to measure: -p and -n are 0")
    return found


def _joined(lists: list[list[Any]] | None, default: list[Any]) -> list[Any]:
    return default if lists is None else list(itertools.chain.from_iterable(lists))


def _combinations(args: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*(_joined(getattr(args, s.key), [s.default]) for s in _SETTINGS))


def _rows(
    args: argparse.Namespace, workloads: list[Workload], settings: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row per model, setting and test."""
    n_ctx = max(args.ctx_size, *(w.depth + w.n_tokens for w in workloads))
    for path in itertools.chain.from_iterable(names.split(",") for names in args.model):
        facts = _facts(path)
        with ikq.GGUFReader(path) as reader:
            print_unused_rules(args, reader.tensors)
        for setting in settings:
            same = {"compute": args.compute, "expert_reduction": args.smart_expert_reduction}
            n_sequences = max(w.n_parallel for w in workloads)
            wanted = {
                "n_ctx": n_ctx,
                "fit_sequences": n_sequences,
                **same,
                **placement_options(args),
                **setting,
                "lora": tuple(args.lora),
            }
            options = fitted(path, wanted)
            if not options["fit"]:
                names = [options[name] for name in ("devices", "n_gpu_layers", "override_tensor")]
                options |= chosen_devices(*names).keywords
            placing = {name: options[name] for name in _PLACING}
            chosen = {name: options[name] for name in setting}
            with ikq.Model.load(path, **options) as model:
                explained = model.explain()
                placed = {p.device for p in explained.placement}
                facts["backend"] = "CUDA" if any(name.startswith("CUDA") for name in placed) else "CPU"
                memory = {
                    "n_threads": model.n_threads,
                    **model.memory._asdict(),
                    "why_memory": explained.why_memory,
                }
                for workload in workloads:
                    found = bench(model, workload, repetitions=args.repetitions, warm_up=bool(args.warmup))
                    used = workload.depth + workload.n_tokens
                    memory["cache"] = workload.n_parallel * model.sequence_bytes(used)
                    words = {k: v if isinstance(v, bool) else _joined_words(v) for k, v in placing.items()}
                    yield facts | same | words | chosen | memory | _result(found)


def _joined_words(values: Sequence[str | float]) -> str:
    return ",".join(v if isinstance(v, str) else f"{v:g}" for v in values)


def _facts(path: str) -> dict[str, Any]:
    """What a file says about its model."""
    with ikq.GGUFReader(path) as reader:
        tensors = list(reader.tensors.values())
        sizes: dict[str, int] = {}
        for t in tensors:
            name = t.type.name if isinstance(t.type, ikq.QuantType) else str(t.type)
            sizes[name] = sizes.get(name, 0) + t.nbytes
        words = (
            reader.metadata.get("general.architecture", "?"),
            reader.metadata.get("general.size_label", ""),
            max(sizes, key=lambda name: sizes[name], default=""),
        )
        return {
            "model_filename": Path(path).name,
            "model_type": " ".join(str(w) for w in words if w),
            "model_size": sum(t.nbytes for t in tensors),
            "model_n_params": sum(t.size for t in tensors),
            "backend": "CPU",
            "isa": ikq.isa(),
            "version": ikq.__version__,
        }


def _result(found: Timings) -> dict[str, Any]:
    w = found.workload
    return {
        "n_prompt": w.n_prompt,
        "n_gen": w.n_gen,
        "n_depth": w.depth,
        "n_parallel": w.n_parallel,
        "test": w.name,
        "median_ts": round(found.median, 4),
        "stddev_ts": round(found.deviation, 4),
        "min_ts": round(min(found.speeds), 4),
        "max_ts": round(max(found.speeds), 4),
        "samples_s": [round(s, 6) for s in found.seconds],
    }


def _print_md(rows: Iterator[dict[str, Any]], varied: list[tuple[str, str]]) -> None:
    heads = ["model", "size", "params", "backend", "threads", *(head for _, head in varied), "test", "t/s"]
    widths = [30, 10, 10, 7, 7, *(max(7, len(head)) for _, head in varied), 15, 20]
    left = 4  # columns that hold text
    print(_line(heads, widths, left))
    print("|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|")
    # why weights are where they are, and the largest cache
    memory: dict[tuple[str, float], tuple[str, float]] = {}
    for row in rows:
        cells = [
            row["model_type"],
            f"{row['model_size'] / MIB:.2f} MiB"
            if row["model_size"] < 1024 * MIB
            else f"{row['model_size'] / MIB / 1024:.2f} GiB",
            f"{row['model_n_params'] / 1e6:.2f} M"
            if row["model_n_params"] < 1e9
            else f"{row['model_n_params'] / 1e9:.2f} B",
            row["backend"],
            str(row["n_threads"]),
            *(_cell(row[key]) for key, _ in varied),
            row["test"],
            f"{row['median_ts']:.2f} ± {row['stddev_ts']:.2f}",
        ]
        print(_line(cells, widths, left), flush=True)
        mapped, copied, cache = (row[k] / MIB for k in ("mapped", "copied", "cache"))
        # how much memory was free varies, which is not worth a line
        key = (row["model_filename"], mapped + copied)
        memory[key] = (row["why_memory"], max(cache, memory[key][1] if key in memory else 0))
    print("\nt/s: median ± standard deviation")
    for (name, weights), (why, cache) in memory.items():
        print(f"{name}: weights {weights:.1f} MiB, {why}; cache at most {cache:.1f} MiB")


def _line(cells: list[str], widths: list[int], left: int) -> str:
    padded = [
        c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _cell(value: Any) -> str:  # noqa: ANN401  # whatever a setting holds
    return str(int(value)) if isinstance(value, bool) else str(value)


def _print_csv(rows: Iterator[dict[str, Any]], _: list[tuple[str, str]]) -> None:
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row | {"samples_s": ";".join(map(str, row["samples_s"]))})
        sys.stdout.flush()


def _print_json(rows: Iterator[dict[str, Any]], _: list[tuple[str, str]]) -> None:
    print(json.dumps(list(rows), indent=1))


def _print_jsonl(rows: Iterator[dict[str, Any]], _: list[tuple[str, str]]) -> None:
    for row in rows:
        print(json.dumps(row), flush=True)


def _values(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def value(word: str) -> object:
        try:
            return parse(word)
        except (KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"{word!r} is no value of it") from None

    def values(text: str) -> list[Any]:
        return [value(word) for word in text.split(",")]

    return values


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [-1]
    if min(counts) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of tokens joined by commas")
    return counts


def _pair(text: str) -> tuple[int, int]:
    counts = _counts(text)
    if len(counts) != 2 or not all(counts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers of tokens, for example 512,128")
    return counts[0], counts[1]
