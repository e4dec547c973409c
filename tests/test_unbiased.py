"""`quantize --unbiased`: rows are not smaller than the source, and nothing changes where it is not asked for."""

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
TYPES = ["Q2_K_S", "IQ2_KL", "Q4_0", "IQ4_KS", "IQ3_K_R4", "Q6_K"]


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


def all_gains(plan: ikq.QuantizePlan, imatrix: ikq.Imatrix | None) -> np.ndarray:
    """Of all rows of the matrices of layers."""
    source, made = ikq.GGUFReader(MODEL).tensors, ikq.GGUFReader(plan.destination).tensors
    found = []
    for t in plan.tensors:
        if t.copied or not t.name.startswith("blk."):
            continue
        w = column_weights(imatrix, t)[:, None, :]
        x, y = (f[t.name].dequantize().reshape(len(w), -1, t.shape[-1]) for f in (source, made))
        found.append(gains(x, y, w).ravel())
    return np.concatenate(found)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("type", TYPES)
def test_gains_are_one(tmp_path: Path, type: str, weighted: bool) -> None:
    imatrix = ikq.Imatrix(IMATRIX) if weighted else None
    found = {}
    for unbiased in (False, True):
        done = quantize(tmp_path / "o.gguf", type, pure=True, imatrix=imatrix, unbiased=unbiased)
        assert {t.unbiased for t in done.plan.tensors if not t.copied} == {unbiased}
        found[unbiased] = all_gains(done.plan, imatrix) - 1
    # An f16 scale is stored to 2^-11 of itself, and what a few codes that round to other values change is of that
    # size (measured: rms 0.0007 for Q2_K, 0.0003 and less for the others); rows err to both sides.
    assert np.sqrt((found[True] ** 2).mean()) < 2**-10
    assert abs(found[True].mean()) < 2**-12
    assert np.abs(found[True]).max() < 0.03
    # of all these types the first encoding shrinks; Q6_K by half of an f16's step
    least = 2**-12 if type == "Q6_K" else 2**-8
    assert found[False].mean() < -least
    assert abs(found[True].mean()) < abs(found[False].mean()) / 2


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("type", ["Q2_K_S", "IQ4_KS", "IQ3_K_R4", "IQ1_S"])
def test_bytes_are_those_of_the_divided_rows(tmp_path: Path, type: str, weighted: bool) -> None:
    imatrix = ikq.Imatrix(IMATRIX) if weighted else None
    done = quantize(tmp_path / "o.gguf", type, pure=True, imatrix=imatrix, unbiased=True)
    source, made = ikq.GGUFReader(MODEL).tensors, ikq.GGUFReader(tmp_path / "o.gguf").tensors
    n_compared = 0
    for t in done.plan.tensors:
        if t.copied or t.name not in ("blk.1.attn_v.weight", "blk.2.ffn_down_exps.weight"):
            continue
        x, w = source[t.name].dequantize().reshape(-1, *t.shape[-2:]), column_weights(imatrix, t)
        for expert, (rows, importance) in enumerate(zip(x, w, strict=True)):
            given = importance if weighted else None
            first = ikq.dequantize(ikq.quantize(rows, t.to_type, given), t.to_type)
            g = gains(rows, first, importance)
            factor = np.where((g > 0) & (g < 1), 1 / np.clip(g, 0.5, 1), 1).astype(np.float32)
            expected = ikq.quantize(rows * factor[:, None], t.to_type, given)
            raw = np.asarray(made[t.name].raw).reshape(len(x), -1)[expert]
            assert np.array_equal(raw, expected.ravel()), (t.name, expert)
            n_compared += 1
    assert n_compared == 9


