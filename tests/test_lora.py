"""LoRA adapters beside a model's matrices: the model with them is the merged one, whatever is computed together."""

import numpy as np
import pytest
from adapter_files import ALPHA, RANK, matrices, merged, pairs_for, write_adapter
from engine_checks import EXACT, TOLERANCE, largest
from model_files import NAMES, Changed, path, prompt, reader
from mtp_files import HEADS, with_head

import ikq
from ikq import LoraAdapter

# what two float32 computations of the same logits differ by at most: each is so far from the exact ones
NEAR = 2 * TOLERANCE
# an adapter that counts for nothing would pass if it changed less
FAR = 100 * NEAR
# of each kind of attention and FFN one
KINDS = [
    n
    for n in NAMES
    if n.startswith(("llama/", "gpt-oss/gpt-oss-mxfp4", "qwen2moe/", "qwen3next/")) or "legacy-mla" in n
]
LLAMA = "llama/llama-bf16"
LEGACY = "deepseek2-lite/deepseek2-lite-legacy-mla-bf16"


def architecture(name):
    return reader(name).metadata["general.architecture"]


def all_pairs(name, **options):
    """For all matrices, and the embeddings of models whose output is another matrix."""
    names = matrices(reader(name))
    if "output.weight" in reader(name).tensors:
        names = ["token_embd.weight", *names]
    return pairs_for(reader(name), names, **options)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The file of a fixture's adapter and its pairs, made once."""
    folder, made = tmp_path_factory.mktemp("adapters"), {}

    def get(name):
        if name not in made:
            pairs = all_pairs(name)
            file = write_adapter(folder / f"{len(made)}.gguf", architecture(name), pairs)
            made[name] = file, pairs
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_the_base_with_an_adapter_is_the_merged_model(name, tmp_path, adapter):
    file, pairs = adapter(name)
    whole = merged(reader(name), tmp_path / "merged.gguf", (pairs, 1))
    tokens = prompt(name, 1)
    with ikq.Model.load(path(name), **EXACT, lora=[file]) as model:
        found = model.logits(tokens)
        model.set_lora([0])
        without = model.logits(tokens)
    with ikq.Model.load(whole, **EXACT) as model:
        wanted = model.logits(tokens)
    with ikq.Model.load(path(name), **EXACT) as model:
        base = model.logits(tokens)
    assert largest(found, wanted) < NEAR
    assert largest(base, wanted) > FAR
    assert np.array_equal(without, base)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [EXACT, {"n_ctx": 128}], ids=["f32", "auto"])
def test_bits_do_not_depend_on_what_is_computed_together(name, options, adapter):
    file, _ = adapter(name)
    tokens = [int(t) for t in prompt(name, 1)][:11]
    with ikq.Model.load(path(name), **options, lora=[file, LoraAdapter(file, -0.5)]) as model:
        scales = [(1, -0.5), (1, 0), (0, 0), (0, 0.25), (0.5, 0.5), (1, 0), (0, 1), (2, -1)]
        alone = []
        for scale in scales:
            with model.new_sequence(lora=scale) as sequence:
                assert sequence.lora == scale
                (logits,) = model.step([(sequence, tokens, "all")])
                alone.append(logits)
        assert np.array_equal(alone[1], alone[5])
        assert largest(alone[0], alone[2]) > FAR
        # texts of other lengths and scales in one step, and then token by token
        sequences = [model.new_sequence(lora=scale) for scale in scales]
        n = [1 + i % 4 for i in range(len(scales))]
        together = model.step([(s, tokens[:k], "all") for s, k in zip(sequences, n, strict=True)])
        for logits, whole, k in zip(together, alone, n, strict=True):
            assert np.array_equal(logits, whole[:k])
        # of some of them nothing is wanted, of others what the last token gives
        wants = ["last", "none", "all", "last", "last", "none", "last", "last"]
        others = [model.new_sequence(lora=scale) for scale in scales]
        entries = [(s, tokens[:k], want) for s, k, want in zip(others, n, wants, strict=True)]
        for logits, whole, k, want in zip(model.step(entries), alone, n, wants, strict=True):
            if want != "none":
                assert np.array_equal(logits, whole[k - len(logits) : k])
        for step in range(3):
            at = [k + step for k in n]
            entries = [(s, tokens[k : k + 1], "last") for s, k in zip(sequences, at, strict=True)]
            for logits, whole, k in zip(model.step(entries), alone, at, strict=True):
                assert np.array_equal(logits[0], whole[k])
        # logits made of hidden states, and a fork
        with sequences[3].fork() as fork:
            assert fork.lora == scales[3]
            (hidden,) = model.step([(fork, tokens[fork.n_past :], "hidden")])
            assert np.array_equal(model._head(hidden, scales[3]), alone[3][-len(hidden) :])


