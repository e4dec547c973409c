"""Ling and Ring 2 (BailingMoE V2): merged queries, keys and values, partial rotation, groups of experts.

Experts are chosen by sigmoids with a bias; leading layers are dense.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.dots1 import build

__all__ = ["build", "convert"]


def convert(t: Target) -> None:
    """A checkpoint of Ling or Ring 2: experts are stacked; blocks that predict further tokens are left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, scoring or norm that such files do not have.
    """
    c = t.config
    parts.only(c, "score_function", "sigmoid")
    parts.only(c, "use_qk_norm", True)
    parts.only(c, "norm_topk_prob", True)
    n_layer = c.integer("num_hidden_layers")
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.moe_keys(t, groups=True)
    n_embd, n_head = c.integer("hidden_size"), c.integer("num_attention_heads", low=1)
    n_kv = c.integer("num_key_value_heads", default=n_head, low=1)
    head_dim = c.integer("head_dim", default=n_embd // n_head, low=1)
    width, n_shared = c.integer("moe_intermediate_size", low=1), c.integer("num_shared_experts", default=0)
    n_dense = c.integer("first_k_dense_replace", default=0)
    t.count("rope.dimension_count", int(head_dim * c.rope().number("partial_rotary_factor", default=1.0)))
    t.count("leading_dense_block_count", n_dense)
    t.count("vocab_size", c.integer("vocab_size", low=1))
    t.count("expert_feed_forward_length", width)
    # of one of them; files say how many there are
    t.count("expert_shared_feed_forward_length", width)
    t.number("expert_weights_scale", c.number("routed_scaling_factor", default=1.0))
    t.count("expert_shared_count", n_shared)
    t.key("expert_weights_norm", True)
    t.count("expert_gating_func", 2)
    t.ignore(
        *(f"{t.root}layers.{n_layer + i}.*" for i in range(c.integer("num_nextn_predict_layers", default=0)))
    )
    parts.embeddings(t)
    for i in range(n_layer):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        b.linear("attention.query_key_value", "attn_qkv", ((n_head + 2 * n_kv) * head_dim, n_embd))
        b.linear("attention.dense", "attn_output", (n_embd, n_head * head_dim))
        b.norm("attention.query_layernorm", "attn_q_norm")
        b.norm("attention.key_layernorm", "attn_k_norm")
        b.norm("post_attention_layernorm", "ffn_norm")
        if i < n_dense:
            parts.dense_ffn(b)
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.vector("mlp.gate.expert_bias", "exp_probs_b.bias")
        b.experts("mlp.experts", parts.n_expert(c))
        if n_shared:
            parts.shared_ffn(b, "mlp.shared_experts")
