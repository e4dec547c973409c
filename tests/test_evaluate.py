"""Perplexity and KL divergence: windows, files in both forms, statistics, and the verbs that print them."""

import json
import math
import struct

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from model_files import RECURRENT, path

import ikq
from ikq.__main__ import main
from ikq.evaluate import (
    BaseFile,
    CompactBase,
    ModelBase,
    base_writer,
    compact_writer,
    cut,
    log_softmax,
    measure_divergence,
    measure_perplexity,
    open_base,
    text_tokens,
)
from ikq.evaluate.base_file import full_row_bytes
from ikq.evaluate.compact import kept, record_type

TEXT = "".join(
    f"The function number {i} returns a list of the objects in module {i % 7}.\n" for i in range(60)
)


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=512) as model:
        yield model


@pytest.fixture(scope="module")
def worse(tiny_moe, tmp_path_factory):
    """The model in few bits."""
    path = tmp_path_factory.mktemp("worse") / "worse.gguf"
    ikq.quantize_file(tiny_moe, path, "Q3_K_S")
    return path


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@given(st.integers(0, 300), st.integers(4, 40), st.integers(-1, 5))
def test_windows_follow_each_other(n, n_ctx, chunks):
    tokens = np.arange(n, dtype=np.int32)
    expected = n // n_ctx if chunks < 0 else min(n // n_ctx, chunks)
    if expected == 0:
        with pytest.raises(ikq.RefusedError):
            cut(tokens, n_ctx=n_ctx, chunks=chunks)
        return
    windows = cut(tokens, n_ctx=n_ctx, chunks=chunks, bos=-7)
    assert windows.n == expected
    for i in range(windows.n):
        window = windows[i]
        assert window.tokens.tolist() == [-7, *range(i * n_ctx + 1, (i + 1) * n_ctx)]
        assert window.first == n_ctx // 2
        assert window.targets.tolist() == list(range(i * n_ctx + n_ctx // 2 + 1, (i + 1) * n_ctx))
    with pytest.raises(IndexError):
        windows[windows.n]


@given(st.integers(0, 300), st.integers(4, 40), st.integers(1, 60))
def test_windows_with_a_stride(n, n_ctx, stride):
    tokens = np.arange(n, dtype=np.int32)
    size = n_ctx + stride // 2
    # as many as begin before the text has less than a window left, counted by hand
    starts = [s for s in range(0, n, stride) if s + size < n + stride and s < n - size]
    if stride >= size or not starts:
        with pytest.raises(ikq.RefusedError):
            cut(tokens, n_ctx=n_ctx, stride=stride)
        return
    windows = cut(tokens, n_ctx=n_ctx, stride=stride, bos=-7)
    assert windows.n == len(starts)
    for i, start in enumerate(starts):
        assert windows[i].tokens.tolist() == list(range(start, start + size))
        assert windows[i].targets.tolist() == list(range(start + size - stride, start + size))


@pytest.mark.parametrize("arguments", [{"n_ctx": 3}, {"stride": -1}, {"chunks": 0}])
def test_sizes_that_make_no_sense(arguments):
    with pytest.raises(ikq.RefusedError):
        cut(np.zeros(2000, np.int32), **arguments)


def test_perplexity_is_that_of_the_oracle(model):
    """Hugging Face in float32; 8-bit activations and the F16 cache move it by less than a thousandth."""
    file = SHARED / "models" / "tiny-moe-hf-perplexity.json"
    if not file.is_file():
        pytest.skip("../shared/models is not there: perplexity is not compared with the oracle")
    text = (SHARED / "models" / "text" / "heldout.txt").read_bytes().decode()
    tokens = text_tokens(model.tokenizer, text)
    assert len(tokens) == 75402
    expected = json.loads(file.read_text())["running_ppl_per_window"][:8]
    found = list(measure_perplexity(model, cut(tokens, chunks=8)))
    assert [f.value for f in found] == pytest.approx(expected, rel=1e-3)
    assert [(f.n_windows, f.n_scored) for f in found] == [(i, 255 * i) for i in range(1, 9)]


def test_perplexity_by_hand(model):
    tokens = text_tokens(model.tokenizer, TEXT)
    windows = cut(tokens, n_ctx=40, chunks=2, stride=8)
    losses = []
    for start in (0, 8):
        logits = model.logits(tokens[start : start + 44]).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += [-log_p[j, tokens[start + j + 1]] for j in range(35, 43)]
    *_, found = measure_perplexity(model, windows)
    # single precision, and products of other numbers of rows
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.error == pytest.approx(found.value * np.std(losses) / math.sqrt(15), rel=1e-3)


def test_bos_begins_every_window():
    """Of models that want it, except with a stride, where the reference has no effect of it either."""
    with ikq.Model.load(path("llama/llama-bf16"), n_ctx=32) as model:
        bos = model.tokenizer.bos
        tokens = text_tokens(model.tokenizer, TEXT)
        assert tokens.tolist() == [bos, *model.tokenize(TEXT)]
        windows = cut(tokens, n_ctx=32, chunks=3, bos=bos)
        assert [windows[i].tokens[0] for i in range(3)] == [bos] * 3
        by_hand = []
        for i in range(3):
            logits = model.logits([bos, *tokens[32 * i + 1 : 32 * i + 32]])
            by_hand += [-log_softmax(logits)[j, tokens[32 * i + j + 1]] for j in range(16, 31)]
        *_, found = measure_perplexity(model, windows)
        assert found.value == pytest.approx(math.exp(np.mean(by_hand)), rel=1e-3)
        strided = cut(tokens, n_ctx=32, stride=8, bos=bos)
        assert strided[1].tokens[0] == tokens[8] != bos


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_start_every_window_anew(name):
    with ikq.Model.load(path(name), n_ctx=24) as model:
        tokens = np.tile(text_tokens(model.tokenizer, TEXT)[:24], 2)
        first, second = measure_perplexity(model, cut(tokens, n_ctx=24))
        assert second.value == pytest.approx(first.value, rel=1e-6)


def test_log_softmax():
    logits = np.array([[1e4, 1e4 - 1], [-3, 5]], np.float32)
    exact = [[-math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))], [-8 - math.log1p(math.exp(-8)), -math.log1p(math.exp(-8))]]  # fmt: skip
    assert np.allclose(log_softmax(logits), exact, rtol=1e-6, atol=1e-7)


