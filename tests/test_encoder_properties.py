"""What every encoder must do with any input: hypothesis looks for the input where it does not."""

import golden
import numpy as np
import pytest
from golden import REFERENCE, inputs
from hypothesis import given
from hypothesis import strategies as st

import ikq
from ikq import QuantType as T

CAN = [t for t in T if t.can_encode]
SEARCHED = [t for t in CAN if t.family != "float"]
N = 512

# Bound of the root mean square error of a row as a share of its largest value. A quantizer with the
# largest gap g between neighbouring levels (in units of the largest value) errs by at most g / 2
# inside its range, and a searched scale is not worse in the mean; as much again is allowed for
# the rounding of sub-block scales and for an end level that is not reached (Q4_0: 7 of 8).
LEVEL_GAPS = {
    T.Q8_0: 1 / 127,
    T.Q4_0: 1 / 8,
    T.Q5_0: 1 / 16,
    T.Q6_0: 1 / 32,
    T.Q8_KV: 1 / 127,
    # a minimum and a range of up to twice the largest value
    T.Q4_1: 2 / 15,
    T.Q5_1: 2 / 31,
    T.Q2_K: 2 / 3,
    T.Q4_K: 2 / 15,
    T.Q5_K: 2 / 31,
    T.Q3_K: 1 / 4,
    T.Q6_K: 1 / 32,
    T.IQ4_NL: 24 / 127,
    T.IQ4_XS: 24 / 127,
    T.IQ4_KS: 24 / 127,
    T.IQ4_K: 24 / 127,
    # a codebook of 512 of the 4096 words of four: two levels of eight are a safe bound
    T.IQ3_S: 2 / 8,
}


# Types whose codes stand for several elements together: no element can be had alone.
VECTOR_CODES = {
    *(T.IQ1_S, T.IQ1_M, T.IQ1_S_R4, T.IQ1_M_R4, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S),
    *(T.IQ2_KL, T.IQ1_KT, T.IQ2_KT, T.IQ3_KT, T.IQ4_KT),
}


def plain(t):
    """The type whose codes an interleaved type has."""
    return t.base or t


@st.composite
def rows(draw, max_exponent=10):
    """A few rows of floats of many kinds: dense, sparse, with outliers, with scales that vary by block."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["normal", "uniform", "heavy", "sparse", "blocks", "levels", "positive"]))
    scale = 2.0 ** draw(st.integers(-max_exponent, max_exponent))
    shape = (draw(st.integers(1, 3)), N)
    x = {
        "normal": lambda: rng.standard_normal(shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "heavy": lambda: rng.standard_t(2, shape),
        "sparse": lambda: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
        "blocks": lambda: rng.standard_normal(shape) * np.repeat(10 ** rng.uniform(-3, 1, N // 32), 32),
        "levels": lambda: rng.integers(-7, 8, shape) / 7,
        "positive": lambda: rng.uniform(0.5, 1, shape),
    }[kind]()
    return np.clip(x * scale, -60000, 60000).astype(np.float32)


@st.composite
def importances(draw):
    """None, or importances with zero columns and zero blocks among them."""
    if draw(st.booleans()):
        return None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = np.exp(rng.normal(0, draw(st.floats(0, 3)), N))
    w *= rng.random(N) >= draw(st.sampled_from([0, 0.1, 0.9]))
    for block in draw(st.lists(st.integers(0, N // 32 - 1), max_size=4)):
        w[32 * block : 32 * block + 32] = 0
    if draw(st.booleans()):
        w[256:] = 0
    return w.astype(np.float32)


def round_trip(x, t, importance=None, biased=False):
    y = golden.round_trip(x, t, importance, biased=biased)
    assert np.isfinite(y).all()
    return y


def squared(x, importance):
    """Per row, weighted as the encoders weigh: columns without importance count a ten-thousandth."""
    w = np.ones(N)
    if importance is not None and importance.any():
        w = importance / importance.mean(dtype=np.float64) + 1e-4
    return (w * x.astype(np.float64) ** 2).sum(-1)


@pytest.mark.parametrize("t", SEARCHED)
def test_no_worse_than_nothing(t):
    """A zero scale can always be stored, so the error never exceeds the row's energy."""

    @given(x=rows(), importance=importances())
    def check(x, importance):
        y = round_trip(x, t, importance)
        assert (squared(y - x, importance) <= squared(x, importance) * (1 + 1e-6)).all()

    check()


