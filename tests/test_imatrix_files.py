"""Activation statistics in files of both forms: written, read, merged, summarized."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from imatrix_checks import TEXT, collected, entry, same

import ikq
from ikq.evaluate import cut, text_tokens
from ikq.statistics.calibrate import coverage, run_chunks, summarize, summarize_layers


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.mark.parametrize("form", ["dat", "gguf"])
def test_round_trip(model, tmp_path, form):
    found = collected(model, [11 * i % 4000 for i in range(60)])
    file = tmp_path / "m"
    found.write(file, form)
    read = ikq.ActivationStatistics.open(
        file, chunk_size=60, n_expert={n: len(e.counts) for n, e in found.items()}
    )
    assert (read.n_chunks, read.chunk_size, read.all_experts) == (1, 60, False)
    assert list(read) == list(found)
    assert read.counts_are_exact == (form == "gguf")
    for name in found:
        a, b = found[name], read[name]
        assert np.allclose(a.mean, b.mean, rtol=1e-6)
        if form == "gguf":
            assert np.array_equal(a.counts, b.counts)
            assert np.array_equal(a.sums.astype(np.float32), b.sums.astype(np.float32))
        else:
            assert np.array_equal(a.counts == 0, b.counts == 0)
    # what was read is written as it was
    again = tmp_path / "again"
    read.write(again, form)
    assert again.read_bytes() == file.read_bytes()
    # and the encoders' view has the same means
    imatrix = ikq.Imatrix(file)
    for name in found:
        seen = np.repeat(found[name].counts > 0, found[name].sums.shape[1])
        assert np.allclose(imatrix[name].values.ravel()[seen], found[name].mean.ravel()[seen], rtol=1e-6)


def test_the_dat_form_as_specified(tmp_path):
    statistics = ikq.ActivationStatistics(
        {"a.weight": entry([4.0, 8.0], [16]), "b.weight": entry([[3.0, 6.0], [0, 0]], [12, 0])},
        datasets=["a text"], n_chunks=2, chunk_size=8,
    )  # fmt: skip
    statistics.write(tmp_path / "m.dat")
    data = (tmp_path / "m.dat").read_bytes()

    def record(name, *values):
        head = struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, len(values))
        return head + struct.pack(f"<{len(values)}f", *values)

    # means times the number of chunks; an expert without tokens has a mean of 1 in every column
    expected = struct.pack("<i", 2) + record(b"a.weight", 0.5, 1.0) + record(b"b.weight", 0.5, 1.0, 2.0, 2.0)
    assert data == expected + struct.pack("<ii", 2, 6) + b"a text"


def test_the_gguf_form_as_specified(tmp_path):
    statistics = ikq.ActivationStatistics(
        {"a.weight": entry([4.0, 8.0], [16]), "b.weight": entry([[3.0, 6.0], [0, 0]], [12, 0])},
        datasets=["a text", "another"], n_chunks=2, chunk_size=8, all_experts=True,
    )  # fmt: skip
    statistics.write(tmp_path / "m.gguf")
    with ikq.GGUFReader(tmp_path / "m.gguf") as reader:
        assert dict(reader.metadata) == {
            "general.type": "imatrix",
            "imatrix.datasets": ["a text", "another"],
            "imatrix.chunk_count": 2,
            "imatrix.chunk_size": 8,
            "imatrix.all_experts": True,
        }
        shapes = {n: tuple(t.shape) for n, t in reader.tensors.items()}
        assert shapes == {
            "a.weight.in_sum2": (1, 2),
            "a.weight.counts": (1, 1),
            "b.weight.in_sum2": (2, 2),
            "b.weight.counts": (2, 1),
        }
        assert reader.tensors["b.weight.in_sum2"].dequantize().tolist() == [[3, 6], [0, 0]]
        assert reader.tensors["b.weight.counts"].dequantize().tolist() == [[12], [0]]


def test_all_experts_is_marked(tmp_path):
    statistics = ikq.ActivationStatistics(
        {"a": entry([1.0], [1])}, datasets=["t"], n_chunks=1, all_experts=True
    )
    for name in ("m.dat", "m.gguf"):
        statistics.write(tmp_path / name)
        read = ikq.ActivationStatistics.open(tmp_path / name)
        assert (read.all_experts, read.datasets) == (True, ["t"])
        assert ikq.Imatrix(tmp_path / name).all_experts
    assert (tmp_path / "m.dat").read_bytes().endswith(b"t [all experts]")


def test_samples(samples):
    """Files of both reference programs: the same text as the oracle."""
    plain, fused, gguf = (
        ikq.ActivationStatistics.open(samples / name)
        for name in ("imatrix-plain.dat", "imatrix-fused-default.dat", "imatrix-llamacpp.gguf")
    )
    assert [(len(s), s.n_chunks, s.counts_are_exact) for s in (plain, fused, gguf)] == [
        (33, 20, False), (28, 20, False), (33, 20, True)
    ]  # fmt: skip
    assert gguf.chunk_size == 512
    name = "blk.0.ffn_up_exps.weight"
    assert np.allclose(plain[name].mean.reshape(8, -1), gguf[name].mean, rtol=2e-3)
    missing = coverage(fused, gguf).missing
    assert set(missing) == {f"blk.{i}.ffn_gate_exps.weight" for i in range(4)} | {"output.weight"}


def test_files_that_are_written_again_are_the_same(samples, tmp_path):
    for name, form in (("imatrix-plain.dat", "dat"), ("imatrix-llamacpp.gguf", "gguf")):
        ikq.ActivationStatistics.open(samples / name).write(tmp_path / name, form)
        read = ikq.ActivationStatistics.open(tmp_path / name)
        same(ikq.ActivationStatistics.open(samples / name), read)
    # the form without counts has nothing that could come out otherwise
    assert (tmp_path / "imatrix-plain.dat").read_bytes() == (samples / "imatrix-plain.dat").read_bytes()


def test_merging(model, tmp_path):
    windows = cut(text_tokens(model.tokenizer, TEXT), n_ctx=64, chunks=4)
    halves = []
    for first in (0, 2):
        with model.collect_activations() as collector:
            for i in (first, first + 1):
                with collector.chunk():
                    model.logits(windows[i].tokens)
        halves.append(collector.statistics("text"))
    with model.collect_activations() as collector:
        for _ in run_chunks(model, windows, collector, perplexity=False):
            pass
    whole = collector.statistics("text")
    merged = ikq.ActivationStatistics.merged(halves)
    assert (merged.n_chunks, merged.chunk_size, merged.datasets) == (4, 64, ["text"])
    # sums of sums: double precision
    same(whole, merged, 1e-14)
    for form in ("gguf", "dat"):
        files = [tmp_path / f"{i}.{form}" for i in range(2)]
        for half, file in zip(halves, files, strict=True):
            half.write(file)
        read = [ikq.ActivationStatistics.open(f, chunk_size=64) for f in files]
        merged = ikq.ActivationStatistics.merged(read)
        assert merged.n_chunks == 4
        if form == "gguf":
            same(whole, merged, 1e-6)
        else:
            # means of chunks, weighted by them: exact where every token counts
            name = "blk.1.attn_q.weight"
            assert np.allclose(merged[name].mean, whole[name].mean, rtol=1e-6)
    # one of each form: the tokens per chunk of an expert are those of the file that counts them
    mixed = ikq.ActivationStatistics.merged([halves[0], read[1]])
    name = "blk.1.ffn_up_exps.weight"
    assert mixed[name].counts.sum() == pytest.approx(2 * halves[0][name].counts.sum())
    assert mixed[name].sums.shape == whole[name].sums.shape


def test_experts_without_data_stay_so(tmp_path):
    first = ikq.ActivationStatistics({"e": entry([[3.0, 6.0], [0, 0]], [12, 0])}, n_chunks=2, chunk_size=8)
    first.write(tmp_path / "m.dat")
    read = ikq.ActivationStatistics.open(tmp_path / "m.dat", chunk_size=8, n_expert={"e": 2})
    assert read["e"].counts.tolist() == [16, 0]
    assert read["e"].sums.tolist() == [[4, 8], [0, 0]]
    second = ikq.ActivationStatistics({"e": entry([[0, 0], [5.0, 5.0]], [0, 10])}, n_chunks=2, chunk_size=8)
    merged = ikq.ActivationStatistics.merged([second, ikq.ActivationStatistics.open(tmp_path / "m.dat")])
    # both had 5 tokens per expert and chunk, as far as one knows
    assert merged["e"].counts.tolist() == [5, 10]
    assert merged["e"].mean.tolist() == [[0.25, 0.5], [0.5, 0.5]]


def test_what_cannot_be_merged(tmp_path):
    a = ikq.ActivationStatistics({"x": entry([1.0, 2.0], [1])})
    with pytest.raises(ikq.RefusedError, match="nothing to merge"):
        ikq.ActivationStatistics.merged([])
    with pytest.raises(ikq.ShapeError, match="2 values in one file and 3"):
        ikq.ActivationStatistics.merged([a, ikq.ActivationStatistics({"x": entry([1.0, 2.0, 3.0], [1])})])
    with pytest.raises(ikq.RefusedError, match="like with like"):
        ikq.ActivationStatistics.merged(
            [a, ikq.ActivationStatistics({"x": entry([1.0, 2], [1])}, all_experts=True)]
        )
    with pytest.raises(ikq.FormatError, match="`x` is not finite"):
        ikq.ActivationStatistics({"x": entry([np.inf], [1])}).write(tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"):
        a.write(tmp_path / "no" / "m.dat")


def test_summaries():
    rng = np.random.default_rng(1)
    values = rng.random((2, 64)) + 0.5
    statistics = ikq.ActivationStatistics(
        {
            "blk.0.attn_q.weight": entry(values[:1] * 10, [10]),
            "blk.2.attn_q.weight": entry(values[:1] * 30, [10]),
            "blk.2.ffn_up_exps.weight": entry(np.stack([np.full(64, 4.0), np.zeros(64)]), [2, 0]),
            "output.weight": entry(np.eye(1, 64) * 7, [7]),
        }
    )
    rows = {s.name: s for s in summarize(statistics)}
    assert next(iter(rows)) == "blk.2.attn_q.weight"
    q = rows["blk.2.attn_q.weight"]
    assert (q.layer, q.role, q.n) == (2, "attn_q", 64)
    assert q.total == pytest.approx(3 * values[0].sum())
    assert q.cosine == pytest.approx(1)
    assert rows["blk.0.attn_q.weight"].cosine is None
    p = values[0] / values[0].sum()
    assert q.entropy == pytest.approx(-(p * np.log2(p)).sum())
    up = rows["blk.2.ffn_up_exps.weight"]
    assert (up.n, up.mean, up.entropy, up.evenness, up.outliers) == (64, 2, 6, 1, 0)
    out = rows["output.weight"]
    assert (out.layer, out.active, out.entropy, out.outliers) == (None, 1 / 64, 0, 1 / 64)
    layers = summarize_layers(list(rows.values()))
    assert [x.layer for x in layers] == [0, 2]
    assert layers[1].total == pytest.approx(q.total + up.total)
    assert layers[1].cosine == pytest.approx(1)
