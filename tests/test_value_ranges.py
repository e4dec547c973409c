"""Numbers that are too large or too small for a type: refused, cut off when asked, or counted; never in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_quantize_options import ikq_command

import ikq
from ikq import _ikq
from ikq.errors import RefusedError

# half of the smallest step of a half: what is not larger becomes zero
HALF_STEP = 2.0**-25


def model(path: Path, **tensors: np.ndarray) -> Path:
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        for name, x in tensors.items():
            writer.add_tensor(f"{name}.weight", x)
    return path


def ordinary(n_rows: int = 8) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((n_rows, 256), dtype=np.float32)


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    x = ordinary()
    x[3, 17] = -65520  # the least that is nearer to the next number, which is not there
    source = model(tmp_path / "m.gguf", a=ordinary(), b=x)
    out = tmp_path / "out.gguf"
    done = ikq_command("quantize", source, out, "F16")
    assert done.returncode == 2
    assert not out.exists()
    for word in ("`b.weight`", "-65520", "row 3, column 17", "F16 ends at -65504", "BF16", "--clamp"):
        assert word in done.stderr, done.stderr
    # the same command goes on with it
    done = ikq_command("quantize", "--clamp", source, out, "F16")
    assert done.returncode == 0, done.stderr
    with ikq.GGUFReader(out) as reader:
        found = reader.tensors["b.weight"].dequantize()
    assert found[3, 17] == -65504
    x[3, 17] = -65504
    assert np.array_equal(found, x.astype(np.float16).astype(np.float32))
    assert ikq_command("quantize", source, tmp_path / "bf16.gguf", "BF16").returncode == 0


def test_a_copy_with_another_type_is_no_way_round(tmp_path: Path) -> None:
    x = ordinary()
    x[0, 0] = 1e6
    source = model(tmp_path / "m.gguf", a=ikq.QTensor.quantize(x, "BF16").dequantize())
    with pytest.raises(RefusedError, match=r"`a\.weight` holds .* F16 ends at 65504"):
        ikq.quantize_file(source, tmp_path / "out.gguf", "COPY", custom_q="a=f16")


def test_fallbacks_to_half_precision_are_looked_at(tmp_path: Path) -> None:
    x = np.full((4, 100), 70000, np.float32)  # no block type has rows of 100
    source = model(tmp_path / "m.gguf", a=x)
    with pytest.raises(RefusedError, match=r"a\.weight.*F16"):
        ikq.quantize_file(source, tmp_path / "out.gguf", "Q4_0")


@pytest.mark.parametrize(("type", "largest"), [("Q8_0", 127), ("Q4_0", 8), ("Q6_K", 32 * 127)])
def test_scales_in_half_precision_end(tmp_path: Path, type: str, largest: int) -> None:
    """The largest number is the largest half times the largest code (and scale of a sub-block)."""
    least, most, floor = _ikq.type_range(ikq.QuantType[type])
    assert 0.8 * 65504 * largest <= most <= 65504 * largest * 128 / 127
    assert -65504 * largest * 128 / 127 <= least <= -0.8 * 65504 * largest
    # the least scale is 2 * HALF_STEP; a search may give it to a block that needs less than half of the codes
    assert HALF_STEP <= floor <= 4 * HALF_STEP * largest
    x = ordinary()
    x[5, 200] = 1.01 * most
    with pytest.raises(RefusedError, match=f"row 5, column 200 .* {type} ends at"):
        ikq.quantize(x, type)
    y = ikq.dequantize(ikq.quantize(x, type, clamp=True), type)
    assert np.isfinite(y).all()
    assert y[5, 200] <= most
    x[5, 200] = 0.9 * most
    y = ikq.dequantize(ikq.quantize(x, type), type)
    assert abs(y[5, 200] - x[5, 200]) < 0.2 * most


def test_types_with_floats_as_scales_have_no_end(tmp_path: Path) -> None:
    x = ordinary() * np.float32(1e9)
    for name in ("IQ4_KS", "MXFP4", "BF16", "F32"):
        y = ikq.dequantize(ikq.quantize(x, name), name)
        assert np.square(y - x).sum() < 0.1 * np.square(x).sum(), name


def test_what_vanishes_is_counted(tmp_path: Path) -> None:
    small = np.full((4, 256), 1e-3, np.float32)
    small[:, :32] = 1e-9  # an eighth: too small for the scale of a block of Q8_0, and for a half
    few = ordinary(64)
    few[0, :16] = 1e-9  # 16 of 16384 are below 1 in 1,000
    source = model(tmp_path / "m.gguf", a=small, b=few)
    for name in ("F16", "Q8_0"):
        done = ikq_command("quantize", "--pure", source, tmp_path / f"{name}.gguf", name)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if "too small" in line]
        assert len(lines) == 1, done.stdout
        assert f"12.50% of the non-zero weights of `a.weight` are too small for {name}" in lines[0]
    result = ikq.quantize_file(source, tmp_path / "again.gguf", "F16", pure=True)
    shares = {t.name: o.vanished for t, o in zip(result.plan.tensors, result.outcomes, strict=True)}
    assert shares == {"a.weight": 0.125, "b.weight": 16 / 16384}
    with ikq.GGUFReader(tmp_path / "again.gguf") as reader:
        assert (reader.tensors["a.weight"].dequantize()[:, :32] == 0).all()


@pytest.mark.parametrize(
    "name", ["Q4_K", "Q6_K", "IQ4_XS", "IQ2_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ3_S", "Q8_0"]
)
def test_small_blocks_keep_their_shape(name: str) -> None:
    """Where the half that integer scales share would vanish, the integers become smaller instead.

    At 1e-5 every type has at least one step of the smallest half, 2^-24, for the scale of a sub-block (the largest level is 127,
    the largest weight 4e-5), so that a scale is at most twice too large, and so is the error.
    """
    x = ordinary(64)
    small = x * np.float32(1e-5)

    def relative(x: np.ndarray) -> float:
        y = ikq.dequantize(ikq.quantize(x, name), name)
        return float(np.square(y - x, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum()) ** 0.5

    assert relative(small) <= 2 * relative(x)


def test_zeros_do_not_vanish(tmp_path: Path) -> None:
    x = np.zeros((4, 256), np.float32)
    x[0, 0] = 1
    source = model(tmp_path / "m.gguf", a=x)
    result = ikq.quantize_file(source, tmp_path / "out.gguf", "F16", pure=True)
    assert result.outcomes[0].vanished == 0


@pytest.mark.parametrize(
    "name", ["Q4_K", "IQ2_XXS", "IQ3_S", "IQ1_M", "IQ2_KS", "IQ2_KL", "Q5_1", "Q6_K_R4", "NVFP4"]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_counts_are_those_of_what_is_read_back(tmp_path: Path, name: str, sign: int) -> None:
    """Rows from far below the floor to far above it."""
    *_, floor = _ikq.type_range(ikq.QuantType[name])
    sizes = floor * 2.0 ** np.arange(-8, 8)
    x = (sign * np.abs(ordinary(16)) * sizes[:, None]).astype(np.float32)
    source = model(tmp_path / "m.gguf", a=x)
    result = ikq.quantize_file(source, tmp_path / "out.gguf", name, pure=True, ignore_imatrix_rules=True)
    with ikq.GGUFReader(tmp_path / "out.gguf") as reader:
        t = reader.tensors["a.weight"]
        y = t.dequantize()
    together = 256 if t.type.row_header_bytes else t.type.block_size
    gone = (y.reshape(-1, together) == 0).all(axis=1)
    share = np.count_nonzero(x.reshape(-1, together)[gone]) / np.count_nonzero(x)
    assert result.outcomes[0].vanished == share
    assert 0.25 < share < 0.95
