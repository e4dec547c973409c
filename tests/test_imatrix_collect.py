"""Activation statistics: what the engine collects, whichever way it computes; their files; `ikq imatrix`."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from conftest import SHARED
from engine_checks import EXACT
from model_files import NAMES, path, prompt
from model_variants import VARIANTS
from small_models import N_CTX, N_EXPERT, Parts, biased, mixture, tokens

import ikq
from ikq.__main__ import main
from ikq.calibrate import chunks_of, coverage, run_chunks, summarize, summarize_layers, wanted_tensors
from ikq.evaluate import cut, measure_perplexity, text_tokens

TEXT = "".join(
    f"The function number {i} returns a list of the objects in module {i % 7}.\n" for i in range(60)
)
PLANS = {
    "fused": {},
    "merged": {"merge_up_gate_experts": True},
    "separate": {"fused_up_gate": False},
}


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def collected(model, ids, **options):
    with model.collect_activations(**options) as collector:
        model.logits(ids)
    return collector.statistics()


def same(a, b, rtol=0.0):
    assert list(a) == list(b)
    for name in a:
        assert np.array_equal(a[name].counts, b[name].counts), name
        assert a[name].sums.shape == b[name].sums.shape
        # columns are compared with the largest one: a column may be all but zero
        limit = rtol * np.abs(a[name].sums).max()
        assert np.abs(a[name].sums - b[name].sums).max() <= limit, name


# ----------------------------------------------------------------------------------------------------------
# the oracle


@pytest.mark.parametrize("exact", [True, False])
def test_statistics_are_those_of_the_oracle(tiny_moe, exact):
    """Hugging Face in float32: every column within 1e-3; as the model runs by default, the medians."""
    file = SHARED / "models" / "tiny-moe-hf-imatrix.npz"
    if not file.is_file():
        pytest.skip("../shared/models is not there: statistics are not compared with the oracle")
    oracle = dict(np.load(file))
    names = {name.removesuffix(".counts") for name in oracle if name.endswith(".counts")}
    text = (SHARED / "models" / "text" / "calibration.txt").read_bytes().decode()
    options = EXACT | {"n_ctx": 512} if exact else {"n_ctx": 512}
    with ikq.Model.load(tiny_moe, **options) as model, model.collect_activations() as collector:
        *_, done = run_chunks(model, chunks_of(model, text, chunks=20), collector, perplexity=False)
    found = collector.statistics("calibration")
    assert (done.n_chunks, found.n_chunks, found.chunk_size) == (20, 20, 512)
    assert set(found) == names
    assert len(names) == 33
    for name in names:
        counts, sums = oracle[f"{name}.counts"].ravel(), oracle[f"{name}.in_sum2"]
        ratio = found[name].mean / (sums / counts[:, np.newaxis])
        if exact:
            assert np.array_equal(found[name].counts, counts), name
            assert np.abs(ratio - 1).max() < 1e-3, name
        else:
            assert abs(np.median(ratio) - 1) < 1e-3, name


# ----------------------------------------------------------------------------------------------------------
# every matrix, whatever the plan


def names_of_spec(value):
    """All texts in a spec."""
    if isinstance(value, dict):
        return {n for v in value.values() for n in names_of_spec(v)}
    if isinstance(value, (list, tuple)):
        return {n for v in value for n in names_of_spec(v)}
    return {value} if isinstance(value, str) else set()


def multiplied(file):
    """The matrices that the model's description names, and how many columns their entries need."""
    with ikq.GGUFReader(file) as reader:
        named = names_of_spec(asdict(ikq.models.model_spec(reader)))
        found = {}
        for name, tensor in reader.tensors.items():
            is_row = "ffn_gate_inp_shexp" in name
            table = name == "token_embd.weight" and "output.weight" in reader.tensors
            if name in named and not table and "conv1d" not in name:
                shape = tuple(tensor.shape)
                if (len([n for n in shape if n > 1]) >= 2 and not name.endswith(".bias")) or is_row:
                    n_expert = shape[0] if len(shape) == 3 else 1
                    found[name] = (n_expert, shape[-1] if not is_row else max(shape))
        return found


