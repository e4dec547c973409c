"""A report as one HTML file: plots and a table that can be sorted, nothing loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ikq.quantizing.report.plots import errors_over_layers, size_by_type, worst_experts
from ikq.quantizing.report.records import Group, Report, TensorRecord

__all__ = ["html_page"]

_MIB = 1024 * 1024

# the browser itself refuses to load anything
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_page(report: Report) -> str:
    """The page."""
    name = report.files[0].replace("\\", "/").rsplit("/", 1)[-1] if report.files else report.source
    title = escape(f"Quantization of {name}")
    parts = [f"<h1>{title}</h1>", _facts(report)]
    for heading, drawing, text in (
        (
            "Error per layer",
            errors_over_layers(report),
            "Weighted error: root mean square of the differences over that of the weights, columns weighed "
            "by the imatrix. One line per kind of tensor.",
        ),
        ("Size by type", size_by_type(report), ""),
        (
            "Worst experts",
            worst_experts(report),
            "Weighted error of the best, median and worst expert, in the tensors whose worst is largest.",
        ),
    ):
        if drawing:
            parts += [f"<h2>{heading}</h2>", f"<p>{escape(text)}</p>" if text else "", drawing]
    if not report.is_measured:
        parts.append("<p>Errors were not measured.</p>")
    parts += [
        "<h2>By kind of tensor</h2>",
        _groups(report.by_kind),
        "<h2>By type</h2>",
        _groups(report.by_type),
    ]
    parts += ["<h2>Tensors</h2>", "<p>A click on a heading sorts.</p>", _tensors(report.tensors)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_part('page.css')}</style></head><body>"
        + "\n".join(parts)
        + f"<script>{_part('page.js')}</script></body></html>\n"
    )


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _facts(report: Report) -> str:
    total = report.total
    facts = [
        ("source", report.source),
        ("output", ", ".join(report.files)),
        (
            "size",
            f"{report.bytes_in / _MIB:,.2f} MiB to {total.bytes / _MIB:,.2f} MiB, "
            f"{total.bits_per_weight:.4f} bits per weight, {report.file_bytes:,} bytes with metadata",
        ),
    ]
    if report.seconds is not None:
        facts.append(("time", f"{report.seconds:,.1f} s, {total.seconds or 0:,.1f} s of work of all threads"))
    if total.weighted_error is not None:
        facts.append(
            (
                "weighted error",
                f"mean {total.weighted_error:.5f}, worst {total.worst_error:.5f} ({total.worst})",
            )
        )
    c = report.coverage
    if c is not None:
        experts = f", {c.n_experts_seen} of {c.n_experts} experts" if c.n_experts else ""
        missing = f"; missing: {', '.join(c.missing)}" if c.missing else ""
        facts.append(("imatrix coverage", f"{c.n_covered} of {c.n_tensors} tensors{experts}{missing}"))
    if report.command:
        facts.append(("command", " ".join(report.command)))
    facts.append(("versions", ", ".join(f"{k} {v}" for k, v in report.versions.items())))
    return "<dl>" + "".join(f"<dt>{k}</dt><dd><code>{escape(v)}</code></dd>" for k, v in facts) + "</dl>"


def _groups(groups: Sequence[Group]) -> str:
    rows = (
        [
            _cell(g.name),
            _cell(g.n_tensors, "d"),
            _cell(g.bits_per_weight, ".4f"),
            _cell(g.bytes / _MIB, ",.2f"),
            _cell(g.weighted_error, ".5f"),
            _cell(g.worst_error, ".5f"),
            _cell(g.worst or ""),
            _cell(g.seconds, ".2f"),
        ]
        for g in groups
    )
    names = ["name", "tensors", "bits/weight", "MiB", "error, mean", "worst", "of", "seconds"]
    return _table(names, rows, words=(0, 6))


def _tensors(tensors: Sequence[TensorRecord]) -> str:
    rows = (
        [
            _cell(t.name),
            _cell(" x ".join(str(n) for n in reversed(t.shape))),
            _cell(t.from_type),
            _cell(t.to_type),
            _cell(t.how),
            _cell(t.bits_per_weight, ".4f"),
            _cell(t.bytes / _MIB, ",.3f"),
            _cell(t.weighted_error, ".5f"),
            _cell(t.error_without_gain, ".5f"),
            _cell(t.gain, ".5f"),
            _cell(t.error, ".5f"),
            _cell(t.snr_db, ".2f"),
            _cell("" if t.worst_expert is None else f"{t.worst_expert[0]}: {t.worst_expert[1]:.5f}"),
            _cell(t.imatrix_entry if t.imatrix == "borrowed" and t.imatrix_entry else t.imatrix),
            _cell(len(t.pooled_experts) or None, "d"),
            _cell(t.seconds, ".2f"),
            _cell(t.reason if t.wanted is None else f"{t.reason} (wanted: {t.wanted})"),
        ]
        for t in tensors
    )
    names = [
        "tensor",
        "shape",
        "from",
        "to",
        "how",
        "bits/weight",
        "MiB",
        "weighted error",
        "without gain",
        "gain",
        "error",
        "SNR, dB",
    ]
    names += ["worst expert", "imatrix", "pooled experts", "seconds", "reason"]
    return _table(names, rows, words=(0, 1, 2, 3, 4, 12, 13, 16))


def _cell(value: str | float | None, form: str = "") -> str:
    """A cell; a number's value is what it is sorted by, and nothing sorts first."""
    if isinstance(value, str):
        return f'<td class="t">{escape(value)}</td>'
    if value is None or not math.isfinite(value):
        return '<td data-v="-1"></td>'
    return f'<td data-v="{value!r}">{value:{form}}</td>'


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int]) -> str:
    head = "".join(f'<th class="t">{n}</th>' if i in words else f"<th>{n}</th>" for i, n in enumerate(names))
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    table = f'<table class="sorts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'
