"""`ikq convert` and `ikq quantize` of checkpoint folders: fixtures come back byte for byte, and run as the oracle says.

The folders are made by `checkpoint_folders`, whose tables are written apart from those of `ikq.models`. The GGUF
files were made by another converter from the same checkpoints.
"""

import json

import numpy as np
import pytest
from checkpoint_folders import (
    TABLES,
    make_folder,
    to_bf16,
)
from engine_checks import EXACT, TOLERANCE, largest
from model_files import NAMES, expected_logits, path, prompt, reader
from seeded_models import CASES, case

import ikq
from ikq.__main__ import main
from ikq.checkpoint.opening import Checkpoint, Maker
from ikq.checkpoint.rows import RowRange
from ikq.errors import FormatError
from ikq.models import model_spec
from ikq.models.spec import Moe

FIXTURES = [n for n in NAMES if "legacy" not in n and "mxfp4" not in n]
SHORT = {name.split("/")[0]: name for name in FIXTURES}
# what files of ikq say besides, and what those of the other converter leave out because it is the default
MORE = {"ikq.tensor_hashes"}
DEFAULTS = {"tokenizer.ggml.add_eos_token": False}


def tensors_of(file):
    return {name: (t.type, t.shape, t.raw.tobytes()) for name, t in ikq.GGUFReader(file).tensors.items()}


def assert_same_tensors(found, expected):
    found, expected = tensors_of(found), tensors_of(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name][:2] == expected[name][:2], name
        assert found[name][2] == expected[name][2], name


def assert_same_metadata(found, expected):
    found, expected = ikq.GGUFReader(found).metadata, ikq.GGUFReader(expected).metadata
    for key in found.keys() | expected.keys():
        if key in MORE:
            continue
        if key not in expected:
            assert found[key] == DEFAULTS[key], key
            continue
        assert found.get(key) == expected[key], key
        assert found.type_of(key) == expected.type_of(key), key


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders by fixture, made when they are asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = make_folder(tmp_path_factory.mktemp("checkpoint") / "hf", SHORT[name])
        return made[name]

    return get


def test_every_architecture_has_a_fixture_or_a_seeded_model():
    from ikq.models import CHECKPOINTS, SUPPORTED

    assert set(TABLES) == set(SHORT)
    assert {architecture for architecture, _ in CHECKPOINTS.values()} == set(SUPPORTED)
    seeded = {CHECKPOINTS[case(name)["config"]["architectures"][0]][0] for name in CASES}
    fixtures = {reader(name).metadata["general.architecture"] for name in FIXTURES}
    assert fixtures | seeded == set(SUPPORTED)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt-oss", "deepseek3", "qwen35moe"])
def test_plans_make_no_weights(folders, tmp_path, name, monkeypatch):
    """Of large checkpoints nobody waits for that; rows that change places, experts that are stacked, sums."""
    monkeypatch.setattr(Maker, "make", lambda *_: pytest.fail("weights were made"))
    plan = ikq.plan_conversion(folders(name), tmp_path / "x.gguf")
    assert sum(t.bytes_out for t in plan.tensors) > 0


@pytest.mark.parametrize("name", SHORT)
def test_fixtures_come_back(folders, tmp_path, name):
    folder, out = folders(name), tmp_path / "out.gguf"
    ikq.convert_checkpoint(folder, out)
    assert_same_tensors(out, path(SHORT[name]))
    assert_same_metadata(out, path(SHORT[name]))
    with ikq.Model.load(out, **EXACT) as model:
        of_oracle = 3e-4 if name == "deepseek2-lite" else TOLERANCE
        assert largest(model.logits(prompt(SHORT[name], 0)), expected_logits(SHORT[name], 0)) < of_oracle


@pytest.mark.parametrize("name", SHORT)
def test_quantized_from_a_folder(folders, tmp_path, name):
    """The same bytes as from the GGUF file; gate and up of the first layers have all the kinds of sources."""
    for source, out in ((folders(name), "a.gguf"), (path(SHORT[name]), "b.gguf")):
        ikq.quantize_file(source, tmp_path / out, "IQ4_KS")
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")
    types = {t for t, _, _ in tensors_of(tmp_path / "a.gguf").values()}
    assert types - {ikq.QuantType.F32, ikq.QuantType.BF16}


