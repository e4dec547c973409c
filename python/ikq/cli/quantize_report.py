"""`--report` of `ikq quantize`, and the table at its end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import ikq
from ikq.quantizing.pipeline import QuantizePlan, QuantizeResult
from ikq.quantizing.report import make_report, report_kind, table_lines, write_report

__all__ = ["add_option", "check", "finish"]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--report`."""
    group = parser.add_argument_group("report")
    group.add_argument(
        "--report",
        metavar="FILE",
        nargs="?",
        const="",
        action="append",
        default=[],
        help="measure errors and write what was done to every tensor, as FILE.json or as a page with plots, "
        "FILE.html; may be repeated; without FILE (behind all other words) OUT.report.json",
    )


def check(args: argparse.Namespace, plan: QuantizePlan) -> None:
    """Refuses reports that could not be written, before the work.

    Raises:
        ikq.RefusedError: a name that says no form, is one of the run's files, or lies in no folder.
    """
    taken = {plan.source.resolve(), plan.destination.resolve()}
    for path in _paths(args, plan):
        report_kind(path)
        if path.resolve() in taken or path.is_dir():
            raise ikq.RefusedError(f"--report {path}: that is another file of this run, or a folder")
        if not path.parent.is_dir() and path.parent != plan.destination.parent:
            raise ikq.RefusedError(f"--report {path}: there is no folder {path.parent}")


def finish(
    args: argparse.Namespace, of: QuantizeResult | QuantizePlan, options: Mapping[str, object]
) -> None:
    """Prints the table and writes the reports."""
    plan = of.plan if isinstance(of, QuantizeResult) else of
    report = make_report(of, command=args.command, options=options)
    print("\n" + "\n".join(table_lines(report)) + "\n")
    for path in _paths(args, plan):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_report(report, path)
        print(f"report: {path}")


def _paths(args: argparse.Namespace, plan: QuantizePlan) -> list[Path]:
    beside = plan.destination.with_name(plan.destination.name.removesuffix(".gguf") + ".report.json")
    return list(dict.fromkeys(Path(given) if given else beside for given in args.report))