def all_entries(file, ids, expected=None):
    """Statistics of every plan: the same entries, within 1e-6, and none missing."""
    expected = multiplied(file) if expected is None else expected
    found = {}
    for plan, options in PLANS.items():
        with ikq.Model.load(file, n_threads=2, **(EXACT | options)) as model:
            found[plan] = collected(model, ids)
    for statistics in found.values():
        assert {n: e.sums.shape for n, e in statistics.items()} == expected
        same(found["fused"], statistics, 1e-6)
    for name, entry in found["fused"].items():
        assert np.isfinite(entry.sums).all(), name
        # nothing is zero that a token reached
        assert (entry.sums[entry.counts > 0] > 0).mean() > 0.9, name
        # experts that are tensors of their own have a part of the tokens
        if not re.fullmatch(r"blk\.\d+\.ffn_\w+\.\d+\.weight", name):
            assert entry.counts.sum() % len(ids) == 0, name
            assert entry.counts.sum() > 0, name
    return found["fused"]


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_has_an_entry(name, tmp_path):
    ids = prompt(name, 0)
    found = all_entries(path(name), ids)
    with ikq.GGUFReader(path(name)) as reader:
        wanted = wanted_tensors(reader.tensors)
    assert set(wanted) == set(found)
    assert wanted == {n: len(e.counts) for n, e in found.items()}
    assert not coverage(found, wanted).missing
    # every matrix that can be quantized is weighed by its own entry
    found.write(tmp_path / "m.gguf")
    options = {"pure": True, "allow_requantize": True, "imatrix": tmp_path / "m.gguf"}
    plan = ikq.plan_quantization(path(name), None, "Q4_K", **options)
    assert sum(t.imatrix is not None for t in plan.tensors) > len(found) // 2
    for tensor in plan.tensors:
        assert tensor.imatrix in (None, tensor.name)
        assert not tensor.lacks_imatrix, tensor.name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_has_an_entry_in_other_layouts(variant, tmp_path):
    from model_files import Changed, reader

    name, change = VARIANTS[variant]
    changed = Changed(reader(name))
    change(changed)
    file = tmp_path / "variant.gguf"
    changed.write(file)
    all_entries(file, prompt(name, 0))


def test_inputs_by_hand():
    """The compressed vector meets `kv_b`; queries and values of each head meet its halves."""
    name = "deepseek2-lite/deepseek2-lite-legacy-mla-bf16"
    ids = prompt(name, 0)
    with ikq.Model.load(path(name), **EXACT) as model:
        mla = model.spec.layers[0].attention
        legacy = collected(model, ids)
    with ikq.Model.load(path("deepseek2-lite/deepseek2-lite-bf16"), **EXACT) as model:
        current = collected(model, ids)
    # older files hold all heads in one matrix: one entry for all, the sum of those of the newer file's heads
    for part in ("attn_k_b", "attn_v_b"):
        new, old = current[f"blk.0.{part}.weight"], legacy[f"blk.0.{part}.weight"]
        assert new.counts.tolist() == [len(ids)] * mla.n_head
        assert old.counts.tolist() == [len(ids) * mla.n_head]
        assert np.allclose(new.sums.sum(axis=0), old.sums[0], rtol=1e-6)
    # the norm of the compressed vector is 1 before its weights: the sum over columns tells
    with ikq.GGUFReader(path(name)) as reader:
        weight = reader.tensors["blk.0.attn_kv_a_norm.weight"].dequantize().ravel()
    entry = legacy["blk.0.attn_kv_b.weight"]
    assert entry.counts.tolist() == [len(ids)]
    assert (entry.sums[0] / weight**2).sum() == pytest.approx(len(ids) * mla.kv_rank, rel=1e-3)


def test_experts_of_the_router_are_counted(parts, tmp_path):
    """Down's input is the activation before the router's weight; gate's is that of every token that came."""
    file = biased(parts, tmp_path / "one.gguf", "Q4_K", "IQ4_KS", 2, [0.0, 0.0, 1e4, 0.0, -1e4])
    ids = tokens(40)
    expected = multiplied(file)
    found = all_entries(file, ids, expected)
    for part in ("gate", "up", "down"):
        counts = found[f"blk.0.ffn_{part}_exps.weight"].counts
        assert counts[2] == 40
        assert counts[4] == 0
        assert counts.sum() == 80
    report = coverage(found)
    assert {t.name for t in report.tensors if t.unseen == (4,)} == {
        f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")
    }
    assert (report.n_unseen, report.n_experts) == (3, 3 * N_EXPERT)


