"""Options of verbs that run a model: which, on what, and flags of other builds that have no effect here."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import ikq
from ikq import _ikq, cuda
from ikq.cli.lora_options import add_lora
from ikq.cli.numbers import whole_number
from ikq.inference.devices import ALL_LAYERS
from ikq.inference.explaining import LoadingPlan
from ikq.inference.fitting import MARGIN
from ikq.inference.memory import available_memory
from ikq.inference.model import PLANNED

__all__ = [
    "CPU_MOE_LAYERS",
    "GPU_LAYERS",
    "Ignore",
    "add_ignored",
    "add_loading",
    "add_placement",
    "draft_placement",
    "fitted",
    "load_options",
    "n_layers",
    "override",
    "placement_options",
    "print_assumed",
    "print_ignored",
    "print_shortages",
    "print_unused_rules",
    "reduction",
    "shares",
]

_GPU = "not offered for GPUs yet"
_UNNEEDED = "not needed, ikq decides this by itself"
_ABSENT = "not offered"
_REARRANGED = "weights are re-arranged while loading in any case"

# Flags that commands made for other programs carry: how many values follow, and why they have no effect.
_IGNORED: list[tuple[tuple[str, ...], str | int | None, str]] = [
    (("-sm", "--split-mode"), None, _GPU),
    (("-mg", "--main-gpu"), None, _GPU),
    (("-fa", "--flash-attn"), "?", _UNNEEDED),
    (("-mqkv", "--merge-qkv"), 0, _UNNEEDED),
    (("-mla", "--mla-use"), None, _UNNEEDED),
    (("-amb", "--attention-max-batch"), None, _UNNEEDED),
    (("-thp", "--transparent-huge-pages"), 0, _UNNEEDED),
    (("-gr", "--graph-reuse"), 0, _UNNEEDED),
    (("-no-gr", "--no-graph-reuse"), 0, _UNNEEDED),
    (("-vq", "--validate-quants"), 0, _UNNEEDED),
    (("-rtr", "--run-time-repack"), 0, _REARRANGED),
    (("--no-warmup",), 0, _UNNEEDED),
    (("--jinja",), 0, _UNNEEDED),
    (("-no-fa", "--no-flash-attn"), 0, _ABSENT),
    (("--mlock",), 0, _ABSENT),
    (("--numa",), None, _ABSENT),
    (("-khad", "--k-cache-hadamard"), 0, _UNNEEDED),
]


class Ignore(argparse.Action):
    """Remembers a flag as it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
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
            *names, nargs=takes, action=Ignore, const=why, dest="ignored", help=argparse.SUPPRESS
        )


def print_ignored(args: argparse.Namespace, n_gpu_layers: int | None = None) -> None:
    """One line on standard error for each reason why flags have no effect.

    Args:
        args: Parsed arguments.
        n_gpu_layers: What they say, where that may be several numbers.

    Raises:
        DeviceError: layers are to go to a GPU, there is none to use, and the CPU may not take them.
    """
    for why in dict.fromkeys(why for _, why in args.ignored):
        flags = ", ".join(text for text, reason in args.ignored if reason == why)
        print(f"note: {flags} ignored: {why}", file=sys.stderr)
    threads = getattr(args, "threads", None)
    if getattr(args, "threads_batch", None) not in (None, threads):
        print("note: -tb ignored: one set of threads (-t) does both prompt and generation", file=sys.stderr)
    n = args.n_gpu_layers if n_gpu_layers is None else n_gpu_layers
    named = None if args.device is None else _named(args.device)
    is_cpu = named == ["CPU"]
    if args.tensor_split and not args.fit and (is_cpu or not (n or (n is None and named is not None))):
        print("note: -ts ignored: it divides the layers of -ngl, and there are none", file=sys.stderr)
    option = "--fit" if args.fit else "-ngl"
    if (args.fit or n) and is_cpu:
        print(f"note: {option} ignored: -dev {args.device} is the CPU alone", file=sys.stderr)
    elif (args.fit or n) and named is None:
        _note_without_gpu(args, option)
    elif named is not None and _falls_back(args, named):
        _note_without_gpu(args, f"-dev {args.device}")


