"""LoRA adapters of PEFT as GGUF files: added to the base's file they make the file of the merged checkpoint."""

import json

import numpy as np
import pytest
from checkpoint_folders import hf_tensors, make_folder, to_bf16, write_safetensors
from engine_checks import EXACT, TOLERANCE, largest
from model_files import NAMES, prompt

import ikq
from ikq.__main__ import main
from ikq.errors import FormatError, IkqError, RefusedError, UnsupportedError

RANK, ALPHA = 4, 8
WHOLE = (
    "llama",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen2moe",
    "qwen3moe",
    "gemma3",
    "glm4moe",
    "ernie45moe",
)
LAST = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")


def fixture(architecture):
    return next(n for n in NAMES if n.split("/")[0] == architecture)


def modules(tensors):
    """Weights that an adapter of all linear layers is for."""
    return [n for n, x in tensors.items() if n.endswith(LAST) and x.ndim == 2]


def numbers(rng, *shape):
    """Small whole numbers, which bfloat16 holds and whose products and sums are exact."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def write_adapter(folder, tensors, names, *, rank=RANK, encode=("F32", lambda x: x), **config):
    """An adapter for these weights; gives what it adds to each, as numpy has it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    stored, sums = {}, {}
    for name in names:
        n_rows, n_columns = tensors[name].shape
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if name.endswith("embed_tokens.weight"):
            a, b = numbers(rng, rank, n_rows), numbers(rng, n_columns, rank)
            sums[name] = (b @ a).T * (ALPHA / rank)
            keys = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        else:
            a, b = numbers(rng, rank, n_columns), numbers(rng, n_rows, rank)
            sums[name] = b @ a * (ALPHA / rank)
            keys = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        for key, x in zip(keys, (a, b), strict=True):
            stored[key] = (encode[0], encode[1](x))
    write_safetensors(folder / "adapter_model.safetensors", stored)
    whole = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(whole | config))
    return sums


def merged(folder, name, sums):
    """The fixture as a checkpoint with the adapter in it."""

    def change(tensors, config):
        del config
        floats = hf_tensors(name)
        for source, x in sums.items():
            tensors[source] = ("F32", (floats[source] + x).astype(np.float32))

    return make_folder(folder, name, dtype="F32", change=change)


@pytest.mark.parametrize("architecture", WHOLE)
def test_the_base_with_the_adapter_is_the_merged_model(tmp_path, architecture):
    name = fixture(architecture)
    tensors = hf_tensors(name)
    names = modules(tensors)
    assert len(names) > 6
    base = make_folder(tmp_path / "base", name, dtype="F32")
    sums = write_adapter(tmp_path / "lora", tensors, names)
    assert main(["convert", "--base", str(base), str(tmp_path / "lora"), str(tmp_path / "a.gguf")]) == 0
    ikq.convert_checkpoint(base, tmp_path / "base.gguf", "f32")
    ikq.convert_checkpoint(merged(tmp_path / "merged", name, sums), tmp_path / "merged.gguf", "f32")
    adapter, before, after = (ikq.GGUFReader(tmp_path / f"{n}.gguf") for n in ("a", "base", "merged"))
    changed = 0
    pairs = {n.rpartition(".lora_")[0] for n in adapter.tensors}
    assert sorted(adapter.tensors) == sorted(f"{n}.lora_{part}" for n in pairs for part in "ab")
    for tensor, now in after.tensors.items():
        was, expected = before.tensors[tensor].dequantize(), now.dequantize()
        if tensor in pairs:
            a, b = (adapter.tensors[f"{tensor}.lora_{part}"].dequantize() for part in "ab")
            assert a.shape[-2] == b.shape[-1] == RANK
            was = was + (b @ a) * np.float32(ALPHA / RANK)
            changed += 1
        np.testing.assert_array_equal(was, expected, err_msg=tensor)
    assert changed == len(pairs) > 0


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3"])
def test_the_adapter_beside_the_base_is_the_merged_model(tmp_path, architecture):
    """What the engine adds is what was converted: rows that change places, experts that are stacked, norms."""
    name = fixture(architecture)
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name, dtype="F32")
    sums = write_adapter(tmp_path / "lora", tensors, modules(tensors))
    # whole numbers are larger than weights
    scale = 2.0**-7
    small = {source: x * np.float32(scale) for source, x in sums.items()}
    ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base)
    ikq.convert_checkpoint(base, tmp_path / "base.gguf", "f32")
    ikq.convert_checkpoint(merged(tmp_path / "merged", name, small), tmp_path / "merged.gguf", "f32")
    with ikq.Model.load(tmp_path / "merged.gguf", **EXACT) as model:
        wanted = model.logits(prompt(name, 1))
    lora = ikq.LoraAdapter(tmp_path / "a.gguf", scale)
    with ikq.Model.load(tmp_path / "base.gguf", **EXACT, lora=[lora]) as model:
        # both are so far from the exact ones at most
        assert largest(model.logits(prompt(name, 1)), wanted) < 2 * TOLERANCE
        model.set_lora([0])
        assert largest(model.logits(prompt(name, 1)), wanted) > 200 * TOLERANCE


