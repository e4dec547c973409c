"""Error of every encoder, as a ratio to the reference's, per type and input set.

Inputs and reference figures are those of tests/vectors; `gauss-4096` is the larger matrix that
reference_errors.json describes (4096 x 4096 but for the slowest types, whose figures are of fewer rows). With
importance the weighted error counts, without it the plain one. A ratio below 1 means less error than the
reference at the same number of bits. The exit code is 1 where a ratio is above 1.01, or their mean above 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path

import numpy as np

import ikq

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"
SETS = ("real_down", "real_384", "gauss", "special", "ternary")


def error(x: np.ndarray, y: np.ndarray, importance: np.ndarray | None) -> float:
    """Relative RMSE; sums in f64 over all rows, columns weighted by `importance` if there is one."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    m = np.ones(x.shape[-1]) if importance is None else importance.astype(np.float64)
    return float(np.sqrt((m * (y - x) ** 2).sum() / (m * x**2).sum()))


def gauss_4096(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of the larger normal matrix, and its importance."""
    x = np.random.default_rng(896741).standard_normal((n_rows, 4096), dtype=np.float32)
    m = np.exp(np.random.default_rng(495).normal(0.0, 1.5, 4096)).astype(np.float32)
    return x, m


def ratios(type: ikq.QuantType, n_rows: int) -> dict[tuple[str, bool], tuple[float, float]]:
    """(error, reference error) per input set and with or without importance."""
    stored = json.loads((VECTORS / "reference_errors.json").read_text())
    inputs = np.load(VECTORS / "inputs.npz")
    sets = {name: (inputs[name], inputs[f"{name}.imatrix"]) for name in SETS if f"{name}.imatrix" in inputs}
    figures = dict(stored["vectors"].get(type.name.lower(), {}))
    larger = stored["larger"].get(type.name.lower(), {})
    figures["gauss-4096"] = {k: v["gauss"] for k, v in larger.items() if "gauss" in v}
    # the figures of some types are of fewer rows
    of_figure = max((g["rows"] for g in figures["gauss-4096"].values()), default=0)
    if of_figure:
        sets["gauss-4096"] = gauss_4096(min(n_rows, of_figure))
    found = {}
    for name, (x, m) in sets.items():
        for with_importance in (False, True):
            figure = figures.get(name, {}).get("with_imatrix" if with_importance else "without_imatrix") or {}
            key = "weighted_rel_rmse" if with_importance else "rel_rmse"
            if figure.get(key) is None:
                continue
            importance = m if with_importance else None
            y = ikq.dequantize(ikq.quantize(x, type, imatrix=importance), type, n_per_row=x.shape[-1])
            found[name, with_importance] = (error(x, y, importance), figure[key])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4096, help="at most so many rows of gauss-4096")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ikq.NotTernaryWarning)
    print("| type | input | importance | error | reference | ratio |\n| --- | --- | --- | --: | --: | --: |")
    by_type: dict[str, list[float]] = {}
    failed = []
    for type in ikq.QuantType:
        if not type.can_encode:
            continue
        for (name, with_importance), (ours, theirs) in ratios(type, args.rows).items():
            ratio = f"{ours / theirs:.4f}" if theirs > 0 else ("exact" if ours == 0 else "-")
            given = "yes" if with_importance else "no"
            print(f"| {type.name} | {name} | {given} | {ours:.3e} | {theirs:.3e} | {ratio} |", flush=True)
            if ours > (1.01 * theirs if theirs else 1e-7):
                failed.append(f"{type.name} {name} {given}")
            if theirs:
                by_type.setdefault(type.name, []).append(ours / theirs)
    means = {name: statistics.mean(values) for name, values in by_type.items()}
    worst = max((max(values), name) for name, values in by_type.items())
    mean = statistics.mean(means.values())
    print(f"\nMean over {len(means)} types: {mean:.4f}; worst single ratio: {worst[0]:.4f} ({worst[1]}).")
    above = sorted((m, name) for name, m in means.items() if m > 1)
    if above:
        print("Types whose mean is above 1: " + ", ".join(f"{name} {m:.4f}" for m, name in above) + ".")
    if failed:
        print("Above the bound of 1.01: " + ", ".join(failed) + ".")
    return int(bool(failed) or mean > 1)


if __name__ == "__main__":
    sys.exit(main())