def test_several_adapters_and_scales_add_up(tmp_path):
    names = matrices(reader(LLAMA))
    first = pairs_for(reader(LLAMA), names[::2])
    second = pairs_for(reader(LLAMA), names, rank=17)
    files = [write_adapter(tmp_path / f"{i}.gguf", "llama", pairs) for i, pairs in enumerate((first, second))]
    whole = merged(reader(LLAMA), tmp_path / "merged.gguf", (first, 0.5), (second, -0.75))
    tokens = prompt(LLAMA, 1)
    with ikq.Model.load(whole, **EXACT) as model:
        wanted = model.logits(tokens)
    lora = [LoraAdapter(files[0], 0.5), LoraAdapter(files[1], -0.75)]
    with ikq.Model.load(path(LLAMA), **EXACT, lora=lora) as model:
        assert [(str(a.path), a.scale) for a in model.lora_adapters] == [
            (str(files[0]), 0.5),
            (str(files[1]), -0.75),
        ]
        found = model.logits(tokens)
        assert largest(found, wanted) < NEAR
        model.set_lora([0, 0.25])
        assert [a.scale for a in model.lora_adapters] == [0, 0.25]
        other = model.logits(tokens)
        notes = model.explain().notes
        assert any("scale 0.25" in note for note in notes)
    # an adapter without effect changes no bit of what another one gives
    with ikq.Model.load(path(LLAMA), **EXACT, lora=[LoraAdapter(files[1], 0.25)]) as model:
        assert np.array_equal(model.logits(tokens), other)


@pytest.mark.parametrize(
    "options", [{}, {"fused_up_gate": False}, {"mmap": "on"}, {"devices": ("CPU", "CPU1"), "n_gpu_layers": 1}]
)
def test_plans_places_and_mappings_do_not_matter(options, adapter):
    name = next(n for n in NAMES if n.startswith("qwen2moe/"))
    file, _ = adapter(name)
    found = []
    for changed in ({"merge_up_gate_experts": True}, options):
        with ikq.Model.load(path(name), **EXACT, **changed, lora=[file]) as model:
            found.append(model.logits(prompt(name, 1)))
    assert np.array_equal(*found)


