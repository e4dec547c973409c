"""`ikq gguf-dump`: metadata and tensors of a GGUF file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import ikq

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_SHOWN = 8


def add_parser(verbs: Verbs) -> argparse.ArgumentParser:
    """Describes the verb."""
    parser = verbs.add_parser(
        "gguf-dump",
        help="show metadata and tensors of a GGUF file",
        description="Shows metadata and tensors of a GGUF file; a split set (any of its files) as one.",
    )
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument("--json", action="store_true", help="for programs; arrays are written in full")
    parser.add_argument("--no-tensors", action="store_true", help="metadata only")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Prints the contents."""
    with ikq.GGUFReader(arguments.file) as model:
        tensors = [] if arguments.no_tensors else list(model.tensors.values())
        if arguments.json:
            print(json.dumps(_plain(model, tensors), default=_text))
            return
        for shard in model.shards:
            print(f"{shard.path}: version {shard.version}, {shard.n_tensors} tensors, {shard.nbytes} bytes")
        for key in model.metadata:
            print(f"{key}: {model.metadata.type_of(key)} = {_short(model.metadata[key])}")
        for i, t in enumerate(tensors, 1):
            print(f"[{i:4}/{len(tensors):4}] {t.name} - {_shape(t)}, type = {_type_name(t)}, {t.nbytes} bytes")


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


def _shape(t: ikq.QTensor) -> list[int]:
    """As ggml prints it: the elements of a row first."""
    return list(reversed(t.shape))


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"[{', '.join(map(repr, value[:_SHOWN]))}, ... {len(value)} in all]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
