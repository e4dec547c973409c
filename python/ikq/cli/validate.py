"""`ikq validate`: whether a GGUF file is sound, and who can use it."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ikq.files import Report, check_file

NAME = "validate"
HELP = "check a GGUF file: structure, values, who can load it"
EXAMPLES = (
    "ikq validate model.gguf",
    "ikq validate -vq model.gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Checks header, metadata, offsets, alignment and sizes of a file or split set, the architecture's "
        "keys and tensors, and the tokenizer; with -vq also that all weights are finite, and "
        "still those that ikq wrote."
    )
    parser.epilog = "Exit codes: 0 nothing is wrong, 1 problems or error."
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument(
        "-vq", "--validate-quants", action="store_true", help="decode all tensors, look for NaN and infinity"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Prints what was found."""
    report = check_file(args.file, values=args.validate_quants)
    if args.json:
        print(json.dumps(dataclasses.asdict(report) | {"is_fine": report.is_fine}))
    else:
        for line in _lines(report, values=args.validate_quants):
            print(line)
    return 0 if report.is_fine else 1


def _lines(report: Report, *, values: bool) -> list[str]:
    lines = list(report.structure)
    if report.structure:
        runs = "runs in ikq" if report.is_supported else f"does not run in ikq: {report.why_not}"
        lines.append(f"architecture: {report.architecture}, {runs}")
        lines.append(f"tokenizer: {report.tokenizer}")
        lines.append("types: " + ", ".join(f"{n} {name}" for name, n in report.types.items()))
        lines.append(f"all types are known to: {', '.join(report.loaded_by) or 'no program'}")
        if values:
            lines.append(f"values: {report.n_scanned} tensors looked at, {len(report.not_finite)} not finite")
        if report.n_hashed:
            same = report.n_hashed - len(report.changed)
            lines.append(f"bytes: {same} of {report.n_hashed} tensors are as ikq wrote them")
        if report.not_scanned:
            lines.append(f"not looked at, their type cannot be decoded: {', '.join(report.not_scanned)}")
    lines += [f"problem: {problem}" for problem in report.problems]
    lines.append("fine" if report.is_fine else f"{len(report.problems)} problems")
    return lines
