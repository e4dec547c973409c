"""`QTensor`: views, slices, pickling, DLPack."""

import pickle

import numpy as np
import pytest
from golden import vectors

import ikq
from ikq import QTensor
from ikq import QuantType as T


def tensor(t="IQ4_KS", experts=4):
    q = vectors(t.lower())["gauss.q"]
    return QTensor(q, t, (experts, 16 // experts, 1024), "blk.0.ffn_up_exps.weight"), q


def test_the_bytes_are_not_copied():
    t, q = tensor()
    assert np.shares_memory(t.raw, q)
    assert t.raw.shape == (4, 4, 548)
    assert t.nbytes == q.nbytes
    assert (t.type, t.shape, t.ndim, t.size) == (T.IQ4_KS, (4, 4, 1024), 3, 16384)
    with pytest.raises(ValueError, match="read-only"):
        t.raw[0, 0, 0] = 1
    q[0, 0] ^= 1  # the caller's array stays writable
    assert t.raw[0, 0, 0] == q[0, 0]
    q[0, 0] ^= 1


def test_dequantize():
    t, _ = tensor()
    assert np.array_equal(t.dequantize().reshape(16, 1024), vectors("iq4_ks")["gauss.dq"])
    row = QTensor(t.raw[0, 0].tobytes(), "iq4_ks", (1024,))
    assert np.array_equal(row.dequantize(), t.dequantize()[0, 0])
    z = vectors("i2_s")
    flat = QTensor(z["ternary.q"], "I2_S", (2, 8, 512))
    assert np.array_equal(flat.dequantize().reshape(16, 512), z["ternary.dq"])
    assert QTensor(b"", "F32", (0, 4)).dequantize().shape == (0, 4)


def test_slices_are_views():
    t, q = tensor()
    y = t.dequantize()
    s = slice
    for key in (2, -1, s(1, 3), (2, 1), (s(None), 3), (1, s(0, 2)), (s(0, 4, 2), s(1, 4)), ()):
        part = t[key]
        assert part.shape == y[key].shape
        assert np.shares_memory(part.raw, q)
        assert np.array_equal(part.dequantize(), y[key])
        assert part.name == t.name
    matrix = t[2]
    assert np.array_equal(matrix[1:3].dequantize(), y[2, 1:3])
    assert np.array_equal(matrix[np.int64(3)].dequantize(), y[2, 3])


def test_slices_outside_are_refused():
    t, _ = tensor()
    for key in (4, -5, (0, 4), (0, 0, 0), (0, 0, slice(0, 256)), "a", None, 1.5, [0, 1]):
        with pytest.raises(IndexError):
            t[key]
    with pytest.raises(IndexError):
        t[0, 0][0]
    assert t[4:].shape == (0, 4, 1024)


def test_interleaved_rows_are_cut_by_groups():
    t, _ = tensor("IQ4_KS_R4", experts=2)
    y = t.dequantize()
    assert np.array_equal(t[1].dequantize(), y[1])
    assert np.array_equal(t[1, 4:8].dequantize(), y[1, 4:])
    assert np.array_equal(t[:, -4:].dequantize(), y[:, -4:])
    for key in ((0, 3), (0, slice(0, 6)), (0, slice(2, 6)), (0, slice(0, 8, 2))):
        with pytest.raises(ikq.ShapeError, match="4 rows together"):
            t[key]


def test_what_cannot_be_cut():
    z = vectors("i2_s")
    with pytest.raises(ikq.UnsupportedError, match="cannot be cut"):
        QTensor(z["ternary.q"], "I2_S", (16, 512))[0]


@pytest.mark.parametrize("t", ["IQ4_KS", "IQ4_KS_R4", "Q4_0"])
def test_pickle(t):
    original, _ = tensor(t)
    again = pickle.loads(pickle.dumps(original))
    assert again.equals(original)
    assert again.name == original.name
    assert not again.raw.flags.writeable
    part = pickle.loads(pickle.dumps(original[1:3]))
    assert part.equals(original[1:3])
    assert np.array_equal(part.dequantize(), original.dequantize()[1:3])


def test_equals():
    t, q = tensor()
    assert t.equals(QTensor(q.copy(), "IQ4_KS", (4, 4, 1024)))
    assert not t.equals(QTensor(q, "IQ4_KS", (2, 8, 1024)))
    other = q.copy()
    other[3, 7] ^= 1
    assert not t.equals(QTensor(other, "IQ4_KS", (4, 4, 1024)))
    assert t != QTensor(q, "IQ4_KS", (4, 4, 1024))  # == is identity
    assert len({t, t}) == 1


def test_dlpack_is_the_raw_bytes():
    t, q = tensor()
    out = np.from_dlpack(t)
    assert np.array_equal(out.reshape(-1), q.reshape(-1))
    assert np.shares_memory(out, q)
    assert not out.flags.writeable
    assert t.__dlpack_device__() == (1, 0)
    old = _Old(t)  # a consumer that knows DLPack before 1.0
    assert np.array_equal(np.from_dlpack(old).reshape(-1), q.reshape(-1))
    with pytest.raises(BufferError):
        t.__dlpack__(copy=False)
    with pytest.raises(BufferError):
        t.__dlpack__(dl_device=(2, 0))


class _Old:
    def __init__(self, t):
        self.t = t

    def __dlpack__(self, **_):
        return self.t.__dlpack__()

    def __dlpack_device__(self):
        return self.t.__dlpack_device__()


def test_quantize_and_repr():
    x = np.random.default_rng(0).standard_normal((2, 4, 64), dtype=np.float32)
    im = np.ones((2, 64))
    t = QTensor.quantize(x, "Q4_0", im, name="w")
    assert np.array_equal(t.raw, ikq.quantize(x, "Q4_0", im))
    assert repr(t) == "QTensor(w, Q4_0, (2, 4, 64), 288 bytes)"
    assert repr(t[0, 1:2]) == "QTensor(w, Q4_0, (1, 64), 36 bytes)"


def test_it_cannot_be_changed():
    t, _ = tensor()
    with pytest.raises(AttributeError, match="immutable"):
        t.shape = (1,)
    with pytest.raises(AttributeError, match="immutable"):
        del t.raw


@pytest.mark.parametrize(
    ("raw", "type", "shape", "message"),
    [
        (bytes(35), "Q8_0", (1, 32), r"Q8_0 data of shape \(1, 32\) has 34 bytes, got 35"),
        (bytes(34), "Q8_0", (33,), "33 is not a multiple of 32"),
        (bytes(6 * 144), "Q4_K_R4", (6, 256), "4 rows together"),
        (bytes(34), "Q8_0", (-1, 32), "negative"),
        (b"", "F32", (2**31, 0, 2**30), "too large for an array"),
    ],
)
def test_shapes_that_do_not_fit(raw, type, shape, message):
    with pytest.raises(ikq.ShapeError, match=message):
        QTensor(raw, type, shape)
