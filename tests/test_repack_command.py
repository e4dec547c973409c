"""`ikq quantize --repack` and `--unrepack`: rows into groups and out of them, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.errors import RefusedError

# twins that hold the same codes and scales; of several the last, which is in use
TWINS = {t.base: t for t in ikq.QuantType if t.base is not None} | {
    ikq.QuantType.Q8_KV: ikq.QuantType.Q8_KV_R8
}
# the tensors that the reference interleaved in its sample
SAMPLE_PATTERN = r"attn_q\.,ffn_.*_exps"


def ikq_command(*args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def of_types(path: Path, shape: tuple[int, ...], types: list[ikq.QuantType], **more: ikq.QTensor) -> Path:
    """A file with a matrix of each type."""
    x = np.random.default_rng(9).standard_normal(shape, dtype=np.float32)
    with ikq.GGUFWriter(path, {"general.architecture": "llama", "general.file_type": 15}) as writer:
        for t in types:
            writer.add_tensor(f"{t.name}.weight", ikq.QTensor.quantize(x, t))
        for name, tensor in more.items():
            writer.add_tensor(name.replace("__", "."), tensor)
    return path


def tensors(path: Path) -> dict[str, ikq.QTensor]:
    return dict(ikq.GGUFReader(path).tensors)


def same_model(a: Path, b: Path) -> None:
    """Metadata and tensors are equal, byte for byte; an output also has hashes of its tensors."""
    found, expected = ikq.GGUFReader(a), ikq.GGUFReader(b)
    pairs = lambda r: {k: v for k, v in r.metadata.items() if k != "ikq.tensor_hashes"}  # noqa: E731
    assert pairs(found) == pairs(expected)
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].type == tensor.type
        assert np.array_equal(found.tensors[name].raw, tensor.raw), name


def test_the_sample_of_the_reference_goes_apart_and_together(samples: Path, tmp_path: Path) -> None:
    sample = samples / "tiny-moe-iq3-k-r4.gguf"
    apart, together = tmp_path / "apart.gguf", tmp_path / "together.gguf"
    for words in (
        ("--unrepack", sample, apart),
        ("--repack", "--repack-pattern", SAMPLE_PATTERN, apart, together, "IQ3_K_R4", 2),
    ):
        done = ikq_command("quantize", *words)
        assert done.returncode == 0, done.stderr
    found = tensors(apart)
    assert sum(t.type == ikq.QuantType.IQ3_K for t in found.values()) == 17
    assert not any(t.type.rows > 1 for t in found.values() if isinstance(t.type, ikq.QuantType))
    for name, tensor in tensors(sample).items():
        assert np.array_equal(tensor.dequantize(), found[name].dequantize()), name
    assert ikq.GGUFReader(apart).metadata["general.file_type"] == 139
    same_model(together, sample)


@pytest.mark.filterwarnings("ignore::ikq.errors.NotTernaryWarning")
def test_every_type_with_an_interleaved_form(tmp_path: Path) -> None:
    types = [t for t in TWINS if t.can_encode]
    assert len(types) == 26
    # three experts of 80 rows, more than one unit of work each
    source = of_types(tmp_path / "in.gguf", (3, 80, 4096), types)
    out, back = tmp_path / "out.gguf", tmp_path / "back.gguf"
    result = ikq.quantize_file(source, out, "COPY", repack=True, n_threads=2)
    assert all(t.repacked and not t.copied for t in result.plan.tensors)
    assert {t.how for t in result.outcomes} == {"repacked"}
    assert result.plan.total_bytes == out.stat().st_size
    before, found = tensors(source), tensors(out)
    for t in types:
        name = f"{t.name}.weight"
        assert found[name].type == TWINS[t]
        expected = ikq.repack(before[name].raw.reshape(240, -1), t, TWINS[t], 4096)
        assert np.array_equal(found[name].raw.reshape(-1), expected.reshape(-1)), name
    ikq.quantize_file(out, back, "COPY", unrepack=True, repack_pattern="^[^Q],^Q[^8],Q8_0")
    for name, tensor in tensors(back).items():
        if "Q8_KV" not in name:
            assert tensor.type == before[name].type
            assert np.array_equal(tensor.raw, before[name].raw), name


def test_what_is_kept_says_why(tmp_path: Path) -> None:
    q = ikq.QuantType
    x = np.random.default_rng(9).standard_normal((6, 512), dtype=np.float32)
    embedding = ikq.QTensor.quantize(np.ones((8, 256), np.float32), "Q4_0")
    rest = {"odd__weight": ikq.QTensor.quantize(x, "Q4_K"), "token_embd__weight": embedding}
    source = of_types(tmp_path / "in.gguf", (16, 512), [q.Q4_K, q.IQ4_KT, q.F16, q.F32, q.Q8_K_R8], **rest)
    done = ikq_command("quantize", "--repack", source)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "in-repacked.gguf"
    types = {name: t.type.name for name, t in tensors(out).items()}
    assert types == {
        "Q4_K.weight": "Q4_K_R4",
        "IQ4_KT.weight": "IQ4_KT",
        "F16.weight": "F16",
        "F32.weight": "F32",
        "Q8_K_R8.weight": "Q8_K_R8",
        "odd.weight": "Q4_K",
        "token_embd.weight": "Q4_0",
    }
    assert ikq.GGUFReader(out).metadata["general.file_type"] == 214
    for line in (
        "kept: 1 tensors, iq4_kt has no interleaved form: IQ4_KT.weight",
        "kept: 1 tensors, 6 rows are not groups of 4: odd.weight",
        "kept: 1 tensors, single rows of an embedding must be reachable: token_embd.weight",
    ):
        assert line in done.stdout
    assert "repacking to q4_k_r4" in done.stdout
    done = ikq_command("quantize", "--unrepack", out, tmp_path / "back.gguf")
    assert done.returncode == 0, done.stderr
    assert "kept: 1 tensors, no plain type holds what q8_k_r8 does: Q8_K_R8.weight" in done.stdout
    same_model(tmp_path / "back.gguf", source)


def test_dry_run_and_split_as_with_any_plan(tiny_moe: Path, tmp_path: Path) -> None:
    options = ("--repack", "--split-max-tensors", "20")
    planned = ikq_command("quantize", *options, "--dry-run", tiny_moe, tmp_path / "out.gguf")
    assert planned.returncode == 0, planned.stderr
    assert list(tmp_path.iterdir()) == []
    done = ikq_command("quantize", *options, tiny_moe, tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert f"would have {sum(f.stat().st_size for f in files)} bytes" in planned.stdout
    found, before = tensors(files[0]), tensors(tiny_moe)
    assert found["output.weight"].type == ikq.QuantType.BF16_R16
    assert all(np.array_equal(t.dequantize(), found[name].dequantize()) for name, t in before.items())


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    # any bits are codes; 190 MB take long enough to be interrupted
    raw = np.random.default_rng(3).integers(0, 256, (5120, 2304), dtype=np.uint8)
    source, out, whole = (tmp_path / f"{name}.gguf" for name in ("in", "out", "whole"))
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}) as writer:
        for i in range(16):
            writer.add_tensor(f"blk.{i}.ffn_up.weight", ikq.QTensor(raw, "Q4_0", (5120, 4096)))

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    plan = ikq.plan_quantization(source, out, "COPY", repack=True)
    with pytest.raises(Stop):
        plan.run(n_threads=1, progress=stop)
    assert not out.exists()
    result = plan.run()
    assert 0 < result.n_resumed < result.n_items
    ikq.quantize_file(source, whole, "COPY", repack=True)
    assert out.read_bytes() == whole.read_bytes()
    expected = ikq.repack(raw, "Q4_0", "Q4_0_R8", 4096).reshape(-1)
    assert all(np.array_equal(t.raw.reshape(-1), expected) for t in tensors(out).values())
    for large in (source, out, whole):
        large.unlink()  # pytest keeps the folders of the last runs


def test_an_older_output_serves_again(tmp_path: Path) -> None:
    source = of_types(tmp_path / "in.gguf", (8, 64, 4096), [ikq.QuantType.Q4_K, ikq.QuantType.IQ4_NL])
    whole, again, encoded = (tmp_path / f"{name}.gguf" for name in ("whole", "again", "encoded"))
    ikq.quantize_file(source, whole, "COPY", repack=True)
    notes: list[str] = []
    ikq.plan_quantization(source, again, "COPY", repack=True).run(reuse=whole, on_note=notes.append)
    assert notes == ["reusing 2 of the 2 tensors that would be encoded"]
    assert again.read_bytes() == whole.read_bytes()
    # the same types by encoding anew are not the same bytes
    notes.clear()
    rules = {"custom_q": "Q4_K=q4_k_r4,IQ4_NL=iq4_nl_r4", "allow_requantize": True}
    plan = ikq.plan_quantization(source, encoded, "COPY", **rules)  # type: ignore[arg-type]
    plan.run(reuse=whole, on_note=notes.append)
    assert notes == ["reusing 0 of the 2 tensors that would be encoded"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"unrepack": True}, "there is nothing for --unrepack to do"),
        ({"repack": True, "unrepack": True}, "undo each other"),
        ({"repack_pattern": "attn"}, "needs --repack"),
        ({"repack": True, "repack_pattern": "attn_q,atn_k"}, "`atn_k`: it matches no tensor that --repack"),
        ({"repack": True, "repack_pattern": "attn("}, r"`attn\(`: unclosed group"),
        ({"repack": True, "attn_q_type": "q8_0"}, "--attn-q-type has no effect"),
        ({"repack": True, "imatrix": "x.dat"}, "--imatrix has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tiny_moe: Path, tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    if "imatrix" in options:
        options = {**options, "imatrix": Path(__file__).parent / "data" / "imatrix-plain.dat"}
    with pytest.raises(RefusedError, match=sentence):
        ikq.quantize_file(tiny_moe, tmp_path / "out.gguf", "COPY", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "destination", "n_threads"),
    [
        (["in"], None, None),
        (["in", "out"], "out", None),
        (["in", "out", "3"], "out", 3),
        (["in", "Q4_K_R4"], None, None),
        (["in", "out", "q4_k_r4"], "out", None),
        (["in", "out", "Q4_K_R4", "2"], "out", 2),
        (["in", "out", "214", "2"], "out", 2),
    ],
)
def test_type_may_be_left_out(words: list[str], destination: str | None, n_threads: int | None) -> None:
    from ikq.cli.quantize import split_repack_words

    assert split_repack_words(words) == ("in", destination, "COPY", n_threads)
