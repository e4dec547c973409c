"""Shapes, errors, threads and interruption of `dequantize`, `quantize` and `repack`."""

import signal
import sys
import threading

import numpy as np
import pytest
from golden import ISAS, inputs, vectors

import ikq
from ikq import QuantType as T


def q8_0(*shape):
    return np.random.default_rng(3).integers(0, 60, shape, dtype=np.uint8)


# ---- dequantize: shapes


def test_rows_keep_their_axes():
    assert ikq.dequantize(q8_0(34), "Q8_0").shape == (32,)
    assert ikq.dequantize(q8_0(68), "Q8_0").shape == (64,)
    assert ikq.dequantize(q8_0(2, 3, 5, 68), "Q8_0").shape == (2, 3, 5, 64)
    assert ikq.dequantize(q8_0(0, 68), "Q8_0").shape == (0, 64)
    assert ikq.dequantize(q8_0(3, 0), "Q8_0").shape == (3, 0)


def test_flat_data_with_a_row_length():
    data = q8_0(4, 68)
    expected = ikq.dequantize(data, T.Q8_0)
    for flat in (data.reshape(-1), data.tobytes(), bytearray(data.tobytes()), memoryview(data.tobytes())):
        y = ikq.dequantize(flat, "q8_0", 64)
        assert y.shape == (4, 64)
        assert np.array_equal(y, expected)
    assert ikq.dequantize(data[0], "Q8_0", 64).shape == (1, 64)
    assert ikq.dequantize(b"", "Q8_0", 64).shape == (0, 64)


def test_views_and_strides_are_understood():
    data = q8_0(8, 102)
    y = ikq.dequantize(data, "Q8_0")
    assert np.array_equal(ikq.dequantize(data[::2], "Q8_0"), y[::2])
    assert np.array_equal(ikq.dequantize(data[::-1, 34:68], "Q8_0"), y[::-1, 32:64])
    data.flags.writeable = False
    assert np.array_equal(ikq.dequantize(data, "Q8_0"), y)


def test_interleaved_rows_come_in_groups():
    z = vectors("iq4_ks_r4")
    q, y = z["gauss.q"], z["gauss.dq"]
    assert np.array_equal(ikq.dequantize(q.reshape(2, 8, -1), "IQ4_KS_R4"), y.reshape(2, 8, -1))
    assert np.array_equal(ikq.dequantize(q[4:12], "IQ4_KS_R4"), y[4:12])
    assert np.array_equal(ikq.dequantize(q.reshape(-1), "IQ4_KS_R4", 1024), y)
    with pytest.raises(ikq.ShapeError, match="6 rows are not whole groups"):
        ikq.dequantize(q[:6], "IQ4_KS_R4")
    with pytest.raises(ikq.ShapeError, match="whole groups"):
        # 16 rows in all, but no expert has whole groups
        ikq.dequantize(q.reshape(8, 2, -1), "IQ4_KS_R4")
    with pytest.raises(ikq.ShapeError, match=r"give an array \(..., n_rows, row_bytes\), or n_per_row"):
        ikq.dequantize(q.reshape(-1), "IQ4_KS_R4")


def test_i2_s_is_one_flat_matrix():
    z = vectors("i2_s")
    q, y = z["ternary.q"], z["ternary.dq"]
    assert np.array_equal(ikq.dequantize(q, "I2_S"), y.reshape(-1))
    assert np.array_equal(ikq.dequantize(q, "I2_S", 512), y)
    both = ikq.dequantize(np.stack([q, q]), "I2_S", 512)
    assert np.array_equal(both, np.stack([y, y]))
    with pytest.raises(ikq.ShapeError, match="32 bytes more"):
        ikq.dequantize(q[:-1], "I2_S")
    with pytest.raises(ikq.ShapeError, match="not whole rows of 500"):
        ikq.dequantize(q, "I2_S", 500)