def test_a_quantized_base_is_not_changed(tmp_path):
    """The sum is that of its dequantized weights and the adapter, whatever the type."""
    name = LLAMA
    quantized = tmp_path / "q.gguf"
    ikq.quantize_file(path(name), quantized, "IQ4_KS")
    base = ikq.GGUFReader(quantized)
    names = matrices(base)
    assert "IQ4_KS" in {str(base.tensors[n].type) for n in names}
    pairs = pairs_for(base, ["token_embd.weight", *names])
    file = write_adapter(tmp_path / "a.gguf", "llama", pairs)
    whole = merged(base, tmp_path / "merged.gguf", (pairs, 1))
    tokens = prompt(name, 1)
    with ikq.Model.load(whole, **EXACT) as model:
        wanted = model.logits(tokens)
    with ikq.Model.load(quantized, **EXACT, lora=[file]) as model:
        assert largest(model.logits(tokens), wanted) < NEAR
    # products of 8-bit activations are as near as they are without an adapter
    with (
        ikq.Model.load(quantized, n_ctx=128, lora=[file]) as model,
        ikq.Model.load(quantized, n_ctx=128) as plain,
    ):
        exact = ikq.Model.load(quantized, **EXACT)
        without = largest(plain.logits(tokens), exact.logits(tokens))
        assert largest(model.logits(tokens), wanted) < 4 * without


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_types_of_adapters(kind, tmp_path):
    """Matrices of other types count as what they decode to; those of short rows cannot have blocks."""
    names = matrices(reader(LLAMA))[:9]
    pairs = pairs_for(reader(LLAMA), names, rank=32)
    coded = {
        f"{n}.lora_{p}": ikq.QTensor(ikq.quantize(x, kind), kind, x.shape)
        for n, ab in pairs.items()
        for p, x in zip("ab", ab, strict=True)
    }
    file = write_adapter(tmp_path / "a.gguf", "llama", {}, tensors=coded)
    decoded = {n: tuple(coded[f"{n}.lora_{p}"].dequantize() for p in "ab") for n in pairs}
    floats = write_adapter(tmp_path / "b.gguf", "llama", decoded)
    found = []
    for lora in (file, floats):
        with ikq.Model.load(path(LLAMA), **EXACT, lora=[lora]) as model:
            found.append(model.logits(prompt(LLAMA, 1)))
    assert np.array_equal(*found)


def test_experts_with_tensors_of_their_own(tmp_path):
    """Older files have a tensor per expert; their pairs may have several ranks, and some have none."""
    name = next(n for n in NAMES if n.startswith("mixtral/"))
    base = reader(name)
    parted, pairs = {}, {}
    for tensor, x in base.tensors.items():
        if not tensor.endswith("_exps.weight"):
            parted[tensor] = x.dequantize()
            continue
        for e, matrix in enumerate(x.dequantize()):
            own = tensor.replace("_exps.weight", f".{e}.weight")
            parted[own] = matrix
            if e % 3 != 2:
                pairs[own] = pairs_for_array(own, matrix, rank=2 + e % 2)
    old = tmp_path / "old.gguf"
    with ikq.GGUFWriter(old, dict(base.metadata)) as writer:
        for tensor, x in parted.items():
            writer.add_tensor(tensor, x)
    file = write_adapter(tmp_path / "a.gguf", architecture(name), pairs)
    whole = merged(ikq.GGUFReader(old), tmp_path / "merged.gguf", (pairs, 1))
    with ikq.Model.load(whole, **EXACT) as model:
        wanted = model.logits(prompt(name, 1))
    with ikq.Model.load(old, **EXACT, lora=[file]) as model:
        assert largest(model.logits(prompt(name, 1)), wanted) < NEAR
        model.set_lora([0])
        assert largest(model.logits(prompt(name, 1)), wanted) > FAR


@pytest.mark.parametrize("has_both", [True, False])
def test_latent_attention_whose_keys_and_values_are_one_tensor(has_both, tmp_path):
    """Its pair is for the matrix that is absorbed; files may have its two parts beside it."""
    base = reader(LEGACY)
    both = [n for n in base.tensors if n.endswith("attn_kv_b.weight")]
    alone = Changed(base)
    for n in both:
        for part in ("k_b", "v_b"):
            del alone.tensors[n.replace("kv_b", part)]
    alone.write(tmp_path / "alone.gguf")
    pairs = pairs_for(base, both)
    file = write_adapter(tmp_path / "a.gguf", architecture(LEGACY), pairs)
    whole = merged(ikq.GGUFReader(tmp_path / "alone.gguf"), tmp_path / "merged.gguf", (pairs, 1))
    with ikq.Model.load(whole, **EXACT) as model:
        wanted = model.logits(prompt(LEGACY, 1))
    plain = path(LEGACY) if has_both else tmp_path / "alone.gguf"
    with ikq.Model.load(plain, **EXACT, lora=[file]) as model:
        assert largest(model.logits(prompt(LEGACY, 1)), wanted) < NEAR
        model.set_lora([0])
        assert largest(model.logits(prompt(LEGACY, 1)), wanted) > FAR


