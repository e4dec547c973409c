"""`ikq gguf-dump`: metadata and tensors of a GGUF file."""

from __future__ import annotations

import argparse
import json
from typing import Any

import ikq

NAME = "gguf-dump"
HELP = "show metadata and tensors of a GGUF file"
EXAMPLES = (
    "ikq gguf-dump model.gguf",
    "ikq gguf-dump --no-metadata model.gguf",
)

_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = "Shows metadata and tensors of a GGUF file; a split set (any of its files) as one."
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument("--json", action="store_true", help="for programs; arrays are written in full")
    parser.add_argument("--no-metadata", action="store_true", help="tensors only")
    parser.add_argument("--no-tensors", action="store_true", help="metadata only")


def run(args: argparse.Namespace) -> int:
    """Prints the contents."""
    with ikq.GGUFReader(args.file) as model:
        tensors = [] if args.no_tensors else list(model.tensors.values())
        if args.json:
            print(json.dumps(_plain(model, tensors), default=_text))
            return 0
        for shard in model.shards:
            print(f"{shard.path}: version {shard.version}, {shard.n_tensors} tensors, {shard.nbytes} bytes")
        for key in () if args.no_metadata else model.metadata:
            print(f"{key}: {model.metadata.type_of(key)} = {_short(model.metadata[key])}")
        if tensors:
            _print_table(tensors)
    return 0


def _print_table(tensors: list[ikq.QTensor]) -> None:
    """Names, types, shapes and sizes in columns, then the sum."""
    n_bytes, n_weights = sum(t.nbytes for t in tensors), sum(t.size for t in tensors)
    rows = [(t.name or "", _type_name(t), _shape(t), t.nbytes, t.size) for t in tensors]
    rows.append((f"{len(tensors)} tensors", "", "", n_bytes, n_weights))
    width = max(len(name) for name, *_ in rows)
    shapes = max(len(shape) for _, _, shape, _, _ in rows)
    types = max(len(type_name) for _, type_name, _, _, _ in rows)
    for name, type_name, shape, size, n in rows:
        bits = f"{8 * size / n:8.4f}" if n else " " * 8
        print(
            f"{name:<{width}}  {type_name:<{types}}  {shape:>{shapes}}  {size:>12} bytes {bits} bits/weight"
        )


def _plain(model: ikq.GGUFReader, tensors: list[ikq.QTensor]) -> dict[str, Any]:
    m = model.metadata
    return {
        "shards": [s._asdict() for s in model.shards],
        "metadata": {k: {"type": m.type_of(k), "value": m[k]} for k in m},
        "tensors": [
            {"name": t.name, "type": _type_name(t), "shape": t.shape, "nbytes": t.nbytes} for t in tensors
        ],
    }


def _type_name(t: ikq.QTensor) -> str:
    return str(t.type).lower() if isinstance(t.type, ikq.QuantType) else f"unknown type {t.type}"


def _shape(t: ikq.QTensor) -> str:
    """As ggml prints it: the elements of a row first."""
    return " x ".join(str(n) for n in reversed(t.shape))


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"[{', '.join(map(repr, value[:_SHOWN]))}, ... {len(value)} in all]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
