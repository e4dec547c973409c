"""The plot of the quality table: divergence and perplexity over bits per weight, ikq's files beside the reference's.

python benches/quality_plot.py benches/results/quality_table.jsonl benches/results/quality_table.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_TICKS = {
    "kld": [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2],
    "ppl": [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20],
}
_NAMES = {
    "kld": "mean KL divergence from the unquantized model",
    "ppl": "perplexity above the unquantized model's, % (less than 0.01 at 0.01)",
}


def level(figures: dict[str, Any], key: str, ppl: float) -> float:
    """Where a file stands in a panel."""
    value: float = figures[key]
    return max(100 * (value / ppl - 1), 0.01) if key == "ppl" else value


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels: without and with imatrix, divergence above perplexity; mixes are squares."""
    plt.rcParams["svg.hashsalt"] = "ikq"
    panels = plt.subplots(2, 2, figsize=(15, 13), sharex=True, sharey="row")[1]
    ppl = rows[0]["ppl_unquantized"]
    for line, key in zip(panels, ("kld", "ppl"), strict=True):
        for panel, imatrix in zip(line, (False, True), strict=True):
            part = [r for r in rows if r["imatrix"] == imatrix and "ikq" in r]
            for r in part:
                bpw, value, theirs = r["ikq"]["bpw"], level(r["ikq"], key, ppl), r.get("reference")
                if theirs:
                    ends = [value, level(theirs, key, ppl)]
                    panel.plot([bpw, theirs["bpw"]], ends, color="0.8", linewidth=1, zorder=0)
                panel.annotate(r["name"], (bpw, value), fontsize=6, xytext=(4, 3), textcoords="offset points")
            for is_mix, shape, what in ((False, "o", "type"), (True, "s", "mix")):
                chosen = [r for r in part if r["is_mix"] == is_mix]
                panel.scatter(
                    [r["ikq"]["bpw"] for r in chosen], [level(r["ikq"], key, ppl) for r in chosen],
                    s=16, marker=shape, label=f"{what}, ikq", color="C0",
                )  # fmt: skip
                compared = [r["reference"] for r in chosen if "reference" in r]
                panel.scatter(
                    [f["bpw"] for f in compared], [level(f, key, ppl) for f in compared],
                    s=22, marker=shape, label=f"{what}, ik_llama.cpp", facecolors="none", edgecolors="C1", linewidths=0.8,
                )  # fmt: skip
            panel.set_yscale("log")
            panel.set_yticks(_TICKS[key], [f"{t:g}" for t in _TICKS[key]], minor=False)
            panel.minorticks_off()
            panel.grid(color="0.93")
            panel.set_axisbelow(True)
            panel.set_title(f"{'with' if imatrix else 'without'} imatrix")
            panel.legend(fontsize=8)
        line[0].set_ylabel(_NAMES[key])
    for panel in panels[1]:
        panel.set_xlabel("bits per weight of the model")
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})


def main() -> None:
    figures, image = Path(sys.argv[1]), Path(sys.argv[2])
    draw([json.loads(line) for line in figures.read_text().splitlines()], image)


if __name__ == "__main__":
    main()
