"""`ikq cuda`: the GPUs of this machine, and kernels compiled ahead of use."""

from __future__ import annotations

import argparse
import json
import time

import ikq
from ikq import cuda
from ikq.cli.gpu_lines import gpu_lines

NAME = "cuda"
HELP = "show what GPUs can be used, or compile a model's kernels ahead of use"
EXAMPLES = (
    "ikq cuda",
    "ikq cuda warm model.gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Shows the NVIDIA GPUs of this machine, or why none is usable and how to get one. `warm` compiles "
        "the kernels that a model needs, which otherwise happens when it is loaded first."
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    status = actions.add_parser("status", help="show what can be used (default)", allow_abbrev=False)
    status.add_argument("--json", action="store_true", help="a JSON object for programs")
    warm = actions.add_parser("warm", help="compile the kernels that a model needs", allow_abbrev=False)
    warm.add_argument("model", metavar="MODEL", help="a GGUF file, or any shard of a split set")
    warm.add_argument(
        "--arch",
        action="append",
        metavar="sm_XY",
        help="an architecture, here or not, such as sm_90 or 90; may be repeated; unless given, those of "
        "this machine",
    )
    parser.set_defaults(json=False)


def run(args: argparse.Namespace) -> int:
    """Prints what there is: exit code 1 when no GPU is usable. Or compiles."""
    if args.action == "warm":
        return _warm(args)
    found = cuda.status()
    if args.json:
        print(json.dumps(found, default=str, indent=1))
    else:
        print("\n".join(gpu_lines(found)))
    return 0 if found["usable"] else 1


def _warm(args: argparse.Namespace) -> int:
    with ikq.GGUFReader(args.model) as reader:
        types = sorted({t.type for t in reader.tensors.values() if len(t.shape) > 1})
    # all are read before anything is compiled, which takes long
    archs = [cuda.architecture(text) for text in args.arch] if args.arch else cuda.architectures()
    for arch in dict.fromkeys(archs):
        start, n_compiled = time.perf_counter(), 0
        for name, was_there in cuda.warm(types, arch):
            n_compiled += not was_there
            print(f"{arch} {name}: {'was there' if was_there else 'compiled'}")
        print(f"{arch}: {n_compiled} compiled in {time.perf_counter() - start:.1f} s")
    return 0
