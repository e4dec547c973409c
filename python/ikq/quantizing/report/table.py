"""The table at the end of a run, in 110 columns."""

from __future__ import annotations

from collections.abc import Sequence

from ikq.quantizing.report.records import Group, Report, TensorRecord

__all__ = ["WIDTH", "table_lines"]

WIDTH = 110
"""Columns that no line is longer than."""

_MIB = 1024 * 1024
_NAME, _MOST_KINDS, _WORST, _FALLBACKS = 34, 24, 5, 8


def table_lines(report: Report) -> list[str]:
    """Size, error and time by type and by kind, the worst tensors, and fallbacks with their reasons.

    Columns of what was not measured are left out. Kinds whose tensors are all vectors are one line.
    """
    lines = _section(report, "type", report.by_type)
    kinds, vectors = _without_vectors(report)
    shown = kinds[:_MOST_KINDS]
    lines += ["", *_section(report, "kind of tensor", shown)]
    left = [(f"{len(kinds) - len(shown)} more kinds", kinds[len(shown) :])] if len(kinds) > len(shown) else []
    if vectors:
        left.append(("norms, biases and other vectors", vectors))
    lines += [
        f"{name}: {sum(g.n_tensors for g in groups)} tensors, {sum(g.bytes for g in groups) / _MIB:.2f} MiB"
        for name, groups in left
    ]
    worst = report.worst(_WORST)
    if worst:
        lines += ["", "largest errors:", *(_fitting(f"  {_worst(t)}") for t in worst)]
    fallbacks = [t for t in report.tensors if t.wanted is not None]
    if fallbacks:
        lines += ["", "types other than wanted:"]
        lines += [
            _fitting(f"  {t.name}: {t.to_type}, not {t.wanted}: {t.reason}") for t in fallbacks[:_FALLBACKS]
        ]
        if len(fallbacks) > _FALLBACKS:
            lines.append(f"  and {len(fallbacks) - _FALLBACKS} more")
    return lines


def _section(report: Report, title: str, groups: Sequence[Group]) -> list[str]:
    measured, timed = report.is_measured, report.seconds is not None
    head = f"{title:<{_NAME}} {'tensors':>7} {'bits/weight':>11} {'MiB':>11}"
    head += f" {'error, mean':>11} {'worst':>9}" if measured else ""
    head += f" {'seconds':>9}" if timed else ""
    lines = [head]
    for g in groups:
        line = f"{_short(g.name, _NAME):<{_NAME}} {g.n_tensors:>7} {g.bits_per_weight:>11.4f}"
        line += f" {g.bytes / _MIB:>11.2f}"
        line += f" {_number(g.weighted_error):>11} {_number(g.worst_error):>9}" if measured else ""
        line += f" {g.seconds or 0:>9.2f}" if timed else ""
        lines.append(line)
    return lines


def _without_vectors(report: Report) -> tuple[list[Group], list[Group]]:
    matrices = {t.kind for t in report.tensors if len(t.shape) > 1}
    kinds = [g for g in report.by_kind if g.name in matrices]
    return kinds, [g for g in report.by_kind if g.name not in matrices]


def _worst(t: TensorRecord) -> str:
    text = f"{_number(t.weighted_error)}  {t.name}, {t.to_type}"
    if t.worst_expert:
        text += f", worst expert {t.worst_expert[0]}: {_number(t.worst_expert[1])}"
    if t.imatrix in ("missing", "borrowed"):
        text += f", imatrix {t.imatrix}"
    return text


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.5f}"


def _fitting(line: str) -> str:
    return _short(line, WIDTH)


def _short(text: str, n: int) -> str:
    return text if len(text) <= n else f"{text[: n - 3]}..."
