"""Products of floats and many columns on (emulated) tensor cores against double precision."""

import numpy as np
import pytest
from emulator import FULL, ORDERS, aligned, for_types, module, needs_gxx, on_device
from nvrtc import FLOATS
from test_kernels_matrix import sorted_pairs

pytestmark = needs_gxx

U = 2.0**-24


def rows(name: str, n_rows: int, n: int, rng):
    """Rows as the kernel reads them, each padded to sixteen bytes, and their values."""
    values = rng.normal(size=(n_rows, n)).astype(np.float32) * np.float32(2.0) ** rng.integers(
        -3, 4, (n_rows, 1)
    )
    values = values.astype(np.float32)
    if name == "f16":
        stored = values.astype(np.float16)
        values, stored = stored.astype(np.float32), stored.view(np.uint16)
    elif name == "bf16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = values
    stored = stored.reshape(n_rows, n)
    n_bytes = stored.dtype.itemsize * n
    padded = np.zeros((n_rows, -(-n_bytes // 16) * 16), np.uint8)
    padded[:, :n_bytes] = stored.view(np.uint8).reshape(n_rows, n_bytes)
    return on_device(padded), values.astype(np.float64)


def check(y, w, x, extra, what):
    """Two floats of eleven bits each leave 2^-19 of a product out at most, and each of three products of eight elements rounds."""
    want = x @ w.T + extra
    terms = np.abs(x) @ np.abs(w).T
    limit = terms * (2.0**-19 + U * (3 * w.shape[1] / 8 + 4)) + 4 * U * np.abs(extra) + 1e-30
    assert (np.abs(y - want) <= limit).all(), (what, np.abs(y - want).max())
    assert np.linalg.norm(y - want) <= 2e-6 * np.linalg.norm(want), what


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    ("n_rows", "n", "n_columns"), [(5, 64, 9), (70, 100, 65), (64, 37, 64), (1, 32, 1), (3, 4, 2)]
)
def test_products_of_floats(name, n_rows, n, n_columns):
    rng = np.random.default_rng(n)
    device, w = rows(name, n_rows, n, rng)
    x = on_device(rng.normal(size=(n_columns, n)).astype(np.float32))
    bias = on_device(rng.normal(size=n_rows).astype(np.float32))
    y = aligned((n_columns, n_rows + 3), np.float32)
    y[:, :n_rows] = rng.normal(size=(n_columns, n_rows))
    extra = y[:, :n_rows].astype(np.float64) + bias
    grid = (-(-n_rows // 64), -(-n_columns // 64))
    module(for_types("mmf.cu", FLOATS)).run(
        f"mmf_{name}", grid, 128, device, 0, None, None, 0, 1, x, bias, y, y, n_rows, n, n_columns, n_rows + 3,
        order=ORDERS[n_rows % len(ORDERS)],
    )  # fmt: skip
    assert np.isnan(y[:, n_rows:]).all(), "written behind a column"
    check(y[:, :n_rows], w, x.astype(np.float64), extra, (name, n_rows, n, n_columns))


@pytest.mark.parametrize("name", FLOATS if FULL else ["bf16"])
def test_bits_depend_on_no_other_column(name):
    rng = np.random.default_rng(4)
    device, _ = rows(name, 40, 96, rng)
    x = rng.normal(size=(70, 96)).astype(np.float32)
    found = []
    for first, count in ((0, 70), (37, 1), (3, 65)):
        y = aligned((count, 40), np.float32)
        module(for_types("mmf.cu", FLOATS)).run(
            f"mmf_{name}", (1, -(-count // 64)), 128, device, 0, None, None, 0, 1, on_device(x[first : first + count]),
            None, None, y, 40, 96, count, 40,
        )  # fmt: skip
        found.append((first, count, y))
    for first, count, y in found:
        assert (y == found[0][2][first : first + count]).all()


@pytest.mark.parametrize("name", FLOATS if FULL else ["f32"])
def test_experts_of_floats_have_groups_of_any_size(name):
    rng = np.random.default_rng(5)
    counts, k, n_rows, n = [3, 0, 65, 1, 129], 2, 66, 48
    flat = rng.permutation(np.repeat(np.arange(5), counts)).astype(np.int32)
    bounds, order = sorted_pairs(flat.reshape(-1, k), 5)
    device, w = rows(name, 5 * n_rows, n, rng)
    x = on_device(rng.normal(size=(flat.size // k, n)).astype(np.float32))
    bias = on_device(rng.normal(size=(5, n_rows)).astype(np.float32))
    y = aligned((flat.size, n_rows), np.float32)
    module(for_types("mmf.cu", FLOATS)).run(
        f"mmf_{name}", (2, -(-flat.size // 64) + 5), 128, device, n_rows * device.shape[1], bounds, order, 5, k, x, bias,
        None, y, n_rows, n, flat.size, n_rows, order=3,
    )  # fmt: skip
    for e in range(5):
        pairs = np.flatnonzero(flat == e)
        if len(pairs):
            of = w[e * n_rows : (e + 1) * n_rows]
            check(y[pairs], of, x[pairs // k].astype(np.float64), bias[e].astype(np.float64), (name, e))