def pairs_for_array(name, matrix, rank):
    from adapter_files import pair

    return pair(name, matrix.shape, matrix, rank=rank)


def test_alpha_of_0_leaves_the_scale_alone(tmp_path):
    pairs = pairs_for(reader(LLAMA), matrices(reader(LLAMA))[:4])
    files = [
        write_adapter(tmp_path / f"{i}.gguf", "llama", pairs, metadata=m)
        for i, m in enumerate(
            [(), {"adapter.lora.alpha": ikq.Typed(0.0, "float32")}, {"adapter.lora.alpha": None}]
        )
    ]
    found = []
    for lora in (files[0], LoraAdapter(files[1], ALPHA / RANK), LoraAdapter(files[2], ALPHA / RANK)):
        with ikq.Model.load(path(LLAMA), **EXACT, lora=[lora]) as model:
            found.append(model.logits(prompt(LLAMA, 1)))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_statistics_are_those_of_the_inputs(adapter):
    """What matrices are multiplied with is observed as without adapters: the first layer's inputs are the same."""
    file, _ = adapter(LLAMA)
    tokens = prompt(LLAMA, 1)
    found = []
    for lora in ((), (LoraAdapter(file, 0.0),), (file,)):
        with (
            ikq.Model.load(path(LLAMA), **EXACT, lora=lora) as model,
            model.collect_activations() as collector,
        ):
            model.logits(tokens)
        found.append(collector.statistics("text"))
    names = list(found[0])
    assert names == list(found[1]) == list(found[2])
    sums = [[s[n].sums for n in names] for s in found]
    assert all(np.array_equal(a, b) for a, b in zip(sums[0], sums[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(sums[0], sums[2], strict=True))


# What was computed with one adapter is not taken for what another one gives


def test_texts_share_what_was_computed_with_the_same_scales(adapter):
    file, _ = adapter(LLAMA)
    tokens = [int(t) for t in prompt(LLAMA, 0)]
    options = {"max_tokens": 6, "temperature": 0}

    def text(model):
        generation = model.generate(tokens, **options)
        list(generation)
        return generation.tokens, generation.stats.n_reused

    with ikq.Model.load(path(LLAMA), n_ctx=128, lora=[file]) as model:
        first, reused = text(model)
        assert reused == 0
        assert text(model) == (first, len(tokens) - 1)
        model.set_lora([0])
        plain, reused = text(model)
        assert reused == 0
        assert plain != first
        model.set_lora([1])
        assert text(model) == (first, len(tokens) - 1)
        # a text that has begun keeps its scales
        generation = model.generate(tokens, **options)
        next(generation)
        model.set_lora([0])
        list(generation)
        assert generation.tokens == first
    with ikq.Model.load(path(LLAMA), n_ctx=128) as model:
        assert text(model)[0] == plain


def test_drafts_do_not_change_texts(tmp_path, adapter):
    """Logits made of hidden states have the scales of their text, whatever the model's are by then."""
    name = next(n for n in HEADS if n.startswith("glm4moe/"))
    file, _ = adapter(name)
    whole = tmp_path / "with-head.gguf"
    with_head(name).write(whole)
    tokens = [int(t) for t in prompt(name, 1)]
    options = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with ikq.Model.load(whole, n_ctx=128, lora=[file]) as model:
        assert model.mtp is not None

        def text(scale, **drafts):
            model.set_lora([scale])
            generation = model.generate(tokens, **options, **drafts)
            next(generation)
            model.set_lora([3 - scale])
            list(generation)
            return generation.tokens

        for scale in (1, 0.5, 0):
            plain = text(scale)
            model._batcher.forget()
            assert text(scale, mtp=True) == plain
            assert text(scale, lookup=2) == plain


def test_saved_sequences_belong_to_their_adapters(tmp_path, adapter):
    file, pairs = adapter(LLAMA)
    other = write_adapter(tmp_path / "other.gguf", "llama", pairs, alpha=ALPHA + 1)
    saved, plain = tmp_path / "s.seq", tmp_path / "p.seq"
    tokens = [int(t) for t in prompt(LLAMA, 1)]
    with ikq.Model.load(path(LLAMA), n_ctx=128, lora=[file]) as model:
        with model.new_sequence() as sequence:
            (logits,) = model.step([(sequence, tokens, "last")])
            sequence.truncate(len(tokens) - 1)
            sequence.save(saved)
        with model.load_sequence(saved) as sequence:
            assert np.array_equal(model.step([(sequence, tokens[-1:], "last")])[0], logits)
        model.set_lora([0.5])
        with pytest.raises(
            ikq.FormatError, match=r"its LoRA adapters .* are [0-9a-f]{16}\*1, the model's are .*\*0.5"
        ):
            model.load_sequence(saved)
        model.set_lora([0])
        with model.new_sequence() as sequence:
            model.step([(sequence, tokens, "none")])
            sequence.save(plain)
    with (
        ikq.Model.load(path(LLAMA), n_ctx=128, lora=[other]) as model,
        pytest.raises(ikq.FormatError, match="LoRA"),
    ):
        model.load_sequence(saved)
    with ikq.Model.load(path(LLAMA), n_ctx=128) as model:
        with pytest.raises(ikq.FormatError, match="the model's are none"):
            model.load_sequence(saved)
        # adapters without effect have no part in it
        model.load_sequence(plain).close()


# What is refused


def refused(tmp_path, error, says, name=LLAMA, n=2, lora=None, **changes):
    pairs = pairs_for(reader(name), matrices(reader(name))[:n])
    base = {"architecture": architecture(name)} | {
        k: changes.pop(k) for k in list(changes) if k == "architecture"
    }
    file = write_adapter(tmp_path / "a.gguf", base["architecture"], pairs, **changes)
    with pytest.raises(error, match=says):
        ikq.Model.load(path(name), n_ctx=64, lora=[lora(file) if lora else file]).close()


@pytest.mark.parametrize(
    ("error", "says", "changes"),
    [
        (ikq.FormatError, "general.type is `model`", {"metadata": {"general.type": "model"}}),
        (ikq.FormatError, "general.type is missing", {"metadata": {"general.type": None}}),
        (
            ikq.FormatError,
            "adapter.type is `control_vector`",
            {"metadata": {"adapter.type": "control_vector"}},
        ),
        (ikq.FormatError, "architecture is `qwen3`, but `llama` is needed", {"architecture": "qwen3"}),
        (ikq.FormatError, "alpha is NaN", {"alpha": float("nan")}),
        (ikq.FormatError, "alpha is inf", {"alpha": float("inf")}),
        (ikq.FormatError, "alpha is no number", {"metadata": {"adapter.lora.alpha": "much"}}),
        (
            ikq.UnsupportedError,
            "activated LoRA",
            {"metadata": {"adapter.alora.invocation_tokens": ikq.Typed([3], "array[uint32]")}},
        ),
        (ikq.FormatError, "it has no matrices", {"n": 0}),
        (
            ikq.FormatError,
            "`blk.0.attn_q.weight.lora_b` is missing",
            {"n": 0, "tensors": {"blk.0.attn_q.weight.lora_a": np.ones((3, 4), np.float32)}},
        ),
        (
            ikq.UnsupportedError,
            "`blk.0.attn_norm.weight` is neither",
            {"tensors": {"blk.0.attn_norm.weight": np.ones(4, np.float32)}},
        ),
        (
            ikq.FormatError,
            "no tensor `blk.77.attn_q.weight`",
            {"tensors": {f"blk.77.attn_q.weight.lora_{p}": np.ones((3, 3), np.float32) for p in "ab"}},
        ),
        (
            ikq.FormatError,
            "`blk.0.attn_norm.weight` is multiplied with nothing",
            {"tensors": {f"blk.0.attn_norm.weight.lora_{p}": np.ones((3, 3), np.float32) for p in "ab"}},
        ),
    ],
)
def test_files_that_are_no_adapter_of_the_model(tmp_path, error, says, changes):
    refused(tmp_path, error, says, **changes)


@pytest.mark.parametrize("part", ["a", "b"])
@pytest.mark.parametrize(
    "name", [LLAMA, "qwen3moe/qwen3moe-bf16", "deepseek2-lite/deepseek2-lite-legacy-mla-bf16"]
)
def test_shapes_are_refused_by_tensor(tmp_path, name, part):
    for tensor in ("token_embd.weight", *matrices(reader(name))):
        a, b = pairs_for(reader(name), [tensor])[tensor]
        whole = {"a": a, "b": b}
        x = whole[part]
        for wrong in (x[..., :-1], x[..., :-1, :], np.stack([x, x])):
            changed = whole | {part: np.ascontiguousarray(wrong)}
            file = write_adapter(
                tmp_path / "a.gguf", architecture(name), {tensor: (changed["a"], changed["b"])}
            )
            # either half may be named where they do not fit each other
            with pytest.raises(ikq.ShapeError, match=rf"`{tensor}\.lora_[ab]` has the shape"):
                ikq.Model.load(path(name), n_ctx=64, lora=[file]).close()
        if not tensor.startswith(("blk.0.", "token")):
            break


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(tmp_path, value):
    a = np.ones((3, 4), np.float32)
    a[1, 2] = value
    says = r"LoRA adapter .*a\.gguf: `x.weight.lora_a` holds"
    refused(tmp_path, ikq.FormatError, says, tensors={"x.weight.lora_a": a})


def test_a_rank_of_0(tmp_path):
    none = {
        f"blk.0.attn_q.weight.lora_{p}": np.zeros(s, np.float32) for p, s in (("a", (0, 4)), ("b", (4, 0)))
    }
    says = r"a\.gguf: `blk.0.attn_q.weight.lora_a` has the shape \[0, 4\], which holds no number"
    refused(tmp_path, ikq.FormatError, says, tensors=none)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e39])
