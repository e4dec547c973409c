"""A report as a file: JSON or a page, by its name."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

from ikq.errors import RefusedError
from ikq.files.whole_file import whole_file
from ikq.quantizing.report.page import html_page
from ikq.quantizing.report.records import Report

__all__ = ["report_kind", "to_json", "write_report"]

FORMAT, VERSION = "ikq-quantize-report", 1
"""What a JSON report says it is; the version rises when a field changes its meaning."""


def report_kind(path: str | os.PathLike[str]) -> str:
    """What a report of this name would be: `json` or `html`.

    Raises:
        RefusedError: neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        return "json"
    if suffix in (".html", ".htm"):
        return "html"
    raise RefusedError(
        f"a report is a file that ends in .json or .html, not {os.fspath(path)}; for a report beside the "
        "output put --report behind all other words"
    )


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Writes a report; it appears under its name when it is whole.

    Args:
        report: The report.
        path: A file that ends in `.json` (`to_json`), or in `.html` for a page that needs no other file.

    Raises:
        RefusedError: another ending.
        OSError: it cannot be written.
    """
    text = to_json(report) if report_kind(path) == "json" else html_page(report)
    with whole_file(path) as f:
        # names of files may hold bytes that are no text
        f.write(text.encode(errors="backslashreplace"))


def to_json(report: Report) -> str:
    """A JSON object with the fields of `Report`, and what it is in `format` and `version`.

    Numbers that are not finite are null: JSON has none.
    """
    plain = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(report)
    return json.dumps(_finite(plain), indent=1, allow_nan=False, default=str)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
