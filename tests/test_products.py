"""Products with every type against the stored ones, and the public function."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from conftest import SHARED

import ikq
from ikq.speed.kernels import kernel, product, self_test

VECTORS = SHARED / "vectors"
HAVE_VECTORS = (VECTORS / "matmul.npz").is_file()
needs_vectors = pytest.mark.skipif(not HAVE_VECTORS, reason="../shared/vectors is not there: stored products")
ISAS = ikq.available_isas()


@cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(VECTORS / f"{name}.npz") as f:
        return dict(f)


def entries() -> list[tuple[str, str]]:
    """(type, input) of all stored products."""
    if not HAVE_VECTORS:
        return []
    return sorted({tuple(name.rsplit(".", 1)[0].split(".", 1)) for name in load("matmul")})


def weights(name: str, source: str) -> ikq.QTensor:
    """The matrix of a stored product: with importance where the type demands it."""
    stored = load(name)
    key = f"{source}.q" if f"{source}.q" in stored else f"{source}.q_im"
    x = load("inputs")[source]
    return ikq.QTensor(stored[key], name, (stored[key].size // row_bytes(name, x), x.shape[1]))


def row_bytes(name: str, x: np.ndarray) -> int:
    """Bytes of a row; of I2_S, whose scale stands behind the matrix, of the rows' share."""
    return ikq.tensor_bytes(name, x.shape) // x.shape[0]


def steps(x: np.ndarray) -> np.ndarray:
    """What separates the codes of 8-bit activations: 127 of them reach the largest of 32."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).astype(np.float64)
    peak = np.abs(padded.reshape(len(x), -1, 32)).max(axis=2)
    return np.repeat(peak / 127, 32, axis=1)[:, : x.shape[1]]


@needs_vectors
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "source"), entries())
def test_stored_products(name: str, source: str, isa: str) -> None:
    x, w = load("inputs")[f"{source}.x"], weights(name, source)
    y = load("matmul")[f"{name}.{source}.y"]
    decoded = np.abs(w.dequantize().astype(np.float64))
    rounding = (np.abs(x).astype(np.float64) @ decoded.T) * x.shape[1] * 2.0**-24
    exact = product(x, w, compute="f32", _isa=isa)
    assert (np.abs(exact - y) <= rounding).all()
    factor = json.loads((VECTORS / "types.json").read_text())[name].get("compute_factor") or 1.0
    fast = product(x, w, _isa=isa)
    # codes are at most half a step off
    assert (np.abs(fast - factor * y) <= factor * (steps(x) / 2 @ decoded.T) + 2 * rounding).all()
    # and evenly distributed within it: the root mean square follows; 64 values stray by a tenth of theirs
    expected = np.sqrt((steps(x) ** 2 / 12 @ (decoded**2).T).mean()) * factor
    found = np.sqrt(((fast - factor * y) ** 2).mean())
    assert found <= 1.5 * expected + rounding.max()


@needs_vectors
def test_products_are_as_exact_as_the_reference_in_the_mean() -> None:
    """Single entries, 64 numbers each, stray by a tenth; their mean must not be above the reference's."""
    reference = json.loads((VECTORS / "reference_errors.json").read_text())["matmul_rel_error"]
    types = json.loads((VECTORS / "types.json").read_text())
    ratios = []
    for name, source in entries():
        theirs = reference.get(name, {}).get(source) if isinstance(reference.get(name), dict) else None
        if not theirs or theirs < 1e-6:  # float types: both exact
            continue
        y = load("matmul")[f"{name}.{source}.y"] * (types[name].get("compute_factor") or 1.0)
        fast = product(load("inputs")[f"{source}.x"], weights(name, source))
        ratios.append(np.sqrt(((fast - y) ** 2).sum() / (y**2).sum()) / theirs)
    assert len(ratios) > 100
    assert np.mean(ratios) <= 1.0


@pytest.mark.parametrize("type", [t for t in ikq.QuantType if t.is_storable], ids=lambda t: t.name)
def test_kernels_pass_their_own_test(type: ikq.QuantType) -> None:
    assert kernel(type).startswith(ikq.isa())
    assert 0 < self_test(type) <= 1


def test_shapes_of_products() -> None:
    w = ikq.QTensor.quantize(np.eye(64, dtype=np.float32), "Q8_0")
    x = np.arange(64, dtype=np.float32)
    y = product(x, w)
    assert y.shape == (64,)
    assert np.abs(y - x).max() < 64 / 127
    assert product(x[None], w).shape == (1, 64)
    with pytest.raises(ikq.ShapeError, match=r"\(32,\).*\(64, 64\)"):
        product(x[:32], w)
    with pytest.raises(ikq.ShapeError):
        product(x, ikq.QTensor.quantize(np.zeros((2, 64, 64), np.float32), "Q8_0"))