def test_threads_and_batches_do_not_show(parts, tmp_path):
    file = mixture(parts, tmp_path / "m.gguf", "Q4_K", "Q6_K")
    ids = tokens(60)
    one = None
    for n_threads in (1, 2, 3):
        with ikq.Model.load(file, n_ctx=N_CTX, n_threads=n_threads) as model:
            found = collected(model, ids)
        one = found if one is None else one
        same(one, found)
    # other numbers of columns are other kernels, whose sums round differently
    with ikq.Model.load(
        file, n_ctx=N_CTX, n_ubatch=7, **{k: v for k, v in EXACT.items() if k != "n_ctx"}
    ) as a:
        found = collected(a, ids)
    with ikq.Model.load(file, **(EXACT | {"n_ctx": N_CTX})) as b:
        same(found, collected(b, ids), 1e-5)


def test_collecting_changes_nothing(model):
    ids = [11 * i % 4000 for i in range(60)]
    before = model.logits(ids)
    for options in ({}, {"all_experts": True, "similarity": True}, {"output": False}):
        with model.collect_activations(**options):
            assert np.array_equal(model.logits(ids), before)
    assert np.array_equal(model.logits(ids), before)


def test_all_experts(model):
    ids = [11 * i % 4000 for i in range(60)]
    usual, every = collected(model, ids), collected(model, ids, all_experts=True)
    assert every.all_experts
    assert not usual.all_experts
    assert set(usual) == set(every)
    for name, entry in every.items():
        n = len(entry.counts)
        assert entry.counts.tolist() == [60] * n
        if n == 1:
            assert np.array_equal(entry.sums, usual[name].sums)
        elif "down" not in name:
            # all tokens have gone in: what the router reads
            router = every[re.sub("ffn_.*_exps", "ffn_gate_inp", name)].sums
            assert np.allclose(entry.sums, np.repeat(router, n, axis=0), rtol=1e-12)
    name = "blk.0.ffn_down_exps.weight"
    # those that were chosen are among them
    assert (every[name].sums >= usual[name].sums * (1 - 1e-6)).all()
    assert (every[name].sums > usual[name].sums).mean() > 0.9


def test_the_output_is_collected_at_every_position(model):
    ids = [11 * i % 4000 for i in range(40)]
    found = {}
    for want in ("all", "last", "none"):
        with model.collect_activations() as collector:
            model.truncate(0)
            model.eval(ids, want=want)
        found[want] = collector.statistics()
        same(found["all"], found[want])
    assert found["none"]["output.weight"].counts.tolist() == [40]
    assert "output.weight" not in collected(model, ids, output=False)


def test_similarity(model):
    ids = [11 * i % 4000 for i in range(40)]
    with model.collect_activations(similarity=True) as collector:
        model.logits(ids)
        model.logits(ids)
    layers = collector.layer_similarity()
    assert len(layers) == 4
    assert all(-1 < x < 1 for layer in layers for x in layer)
    # a text for the second time: the mean stays
    with model.collect_activations(similarity=True) as collector:
        model.logits(ids)
    assert np.allclose(collector.layer_similarity(), layers, rtol=1e-12)
    with model.collect_activations() as collector:
        model.logits(ids)
    assert collector.layer_similarity() == []


def test_layers_that_change_nothing_are_similar(parts, tmp_path):
    """Attention and FFN whose last matrices are zero pass on what came in."""
    zero = Parts()
    zero.expert_down = np.zeros_like(zero.expert_down)
    zero.common["blk.0.attn_output.weight"] = np.zeros((256, 256), np.float32)
    file = mixture(zero, tmp_path / "zero.gguf", "Q8_0", "Q8_0")
    with ikq.Model.load(file, n_ctx=N_CTX) as model:
        with model.collect_activations(similarity=True) as collector:
            model.logits(tokens(20))
        assert np.allclose(collector.layer_similarity(), 1, rtol=1e-12)


