"""What the architectures of `seeded_models` refuse, and the other forms in which their checkpoints come."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from seeded_models import case, converted, limit, stored_logits, write_folder

import ikq
from ikq.checkpoint.opening import Checkpoint
from ikq.errors import FormatError, RefusedError, UnsupportedError
from ikq.models import model_spec, mtp_spec

REFUSED = {
    "minimax-m2": {"scoring_func": "softmax", "qk_norm_type": "per_head"},
    "bailingmoe2": {"score_function": "softmax", "use_qk_norm": False},
    "hunyuan-moe": {"use_mla": True, "moe_topk": [2, 1]},
    "granite": {"position_embedding_type": "nope"},
    "dots1": {"sliding_window": 64},
    "mimo2": {"routed_scaling_factor": 2.5, "swa_head_dim": 8, "layer_types": ["full_attention"] * 3},
    "laguna": {"moe_router_logit_softcapping": 3.0, "mlp_layer_types": ["sparse", "dense"] * 2},
    "step35": {"partial_rotary_factors": [1.0] * 4, "swiglu_limits": ["x"], "moe_layers_enum": "1,a"},
    "cohere2moe": {"expert_selection_fn": "softmax", "prefix_dense_sliding_window_pattern": 4},
    "mistral4": {"rope_interleave": False, "model_type": "mistral3"},
    "llama4": {"use_qk_norm": False, "attention_chunk_size": 4096, "no_rope_layers": [1, 1, 1, 1]},
}


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, values in REFUSED.items() for k in values])
def test_values_that_make_another_model(name, key, tmp_path):
    def change(tensors, config):
        config[key] = REFUSED[name][key]

    folder = write_folder(tmp_path / "hf", case(name), change)
    with pytest.raises((FormatError, UnsupportedError), match=key.rstrip("s")):
        Checkpoint(folder)


def test_contexts_beyond_a_chunk(tmp_path):
    def change(tensors, config):
        config["max_position_embeddings"] = 16384

    out = converted(tmp_path, case("llama4"), change)
    assert any("chunks" in note for note in model_spec(ikq.GGUFReader(out)).notes)
    with pytest.raises((RefusedError, UnsupportedError), match="more than 8192 positions"):
        ikq.Model.load(out, n_ctx=8193)
    for n_ctx in (None, 8192):
        with ikq.Model.load(out, n_ctx=n_ctx) as model:
            assert model.n_ctx == 8192


def test_keys_that_were_normed_behind_the_rotation_stay(tmp_path):
    with ikq.Model.load(converted(tmp_path, case("hunyuan-moe")), **EXACT) as model:
        model.eval(np.array(case("hunyuan-moe")["ids"]))
        with pytest.raises(UnsupportedError, match="cannot be turned again"):
            model.shift(2, 4)


def test_keys_that_were_normed_as_a_row_are_moved(tmp_path):
    """In a model of one layer, keys do not depend on what was before them."""

    def change(tensors, config):
        config["num_hidden_layers"] = 1
        for name in [n for n in tensors if ".layers.1." in n]:
            del tensors[name]

    ids = case("minimax-m2")["ids"]
    with ikq.Model.load(converted(tmp_path, case("minimax-m2"), change), **EXACT) as model:
        expected = model.logits(np.array([*ids[:2], *ids[6:]]))
        model.truncate(0)
        model.eval(np.array(ids[:-1]))
        model.shift(2, 4)
        assert largest(model.eval(np.array(ids[-1:])), expected[-1:]) < 1e-4


def test_mimo_as_published(tmp_path):
    """Names of `config.json` that came before those of `transformers`."""

    def change(tensors, config):
        rope = config.pop("rope_parameters")
        config["hybrid_layer_pattern"] = [int(k == "sliding_attention") for k in config.pop("layer_types")]
        config["moe_layer_freq"] = [int(k == "sparse") for k in config.pop("mlp_layer_types")]
        config["layernorm_epsilon"] = config.pop("rms_norm_eps")
        config["swa_num_key_value_heads"] = 2 * config["num_key_value_heads"]
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["swa_rope_theta"] = rope["sliding_attention"]["rope_theta"]
        config["partial_rotary_factor"] = rope["full_attention"]["partial_rotary_factor"]

    own = case("mimo2")
    with ikq.Model.load(converted(tmp_path, own, change), **EXACT) as model:
        found = model.logits(np.array(own["ids"]))
    expected = stored_logits(own)
    assert largest(found[:, :: own["stride"]], expected) < limit(own, expected)


def test_a_head_of_another_form_is_no_head(tmp_path):
    """Ling's has a norm of its own before the projection, which is not known here."""
    reader = ikq.GGUFReader(converted(tmp_path, case("bailingmoe2")))
    n_embd, extra = case("bailingmoe2")["config"]["hidden_size"], tmp_path / "y.gguf"
    metadata = dict(reader.metadata)
    metadata["bailingmoe2.block_count"] += 1
    metadata["bailingmoe2.nextn_predict_layers"] = 1
    with ikq.GGUFWriter(extra, metadata) as writer:
        for name, tensor in reader.tensors.items():
            writer.add_tensor(name, tensor)
            if name.startswith("blk.2."):
                writer.add_tensor(name.replace("blk.2.", "blk.3."), tensor)
        writer.add_tensor("blk.3.nextn.eh_proj.weight", np.zeros((n_embd, 2 * n_embd), np.float32))
        for part in ("nextn.enorm", "nextn.hnorm", "layer_output_norm"):
            writer.add_tensor(f"blk.3.{part}.weight", np.ones(n_embd, np.float32))
    assert mtp_spec(ikq.GGUFReader(extra)) is None
    assert any("are not run" in note for note in model_spec(ikq.GGUFReader(extra)).notes)
