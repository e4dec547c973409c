"""Scales that undo the gain of their fit: rows are not smaller than the source, but with `--biased`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ikq

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
IMATRIX = DATA / "imatrix-plain.dat"
TYPES = ["Q2_K_S", "IQ2_KL", "Q4_0", "IQ4_KS", "IQ3_K_R4", "Q6_K", "IQ2_XS"]
# In these, elements that are large in their row weigh more where columns have an importance.
BY_SIZE = {"IQ2_XS"}


def quantize(out: Path, type: str, **options: object) -> ikq.QuantizeResult:
    return ikq.quantize_file(MODEL, out, type, ignore_imatrix_rules=True, **options)  # type: ignore[arg-type]


def column_weights(imatrix: ikq.Imatrix | None, t: ikq.PlannedTensor) -> np.ndarray:
    """The importance of columns, float32 [experts, columns]; 1 without."""
    n_experts = t.shape[0] if len(t.shape) == 3 else 1
    if imatrix is None or t.imatrix is None:
        return np.ones((n_experts, t.shape[-1]), np.float32)
    return imatrix[t.imatrix].values.reshape(n_experts, t.shape[-1])


def gains(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of rows, in float64."""
    w, x = w.astype(np.float64), x.astype(np.float64)
    return (w * x * y).sum(-1) / (w * x * x).sum(-1)


