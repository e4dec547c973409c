"""Quantized forms of weights against their formulas, written out again with plain loops or other numpy."""

import numpy as np
import pytest
from checkpoint_folders import write_safetensors

from ikq.checkpoint.config import Config
from ikq.checkpoint.packed import Mxfp4Blocks
from ikq.checkpoint.rows import f32_to_bf16
from ikq.checkpoint.safetensors import SafetensorsFile, Shards
from ikq.checkpoint.weights import Weights
from ikq.errors import FormatError, UnsupportedError

RNG = np.random.default_rng(3)


def e4m3(byte):
    """A number of F8_E4M3 from its bits, by the definition."""
    byte = int(byte)
    sign = -1.0 if byte >> 7 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def e2m1(nibble):
    sign = -1.0 if nibble >> 3 else 1.0
    exponent, mantissa = nibble >> 1 & 3, nibble & 1
    return sign * (mantissa * 0.5 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2))


def weights_of(tmp_path, tensors, quantization=None):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    whole = {} if quantization is None else {"quantization_config": quantization}
    return Weights(Shards(tmp_path), Config(tmp_path / "config.json", whole))


def check(matrix, expected):
    """All rows at once, one by one, and in pieces that cut blocks."""
    expected = np.asarray(expected, np.float32).reshape(matrix.n_rows, matrix.n_per_row)
    assert matrix.kind == "F32"
    assert np.array_equal(matrix.rows(0, matrix.n_rows), expected)
    for step in (1, 3, 7):
        for first in range(0, matrix.n_rows, step):
            n = min(step, matrix.n_rows - first)
            found = matrix.rows(first, n)
            assert np.array_equal(found, expected[first : first + n])
            matrix.release(first, n)


def f8(*shape, finite=True):
    codes = RNG.integers(0, 256, shape, dtype=np.uint8)
    codes[(codes & 127) == 127] = 5
    return codes


def f32(*shape):
    return RNG.uniform(1e-3, 2, shape).astype(np.float32)


VALUES = np.array([e4m3(b) for b in range(256)], np.float32)


def test_tables():
    from ikq.checkpoint.packed import E2M1, E4M3, E8M0

    assert np.array_equal(E4M3, VALUES, equal_nan=True)
    assert [e2m1(n) for n in range(16)] == E2M1.tolist()
    assert np.signbit(E2M1[8])
    assert E8M0[127] == 1
    assert E8M0[254] == 2.0**127
    assert E8M0[0] == 2.0**-127
    assert np.isnan(E8M0[255])


@pytest.mark.parametrize("shape", [(10, 12), (8, 8), (3, 20), (4, 3)])
@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
def test_fp8_with_blocks(tmp_path, shape, scale_dtype):
    rows, columns = shape
    codes = f8(*shape)
    scale = f32(-(-rows // 4), -(-columns // 8))
    stored = scale
    if scale_dtype == "BF16":
        stored = f32_to_bf16(scale)
        scale = (stored.astype(np.uint32) << 16).view(np.float32)
    tensors = {"x.weight": ("F8_E4M3", codes), "x.weight_scale_inv": (scale_dtype, stored)}
    w = weights_of(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [4, 8]})
    expected = np.zeros(shape, np.float32)
    for r in range(rows):
        for c in range(columns):
            expected[r, c] = np.float32(e4m3(codes[r, c])) * scale[r // 4, c // 8]
    assert w.is_fp8("x.weight")
    check(w.matrix("x.weight"), expected)
    assert not w.unused


def test_fp8_experts_in_one_tensor(tmp_path):
    codes, scale = f8(3, 8, 16), f32(3, 2, 2)
    tensors = {"x.gate_up_proj": ("F8_E4M3", codes), "x.gate_up_proj_scale_inv": ("F32", scale)}
    w = weights_of(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [4, 8]})
    expected = VALUES[codes] * np.repeat(np.repeat(scale, 4, 1), 8, 2)
    check(w.matrix("x.gate_up_proj"), expected)
    assert not w.unused


@pytest.mark.parametrize("shape", [(6, 1), (6,), (1,), (), (1, 1)])
def test_fp8_per_row_or_tensor(tmp_path, shape):
    codes, scale = f8(6, 10), f32(*shape)
    tensors = {
        "x.weight": ("F8_E4M3", codes),
        "x.weight_scale": ("F32", scale),
        "x.input_scale": ("F32", f32(1)),
    }
    w = weights_of(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "float-quantized"})
    by_row = scale.reshape(-1, 1) if scale.size > 1 else scale.reshape(1, 1)
    check(w.matrix("x.weight"), VALUES[codes] * by_row)
    assert not w.unused


