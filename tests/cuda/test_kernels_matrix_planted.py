"""Errors planted in the matrix kernels, which values or sanitizers must see."""

import numpy as np
import planted
import pytest
from emulator import CUDA, Module, Program, aligned, build, for_types, needs_gxx, on_device, only_in_full
from weights import device_row_bytes

pytestmark = needs_gxx

UPGATE = '#define IKQ_TYPE q8_0\n#define IKQ_GATE q8_0\n#include "mmq_upgate.cu"\n'


def made(text, sanitizer=None, folder=CUDA):
    path = build(text, sanitizer, folder)
    return Program(path) if sanitizer else Module(path)


def plausible(name, n_rows, n, n_columns):
    rng = np.random.default_rng(2)
    w = on_device(rng.integers(0, 60, (n_rows, device_row_bytes(name, n)), dtype=np.uint8))
    q = on_device(rng.integers(-127, 128, (n_columns, n)).astype(np.int8))
    ds = on_device(rng.normal(size=(n_columns, n // 32, 2)).astype(np.float32))
    return w, q, ds, aligned((n_columns, n_rows), np.float32)


def run_mmq(module_, name, order=0, n_rows=40, n=256, n_columns=9):
    w, q, ds, y = plausible(name, n_rows, n, n_columns)
    args = (w, 0, None, None, 0, 1, q, ds, None, None, y, n_rows, n, n_columns, n_rows)
    return module_.launch(f"mmq_{name}_t32", 1, 512, *args, shared=61440, order=order), y


def run_upgate(module_, order=0):
    w, q, ds, y = plausible("q8_0", 64, 320, 5)
    args = (w, w, 0, 0, None, None, 0, 1, q, ds, None, None, 0, 1.0, 1.0, y, None, None, 64, 320, 5)
    return module_.launch("mmq_upgate_q8_0_q8_0_t32", 1, 512, *args, shared=61440, order=order), y


def wrong_values(error, name, n=512):
    text = for_types("mmq.cu", [name])
    want = run_mmq(made(text), name, n=n)[1]
    assert np.isfinite(want).all()
    with planted.planted(error) as folder:
        wrong = made(text, folder=folder)
        for order in (0, 1, 5):
            got = run_mmq(wrong, name, order, n=n)[1]
            distance = np.linalg.norm(got - want) / np.linalg.norm(want)
            if not distance <= 1e-5:
                return True
    return False


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (planted.COPY_NOT_AWAITED, "q8_0"),
        pytest.param(planted.COPY_OVER_WHAT_IS_READ, "q8_0", marks=only_in_full),
        pytest.param(planted.SCALE_OF_A_NEIGHBOUR, "q8_0", marks=only_in_full),
        pytest.param(planted.SCALES_OF_TOO_MANY, "q6_k", marks=only_in_full),
        pytest.param(planted.SCALE_OF_24_BITS, "q8_0", marks=only_in_full),
    ],
)
def test_errors_change_results(error, name):
    assert wrong_values(error, name)


@only_in_full
@pytest.mark.parametrize(
    ("text", "run", "error"),
    [
        (
            for_types("mmq.cu", ["q8_0"]),
            lambda m, order: run_mmq(m, "q8_0", order, n=320)[0],
            planted.BARRIER_OF_A_STEP,
        ),
        (
            for_types("mmq.cu", ["q8_0"]),
            lambda m, order: run_mmq(m, "q8_0", order, n=320)[0],
            planted.COPY_OVER_WHAT_IS_READ,
        ),
        (UPGATE, lambda m, order: run_upgate(m, order)[0], planted.BARRIER_OF_RESULTS),
    ],
)
def test_missing_barriers_are_races(text, run, error):
    right = made(text, "thread")
    for order in (0, 1, 5):
        assert run(right, order) == 0, right.report[:3000]
    with planted.planted(error) as folder:
        wrong = made(text, "thread", folder)
        assert any(run(wrong, order) for order in (0, 1, 5))
        assert "data race" in wrong.report


@only_in_full
@pytest.mark.parametrize(
    "error",
    [
        planted.COLUMN_TOO_MANY,
        planted.ROW_OF_A_TILE_TOO_MANY,
        planted.BLOCKS_BEHIND_A_ROW,
        planted.CODES_BEHIND_A_ROW,
    ],
)
def test_accesses_behind_the_end_are_seen(error):
    text = for_types("mmq.cu", ["q8_0"])
    right = made(text, "address")
    assert run_mmq(right, "q8_0", n=288)[0] == 0, right.report[:3000]
    with planted.planted(error) as folder:
        wrong = made(text, "address", folder)
        assert run_mmq(wrong, "q8_0", n=288)[0]
        assert "heap-buffer-overflow" in wrong.report