def test_nothing_changes_without_the_option(tmp_path: Path) -> None:
    plain, same, other = (tmp_path / f"{name}.gguf" for name in ("plain", "same", "other"))
    quantize(plain, "Q4_K_M", imatrix=IMATRIX)
    quantize(same, "Q4_K_M", imatrix=IMATRIX, unbiased=False)
    done = quantize(other, "Q4_K_M", imatrix=IMATRIX, unbiased=True)
    assert plain.read_bytes() == same.read_bytes()
    # the same but for the key that says so
    assert 0 < other.stat().st_size - plain.stat().st_size <= 64
    a, b = ikq.GGUFReader(plain).tensors, ikq.GGUFReader(other).tensors
    kinds = set()
    for t in done.plan.tensors:
        kinds.add((t.copied, t.to_type == ikq.QuantType.Q8_0))
        assert t.unbiased == (not t.copied and t.to_type != ikq.QuantType.Q8_0), t.name
        assert np.array_equal(a[t.name].raw, b[t.name].raw) != t.unbiased, t.name
    assert len(kinds) == 3


@pytest.mark.parametrize(
    ("type", "unbiased"),
    [
        *((t, True) for t in ("Q4_0_R8", "Q5_1", "Q6_0", "IQ4_NL", "IQ4_KT", "IQ1_KT", "IQ1_M", "IQ2_XS_R4")),
        *((t, False) for t in ("F16", "BF16_R16", "Q8_0", "Q8_0_R8", "Q8_KV", "Q8_K_R8", "MXFP4", "NVFP4")),
        *((t, False) for t in ("TQ1_0", "IQ2_BN_R4", "I2_S", "Q2_0", "IQ2_KT", "IQ3_KT")),
    ],
)
def test_which_types(tmp_path: Path, type: str, unbiased: bool) -> None:
    x = np.random.default_rng(5).standard_normal((16, 512), dtype=np.float32)
    with ikq.GGUFWriter(tmp_path / "m.gguf", {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.ffn_up.weight", x)
    content = []
    for given in (False, True):
        out = tmp_path / f"{given}.gguf"
        options = {"custom_q": f"ffn_up={type}", "ignore_imatrix_rules": True, "unbiased": given}
        done = ikq.quantize_file(tmp_path / "m.gguf", out, "COPY", **options)  # type: ignore[arg-type]
        assert done.plan.tensors[0].to_type.name == type
        assert done.plan.tensors[0].unbiased == (given and unbiased)
        content.append(out.read_bytes())
    # the same to the last byte, hashes in the header included, where there is nothing to do
    assert (content[0] == content[1]) == (not unbiased)


def test_threads_and_instruction_sets_give_the_same_bytes(tmp_path: Path) -> None:
    plan = ikq.plan_quantization(MODEL, tmp_path / "o.gguf", "IQ2_KL", imatrix=IMATRIX, unbiased=True)
    plan.run(n_threads=1)
    expected = plan.destination.read_bytes()
    plan.run(n_threads=3)
    assert plan.destination.read_bytes() == expected
    for isa in ikq.available_isas():
        plan.run(_isa=isa)
        assert plan.destination.read_bytes() == expected, isa


def test_errors_are_those_against_the_source(tmp_path: Path) -> None:
    imatrix = ikq.Imatrix(IMATRIX)
    done = quantize(tmp_path / "o.gguf", "Q2_K", imatrix=imatrix, unbiased=True, measure_errors=True)
    plain = quantize(tmp_path / "p.gguf", "Q2_K", imatrix=imatrix, measure_errors=True)
    source, made = ikq.GGUFReader(MODEL).tensors, ikq.GGUFReader(tmp_path / "o.gguf").tensors
    larger = []
    for t, o, without in zip(done.plan.tensors, done.outcomes, plain.outcomes, strict=True):
        if t.copied:
            continue
        w = column_weights(imatrix, t).astype(np.float64)[:, None, :]
        x, y = (f[t.name].dequantize().reshape(len(w), -1, t.shape[-1]) for f in (source, made))
        difference = x.astype(np.float64) - y
        # sums of 16 in single precision
        assert o.error == pytest.approx(
            np.sqrt((difference**2).sum() / (x.astype(float) ** 2).sum()), rel=1e-5
        )
        weighted = np.sqrt((w * difference**2).sum() / (w * x.astype(float) ** 2).sum())
        assert o.weighted_error == pytest.approx(weighted, rel=1e-5)
        assert o.weighted_error is not None
        assert without.weighted_error is not None
        larger.append(o.weighted_error / without.weighted_error)
    # 1 / sqrt(g), and g is 0.9 and more
    assert 1 < np.mean(larger) < 1.06


@pytest.mark.parametrize("type", ["Q2_K", "IQ2_KL", "IQ4_KS", "Q4_0", "IQ1_S", "IQ4_KT"])
def test_odd_rows(tmp_path: Path, type: str) -> None:
    """Zeros stay zeros; a row that is too large to become larger is as without the option."""
    x = np.random.default_rng(7).standard_normal((6, 512), dtype=np.float32)
    x[1], x[2], x[3], x[4, 1:] = 0, x[2] * 1e-38, np.clip(x[3], -1, 1) * np.float32(3e38), 0
    with ikq.GGUFWriter(tmp_path / "m.gguf", {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.ffn_up.weight", x)
    options = {"custom_q": f"ffn_up={type}", "ignore_imatrix_rules": True, "unbiased": True}
    ikq.quantize_file(tmp_path / "m.gguf", tmp_path / "o.gguf", "COPY", **options)  # type: ignore[arg-type]
    y = ikq.GGUFReader(tmp_path / "o.gguf").tensors["blk.0.ffn_up.weight"].dequantize()
    assert np.isfinite(y).all()
    assert not y[1].any()
    assert np.array_equal(y[3], ikq.dequantize(ikq.quantize(x, type), type)[3])
    for i in (0, 5):
        assert gains(x[i], y[i], np.ones(512)) == pytest.approx(1, abs=0.02)


def test_reuse_and_resuming_know_the_difference(tmp_path: Path) -> None:
    plain, fresh, out = (tmp_path / f"{name}.gguf" for name in ("plain", "fresh", "out"))
    options = {"imatrix": IMATRIX, "output_tensor_type": "q8_0"}
    quantize(plain, "IQ4_KS", **options)
    quantize(fresh, "IQ4_KS", unbiased=True, **options)
    for old, given in ((plain, True), (fresh, False), (fresh, True)):
        done = quantize(out, "IQ4_KS", unbiased=given, reuse=old, **options)
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
        done = quantize(out, "IQ4_KS", unbiased=given, **options)
        assert (done.n_resumed > 0) == is_resumed
        assert out.read_bytes() == (fresh if given else plain).read_bytes()
        out.unlink()


def test_memory_counts_a_second_matrix_of_floats(tmp_path: Path) -> None:
    def memory(*, measure_errors: bool = False, **options: bool) -> int:
        plan = ikq.plan_quantization(MODEL, tmp_path / "o.gguf", "Q4_K_M", **options)  # type: ignore[arg-type]
        return plan.predict_memory(n_threads=2, measure_errors=measure_errors)[1]

    plain, unbiased = memory(), memory(unbiased=True)
    # two threads, pieces of 2^18 floats
    assert unbiased - plain == 2 * 4 * 2**18
    assert memory(measure_errors=True) == memory(unbiased=True, measure_errors=True) == unbiased


def test_the_command(tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ikq", "quantize", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run("--unbiased", "--imatrix", IMATRIX, MODEL, tmp_path / "o.gguf", "Q3_K_M")
    assert done.returncode == 0, done.stderr
    quantize(tmp_path / "p.gguf", "Q3_K_M", imatrix=IMATRIX, unbiased=True)
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert ikq.GGUFReader(tmp_path / "o.gguf").metadata["ikq.unbiased"] is True
    # what is made from it says what it is itself
    ikq.quantize_file(tmp_path / "o.gguf", tmp_path / "q.gguf", "Q8_0", allow_requantize=True)
    assert "ikq.unbiased" not in ikq.GGUFReader(tmp_path / "q.gguf").metadata
    refused = run("--unbiased", "--repack", MODEL, tmp_path / "r.gguf")
    assert refused.returncode == 2
    assert "--unbiased has no effect with it" in refused.stderr
