"""Size against divergence: ikq beside ik_llama.cpp, recipes beside mixes, error feedback beside none.

python benches/size_plot.py benches/results/{quality_table,recipe_quality,error_feedback}.jsonl \
    benches/results/size_divergence.svg
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drawing import Axis, labels, legend, marker, picture

import ikq
from ikq.quantizing.report.plots import svg_line, svg_text

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _LEFT, _PANEL, _GAP = 1260, 520, 40, 466, 70, 380, 15
_BITS, _DIVERGENCE = (3.0, 9.0), (0.0003, 0.3)
_TICKS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
# what the quality table calls single types whose TYPE of the same name is a mix
_SINGLE = {"Q4_K": "Q4_K_S", "Q3_K": "Q3_K_S", "Q2_K": "Q2_K_S"}


@dataclass(frozen=True)
class Pair:
    """Two files of one size: bits per weight of the whole model, divergence of the one and, if made, the other."""

    name: str
    bits: float
    first: float
    second: float | None
    is_mix: bool


def pairs_of_table(table: list[dict[str, Any]]) -> list[Pair]:
    """ikq's files with imatrix, beside those of ik_llama.cpp."""
    return [
        Pair(
            r["name"],
            r["ikq"]["bpw"],
            r["ikq"]["kld"],
            r["reference"]["kld"] if "reference" in r else None,
            r["is_mix"],
        )
        for r in table
        if r["imatrix"] and "ikq" in r
    ]


def pairs_of_recipes(recipes: list[dict[str, Any]], table: list[dict[str, Any]]) -> list[Pair]:
    """Mixes with names, beside recipes of at most their bytes."""
    q8, q4 = (next(r["ikq"] for r in table if r["name"] == name) for name in ("Q8_0", "Q4_0"))
    # of weights alone: what a file has besides them is the same in all
    per_byte = (q8["bpw"] - q4["bpw"]) / (q8["bytes"] - q4["bytes"])

    def bits(n_bytes: int) -> float:
        whole: float = q8["bpw"] + per_byte * (n_bytes - q8["bytes"])
        return whole

    return [Pair(r["size_of"], bits(r["bytes"]), r["mix_kld"], r["recipe_kld"], True) for r in recipes]


def pairs_of_feedback(feedback: list[dict[str, Any]], table: list[dict[str, Any]]) -> list[Pair]:
    """Single types without feedback, beside the same with it."""
    single = {r["name"]: r["ikq"]["bpw"] for r in table if "ikq" in r and not r["is_mix"]}
    high, low = ikq.QuantType.Q8_0, ikq.QuantType.Q4_0
    # embedding and output stay as they are, so bits of the model are linear in those of the type
    slope = (single["Q8_0"] - single["Q4_0"]) / (high.bpw - low.bpw)

    def bits(name: str) -> float:
        known: float | None = single.get(_SINGLE.get(name, name))
        return single["Q8_0"] + slope * (ikq.QuantType[name].bpw - high.bpw) if known is None else known

    return [
        Pair(r["type"], bits(r["type"]), r["kld"], r["feedback"]["kld"], False)
        for r in feedback
        if r.get("feedback")
    ]


def draw(table: list[dict[str, Any]], recipes: list[dict[str, Any]], feedback: list[dict[str, Any]]) -> str:
    """Three panels with common axes; what is compared was measured on the same windows."""
    panels = (
        ("types and mixes, imatrix, 147 windows", pairs_of_table(table), "ikq", "ik_llama.cpp", 1),
        ("mixes and recipes, 20 windows", pairs_of_recipes(recipes, table), "ikq, mix with a name", "ikq recipe", 2),
        ("error feedback", pairs_of_feedback(feedback, table), "ikq, without", "with error feedback", 3),
    )  # fmt: skip
    at_y = Axis(_BOTTOM, _TOP, *_DIVERGENCE, is_log=True)
    out = [svg_text(8, 16, "mean KL divergence from the unquantized model (tiny MoE of tests/data)")]
    for i, (title, pairs, first, second, colour) in enumerate(panels):
        left = _LEFT + i * (_PANEL + _GAP)
        at_x = Axis(left, left + _PANEL, *_BITS)
        for tick in _TICKS:
            out.append(svg_line(left, at_y(tick), left + _PANEL, at_y(tick), "grid"))
            if i == 0:
                out.append(svg_text(left - 8, at_y(tick) + 4, f"{tick:g}", "end"))
        for tick in range(int(_BITS[0]), int(_BITS[1]) + 1):
            out.append(svg_line(at_x(tick), _TOP, at_x(tick), _BOTTOM, "grid"))
            out.append(svg_text(at_x(tick), _BOTTOM + 18, str(tick), "middle"))
        out.append(svg_text(left + _PANEL / 2, _BOTTOM + 38, "bits per weight of the model", "middle"))
        out.append(svg_text(left + _PANEL / 2, _TOP - 8, title, "middle"))
        for p in pairs:
            x, y = at_x(p.bits), at_y(p.first)
            if p.second is not None:
                out.append(svg_line(x, y, x, at_y(p.second), "pair"))
                what = f"{p.name}, {second}: {p.second:.5f} at {p.bits:.3f} bits"
                out.append(marker(x, at_y(p.second), f"c{colour} open", what, square=p.is_mix))
            what = f"{p.name}, {first}: {p.first:.5f} at {p.bits:.3f} bits"
            out.append(marker(x, y, "c0", what, square=p.is_mix))
        firsts = [(at_x(p.bits), at_y(p.first), p.name) for p in pairs]
        seconds = [(at_x(p.bits), at_y(p.second)) for p in pairs if p.second is not None]
        markers = [(x, y) for x, y, _ in firsts] + seconds
        out += labels(firsts, markers, (left, left + _PANEL))
        entries = [("c0", first, i == 1), (f"c{colour} open", second, i == 1)]
        out += legend(left + _PANEL - 150, _TOP + 16, entries)
    out.append(svg_text(8, _HEIGHT - 4, "squares: mixes; dots: all block matrices of one type").replace("<text ", '<text class="small" '))  # fmt: skip
    return picture(_WIDTH, _HEIGHT, "KL divergence over bits per weight", out)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(row) for row in path.read_text().splitlines()]


def main() -> None:
    table, recipes, feedback, image = map(Path, sys.argv[1:])
    image.write_text(draw(read(table), read(recipes), read(feedback)))


if __name__ == "__main__":
    main()
