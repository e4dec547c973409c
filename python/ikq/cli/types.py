"""`ikq types`: every tensor type with its facts."""

from __future__ import annotations

import argparse
import json
from typing import Any

import ikq

NAME = "types"
HELP = "list every tensor type with its facts"
EXAMPLES = (
    "ikq types",
    "ikq types --json",
)

_COLUMNS = {
    "type": "name",
    "id": "id",
    "bpw": "bpw",
    "block": "block_size",
    "bytes": "block_bytes",
    "header": "row_header_bytes",
    "rows": "rows",
    "family": "family",
    "imatrix": "imatrix",
    "fallback": "fallback",
    "base": "base",
    "written": "can_encode",
    "known to": "known_to",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Lists every tensor type with its facts. `block` counts elements, `bytes` is the size of a block, "
        "`header` the bytes in front of each row, `rows` the rows stored together; `fallback` is used for "
        "rows that no block fits; `written` says whether this version can quantize to the type."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="types to list; all unless given")
    parser.add_argument("--json", action="store_true", help="a JSON list for programs")


def facts(type: ikq.QuantType) -> dict[str, Any]:
    """The facts of a type as plain values."""
    return {
        "name": type.name,
        "id": type.id,
        "bpw": type.bpw,
        "block_size": type.block_size,
        "block_bytes": type.block_bytes,
        "row_header_bytes": type.row_header_bytes,
        "rows": type.rows,
        "family": type.family,
        "imatrix": type.imatrix,
        "needs_imatrix": type.needs_imatrix,
        "fallback": None if type.fallback is None else type.fallback.name,
        "base": None if type.base is None else type.base.name,
        "activation": None if type.activation is None else type.activation.name,
        "is_storable": type.is_storable,
        "can_encode": type.can_encode,
        "known_to": list(type.known_to),
    }


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    types = [ikq.QuantType(name) for name in args.names] or list(ikq.QuantType)
    table = [facts(t) for t in types]
    if args.json:
        print(json.dumps(table, indent=1))
        return 0
    lines = [list(_COLUMNS)] + [[_cell(row[key]) for key in _COLUMNS.values()] for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
