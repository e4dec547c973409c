"""Forms of files that the fixtures do not have, made from fixtures. Each computes what the fixture does."""

import numpy as np


def blocks(changed):
    return range(changed.metadata[f"{changed.architecture}.block_count"])


def fused_qkv(changed):
    """Queries, keys and values in one tensor, biases too."""
    for i in blocks(changed):
        for part in ("weight", "bias"):
            names = [f"blk.{i}.attn_{x}.{part}" for x in "qkv"]
            if names[0] in changed.tensors:
                changed.replace(
                    names, f"blk.{i}.attn_qkv.{part}", np.concatenate([changed.array(n) for n in names])
                )


def merged_experts(changed):
    """Gate rows, then up rows of each expert, biases too."""
    for i in blocks(changed):
        for part in ("weight", "bias"):
            names = [f"blk.{i}.ffn_{x}_exps.{part}" for x in ("gate", "up")]
            if names[0] in changed.tensors:
                both = np.concatenate([changed.array(n) for n in names], axis=1)
                changed.replace(names, f"blk.{i}.ffn_gate_up_exps.{part}", both)


def experts_apart(changed):
    """Older files: a tensor for each expert."""
    for i in blocks(changed):
        for role in ("gate", "up", "down"):
            stack = changed.tensors.pop(f"blk.{i}.ffn_{role}_exps.weight").dequantize()
            for j, one in enumerate(stack):
                changed.add(f"blk.{i}.ffn_{role}.{j}.weight", one)


def recurrent_projections_mixed(changed):
    """Older files have `ssm_in`: per key head its query, key, value heads and gates."""
    n_head_k, dk = (
        changed.metadata[f"{changed.architecture}.ssm.{k}"] for k in ("group_count", "state_size")
    )
    for i in blocks(changed):
        names = [f"blk.{i}.attn_{part}.weight" for part in ("qkv", "gate")]
        if names[0] in changed.tensors:
            qkv, z = (changed.array(n) for n in names)
            parts = [*np.split(qkv, [n_head_k * dk, 2 * n_head_k * dk]), z]
            per_head = np.concatenate([p.reshape(n_head_k, -1, p.shape[-1]) for p in parts], axis=1)
            changed.replace(names, f"blk.{i}.ssm_in.weight", per_head.reshape(-1, qkv.shape[-1]))


def latent_attention_from_kv_b_alone(changed):
    """Keys and values of all heads in one matrix, as DeepSeek publishes them."""
    for i in blocks(changed):
        del changed.tensors[f"blk.{i}.attn_k_b.weight"], changed.tensors[f"blk.{i}.attn_v_b.weight"]


def scales_of_one(changed):
    """Companions of NVFP4 files, here with weights that make up for them."""
    for i in blocks(changed):
        changed.add(f"blk.{i}.attn_q.scale", [0.5])
        changed.add(f"blk.{i}.attn_q.weight", changed.array(f"blk.{i}.attn_q.weight") * 2)
        up = f"blk.{i}.ffn_up_exps"
        scales = 2.0 ** np.arange(len(changed.array(f"{up}.weight")))
        changed.add(f"{up}.scale", 1 / scales)
        changed.add(f"{up}.weight", changed.array(f"{up}.weight") * scales[:, None, None])


def axes_of_one_left_out(changed):
    """Programs differ in whether they write `[n, 1]` or `[n]`."""
    for i in blocks(changed):
        for part in ("exp_probs_b.bias", "ffn_gate_inp_shexp.weight"):
            name = f"blk.{i}.{part}"
            if name in changed.tensors:
                changed.add(name, changed.array(name).ravel())


def axes_of_one_written(changed):
    for name in list(changed.tensors):
        if name.endswith(("exp_probs_b.bias", "ffn_gate_inp_shexp.weight")):
            changed.add(name, changed.array(name).reshape(1, -1))


def a_block_that_predicts_further_tokens(changed):
    n = len(blocks(changed))
    changed.set("block_count", n + 1)
    changed.set("nextn_predict_layers", 1)
    changed.add(f"blk.{n}.nextn.eh_proj.weight", np.zeros((256, 512)))


def one_value_per_block(changed):
    changed.set("attention.head_count", [8, 8])
    changed.set("attention.head_count_kv", [4, 4])
    changed.set("feed_forward_length", [512, 64])


VARIANTS = {
    "fused qkv with biases": ("qwen2moe/qwen2moe-bf16", fused_qkv),
    "fused qkv of permuted rows": ("llama/llama-bf16", fused_qkv),
    "fused qkv with norms": ("qwen3/qwen3-bf16", fused_qkv),
    "merged experts": ("mixtral/mixtral-bf16", merged_experts),
    "merged experts with biases": ("gpt-oss/gpt-oss-bf16", merged_experts),
    "merged experts with a shared one": ("deepseek3/deepseek3-bf16", merged_experts),
    "experts apart": ("mixtral/mixtral-bf16", experts_apart),
    "mixed projections": ("qwen3next/qwen3next-bf16", recurrent_projections_mixed),
    "kv_b alone": ("deepseek2-lite/deepseek2-lite-legacy-mla-bf16", latent_attention_from_kv_b_alone),
    "scales": ("qwen3moe/qwen3moe-bf16", scales_of_one),
    "flat gate of the shared expert": ("qwen2moe/qwen2moe-bf16", axes_of_one_left_out),
    "flat selection bias": ("ernie45moe/ernie45moe-bf16", axes_of_one_left_out),
    "written axes of one": ("glm4moe/glm4moe-bf16", axes_of_one_written),
    "further tokens": ("glm4moe/glm4moe-bf16", a_block_that_predicts_further_tokens),
    "arrays": ("ernie45moe/ernie45moe-bf16", one_value_per_block),
}


def check_form(variant, spec):
    """The spec says that the file has the form, so that equal logits mean something."""
    layer = (
        next(x for x in reversed(spec.layers) if x.ffn.kind == "moe")
        if "expert" in variant
        else spec.layers[0]
    )
    if variant.startswith("fused qkv"):
        assert layer.attention.q.weight == layer.attention.k.weight == layer.attention.v.weight
    elif variant.startswith("merged"):
        assert layer.ffn.gate.weight == layer.ffn.up.weight
        assert layer.ffn.gate.first_row == 0 < layer.ffn.up.first_row == layer.ffn.gate.n_rows
    elif variant == "experts apart":
        assert len(layer.ffn.down.weight) == layer.ffn.routing.n_expert
    elif variant == "mixed projections":
        assert layer.attention.mixed
        assert layer.attention.z is None
    elif variant == "kv_b alone":
        assert layer.attention.kv_b is not None is layer.attention.k_b
    elif variant == "scales":
        assert layer.attention.q.scale == "blk.0.attn_q.scale"
        assert layer.ffn.up.scale == "blk.0.ffn_up_exps.scale"
    elif variant == "further tokens":
        assert len(spec.layers) == 3
        assert "the last 1 of 4 blocks" in spec.notes[0]