@pytest.mark.parametrize("t", [t for t in LEVEL_GAPS if t.can_encode])
def test_round_trip_bound(t):
    @given(x=rows())
    def check(x):
        y = round_trip(x, t)
        rms = np.sqrt(((y - x).astype(np.float64) ** 2).mean(-1))
        # the smallest f16 scale is 2^-24: below it, levels times that
        assert (rms <= LEVEL_GAPS[t] * np.abs(x).max(-1) + 128 * 2.0**-25).all()

    check()


@pytest.mark.parametrize(("t", "digits"), [(T.F16, 11), (T.BF16, 8)])
def test_float_types_round_to_nearest(t, digits):
    @given(x=rows(), importance=importances())
    def check(x, importance):
        y = round_trip(x, t, importance)
        smallest = 2.0**-25 if t is T.F16 else 0
        assert (np.abs(y - x) <= np.maximum(np.abs(x) * 2.0**-digits, smallest)).all()
        assert np.array_equal(round_trip(y, t), y)

    check()


@pytest.mark.parametrize("t", CAN)
def test_scaling_by_powers_of_two_scales_the_result(t):
    # scales from 2^0 to 2^8: no type's stored scale is subnormal or above 65504 there

    @given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 8), importance=importances())
    def check(seed, k, importance):
        x = np.random.default_rng(seed).standard_normal((2, N)).astype(np.float32)
        x[np.abs(x) < 2.0**-14] = 0  # F16 has fewer digits there
        y = round_trip(x, t, importance)
        scaled = round_trip(x * np.float32(2**k), t, importance)
        assert np.array_equal(scaled, y * np.float32(2**k))

    check()


