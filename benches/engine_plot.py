"""Tokens per second over ik_llama.cpp's best setting, as a picture: one panel a test, one line a type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from drawing import Axis, legend, marker, picture

from ikq.quantizing.report.plots import svg_line, svg_text

_TOP, _LEFT, _PANEL, _GAP, _ROW = 60, 90, 260, 30, 16
_NAMES = {"avx2": "AVX2", "avx512": "AVX-512", "best": "best instruction set"}


class Ratio(NamedTuple):
    """One figure of a comparison.

    Attributes:
        isa: The instruction set.
        type: The type of the model's matrices.
        n_layers: Layers of the model.
        test: Such as `pp512`.
        over_best: Tokens per second over those of the reference's best setting; not a number where it has none.
    """

    isa: str
    type: str
    n_layers: int
    test: str
    over_best: float


def draw(ratios: Sequence[Ratio]) -> str:
    """The picture; equal factors are equally far apart, and a line stands where both are as fast."""
    known = [r for r in ratios if math.isfinite(r.over_best) and r.over_best > 0]
    isas, tests = (
        list(dict.fromkeys(column)) for column in ([r.isa for r in known], [r.test for r in known])
    )
    rows = list(dict.fromkeys((r.type, r.n_layers) for r in known))
    values = [r.over_best for r in known]
    low, high = min([0.8, *values]) / 1.05, max([1.25, *values]) * 1.05
    bottom = _TOP + _ROW * len(rows) + 8
    width = _LEFT + len(tests) * (_PANEL + _GAP)
    out = [svg_text(8, 16, "tokens per second over the reference's best setting")]
    for i, test in enumerate(tests):
        left = _LEFT + i * (_PANEL + _GAP)
        at_x = Axis(left, left + _PANEL, low, high, is_log=True)
        out.append(svg_text(left + _PANEL / 2, _TOP - 16, test, "middle"))
        for tick in (t for t in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0) if low < t < high):
            style = "pair" if tick == 1.0 else "grid"
            out.append(svg_line(at_x(tick), _TOP - 4, at_x(tick), bottom, style))
            out.append(svg_text(at_x(tick), bottom + 16, f"{tick:g}", "middle"))
        for j, (name, n_layers) in enumerate(rows):
            y = _TOP + _ROW * j + 8
            if i == 0:
                out.append(svg_text(left - 8, y + 4, name, "end"))
            for r in known:
                if (r.test, r.type, r.n_layers) == (test, name, n_layers):
                    what = f"{name}, {n_layers} layers, {test}, {_NAMES.get(r.isa, r.isa)}: {r.over_best:.2f}"
                    out.append(marker(at_x(r.over_best), y, f"c{isas.index(r.isa)}", what))
    for k, isa in enumerate(isas):
        out += legend(width - 330 + 150 * k, 14, [(f"c{k}", _NAMES.get(isa, isa), False)])
    return picture(max(width, 420), bottom + 24, "Tokens per second over the reference", out)
