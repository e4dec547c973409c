"""Size against predicted divergence as one HTML page: the best mixes, those that people know, and a pick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ikq.arrays.quant_types import QuantType
from ikq.errors import IkqError
from ikq.quantizing.pipeline import ftypes, plan_quantization
from ikq.recipes.choose import Infeasible, choose
from ikq.recipes.recipe import Costs, Recipe
from ikq.recipes.rules import recipe_rules

__all__ = ["KNOWN_MIXES", "Point", "best_mixes", "known_mixes", "pareto_page"]

KNOWN_MIXES = (
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_M",
    "Q2_K",
    "IQ3_XXS",
    "IQ3_M",
    "Q3_K_M",
    "IQ4_XS",
    "Q4_K_M",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
)
"""Names that people choose by."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_N_POINTS = 48


@dataclass(frozen=True)
class Point:
    """A mix.

    Attributes:
        label: Its name, or empty for one of the best mixes.
        bytes: Size of the file.
        divergence: Predicted divergence.
        rules: Rules of its recipe; empty for known mixes.
    """

    label: str
    bytes: int
    divergence: float
    rules: tuple[str, ...] = ()


def best_mixes(costs: Costs, n: int = _N_POINTS) -> list[Point]:
    """The best mixes of sizes from the smallest to one that nearly keeps everything."""
    problem, sizes = costs.problem, costs.sizes
    largest = problem.overhead + int(
        sum(
            min(n for k, n in zip(t.types, t.bytes, strict=True) if _bits(k) >= 8 or k == t.types[-1])
            for t in problem.tensors
        )
    )
    out: list[Point] = []
    for budget in np.geomspace(problem.least_bytes, max(largest, problem.least_bytes), n):
        try:
            choice = choose(costs.divergence, sizes, [int(np.ceil(budget)) - problem.overhead])
        except Infeasible:
            continue
        total = problem.overhead + int(choice.bytes.sum())
        if not out or choice.cost < out[-1].divergence:
            rules = recipe_rules(problem.types_of(choice.index))
            out.append(Point("", total, choice.cost, tuple(rules)))
    return out


def _bits(type: QuantType | int) -> float:
    return type.bpw if isinstance(type, QuantType) else 0.0


def known_mixes(costs: Costs, names: Sequence[str] = KNOWN_MIXES) -> list[Point]:
    """The mixes with names, as far as their types were sampled for all tensors."""
    problem = costs.problem
    known = {f.name for f in ftypes()}
    out = []
    for name in names:
        if name not in known:
            continue
        try:
            plan = plan_quantization(
                problem.source,
                problem.source.with_name("mix.gguf"),
                name,
                imatrix=problem.imatrix,
                allow_requantize=True,
                allow_missing=True,
                ignore_imatrix_rules=True,
            )
        except IkqError:
            continue
        types = {t.name: t.to_type for t in plan.tensors}
        try:
            choice = [t.types.index(types[t.name]) for t in problem.tensors]
        except (KeyError, ValueError):
            continue
        cost = float(costs.divergence[np.arange(len(choice)), choice].sum())
        out.append(Point(name, plan.total_bytes, cost))
    return out


def pareto_page(costs: Costs, chosen: Recipe | None = None) -> str:
    """The page; it loads nothing."""
    best, known = best_mixes(costs), known_mixes(costs)
    points = [p for p in [*best, *known] if p.divergence > 0]
    mine = (
        []
        if chosen is None
        else [Point("this recipe", chosen.file_bytes, chosen.divergence, tuple(chosen.rules))]
    )
    title = escape(f"Mixes for {costs.problem.source.name}")
    data = json.dumps(
        [{"bytes": p.bytes, "kld": p.divergence, "rules": list(p.rules)} for p in best if p.divergence > 0]
    ).replace("<", "\\u003c")
    note = (
        f"Each dot is the mix with the least predicted KL divergence for its size (from {costs.origin}; a "
        f"prediction may be off by a factor of {costs.uncertainty:.3g}). Crosses are mixes with names. Click "
        "a dot or move the slider to see its recipe."
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{_CSS}</style></head><body><h1>{title}</h1><p>{escape(note)}</p>"
        f"{_drawing(best, known, mine, points + mine)}"
        '<p><input type="range" id="pick" min="0" value="0" aria-label="mix"> <output id="said"></output></p>'
        '<pre id="rules"></pre>'
        f"<script>const points = {data};\n{_SCRIPT}</script></body></html>\n"
    )


