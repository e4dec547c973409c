"""Repacking moves bits: exact there, exact back."""

import numpy as np
import pytest
from golden import TYPES, names, vectors

import ikq
from ikq import QuantType as T

INTERLEAVED = [t for t in T if t.rows > 1]
ONE_WAY = (T.Q8_K_R8, T.Q8_K_R16, T.Q8_KV_R8)
NO_TWIN = (T.IQ1_S_R4, T.IQ1_M_R4)


@pytest.mark.parametrize("name", [n for n in names() if TYPES[n]["base"]])
def test_golden_vectors(name):
    z, t = vectors(name), T(name)
    base = T(TYPES[name]["base"])
    keys = [k for k in z if ".base" in k]
    assert keys
    for key in keys:
        expected = z.get(key.replace(".base", ".repacked"), z[key.replace(".base", ".q")])
        if t is not T.Q8_K_R16:  # the reference makes it by direct encoding only
            assert np.array_equal(ikq.repack(z[key], base, t), expected), key
        if t not in ONE_WAY:
            assert np.array_equal(ikq.repack(expected, t, base), z[key]), key


@pytest.mark.parametrize("t", [t for t in INTERLEAVED if t.base])
def test_any_bytes_come_back(t):
    """Bits that no encoder writes are moved as well."""
    rng = np.random.default_rng(t.id)
    for n in (t.block_size * 2, t.block_size * 14):
        plain = rng.integers(0, 256, (2, 3 * t.rows, ikq.row_bytes(t, n)), dtype=np.uint8)
        packed = ikq.repack(plain, t.base, t)
        assert packed.shape == plain.shape
        assert np.array_equal(ikq.repack(packed, t, t.base), plain)
        flat = ikq.repack(plain.tobytes(), t.base, t, n)
        assert np.array_equal(flat, packed.reshape(-1))
        # the same floats, as far as random bytes are floats at all
        assert np.array_equal(
            ikq.dequantize(packed, t).view(np.uint32) << 1, ikq.dequantize(plain, t.base).view(np.uint32) << 1
        )


def test_between_interleaved_forms():
    plain = np.random.default_rng(0).integers(0, 256, (8, 36), dtype=np.uint8)
    r8 = ikq.repack(plain, T.Q4_0, T.Q4_0_R8)
    assert np.array_equal(ikq.repack(r8, T.Q4_0_R8, T.Q4_0_4_4), ikq.repack(plain, T.Q4_0, T.Q4_0_4_4))


def test_the_same_type_is_a_copy():
    data = np.arange(68, dtype=np.uint8).reshape(2, 34)
    out = ikq.repack(data, "Q8_0", "Q8_0")
    assert np.array_equal(out, data)
    assert not np.shares_memory(out, data)


@pytest.mark.parametrize("t", ONE_WAY + NO_TWIN)
def test_what_cannot_be_undone_is_refused(t):
    data = np.zeros((t.rows, ikq.row_bytes(t, 512)), np.uint8)
    plain = T(t.name.rsplit("_", 1)[0])
    with pytest.raises(ikq.UnsupportedError, match=t.name):
        ikq.repack(data, t, plain)


def test_other_pairs_are_refused():
    with pytest.raises(ikq.UnsupportedError, match="dequantize"):
        ikq.repack(np.zeros((4, 144), np.uint8), "Q4_K", "Q4_0")


def test_part_groups_are_refused():
    with pytest.raises(ikq.ShapeError, match="4 rows together"):
        ikq.repack(np.zeros((6, 144), np.uint8), "Q4_K", "Q4_K_R4")
    with pytest.raises(ikq.ShapeError, match="whole groups"):
        ikq.repack(np.zeros((2, 6, 144), np.uint8), "Q4_K", "Q4_K_R4")