def _note_without_gpu(args: argparse.Namespace, option: str) -> None:
    """One line on standard error where an option wants GPUs, and none can be used.

    Raises:
        DeviceError: the CPU may not take the layers.
    """
    if cuda.usable_devices(memory=False):
        return
    reason = f"no GPU is usable: {cuda.status(memory=False)['reason']}"
    if not args.fallback_cpu:
        ways = "--fallback-cpu runs all layers on the CPU"
        if getattr(args, "dry_run", False) and not args.fit:
            ways += "; -dev CUDA0 plans for a GPU that is not there"
        raise ikq.DeviceError(f"{option}: {reason}; {ways}")
    print(f"note: {option}: {reason}; all layers run on the CPU", file=sys.stderr)


def print_assumed(plan: LoadingPlan) -> None:
    """One line on standard error for the GPUs of a plan that are not there."""
    parts = [part for part in (plan, plan.mtp, plan.draft_model) if part is not None]
    names = dict.fromkeys(name for part in parts for name in part.assumed)
    if names:
        reason = f"no GPU is usable: {cuda.status(memory=False)['reason']}"
        text = f"the plan takes {', '.join(names)} to be there, with memory for all that goes there"
        print(f"note: {text}: {reason}", file=sys.stderr)


def print_shortages(plan: LoadingPlan) -> None:
    """One line on standard error for each device whose free memory a plan does not fit."""
    parts = [part for part in (plan, plan.mtp, plan.draft_model) if part is not None]
    free = {name: gpu["free_bytes"] for name, gpu in cuda.usable_devices().items()}
    # weights of the CPU may stay in the file's mapping
    free["CPU"] = available_memory()
    for name, n_free in free.items():
        sizes = [part.caches.get(name, 0) for part in parts]
        if name != "CPU":
            sizes += [part.weights.get(name, 0) + part.buffers.get(name, 0) for part in parts]
        if n_free is not None and sum(sizes) > n_free:
            ways = "a smaller context (-c)"
            if name != "CPU":
                ways += ", fewer layers (-ngl) or experts there (--n-cpu-moe), or --fit"
            taken = (
                f"{sum(sizes) / 2**20:.1f} MiB are planned for {name}, and {n_free / 2**20:.1f} MiB are free"
            )
            print(f"note: it does not fit: {taken}; {ways} would help", file=sys.stderr)


def print_unused_rules(args: argparse.Namespace, names: Iterable[str]) -> None:
    """One line on standard error for each rule of `-ot` that fits none of these tensors."""
    names = list(names)
    rules = [rule.partition("=")[0] for text in args.override_tensor for rule in text.split(",")]
    for pattern in rules:
        try:
            is_used = any(re.search(pattern, name) for name in names)
        except re.error:  # the core has its own word on that
            continue
        if not is_used:
            print(f"note: -ot {pattern}: no tensor has such a name", file=sys.stderr)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Options of `Model.load`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-c", "--ctx-size", type=whole_number, metavar="N", help="most positions of a text; 0: as trained"
    )
    group.add_argument(
        "-t", "--threads", type=whole_number, metavar="N", help="threads; one per CPU unless given"
    )
    group.add_argument("-tb", "--threads-batch", type=whole_number, metavar="N", help=argparse.SUPPRESS)
    group.add_argument("-b", "--batch-size", type=whole_number, metavar="N", help="limits -ub")
    group.add_argument(
        "-ub", "--ubatch-size", type=whole_number, default=512, metavar="N", help="most tokens at once"
    )
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
    add_lora(group)
    add_placement(group)
    group.add_argument(*GPU_LAYERS, dest="n_gpu_layers", type=n_layers, metavar="N", help=GPU_LAYERS_HELP)
    group.add_argument(*CPU_MOE_LAYERS, type=whole_number, default=0, metavar="N", help=CPU_MOE_LAYERS_HELP)


GPU_LAYERS = ("-ngl", "--gpu-layers", "--n-gpu-layers")
GPU_LAYERS_HELP = (
    "the last N layers go to GPUs, or to what -dev names; more than there are, or all: the output too "
    "(all with -dev, else 0)"
)
CPU_MOE_LAYERS = ("-ncmoe", "--n-cpu-moe")
CPU_MOE_LAYERS_HELP = "experts of the first N layers that have any stay on the CPU"