def test_a_chunk_counts_as_a_whole(model):
    ids = [11 * i % 4000 for i in range(40)]
    with model.collect_activations() as collector:
        model.logits(ids)
        before = collector.statistics()
        with pytest.raises(KeyboardInterrupt), collector.chunk():
            model.eval([1, 2, 3])
            raise KeyboardInterrupt
        with pytest.raises(ikq.FormatError):
            model.eval([1, 2, 99999])
        with pytest.raises(ikq.FormatError), collector.chunk():
            model.eval([1, 2, 3])
            model.eval([99999])
        same(before, collector.statistics())
        assert (collector.n_chunks, collector.chunk_size) == (1, 40)
        with collector.chunk():
            model.truncate(0)
            model.eval(ids[:30], want="none")
            model.eval(ids[30:])
        assert (collector.n_chunks, collector.chunk_size) == (2, 40)
        with pytest.raises(ValueError, match="do not nest"), collector.chunk(), collector.chunk():
            pass
        with pytest.raises(ValueError, match="being collected"), model.collect_activations():
            pass
    model.logits(ids)
    assert collector.n_chunks == 2


def test_a_state_goes_on(model, tmp_path):
    ids = [11 * i % 4000 for i in range(60)]
    with model.collect_activations(similarity=True) as collector:
        model.logits(ids[:20])
        state = collector.state()
        model.logits(ids[20:])
        whole = collector.statistics(), collector.layer_similarity()
    with model.collect_activations(similarity=True) as collector:
        collector.restore(state)
        model.logits(ids[20:])
        same(whole[0], collector.statistics())
        assert (collector.n_chunks, collector.layer_similarity()) == (2, whole[1])
        for wrong in ({}, state | {"arrays": []}, state | {"layers": 3}, state | {"owners": [[]] * 99}):
            with pytest.raises(ikq.FormatError):
                collector.restore(wrong)


# ----------------------------------------------------------------------------------------------------------
# files


def entry(sums, counts):
    return ikq.ActivationEntry(np.atleast_2d(np.asarray(sums, np.float64)), np.asarray(counts, np.float64))


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


# ----------------------------------------------------------------------------------------------------------
# chunks


def test_chunks_are_whole_windows_with_bos():
    with ikq.Model.load(path("llama/llama-bf16"), n_ctx=32) as model:
        bos = model.tokenizer.bos
        ids = [bos, *model.tokenize(TEXT)]
        chunks = chunks_of(model, TEXT, n_ctx=32)
        assert chunks.n == len(ids) // 32
        assert chunks[1].tokens.tolist() == [bos, *ids[33:64]]
        later = chunks_of(model, TEXT, n_ctx=32, skip=2, chunks=3)
        assert later.n == 3
        assert later[0].tokens.tolist() == [bos, *ids[65:96]]
        with pytest.raises(ikq.RefusedError, match="none is left"):
            chunks_of(model, TEXT, n_ctx=32, skip=chunks.n)
        with pytest.raises(ikq.RefusedError):
            chunks_of(model, TEXT, n_ctx=32, skip=-1)


def test_names_of_control_tokens(model):
    text = "<|im_start|>" * 40
    assert len(chunks_of(model, text, n_ctx=4, parse_special=True).tokens) == 40
    assert len(chunks_of(model, text, n_ctx=4).tokens) > 40


def test_perplexity_on_the_way(model, monkeypatch):
    """The value of `ikq perplexity`, of a chunk in one call or in pieces."""
    windows = chunks_of(model, TEXT, n_ctx=64, chunks=3)
    expected = [p.value for p in measure_perplexity(model, windows)]
    for n_bytes in (1 << 30, 4 * 4096 * 10):
        monkeypatch.setattr("ikq.calibrate.loop._LOGIT_BYTES", n_bytes)
        with model.collect_activations() as collector:
            found = [d.perplexity.value for d in run_chunks(model, windows, collector)]
        # other numbers of columns at once: other roundings of 8-bit activations' products
        assert found == pytest.approx(expected, rel=1e-3)
        assert collector.statistics()["blk.0.attn_q.weight"].counts.tolist() == [3 * 64]


# ----------------------------------------------------------------------------------------------------------
# the command


def imatrix(*arguments):
    return main(["imatrix", *map(str, arguments)])