def test_int8_per_row(tmp_path):
    codes, scale = RNG.integers(-128, 128, (5, 9)).astype(np.int8), f32(5, 1)
    w = weights_of(
        tmp_path,
        {"x.weight": ("I8", codes), "x.weight_scale": ("F32", scale)},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
    )
    check(w.matrix("x.weight"), codes.astype(np.float32) * scale)


@pytest.mark.parametrize("shape", [(6, 1), (1,)])
def test_int8_with_zeros(tmp_path, shape):
    codes, scale = RNG.integers(-128, 128, (6, 9)).astype(np.int8), f32(*shape)
    zeros = RNG.integers(-128, 128, shape).astype(np.int8)
    tensors = {
        "x.weight": ("I8", codes),
        "x.weight_scale": ("F32", scale),
        "x.weight_zero_point": ("I8", zeros),
    }
    w = weights_of(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "int-quantized"})
    check(w.matrix("x.weight"), (codes.astype(np.float32) - zeros) * scale)
    assert not w.unused


def test_parts_that_are_not_looked_at(tmp_path):
    """They are said to have no place, and not passed over."""
    tensors = {
        "x.weight": ("F8_E4M3", f8(6, 10)),
        "x.weight_scale": ("F32", f32(6, 1)),
        "x.weight_zero_point": ("F8_E4M3", f8(6, 1)),
        "x.input_scale": ("F32", f32(1)),
    }
    w = weights_of(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "float-quantized"})
    w.matrix("x.weight")
    assert w.unused == {"x.weight_zero_point"}


def pack_words(codes, bits, axis):
    """Codes to words of 32 bits along an axis, the first in the lowest bits."""
    codes = np.moveaxis(codes.astype(np.uint64), axis, -1)
    per_word = 32 // bits
    pad = -codes.shape[-1] % per_word
    codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], pad), np.uint64)], -1)
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // per_word), np.uint64)
    for i in range(per_word):
        words |= codes[..., i::per_word] << np.uint64(bits * i)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


def pack_quantized(bits, group, symmetric=True, **weights):
    given = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": given}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale_dtype", ["BF16", "F16", "F32"])
def test_packed_integers(tmp_path, bits, scale_dtype):
    rows, columns, group = 9, 64, 16
    codes = RNG.integers(0, 1 << bits, (rows, columns))
    scale = f32(rows, columns // group)
    stored = {"BF16": f32_to_bf16(scale), "F16": scale.astype(np.float16), "F32": scale}[scale_dtype]
    scale = {
        "BF16": lambda: (stored.astype(np.uint32) << 16).view(np.float32),
        "F16": lambda: stored.astype(np.float32),
        "F32": lambda: stored,
    }[scale_dtype]()
    tensors = {
        "x.weight_packed": ("I32", pack_words(codes, bits, 1)),
        "x.weight_scale": (scale_dtype, stored),
        "x.weight_shape": ("I64", np.array([rows, columns])),
    }
    w = weights_of(tmp_path, tensors, pack_quantized(bits, group))
    assert w.has("x.weight")
    signed = (codes - (1 << (bits - 1))).astype(np.float32)
    check(w.matrix("x.weight"), signed * np.repeat(scale, group, 1))
    assert not w.unused


def test_packed_integers_with_zeros_and_order(tmp_path):
    rows, columns, groups = 11, 32, 4
    codes, zeros = RNG.integers(0, 16, (rows, columns)), RNG.integers(0, 16, (rows, groups))
    scale = f32(rows, groups)
    g_idx = RNG.permutation(np.repeat(np.arange(groups), 8)).astype(np.int32)
    tensors = {
        "x.weight_packed": ("I32", pack_words(codes, 4, 1)),
        "x.weight_scale": ("F32", scale),
        "x.weight_shape": ("I64", np.array([rows, columns])),
        "x.weight_zero_point": ("I32", pack_words(zeros, 4, 0)),
    }
    w = weights_of(tmp_path, tensors, pack_quantized(4, 8, symmetric=False))
    expected = (codes - np.repeat(zeros, 8, 1)).astype(np.float32) * np.repeat(scale, 8, 1)
    check(w.matrix("x.weight"), expected)
    tensors["x.weight_g_idx"] = ("I32", g_idx)
    w = weights_of(tmp_path, tensors, pack_quantized(4, 8, symmetric=False))
    check(w.matrix("x.weight"), (codes - zeros[:, g_idx]).astype(np.float32) * scale[:, g_idx])


def test_an_order_that_was_not_filled(tmp_path):
    """All -1: groups are runs of columns, as without it."""
    codes, scale = RNG.integers(0, 16, (4, 16)), f32(4, 2)
    tensors = {
        "x.weight_packed": ("I32", pack_words(codes, 4, 1)),
        "x.weight_scale": ("F32", scale),
        "x.weight_g_idx": ("I32", np.full(16, -1, np.int32)),
    }
    w = weights_of(tmp_path, tensors, pack_quantized(4, 8))
    check(w.matrix("x.weight"), (codes - 8).astype(np.float32) * np.repeat(scale, 8, 1))
    assert not w.unused


def pairs(nibbles):
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).astype(np.uint8)