@pytest.mark.parametrize(
    ("out_type", "kind"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("auto", "BF16")]
)
def test_out_types(folders, tmp_path, out_type, kind):
    folder, expected = folders("qwen3moe"), reader(SHORT["qwen3moe"]).tensors
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf", out_type)
    found = ikq.GGUFReader(tmp_path / "x.gguf")
    for name, t in expected.items():
        own = found.tensors[name]
        assert own.type.name == ("F32" if t.type.name == "F32" else kind)
        x = t.dequantize()
        if kind == "F16" and own.type.name == "F16":
            x = x.astype(np.float16).astype(np.float32)
        assert np.array_equal(own.dequantize().reshape(-1), x.reshape(-1))
    assert found.metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[kind]


def test_q8_0(folders, tmp_path):
    ikq.convert_checkpoint(folders("qwen3"), tmp_path / "a.gguf", "q8_0")
    ikq.quantize_file(path(SHORT["qwen3"]), tmp_path / "b.gguf", "Q8_0", pure=True)
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert ikq.GGUFReader(tmp_path / "a.gguf").metadata["general.file_type"] == 7


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_floats(tmp_path, dtype):
    """Folders of other floats keep them; so quantizing reads them as they are."""
    folder = make_folder(tmp_path / "hf", SHORT["qwen3"], n_shards=1, dtype=dtype)
    checkpoint = Checkpoint(folder)
    assert checkpoint.out_type == dtype
    found, expected = checkpoint.reader().tensors, reader(SHORT["qwen3"]).tensors
    for name, t in expected.items():
        assert found[name].type.name == ("F32" if t.type.name == "F32" else dtype)
        x = t.dequantize()
        x = x.astype(np.float16).astype(np.float32) if dtype == "F16" else x
        assert np.array_equal(found[name].dequantize().reshape(-1), x.reshape(-1))


def test_weights_too_large_for_f16(tmp_path):
    def change(tensors, config):
        kind, bits = tensors["model.layers.0.mlp.up_proj.weight"]
        bits = bits.copy()
        bits[5, 7] = 0x4800  # 131072
        bits[5, 8] = 0x7FC0  # a NaN beside it hides nothing
        tensors["model.layers.0.mlp.up_proj.weight"] = kind, bits

    folder = make_folder(tmp_path / "hf", SHORT["qwen3"], change=change)
    with pytest.raises(FormatError, match=r"`blk.0.ffn_up.weight`: .* 131072 is too large for F16"):
        ikq.convert_checkpoint(folder, tmp_path / "x.gguf", "f16")
    assert not (tmp_path / "x.gguf").exists()


# Quantized checkpoints