def test_command(tiny_moe, text_file, tmp_path, capsys):
    out, report = tmp_path / "m.gguf", tmp_path / "r.json"
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "--chunks", "5"]
    code = imatrix(*options, "-o", out, "--report", report, "-lsim", "--show-statistics", "--save-frequency", "2",
                   "-fmoe", "-ngl", "99", "--no-escape", "--process-output")  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert re.search(
        r"^\[1\][\d.]+,\[2\][\d.]+,\[3\][\d.]+,\[4\][\d.]+,\[5\][\d.]+,$", printed.out, re.MULTILINE
    )
    assert "33 of 33 matrices of the model have data" in printed.out
    assert "cosine of input and output, attention" in printed.out
    assert re.search(r"^Final estimate: PPL = [\d.]+ \+/- [\d.]+$", printed.out, re.MULTILINE)
    facts = json.loads(report.read_text())
    assert (facts["n_chunks"], facts["chunk_size"], len(facts["tensors"])) == (5, 64, 33)
    assert (facts["missing"], facts["n_wanted"], len(facts["layer_similarity"])) == ([], 33, 4)
    assert {p.name for p in tmp_path.iterdir()} == {
        "m.gguf", "m.gguf.at_2", "m.gguf.at_4", "r.json", "text.txt"
    }  # fmt: skip
    read = ikq.ActivationStatistics.open(out)
    assert (read.n_chunks, read.datasets) == (5, [str(text_file)])
    assert ikq.ActivationStatistics.open(tmp_path / "m.gguf.at_4").n_chunks == 4
    # without logits: the same statistics
    assert imatrix(*options, "-o", tmp_path / "n.gguf", "--no-ppl") == 0
    assert (tmp_path / "n.gguf").read_bytes() == out.read_bytes()
    assert "PPL" not in capsys.readouterr().out
    # parts of the text: the files merge to the whole
    assert imatrix(*options, "--chunks", "3", "-o", tmp_path / "a.gguf", "--no-ppl") == 0
    assert imatrix(*options, "--chunks", "2", "--chunk", "3", "-o", tmp_path / "b.gguf", "--in-file",
                   tmp_path / "a.gguf", "--no-ppl") == 0  # fmt: skip
    same(read, ikq.ActivationStatistics.open(tmp_path / "b.gguf"), 1e-6)
    capsys.readouterr()
    assert imatrix("--in-file", out, "--in-file", out, "-o", tmp_path / "twice.dat", "-m", tiny_moe) == 0
    assert "33 of 33 matrices" in capsys.readouterr().out
    assert ikq.ActivationStatistics.open(tmp_path / "twice.dat").n_chunks == 10
    assert imatrix("--in-file", out, "--show-statistics") == 0
    assert "ffn_down_exps" in capsys.readouterr().out


def test_what_is_missing_is_named(tiny_moe, samples, capsys):
    assert (
        imatrix("--in-file", samples / "imatrix-fused-default.dat", "-m", tiny_moe, "--show-statistics") == 0
    )
    out = capsys.readouterr().out
    assert "28 of 33 matrices of the model have data" in out
    assert re.search(r"^without data: .*blk\.3\.ffn_gate_exps\.weight", out, re.MULTILINE)
    assert re.search(r"^ffn_gate_exps +0 of 4$", out, re.MULTILINE)