@pytest.mark.parametrize(
    ("data", "type", "n", "error", "message"),
    [
        (q8_0(35), "Q8_0", None, ikq.ShapeError, "rows of Q8_0 have a multiple of 34 bytes, not 35"),
        (q8_0(142), "IQ4_KS", None, ikq.ShapeError, r"have 4 \+ a multiple of 136 bytes, not 142"),
        (q8_0(35), "Q8_0", 32, ikq.ShapeError, "35 bytes are not whole rows of 32"),
        (q8_0(2, 68), "Q8_0", 32, ikq.ShapeError, "34 bytes, but the data's last axis 68"),
        (q8_0(34), "Q8_0", 33, ikq.ShapeError, "33 is not a multiple of 32"),
        (q8_0(34), "Q8_0", -32, ikq.ShapeError, "must not be negative"),
        (q8_0(34), "Q8_0", 32.0, ikq.ShapeError, "must be an integer"),
        (np.zeros(34, np.int8), "Q8_0", None, ikq.FormatError, "uint8, not of int8"),
        (np.zeros(34, np.float32), "Q8_0", None, ikq.FormatError, "uint8, not of float32"),
        (np.zeros((), np.uint8), "F32", None, ikq.ShapeError, "at least one axis"),
        ([1, 2], "Q8_0", None, ikq.FormatError, "not list"),
        ("text", "Q8_0", None, ikq.FormatError, "not str"),
        (q8_0(34), "Q9_9", None, ikq.FormatError, "unknown type `Q9_9`"),
        (q8_0(34), 12345, None, ikq.FormatError, "unknown type id 12345"),
    ],
)
def test_dequantize_refuses_in_words(data, type, n, error, message):
    with pytest.raises(error, match=message):
        ikq.dequantize(data, type, n)


# ---- quantize: shapes


def test_quantize_replaces_the_last_axis():
    x = np.random.default_rng(1).standard_normal((3, 4, 64), dtype=np.float32)
    for t in (T.F16, T.BF16, T.Q4_0):
        q = ikq.quantize(x, t)
        assert q.dtype == np.uint8
        assert q.shape == (3, 4, ikq.row_bytes(t, 64))
        assert np.array_equal(ikq.quantize(x[1], t), q[1])
        assert np.array_equal(ikq.quantize(x[1, 2], t), q[1, 2])
        assert ikq.quantize(x[:, :0], t).shape == (3, 0, ikq.row_bytes(t, 64))


def test_float_dtypes():
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float16)
    expected = ikq.quantize(x.astype(np.float32), "Q4_0")
    assert np.array_equal(ikq.quantize(x, "Q4_0"), expected)
    assert np.array_equal(ikq.quantize(x.astype(np.float64), "Q4_0"), expected)
    assert np.array_equal(ikq.quantize(x.astype(">f4"), "Q4_0"), expected)
    assert np.array_equal(ikq.quantize(np.asfortranarray(x), "Q4_0"), expected)
    assert np.array_equal(ikq.quantize(x.tolist(), "Q4_0"), expected)
    for wrong in (np.uint16, np.int32, bool, complex):
        with pytest.raises(ikq.FormatError, match="must be an array of float32"):
            ikq.quantize(x.astype(wrong), "Q4_0")


def test_f32_is_a_copy_and_bf16_rounds_to_even():
    x = inputs()["special"]
    assert np.array_equal(ikq.quantize(x, "F32").view(np.float32), x)
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert ikq.quantize(bits, "BF16").view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_imatrix_shapes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 4, 64), dtype=np.float32)
    im = rng.exponential(size=(3, 64))
    shared = ikq.quantize(x, "Q4_0", im[0])
    own = ikq.quantize(x, "Q4_0", im)
    for e in range(3):
        assert np.array_equal(own[e], ikq.quantize(x[e], "Q4_0", im[e]))
        assert np.array_equal(shared[e], ikq.quantize(x[e], "Q4_0", im[0].astype(np.float32)))
    assert not np.array_equal(own, shared)
    one = ikq.quantize(x[:1], "Q4_0", im[:1])
    assert np.array_equal(one[0], own[0])
    for wrong in (im[:2], im[:, :63], im[0, :63], im[:, None, :], 1.0, im.T):
        with pytest.raises(ikq.ShapeError, match=r"imatrix must have the shape \(64,\) or \(3, 64\)"):
            ikq.quantize(x, "Q4_0", wrong)
    for wrong in (im, im[:1]):
        with pytest.raises(ikq.ShapeError, match=r"imatrix must have the shape \(64,\), not"):
            ikq.quantize(x[0], "Q4_0", wrong)


