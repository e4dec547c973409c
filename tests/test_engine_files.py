"""`ikq.Model` on files of other forms: types of tensors, layouts of older programs, damaged weights."""

import numpy as np
import pytest
from engine_checks import EXACT, INVALID, TOLERANCE, kl, largest
from model_files import Changed, path, prompt, reader, reference
from model_variants import VARIANTS, check_form
from numpy_model import NumpyModel

import ikq
from ikq.models import model_spec


def with_tensors(file, name, tensors):
    """The fixture with other tensors in the place of its own."""
    with ikq.GGUFWriter(file, reader(name).metadata) as writer:
        for tensor_name, tensor in reader(name).tensors.items():
            writer.add_tensor(tensor_name, tensors.get(tensor_name, tensor))
    return file


REPLACED = ("blk.0.attn_output.weight", "blk.1.ffn_up_exps.weight")


@pytest.mark.parametrize("kind", list(ikq.QuantType), ids=lambda t: t.name)
def test_every_type(kind, tmp_path):
    """A matrix and a stack of experts of each type that can be encoded: products are those of the decoded weights."""
    name = "qwen3moe/qwen3moe-bf16"
    try:
        tensors = {n: ikq.QTensor.quantize(reader(name).tensors[n].dequantize(), kind) for n in REPLACED}
    except (ikq.UnsupportedError, ikq.FormatError, ikq.MissingImatrixError) as error:
        pytest.skip(f"nothing encodes to {kind.name}: {str(error)[:40]}...")
    file = with_tensors(tmp_path / "typed.gguf", name, tensors)
    try:
        model = ikq.Model.load(file, **EXACT)
    except ikq.UnsupportedError as error:
        assert kind.name in str(error)  # noqa: PT017
        return
    typed = ikq.GGUFReader(file)
    wanted = NumpyModel(typed, model_spec(typed)).logits(prompt(name, 0))
    with model:
        assert largest(model.logits(prompt(name, 0)), wanted) < TOLERANCE
    with ikq.Model.load(file, n_ctx=64) as model:
        assert kl(wanted, model.logits(prompt(name, 0))) < 0.02


def test_repacking_while_loading_has_no_effect():
    name = "qwen3moe/qwen3moe-bf16"
    found = []
    for repack in (False, True):
        with ikq.Model.load(path(name), n_ctx=128, repack=repack) as model:
            found.append(model.logits(prompt(name, 0)))
            notes = [note for note in model.explain().notes if "repack" in note]
            assert len(notes) == repack
    assert np.array_equal(*found)


@pytest.mark.parametrize("kind", list(ikq.QuantType), ids=lambda t: t.name)
@pytest.mark.parametrize(
    "tensor", [*REPLACED, "token_embd.weight", "output_norm.weight", "blk.0.ffn_gate_inp.weight"]
)
def test_types_of_any_bytes(tensor, kind, tmp_path):
    """Types that weights do not have, and bytes that nobody encoded: logits, or an error of ours."""
    name = "qwen3moe/qwen3moe-bf16"
    shape = reader(name).tensors[tensor].shape
    rng = np.random.default_rng(kind.value)
    for high in (1, 256):
        try:
            raw = rng.integers(0, high, ikq.tensor_bytes(kind, shape), np.uint8)
            stored = ikq.QTensor(raw, kind, shape)
        except ikq.IkqError:
            return  # the type has no such shape
        file = with_tensors(tmp_path / "typed.gguf", name, {tensor: stored})
        for compute in ("auto", "f32"):
            try:
                with ikq.Model.load(file, n_ctx=16, compute=compute) as model:
                    assert np.isfinite(model.logits([1, 2, 3])).all()
            except (*INVALID, ikq.UnsupportedError) as error:
                assert str(error)  # noqa: PT017


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants(variant, tmp_path):
    """Other forms of files compute what the fixtures do."""
    name, change = VARIANTS[variant]
    changed = Changed(reader(name))
    change(changed)
    changed.write(tmp_path / "variant.gguf")
    with ikq.Model.load(tmp_path / "variant.gguf", **EXACT) as model:
        check_form(variant, model.spec)
        assert largest(model.logits(prompt(name, 0)), reference(name, 0)) < TOLERANCE
        if variant.startswith("merged"):  # the tensor is one already
            assert {p.plan for p in model.explain().ffn if p.role == "experts"} == {"merged"}


@pytest.mark.parametrize("compute", ["auto", "f32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "tensor",
    ["token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.0.attn_output.weight",
     "blk.1.ffn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.1.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"],
)  # fmt: skip
def test_weights_that_are_no_numbers(tmp_path, tensor, value, compute):
    name = "qwen3moe/qwen3moe-bf16"
    stored = reader(name).tensors[tensor]
    x = stored.dequantize().copy()
    x[..., 3] = value  # of every row, so that every token meets it
    damaged = x if stored.type is ikq.QuantType.F32 else bf16(stored, x)
    file = with_tensors(tmp_path / "damaged.gguf", name, {tensor: damaged})
    with (
        pytest.raises(ikq.FormatError, match=tensor),
        ikq.Model.load(file, n_ctx=64, compute=compute) as model,
    ):
        model.logits(prompt(name, 0))


def bf16(stored, x):
    """The upper halves of floats."""
    halves = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return ikq.QTensor(halves.view(np.uint8), stored.type, stored.shape)
