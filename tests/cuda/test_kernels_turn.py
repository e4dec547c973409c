"""Rows turned by a Hadamard matrix, as caches of few bits have them, against the matrix in double precision."""

import numpy as np
import planted
import pytest
from emulator import ORDERS, Module, Program, aligned, build, module, needs_gxx
from test_kernels_layers import PAGE, attention_module, cache_floats, f32, heads_module, i32, row_bytes
from test_kernels_products import U

pytestmark = needs_gxx

# parts of a row: one, or those of a latent row
PARTS = [(16,), (32,), (64,), (80,), (96,), (128,), (256,), (1024,), (512, 64), (96, 64), (48, 80)]


def run_of(n):
    return n & -n


def runs(parts):
    """The arguments of kernels: elements of the first part, its runs, those of the rest."""
    return parts[0], run_of(parts[0]), run_of(parts[-1])


def matrix(parts):
    """The turn of rows as a matrix: row i has the factors of the i-th element of the result."""
    n = sum(parts)
    i = np.arange(n, dtype=np.uint32)
    bits = (i + np.uint32(1)) * np.uint32(0x9E3779B9)
    bits = (bits ^ bits >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    signs = np.where((bits ^ bits >> np.uint32(12)) & np.uint32(1), -1.0, 1.0)
    out, first = np.zeros((n, n)), 0
    for part in parts:
        run = run_of(part)
        j = np.arange(run)
        hadamard = np.array([[1 - 2 * (int(a & b).bit_count() & 1) for a in j] for b in j]) / np.sqrt(run)
        for at in range(first, first + part, run):
            out[at : at + run, at : at + run] = hadamard * signs[at : at + run]
        first += part
    return out


def slack(parts, x):
    """Roundings of log2(run) sums and two factors, of what is at most the run's length as a vector."""
    longest = max(map(run_of, parts))
    return (np.log2(longest) + 4) * U * np.sqrt(longest) * np.abs(x).max()


@pytest.mark.parametrize("parts", PARTS)
def test_rows_are_turned_and_turned_back(parts):
    n = sum(parts)
    x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
    want = x @ matrix(parts).T
    for order in ORDERS:
        rows = f32(x)
        turn = module('#include "turn.cu"\n')
        turn.run("turn_rows", 3, 128, rows, n, *runs(parts), 0, order=order)
        assert np.abs(rows - want).max() <= slack(parts, x)
        turn.run("turn_rows", 3, 128, rows, n, *runs(parts), 1, order=order)
        assert np.abs(rows - x).max() <= 2 * slack(parts, x)


@pytest.mark.parametrize(("cache", "parts"), [("f32", (96,)), ("q6_0", (128,)), ("iq4_nl", (512, 64))])
def test_heads_are_turned_at_last(cache, parts):
    rng, n = np.random.default_rng(4), sum(parts)
    x, weight = rng.normal(size=(2, 2 * n)).astype(np.float32), f32(rng.normal(size=n))
    y = aligned((2, 2, n), np.float32)
    store = aligned((1, 2, PAGE, row_bytes(cache, n)), np.uint8)
    args = (f32(x), 2 * n, n, 2, n, weight, n, 1e-6, None, 0, 0, 0, y, n, store, i32([3, 200]), *runs(parts))
    heads_module().run(f"heads_{cache}", (2, 2), 32, *args, order=ORDERS[2])
    h = x.reshape(2, 2, n).astype(np.float64)
    h = h / np.sqrt((h**2).mean(-1, keepdims=True) + np.float32(1e-6)) * weight
    assert np.abs(y - h @ matrix(parts).T).max() <= slack(parts, h) + 24 * U * np.abs(h).max()
    stored = cache_floats(cache, store[0, :, [3, 200]], n)
    # what is stored is what is turned: half a step of the largest of a block is far less than this
    assert np.linalg.norm(stored - y) <= 0.1 * np.linalg.norm(y)


@pytest.mark.parametrize("n", [64, 96, 512])
def test_results_are_turned_back_before_their_gate(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(2, 3, n)).astype(np.float32)
    gate = f32(rng.normal(size=(2, 3, n)))
    partial = aligned((2, 3, 1, n + 2), np.float32)
    partial[:, :, 0, :n], partial[..., n], partial[..., n + 1] = values, 0.5, 2.0
    y, codes, ds = (
        aligned(s, t) for s, t in (((2, 3, n), "f4"), ((2, 3, n), "i1"), ((2, 3 * n // 32, 2), "f4"))
    )
    args = (partial, None, gate, n, y, codes, ds, 3, n, 1, run_of(n))
    for order in ORDERS:
        attention_module().run("attend_combine", (3, 2), 128, *args, order=order)
        want = values.astype(np.float64) / 2 @ matrix((n,)) / (1 + np.exp(-gate.astype(np.float64)))
        assert np.abs(y - want).max() <= slack((n,), values) + 8 * U * np.abs(want).max()
        assert (
            np.abs(codes * np.repeat(ds[..., 0], 32, -1).reshape(2, 3, n) - y).max() <= np.abs(y).max() / 200
        )


def test_planted_errors_are_seen():
    """A sign that is forgotten changes rows; a missing barrier is a race."""
    x = np.random.default_rng(1).normal(size=(1, 256)).astype(np.float32)
    with planted.planted(planted.SIGN_FORGOTTEN) as folder:
        rows = f32(x)
        Module(build('#include "turn.cu"\n', None, folder)).run(
            "turn_rows", 1, 128, rows, 256, 256, 256, 256, 0
        )
        assert np.abs(rows - x @ matrix((256,)).T).max() > 100 * slack((256,), x)
    with planted.planted(planted.BARRIER_OF_A_TURN) as folder:
        wrong = Program(build('#include "turn.cu"\n', "thread", folder))
        assert wrong.launch("turn_rows", 1, 128, f32(x), 256, 256, 256, 256, 0)
        assert "data race" in wrong.report
