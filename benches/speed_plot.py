"""Speed of products by type, for each instruction set, from what `ikq bench types --json` prints.

ikq bench types -t 2 --isa avx2 --json > benches/results/type_speed_avx2.json
ikq bench types -t 2 --isa avx512 --json > benches/results/type_speed_avx512.json
python benches/speed_plot.py benches/results/type_speed_avx{2,512}.json benches/results/type_speed.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drawing import Axis, legend, marker, picture

from ikq.quantizing.report.plots import svg_line, svg_text

COUNTS = (1, 512)
_WIDTH, _TOP, _LEFT, _PANEL, _GAP, _ROW = 1160, 60, 90, 490, 40, 16


def draw(*sets: list[dict[str, Any]]) -> str:
    """Two panels, one column and 512; a line for each type, those of fewest bytes first."""
    rows = {(r["type"], r["isa"], r["n"]): r for found in sets for r in found}
    isas = list(dict.fromkeys(r["isa"] for found in sets for r in found))
    # bytes per weight in memory
    sizes = {r["type"]: r["gbs"] * r["n"] / r["gmacs"] for r in sets[-1] if r["n"] == 1}
    types = sorted(sizes, key=lambda name: (round(sizes[name], 4), name))
    bottom = _TOP + _ROW * len(types) + 8
    out = [svg_text(8, 16, "billions of multiply-adds per second, all threads together")]
    for i, n in enumerate(COUNTS):
        left = _LEFT + i * (_PANEL + _GAP)
        speeds = {key: r["gmacs"] for key, r in rows.items() if key[2] == n}
        high = 1.05 * max(speeds.values())
        at_x = Axis(left, left + _PANEL, 0.0, high)
        for tick in _ticks(high):
            out.append(svg_line(at_x(tick), _TOP - 4, at_x(tick), bottom, "grid"))
            out.append(svg_text(at_x(tick), bottom + 16, f"{tick:g}", "middle"))
        words = "one column (generation)" if n == 1 else f"{n} columns (prompts)"
        out.append(svg_text(left + _PANEL / 2, _TOP - 26, words, "middle"))
        for j, name in enumerate(types):
            y = _TOP + _ROW * j + 8
            if i == 0:
                out.append(svg_text(left - 8, y + 4, name, "end"))
            found = [(k, speeds[name, isa, n]) for k, isa in enumerate(isas) if (name, isa, n) in speeds]
            places = [at_x(x) for _, x in found]
            out.append(svg_line(min(places), y, max(places), y, "pair"))
            for k, x in found:
                out.append(marker(at_x(x), y, f"c{k}", f"{name}, {isas[k]}, n = {n}: {x:g}"))
    names = {"avx2": "AVX2", "avx512": "AVX-512"}
    for k, isa in enumerate(isas):
        out += legend(_WIDTH - 250 + 110 * k, 14, [(f"c{k}", names.get(isa, isa), False)])
    return picture(_WIDTH, bottom + 24, "Speed of products by type", out)


def _ticks(high: float) -> list[float]:
    """Five to ten round numbers from 0."""
    power = 10.0 ** (len(str(int(high))) - 1)
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0) if high / (power * part) <= 10)
    return [i * step for i in range(int(high / step) + 1)]


def main() -> None:
    *figures, image = map(Path, sys.argv[1:])
    image.write_text(draw(*(json.loads(path.read_text()) for path in figures)))


if __name__ == "__main__":
    main()
