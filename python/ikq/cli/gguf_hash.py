"""`ikq gguf-hash`: hashes of a file's tensors."""

from __future__ import annotations

import argparse
from collections import Counter

import ikq
from ikq.files import check_manifest, hash_file
from ikq.files.hashing import KINDS

NAME = "gguf-hash"
HELP = "hash tensor data, or check it against a manifest"
EXAMPLES = (
    "ikq gguf-hash --all model.gguf > manifest",
    "ikq gguf-hash --check manifest model.gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-gguf-hash know."""
    parser.description = (
        "Prints a hash of every tensor's data and one of all, in the lines of llama-gguf-hash; metadata do "
        "not count, and a split set (any of its files) has the hashes of the whole file."
    )
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument("--sha256", action="append_const", dest="kinds", const="sha256", help="(default)")
    parser.add_argument("--sha1", action="append_const", dest="kinds", const="sha1")
    parser.add_argument(
        "--uuid", action="append_const", dest="kinds", const="uuid", help="an id made from all tensor data"
    )
    parser.add_argument(
        "--all", action="store_const", dest="kinds", const=list(KINDS[:2]), help="--sha256 --sha1"
    )
    parser.add_argument("--no-layer", action="store_true", help="only the hash of all tensors together")
    parser.add_argument(
        "-c",
        "--check",
        metavar="FILE",
        help="compare with a manifest: what this verb or llama-gguf-hash wrote",
    )


def run(args: argparse.Namespace) -> int:
    """Prints hashes, or what is different: exit code 1 then."""
    kinds = [k for k in KINDS if k in args.kinds] if args.kinds else None
    with ikq.GGUFReader(args.file) as model:
        if not args.check:
            for found in hash_file(model, kinds or ["sha256"], per_tensor=not args.no_layer):
                print(found.line(args.file), flush=True)
            return 0
        results: Counter[str] = Counter()
        for checked in check_manifest(model, args.file, args.check, kinds):
            results[checked.result] += 1
            print(f"{checked.hash.line(args.file)}  -  {checked.result}", flush=True)
    is_same = set(results) == {"Ok"}
    print(f"\nVerification results for {args.check} - {'Success' if is_same else 'Failure'}")
    return 0 if is_same else 1
