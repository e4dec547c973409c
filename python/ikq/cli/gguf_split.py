"""`ikq gguf-split`: one GGUF file into several, or several into one."""

from __future__ import annotations

import argparse
from pathlib import Path

import ikq
from ikq.cli.numbers import at_least, size
from ikq.files import plan_split

NAME = "gguf-split"
ALIASES = ("split", "merge")
HELP = "split a GGUF file, or merge a split set"
EXAMPLES = (
    "ikq gguf-split --split-max-size 4G model.gguf parts",
    "ikq merge parts-00001-of-00002.gguf whole.gguf",
)

_DEFAULT_TENSORS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-gguf-split know."""
    parser.usage = "ikq gguf-split [--split | --merge] [options] GGUF_IN GGUF_OUT"
    parser.description = (
        "Splits a file into OUT-00001-of-0000N.gguf, ... or merges a set (any of its files) into OUT; the "
        "verb `merge` does so without --merge. Outputs appear under their names when they are whole."
    )
    parser.add_argument("source", metavar="GGUF_IN", help="a file, or any file of a split set")
    parser.add_argument("target", metavar="GGUF_OUT", help="the file; for a set what its names begin with")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--split", action="store_true", help="split (default)")
    action.add_argument("--merge", action="store_true", help="merge")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--split-max-tensors",
        type=at_least(1),
        metavar="N",
        help=f"most tensors of a file ({_DEFAULT_TENSORS})",
    )
    limit.add_argument(
        "--split-max-size", type=size, metavar="N(M|G)", help="most bytes of a file, its metadata included"
    )
    parser.add_argument(
        "--no-tensor-first-split", action="store_true", help="only metadata in the first file"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="let --merge replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    with ikq.GGUFReader(args.source) as model:
        merges = args.merge or (args.verb == "merge" and not args.split)
        return _merge(args, model) if merges else _split(args, model)


def _split(args: argparse.Namespace, model: ikq.GGUFReader) -> int:
    max_tensors = args.split_max_tensors
    if max_tensors is None and args.split_max_size is None:
        max_tensors = _DEFAULT_TENSORS
    plan = plan_split(
        model,
        max_bytes=args.split_max_size,
        max_tensors=max_tensors,
        no_tensor_first_split=args.no_tensor_first_split,
    )
    print(f"n_split: {len(plan)}")
    for number, shard in enumerate(plan, 1):
        size = f"{shard.nbytes // 1_000_000}M ({shard.nbytes} bytes)"
        print(f"split {number:05d}: n_tensors = {len(shard.tensors)}, total_size = {size}", flush=True)
    if args.dry_run:
        print("dry run: nothing was written")
        return 0
    writer = ikq.GGUFWriter(
        args.target,
        model.metadata,
        split_max_bytes=args.split_max_size,
        split_max_tensors=max_tensors,
        no_tensor_first_split=args.no_tensor_first_split,
    )
    paths = _written(writer, model)
    print(f"{len(paths)} files written with {len(model.tensors)} tensors: {paths[0]}, ...")
    return 0


def _merge(args: argparse.Namespace, model: ikq.GGUFReader) -> int:
    for option, value in (
        ("--split-max-tensors", args.split_max_tensors),
        ("--split-max-size", args.split_max_size),
        ("--no-tensor-first-split", args.no_tensor_first_split or None),
    ):
        if value is not None:
            raise ikq.RefusedError(f"{option} is for splitting: leave it or --merge out")
    if "split.count" not in model.metadata:
        raise ikq.RefusedError(f"{args.source} belongs to no split set (it has no key split.count)")
    if Path(args.target).exists() and not args.overwrite:
        raise ikq.RefusedError(f"{args.target} exists already: give another name, or --overwrite")
    n = len(model.tensors)
    what = f"{len(model.shards)} files with {n} tensors"
    if args.dry_run:
        print(f"dry run: {what} would become {args.target}; nothing was written")
        return 0
    (path,) = _written(ikq.GGUFWriter(args.target, model.metadata), model)
    print(f"{what} merged: {path}, {path.stat().st_size} bytes")
    return 0


def _written(writer: ikq.GGUFWriter, model: ikq.GGUFReader) -> tuple[Path, ...]:
    writer.add_tensors(model.tensors)
    return writer.close()