@pytest.mark.parametrize("form", ["compressed-tensors", "modelopt"])
def test_nvfp4(tmp_path, form):
    nibbles, codes = RNG.integers(0, 16, (6, 48)), f8(6, 3) & 127
    number = np.float32(0.37)
    tensors = {"x.input_scale": ("F32", f32(1))}
    if form == "modelopt":
        tensors |= {
            "x.weight": ("U8", pairs(nibbles)),
            "x.weight_scale": ("F8_E4M3", codes),
            "x.weight_scale_2": ("F32", number.reshape(())),
        }
        factor, config = number, {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    else:
        tensors |= {
            "x.weight_packed": ("U8", pairs(nibbles)),
            "x.weight_scale": ("F8_E4M3", codes),
            "x.weight_global_scale": ("F32", number.reshape(1)),
        }
        factor = np.float32(1 / float(number))
        config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    w = weights_of(tmp_path, tensors, config)
    values = np.array([e2m1(n) for n in range(16)], np.float32)[nibbles]
    scales = (VALUES[codes] * factor).astype(np.float32)
    check(w.matrix("x.weight"), values * np.repeat(scales, 16, 1))
    assert not w.unused


def test_mxfp4_of_compressed_tensors(tmp_path):
    nibbles, exponents = RNG.integers(0, 16, (4, 64)), RNG.integers(100, 150, (4, 2)).astype(np.uint8)
    tensors = {"x.weight_packed": ("U8", pairs(nibbles)), "x.weight_scale": ("U8", exponents)}
    w = weights_of(
        tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    )
    values = np.array([e2m1(n) for n in range(16)], np.float32)[nibbles]
    check(w.matrix("x.weight"), values * np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 32, 1))


def test_mxfp4_blocks(tmp_path):
    nibbles = RNG.integers(0, 16, (2, 3, 2, 32))
    exponents = RNG.integers(110, 140, (2, 3, 2)).astype(np.uint8)
    write_safetensors(tmp_path / "x.safetensors", {"b": ("U8", pairs(nibbles)), "s": ("U8", exponents)})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    blocks = Mxfp4Blocks(file.tensors["b"], file.tensors["s"])
    values = np.array([e2m1(n) for n in range(16)], np.float32)[nibbles]
    check(blocks, values * 2.0 ** (exponents.astype(np.float32) - 127)[..., None])
    rows = blocks.ggml_rows(1, 4)
    for r in range(4):
        for g in range(2):
            block = rows[r, g * 17 : (g + 1) * 17]
            of_block = nibbles.reshape(6, 2, 32)[1 + r, g]
            assert block[0] == exponents.reshape(6, 2)[1 + r, g]
            assert [b & 15 for b in block[1:]] == of_block[:16].tolist()
            assert [b >> 4 for b in block[1:]] == of_block[16:].tolist()


