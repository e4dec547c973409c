"""The type table as Python sees it."""

import copy
import pickle

import pytest
from golden import TYPES

import ikq
from ikq import QuantType as T
from ikq import _ikq


def test_the_members_are_those_of_the_rust_table():
    assert [(t.name, t.id) for t in T] == [(f.name, f.id) for f in _ikq.type_facts()]


@pytest.mark.parametrize("name", sorted(TYPES))
def test_facts_against_the_reference(name):
    t, facts = T(name), TYPES[name]
    assert t.id == facts["id"]
    assert t.rows == facts["rows_interleaved"]
    assert t.row_header_bytes == facts["row_meta_bytes"]
    assert (t.block_size, t.block_bytes) == (facts["block"], facts["block_bytes"])
    if t.base is not None:
        assert t.base is T(facts["base"])


def test_names_ids_and_aliases():
    assert T("iq4_ks") is T("IQ4_KS") is T(144) is T(T.IQ4_KS) is T["IQ4_KS"]
    assert T("q4_0_4x4") is T.Q4_0_4_4
    assert T("q1_0") is T.Q1_0_G128
    assert str(T.Q4_K) == f"{T.Q4_K}" == "Q4_K"
    assert f"{T.Q4_K:>6}" == "  Q4_K"
    assert int(T.Q4_K) == 12


def test_an_unknown_name_is_answered_with_the_near_ones():
    with pytest.raises(ikq.FormatError, match=r"unknown type `iq4ks`; did you mean IQ4_KS"):
        T("iq4ks")
    with pytest.raises(ValueError, match="unknown type id 38"):
        T(38)
    for wrong in (None, 1.5, True, b"Q4_K"):
        with pytest.raises(ikq.FormatError):
            ikq.row_bytes(wrong, 256)


def test_facts():
    t = T.IQ2_KT
    assert (t.family, t.imatrix, t.needs_imatrix, t.fallback, t.known_to) == (
        "trellis",
        "required",
        True,
        T.IQ4_NL,
        ("ik_llama.cpp",),
    )
    assert not T.Q8_K.is_storable
    assert not T.I32.is_storable
    assert T.Q8_KV.is_storable
    assert T.BF16_R16.base is T.BF16
    assert T.Q4_K.bpw == 4.5
    assert all(t.can_encode for t in (T.F32, T.F16, T.BF16))
    assert not any(t.can_encode for t in T if not t.is_storable)


def test_one_encoder_of_each_family_is_there():
    first = "F16 BF16 Q8_0 Q4_0 Q6_K Q4_K IQ4_NL IQ4_XS IQ4_KS IQ3_S IQ2_KT"
    assert {T(name) for name in first.split()} <= {t for t in T if t.can_encode}


def test_pickle_and_copy():
    for t in T:
        assert pickle.loads(pickle.dumps(t)) is t
    assert copy.deepcopy(T.Q4_K) is T.Q4_K


def test_sizes():
    assert ikq.row_bytes("IQ4_KS", 1024) == 4 + 4 * 136
    assert ikq.row_bytes("Q4_0", 0) == 0
    assert ikq.tensor_bytes("IQ4_KS_R4", (3, 8, 256)) == 24 * 140
    assert ikq.tensor_bytes("I2_S", (2, 4, 128)) == 256 + 32
    assert ikq.tensor_bytes("F32", (7,)) == 28


def test_sizes_that_cannot_be():
    with pytest.raises(ikq.ShapeError, match=r"1440 is not a multiple of 256 \(Q4_K\); use Q5_0"):
        ikq.row_bytes("Q4_K", 1440)
    with pytest.raises(ikq.ShapeError, match="4 rows together"):
        ikq.tensor_bytes("Q4_K_R4", (2, 6, 256))
    with pytest.raises(ikq.ShapeError, match="at most 4 dimensions"):
        ikq.tensor_bytes("F32", (1, 1, 1, 1, 1))
    with pytest.raises(ikq.ShapeError, match="negative"):
        ikq.row_bytes("F32", -1)
    with pytest.raises(ikq.ShapeError, match="integer"):
        ikq.row_bytes("F32", 1.5)
    with pytest.raises(ikq.ShapeError):
        ikq.tensor_bytes("F32", (2**40, 2**40))
