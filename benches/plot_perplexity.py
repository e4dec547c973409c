"""Perplexity over bits per weight: files by ikq beside the reference's, from the figures of file_perplexity.py.

pip install matplotlib
python benches/plot_perplexity.py benches/results/file_perplexity.jsonl benches/results/file_perplexity.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

import ikq

UNQUANTIZED = 24.578


def bits(name: str) -> float:
    """Bits per weight of a TYPE's base."""
    base = next(f.base for f in ikq.ftypes() if f.name == name)
    assert base is not None
    return base.bpw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.figures.read_text().splitlines()]
    # one engine, the last figure of a type
    figures = {(r["type"], r["imatrix"]): r for r in rows if r["program"] == "ik_llama.cpp"}
    plt.rcParams["svg.hashsalt"] = "ikq"
    panels = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True)[1]
    for panel, imatrix in zip(panels, (False, True), strict=True):
        points = [
            (bits(name), name, r["perplexity"], r["stored"])
            for (name, given), r in figures.items()
            if given == imatrix
        ]
        for bpw, name, found, stored in points:
            if stored:
                panel.plot([bpw, bpw], [found, stored], color="0.8", linewidth=1, zorder=0)
            panel.annotate(name, (bpw, found), fontsize=6, xytext=(3, 3), textcoords="offset points")
        panel.scatter([p[0] for p in points], [p[2] for p in points], s=14, label="file by ikq")
        compared = [p for p in points if p[3]]
        panel.scatter(
            [p[0] for p in compared],
            [p[3] for p in compared],
            s=18,
            marker="x",
            linewidths=0.8,
            label="file by ik_llama.cpp",
        )
        panel.axhline(UNQUANTIZED, color="0.5", linewidth=0.6)
        panel.set_title(f"{'with' if imatrix else 'without'} imatrix")
        panel.set_xlabel("bits per weight of the block matrices")
        panel.set_yscale("log")
        panel.set_yticks(
            [24.6, 25, 26, 27, 28, 30, 32, 35],
            ["24.6", "25", "26", "27", "28", "30", "32", "35"],
            minor=False,
        )
        panel.minorticks_off()
        panel.legend()
    panels[0].set_ylabel("perplexity, tiny MoE, engine ik_llama.cpp")
    plt.tight_layout()
    plt.savefig(args.image, metadata={"Date": None})


if __name__ == "__main__":
    main()
