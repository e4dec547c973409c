"""`ikq info`: this machine as ikq sees it, and a self-test of every kernel."""

from __future__ import annotations

import argparse
import json
import os
import platform

import ikq
from ikq import kernels

NAME = "info"
HELP = "show CPU features and the kernel of every type, and test each against scalar arithmetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Shows the instruction sets of this machine, which one runs, and the kernels of every tensor type, "
        "each tested on random weights against scalar arithmetic. Exit code 1 when one fails."
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types to show; all unless given")
    parser.add_argument("--no-self-test", action="store_true", help="only show")
    parser.add_argument("--json", action="store_true", help="a JSON object for programs")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when a kernel fails its test."""
    types = [ikq.QuantType(name) for name in args.types]
    found = [kernels.kernel(t) for t in types or [t for t in ikq.QuantType if t.is_storable]]
    tests = {k.type: None if args.no_self_test else (kernels.self_test(k.type) or "passed") for k in found}
    machine = {
        "version": ikq.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": list(ikq.available_isas()),
        "in_use": ikq.isa(),
    }
    if args.json:
        rows = [{"type": k.type.name, "few": k.few, "many": k.many, "test": tests[k.type]} for k in found]
        print(json.dumps(machine | {"kernels": rows}, indent=1))
    else:
        for key, value in machine.items():
            print(f"{key.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
        width = max((len(k.few) for k in found), default=0)
        wide = max((len(k.many) for k in found), default=0)
        for k in found:
            print(f"{k.type.name:<12} {k.few:<{width}}  {k.many:<{wide}}  {tests[k.type] or '-'}")
    failed = [t.name for t, result in tests.items() if result not in (None, "passed")]
    return 1 if failed else 0
