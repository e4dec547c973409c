"""Matrix-vector products, fused FFN kernels and activations against double precision."""

import numpy as np
import pytest
from emulator import ORDERS, aligned, for_types, module, needs_gxx, on_device
from weights import TYPES, as_floats, device_form, device_row_bytes, random_rows, row_lengths

pytestmark = needs_gxx

FLOATS = ["f32", "f16", "bf16"]
FACTORS = {"iq2_kt": 1.05, "iq3_kt": 1.01}
U = 2.0**-24  # half a unit in the last place of a float


def activations():
    return module('#include "activations.cu"\n')


def quantized(x: np.ndarray, order: int = 0):
    """Columns as products read them, and the same as doubles."""
    n = x.shape[-1]
    q, ds = aligned(x.shape, np.int8), aligned((*x.shape[:-1], n // 32, 2), np.float32)
    activations().run("quantize_act", -(-x.size // 256), 256, on_device(x), q, ds, x.size, order=order)
    return q, ds, dequantized(q, ds)


def dequantized(q, ds):
    blocks = q.reshape(*q.shape[:-1], -1, 32).astype(np.float64) * ds[..., :1].astype(np.float64)
    return blocks.reshape(q.shape)


def weights(name: str, n_rows: int, n: int, rng):
    """A matrix in device form, and as doubles with the factor that products apply."""
    if name in FLOATS:
        w = rng.normal(size=(n_rows, n)).astype(np.float32)
        raw = w if name == "f32" else w.astype(np.float16) if name == "f16" else (w.view(np.uint32) >> 16).astype(np.uint16)
        exact = (raw.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else raw
        n_bytes = -(-raw.itemsize * n // 16) * 16
        device = aligned((n_rows, n_bytes), np.uint8)
        device[:, : raw.itemsize * n] = raw.view(np.uint8).reshape(n_rows, -1)
        return device, exact.astype(np.float64)
    data = random_rows(name, n_rows, n, rng)
    return device_form(name, data, n_rows, n), as_floats(name, data, n).astype(np.float64) * FACTORS.get(name, 1)


def bound(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What float arithmetic may differ from doubles in products of rows w and columns x, `(columns, rows)`.

    A lane adds two terms per run and four runs per unit at most, of every fourth unit, or a product for every 32nd
    float; five additions join lanes; six roundings make a term. A term is a code times a scale, or a min, which with all codes present is at most
    four times the largest weight.
    """
    n = w.shape[1]
    steps = -(-n // 32) + 8 + 5 + 6
    return U * steps * (np.abs(x) @ (np.abs(w) + 4 * np.abs(w).max(axis=1, keepdims=True)).T)


def columns_for(name, x, order=0):
    """Kernel arguments for columns, and their values."""
    if name in FLOATS:
        return on_device(x), None, x.astype(np.float64)
    return quantized(x, order)


@pytest.mark.parametrize("order", ORDERS)
def test_quantized_activations(order):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5, 96)) * np.exp(4 * rng.normal(size=(5, 1)))).astype(np.float32)
    x[2, 32:64] = 0
    x[3, :32] = 1e-38
    q, ds, back = quantized(x, order)
    most = np.abs(x).reshape(5, 3, 32).max(-1)
    assert (np.abs(q.astype(int)).reshape(5, 3, 32).max(-1) == np.where(most > 1e-30, 127, 0)).all()
    assert (np.abs(back - x) <= np.repeat(most, 32, -1).reshape(x.shape) * (0.5 / 127 + 1e-6) + 1e-30).all()
    sums = (q.reshape(5, 3, 32).astype(int).sum(-1) * ds[..., 0].astype(np.float64)).astype(np.float32)
    assert (ds[..., 1] == sums).all()


def mmv(name, module_, device, exact, n_columns, rng, order=0, bias=None, residual=None):
    n_rows, n = exact.shape
    x = rng.normal(size=(n_columns, n)).astype(np.float32)
    arg, ds, x = columns_for(name, x)
    c = next(c for c in (1, 2, 4, 8) if c >= n_columns)
    y = aligned((n_columns, n_rows + 3), np.float32)
    y[:, :n_rows] = 0 if residual is None else residual
    module_.run(
        f"mmv_{name}_c{c}", -(-n_rows // 4), 128, device, 0, None, 1, arg, ds, bias,
        None if residual is None else y, y, n_rows, n, n_columns, n_rows + 3, order=order,
    )  # fmt: skip
    assert np.isnan(y[:, n_rows:]).all(), "written behind a column"
    want = x @ exact.T + (0 if bias is None else bias) + (0 if residual is None else residual)
    error = np.abs(y[:, :n_rows] - want)
    assert (error <= bound(exact, x) + 3 * U * np.abs(want) + 1e-30).all(), (name, n_columns, n, error.max())


@pytest.mark.parametrize("name", FLOATS + TYPES)
def test_matrix_vector_products(name):
    rng = np.random.default_rng(11)
    products = module(for_types("mmv.cu", [name]))
    for n in row_lengths(name) if name in TYPES else [264, 13]:
        device, exact = weights(name, 6, n, rng)
        mmv(name, products, device, exact, 1, rng, 5)
        mmv(name, products, device, exact, 2, rng)
        mmv(name, products, device, exact, 3, rng, 1, bias=on_device(rng.normal(size=6).astype(np.float32)))
        mmv(name, products, device, exact, 8, rng, residual=rng.normal(size=(8, 6)).astype(np.float32))