def fp8_blocks(tensors, config):
    """Matrices of layers as 8-bit floats with a scale per block of 32 x 64, as DeepSeek-V3 has them."""
    from ikq.checkpoint.packed import E4M3

    order = np.argsort(E4M3[:127])
    steps = E4M3[:127][order]
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 64], "fmt": "e4m3"}
    for name in [
        n for n in tensors if ".layers." in n and tensors[n][1].ndim == 2 and "mlp.gate.weight" not in n
    ]:
        x = (tensors[name][1].astype(np.uint32) << 16).view(np.float32)
        rows, columns = x.shape
        scale = np.zeros((-(-rows // 32), -(-columns // 64)), np.float32)
        codes = np.zeros(x.shape, np.uint8)
        for r in range(scale.shape[0]):
            for c in range(scale.shape[1]):
                at = np.s_[32 * r : 32 * r + 32, 64 * c : 64 * c + 64]
                scale[r, c] = max(np.abs(x[at]).max() / 448, 1e-9)
                near = np.searchsorted((steps[1:] + steps[:-1]) / 2, np.abs(x[at]) / scale[r, c])
                codes[at] = order[near] | np.where(x[at] < 0, 128, 0)
        tensors[name] = "F8_E4M3", codes
        tensors[f"{name}_scale_inv"] = "F32", scale


@pytest.fixture(scope="module")
def fp8_folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("checkpoint") / "hf", SHORT["deepseek3"], change=fp8_blocks)


def test_fp8(fp8_folder, tmp_path):
    """Direct quantizing equals the way over BF16, which is the formula rounded once."""
    ikq.convert_checkpoint(fp8_folder, tmp_path / "bf16.gguf")
    original = reader(SHORT["deepseek3"]).tensors
    found = ikq.GGUFReader(tmp_path / "bf16.gguf").tensors
    assert found.keys() == original.keys()
    for name, t in found.items():
        assert (t.type, t.shape) == (original[name].type, original[name].shape)
        x, y = original[name].dequantize().reshape(-1), t.dequantize().reshape(-1)
        # 3 bits of mantissa: at most 2^-4 of a weight, or half a step of the smallest of a block's
        assert (np.abs(x - y) <= np.maximum(np.abs(x) * 0.0665, np.abs(x).max() * 2.0**-17)).all(), name
    ikq.quantize_file(tmp_path / "bf16.gguf", tmp_path / "a.gguf", "IQ4_KS")
    ikq.quantize_file(fp8_folder, tmp_path / "b.gguf", "IQ4_KS")
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_fp8_as_q8(fp8_folder, tmp_path):
    """Q8_0 of the exact values: BF16 is not between."""
    ikq.convert_checkpoint(fp8_folder, tmp_path / "q8.gguf", fp8_as_q8=True)
    ikq.convert_checkpoint(fp8_folder, tmp_path / "f32.gguf", "f32")
    found, exact = (ikq.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in ("q8", "f32"))
    original = reader(SHORT["deepseek3"]).tensors
    n_q8 = 0
    for name, t in found.items():
        if t.type == ikq.QuantType.Q8_0:
            n_q8 += 1
            x = exact[name].dequantize().reshape(exact[name].shape)
            assert t.raw.tobytes() == ikq.QTensor.quantize(x, "Q8_0").raw.tobytes()
        else:
            assert t.type == original[name].type
            assert t.raw.tobytes() == original[name].raw.tobytes()
    # attention (7 matrices, of which two come of one), dense, shared and routed experts
    assert n_q8 == 2 * 6 + 3 + 6


def test_int4_experts(tmp_path):
    """Experts of 4-bit integers beside floats, as Kimi-K2-Thinking has them."""
    rng = np.random.default_rng(5)
    exact = {}

    def change(tensors, config):
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32, "strategy": "group"}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head", "re:.*self_attn.*"],
        }
        for name in [n for n in tensors if ".experts." in n]:
            shape = tensors.pop(name)[1].shape
            base = name.removesuffix(".weight")
            codes = rng.integers(0, 16, shape)
            scale = to_bf16(rng.choice([0.25, 0.5, 0.0625], (shape[0], shape[1] // 32)).astype(np.float32))
            words = sum(codes[:, i::8].astype(np.uint64) << np.uint64(4 * i) for i in range(8))
            tensors[f"{base}.weight_packed"] = "I32", words.astype(np.uint32).view(np.int32)
            tensors[f"{base}.weight_scale"] = "BF16", scale
            tensors[f"{base}.weight_shape"] = "I64", np.array(shape)
            floats = (scale.astype(np.uint32) << 16).view(np.float32)
            exact[name] = (codes - 8).astype(np.float32) * np.repeat(floats, 32, 1)

    folder = make_folder(tmp_path / "hf", SHORT["qwen3moe"], change=change)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf")
    found = ikq.GGUFReader(tmp_path / "x.gguf").tensors
    for part in ("gate", "up", "down"):
        t = found[f"blk.1.ffn_{part}_exps.weight"]
        assert t.type == ikq.QuantType.BF16
        for e, x in enumerate(t.dequantize().reshape(t.shape)):
            assert np.array_equal(x, exact[f"model.layers.1.mlp.experts.{e}.{part}_proj.weight"])
    assert (
        found["output.weight"].raw.tobytes()
        == reader(SHORT["qwen3moe"]).tensors["output.weight"].raw.tobytes()
    )


def mxfp4_experts(tensors, config):
    """Experts of gpt-oss as they are published, from the fixture's blocks of ggml."""
    source = reader("gpt-oss/gpt-oss-mxfp4").tensors
    for i in range(config["num_hidden_layers"]):
        where = f"model.layers.{i}.mlp.experts"

        def blocks(part, i=i):
            t = source[f"blk.{i}.ffn_{part}_exps.weight"]
            raw = t.raw.reshape(*t.shape[:2], -1, 17)
            nibbles = np.concatenate([raw[..., 1:] & 15, raw[..., 1:] >> 4], -1)
            return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, raw[..., 0]

        gate, up, down = blocks("gate"), blocks("up"), blocks("down")
        both = [
            np.stack(pair, 2).reshape(len(gate[0]), -1, *gate[k].shape[2:])
            for k, pair in enumerate(zip(gate, up, strict=True))
        ]
        for name, (codes, scales) in (("gate_up_proj", both), ("down_proj", down)):
            del tensors[f"{where}.{name}"]
            tensors[f"{where}.{name}_blocks"] = "U8", codes
            tensors[f"{where}.{name}_scales"] = "U8", scales
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn"],
    }


def test_mxfp4_is_passed_through(tmp_path):
    folder = make_folder(tmp_path / "hf_mxfp4", SHORT["gpt-oss"], change=mxfp4_experts)
    ikq.convert_checkpoint(folder, tmp_path / "a.gguf")
    assert_same_tensors(tmp_path / "a.gguf", path("gpt-oss/gpt-oss-mxfp4"))
    assert_same_metadata(tmp_path / "a.gguf", path("gpt-oss/gpt-oss-mxfp4"))
    # asked for floats, they are those of the other fixture (which has some zeros with a sign)
    ikq.convert_checkpoint(folder, tmp_path / "b.gguf", "bf16")
    found, expected = ikq.GGUFReader(tmp_path / "b.gguf").tensors, reader(SHORT["gpt-oss"]).tensors
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert (found[name].type, found[name].shape) == (t.type, t.shape)
        assert np.array_equal(found[name].dequantize(), t.dequantize()), name
    # and other types are made from floats, without leave to requantize
    ikq.quantize_file(folder, tmp_path / "c.gguf", "IQ4_KS")
    ikq.quantize_file(tmp_path / "b.gguf", tmp_path / "d.gguf", "IQ4_KS")
    assert_same_tensors(tmp_path / "c.gguf", tmp_path / "d.gguf")


# Layouts that fixtures do not have


def test_merged_experts(tmp_path):
    """[experts, gate and up, columns], as Qwen3.5 is published."""

    def change(tensors, config):
        n = config.get("num_experts") or config["num_local_experts"]
        for i in range(config["num_hidden_layers"]):
            where = f"model.layers.{i}.mlp.experts"
            parts = [
                [tensors.pop(f"{where}.{e}.{p}_proj.weight")[1] for e in range(n)]
                for p in ("gate", "up", "down")
            ]
            gate_up = np.stack([np.concatenate(pair) for pair in zip(parts[0], parts[1], strict=True)])
            tensors[f"{where}.gate_up_proj"] = "BF16", gate_up
            tensors[f"{where}.down_proj"] = "BF16", np.stack(parts[2])
        for name in list(tensors):
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)
        tensors["model.visual.patch_embed.weight"] = "BF16", np.zeros((2, 2), np.uint16)
        text = dict(config)
        config.clear()
        config |= {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": text}

    folder = make_folder(tmp_path / "hf", SHORT["qwen35moe"], change=change)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf")
    assert_same_tensors(tmp_path / "x.gguf", path(SHORT["qwen35moe"]))
    assert_same_metadata(tmp_path / "x.gguf", path(SHORT["qwen35moe"]))


@pytest.mark.parametrize("name", ["glm4moe", "deepseek3"])
def test_blocks_that_predict_further_tokens(tmp_path, name):
    """They are kept, and the model runs as before."""
    extra = {}

    def change(tensors, config):
        n, n_embd = config["num_hidden_layers"], config["hidden_size"]
        rng = np.random.default_rng(9)
        for source in [s for s in tensors if f".layers.{n - 1}." in s]:
            tensors[source.replace(f".layers.{n - 1}.", f".layers.{n}.")] = tensors[source]
        shapes = {
            "eh_proj.weight": (n_embd, 2 * n_embd),
            "enorm.weight": (n_embd,),
            "hnorm.weight": (n_embd,),
            "shared_head.norm.weight": (n_embd,),
            "shared_head.head.weight": (config["vocab_size"], n_embd),
        }
        for part, shape in shapes.items():
            extra[part] = rng.integers(0x3F00, 0x3F80, shape).astype(np.uint16)
            tensors[f"model.layers.{n}.{part}"] = "BF16", extra[part]
        config["num_nextn_predict_layers"] = 1

    folder = make_folder(tmp_path / "hf", SHORT[name], change=change)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf")
    found, n = ikq.GGUFReader(tmp_path / "x.gguf"), reader(SHORT[name]).metadata
    architecture = n["general.architecture"]
    n_block = n[f"{architecture}.block_count"]
    assert found.metadata[f"{architecture}.block_count"] == n_block + 1
    assert found.metadata[f"{architecture}.nextn_predict_layers"] == 1
    names = {
        "shared_head.norm.weight": "shared_head_norm.weight",
        "shared_head.head.weight": "shared_head_head.weight",
    }
    for part, bits in extra.items():
        t = found.tensors[f"blk.{n_block}.nextn.{names.get(part, part)}"]
        assert np.array_equal(to_bf16(t.dequantize().reshape(bits.shape)), bits)
    with ikq.Model.load(tmp_path / "x.gguf", **EXACT) as model:
        assert largest(model.logits(prompt(SHORT[name], 1)), expected_logits(SHORT[name], 1)) < TOLERANCE


def test_further_tokens_of_qwen3next(tmp_path):
    """`mtp.*` is a block of full attention behind the others."""

    def change(tensors, config):
        full, n_embd = config["layer_types"].index("full_attention"), config["hidden_size"]
        for source in [s for s in tensors if f".layers.{full}." in s]:
            tensors[source.replace(f"model.layers.{full}.", "mtp.layers.0.")] = tensors[source]
        for part in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            tensors[f"mtp.{part}.weight"] = "BF16", np.full(n_embd, 0x3E80, np.uint16)
        tensors["mtp.fc.weight"] = "BF16", np.full((n_embd, 2 * n_embd), 0x3C00, np.uint16)

    folder = make_folder(tmp_path / "hf", SHORT["qwen3next"], change=change)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf")
    found = ikq.GGUFReader(tmp_path / "x.gguf")
    assert found.metadata["qwen3next.block_count"] == 5
    assert found.metadata["qwen3next.attention.recurrent_layers"] == [True, True, True, False, False]
    assert found.tensors["blk.4.nextn.enorm.weight"].dequantize()[0] == 1.25  # 1/4, and the 1 of norms
    assert (
        found.tensors["blk.4.attn_q.weight"].raw.tobytes()
        == found.tensors["blk.3.attn_q.weight"].raw.tobytes()
    )
    with ikq.Model.load(tmp_path / "x.gguf", **EXACT) as model:
        name = SHORT["qwen3next"]
        assert largest(model.logits(prompt(name, 0)), expected_logits(name, 0)) < TOLERANCE


def test_a_tied_head_is_left_out(tmp_path):
    def change(tensors, config):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    folder = make_folder(tmp_path / "hf", SHORT["qwen2"], change=change)
    assert "output.weight" not in Checkpoint(folder).tensors


@pytest.mark.parametrize(("name", "usual"), [("qwen2moe", False), ("qwen3moe", True), ("qwen3next", True)])
def test_sums_of_experts_weights(tmp_path, name, usual):
    """`norm_topk_prob` is written where it is not what files of the architecture mean."""
    for given in (False, True):
        folder = make_folder(
            tmp_path / str(given),
            SHORT[name],
            change=lambda t, c, given=given: c.update(norm_topk_prob=given),
        )
        key = f"{name}.expert_weights_norm"
        checkpoint = Checkpoint(folder)
        assert checkpoint.metadata.get(key) == (None if given == usual else given)
        spec = model_spec(checkpoint.reader())
        assert next(x.ffn for x in spec.layers if isinstance(x.ffn, Moe)).routing.normalize == given


def test_glm_without_its_last_block(tmp_path):
    """`transformers` saves folders without the blocks that `num_nextn_predict_layers` counts."""

    def change(tensors, config):
        for name in [n for n in tensors if n.startswith(f"model.layers.{config['num_hidden_layers']}.")]:
            del tensors[name]
        config["num_nextn_predict_layers"] = 1

    keys = Checkpoint(make_folder(tmp_path / "hf", SHORT["glm4moe"], change=change)).metadata
    assert keys["glm4moe.nextn_predict_layers"] == 0


def test_q8_0_of_integers(tmp_path):
    """Q8_0 of the exact values: BF16 is not between."""
    name = "model.layers.0.mlp.up_proj.weight"
    rng = np.random.default_rng(6)

    def change(tensors, config):
        shape = tensors[name][1].shape
        tensors[name] = "I8", rng.integers(-127, 128, shape)
        tensors[f"{name}_scale"] = "F32", rng.uniform(0.01, 0.02, (shape[0], 1))
        config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized"}

    folder = make_folder(tmp_path / "hf", SHORT["qwen3"], change=change)
    ikq.convert_checkpoint(folder, tmp_path / "q8.gguf", "q8_0")
    ikq.convert_checkpoint(folder, tmp_path / "f32.gguf", "f32")
    found, exact = (
        ikq.GGUFReader(tmp_path / f"{n}.gguf").tensors["blk.0.ffn_up.weight"] for n in ("q8", "f32")
    )
    x = exact.dequantize().reshape(exact.shape)
    assert found.raw.tobytes() == ikq.QTensor.quantize(x, "Q8_0").raw.tobytes()


def test_gate_and_up_of_gpt_oss_need_no_lists(tmp_path):
    """Which rows are whose is said by a start and a step."""
    folder = make_folder(tmp_path / "hf", SHORT["gpt-oss"], change=mxfp4_experts)
    for name, t in Checkpoint(folder).tensors.items():
        if name.endswith("_exps.bias"):
            assert isinstance(t.matrix.of, RowRange), name
        elif t.blocks is not None:
            assert isinstance(t.matrix, RowRange), name


def test_yarn_and_other_rotations(tmp_path):
    def change(tensors, config):
        del config["rope_parameters"]
        config["rope_theta"] = 1e6
        config["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}

    keys = Checkpoint(make_folder(tmp_path / "hf", SHORT["qwen2"], change=change)).metadata
    assert keys["qwen2.rope.scaling.type"] == "yarn"
    assert keys["qwen2.rope.scaling.factor"] == 4.0
    assert keys["qwen2.rope.scaling.original_context_length"] == 256
    assert keys["qwen2.rope.freq_base"] == 1e6

    def linear(tensors, config):
        full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
        config["rope_parameters"]["full_attention"] = full
        config["query_pre_attn_scalar"] = 64
        config["layer_types"] = ["full_attention", "sliding_attention"] * 3

    keys = Checkpoint(make_folder(tmp_path / "other" / "hf", SHORT["gemma3"], change=linear)).metadata
    assert keys["gemma3.rope.scaling.factor"] == 8.0
    assert keys["gemma3.attention.scale"] == 0.125
    assert keys["gemma3.attention.sliding_window_pattern"] == [False, True] * 3


def test_values_that_gemma_leaves_out(tmp_path):
    """Published files say little; the rest is what the model's class has."""

    def change(tensors, config):
        for name in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "query_pre_attn_scalar"):
            del config[name]
        config["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
        for name in list(tensors):
            tensors["language_model." + name] = tensors.pop(name)
        tensors["vision_tower.x.weight"] = "BF16", np.zeros((2, 2), np.uint16)
        text = dict(config)
        config.clear()
        config |= {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}

    keys = Checkpoint(make_folder(tmp_path / "hf", SHORT["gemma3"], change=change)).metadata
    assert keys["gemma3.context_length"] == 131072
    assert keys["gemma3.rope.freq_base"] == 1e6
    assert keys["gemma3.rope.freq_base_swa"] == 1e4
    assert keys["gemma3.rope.scaling.type"] == "linear"
    assert keys["gemma3.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    assert keys["gemma3.attention.scale"] == 1 / 16


# Runs


def test_going_on(folders, tmp_path):
    """A run from a folder that was interrupted goes on, and its output serves a later one."""
    folder, out = folders("qwen3moe"), tmp_path / "x.gguf"
    plan = ikq.plan_quantization(folder, out, "IQ4_KS")

    class Enough(Exception):
        pass

    seen = []

    def progress(tensor, seconds):
        seen.append(tensor.name)
        if len(seen) == 8:
            raise Enough

    with pytest.raises(Enough):
        plan.run(progress=progress, n_threads=1)
    notes = []
    result = ikq.quantize_file(folder, out, "IQ4_KS", on_note=notes.append)
    assert result.n_resumed or result.n_items  # how far it got is up to the machine
    ikq.quantize_file(path(SHORT["qwen3moe"]), tmp_path / "y.gguf", "IQ4_KS")
    assert_same_tensors(out, tmp_path / "y.gguf")
    # what was made from the GGUF file is known to be the same
    again = ikq.quantize_file(folder, tmp_path / "z.gguf", "IQ4_KS", reuse=tmp_path / "y.gguf")
    assert all(o.how in ("reused", "copied") for o in again.outcomes)
    assert_same_tensors(tmp_path / "z.gguf", out)


def test_config_is_a_source(tmp_path):
    """What was made by another config.json is made anew, and no output may take its place."""
    name = "model.layers.0.self_attn.o_proj.weight"

    def change(tensors, config):
        rows, columns = tensors[name][1].shape
        tensors[name] = "F8_E4M3", np.full((rows, columns), 0x38, np.uint8)
        tensors[f"{name}_scale_inv"] = "F32", np.arange(1, 5, dtype=np.float32).reshape(2, 2)
        config["quantization_config"] = {
            "quant_method": "fp8",
            "weight_block_size": [rows // 2, columns // 2],
        }

    folder, out = make_folder(tmp_path / "hf", SHORT["qwen3"], change=change), tmp_path / "x.gguf"

    class Enough(Exception):
        pass

    def progress(tensor, seconds):
        if tensor.name == "blk.0.attn_output.weight":
            raise Enough

    with pytest.raises(Enough):
        ikq.quantize_file(folder, out, "IQ4_KS", n_threads=1, progress=progress)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"][0] += 1  # as many blocks as before
    (folder / "config.json").write_text(json.dumps(config))
    ikq.quantize_file(folder, out, "IQ4_KS")  # how much is there is up to the machine
    ikq.quantize_file(folder, tmp_path / "anew.gguf", "IQ4_KS")
    assert_same_tensors(out, tmp_path / "anew.gguf")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ikq.IkqError):
        ikq.convert_checkpoint(folder, folder / "config.json")
    assert (folder / "config.json").read_bytes() == before


def test_split_and_dry_run(folders, tmp_path, capsys):
    folder = folders("qwen3moe")
    assert main(["convert", "--dry-run", str(folder), str(tmp_path / "x.gguf")]) == 0
    said = capsys.readouterr().out
    assert "nothing was written" in said
    assert "blk.1.ffn_down_exps.weight" in said
    assert not list(tmp_path.iterdir())
    assert main(["quantize", "--dry-run", str(folder), str(tmp_path / "x.gguf"), "Q4_K"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(["convert", "--split-max-tensors", "10", str(folder), str(tmp_path / "x.gguf")]) == 0
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert_same_tensors(tmp_path / files[0], path(SHORT["qwen3moe"]))
    capsys.readouterr()


def test_names_of_outputs(tmp_path, capsys):
    folder = make_folder(tmp_path / "hf", SHORT["qwen2"])
    assert main(["convert", str(folder)]) == 0
    assert main(["convert", "--outtype", "q8_0", str(folder)]) == 0
    assert main(["quantize", str(folder), "Q4_0"]) == 0
    assert sorted(p.name for p in folder.glob("*.gguf")) == [
        f"ggml-model-{t}.gguf" for t in ("F32", "Q4_0", "Q8_0")
    ]
    capsys.readouterr()
