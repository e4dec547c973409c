"""`python -m ikq quantize` as a user meets it: lines, sizes, exit codes, files left alone."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ikq

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
IMATRIX = DATA / "imatrix-plain.dat"


def ikq_command(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)


def small_model(path: Path, **arrays: np.ndarray) -> Path:
    """A GGUF file with these float tensors (dots in names are written `__`)."""
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        for name, x in arrays.items():
            writer.add_tensor(name.replace("__", "."), x)
    return path


def rows(n_rows: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, n), dtype=np.float32)


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_lines_sizes_and_types(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = ikq_command("quantize", "--imatrix", IMATRIX, MODEL, out, "IQ4_KS", 2)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 51
    # the shape that people's log scripts look for
    pattern = r"\[ *\d+/51\] (\S+) +- \[ *\d+, *\d+, *\d+, *\d+\], type = +(\w+), "
    converted = pattern + r"converting to (\w+) \.\. size = +[\d.]+ MiB -> +[\d.]+ MiB \((.*)\)"
    kept = pattern + r"size = +[\d.]+ MiB \((.*)\)"
    types = {}
    for line in lines:
        match = re.fullmatch(converted, line) or re.fullmatch(kept, line)
        assert match, line
        types[match[1]] = match[3]
    assert types["output.weight"] == "q6_k"
    assert types["blk.0.ffn_up_exps.weight"] == "iq4_ks"
    assert "router, kept" in types["blk.0.ffn_gate_inp.weight"]
    model = ikq.GGUFReader(out)
    assert {t.type for t in model.tensors.values()} == {
        ikq.QuantType.F32,
        ikq.QuantType.IQ4_KS,
        # the rules for models with experts
        ikq.QuantType.Q5_K,
        ikq.QuantType.Q6_K,
        ikq.QuantType.Q8_0,
    }
    assert model.metadata["general.file_type"] == 145
    assert model.metadata["quantize.imatrix.entries_count"] == 33
    assert model.metadata["quantize.imatrix.chunks_count"] == 20
    # a copied tensor is the source's, byte for byte
    source = ikq.GGUFReader(MODEL)
    name = "blk.0.ffn_gate_inp.weight"
    assert np.array_equal(model.tensors[name].raw, source.tensors[name].raw)


@pytest.mark.parametrize("split", [(), ("--split-max-tensors", "20"), ("--split-max-size", "2M")])
def test_dry_run_predicts_the_size_to_the_byte(tmp_path: Path, split: tuple[str, ...]) -> None:
    out = tmp_path / "out.gguf"
    planned = ikq_command("quantize", *split, "--dry-run", MODEL, out, "Q4_0")
    assert planned.returncode == 0, planned.stderr
    assert left_behind(tmp_path) == []
    predicted = int(re.search(r"would have (\d+) bytes", planned.stdout)[1])
    done = ikq_command("quantize", *split, MODEL, out, "Q4_0")
    assert done.returncode == 0, done.stderr
    files = list(tmp_path.iterdir())
    assert (len(files) > 1) == bool(split)
    assert sum(f.stat().st_size for f in files) == predicted
    # a split set and a single file hold the same tensors
    if split:
        whole = tmp_path / "whole.gguf"
        ikq.quantize_file(MODEL, whole, "Q4_0")
        a, b = ikq.GGUFReader(files[0]), ikq.GGUFReader(whole)
        assert list(a.tensors) == list(b.tensors)
        assert all(np.array_equal(a.tensors[name].raw, t.raw) for name, t in b.tensors.items())


def test_bytes_do_not_depend_on_threads_or_instruction_set(tmp_path: Path) -> None:
    rules = "ffn_down=iq4_nl,attn_q=q4_k,attn_k=q6_k,attn_v=iq4_xs,ffn_up=q4_0"
    plan = ikq.plan_quantization(
        MODEL, tmp_path / "a.gguf", "IQ4_KS", custom_q=rules, imatrix=IMATRIX, output_tensor_type="f16"
    )
    plan.run(n_threads=1)
    expected = (tmp_path / "a.gguf").read_bytes()
    runs = [(n, None) for n in (2, 3, 5, 13)] + [(2, isa) for isa in ikq.available_isas()]
    for n_threads, isa in runs:
        plan.run(n_threads=n_threads, _isa=isa)
        assert (tmp_path / "a.gguf").read_bytes() == expected, (n_threads, isa)


def test_unchanged_metadata_is_byte_identical(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ikq.quantize_file(MODEL, out, "Q8_0")
    source, written = MODEL.read_bytes(), out.read_bytes()
    a, b = ikq.GGUFReader(MODEL).metadata, ikq.GGUFReader(out).metadata
    assert list(a) == [k for k in b if k in a]
    assert set(b) - set(a) <= {"general.quantization_version", "general.file_type", "ikq.tensor_hashes"}
    # the tokenizer is the bulk: one run of bytes that stands in both files
    start = source.index(b"tokenizer.ggml.tokens")
    end = source.index(b"blk.0.", start)
    for needle in (source[start : start + 50_000], source[end - 20_000 : end - 10_000]):
        assert needle in written


def test_the_router_is_quantized_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = ikq_command("quantize", "--ffn-gate-inp-type", "q8_0", "--pure", MODEL, out, "Q4_0")
    assert done.returncode == 0, done.stderr
    model = ikq.GGUFReader(out)
    assert model.tensors["blk.2.ffn_gate_inp.weight"].type == ikq.QuantType.Q8_0
    assert model.tensors["output.weight"].type == ikq.QuantType.Q4_0


def test_default_output_name_and_positional_forms(tmp_path: Path) -> None:
    model = small_model(tmp_path / "m.gguf", output__weight=rows(4, 256))
    assert ikq_command("quantize", model, "q8_0", "3").returncode == 0
    assert (tmp_path / "ggml-model-Q8_0.gguf").exists()
    assert ikq_command("quantize", "--pure", model, tmp_path / "x.gguf", "7").returncode == 0
    assert ikq.GGUFReader(tmp_path / "x.gguf").tensors["output.weight"].type == ikq.QuantType.Q8_0


def test_rows_that_do_not_fit_fall_back_and_say_why(tmp_path: Path) -> None:
    arrays = {"a__weight": rows(4, 192), "b__weight": rows(4, 100), "c__weight": rows(4, 512)}
    model = small_model(tmp_path / "m.gguf", **arrays)
    out = tmp_path / "out.gguf"
    done = ikq_command("quantize", model, out, "Q4_K")
    assert done.returncode == 0, done.stderr
    types = {name: t.type.name for name, t in ikq.GGUFReader(out).tensors.items()}
    assert types == {"a.weight": "Q5_0", "b.weight": "F16", "c.weight": "Q4_K"}
    assert "q5_0 because rows of 192 are not a multiple of 256" in done.stdout
    assert "fallback types: 2 of 3" in done.stdout


def test_both_imatrix_forms_and_the_silent_gap(tmp_path: Path) -> None:
    dat, gguf = ikq.Imatrix(IMATRIX), ikq.Imatrix(DATA / "imatrix-llamacpp.gguf")
    assert set(dat) == set(gguf)
    assert len(dat) == 33
    assert (dat.n_chunks, gguf.n_chunks) == (20, 20)
    name = "blk.0.ffn_down_exps.weight"
    assert gguf[name].values.shape == (8, 256)
    # two programs, the same text: BF16 noise moves single columns, not the middle
    ratio = dat[name].values.ravel() / gguf[name].values.ravel()
    assert abs(np.median(ratio) - 1) < 1e-3
    gap = ikq.Imatrix(DATA / "imatrix-fused-default.dat")
    assert len(gap) == 28
    assert gap.entry_for("blk.1.ffn_gate_exps.weight") == "blk.1.ffn_up_exps.weight"
    assert gap.entry_for("output.weight") is None
    plan = ikq.plan_quantization(MODEL, None, "IQ4_KS", imatrix=gap, allow_missing=True)
    # rows of the embedding are looked up: nothing is missing for it
    lacking = {t.name for t in plan.tensors if t.lacks_imatrix}
    assert lacking == {"output.weight"}


def test_experts_without_statistics_are_counted_and_still_encoded(tmp_path: Path) -> None:
    x = np.stack([rows(8, 256, seed) for seed in range(3)])
    model = small_model(tmp_path / "m.gguf", blk__0__ffn_up_exps__weight=x)
    dat = tmp_path / "m.dat"
    values = np.ones((3, 256), np.float32)
    values[1] = 0
    name = b"blk.0.ffn_up_exps.weight"
    ints = np.array([1, len(name)], np.int32).tobytes() + name + np.array([5, 768], np.int32).tobytes()
    dat.write_bytes(ints + values.tobytes())
    out = tmp_path / "o.gguf"
    plan = ikq.plan_quantization(model, out, "IQ4_KS", imatrix=dat, allow_missing=True)
    assert plan.tensors[0].unseen_experts == (1,)
    plan.run()
    y = ikq.GGUFReader(out).tensors[name.decode()].dequantize()
    error = np.sqrt(((y - x) ** 2).sum(axis=(1, 2)) / (x**2).sum(axis=(1, 2)))
    assert np.all(np.isfinite(y))
    # 4.25 bits: about 7% whether or not the expert has statistics
    assert np.all(error < 0.1), error


def test_a_source_with_nan_is_refused_by_place(tmp_path: Path) -> None:
    x = np.stack([rows(600, 512, seed) for seed in range(2)])
    x[1, 577, 300] = np.nan
    model = small_model(tmp_path / "m.gguf", blk__0__ffn_up_exps__weight=x)
    before = left_behind(tmp_path)
    done = ikq_command("quantize", model, tmp_path / "o.gguf", "Q8_0")
    assert done.returncode == 1
    assert "`blk.0.ffn_up_exps.weight` holds NaN (expert 1, row 577, column 300)" in done.stderr
    # what was done before it serves when the source is in order; another command's would not be asked for
    assert left_behind(tmp_path) == [*before, "o.gguf.journal", "o.gguf.part"]
    assert re.search(r"kept in .*o\.gguf\.part.*--restart", done.stdout)
    x[1, 577, 300] = 0.5
    small_model(model, blk__0__ffn_up_exps__weight=x)
    again = ikq_command("quantize", model, tmp_path / "o.gguf", "Q8_0")
    assert again.returncode == 0, again.stderr
    assert re.search(r"going on: [1-9]\d* of ", again.stdout), again.stdout
    ikq.quantize_file(model, tmp_path / "p.gguf", "Q8_0")
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["no-such.gguf", "Q8_0"], 1, r"no-such\.gguf: no such file"),
        (["empty.gguf", "Q8_0"], 1, r"empty\.gguf.*(empty|ends|bytes)"),
        (["cut.gguf", "Q8_0"], 1, r"cut\.gguf"),
        (["folder", "Q8_0"], 1, r"folder.*directory"),
        (["text.gguf", "Q8_0"], 1, r"text\.gguf.*(magic|GGUF)"),
        (["m.gguf", "out.gguf", "Q9_K"], (1, 2), r"Q9_K.*did you mean .*Q._K"),
        (["--output-tensor-type", "iq4ks", "m.gguf", "Q8_0"], (1, 2), r"iq4ks.*did you mean.*IQ4_KS"),
        (["--custom-q", "nothing=q8_0", "m.gguf", "Q4_0"], 2, r"`nothing=q8_0` matches no tensor"),
        (["--custom-q", "out(=q8_0", "m.gguf", "Q4_0"], 2, r"out\(=q8_0"),
        (["m.gguf"], 2, r"TYPE is missing"),
        (["m.gguf", "m.gguf", "Q4_0"], 2, r"m\.gguf is the file that is read"),
        (["--pure", "m.gguf", "out.gguf", "IQ2_KT"], 2, r"IQ2_KT needs an imatrix.*`blk\.0\.ffn_up\.weight`"),
        (["q.gguf", "out.gguf", "Q4_0"], 2, r"is Q8_0 already.*--allow-requantize"),
        (["--imatrix", "text.gguf", "m.gguf", "out.gguf", "IQ4_KS"], 1, r"text\.gguf is not an importance"),
        (["--imatrix", "no.dat", "m.gguf", "out.gguf", "IQ4_KS"], 1, r"no\.dat"),
        (["m.gguf", "missing/../m.gguf/out.gguf", "Q4_0"], 1, r"out\.gguf|m\.gguf"),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path, words: list[str], code: int | tuple[int, ...], sentence: str
) -> None:
    small_model(tmp_path / "m.gguf", output__weight=rows(4, 256), blk__0__ffn_up__weight=rows(8, 256, 1))
    ikq.quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-5000])
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "folder").mkdir()
    (tmp_path / "out.gguf").write_text("precious")
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    done = ikq_command("quantize", *words, cwd=tmp_path)
    codes = code if isinstance(code, tuple) else (code,)
    assert done.returncode in codes, (done.returncode, done.stderr)
    assert re.search(sentence, done.stderr, re.IGNORECASE), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    after = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert after == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = ikq_command("quantize", MODEL, out, "Q8_0", preexec_fn=limit)
    assert done.returncode == 1
    assert re.search(r"out\.gguf", done.stderr), done.stderr
    assert re.search(r"\d+ bytes", done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert out.read_text() == "precious"
    assert left_behind(tmp_path) == ["out.gguf"]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    # half a minute of work, so that the signal comes in the middle
    x = np.stack([rows(2048, 1024, 7)] * 16)
    model = small_model(tmp_path / "m.gguf", blk__0__ffn_up_exps__weight=x)
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    words = [sys.executable, "-m", "ikq", "quantize", str(model), str(out), "IQ4_KT", "1"]
    # a shell that runs the tests in the background has them ignore the signal, and their children too
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.gguf.part").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert re.search(r"kept in .*out\.gguf\.part.*--restart", stderr)
    assert left_behind(tmp_path) == ["m.gguf", "out.gguf", "out.gguf.journal", "out.gguf.part"]
    assert out.read_text() == "precious"


def test_memory_in_flight_is_bounded(tmp_path: Path) -> None:
    """A tensor of 512 MB of floats must not be held as a whole: the peak stays far below it."""
    n_experts, n_rows, n = 16, 4096, 2048
    path = tmp_path / "m.gguf"
    x = np.broadcast_to(rows(n_rows, n).astype(np.float16), (n_experts, n_rows, n))
    small_model(path, blk__0__ffn_up_exps__weight=np.ascontiguousarray(x))
    script = """
