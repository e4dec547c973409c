"""`ikq diff`: what is different between two GGUF files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math

import ikq
from ikq.files import Comparison, TensorDifference, compare_files

NAME = "diff"
HELP = "compare two GGUF files: metadata, tensors, values"
EXAMPLES = (
    "ikq diff model-bf16.gguf model.gguf",
    "ikq diff --json model-bf16.gguf model.gguf",
)
ERROR_CODE = 2
"""As of diff(1), where 1 says that there are differences."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Shows what is different between two files or split sets. Tensors that differ are decoded: the "
        "relative error is the root mean square of the differences over that of A's values."
    )
    parser.epilog = "Exit codes, as of diff: 0 no differences, 1 some, 2 error."
    parser.add_argument("first", metavar="A.gguf")
    parser.add_argument("second", metavar="B.gguf")
    parser.add_argument("--no-values", action="store_true", help="do not decode; bytes are compared anyway")
    parser.add_argument(
        "--ignore-key", action="append", default=[], metavar="KEY", help="metadata that do not count"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Prints the differences."""
    with ikq.GGUFReader(args.first) as a, ikq.GGUFReader(args.second) as b:
        found = compare_files(a, b, values=not args.no_values, ignore=args.ignore_key)
    if args.json:
        print(json.dumps(_plain(found), default=_text))
    else:
        for line in _lines(found):
            print(line)
    return 0 if found.is_same else 1


def _lines(found: Comparison) -> list[str]:
    lines = [f"- {key} = {_short(value)}" for key, value in found.removed.items()]
    lines += [f"+ {key} = {_short(value)}" for key, value in found.added.items()]
    lines += [f"! {key}: {_change(old, new)}" for key, (old, new) in found.changed.items()]
    lines += [f"- tensor {name}" for name in found.only_first]
    lines += [f"+ tensor {name}" for name in found.only_second]
    lines += [f"! tensor {t.name}: {_difference(t)}" for t in found.tensors]
    if found.reordered:
        lines.append("! tensors come in another order")
    if not found.is_same:
        n = len(found.tensors)
        lines.append(
            f"{found.n_same} tensors are the same, {n} differ, "
            f"{len(found.only_first)} only in the first, {len(found.only_second)} only in the second"
        )
    return lines


def _difference(t: TensorDifference) -> str:
    words = []
    if t.types[0] != t.types[1]:
        words.append(f"{t.types[0]} -> {t.types[1]}")
    if t.shapes[0] != t.shapes[1]:
        words.append(" -> ".join(" x ".join(str(n) for n in reversed(s)) for s in t.shapes))
    if t.relative_error is not None:
        words.append(f"relative error {t.relative_error:.4g}, largest difference {t.largest:.4g}")
    elif t.shapes[0] == t.shapes[1]:
        words.append(f"data differ (values not compared: {t.why_not})")
    return ", ".join(words)


def _change(old: object, new: object) -> str:
    """Of long lists only the first element that differs."""
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > 8:
        if len(old) != len(new):
            return f"{len(old)} elements -> {len(new)} elements"
        different = [i for i, (x, y) in enumerate(zip(old, new, strict=True)) if x != y]
        if different:
            i = different[0]
            return f"{len(different)} elements differ, the first is [{i}]: {old[i]!r} -> {new[i]!r}"
    return f"{_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}... ({len(text)} characters)"


def _plain(found: Comparison) -> dict[str, object]:
    plain = dataclasses.asdict(found) | {"is_same": found.is_same}
    for t in plain["tensors"]:
        # JSON has no infinity
        for key in ("relative_error", "largest"):
            if t[key] is not None and not math.isfinite(t[key]):
                t[key] = str(t[key])
    return plain


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
