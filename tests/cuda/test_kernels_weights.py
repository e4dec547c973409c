"""The device form and dequantizing: the same floats as the CPU's decoders give, for every type."""

import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import CUDA, ORDERS, aligned, needs_gxx, on_device
from weights import TYPES, as_floats, device_form, device_row_bytes, random_rows, row_lengths, weights_module

import ikq

sys.path.append(str(Path(__file__).parents[1]))
from golden import same_floats, vectors

pytestmark = needs_gxx


def dequantized(name, data, n_rows, n, order=0):
    out = aligned((n_rows, n), np.float32)
    w = device_form(name, data, n_rows, n, order)
    weights_module().run(f"dequant_{name}_f32", n_rows, 128, w, None, out, n, order=order)
    return out


def test_every_storable_type_has_a_decoder():
    assert len(TYPES) == 45
    text = "".join(p.read_text() for p in (CUDA / "types").glob("*.cuh"))
    assert all(f"struct {name} :" in text for name in TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_dequantize_gives_the_floats_of_the_cpu(name):
    rng = np.random.default_rng(7)
    for n in row_lengths(name):
        data = random_rows(name, 3, n, rng)
        want = as_floats(name, data, n)
        assert np.isfinite(want).all()
        for order in ORDERS:
            assert same_floats(dequantized(name, data, 3, n, order), want), (n, order)


@pytest.mark.parametrize("name", TYPES)
def test_dequantize_golden_vectors(name):
    z = vectors(name)
    for key in z:
        matrix, kind = key.split(".")
        if kind.split("_")[0] == "q":
            want = z[f"{matrix}.dq{'_table' if name == 'iq6_k' else ''}{kind[1:]}"]
            n = want.shape[-1]
            got = dequantized(name, np.ascontiguousarray(z[key]).reshape(-1), want.size // n, n)
            assert same_floats(got.reshape(want.shape), want), key


@pytest.mark.parametrize(
    "name", ["nvfp4", "mxfp4", "iq4_k", "iq4_ks", "iq4_kss", "iq4_kt", "iq5_k", "iq5_ks", "iq6_k"]
)
def test_every_code_and_every_byte_of_scales(name):
    """So many random rows that each byte occurs in each place of a block, and each code with each byte of a scale."""
    rng = np.random.default_rng(9)
    n = 8192
    data = random_rows(name, 40, n, rng)
    assert same_floats(dequantized(name, data, 40, n), as_floats(name, data, n))


@pytest.mark.parametrize("name", ["q4_k", "iq4_ks", "mxfp4"])
def test_chosen_rows_as_halves(name):
    rng = np.random.default_rng(3)
    data = random_rows(name, 9, 512, rng)
    want = as_floats(name, data, 512)
    w = device_form(name, data, 9, 512)
    rows = on_device(np.array([8, 0, 3, 3], np.int32))
    half, bfloat = aligned((4, 512), np.float16), aligned((4, 512), np.uint16)
    weights_module().run(f"dequant_{name}_f16", 4, 128, w, rows, half, 512)
    weights_module().run(f"dequant_{name}_bf16", 4, 128, w, rows, bfloat, 512)
    assert (half == want[rows].astype(np.float16)).all()
    bits = want[rows].view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    assert ((bfloat == rounded) | (want[rows] == 0)).all()


# types whose first plane has its nibbles in another order: in the file, where they begin in a block and how many bytes they
# are; and whether bit 0 of nibbles is inverted and behind the others
ORDERED = {
    "mxfp4": (1, 16, False),
    "nvfp4": (4, 32, False),
    "iq4_xs": (8, 128, True),
    "iq4_k": (16, 128, True),
    "iq4_ks": (8, 128, True),
}
# types with other codes, which are last in a block of the file, and how many bytes they are
RECODED = {"iq4_kss": 128, "iq4_kt": 128, "iq5_k": 160, "iq5_ks": 160, "iq6_k": 192}


@pytest.mark.parametrize("name", TYPES)
def test_the_device_form_keeps_all_bits(name):
    """A row keeps all its bytes and has zeros behind them. Nibbles keep their number; of other codes, which the decoders'
    tests see, only what is beside them is compared."""
    rng = np.random.default_rng(5)
    n = row_lengths(name)[0]
    data = random_rows(name, 1, n, rng)
    row = np.concatenate([data[:-32], data[-32:-28]]) if name == "i2_s" else data
    w = device_form(name, data, 1, n).reshape(-1)
    assert len(w) == device_row_bytes(name, n)
    assert not w[len(row) :].any()
    kept = w[: len(row)]
    if name in {**ORDERED, **RECODED}:
        t = ikq.QuantType(name)
        blocks = row[t.row_header_bytes :].reshape(-1, t.block_bytes)
        start, size = ORDERED[name][:2] if name in ORDERED else (t.block_bytes - RECODED[name], RECODED[name])
        codes, new = blocks[:, start : start + size].reshape(-1), kept[: size * len(blocks)]
        row = np.concatenate(
            [row[: t.row_header_bytes], np.delete(blocks, slice(start, start + size), 1).reshape(-1)]
        )
        kept = kept[size * len(blocks) :]
        if name in ORDERED:
            codes, new = (np.concatenate([a & 15, a >> 4]) for a in (codes, new))
            assert sorted(new) == sorted(codes >> 1 | (~codes & 1) << 3 if ORDERED[name][2] else codes)
    assert sorted(kept) == sorted(row)


def test_the_table_file_is_what_its_program_writes(tmp_path):
    tools = Path(__file__).parents[2] / "tools"
    sys.path.append(str(tools))
    import make_cuda_tables

    assert (CUDA / "types/grids.cuh").read_text() == make_cuda_tables.text()


def test_codes_are_what_their_program_finds():
    sys.path.append(str(Path(__file__).parents[2] / "tools"))
    import make_cuda_codes

    text = " ".join((CUDA / "types/iqk.cuh").read_text().split())
    for constant in make_cuda_codes.constants():
        assert constant in text


def test_ids_of_types_are_those_of_files():
    assert {ikq.QuantType(name).rows for name in TYPES} == {1}