def add_placement(group: argparse._ActionsContainer, *, switches_have_values: bool = False) -> None:
    """Options of `Model.load` that say what is computed where and how caches are, but for numbers of layers.

    Args:
        group: A parser, or a group of its options.
        switches_have_values: A switch may be followed by 0 or 1.
    """

    def switch(*names: str, help: str) -> None:
        if switches_have_values:
            group.add_argument(*names, nargs="?", type=_zero_or_one, const=True, default=False, help=help)
        else:
            group.add_argument(*names, action="store_true", help=help)

    group.add_argument(
        "-dev",
        "--device",
        metavar="NAME,...",
        help="what layers go to, all of them unless -ngl is given: CUDA0, ... are GPUs; CPU1, ... the CPU "
        "again, with memory of its own; CPU or none: the CPU alone (with -ngl all GPUs, else the CPU)",
    )
    group.add_argument(
        "-ts",
        "--tensor-split",
        type=shares,
        default=[],
        metavar="N,...",
        help="with several GPUs the proportions in which they share the layers of -ngl, in order of -dev (by "
        "free memory)",
    )
    group.add_argument(
        "-ot",
        "--override-tensor",
        action="append",
        default=[],
        metavar="REGEX=NAME,...",
        help="tensors in whose names REGEX is found go to that device, which -dev need not name; the first "
        "rule that fits holds",
    )
    group.add_argument(
        "--fit",
        nargs="?",
        type=_on_or_off,
        const=True,
        default=False,
        metavar="on|off",
        help="as much goes to GPUs as their free memory holds with the cache of -c (with -ngl at most so "
        "many layers), the last experts last; prints options that say the same; not with -ot, -ts, -cmoe and "
        "-ncmoe",
    )
    group.add_argument(
        "--fit-margin",
        type=whole_number,
        default=MARGIN,
        metavar="MIB",
        help=f"memory of each GPU that --fit leaves free ({MARGIN})",
    )
    switch("--fallback-cpu", help="where no GPU is usable, layers of -dev, -ngl or --fit run on the CPU")
    switch("-cmoe", "--cpu-moe", help="all experts stay on the CPU")
    switch("-nkvo", "--no-kv-offload", help="the cache stays in RAM, and the CPU computes attention")
    switch("--no-cache-rotation", help="cache types of 6 bits or less as they are, not rotated")
    switch("--swa-full", help="keep keys and values behind sliding windows")