def test_names_and_keys(tmp_path):
    name = fixture("llama")
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    names = [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]
    folder = tmp_path / "lora"
    sums = write_adapter(folder, tensors, names, encode=("BF16", to_bf16), base_model_name_or_path=str(base))
    out = ikq.convert_adapter(folder)
    assert out == folder / "lora-BF16.gguf"
    reader = ikq.GGUFReader(out)
    assert dict(reader.metadata) == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "lora",
        "general.file_type": 32,
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    n_vocab, n_embd = tensors[names[0]].shape
    n_q, n_ff = tensors[names[1]].shape[0], tensors[names[2]].shape[1]
    # an embedding's matrices are those of its transpose, the first of them turned
    assert {n: t.shape for n, t in reader.tensors.items()} == {
        "token_embd.weight.lora_a": (n_vocab, RANK),
        "token_embd.weight.lora_b": (n_embd, RANK),
        "blk.0.ffn_down.weight.lora_a": (RANK, n_ff),
        "blk.0.ffn_down.weight.lora_b": (n_embd, RANK),
        "blk.1.attn_q.weight.lora_a": (RANK, n_embd),
        "blk.1.attn_q.weight.lora_b": (n_q, RANK),
    }
    assert {str(t.type) for t in reader.tensors.values()} == {"BF16"}
    a, b = (reader.tensors[f"token_embd.weight.lora_{p}"].dequantize() for p in "ab")
    np.testing.assert_array_equal(a @ b.T * (ALPHA / RANK), sums[names[0]])
    for out_type, kind in (("f32", "F32"), ("f16", "F16")):
        other = ikq.GGUFReader(ikq.convert_adapter(folder, tmp_path / "x.gguf", out_type=out_type))
        assert {str(t.type) for t in other.tensors.values()} == {kind}
        for tensor in reader.tensors:
            np.testing.assert_array_equal(
                other.tensors[tensor].dequantize(), reader.tensors[tensor].dequantize()
            )


def test_names_of_another_class_of_the_model(tmp_path):
    """An adapter of a model that sees as well has another root than the base's files."""
    name = fixture("qwen3")
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    source = "model.layers.0.self_attn.v_proj.weight"
    other = source.replace("model.", "model.language_model.", 1)
    write_adapter(tmp_path / "lora", {other: tensors[source]}, [other])
    reader = ikq.GGUFReader(ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base))
    assert set(reader.tensors) == {"blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b"}


def test_no_model_is_overwritten(tmp_path):
    name = fixture("qwen3")
    base = make_folder(tmp_path / "base", name)
    write_adapter(tmp_path / "lora", hf_tensors(name), ["model.layers.0.self_attn.v_proj.weight"])
    out = tmp_path / "m.gguf"
    ikq.convert_checkpoint(base, out)
    before = out.read_bytes()
    with pytest.raises(RefusedError, match="is a model and would be overwritten"):
        ikq.convert_adapter(tmp_path / "lora", out, base)
    assert out.read_bytes() == before
    for taken in (tmp_path / "none" / "a.gguf", tmp_path / "lora" / "adapter_model.safetensors"):
        with pytest.raises(RefusedError):
            ikq.convert_adapter(tmp_path / "lora", taken, base)


