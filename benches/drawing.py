"""Panels of an SVG that stands by itself: no library draws it, so that the same figures always give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# a report's lines and texts; their classes are defined below, because no page is around this drawing
from ikq.quantizing.report.plots import svg_text

__all__ = ["Axis", "legend", "marker", "picture"]

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
_STYLE = (
    "svg{font:12px sans-serif;background:#fff}text{fill:#222}.small{font-size:8px;fill:#666}.title{font-weight:bold}"
    ".grid{stroke:#e5e5e5}.pair{stroke:#bbb}"
    + "".join(f".c{i}{{fill:{c};stroke:{c}}}" for i, c in enumerate(COLOURS))
    + ".open{fill:none;stroke-width:1.3}"
)


@dataclass(frozen=True)
class Axis:
    """Where values stand, in units of the drawing.

    Attributes:
        start: Where `low` stands.
        end: Where `high` stands.
        low: The value at `start`.
        high: The value at `end`.
        is_log: Equal factors are equally far apart.
    """

    start: float
    end: float
    low: float
    high: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        f: Callable[[float], float] = math.log if self.is_log else float
        return self.start + (self.end - self.start) * (f(value) - f(self.low)) / (f(self.high) - f(self.low))


def marker(x: float, y: float, style: str, title: str, *, square: bool = False) -> str:
    """A dot or a square with a text that shows under the pointer."""
    inside = f'class="{style}"><title>{escape(title)}</title>'
    if square:
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" {inside}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {inside}</circle>'


def legend(x: float, y: float, entries: Sequence[tuple[str, str, bool]]) -> list[str]:
    """One line for each style: its class, what it is, whether it is a square."""
    out = []
    for i, (style, what, square) in enumerate(entries):
        out.append(marker(x, y + 16 * i, style, what, square=square))
        out.append(svg_text(x + 10, y + 4 + 16 * i, what))
    return out


def picture(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The whole file, a part a line."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(label)}">'
    )
    ground = f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *parts, "</svg>"]) + "\n"
