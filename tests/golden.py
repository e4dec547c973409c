"""The golden vectors of `tests/vectors`: what is there, and how it is compared."""

import json
from functools import cache
from pathlib import Path

import numpy as np

import ikq

VECTORS = Path(__file__).resolve().parent / "vectors"
TYPES = json.loads((VECTORS / "types.json").read_text())
REFERENCE = json.loads((VECTORS / "reference_errors.json").read_text())
ISAS = ikq.available_isas()


@cache
def inputs() -> dict[str, np.ndarray]:
    with np.load(VECTORS / "inputs.npz") as f:
        return dict(f)


@cache
def vectors(name: str) -> dict[str, np.ndarray]:
    with np.load(VECTORS / f"{name}.npz") as f:
        return dict(f)


def names() -> list[str]:
    """Types with vectors here, as the files are called."""
    return sorted(p.stem for p in VECTORS.glob("*.npz") if p.stem != "inputs")


def same_floats(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit equality, but for the sign of zeros."""
    if a.shape != b.shape or a.dtype != np.float32 or b.dtype != np.float32:
        return False
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | ((a == 0) & (b == 0))).all())


def round_trip(
    x: np.ndarray, t: ikq.QuantType, importance: np.ndarray | None = None, *, biased: bool = False
) -> np.ndarray:
    """What rows become, each independent of the others: I2_S, whose rows share a scale, gets a matrix for
    each row, and types that store rows together get rows of zeros to fill the last group."""
    if t is ikq.QuantType.I2_S:
        matrices = x.reshape(-1, 1, x.shape[-1])
        data = ikq.quantize(matrices, t, importance, biased=biased, clamp=True)
        return ikq.dequantize(data, t, x.shape[-1]).reshape(x.shape)
    rows = np.zeros((-(-len(x) // t.rows) * t.rows, x.shape[-1]), np.float32)
    rows[: len(x)] = x
    return ikq.dequantize(ikq.quantize(rows, t, importance, biased=biased, clamp=True), t, x.shape[-1])[
        : len(x)
    ]


def error(x: np.ndarray, y: np.ndarray, importance: np.ndarray | None) -> float:
    """`rel_rmse`, or `weighted_rel_rmse` with importance, as reference_errors.json defines them."""
    w = np.ones(x.shape[-1]) if importance is None else importance.astype(np.float64)
    x, y = x.astype(np.float64), y.astype(np.float64)
    energy = (w * x * x).sum()
    return float(np.sqrt((w * (y - x) ** 2).sum() / energy)) if energy else float(np.abs(y).max())
