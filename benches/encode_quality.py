"""Error of every encoder, as a ratio to the reference's, per type and input set.

Inputs and reference figures are those of tests/vectors; `gauss-4096` is the sample of the larger matrix that
reference_errors.json describes. With importance the weighted error counts, without it the plain one. A
ratio below 1 means less error than the reference at the same number of bits.
"""

from __future__ import annotations

import argparse
import json
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
    sets["gauss-4096"] = gauss_4096(n_rows)
    larger = stored["larger"].get(type.name.lower(), {})
    figures["gauss-4096"] = {k: v.get("gauss", {}) for k, v in larger.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", type=int, default=64, help="rows of gauss-4096 (the stored figure is of all 4096)"
    )
    args = parser.parse_args()
    print("| type | input | importance | error | reference | ratio |\n| --- | --- | --- | --: | --: | --: |")
    for type in ikq.QuantType:
        if not type.can_encode:
            continue
        for (name, with_importance), (ours, theirs) in ratios(type, args.rows).items():
            ratio = f"{ours / theirs:.4f}" if theirs > 0 else ("exact" if ours == 0 else "-")
            given = "yes" if with_importance else "no"
            print(f"| {type.name} | {name} | {given} | {ours:.3e} | {theirs:.3e} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