import ikq, sys

peak = ticks = 0

def look(_):
    global peak, ticks
    ticks += 1
    line = next(line for line in open('/proc/self/status') if line.startswith('RssAnon'))
    peak = max(peak, int(line.split()[1]))

plan = ikq.plan_quantization(sys.argv[1], sys.argv[2], 'Q4_K')
plan.run(n_threads=2, on_bytes=look)
print(ticks, peak)
"""
    words = [sys.executable, "-c", script, path, tmp_path / "o.gguf"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for large in (path, tmp_path / "o.gguf"):
        large.unlink()  # pytest keeps the folders of the last runs
    ticks, peak = map(int, done.stdout.split())
    assert ticks >= 5, "the run was looked at while it was under way"
    # private memory: the interpreter with numpy, and a few units of 1 MiB of floats
    assert peak < 150 * 1024, f"{peak} KiB"


def test_a_source_with_one_scale_per_tensor_is_decoded_in_pieces(tmp_path: Path) -> None:
    """I2_S: the scale stands behind all experts' codes; the pieces must all find it."""
    shape = (2, 300, 1024)
    codes = np.random.default_rng(3).integers(0, 256, 2 * 300 * 1024 // 4, dtype=np.uint8)
    trailer = np.zeros(8, np.float32)
    trailer[0] = 0.37
    source = ikq.QTensor(np.concatenate([codes, trailer.view(np.uint8)]), "I2_S", shape)
    path, out = tmp_path / "m.gguf", tmp_path / "o.gguf"
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.ffn_up_exps.weight", source)
    ikq.quantize_file(path, out, "F32", allow_requantize=True)
    written = ikq.GGUFReader(out).tensors["blk.0.ffn_up_exps.weight"].dequantize()
    assert np.array_equal(written, source.dequantize().reshape(shape))
