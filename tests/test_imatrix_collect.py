"""Activation statistics: what the engine collects, whichever way it computes."""

from __future__ import annotations

import re
from dataclasses import asdict

import numpy as np
import pytest
from conftest import SHARED
from engine_checks import EXACT
from imatrix_checks import collected, same
from model_files import NAMES, Changed, path, prompt, reader
from model_variants import VARIANTS
from small_models import N_CTX, N_EXPERT, Parts, biased, mixture, tokens

import ikq
from ikq.statistics.calibrate import chunks_of, coverage, run_chunks, wanted_tensors

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
    options = {"pure": True, "allow_missing": True, "allow_requantize": True, "imatrix": tmp_path / "m.gguf"}
    plan = ikq.plan_quantization(path(name), None, "Q4_K", **options)
    assert sum(t.imatrix is not None for t in plan.tensors) > len(found) // 2
    for tensor in plan.tensors:
        assert tensor.imatrix in (None, tensor.name)
        assert not tensor.lacks_imatrix, tensor.name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_has_an_entry_in_other_layouts(variant, tmp_path):
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