def test_scales(tmp_path):
    """Engines take alpha by the rank of each matrix."""
    name = fixture("qwen3")
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    source = ["model.layers.0.self_attn.v_proj.weight"]
    write_adapter(tmp_path / "rs", tensors, source, rank=4, use_rslora=True, alora_invocation_tokens=[3, 5])
    metadata = ikq.GGUFReader(ikq.convert_adapter(tmp_path / "rs", tmp_path / "a.gguf", base)).metadata
    # alpha by the root of the rank: 8 / 2, which is 16 / 4
    assert metadata["adapter.lora.alpha"] == 16
    assert metadata["adapter.alora.invocation_tokens"] == [3, 5]
    write_adapter(tmp_path / "other", tensors, source, rank=4, use_rslora=True)
    path = tmp_path / "other" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 9}))
    with pytest.raises(FormatError, match="the rank 4, expected 9"):
        ikq.convert_adapter(tmp_path / "other", tmp_path / "b.gguf", base)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"peft_type": "LOHA"}, UnsupportedError, "'LOHA'"),
        ({"use_dora": True}, UnsupportedError, "use_dora"),
        ({"fan_in_fan_out": True}, UnsupportedError, "fan_in_fan_out"),
        ({"bias": "all"}, UnsupportedError, "biases"),
        ({"alpha_pattern": {"q_proj": 3}}, UnsupportedError, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "modules_to_save"),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 3}}, UnsupportedError, "several ranks"),
        ({"invocation_string": "hello"}, UnsupportedError, "invocation_string"),
        ({"lora_alpha": 0}, FormatError, "lora_alpha"),
        ({"lora_alpha": float("nan")}, FormatError, "lora_alpha"),
        ({"r": "4"}, FormatError, "`r`"),
        ({"alora_invocation_tokens": [-1]}, FormatError, "alora_invocation_tokens"),
    ],
)
def test_configurations(tmp_path, config, error, says):
    name = fixture("qwen3")
    source = "model.layers.0.self_attn.v_proj.weight"
    base = make_folder(tmp_path / "base", name)
    write_adapter(tmp_path / "lora", hf_tensors(name), [source], **config)
    with pytest.raises(error, match=says):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop(next(iter(t))), FormatError, "only one of lora_A and lora_B"),
        (lambda t: t.clear(), FormatError, "no matrix of an adapter"),
        (lambda t: t.update({"x.lora_magnitude_vector": t[next(iter(t))]}), UnsupportedError, "no part of"),
        (
            lambda t: t.update({k: (d, x[:, :-1]) for k, (d, x) in t.items() if "lora_A" in k}),
            FormatError,
            "that of the base has",
        ),
        (
            lambda t: t.update({k: (d, x[:, :-1]) for k, (d, x) in t.items() if "lora_B" in k}),
            FormatError,
            r"expected \[rank, columns\]",
        ),
        (
            lambda t: [t.update({k.replace("layers.0", "layers.77"): t.pop(k)}) for k in list(t)],
            FormatError,
            "the base has no weight `model.layers.77",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, error, says):
    name = fixture("qwen3")
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    source = "model.layers.0.self_attn.v_proj"
    write_adapter(tmp_path / "lora", tensors, [f"{source}.weight"])
    n_rows, n_columns = tensors[f"{source}.weight"].shape
    stored = {
        f"base_model.model.{source}.lora_A.weight": ("F32", np.ones((RANK, n_columns), np.float32)),
        f"base_model.model.{source}.lora_B.weight": ("F32", np.ones((n_rows, RANK), np.float32)),
    }
    change(stored)
    stored = {k: (d, np.ascontiguousarray(x)) for k, (d, x) in stored.items()}
    write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", stored)
    with pytest.raises(error, match=says):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base)


@pytest.mark.parametrize(
    ("architecture", "part"),
    [("deepseek2-lite", "self_attn.kv_b_proj.weight"), ("qwen3next", "linear_attn.in_proj_qkvz.weight")],
)
def test_matrices_that_are_parted(tmp_path, architecture, part):
    name = fixture(architecture)
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    source = next(n for n in tensors if n.endswith(part))
    write_adapter(tmp_path / "lora", tensors, [source])
    with pytest.raises(UnsupportedError, match="not a matrix of its own"):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base)


def test_all_experts_or_none(tmp_path):
    name = fixture("qwen3moe")
    tensors = hf_tensors(name)
    base = make_folder(tmp_path / "base", name)
    write_adapter(tmp_path / "lora", tensors, ["model.layers.0.mlp.experts.0.up_proj.weight"])
    with pytest.raises(UnsupportedError, match="no matrices for expert 1"):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf", base)


def test_where_the_base_is(tmp_path, capsys):
    name = fixture("qwen3")
    tensors = hf_tensors(name)
    source = ["model.layers.0.self_attn.v_proj.weight"]
    write_adapter(tmp_path / "lora", tensors, source, base_model_name_or_path="someone/model")
    with pytest.raises(RefusedError, match="'someone/model' is no folder here"):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf")
    base = make_folder(tmp_path / "lora" / "someone" / "model", name)
    assert ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf").exists()
    # what is looked at first writes nothing
    words = ["convert", str(tmp_path / "lora"), str(tmp_path / "b.gguf")]
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert "blk.0.attn_v.weight.lora_a: [4, " in capsys.readouterr().out
    assert main([*words, "--split-max-tensors", "3"]) == 2
    assert main([*words, "--outtype", "q8_0"]) == 2
    assert main(["convert", "--base", str(base), str(base), str(tmp_path / "b.gguf")]) == 2
    assert not (tmp_path / "b.gguf").exists()
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(IkqError, match=r"adapter_model.bin: only"):
        ikq.convert_adapter(tmp_path / "lora", tmp_path / "a.gguf")
