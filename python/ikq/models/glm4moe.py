"""GLM-4.5, 4.5-Air and 4.6: half of a head rotated, sigmoid routing with a bias, leading dense layers.

Published files end with a block that predicts a further token (`nextn_predict_layers`), a head of its own.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `glm4moe`."""

    def layer(block: Block) -> Layer:
        # the large model has norms of queries and keys, Air has none
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim))
        ffn: DenseFfn | Moe
        if is_leading_dense(block):
            ffn = dense_ffn(block)
        else:
            ffn = moe_ffn(block, func="sigmoid", normalize=False, shared="plain", shared_width="count")
        return standard_layer(block, attention, ffn, ffn_norm="post_attention_norm")

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of GLM-4.5 and its successors, with the blocks that predict further tokens.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    n_layer, n_extra = c.integer("num_hidden_layers"), parts.n_further_blocks(t)
    parts.common_keys(t, n_layer + n_extra)
    parts.rope_keys(t)
    parts.moe_keys(t, groups=True)
    head_dim = c.integer(
        "head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1)
    )
    t.count("rope.dimension_count", int(head_dim * c.rope().number("partial_rotary_factor", default=0.5)))
    t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    t.count("expert_shared_count", c.integer("n_shared_experts", default=0))
    t.count("leading_dense_block_count", c.integer("first_k_dense_replace", default=0))
    t.count("expert_gating_func", 2)
    t.number("expert_weights_scale", c.number("routed_scaling_factor", default=1.0))
    t.key("expert_weights_norm", c.flag("norm_topk_prob", default=True))
    t.count("nextn_predict_layers", n_extra)
    parts.embeddings(t)
    for i in range(n_layer + n_extra):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "post_attention_norm")
        if i < c.integer("first_k_dense_replace", default=0):
            parts.dense_ffn(b)
        else:
            b.linear("mlp.gate", "ffn_gate_inp")
            b.vector("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")
            b.experts("mlp.experts", parts.n_expert(c))
            parts.shared_ffn(b, "mlp.shared_experts")
        if i >= n_layer:
            parts.nextn(b)