@pytest.mark.parametrize("t", CAN)
def test_scaling_the_importance_changes_nothing(t):
    @given(x=rows(), importance=importances(), k=st.integers(-20, 20))
    def check(x, importance, k):
        if importance is not None:
            x = x[np.arange(-(-len(x) // t.rows) * t.rows) % len(x)]
            a = ikq.quantize(x, t, importance, clamp=True)
            assert np.array_equal(a, ikq.quantize(x, t, importance * np.float32(2.0**k), clamp=True))

    check()


@pytest.mark.parametrize("t", CAN)
def test_zero_rows_stay_zero(t):
    for importance in (None, np.ones(N), np.zeros(N)):
        for zero in (0.0, -0.0):
            assert not round_trip(np.full((2, N), zero, np.float32), t, importance).any()


@pytest.mark.parametrize("t", CAN)
def test_zero_blocks_among_others(t):
    x = np.random.default_rng(0).standard_normal((2, N), dtype=np.float32)
    x[0, :256] = 0
    x[1, 32:64] = 0
    y = round_trip(x, t)
    assert (squared(y - x, None) <= squared(x, None)).all()
    if plain(t) in (T.Q4_K, T.Q5_K):  # an affine block can hold zeros only as far as its scale allows
        return
    # a row scale, no zero among the integer scales: the least scale is one of 127, the level nearest to
    # zero another of 127 (IQ4_KS and its like); the row's largest value need not reach the last of both. A
    # trellis code has eight values, which are small at once, not zero at once. IQ1_S_R4: one of 15, and a
    # shift of one of eight
    largest = np.abs(x[0]).max()
    byte_scales = dict.fromkeys((T.IQ4_KS, T.IQ4_KSS, T.IQ5_KS), 2 / 127**2)
    nearest = byte_scales | {T.IQ1_KT: 1 / 127, T.IQ2_KT: 1 / 127, T.IQ1_S_R4: 1 / 15 / 8}
    assert np.abs(y[0, :256]).max() <= nearest.get(plain(t), 0) * largest


@pytest.mark.parametrize("t", CAN)
def test_denormals_and_tiny_values(t):
    rng = np.random.default_rng(1)
    for scale in (2.0**-149, 1e-40, 1e-38, 1e-30, 1e-12, 2.0**-24):
        x = (rng.integers(-8, 9, (2, N)) * scale).astype(np.float32)
        for importance in (None, np.full(N, 1e-38), np.full(N, 1e30)):
            y = round_trip(x, t, importance)
            if t.family != "float":
                assert (squared(y - x, None) <= squared(x, None) * (1 + 1e-6) + 1e-90).all(), scale


@pytest.mark.parametrize("t", CAN)
def test_the_largest_halves(t):
    x = np.where(np.random.default_rng(2).random((2, N)) < 0.5, 65504, -65504).astype(np.float32)
    y = round_trip(x, t)
    one = np.zeros((1, N), np.float32)
    one[0, 100] = -65504
    hot = round_trip(one, t)
    if t is T.NVFP4:
        # 448 * 6 is the largest number it has
        assert np.array_equal(y, np.sign(x) * 2688)
        assert hot[0, 100] == -2688
        return
    if plain(t) in VECTOR_CODES:
        assert (squared(y - x, None) <= squared(x, None)).all()
    else:
        # every value is the largest: a searched scale leaves less than the end levels' asymmetry
        assert np.abs(y - x).max() <= 65504 / 7
    if plain(t) in VECTOR_CODES or t is T.Q1_0_G128:
        assert squared(hot - one, None) <= squared(one, None)
    else:
        assert abs(hot[0, 100] + 65504) <= 65504 * 0.5


@pytest.mark.parametrize("t", CAN)
def test_values_beyond_half_precision_saturate(t):
    for largest in (1e6, 1e20, 3.4e38):
        x = (np.random.default_rng(3).uniform(-1, 1, (2, N)) * largest).astype(np.float32)
        for importance in (None, np.ones(N)):
            round_trip(x, t, importance)  # finite: checked there


# with an importance their elements weigh by their size, too: sqrt(1 + x^2 / mean x^2)
WEIGH_BY_SIZE = {T.IQ2_XS, T.IQ2_S}


@pytest.mark.parametrize("t", SEARCHED)
def test_one_hot_rows(t):
    for value in (1.0, -1.0, 0.013, -3000.0):
        for at in (0, 31, 32, 255, 256, 511):
            x = np.zeros((1, N), np.float32)
            x[0, at] = value
            for importance in (None, np.ones(N), np.where(np.arange(N) == at, 0, 1.0)):
                y = round_trip(x, t, importance)
                # the root of the weight, on both sides
                by_size = 1.0
                if importance is not None and plain(t) in WEIGH_BY_SIZE:
                    by_size = (1 + x.astype(np.float64) ** 2 / (x.astype(np.float64) ** 2).mean()) ** 0.25
                error, energy = squared((y - x) * by_size, importance), squared(x * by_size, importance)
                assert (error <= energy * (1 + 1e-6)).all()


@pytest.mark.parametrize("t", SEARCHED)
def test_constant_rows(t):
    """As well as the reference its constant row; 0.02 covers f16 scales that are subnormal at 0.013."""
    bound = 0.02
    figures = REFERENCE["vectors"][plain(t).name.lower()].get("special")
    if figures is not None:
        figures = figures.get("without_imatrix", figures.get("with_imatrix"))["per_row_rel_rmse"]
        row = list(inputs()["special.kinds"]).index("constant_positive")
        bound = max(1.01 * figures[row], bound)
    values = [1.0, -1.0, 0.013, -3000.0]
    if plain(t) is T.MXFP4:
        bound = 0.2  # scales are powers of two; 1.25 lies between 1 and 1.5
    if t is T.NVFP4:
        values[2:] = 0.2, -1000.0  # its range
    for value in values:
        x = np.full((1, N), value, np.float32)
        # scales as fitted, like the reference's: they have the least error
        y = round_trip(x, t, biased=True)
        assert np.sqrt(((y - x) ** 2).mean()) <= bound * abs(value), value


@pytest.mark.parametrize("t", [t for t in SEARCHED if t.imatrix != "ignored"])
def test_importance_moves_the_error_where_it_does_not_count(t):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((8, N), dtype=np.float32)
    importance = np.where(rng.random(N) < 0.25, 100, 0.01)
    plain, weighted = round_trip(x, t), round_trip(x, t, importance)
    assert squared(weighted - x, importance).sum() < squared(plain - x, importance).sum()


@pytest.mark.parametrize("t", SEARCHED)
def test_columns_and_blocks_without_importance(t):
    """They are encoded sensibly all the same: never worse than zeros, far better in the mean."""
    x = np.random.default_rng(5).standard_normal((8, N), dtype=np.float32)
    for dead in (slice(0, 256), slice(32, 64), slice(0, N), slice(1, N), slice(0, N, 2)):
        importance = np.ones(N, np.float32)
        importance[dead] = 0
        y = round_trip(x, t, importance)
        lost = ((y - x)[:, dead] ** 2).sum() / (x[:, dead] ** 2).sum()
        # a vector code (two bits a weight, eight weights a code) spends its bits on the columns that
        # count: the others may become an independent draw of the same size, which loses 2
        assert lost < (2.2 if t.family == "trellis" else 0.5), (dead, lost)