def test_scales_that_are_none(tmp_path, scale, adapter):
    file, _ = adapter(LLAMA)
    with pytest.raises(ikq.RefusedError, match="a scale of"):
        LoraAdapter(file, scale)
    with ikq.Model.load(path(LLAMA), n_ctx=64, lora=[file]) as model:
        for scales in ([scale], [], [1, 1]):
            with pytest.raises(ikq.RefusedError, match="a finite scale for each of the model's 1 adapters"):
                model.set_lora(scales)
            with pytest.raises(ikq.RefusedError):
                model.new_sequence(lora=scales)
        assert model.lora_adapters[0].scale == 1


def test_files_that_cannot_be_read(tmp_path, adapter):
    with pytest.raises(FileNotFoundError):
        ikq.Model.load(path(LLAMA), lora=[tmp_path / "none.gguf"])
    damaged = tmp_path / "d.gguf"
    damaged.write_bytes(adapter(LLAMA)[0].read_bytes()[:-1000])
    with pytest.raises(ikq.FormatError):
        ikq.Model.load(path(LLAMA), lora=[damaged])
    with pytest.raises(ikq.FormatError, match=r"general.type is .*`adapter` is needed"):
        ikq.Model.load(path(LLAMA), lora=[path(LLAMA)])
    file, _ = adapter(LLAMA)
    with pytest.raises(ikq.FormatError, match="is an adapter, not a model: name it with --lora"):
        ikq.Model.load(file)
    with (
        ikq.GGUFReader(file) as base,
        pytest.raises(ikq.FormatError, match="is an adapter, which has no tok"),
    ):
        ikq.Tokenizer.from_reader(base)