def placement_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_placement` added, as keywords of `Model.load`.

    Raises:
        RefusedError: options do not go together.
    """
    layers = args.n_cpu_moe if isinstance(args.n_cpu_moe, list) else [args.n_cpu_moe]
    if args.fit and (args.override_tensor or args.tensor_split or args.cpu_moe or any(layers)):
        raise ikq.RefusedError(
            "--fit decides what goes where, and so do -ot, -ts, --cpu-moe and --n-cpu-moe: leave out either"
        )
    if args.fit_margin < 0:
        raise ikq.RefusedError(f"--fit-margin {args.fit_margin}: expected 0 or more")
    devices = _devices(args)
    return {
        "devices": devices,
        # where there is no GPU, `print_ignored` has its word
        "fit": args.fit and devices != ["CPU"],
        "fit_margin": args.fit_margin,
        # where no layers go anywhere there is nothing to divide
        "tensor_split": args.tensor_split if _has_layers(args, devices) else [],
        "override_tensor": args.override_tensor,
        "cpu_moe": args.cpu_moe,
        "kv_offload": not args.no_kv_offload,
        "cache_rotation": not args.no_cache_rotation,
        "swa_full": args.swa_full,
    }


def _has_layers(args: argparse.Namespace, devices: list[str] | None) -> bool:
    """Whether layers may go to devices beside the CPU."""
    return devices != ["CPU"] and (devices is not None or _wants_gpu(args))


def _wants_gpu(args: argparse.Namespace) -> bool:
    """Whether layers are to go to GPUs; a verb may have lists of several numbers."""
    n = args.n_gpu_layers
    return bool(args.fit or (any(map(any, n)) if isinstance(n, list) else n))


def fitted(path: str | os.PathLike[str], options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `Model.load` without `fit`: what it chooses for a file is found out, and printed.

    Raises:
        OSError, IkqError: as `Model.plan`.
    """
    if not options["fit"]:
        return options
    plan = ikq.Model.plan(path, **{name: options[name] for name in PLANNED if name in options})
    assert plan.fitted is not None
    print(f"note: --fit: {plan.fitted.sentence}", file=sys.stderr)
    return options | plan.fitted.keywords


def draft_placement(args: argparse.Namespace) -> dict[str, Any]:
    """What is computed where of a draft model, as keywords of `Model.load`: none where nothing is asked for.

    Raises:
        DeviceError: layers are to go to a GPU, there is none to use, and the CPU may not take them.
    """
    n, names = args.n_gpu_layers_draft, args.device_draft
    if n is None and names is None:
        return {}
    text = args.device if names is None else names
    named = None if text is None else _named(text)
    if n == 0 or named == ["CPU"]:
        return {"devices": ["CPU"], "n_gpu_layers": 0}
    if named is None:
        _note_without_gpu(args, "-ngld")
        named = ["CPU", *cuda.usable_devices(memory=False)]
    return {"devices": named, "n_gpu_layers": ALL_LAYERS if n is None else n}


def _devices(args: argparse.Namespace) -> list[str] | None:
    """Names of devices; `None` where none are named. The CPU, where GPUs are wanted and none is usable."""
    if args.device is not None:
        named = _named(args.device)
        return ["CPU"] if _falls_back(args, named) else named
    return ["CPU"] if _wants_gpu(args) and not cuda.usable_devices(memory=False) else None


def _falls_back(args: argparse.Namespace, named: Sequence[str]) -> bool:
    """Whether the CPU takes what GPUs that are named would compute: none is usable, and it may."""
    is_gpu = any(name.startswith("CUDA") for name in named)
    return bool(args.fallback_cpu and is_gpu and not cuda.usable_devices(memory=False))


def _named(text: str) -> list[str]:
    """Names of devices, the CPU first."""
    return _ikq.named_devices([name for name in text.split(",") if name.strip()], [])


def n_layers(text: str) -> int:
    """A number of layers; `all`, `auto` and negative ones mean more than there are."""
    try:
        n = -1 if text in ("all", "auto") else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of layers, or all") from None
    return min(n, ALL_LAYERS) if n >= 0 else ALL_LAYERS


def _zero_or_one(text: str) -> bool:
    try:
        return {"0": False, "1": True}[text]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or 1") from None


def _on_or_off(text: str) -> bool:
    try:
        return {"off": False, "on": True, "0": False, "1": True}[text]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected on or off") from None


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Model.load`."""
    n_ubatch = args.ubatch_size if args.batch_size is None else min(args.ubatch_size, args.batch_size)
    for option, value, low in (
        ("-c", args.ctx_size, 0),
        ("-t", args.threads, 1),
        ("-ub", n_ubatch, 1),
        ("-ncmoe", args.n_cpu_moe, 0),
    ):
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
        "n_gpu_layers": args.n_gpu_layers,
        "n_cpu_moe": args.n_cpu_moe,
        **placement_options(args),
        "fit_sequences": 1,
        "override_kv": dict(args.override_kv),
        "lora": tuple(args.lora),
        **_drafts(args),
    }


def _drafts(args: argparse.Namespace) -> dict[str, Any]:
    """What drafts, as keywords of `Model.load`; nothing where a verb has no such options."""
    if getattr(args, "draft_model", None) is not None:
        return {"draft_model": args.draft_model, "draft_options": draft_placement(args)}
    return {"mtp": True} if getattr(args, "mtp", False) else {}


def reduction(text: str) -> tuple[int, float]:
    """The numbers of `K,T`."""
    k, _, t = text.partition(",")
    try:
        return int(k), float(t)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K,T, for example 6,0.4") from None


def shares(text: str) -> list[float]:
    """The numbers of `N,...`, which may be separated by slashes, too."""
    try:
        found = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        found = []
    if not any(found) or not all(0 <= share < math.inf for share in found):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers joined by commas, such as 3,1, each 0 or more and some above 0"
        )
    return found


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