def _drawing(best: list[Point], known: list[Point], mine: list[Point], shown: list[Point]) -> str:
    width, height, left, bottom = 960.0, 480.0, 80.0, 440.0
    # a mix that loses nothing has no place on a logarithmic axis
    shown = [p for p in shown if p.divergence > 0]
    if not shown:
        return "<p>Nothing to draw.</p>"
    sizes = np.log([p.bytes for p in shown])
    values = np.log([p.divergence for p in shown])
    x0, x1 = float(sizes.min()), max(float(sizes.max()), float(sizes.min()) + 1e-9)
    y0, y1 = float(values.min()), max(float(values.max()), float(values.min()) + 1e-9)

    def at(p: Point) -> tuple[float, float]:
        x = left + (width - left - 90) * (float(np.log(p.bytes)) - x0) / (x1 - x0)
        return x, bottom - (bottom - 20) * (float(np.log(p.divergence)) - y0) / (y1 - y0)

    out = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="divergence over size">']
    for exponent in range(int(np.floor(y0 / np.log(10))), int(np.ceil(y1 / np.log(10))) + 1):
        y = bottom - (bottom - 20) * (exponent * np.log(10) - y0) / (y1 - y0)
        if 15 <= y <= bottom:
            out.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 20:g}"/>')
            out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    for size in np.geomspace(np.exp(x0), np.exp(x1), 7):
        x = left + (width - left - 90) * (float(np.log(size)) - x0) / (x1 - x0)
        out.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{_size(size)}</text>')
    line = [at(p) for p in best if p.divergence > 0]
    out.append('<polyline class="best" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in line) + '"/>')
    for i, (x, y) in enumerate(line):
        out.append(f'<circle class="best" data-i="{i}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    for p in known:
        if p.divergence > 0:
            x, y = at(p)
            out.append(f'<path class="known" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>')
            out.append(f'<text x="{x + 7:.1f}" y="{y - 5:.1f}">{escape(p.label)}</text>')
    for p in mine:
        if p.divergence > 0:
            x, y = at(p)
            out.append(f'<circle class="mine" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    return "".join([*out, "</svg>"])


def _size(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"


_CSS = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em}"
    "body{color:#222;background:#fff}"
    "svg{width:100%}svg text{font-size:12px;fill:currentColor}.grid{stroke:#ccc}"
    "polyline.best{fill:none;stroke:#2a6fbb;stroke-width:1.5}circle.best{fill:#2a6fbb;cursor:pointer}"
    "circle.on{fill:#c33}.known{stroke:#b5651d;stroke-width:2}.mine{fill:none;stroke:#c33;stroke-width:2}"
    "input{width:60%}pre{white-space:pre-wrap}"
    "@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}.grid{stroke:#444}}"
)

_SCRIPT = """
const pick = document.getElementById("pick");
const dots = [...document.querySelectorAll("circle.best")];
function show(i) {
  const p = points[i];
  if (!p) return;
  dots.forEach((dot, j) => dot.classList.toggle("on", j === i));
  document.getElementById("said").textContent =
    `${p.bytes.toLocaleString("en")} bytes, predicted KLD ${p.kld.toPrecision(3)}`;
  document.getElementById("rules").textContent = p.rules.join("\\n");
  pick.value = i;
}
pick.max = Math.max(0, points.length - 1);
pick.addEventListener("input", () => show(Number(pick.value)));
dots.forEach((dot) => dot.addEventListener("click", () => show(Number(dot.dataset.i))));
show(Math.floor(points.length / 2));
"""
