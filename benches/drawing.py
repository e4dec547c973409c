"""Panels of an SVG that stands by itself: no library draws it, so that the same figures always give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# a report's lines and texts; their classes are defined below, because no page is around this drawing
from ikq.quantizing.report.plots import svg_line, svg_text

__all__ = ["Axis", "labels", "legend", "marker", "picture"]

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
_STYLE = (
    "svg{font:12px sans-serif;background:#fff}text{fill:#222}.small{font-size:8px;fill:#666}.title{font-weight:bold}"
    ".grid{stroke:#e5e5e5}.pair{stroke:#bbb}.lead{stroke:#ccc;stroke-width:.6}"
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


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


# of the class `small`: a letter's width as most sans-serif fonts have it, and a line's height
_LETTER, _LINE = 5.4, 8.0
_DISTANCES = (5.0, 14.0, 24.0, 36.0, 50.0)


def labels(
    points: Sequence[tuple[float, float, str]],
    markers: Sequence[tuple[float, float]],
    sides: tuple[float, float],
) -> list[str]:
    """Small names beside points, each where it covers neither markers nor other names.

    The nearest free place around a point is taken, sixteen directions at growing distances; a line leads to a name that
    is not beside its point. Where everything is taken, the place that covers least.

    Args:
        points: Where they stand, and their names.
        markers: Centres of everything that should stay visible.
        sides: Where the panel begins and ends.
    """
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in markers]
    taken += [_Box(-math.inf, -math.inf, sides[0], math.inf), _Box(sides[1], -math.inf, math.inf, math.inf)]
    out = []
    for x, y, name in sorted(points, key=lambda p: (p[1], p[0])):
        width = _LETTER * len(name)
        places = [
            (x + distance * math.cos(angle), y + distance * math.sin(angle), distance)
            for distance in _DISTANCES
            for angle in (math.pi / 8 * k for k in (15, 1, 0, 13, 12, 3, 4, 9, 7, 8, 11, 5, 14, 2, 10, 6))
        ]

        def box(place: tuple[float, float, float], x: float = x, width: float = width) -> _Box:
            px, py, _ = place
            left = px if px >= x + 1 else px - width if px <= x - 1 else px - width / 2
            return _Box(left, py - _LINE / 2, left + width, py + _LINE / 2)

        def covered(place: tuple[float, float, float]) -> float:
            mine = box(place)
            return sum(mine.overlap(other) for other in taken)

        place = min(places, key=covered)
        found = box(place)
        taken.append(found)
        if place[2] > _DISTANCES[0]:
            out.append(svg_line(x, y, min(max(x, found.left), found.right), place[1], "lead"))
        out.append(svg_text(found.left, found.bottom - 1.5, name).replace("<text ", '<text class="small" '))
    return out


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
