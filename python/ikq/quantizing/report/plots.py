"""Drawings of a report as SVG, for the page: errors over layers, size by type, the worst experts.

Colours are classes (`c0` to `c7`) that page.css defines, so that light and dark work; lines beyond the eighth
are dashed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

from ikq.quantizing.report.records import Report, TensorRecord

__all__ = ["N_COLOURS", "errors_over_layers", "size_by_type", "svg_line", "svg_text", "worst_experts"]

N_COLOURS = 8
_WIDTH, _LINES, _EXPERTS = 960, 16, 16
_MIB = 1024 * 1024
# characters of labels are about so wide, in units of the drawing
_CHARACTER = 7.2


def errors_over_layers(report: Report) -> str:
    """Weighted error of each kind of tensor over the layers, one line per kind; empty if there is nothing."""
    kinds: dict[str, list[tuple[int, float, TensorRecord]]] = {}
    for group in report.by_kind:
        points = [
            (t.layer, t.weighted_error, t)
            for t in report.tensors
            # what is exact has no place on a logarithmic axis
            if t.kind == group.name
            and t.layer is not None
            and t.weighted_error
            and _is_finite(t.weighted_error)
        ]
        if len(points) > 1 and len(kinds) < _LINES:
            kinds[group.name] = sorted(points, key=lambda p: p[0])
    if not kinds:
        return ""
    layers = [x for points in kinds.values() for x, _, _ in points]
    values = [y for points in kinds.values() for _, y, _ in points]
    first, last = min(layers), max(layers)
    legend = 20 + _CHARACTER * max(len(name) for name in kinds)
    left, right, top, bottom = 64, _WIDTH - legend - 24, 12, max(320, 20 * len(kinds) + 20)
    low, high = min(values) / 1.15, max(values) * 1.15

    def at_x(layer: float) -> float:
        return left + (right - left) * (layer - first) / max(1, last - first)

    def at_y(value: float) -> float:
        return bottom - (bottom - top) * math.log(value / low) / math.log(high / low)

    out = []
    for tick in _log_ticks(low, high):
        y = at_y(tick)
        out.append(svg_line(left, y, right, y, "grid"))
        out.append(svg_text(left - 8, y + 4, f"{tick:g}", "end"))
    for layer in _layer_ticks(first, last):
        out.append(svg_text(at_x(layer), bottom + 18, str(layer), "middle"))
    out.append(svg_text((left + right) / 2, bottom + 38, "layer", "middle"))
    # the legend is in the order of the lines at their right ends
    order = sorted(kinds, key=lambda name: -kinds[name][-1][1])
    for i, name in enumerate(kinds):
        style = f'class="line c{i % N_COLOURS}"' + (' stroke-dasharray="6 4"' if i >= N_COLOURS else "")
        corners = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y, _ in kinds[name])
        out.append(f'<polyline points="{corners}" {style}/>')
        for x, y, t in kinds[name]:
            out.append(
                f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5" class="dot c{i % N_COLOURS}">'
                f"<title>{escape(t.name)}: {y:.5f}, {escape(t.to_type)}</title></circle>"
            )
        y = top + 10.0 + 20 * order.index(name)
        out.append(f'<path d="M{right + 20} {y - 4}h18" {style}/>')
        out.append(svg_text(right + 44, y, name))
    return _svg(bottom + 46, "Weighted error of each kind of tensor over the layers", out)


def size_by_type(report: Report) -> str:
    """A bar per type, as long as its bytes."""
    total = max(1, report.total.bytes)
    most = max((g.bytes for g in report.by_type), default=1) or 1
    left, right = 24 + _CHARACTER * max((len(g.name) for g in report.by_type), default=0), _WIDTH - 330
    out = []
    for i, g in enumerate(report.by_type):
        y, width = 8 + 28 * i, (right - left) * g.bytes / most
        out.append(svg_text(left - 10, y + 15, g.name, "end"))
        out.append(
            f'<rect x="{left:.1f}" y="{y}" width="{max(1, width):.1f}" height="20" rx="2" class="bar"/>'
        )
        text = f"{g.bytes / _MIB:,.2f} MiB, {g.bytes / total:.1%}, {g.n_tensors} tensors"
        out.append(svg_text(left + width + 8, y + 15, text))
    return _svg(16 + 28 * len(report.by_type), "Size by type", out)


def worst_experts(report: Report) -> str:
    """From the best to the worst expert of the tensors whose worst is largest; empty without experts."""
    measured = [t for t in report.tensors if t.worst_expert and t.expert_errors and len(t.expert_errors) > 1]
    measured = [t for t in measured if all(map(_is_finite, t.expert_errors or ()))]
    shown = sorted(measured, key=lambda t: -_worst(t))[:_EXPERTS]
    if not shown:
        return ""
    left, right = 24 + _CHARACTER * max(len(t.name) for t in shown), _WIDTH - 150
    high = max(_worst(t) for t in shown) or 1.0
    bottom = 8 + 24 * len(shown)

    def at(value: float) -> float:
        return left + (right - left) * value / high

    out = []
    for tick in _ticks(high):
        out.append(svg_line(at(tick), 4, at(tick), bottom, "grid"))
        out.append(svg_text(at(tick), bottom + 16, f"{tick:g}", "middle"))
    for i, t in enumerate(shown):
        y, errors = 18 + 24 * i, t.expert_errors or ()
        index, worst = t.worst_expert or (0, 0.0)
        out.append(svg_text(left - 10, y + 4, t.name, "end"))
        out.append(svg_line(at(min(errors)), y, at(worst), y, "range"))
        for value, shape in ((statistics.median(errors), "dot c0"), (worst, "dot c1")):
            what = "median" if shape.endswith("0") else f"expert {index}"
            title = f"<title>{what}: {value:.5f}</title>"
            out.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4.5" class="{shape}">{title}</circle>')
        out.append(svg_text(at(worst) + 10, y + 4, f"expert {index}: {worst:.5f}"))
    return _svg(bottom + 24, "Best, median and worst expert", out)


def _worst(t: TensorRecord) -> float:
    return t.worst_expert[1] if t.worst_expert else 0.0


def _is_finite(x: float) -> bool:
    return math.isfinite(x)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, finer where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), tuple(x / 10 for x in range(10, 100))):
        ticks = [float(f"{m * 10.0**p:.3g}") for p in powers for m in steps if low <= m * 10.0**p <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, len(ticks) // 8)]


def _ticks(high: float) -> list[float]:
    """Four to nine round numbers from 0."""
    step = 10.0 ** math.floor(math.log10(high))
    for part in (0.2, 0.5, 1):
        if high / (step * part) <= 8:
            break
    return [float(f"{i * step * part:.6g}") for i in range(int(high / (step * part)) + 1)]


def _layer_ticks(first: int, last: int) -> Sequence[int]:
    return range(first, last + 1, max(1, math.ceil((last - first) / 20)))


def svg_line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A line between two points, drawn as its class says."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{cls}"/>'


def svg_text(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A text whose start, middle or end (`anchor`) stands at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, label: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
