"""Encoders against the reference's errors, and the same bytes everywhere."""

import numpy as np
import pytest
from golden import ISAS, REFERENCE, error, inputs, vectors

import ikq
from ikq import QuantType as T

CAN = [t for t in T if t.can_encode]
NAMES = {T(n): n for n in REFERENCE["vectors"]}
# Rounding noise and the sampling of gauss; the reference's figures are to six digits.
RATIO = 1.01
# Where the reference's error is 0 the bound is absolute.
EXACT = 1e-7

LARGE = REFERENCE["larger"]
ROWS = 192


def bound(reference):
    return RATIO * reference if reference else EXACT


def case(t, matrix, with_imatrix):
    """Input, importance and what the encoder makes of them; scales as fitted have the least error."""
    x = inputs()[matrix]
    importance = inputs()[f"{matrix}.imatrix"]
    q = ikq.quantize(x, t, importance if with_imatrix else None, biased=True, clamp=True)
    return x, importance, ikq.dequantize(q, t, x.shape[-1])


CASES = [
    (t, matrix, setting)
    for t in CAN
    for matrix, figures in REFERENCE["vectors"].get(NAMES.get(t), {}).items()
    for setting in figures
]
IDS = [f"{t}-{matrix}-{setting}" for t, matrix, setting in CASES]


def test_every_encoder_has_a_reference():
    assert {t for t, _, _ in CASES} == set(CAN) - {T.F32}


@pytest.mark.parametrize(("t", "matrix", "setting"), CASES, ids=IDS)
def test_error_of_the_vectors(t, matrix, setting):
    """`weighted_rel_rmse` with importance, `rel_rmse` without."""
    with_imatrix = setting == "with_imatrix"
    reference = REFERENCE["vectors"][NAMES[t]][matrix][setting]
    x, importance, y = case(t, matrix, with_imatrix)
    assert np.isfinite(y).all()
    found = error(x, y, importance if with_imatrix else None)
    expected = reference["weighted_rel_rmse" if with_imatrix else "rel_rmse"]
    assert found <= bound(expected), f"{found / expected if expected else found:.4f} times the reference's"


SPECIAL = [c for c in CASES if c[1] == "special"]


@pytest.mark.parametrize(("t", "matrix", "setting"), SPECIAL, ids=[f"{t}-{s}" for t, _, s in SPECIAL])
def test_error_of_each_special_row(t, matrix, setting):
    with_imatrix = setting == "with_imatrix"
    reference = REFERENCE["vectors"][NAMES[t]][matrix][setting]
    per_row = reference["per_row_weighted_rel_rmse" if with_imatrix else "per_row_rel_rmse"]
    x, importance, y = case(t, matrix, with_imatrix)
    # of IQ2_XXS the reference has some rows only (its encoder aborts on a row with one element)
    rows = vectors(NAMES[t]).get("special.rows_im", np.arange(len(x)))
    assert len(per_row) == len(rows)
    worse = {}
    for i, expected in zip(rows, per_row, strict=True):
        if expected is None:
            # no energy (or none where it counts): a row of zeros must stay one
            assert x[i].any() or not y[i].any(), i
            continue
        found = error(x[i], y[i], importance if with_imatrix else None)
        if found > bound(expected):
            worse[f"{i} {inputs()['special.kinds'][i]}"] = (found, expected)
    assert not worse


LARGE_CASES = [
    (t, setting)
    for t in CAN
    if NAMES.get(t) in LARGE
    for setting in LARGE[NAMES[t]]
    if "gauss" in LARGE[NAMES[t]][setting]
]


@pytest.fixture(scope="module")
def gauss():
    """The first rows of the reference's 4096 x 4096 matrix, and its importance."""
    x = np.random.default_rng(896741).standard_normal((ROWS, 4096), dtype=np.float32)
    return x, np.exp(np.random.default_rng(495).normal(0.0, 1.5, 4096)).astype(np.float32)


@pytest.mark.parametrize(("t", "setting"), LARGE_CASES, ids=[f"{t}-{s}" for t, s in LARGE_CASES])
def test_error_of_a_sample_of_gauss(t, setting, gauss):
    x, importance = gauss
    weights = importance if setting == "with_imatrix" else None
    y = ikq.dequantize(ikq.quantize(x, t, weights, biased=True, clamp=True), t, 4096)
    figures = LARGE[NAMES[t]][setting]["gauss"]
    expected = figures["rel_rmse" if weights is None else "weighted_rel_rmse"]
    found = error(x, y, weights)
    assert found <= bound(expected), f"{found / expected:.4f} times the reference's"


# ---- the same bytes everywhere


@pytest.mark.parametrize("t", CAN)
def test_every_isa_gives_the_same_bytes(t):
    for matrix in ("real_down", "gauss", "special", "ternary"):
        x, importance = inputs()[matrix], inputs()[f"{matrix}.imatrix"]
        for weights in (None, importance):
            expected = ikq.quantize(x, t, weights, clamp=True, _isa="scalar")
            for isa in ISAS[1:]:
                found = ikq.quantize(x, t, weights, clamp=True, _isa=isa)
                assert np.array_equal(found, expected), (matrix, isa, np.argwhere(found != expected)[:3])


@pytest.mark.parametrize("t", CAN)
def test_any_number_of_threads_gives_the_same_bytes(t):
    rng = np.random.default_rng(11)
    x = rng.standard_normal((3, 80, 256), dtype=np.float32)
    importance = rng.exponential(size=(3, 256))
    for weights in (None, importance, importance[0]):
        expected = ikq.quantize(x, t, weights, n_threads=1)
        for n_threads in (2, 3, 5, 13):
            assert np.array_equal(ikq.quantize(x, t, weights, n_threads=n_threads), expected)


# all rows of a matrix share the scale of I2_S
@pytest.mark.parametrize("t", [t for t in CAN if t != T.I2_S])
def test_rows_do_not_know_of_each_other(t):
    x = inputs()["special"]
    whole = ikq.quantize(x, t, inputs()["special.imatrix"], clamp=True)
    for i in {i // t.rows * t.rows for i in (0, 5, 12, 13, 28, 31)}:
        rows = slice(i, i + t.rows)
        assert np.array_equal(
            ikq.quantize(x[rows], t, inputs()["special.imatrix"], clamp=True), whole[rows]
        ), i