def test_mxfp4_blocks_with_other_scales(tmp_path):
    tensors = {"b": ("U8", np.zeros((2, 2, 16), np.uint8)), "s": ("F8_E4M3", f8(2, 2))}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="`s` is of F8_E4M3, which are no scales of groups of 32"):
        Mxfp4Blocks(file.tensors["b"], file.tensors["s"])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("second_form", [False, True])
def test_gptq(tmp_path, bits, second_form):
    n_in, n_out, groups = 32, 16, 4
    codes, zeros = RNG.integers(0, 1 << bits, (n_in, n_out)), RNG.integers(0, 1 << bits, (groups, n_out))
    scale = f32(groups, n_out).astype(np.float16)
    g_idx = RNG.permutation(np.repeat(np.arange(groups), n_in // groups)).astype(np.int32)
    # the first form stores zeros less one, within the bits of a code
    stored = zeros if second_form else (zeros - 1) % (1 << bits)
    tensors = {
        "x.qweight": ("I32", pack_words(codes, bits, 0)),
        "x.qzeros": ("I32", pack_words(stored, bits, 1)),
        "x.scales": ("F16", scale),
        "x.g_idx": ("I32", g_idx),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": 8}
    if second_form:
        config["checkpoint_format"] = "gptq_v2"
    w = weights_of(tmp_path, tensors, config)
    expected = np.zeros((n_out, n_in), np.float32)
    for o in range(n_out):
        for i in range(n_in):
            g = g_idx[i]
            expected[o, i] = np.float32(codes[i, o] - zeros[g, o]) * np.float32(scale[g, o])
    check(w.matrix("x.weight"), expected)
    assert not w.unused
    assert w.natural() == "F16"


def test_awq(tmp_path):
    n_in, n_out, groups = 24, 16, 3
    codes, zeros = RNG.integers(0, 16, (n_in, n_out)), RNG.integers(0, 16, (groups, n_out))
    scale = f32(groups, n_out).astype(np.float16)
    # a word has outputs 0 2 4 6 1 3 5 7
    order = np.arange(n_out).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    tensors = {
        "x.qweight": ("I32", pack_words(codes[:, order], 4, 1)),
        "x.qzeros": ("I32", pack_words(zeros[:, order], 4, 1)),
        "x.scales": ("F16", scale),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "GEMM", "zero_point": True}
    w = weights_of(tmp_path, tensors, config)
    group = np.arange(n_in) // 8
    expected = (codes - zeros[group]).astype(np.float32) * scale.astype(np.float32)[group]
    check(w.matrix("x.weight"), expected.T)
    assert not w.unused
    config["version"] = "gemv"
    with pytest.raises(UnsupportedError, match="AWQ of version 'gemv'"):
        weights_of(tmp_path, tensors, config).matrix("x.weight")


FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4]}
INT4 = pack_quantized(4, 8)
INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}
WORDS = ("I32", np.zeros((4, 2), np.int32))
PACKED = {"x.weight_packed": WORDS, "x.weight_scale": ("F32", f32(4, 2))}


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({"x.weight": ("F8_E4M3", f8(8, 8))}, FP8, "has no scale"),
        (
            {"x.weight": ("F8_E4M3", f8(8, 8)), "x.weight_scale_inv": ("F32", f32(2, 3))},
            FP8,
            r"expected \[2, 2\]",
        ),
        (
            {"x.weight": ("F8_E4M3", f8(8, 8)), "x.weight_scale": ("F32", f32(3))},
            {"quant_method": "fp8"},
            "no scale per",
        ),
        (
            {"x.weight": ("F8_E4M3", f8(8, 8)), "x.weight_scale_inv": ("F32", f32(2, 2))},
            {"quant_method": "fp8", "weight_block_size": [4, 0]},
            "expected two numbers",
        ),
        ({"x.weight": ("I32", np.zeros((2, 2), np.int32))}, None, "no weight of any form"),
        ({"x.weight_packed": WORDS}, INT4, "weight_scale` is missing"),
        ({"x.weight_packed": WORDS, "x.weight_scale": ("F32", f32(4, 3))}, INT4, "3 groups do not divide"),
        ({"x.weight_packed": WORDS, "x.weight_scale": ("F32", f32(3, 2))}, INT4, r"expected \[4, 2\]"),
        (
            {
                "x.weight_packed": WORDS,
                "x.weight_scale": ("F32", f32(4, 2)),
                "x.weight_shape": ("I64", np.array([4, 99])),
            },
            INT4,
            "does not hold rows of 99",
        ),
        (
            {
                "x.weight_packed": WORDS,
                "x.weight_scale": ("F32", f32(4, 2)),
                "x.weight_g_idx": ("I32", np.full(16, 2, np.int32)),
            },
            INT4,
            "names groups that",
        ),
        (
            {"x.weight_packed": WORDS, "x.weight_scale": ("F32", f32(4, 2))},
            pack_quantized(3, 8),
            "3 bits are not read",
        ),
        (
            {
                "x.weight_packed": ("U8", np.zeros((2, 16), np.uint8)),
                "x.weight_scale": ("F8_E4M3", f8(2, 2)),
                "x.weight_global_scale": ("F32", np.zeros(1, np.float32)),
            },
            INT4,
            "tensor `x.weight_global_scale`: a global scale is 0",
        ),
        (
            PACKED | {"x.weight_g_idx": ("U8", np.zeros(16, np.uint8))},
            INT4,
            "weight_g_idx` is of U8, where I32",
        ),
        (
            PACKED | {"x.weight_g_idx": ("F32", np.zeros(16, np.float32))},
            INT4,
            "weight_g_idx` is of F32, where I32",
        ),
        (
            PACKED | {"x.weight_g_idx": ("I32", np.array([-1] * 15 + [0], np.int32))},
            INT4,
            "names groups that",
        ),
        (
            PACKED | {"x.weight_zero_point": ("U8", np.zeros((1, 2), np.uint8))},
            INT4,
            "weight_zero_point` is of U8, where packed",
        ),
        (PACKED | {"x.weight_shape": ("U8", np.zeros(2, np.uint8))}, INT4, "no shape of a matrix"),
        (PACKED | {"x.weight_shape": ("I64", np.zeros(0))}, INT4, "no shape of a matrix"),
        (PACKED | {"x.weight_shape": ("I64", np.zeros(3))}, INT4, "no shape of a matrix"),
        (
            {
                "x.weight": ("I8", np.zeros((2, 4), np.int8)),
                "x.weight_scale": ("F32", f32(2, 1)),
                "x.weight_zero_point": ("I32", np.zeros((2, 1), np.int32)),
            },
            INT8,
            "x.weight_zero_point` is of I32, where I8",
        ),
        (
            {
                "x.weight": ("I8", np.zeros((2, 4), np.int8)),
                "x.weight_scale": ("F32", f32(2, 1)),
                "x.weight_zero_point": ("I8", np.zeros(3, np.int8)),
            },
            INT8,
            r"x.weight_zero_point` has the shape \[3\]",
        ),
        (
            {"x.weight_packed": ("U8", np.zeros((2, 16), np.uint8)), "x.weight_scale": ("F32", f32(2, 2))},
            INT4,
            "x.weight_scale` is of F32, which are no scales of groups of 16",
        ),
        (
            {"x.qweight": WORDS, "x.qzeros": WORDS, "x.scales": ("F16", np.zeros((4, 16), np.float16))},
            FP8,
            "no such tensor",
        ),
        (
            {"x.qweight": WORDS, "x.qzeros": WORDS, "x.scales": ("F16", np.zeros((3, 16), np.float16))},
            {"quant_method": "awq", "bits": 4},
            r"expected \[3, 2\]",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path, tensors, config, says):
    with pytest.raises((FormatError, UnsupportedError), match=says):
        weights_of(tmp_path, tensors, config).matrix("x.weight")


def test_rounding_to_bfloat16():
    x = np.concatenate(
        [
            RNG.standard_normal(20_000).astype(np.float32),
            RNG.integers(0, 2**32, 50_000, np.uint64).astype(np.uint32).view(np.float32),
        ]
    )
    found = (f32_to_bf16(x).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(x))
    ok = np.isfinite(x) & (np.abs(x) < 3e38)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)[ok].astype(np.float64)
    high = ((x.view(np.uint32)[ok] & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    exact = x[ok].astype(np.float64)
    error = np.abs(found[ok] - exact)
    assert (error == np.minimum(np.abs(low - exact), np.abs(high - exact))).all()
    ties = np.abs(low - exact) == np.abs(high - exact)
    assert not (f32_to_bf16(x)[ok][ties] & 1).any()