def row_weights(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What elements weigh where columns have an importance: those that are large in their row weigh more."""
    x = x.astype(np.float64)
    return w * np.sqrt(1 + x**2 / (x**2).mean(-1, keepdims=True))


def all_gains(plan: ikq.QuantizePlan, imatrix: ikq.Imatrix | None, *, by_size: bool) -> np.ndarray:
    """Of all rows of the matrices of layers; `by_size` if large elements weigh more."""
    source, made = ikq.GGUFReader(MODEL).tensors, ikq.GGUFReader(plan.destination).tensors
    found = []
    for t in plan.tensors:
        if t.copied or not t.name.startswith("blk."):
            continue
        w = column_weights(imatrix, t)[:, None, :]
        x, y = (f[t.name].dequantize().reshape(len(w), -1, t.shape[-1]) for f in (source, made))
        found.append(gains(x, y, row_weights(x, w) if by_size else w).ravel())
    return np.concatenate(found)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("type", TYPES)
def test_gains_are_one(tmp_path: Path, type: str, weighted: bool) -> None:
    imatrix = ikq.Imatrix(IMATRIX) if weighted else None
    found = {}
    for biased in (False, True):
        done = quantize(tmp_path / "o.gguf", type, pure=True, imatrix=imatrix, biased=biased)
        assert {t.unbiased for t in done.plan.tensors if not t.copied} == {not biased}
        found[biased] = all_gains(done.plan, imatrix, by_size=type in BY_SIZE and weighted and not biased) - 1
    # An f16 scale is stored to 2^-11 of itself; the floor of the weights, and what few codes of the fast types
    # that round to other values change, are of that size; rows err to both sides.
    assert np.sqrt((found[False] ** 2).mean()) < 2**-10
    assert abs(found[False].mean()) < abs(found[True].mean())
    # of all these types a fit shrinks; Q6_K by half of an f16's step
    if type != "Q6_K":
        assert abs(found[False].mean()) < 2**-12
        assert found[True].mean() < -(2**-8)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("type", ["Q2_K", "IQ4_KS", "IQ3_K_R4", "IQ1_S", "Q4_1", "IQ1_KT", "Q8_0"])
def test_files_and_arrays_are_encoded_alike(tmp_path: Path, type: str, weighted: bool) -> None:
    imatrix = ikq.Imatrix(IMATRIX) if weighted else None
    options = {"custom_q": f"attn_v|ffn_down_exps={type}", "ignore_imatrix_rules": True, "imatrix": imatrix}
    source = ikq.GGUFReader(MODEL).tensors
    made = {}
    for biased in (False, True):
        out = tmp_path / f"{biased}.gguf"
        done = ikq.quantize_file(MODEL, out, "COPY", biased=biased, **options)  # type: ignore[arg-type]
        made[biased] = ikq.GGUFReader(out).tensors
    n_compared = 0
    for t in done.plan.tensors:
        if t.copied or t.name not in ("blk.1.attn_v.weight", "blk.2.ffn_down_exps.weight"):
            continue
        x, w = source[t.name].dequantize().reshape(-1, *t.shape[-2:]), column_weights(imatrix, t)
        for biased in (False, True):
            for expert, (rows, importance) in enumerate(zip(x, w, strict=True)):
                given = importance if weighted else None
                expected = ikq.quantize(rows, t.to_type, given, biased=biased)
                raw = np.asarray(made[biased][t.name].raw).reshape(len(x), -1)[expert]
                assert np.array_equal(raw, expected.ravel()), (t.name, expert)
                n_compared += 1
    assert n_compared == 18


def test_what_is_asked_for(tmp_path: Path) -> None:
    plain, same, other = (tmp_path / f"{name}.gguf" for name in ("plain", "same", "other"))
    quantize(plain, "Q4_K_M", imatrix=IMATRIX)
    quantize(same, "Q4_K_M", imatrix=IMATRIX, unbiased=True)
    done = quantize(other, "Q4_K_M", imatrix=IMATRIX, biased=True)
    assert plain.read_bytes() == same.read_bytes()
    # the same but for the key that says so
    assert 0 < other.stat().st_size - plain.stat().st_size <= 64
    a, b = ikq.GGUFReader(plain).tensors, ikq.GGUFReader(other).tensors
    kinds = set()
    for t in done.plan.tensors:
        is_q8 = t.to_type == ikq.QuantType.Q8_0
        kinds.add((t.copied, is_q8))
        assert not t.unbiased, t.name
        assert np.array_equal(a[t.name].raw, b[t.name].raw) == (t.copied or is_q8), t.name
    assert len(kinds) == 3
    with pytest.raises(ikq.RefusedError, match="exclude each other"):
        quantize(other, "Q4_K_M", biased=True, unbiased=True)


@pytest.mark.parametrize(
    ("type", "unbiased"),
    [
        *((t, True) for t in ("Q4_0_R8", "Q5_1", "Q6_0", "IQ4_NL", "IQ4_KT", "IQ1_KT", "IQ1_M", "IQ2_XS_R4")),
        *((t, False) for t in ("F16", "BF16_R16", "Q8_0", "Q8_0_R8", "Q8_KV", "Q8_K_R8", "MXFP4", "NVFP4")),
        *((t, False) for t in ("TQ1_0", "IQ2_BN_R4", "I2_S", "Q2_0", "IQ2_KT", "IQ3_KT", "IQ6_K")),
    ],
)
def test_which_types(tmp_path: Path, type: str, unbiased: bool) -> None:
    x = np.random.default_rng(5).standard_normal((16, 512), dtype=np.float32)
    with ikq.GGUFWriter(tmp_path / "m.gguf", {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.ffn_up.weight", x)
    content = []
    for biased in (False, True):
        out = tmp_path / f"{biased}.gguf"
        options = {"custom_q": f"ffn_up={type}", "ignore_imatrix_rules": True, "biased": biased}
        done = ikq.quantize_file(tmp_path / "m.gguf", out, "COPY", **options)  # type: ignore[arg-type]
        assert done.plan.tensors[0].to_type.name == type
        assert done.plan.tensors[0].unbiased == (unbiased and not biased)
        assert ("ikq.biased" in ikq.GGUFReader(out).metadata) == (unbiased and biased)
        content.append(out.read_bytes())
    # the same to the last byte, hashes in the header included, where there is nothing to do
    assert (content[0] == content[1]) == (not unbiased)


def test_threads_and_instruction_sets_give_the_same_bytes(tmp_path: Path) -> None:
    plan = ikq.plan_quantization(MODEL, tmp_path / "o.gguf", "IQ2_KL", imatrix=IMATRIX)
    plan.run(n_threads=1)
    expected = plan.destination.read_bytes()
    plan.run(n_threads=3)
    assert plan.destination.read_bytes() == expected
    for isa in ikq.available_isas():
        plan.run(_isa=isa)
        assert plan.destination.read_bytes() == expected, isa


@pytest.mark.parametrize("biased", [True, False])
def test_errors_are_told_with_and_without_the_gain(tmp_path: Path, biased: bool) -> None:
    imatrix = ikq.Imatrix(IMATRIX)
    done = quantize(tmp_path / "o.gguf", "Q2_K", imatrix=imatrix, biased=biased, measure_errors=True)
    source, made = ikq.GGUFReader(MODEL).tensors, ikq.GGUFReader(tmp_path / "o.gguf").tensors
    shrunk = []
    for t, o in zip(done.plan.tensors, done.outcomes, strict=True):
        if t.copied:
            continue
        w = column_weights(imatrix, t).astype(np.float64)[:, None, :]
        x, y = (f[t.name].dequantize().reshape(len(w), -1, t.shape[-1]) for f in (source, made))
        x, y = x.astype(np.float64), y.astype(np.float64)
        xx, xy, yy = (w * x * x).sum(), (w * x * y).sum(), (w * y * y).sum()
        # sums of 16 in single precision
        assert o.error == pytest.approx(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()), rel=1e-5)
        assert o.weighted_error == pytest.approx(np.sqrt((w * (x - y) ** 2).sum() / xx), rel=1e-5)
        assert o.gain == pytest.approx(xy / xx, abs=1e-6)
        # the sine of the angle between both
        assert o.error_without_gain == pytest.approx(np.sqrt(1 - xy**2 / (xx * yy)), rel=1e-4)
        assert o.weighted_error is not None
        assert o.error_without_gain is not None
        # a fit has the least error of all multiples; larger scales have more
        assert o.weighted_error >= o.error_without_gain * (1 - 1e-6)
        shrunk.append(1 - o.gain)
    assert (np.mean(shrunk) > 0.02) == biased


@pytest.mark.parametrize("type", ["Q2_K", "IQ2_KL", "IQ4_KS", "Q4_0", "Q4_1", "IQ1_S", "IQ4_KT"])
def test_odd_rows(tmp_path: Path, type: str) -> None:
    """Zeros stay zeros; the largest floats stay numbers."""
    x = np.random.default_rng(7).standard_normal((6, 512), dtype=np.float32)
    x[1], x[2], x[3], x[4, 1:] = 0, x[2] * 1e-38, np.clip(x[3], -1, 1) * np.float32(3e38), 0
    y = ikq.dequantize(ikq.quantize(x, type, clamp=True), type)
    assert np.isfinite(y).all()
    assert not y[1].any()
    for i in (0, 5):
        assert gains(x[i], y[i], np.ones(512)) == pytest.approx(1, abs=2**-8)


def test_reuse_and_resuming_know_the_difference(tmp_path: Path) -> None:
    plain, fresh, out = (tmp_path / f"{name}.gguf" for name in ("plain", "fresh", "out"))
    options = {"imatrix": IMATRIX, "output_tensor_type": "q8_0"}
    quantize(plain, "IQ4_KS", **options)
    quantize(fresh, "IQ4_KS", biased=True, **options)
    for old, given in ((plain, True), (fresh, False), (fresh, True)):
        done = quantize(out, "IQ4_KS", biased=given, reuse=old, **options)
        assert out.read_bytes() == (fresh if given else plain).read_bytes()
        is_same = (old == fresh) == given
        for t, o in zip(done.plan.tensors, done.outcomes, strict=True):
            if not t.copied:
                expected = "reused" if is_same or t.to_type == ikq.QuantType.Q8_0 else "encoded"
                assert o.how == expected, t.name
    out.unlink()

    class Enough(Exception):
        pass

    def progress(t: ikq.PlannedTensor, _: float) -> None:
        if t.name == "blk.1.ffn_up_exps.weight":
            raise Enough

    for given, is_resumed in ((True, False), (False, True)):
        with pytest.raises(Enough):
            quantize(out, "IQ4_KS", n_threads=1, progress=progress, **options)
        done = quantize(out, "IQ4_KS", biased=given, **options)
        assert (done.n_resumed > 0) == is_resumed
        assert out.read_bytes() == (fresh if given else plain).read_bytes()
        out.unlink()


def test_the_command(tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ikq", "quantize", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run("--biased", "--imatrix", IMATRIX, MODEL, tmp_path / "o.gguf", "Q3_K_M")
    assert done.returncode == 0, done.stderr
    quantize(tmp_path / "p.gguf", "Q3_K_M", imatrix=IMATRIX, biased=True)
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert ikq.GGUFReader(tmp_path / "o.gguf").metadata["ikq.biased"] is True
    # what is made from it says what it is itself
    ikq.quantize_file(tmp_path / "o.gguf", tmp_path / "q.gguf", "Q8_0", allow_requantize=True)
    assert "ikq.biased" not in ikq.GGUFReader(tmp_path / "q.gguf").metadata
    refused = run("--biased", "--repack", MODEL, tmp_path / "r.gguf")
    assert refused.returncode == 2
    assert "--biased has no effect with it" in refused.stderr
