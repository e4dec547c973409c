"""What an imatrix has data for: shown, refused where it is not enough, and what experts without data get."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ikq

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
# made with every fusion on: four gates are absent, and output.weight was not asked for
GAP = DATA / "imatrix-fused-default.dat"
WHOLE = DATA / "imatrix-plain.dat"
GATES = [f"blk.{i}.ffn_gate_exps.weight" for i in range(4)]
UP = "blk.0.ffn_up_exps.weight"


def ikq_command(*args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def write_dat(path: Path, entries: dict[str, np.ndarray], calls: int = 4) -> Path:
    """A `.dat` imatrix: mean squares times the number of calls, no counts per expert."""
    with path.open("wb") as f:
        f.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            f.write(struct.pack("<i", len(name)) + name.encode())
            f.write(struct.pack("<ii", calls, values.size))
            f.write((values * calls).astype("<f4").tobytes())
    return path


def write_gguf(path: Path, entries: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """A GGUF imatrix of sums and counts per expert."""
    with ikq.GGUFWriter(path, {"general.type": "imatrix"}) as writer:
        for name, (mean, counts) in entries.items():
            writer.add_tensor(f"{name}.in_sum2", (mean * counts[:, None]).astype(np.float32))
            writer.add_tensor(f"{name}.counts", counts[:, None].astype(np.float32))
    return path


def experts_model(path: Path, n_experts: int) -> tuple[Path, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((n_experts, 8, 256), dtype=np.float32)
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        writer.add_tensor(UP, x)
    return path, x


def means(n_experts: int) -> np.ndarray:
    return np.random.default_rng(6).lognormal(0, 1.5, (n_experts, 256)).astype(np.float32)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_incomplete_imatrix_is_refused_by_name(tmp_path: Path, dry: tuple[str, ...]) -> None:
    done = ikq_command("quantize", *dry, "--imatrix", GAP, MODEL, tmp_path / "o.gguf", "IQ4_KS")
    assert done.returncode == 2
    assert "no data for 1 of 21 tensors (`output.weight`)" in done.stderr
    for way_out in ("ikq imatrix", "--allow-missing", "--leave-output-tensor", "--output-tensor-type q8_0"):
        assert way_out in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "imatrix coverage: 20 of 21 tensors, 96 of 96 experts" in done.stdout
    for gate in GATES:
        assert f"`{gate}`" in done.stderr
        assert f"  {gate}: absent, served by {gate.replace('gate', 'up')}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ikq.MissingImatrixError, match=r"output\.weight"):
        ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=GAP)


def test_allow_missing_goes_ahead_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    done = ikq_command("quantize", "--allow-missing", "--imatrix", GAP, MODEL, out, "IQ4_KS")
    assert done.returncode == 0, done.stderr
    assert "output.weight: missing, all columns count the same" in done.stdout
    assert "warning: 1 tensors are not in the imatrix: output.weight" in done.stdout
    metadata = ikq.GGUFReader(out).metadata
    assert metadata["quantize.imatrix.missing_count"] == 1
    assert "quantize.imatrix.unseen_experts_count" not in metadata


@pytest.mark.parametrize("way_out", [{"leave_output_tensor": True}, {"output_tensor_type": "q8_0"}])
def test_ways_out_lead_out(way_out: dict[str, object]) -> None:
    coverage = ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=GAP, **way_out).coverage  # type: ignore[arg-type]
    assert coverage is not None
    assert coverage.is_complete
    assert coverage.missing == ()
    assert list(coverage.borrowed) == GATES
    assert coverage.borrowed[GATES[1]] == "blk.1.ffn_up_exps.weight"


def test_a_complete_imatrix_is_shown_and_taken() -> None:
    done = ikq_command("quantize", "--dry-run", "--imatrix", WHOLE, MODEL, "IQ4_KS")
    assert done.returncode == 0, done.stderr
    assert "imatrix coverage: 21 of 21 tensors, 96 of 96 experts\n" in done.stdout
    assert "warning" not in done.stdout
    coverage = ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=WHOLE).coverage
    assert coverage == ikq.ImatrixCoverage(21, 21, 96, 96, (), {}, (), (), is_complete=True)
    assert ikq.plan_quantization(MODEL, None, "IQ4_KS").coverage is None
    assert "coverage" not in ikq_command("quantize", "--dry-run", MODEL, "IQ4_KS").stdout


def test_what_the_user_leaves_out_is_not_missing() -> None:
    plan = ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=WHOLE, exclude_weights=["ffn_down"])
    assert plan.coverage is not None
    assert plan.coverage.is_complete
    assert plan.coverage.left_out == tuple(f"blk.{i}.ffn_down_exps.weight" for i in range(4))
    assert plan.coverage.n_covered == 17
    with pytest.raises(ikq.MissingImatrixError, match=r"output\.weight"):
        ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=GAP, exclude_weights=["ffn_down"])


@pytest.mark.parametrize(("n_unseen", "refused"), [(0, False), (1, False), (2, True), (20, True)])
def test_95_percent_of_the_experts_must_be_seen(tmp_path: Path, n_unseen: int, refused: bool) -> None:
    model, _ = experts_model(tmp_path / "m.gguf", 20)
    values = means(20)
    values[:n_unseen] = 0
    dat = write_dat(tmp_path / "m.dat", {UP: values})
    counts = np.where(np.arange(20) < n_unseen, 0, 7)
    gguf = write_gguf(tmp_path / "imatrix.gguf", {UP: (values, counts)})
    for imatrix in (dat, gguf):
        if refused:
            with pytest.raises(ikq.MissingImatrixError) as caught:
                ikq.plan_quantization(model, None, "IQ4_KS", imatrix=imatrix)
            expected = f"`{UP}`" if n_unseen == 20 else f"{20 - n_unseen} of 20 of `{UP}`"
            assert expected in str(caught.value)
        plan = ikq.plan_quantization(model, None, "IQ4_KS", imatrix=imatrix, allow_missing=True)
        coverage = plan.coverage
        assert coverage is not None
        assert coverage.is_complete == (not refused)
        if n_unseen == 20:
            assert coverage.missing == (UP,)
            assert coverage.partial == ()
        else:
            assert coverage.missing == ()
            assert coverage.n_experts_seen == 20 - n_unseen
            assert plan.tensors[0].unseen_experts == tuple(range(n_unseen))
            assert coverage.partial == (((UP, 20 - n_unseen, 20),) if n_unseen else ())


def test_dummies_of_the_reference_collector_are_no_data(tmp_path: Path) -> None:
    """It stores ones for an expert that it never saw, if few are."""
    model, _ = experts_model(tmp_path / "m.gguf", 4)
    values = means(4)
    values[2] = 1
    dat = write_dat(tmp_path / "m.dat", {UP: values})
    with pytest.raises(ikq.MissingImatrixError, match="3 of 4"):
        ikq.plan_quantization(model, None, "IQ4_KS", imatrix=dat)


@pytest.mark.parametrize("form", ["dat", "gguf"])
def test_experts_never_seen_lean_on_what_the_others_have_in_common(tmp_path: Path, form: str) -> None:
    model, x = experts_model(tmp_path / "m.gguf", 4)
    # the same columns are loud for all experts, give or take a tenth
    rng = np.random.default_rng(8)
    values = (means(1) * rng.lognormal(0, 0.1, (4, 256))).astype(np.float32)
    counts = np.array([1500, 0, 90000, 9000])
    values[1] = 0
    if form == "dat":
        imatrix = write_dat(tmp_path / "m.dat", {UP: values})
        pooled = values[[0, 2, 3]].astype(np.float64).mean(axis=0)
    else:
        imatrix = write_gguf(tmp_path / "i.gguf", {UP: (values, counts)})
        pooled = np.average(values[[0, 2, 3]].astype(np.float64), axis=0, weights=counts[[0, 2, 3]])
    out = tmp_path / "o.gguf"
    done = ikq_command("quantize", "--allow-missing", "--imatrix", imatrix, model, out, "IQ4_KS")
    assert done.returncode == 0, done.stderr
    assert "3 of 4 experts seen, the rest lean on their statistics" in done.stdout
    assert "1 experts without imatrix data lean on the others'" in done.stdout
    found = ikq.GGUFReader(out)
    assert found.metadata["quantize.imatrix.unseen_experts_count"] == 1
    y = found.tensors[UP].dequantize()

    def error(e: int, z: np.ndarray) -> float:
        return float((((z - x[e]) ** 2) * pooled).sum())

    def encoded(e: int, weights: np.ndarray | None) -> np.ndarray:
        return ikq.dequantize(ikq.quantize(x[e], "IQ4_KS", weights), "IQ4_KS", 256)

    # as good as with the mean of the others' (the columns agree to a hundredth), better than with equal weights
    assert error(1, y[1]) == pytest.approx(error(1, encoded(1, pooled.astype(np.float32))), rel=0.01)
    assert error(1, y[1]) < 0.95 * error(1, encoded(1, None))
    # experts that were seen are encoded with their own statistics, bit for bit
    own = ikq.Imatrix(imatrix)[UP].values.reshape(4, 256)
    for e in (0, 2, 3):
        assert np.array_equal(y[e], encoded(e, own[e]))


def test_experts_with_few_tokens_are_named_and_the_rest_untouched(tmp_path: Path) -> None:
    model, x = experts_model(tmp_path / "m.gguf", 4)
    values, counts = means(4), np.array([1024, 1023, 5, 10**6])
    imatrix = write_gguf(tmp_path / "i.gguf", {UP: (values, counts)})
    plan = ikq.plan_quantization(model, tmp_path / "o.gguf", "IQ4_KS", imatrix=imatrix)
    assert plan.tensors[0].thin_experts == (1, 2)
    assert plan.tensors[0].unseen_experts == ()
    plan.run()
    y = ikq.GGUFReader(tmp_path / "o.gguf").tensors[UP].raw
    own = ikq.Imatrix(imatrix)[UP].values
    same = [np.array_equal(y[e], ikq.quantize(x[e], "IQ4_KS", own[e])) for e in range(4)]
    assert same == [True, False, False, True]


def test_hidden_statistics_leave_no_counts(tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    ikq.quantize_file(MODEL, out, "Q4_0", imatrix=GAP, allow_missing=True, hide_imatrix=True)
    assert "quantize.imatrix.missing_count" not in ikq.GGUFReader(out).metadata
