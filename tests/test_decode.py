"""Decoding is bit-equal to the reference for every type, on every instruction set."""

import json
import zlib

import numpy as np
import pytest
from golden import ISAS, TYPES, VECTORS, names, same_floats, vectors

import ikq

KNOWN = json.loads((VECTORS / "known_answers.json").read_text())["types"]


def cases(name):
    """Pairs of stored bytes and the floats they stand for."""
    z = vectors(name)
    for key in z:
        matrix, kind = key.split(".")
        if kind.split("_")[0] == "q":
            suffix = kind[1:]
            # iq6_k decodes by its integer table, see vectors/README.md
            yield key, z[key], z[f"{matrix}.dq{'_table' if name == 'iq6_k' else ''}{suffix}"]


def test_every_weight_type_has_vectors():
    weights = {t for t in ikq.QuantType if t.is_storable and t is not ikq.QuantType.F32}
    assert {ikq.QuantType(n) for n in names()} == weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", names())
def test_golden_vectors(name, isa):
    checked = 0
    for key, q, expected in cases(name):
        y = ikq.dequantize(q, name, expected.shape[-1], _isa=isa)
        assert same_floats(y, expected), f"{key}: {(y != expected).sum()} of {y.size} values differ"
        checked += 1
    assert checked


@pytest.mark.parametrize("name", [n for n in names() if n != "i2_s"])
def test_the_row_length_follows_from_the_bytes(name):
    for _, q, expected in cases(name):
        assert ikq.dequantize(q, name).shape == expected.shape


@pytest.mark.parametrize("name", [n for n in names() if TYPES[n]["base"]])
def test_the_base_of_an_interleaved_type(name):
    z = vectors(name)
    for key in (k for k in z if ".base" in k):
        base = TYPES[name]["base"]
        y = ikq.dequantize(z[key], base)
        if key.replace(".base", ".repacked") in z or name in ("q8_k_r8", "q8_k_r16"):
            continue  # other values than those of the direct encoder's bytes
        assert same_floats(y, z[key.replace(".base", ".dq")]), key


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_answers(name, isa):
    answer = KNOWN[name]
    t = ikq.QuantType(name)
    j = np.arange(answer["bytes"])
    block = ((37 * j + answer["c"] + j * j // 7) & 255).astype(np.uint8)
    data = np.frombuffer(bytes.fromhex(answer.get("header_hex", "")) + block.tobytes(), np.uint8)
    y = ikq.dequantize(data, t, answer["n_values"] // t.rows, _isa=isa).reshape(-1)
    assert y[:4].tolist() == pytest.approx(answer["first"], rel=0)
    assert y[-1] == answer["last"]
    assert zlib.crc32((y + np.float32(0)).astype("<f4").tobytes()) == int(answer["crc32"], 16)


def test_all_known_answers_are_asked():
    assert len(KNOWN) == 72


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5, 13])
def test_threads_do_not_matter(n_threads):
    rng = np.random.default_rng(5)
    for t in (ikq.QuantType.IQ4_KS, ikq.QuantType.Q4_0_R8, ikq.QuantType.BF16):
        n_rows, n = 208, 1024
        data = rng.integers(0, 64, (n_rows, ikq.row_bytes(t, n)), dtype=np.uint8)
        expected = np.concatenate(
            [ikq.dequantize(data[i : i + 16], t, n_threads=1) for i in range(0, n_rows, 16)]
        )
        assert same_floats(ikq.dequantize(data, t, n_threads=n_threads), expected)


def test_activation_types(request):
    """Stored nowhere, but their blocks have one meaning; vectors in ../shared only."""
    folder = request.config.rootpath.parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("../shared/vectors is not there: activation formats are not tested")
    for name in ("q8_0_x4", "q8_1", "q8_1_x4", "q8_2_x4", "q8_k", "q8_k128", "q8_k32", "q8_kr8"):
        with np.load(folder / f"{name}.npz") as z:
            for key in (k for k in z.files if k.endswith(".q")):
                expected = z[key.replace(".q", ".dq")]
                y = ikq.dequantize(z[key], name, expected.shape[-1])
                assert same_floats(y, expected), (name, key)
