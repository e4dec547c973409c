"""Options of verbs that run a model: which, on what, and flags of other builds that have no effect here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import ikq

__all__ = ["add_ignored", "add_loading", "load_options", "override", "print_ignored", "reduction"]

_GPU = "this build computes on the CPU"
_UNNEEDED = "not needed, ikq decides this by itself"
_ABSENT = "not offered"

# Flags that commands made for other programs carry: how many values follow, and why they have no effect.
_IGNORED: list[tuple[tuple[str, ...], str | int | None, str]] = [
    (("-ngl", "--gpu-layers", "--n-gpu-layers"), None, _GPU),
    (("-ot", "--override-tensor"), None, _GPU),
    (("-cmoe", "--cpu-moe"), 0, _GPU),
    (("-ncmoe", "--n-cpu-moe"), None, _GPU),
    (("-sm", "--split-mode"), None, _GPU),
    (("-ts", "--tensor-split"), None, _GPU),
    (("-mg", "--main-gpu"), None, _GPU),
    (("-nkvo", "--no-kv-offload"), 0, _GPU),
    (("-dev", "--device"), None, _GPU),
    (("--fit",), "?", _GPU),
    (("--fit-margin",), None, _GPU),
    (("-fa", "--flash-attn"), "?", _UNNEEDED),
    (("-mqkv", "--merge-qkv"), 0, _UNNEEDED),
    (("-mla", "--mla-use"), None, _UNNEEDED),
    (("-amb", "--attention-max-batch"), None, _UNNEEDED),
    (("-thp", "--transparent-huge-pages"), 0, _UNNEEDED),
    (("-gr", "--graph-reuse"), 0, _UNNEEDED),
    (("-no-gr", "--no-graph-reuse"), 0, _UNNEEDED),
    (("-vq", "--validate-quants"), 0, _UNNEEDED),
    (("--no-warmup",), 0, _UNNEEDED),
    (("--jinja",), 0, _UNNEEDED),
    (("-no-fa", "--no-flash-attn"), 0, _ABSENT),
    (("--mlock",), 0, _ABSENT),
    (("--numa",), None, _ABSENT),
    (("-khad", "--k-cache-hadamard"), 0, _ABSENT),
]


class _Ignore(argparse.Action):
    """Remembers a flag as it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        # argparse gives `const` where an optional value is missing
        has_value = isinstance(values, str) and values != self.const
        text = f"{option_string} {values}" if has_value else str(option_string)
        namespace.ignored = [*namespace.ignored, (text, self.const)]


def add_ignored(parser: argparse.ArgumentParser, *, switches_have_values: bool = False) -> None:
    """Accepts flags of other programs; in llama-bench a switch is followed by 0 or 1."""
    parser.set_defaults(ignored=[])
    for names, n_values, why in _IGNORED:
        takes = "?" if switches_have_values and n_values == 0 else n_values
        parser.add_argument(
            *names, nargs=takes, action=_Ignore, const=why, dest="ignored", help=argparse.SUPPRESS
        )


def print_ignored(args: argparse.Namespace) -> None:
    """One line on standard error for each reason why flags have no effect."""
    for why in dict.fromkeys(why for _, why in args.ignored):
        flags = ", ".join(text for text, reason in args.ignored if reason == why)
        print(f"note: {flags} ignored: {why}", file=sys.stderr)
    threads = getattr(args, "threads", None)
    if getattr(args, "threads_batch", None) not in (None, threads):
        print("note: -tb ignored: one set of threads (-t) does both prompt and generation", file=sys.stderr)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Options of `Model.load`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="positions of the cache; 0: as trained"
    )
    group.add_argument("-t", "--threads", type=int, metavar="N", help="threads; one per CPU unless given")
    group.add_argument("-tb", "--threads-batch", type=int, metavar="N", help=argparse.SUPPRESS)
    group.add_argument("-b", "--batch-size", type=int, metavar="N", help="limits -ub")
    group.add_argument("-ub", "--ubatch-size", type=int, default=512, metavar="N", help="most tokens at once")
    group.add_argument(
        "-ctk", "--cache-type-k", default="f16", metavar="TYPE", help="type of cached keys (f16)"
    )
    group.add_argument(
        "-ctv", "--cache-type-v", default="f16", metavar="TYPE", help="type of cached values (f16)"
    )
    group.add_argument(
        "-fmoe",
        "--fused-moe",
        action="store_true",
        default=True,
        help="one pass for up and gate experts (default)",
    )
    group.add_argument(
        "-no-fmoe", "--no-fused-moe", dest="fused_moe", action="store_false", help="two passes"
    )
    group.add_argument("-no-fug", "--no-fused-up-gate", action="store_true", help="two passes everywhere")
    group.add_argument(
        "-muge", "--merge-up-gate-experts", action="store_true", help="up and gate as one matrix; a view"
    )
    group.add_argument(
        "-ser",
        "--smart-expert-reduction",
        type=reduction,
        metavar="K,T",
        help="drop experts after the first K whose weight is below T times the largest",
    )
    group.add_argument(
        "--no-mmap", dest="mmap", action="store_const", const="off", default="auto", help="copy weights"
    )
    group.add_argument(
        "--mmap",
        nargs="?",
        choices=("auto", "on", "off"),
        const="on",
        default="auto",
        help="auto: copy to huge pages if memory allows",
    )
    group.add_argument(
        "-rtr",
        "--run-time-repack",
        action="store_true",
        help="interleave rows while loading (copies; no faster here, for comparison)",
    )
    group.add_argument(
        "--compute", choices=("auto", "f32"), default="auto", help="f32: exact products, slow (auto)"
    )
    group.add_argument(
        "--override-kv",
        action="append",
        default=[],
        type=override,
        metavar="KEY=TYPE:VALUE",
        help="metadata to read instead of the file's; TYPE is int, float, bool or str; may be repeated",
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Model.load`."""
    n_ubatch = args.ubatch_size if args.batch_size is None else min(args.ubatch_size, args.batch_size)
    for option, value, low in (("-c", args.ctx_size, 0), ("-t", args.threads, 1), ("-ub", n_ubatch, 1)):
        if value is not None and value < low:
            raise ikq.RefusedError(f"{option} {value}: expected {low} or more")
    return {
        "n_ctx": args.ctx_size or None,
        "n_threads": args.threads,
        "n_ubatch": n_ubatch,
        "cache_type_k": args.cache_type_k.lower(),
        "cache_type_v": args.cache_type_v.lower(),
        "compute": args.compute,
        "fused_up_gate": not args.no_fused_up_gate,
        "fused_moe": args.fused_moe,
        "merge_up_gate_experts": args.merge_up_gate_experts,
        "expert_reduction": args.smart_expert_reduction,
        "mmap": args.mmap,
        "repack": args.run_time_repack,
        "override_kv": dict(args.override_kv),
    }


def reduction(text: str) -> tuple[int, float]:
    """The numbers of `K,T`."""
    k, _, t = text.partition(",")
    try:
        return int(k), float(t)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K,T, for example 6,0.4") from None


def override(text: str) -> tuple[str, bool | int | float | str]:
    """Key and value of `KEY=TYPE:VALUE`."""
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    try:
        if not (key and equals and colon):
            raise ValueError
        if kind == "bool":
            return key, {"true": True, "false": False}[value]
        return key, {"int": int, "float": float, "str": str}[kind](value)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KEY=TYPE:VALUE, TYPE being int, float, bool (true, false) or str"
        ) from None
