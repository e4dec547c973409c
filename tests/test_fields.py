"""Blocks as integers: `pack` and `unpack` are inverse to each other for every type."""

import numpy as np
import pytest
from golden import names, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

import ikq
from ikq import QuantType as T


def has_layout(t):
    try:
        return bool(ikq.block_fields(t))
    except ikq.UnsupportedError:
        return False


WITH_LAYOUT = [t for t in T if has_layout(t)]
# elements of a layout's unit where that is not the block
BLOCK = {t: 128 if t is T.I2_S else 2 if t is T.BF16_R16 else t.block_size for t in T}
_X4 = (T.Q8_0_X4, T.Q8_1_X4, T.Q8_2_X4)
BLOCK.update(dict.fromkeys(_X4, 128))


def test_every_storable_type_has_a_layout():
    assert {t for t in T if t.is_storable} <= set(WITH_LAYOUT)


@pytest.mark.parametrize("name", names())
def test_golden_bytes_come_back(name):
    for key, q in vectors(name).items():
        if key.split(".")[1].split("_")[0] == "q":
            again = ikq.pack(ikq.unpack(q, name), name)
            assert again.shape == q.shape
            assert np.array_equal(again, q), key


def random_fields(t, rng, n_rows, n_blocks):
    """Legal values of all fields."""
    lead = (n_blocks,) if t is T.I2_S else (n_rows, n_blocks)
    fields = {}
    for f in ikq.block_fields(t):
        low = -(f.levels // 2) if f.signed else 0
        fields[f.name] = rng.integers(low, low + f.levels, (*lead, f.count)).astype(f.dtype)
    if t is T.IQ4_KSS:
        # the codes of elements 2t, 2t + 1, 16 + 2t, 17 + 2t have an even number of ones together
        q = fields["q"].reshape(-1, 2, 8, 2)
        ones = np.unpackbits(q[..., np.newaxis], axis=-1).sum((1, 3, 4))
        q[:, 0, :, 0] ^= (ones % 2).astype(np.uint8)
    if t.row_header_bytes:
        fields["row_header"] = rng.integers(0, 256, (n_rows, t.row_header_bytes), dtype=np.uint8)
    if t is T.I2_S:
        fields["trailer"] = rng.integers(0, 256, 32, dtype=np.uint8)
    return fields


@pytest.mark.parametrize("t", WITH_LAYOUT)
def test_codes_to_bits_and_back(t):
    @settings(max_examples=max(settings().max_examples // 3, 5))
    @given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 3), n_blocks=st.integers(1, 4))
    def identity(seed, groups, n_blocks):
        fields = random_fields(t, np.random.default_rng(seed), groups * t.rows, n_blocks)
        data = ikq.pack(fields, t)
        n = n_blocks * BLOCK[t]
        if t is T.I2_S:
            assert data.shape == (n // 4 + 32,)
        else:
            assert data.shape == (groups * t.rows, ikq.row_bytes(t, n))
        again = ikq.unpack(data, t, None if t is T.I2_S else n)
        assert sorted(again) == sorted(fields)
        for name, values in fields.items():
            assert again[name].dtype == values.dtype
            assert np.array_equal(again[name].reshape(values.shape), values), name
        # and every bit of the data is in some field
        assert np.array_equal(ikq.pack(again, t).reshape(data.shape), data)

    identity()


@pytest.mark.parametrize("t", [t for t in WITH_LAYOUT if t.base])
def test_an_interleaved_type_has_the_fields_of_its_base(t):
    n = 2 * max(BLOCK[t], t.block_size)
    plain = np.random.default_rng(1).integers(0, 256, (2 * t.rows, ikq.row_bytes(t, n)), dtype=np.uint8)
    a, b = ikq.unpack(plain, t.base), ikq.unpack(ikq.repack(plain, t.base, t), t)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name].reshape(-1), b[name].reshape(-1)), name


def test_fields_that_cannot_be_are_refused():
    good = ikq.unpack(bytes(36), "Q4_0", 64)
    with pytest.raises(ikq.FormatError, match=r"field `q` of Q4_0: 16 is not in 0..15"):
        ikq.pack({**good, "q": good["q"] + 16}, "Q4_0")
    with pytest.raises(ikq.FormatError, match="has the fields d, q; got q"):
        ikq.pack({"q": good["q"]}, "Q4_0")
    with pytest.raises(ikq.ShapeError, match=r"field `q` of Q4_0 must have the shape"):
        ikq.pack({**good, "q": good["q"][..., :31]}, "Q4_0")
    with pytest.raises(ikq.FormatError, match="integers"):
        ikq.pack({**good, "q": good["q"] * 1.0}, "Q4_0")
    with pytest.raises(ikq.FormatError, match="even|odd"):
        kss = ikq.unpack(bytes(132), "IQ4_KSS", 256)
        kss["q"][0, 0, 0] = 1
        ikq.pack(kss, "IQ4_KSS")