def test_unseen_experts_are_named(parts, tmp_path, capsys):
    model = biased(parts, tmp_path / "one.gguf", "Q4_K", "Q4_K", 2, [0.0, 0.0, 1e4, 0.0, -1e4])
    with ikq.Model.load(model, n_ctx=N_CTX) as m:
        collected(m, tokens(40)).write(tmp_path / "m.gguf")
    assert imatrix("--in-file", tmp_path / "m.gguf", "-m", model, "--show-statistics") == 0
    out = capsys.readouterr().out
    assert f"3 of {3 * N_EXPERT} experts saw no token:" in out
    assert "  blk.0.ffn_down_exps.weight: 4\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--in-file", "x"], "where to"),
        (["-f", "TEXT"], "needs a model"),
        (["-f", "TEXT", "-m", "MODEL", "--chunks", "0"], "0 chunks"),
        (["-f", "TEXT", "-m", "MODEL", "--chunk", "-1"], "--chunk -1"),
        (["-f", "TEXT", "-m", "MODEL", "-c", "2"], "windows of 2"),
        (["-f", "TEXT", "-m", "MODEL", "-c", "100000"], "makes no window"),
        (["-f", "TEXT", "-m", "MODEL", "-o", "no/m.dat"], "no folder"),
        (["-f", "TEXT", "-m", "MODEL", "--report", "no/r.json"], "no folder"),
        (["-f", "TEXT", "-m", "MODEL", "-o", "."], "is a folder"),
    ],
)
def test_refusals(tiny_moe, text_file, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    known = {"TEXT": str(text_file), "MODEL": str(tiny_moe)}
    assert imatrix(*(known.get(a, a) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_the_output_is_no_input(tiny_moe, text_file, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    ikq.ActivationStatistics({"x": entry([1.0], [1])}).write(out)
    assert imatrix("-m", tiny_moe, "-f", text_file, "-c", "64", "-o", out, "--in-file", out) == 2
    assert "count it twice" in capsys.readouterr().err


def test_files_that_do_not_fit_are_found_out_first(tiny_moe, text_file, tmp_path, capsys):
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "-o", tmp_path / "m.gguf", "--in-file"]
    other = tmp_path / "other.gguf"
    ikq.ActivationStatistics({"blk.0.attn_q.weight": entry([1.0], [1])}).write(other)
    assert imatrix(*options, other) == 1
    assert "1 values for `blk.0.attn_q.weight`" in capsys.readouterr().err
    ikq.ActivationStatistics({"x": entry([1.0], [1])}, all_experts=True).write(other)
    assert imatrix(*options, other) == 2
    assert "like with like" in capsys.readouterr().err
    assert not (tmp_path / "m.gguf").exists()


class Stopped:
    """Runs the command in another process and ends it after some chunks."""

    def __init__(self, arguments, n, number):
        command = [sys.executable, "-u", "-m", "ikq", "imatrix", *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            seen = b""
            # unbuffered: what has come says how far it is
            while seen.count(b"[") < n:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, process.stderr.read()
                seen += piece
            process.send_signal(number)
            self.out = seen + process.stdout.read()
            self.err = process.stderr.read().decode()
            self.code = process.wait(timeout=60)


def test_interrupted_runs_go_on(tiny_moe, tmp_path, capsys):
    """Killed, then interrupted, then finished: the bytes of a run in one go."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of the text number {i * i}.\n" for i in range(1800)))
    options = ["-m", tiny_moe, "-f", text, "-c", "256", "--chunks", "80", "-lsim", "-t", "2"]
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    state = tmp_path / "parts.gguf.partial"
    assert imatrix(*options, "-o", whole, "--report", tmp_path / "whole.json") == 0
    expected = capsys.readouterr().out.splitlines()[-1]
    options += ["-o", parts]
    killed = Stopped([*options, "-ofreq", "4"], 10, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    done = ikq.ActivationStatistics.open(parts).n_chunks
    assert 8 <= done < 80
    assert state.is_file()
    interrupted = Stopped(options, 5, signal.SIGINT)
    assert interrupted.code == 130
    assert f"going on after chunk {done} of 80" in interrupted.err
    found = re.search(r"interrupted after (\d+) of 80 chunks, .* the same command goes on", interrupted.err)
    assert found, interrupted.err
    assert int(found[1]) >= done + 5
    assert ikq.ActivationStatistics.open(parts).n_chunks == int(found[1])
    # another text is another run
    assert imatrix(*options, "--chunk", "1") == 2
    assert "from a run with another model, text or options" in capsys.readouterr().err
    assert imatrix(*options, "--report", tmp_path / "parts.json", "-t", "1", "-no-fmoe") == 0
    printed = capsys.readouterr()
    assert f"going on after chunk {found[1]} of 80" in printed.err
    assert printed.out.splitlines()[-1] == expected
    assert parts.read_bytes() == whole.read_bytes()
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "parts")]
    assert reports[0] | {"output": None} == reports[1] | {"output": None}
    assert not state.exists()


def test_damaged_states(tiny_moe, text_file, tmp_path, capsys):
    out = tmp_path / "m.dat"
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "--chunks", "2", "-o", out]
    assert imatrix(*options) == 0
    expected = out.read_bytes()
    state = tmp_path / "m.dat.partial"
    for data in (b"", b"PK\x03\x04 something", b"\x93NUMPY", os.urandom(1000)):
        state.write_bytes(data)
        assert imatrix(*options) == 0
        assert "starting anew" in capsys.readouterr().err
        assert out.read_bytes() == expected
        assert not state.exists()
    # of another run, dropped when asked
    assert Stopped([*options, "--chunks", "-1", "-ofreq", "1", "--all-experts"], 4, signal.SIGKILL).code < 0
    assert state.is_file()
    assert imatrix(*options) == 2
    assert imatrix(*options, "--restart") == 0
    assert out.read_bytes() == expected
    assert not state.exists()
