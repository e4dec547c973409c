"""`ikq info`: this machine as ikq sees it, and a self-test of every kernel."""

from __future__ import annotations

import argparse
import json
import os
import platform

import ikq
from ikq import cuda
from ikq.cli.gpu_lines import gpu_lines
from ikq.speed import kernels

NAME = "info"
HELP = "show CPU features, GPUs and the kernel of every type, and test each"
EXAMPLES = (
    "ikq info",
    "ikq info --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Shows the instruction sets and GPUs of this machine, what runs, and the kernels of every tensor "
        "type, each tested on random weights against sums in float64. Exit code 1 when one fails."
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types to show; all unless given")
    parser.add_argument("--no-self-test", action="store_true", help="only show")
    parser.add_argument("--json", action="store_true", help="a JSON object for programs")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when a kernel fails its test."""
    types = [ikq.QuantType(name) for name in args.types]
    types = types or [t for t in ikq.QuantType if t.is_storable]
    how = {t: kernels.kernel(t) for t in types}
    shares = {} if args.no_self_test else {t: kernels.self_test(t) for t in types}
    machine = {
        "version": ikq.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": list(ikq.available_isas()),
        "in_use": ikq.isa(),
    }
    gpus = cuda.status()
    if args.json:
        rows = [{"type": t.name, "kernel": how[t], "error": shares.get(t)} for t in types]
        print(json.dumps(machine | {"gpus": gpus, "kernels": rows}, default=str, indent=1))
    else:
        for key, value in machine.items():
            print(f"{key.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
        print("\n".join(gpu_lines(gpus)))
        width = max(map(len, how.values()), default=0)
        for t in types:
            print(f"{t.name:<12} {how[t]:<{width}}  {_verdict(shares.get(t))}".rstrip())
    return 1 if any(share > 1 for share in shares.values()) else 0


def _verdict(share: float | None) -> str:
    """Words for an error as a share of its bound."""
    if share is None:
        return ""
    return f"{'passed' if share <= 1 else 'FAILED'}, largest error {share:.0%} of what rounding explains"