def distributions(rng, n, n_vocab):
    return log_softmax(rng.normal(0, 3, (n, n_vocab)).astype(np.float32))


def written(path, writer, windows, log_p, **options):
    with writer(path, windows, log_p[0].shape[1], **options) as sink:
        for i, p in enumerate(log_p):
            sink.write(p, windows[i].targets)
    return path


@pytest.mark.parametrize("n_vocab", [50, 51])
def test_the_full_form_as_specified(tmp_path, n_vocab):
    rng = np.random.default_rng(n_vocab)
    windows = cut(rng.integers(0, n_vocab, 35).astype(np.int32), n_ctx=16, bos=1)
    log_p = [distributions(rng, 7, n_vocab) for _ in range(2)]
    log_p[0][0, :3] = -60  # further down than the form reaches
    path = written(tmp_path / "base", base_writer, windows, log_p)
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack("<3i", data[8:20]) == (16, n_vocab, 2)
    assert np.frombuffer(data[20:148], "<i4").tolist() == windows.tokens.tolist()
    assert len(data) == 148 + 14 * full_row_bytes(n_vocab)
    assert full_row_bytes(n_vocab) == 2 * (2 * ((n_vocab + 1) // 2) + 4)
    base = BaseFile(path, bos=1)
    for i in range(2):
        assert base.windows[i].tokens.tolist() == windows[i].tokens.tolist()
        best = log_p[i].max(axis=1, keepdims=True)
        wanted = np.maximum(log_p[i], best - 24)
        # half a step of the 16 bits, and single precision
        step = (best - wanted.min(axis=1, keepdims=True)) / 65535
        assert (np.abs(base.log_p(i, slice(0, 7)) - wanted) <= 0.5 * step + 1e-5).all()
        found = base.compare(i, slice(2, 6), distributions(rng, 4, n_vocab))
        assert found.top.tolist() == log_p[i][2:6].argmax(axis=1).tolist()
        assert found.log_p == pytest.approx(log_p[i][np.arange(2, 6), windows[i].targets[2:6]], abs=1e-3)


def test_equal_logits_have_no_step(tmp_path):
    windows = cut(np.zeros(8, np.int32), n_ctx=8)
    log_p = [log_softmax(np.zeros((3, 20), np.float32))]
    base = BaseFile(written(tmp_path / "base", base_writer, windows, log_p))
    assert np.allclose(base.log_p(0, slice(0, 3)), -math.log(20))
    compact = CompactBase(written(tmp_path / "compact", compact_writer, windows, log_p, share=1))
    for b in (base, compact):
        assert b.compare(0, slice(0, 3), log_p[0]).divergence == pytest.approx([0] * 3, abs=1e-6)


@pytest.mark.parametrize("noise", [0.03, 0.3, 1.0])
def test_the_compact_form(tmp_path, noise):
    """The estimate is as good as it says, the lower bound holds, the size is as promised."""
    rng = np.random.default_rng(3)
    n_vocab, n = 8000, 127
    windows = cut(rng.integers(0, n_vocab, 256).astype(np.int32), n_ctx=256)
    log_p = [distributions(rng, n, n_vocab)]
    path = written(tmp_path / "compact", compact_writer, windows, log_p)
    record = record_type(n_vocab, *kept(n_vocab)).itemsize
    assert path.stat().st_size == 28 + 4 * 256 + n * record
    assert record <= 0.03 * full_row_bytes(n_vocab)
    q = log_softmax(log_p[0] + rng.normal(0, noise, (n, n_vocab)).astype(np.float32))
    exact = (np.exp(log_p[0].astype(np.float64)) * (log_p[0] - q)).sum(axis=1)
    found = CompactBase(path).compare(0, slice(0, n), q)
    assert (found.least <= exact + 1e-6).all()
    error = math.sqrt(found.variance.sum()) / n
    # five standard errors: a fixed seed that is off by more is wrong
    assert abs(found.divergence.mean() - exact.mean()) < 5 * error
    assert error < 0.02 * exact.mean()
    assert found.top.tolist() == log_p[0].argmax(axis=1).tolist()
    assert np.array_equal(found.log_p.astype(np.float32), log_p[0][np.arange(n), windows[0].targets])


def test_a_certain_position(tmp_path):
    """Nothing is left to draw from: the kept tokens have all."""
    windows = cut(np.zeros(8, np.int32), n_ctx=8)
    logits = np.full((3, 300), -200, np.float32)
    logits[:, [5, 9]] = 0
    log_p = [log_softmax(logits)]
    base = CompactBase(written(tmp_path / "compact", compact_writer, windows, log_p, share=0.5))
    logits[:, 5] = math.log(3)
    found = base.compare(0, slice(0, 3), log_softmax(logits))
    exact = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    # steps of 200/65535 in the logarithms
    assert found.divergence == pytest.approx([exact] * 3, rel=1e-3)
    assert found.least == pytest.approx([exact] * 3, rel=1e-3)
    assert found.variance.tolist() == [0, 0, 0]


def test_shares():
    for n_vocab in (4096, 65536, 65537, 256_000):
        for share in (0.03, 0.2, 1.0):
            k, m = kept(n_vocab, share)
            assert 2 <= k <= m < n_vocab
            size = record_type(n_vocab, k, m).itemsize
            larger = record_type(n_vocab, k, m + 1).itemsize
            assert size <= share * full_row_bytes(n_vocab) < larger
    for share in (0, -1, 1.5, 1e-9):
        with pytest.raises(ikq.RefusedError):
            kept(1000, share)


def test_divergence(model, worse, tmp_path):
    """Both file forms, and the model itself, say the same about another model."""
    tokens = text_tokens(model.tokenizer, TEXT)
    windows = cut(tokens, n_ctx=128, chunks=4)
    paths = {}
    for writer in (base_writer, compact_writer):
        paths[writer] = tmp_path / writer.__name__
        with writer(paths[writer], windows, model.spec.n_vocab) as sink:
            *_, ppl = measure_perplexity(model, windows, sink)
    with ikq.Model.load(worse, n_ctx=128) as q:
        *_, direct = measure_divergence(q, ModelBase(model, windows))
        *_, full = measure_divergence(q, open_base(paths[base_writer]))
        *_, compact = measure_divergence(q, open_base(paths[compact_writer]))
        *_, ppl_q = measure_perplexity(q, windows)
        assert len(list(measure_divergence(q, open_base(paths[base_writer]), 2))) == 2
    assert direct.mean.value > 0.01
    assert full.mean.value == pytest.approx(direct.mean.value, rel=2e-3)
    assert abs(compact.mean.value - direct.mean.value) < 5 * compact.form_error
    assert 0 < compact.least_mean < direct.mean.value
    assert direct.form_error == full.form_error == 0
    for d in (direct, full, compact):
        assert d.ppl.value == pytest.approx(ppl_q.value)
        # 16 bits of the range of a distribution
        assert d.ppl_base.value == pytest.approx(ppl.value, rel=1e-3)
        assert d.ratio.value == pytest.approx(ppl_q.value / ppl.value, rel=1e-3)
        assert d.difference.value == pytest.approx(ppl_q.value - ppl.value, abs=1e-2)
        assert d.top.value == pytest.approx(direct.top.value, abs=0.01)
        assert d.rms.value == pytest.approx(direct.rms.value, rel=1e-2)
        assert 0.9 < d.correlation < 1
    p = np.exp(-direct.loss) - np.exp(-direct.loss_base)
    assert direct.rms.value == pytest.approx(math.sqrt((p**2).mean()))


def test_a_model_is_no_distance_from_itself(model, tmp_path):
    windows = cut(text_tokens(model.tokenizer, TEXT), n_ctx=64, chunks=2)
    *_, found = measure_divergence(model, ModelBase(model, windows))
    assert found.mean == (0, 0)
    assert found.top == (1, 0)
    assert found.correlation == pytest.approx(1)


def test_damaged_files(tmp_path, model):
    rng = np.random.default_rng(5)
    windows = cut(rng.integers(0, 100, 32).astype(np.int32), n_ctx=16)
    log_p = [distributions(rng, 7, 100) for _ in range(2)]
    full = written(tmp_path / "full", base_writer, windows, log_p).read_bytes()
    compact = written(tmp_path / "compact", compact_writer, windows, log_p, share=0.5).read_bytes()
    path = tmp_path / "damaged"
    for data in (full, compact):
        n = len(data)
        huge = data[:8] + struct.pack("<i", 2**30) + data[12:]
        token = data[:28] + struct.pack("<i", 100) + data[32:]
        for damaged in (b"", data[:7], data[:15], data[:40], data[: n - 2], data + b"\0\0", huge, token):
            path.write_bytes(damaged)
            with pytest.raises(ikq.FormatError):
                open_base(path)
    # a record that names a token that does not exist
    path.write_bytes(compact[:-200] + b"\xff" * 200)
    with pytest.raises(ikq.FormatError, match="outside the vocabulary"):
        CompactBase(path).compare(1, slice(0, 7), log_p[0])
    path.write_bytes(full)
    with pytest.raises(ikq.FormatError, match="vocabulary of 100 tokens"):
        list(measure_divergence(model, open_base(path)))


@pytest.mark.parametrize("writer", [base_writer, compact_writer])
def test_an_interrupted_writer_leaves_nothing(tmp_path, writer):
    windows = cut(np.zeros(16, np.int32), n_ctx=16)
    path = tmp_path / "base"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), writer(path, windows, 1000):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert path.read_bytes() == b"old"
    strided = cut(np.zeros(64, np.int32), n_ctx=16, stride=4)
    with pytest.raises(ikq.RefusedError, match="stride"), writer(path, strided, 1000):
        pass
    assert path.read_bytes() == b"old"


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_the_verb_perplexity(tiny_moe, text_file, capsys):
    arguments = [
        "ppl",
        "-m",
        tiny_moe,
        "-f",
        text_file,
        "-c",
        "64",
        "--chunks",
        "3",
        "-ngl",
        "99",
        "--fallback-cpu",
    ]
    running, *_, last = run(capsys, *arguments).splitlines()
    values = [float(w.partition("]")[2]) for w in running.strip(",").split(",")]
    assert [w.partition("]")[0] for w in running.strip(",").split(",")] == ["[1", "[2", "[3"]
    assert last.startswith("Final estimate: PPL = ")
    value, error = last.removeprefix("Final estimate: PPL = ").split(" +/- ")
    assert float(value) == values[-1]
    found = json.loads(run(capsys, *arguments, "--json"))
    assert found["value"] == pytest.approx(float(value), abs=1e-4)
    assert found["error"] == pytest.approx(float(error), abs=1e-5)
    assert found["running"] == pytest.approx(values, abs=1e-4)
    strided = json.loads(run(capsys, *arguments, "--ppl-stride", "16", "--json"))
    assert (strided["n_ctx"], strided["n_scored"]) == (72, 48)


def test_text_is_literal(tiny_moe, tmp_path, capsys, model):
    """A backslash and an n are two characters, line ends are as in the file."""
    counts = []
    for text in (r"a\n\n" * 200, "a\n\n" * 200, "a\r\n\r\n" * 200):
        (tmp_path / "text").write_bytes(text.encode())
        words = ["perplexity", "-m", tiny_moe, "-f", tmp_path / "text", "-c", "16", "--json", "-ctk", "q8_0"]
        counts.append(json.loads(run(capsys, *words))["n_windows"])
        assert counts[-1] == len(model.tokenize(text)) // 16
    assert len(set(counts)) == 3


def test_the_verb_kld(tiny_moe, worse, text_file, tmp_path, capsys):
    base, compact = tmp_path / "base", tmp_path / "compact"
    text = ["-f", text_file, "-c", "128", "--chunks", "2"]
    out = run(capsys, "perplexity", "-m", tiny_moe, *text, "--kl-divergence-base", base)
    assert "Final estimate" in out
    run(capsys, "kld", "--write", "-m", tiny_moe, *text, "--kl-divergence-base", compact, "--compact")
    sizes = [p.stat().st_size - 4 * 256 for p in (base, compact)]
    assert sizes[1] < 0.031 * sizes[0]
    files = ["--kl-divergence-base", base]
    first = run(capsys, "kld", "-m", worse, *files)
    assert first == run(capsys, "perplexity", "-m", worse, *files, "--kl-divergence")
    for line in (
        "Mean PPL(Q)  ",
        "Mean ln(PPL(Q)/PPL(base))",
        "Mean    KLD",
        "99.9%   KLD",
        "RMS Δp",
        "Same top p",
    ):
        assert sum(x.startswith(line) for x in first.splitlines()) == 1, line
    assert "compact base" not in first
    found = {
        name: json.loads(run(capsys, "kld", "-m", worse, *how, "--json"))
        for name, how in {
            "file": files,
            "compact": ["--kl-divergence-base", compact],
            "model": ["--base-model", tiny_moe, *text],
        }.items()
    }
    assert found["file"]["kld"]["value"] == pytest.approx(found["model"]["kld"]["value"], rel=2e-3)
    off = found["compact"]["kld"]["value"] - found["file"]["kld"]["value"]
    assert 0 < abs(off) < 5 * found["compact"]["kld_form_error"]
    assert "compact base: " in run(capsys, "kld", "-m", worse, "--kl-divergence-base", compact)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["perplexity", "-m", "M"], 2),
        (["perplexity", "-m", "M", "-f", "T", "-c", "100000"], 2),
        (["perplexity", "-m", "M", "-f", "T", "--chunks", "0"], 2),
        (["perplexity", "-m", "M", "-f", "T", "-c", "0"], 2),
        (["perplexity", "-m", "M", "-f", "T", "--compact"], 2),
        (["perplexity", "-m", "M", "-f", "T", "--kl-divergence"], 2),
        (["perplexity", "-m", "M", "-f", "M"], 1),
        (["perplexity", "-m", "M", "-f", "missing"], 1),
        (["kld", "-m", "M"], 2),
        (["kld", "-m", "M", "--kl-divergence-base", "T", "--base-model", "M"], 2),
        (["kld", "-m", "M", "--kl-divergence-base", "T", "--compact"], 2),
        (["kld", "-m", "M", "--base-model", "M", "--write"], 2),
        (["kld", "-m", "M", "--kl-divergence-base", "T"], 1),
    ],
)
def test_what_is_refused(arguments, code, tiny_moe, text_file, capsys):
    words = {"M": str(tiny_moe), "T": str(text_file)}
    assert main([words.get(a, a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err