def test_bad_importance_is_named():
    x = np.ones((2, 3, 64), np.float32)
    im = np.ones((2, 64))
    for value in (-1.0, np.nan, np.inf):
        im[1, 5] = value
        with pytest.raises(ikq.FormatError, match="expert 1, importance of column 5 is"):
            ikq.quantize(x, "Q4_0", im)
        with pytest.raises(ikq.FormatError, match="^importance of column 5 is"):
            ikq.quantize(x[1], "Q4_0", im[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("t", [t for t in T if t.can_encode])
def test_nan_and_infinity_are_named(t, value):
    x = np.ones((3, 16, 256), np.float32)
    x[2, 3, 77] = x[2, 4, 3] = value
    with pytest.raises(ikq.FormatError, match=r"expert 2, row 3, column 77 is (NaN|-?inf): only finite"):
        ikq.quantize(x, t)
    with pytest.raises(ikq.FormatError, match=r"^row 3, column 77 is"):
        ikq.quantize(x[2], t)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_the_first_bad_value_is_named_whatever_the_threads(n_threads):
    x = np.ones((4, 400, 256), np.float32)
    x[1, 399, 0] = x[2, 0, 0] = x[3, 17, 5] = np.nan
    with pytest.raises(ikq.FormatError, match="expert 1, row 399, column 0 "):
        ikq.quantize(x, "Q4_0", n_threads=n_threads)


def test_too_large_for_float32_is_infinite():
    with pytest.raises(ikq.FormatError, match="row 0, column 1 is inf"):
        ikq.quantize(np.array([1.0, 1e300] * 16), "Q4_0")


@pytest.mark.parametrize(
    ("shape", "type", "error", "message"),
    [
        ((2, 33), "Q4_0", ikq.ShapeError, "33 is not a multiple of 32"),
        ((1, 2, 2, 32), "Q4_0", ikq.ShapeError, "must have the shape"),
        ((), "Q4_0", ikq.ShapeError, "must have the shape"),
        ((2, 32), "Q8_K", ikq.UnsupportedError, r"Q8_K cannot be written; types that can: F32, F16"),
        ((2, 32), "F64", ikq.UnsupportedError, "F64 cannot be written"),
        ((6, 256), "Q4_K_R4", ikq.ShapeError, "6 rows are not a multiple of 4"),
        ((2, 32), "nonsense", ikq.FormatError, "unknown type"),
    ],
)
def test_quantize_refuses_in_words(shape, type, error, message):
    with pytest.raises(error, match=message):
        ikq.quantize(np.zeros(shape, np.float32), type)


def test_threads_and_isa_are_checked():
    x = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        ikq.quantize(x, "Q4_0", n_threads=0)
    with pytest.raises(ikq.UnsupportedError, match="no instruction set `avx9`"):
        ikq.quantize(x, "Q4_0", _isa="avx9")
    assert ikq.isa() in ISAS
    assert ISAS[0] == "scalar"


# ---- the interpreter


def test_the_interpreter_lock_is_released():
    """A thread that holds the lock keeps it for ever here, unless it gives it away."""
    x = np.ones((2048, 1024), np.float32)
    q = ikq.quantize(x, "Q4_0")
    fields = ikq.unpack(q, "Q4_0")
    calls = [
        lambda: ikq.quantize(x, "Q4_0", n_threads=1),
        lambda: ikq.dequantize(q, "Q4_0", n_threads=1),
        lambda: ikq.repack(q, "Q4_0", "Q4_0_R8"),
        lambda: ikq.unpack(q, "Q4_0"),
        lambda: ikq.pack(fields, "Q4_0"),
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for call in calls:
            started, ended = threading.Event(), []

            def work(call=call, started=started, ended=ended):
                started.set()
                call()
                ended.append(True)

            thread = threading.Thread(target=work)
            thread.start()
            started.wait()
            assert not ended
            thread.join()
            assert ended
    finally:
        sys.setswitchinterval(interval)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_signal_ends_a_long_call(n_threads):
    """What the handler raises comes out, as Ctrl-C's KeyboardInterrupt does."""

    def handler(*_):
        raise Interrupted

    # an encoder with a search needs seconds for this
    x = np.random.default_rng(0).standard_normal((8192, 4096), dtype=np.float32)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            ikq.quantize(x, "IQ3_S", n_threads=n_threads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ikq.quantize(x[0], "Q4_0").shape == (2304,)


def test_calls_from_many_threads():
    x = np.random.default_rng(4).standard_normal((64, 1024), dtype=np.float32)
    expected = ikq.quantize(x, "Q4_0")
    wrong = []

    def work():
        for _ in range(5):
            if not np.array_equal(ikq.quantize(x, "Q4_0"), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    import multiprocessing

    x = np.ones((64, 1024), np.float32)
    ikq.quantize(x, "Q4_0")  # starts the shared pool, which a fork does not copy
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_quantized_bytes, (x,)).get(60) == ikq.quantize(x, "Q4_0").tobytes()


def _quantized_bytes(x):
    return ikq.quantize(x, "Q4_0").tobytes()
