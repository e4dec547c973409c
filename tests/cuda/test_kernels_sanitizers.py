"""Kernels under sanitizers, and planted errors that the checks must see.

Here is a quick part; all kernel tests under both sanitizers: `make test-cuda`.
"""

import numpy as np
import planted
import pytest
from emulator import CUDA, Module, Program, aligned, build, for_types, needs_gxx, on_device, only_in_full
from weights import device_row_bytes

pytestmark = needs_gxx

TOGETHER = for_types("mmv.cu", ["iq2_kt"])
UPGATE = '#define IKQ_TYPE q8_0\n#define IKQ_GATE q8_0\n#include "upgate.cu"\n'
ROUTER = '#include "router.cu"\n'


def made(text, sanitizer=None, folder=CUDA):
    path = build(text, sanitizer, folder)
    return Program(path) if sanitizer else Module(path)


def products(name, n_rows, n, n_columns):
    """Arguments of a product of plausible bytes, and where its results go."""
    rng = np.random.default_rng(2)
    w = on_device(rng.integers(0, 60, (n_rows, device_row_bytes(name, n)), dtype=np.uint8))
    q = on_device(rng.integers(-127, 128, (n_columns, n)).astype(np.int8))
    ds = on_device(rng.normal(size=(n_columns, n // 32, 2)).astype(np.float32))
    y = aligned((n_columns, n_rows), np.float32)
    return w, q, ds, y


def run_mmv(module_, name, n_rows=5, n=256, n_columns=2, order=0):
    w, q, ds, y = products(name, n_rows, n, n_columns)
    args = (w, 0, None, 1, q, ds, None, None, y, n_rows, n, n_columns, n_rows)
    return module_.launch(f"mmv_{name}_c2", -(-n_rows // 4), 128, *args, order=order), y


def run_together(module_, order=0):
    """Two blocks, one with a single row; a warp with two units, others with one."""
    w, q, ds, y = products("iq2_kt", 33, 1280, 1)
    args = (w, 0, None, 1, q, ds, None, None, y, 33, 1280, 1, 33)
    return module_.launch("mmv_iq2_kt_c1", 2, 128, *args, order=order), y


def run_upgate(module_, order=0):
    w, q, ds, y = products("q8_0", 40, 64, 2)
    args = (w, w, 0, 0, None, 1, q, ds, None, None, 0, 1.0, 1.0, y, None, None, 40, 64, 2)
    return module_.launch("upgate_q8_0_q8_0_c2", 2, 256, *args, order=order)


def run_router(module_, order=0):
    logits = on_device(np.random.default_rng(3).normal(size=(2, 40)).astype(np.float32))
    ids, weights, bad = (
        aligned((2, 4), np.int32),
        aligned((2, 4), np.float32),
        on_device(np.full(2, -1, np.int32)),
    )
    return module_.launch(
        "router", 2, 32, logits, None, ids, weights, bad, 0, 40, 4, 0, 1, 1.0, 1, 1, 4, 0.0, order=order
    )


@pytest.mark.parametrize(
    ("text", "run", "error"),
    [
        (ROUTER, run_router, planted.MISSING_WARP_BARRIER),
        pytest.param(UPGATE, run_upgate, planted.MISSING_BARRIER, marks=only_in_full),
    ],
)
def test_missing_barriers_are_races(text, run, error):
    right = made(text, "thread")
    for order in (0, 1, 5):
        assert run(right, order) == 0, right.report
    with planted.planted(error) as folder:
        wrong = made(text, "thread", folder)
        assert run(wrong, 0)
        assert "data race" in wrong.report
        assert error[0] in wrong.report, "the report names the file"


@only_in_full
def test_rows_that_are_not_there_are_seen():
    text = for_types("mmv.cu", ["q6_0"])
    right = made(text, "address")
    assert run_mmv(right, "q6_0")[0] == 0, right.report
    with planted.planted(planted.ROW_TOO_MANY) as folder:
        wrong = made(text, "address", folder)
        assert run_mmv(wrong, "q6_0")[0]
        assert "heap-buffer-overflow" in wrong.report
    with planted.planted(planted.MISALIGNED_PLANE) as folder:
        wrong = made(text, "address", folder)
        assert run_mmv(wrong, "q6_0", n=96)[0]
        assert "misaligned address" in wrong.report


@only_in_full
def test_barriers_of_rows_together():
    right = made(TOGETHER, "thread")
    for order in (0, 1, 5):
        assert run_together(right, order)[0] == 0, right.report
    for error in (planted.BARRIER_OF_ACTIVATIONS, planted.BARRIER_OF_ROW_SUMS):
        with planted.planted(error) as folder:
            wrong = made(TOGETHER, "thread", folder)
            assert run_together(wrong)[0], error
            assert "data race" in wrong.report


@only_in_full
def test_rows_together_that_are_not_there_are_seen():
    right = made(TOGETHER, "address")
    assert run_together(right)[0] == 0, right.report
    with planted.planted(planted.ROW_TOGETHER_TOO_MANY) as folder:
        wrong = made(TOGETHER, "address", folder)
        assert run_together(wrong)[0]
        assert "heap-buffer-overflow" in wrong.report


@pytest.mark.parametrize("error", [planted.SCALE_OF_A_NEIGHBOUR_RUN, planted.ACTIVATIONS_OF_A_NEIGHBOUR])
def test_wrong_runs_together_change_results(error):
    want = run_together(made(TOGETHER))[1]
    with planted.planted(error) as folder:
        got = run_together(made(TOGETHER, folder=folder))[1]
    assert np.isfinite(want).all()
    assert (np.abs(got - want) > 1e-3 * np.abs(want)).any()


@only_in_full
def test_divergence_fails_a_launch():
    text = '#include "activations.cu"\n'
    x, q, ds = on_device(np.ones(256, np.float32)), aligned(256, np.int8), aligned((8, 2), np.float32)
    assert made(text).launch("quantize_act", 1, 256, x, q, ds, 256) == 0
    with planted.planted(planted.DIVERGENT_COLLECTIVE) as folder:
        assert made(text, folder=folder).launch("quantize_act", 1, 256, x, q, ds, 256) == 719
    with planted.planted(planted.BARRIER_NOT_REACHED) as folder:
        assert run_upgate(made(UPGATE, folder=folder)) == 719


@only_in_full
@pytest.mark.parametrize(
    ("error", "name"),
    [(planted.WRONG_OFFSET, "q6_k"), (planted.MIN_FORGOTTEN, "q4_k"), (planted.COLUMN_MIXED_UP, "q6_k")],
)
def test_wrong_arithmetic_changes_results(error, name):
    """The value checks compare each result with doubles to about 1e-6; these errors are far larger."""
    text = for_types("mmv.cu", [name])
    want = run_mmv(made(text), name)[1]
    with planted.planted(error) as folder:
        got = run_mmv(made(text, folder=folder), name)[1]
    assert np.isfinite(want).all()
    assert (np.abs(got - want) > 1e-3 * np.abs(want)).any()


def test_launches_that_a_driver_refuses():
    module_ = made('#include "activations.cu"\n')
    x, q, ds = on_device(np.ones(32, np.float32)), aligned(32, np.int8), aligned((1, 2), np.float32)
    for grid, block, shared in (
        (0, 256, 0),
        (1, 0, 0),
        (1, 257, 0),
        (1, 1025, 0),
        ((1, 65536, 1), 32, 0),
        (1, 32, 1 << 20),
    ):
        assert module_.launch("quantize_act", grid, block, x, q, ds, 32, shared=shared) == 1, (
            grid,
            block,
            shared,
        )
