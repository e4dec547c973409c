"""dots.llm1: Qwen3's attention, leading dense layers, experts chosen by sigmoids with a bias."""

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
    """The model of a file of architecture `dots1`."""

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim), qk_norm=True)
        ffn: DenseFfn | Moe
        if is_leading_dense(block):
            ffn = dense_ffn(block)
        else:
            ffn = moe_ffn(block, func="sigmoid", normalize=False, shared="plain", shared_width="count")
        return standard_layer(block, attention, ffn)

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of dots.llm1.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, or windows, that such files do not have.
    """
    c = t.config
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.no_window(c)
    parts.moe_keys(t, groups=True)
    t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    t.count("expert_shared_count", c.integer("n_shared_experts", default=0))
    n_dense = c.integer("first_k_dense_replace", default=0)
    t.count("leading_dense_block_count", n_dense)
    t.count("expert_gating_func", 2)
    t.number("expert_weights_scale", c.number("routed_scaling_factor", default=1.0))
    t.key("expert_weights_norm", c.flag("norm_topk_prob", default=False))
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "ffn_norm")
        if i < n_dense:
            parts.dense_ffn(b)
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.vector("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")
        b.experts("mlp.experts", parts.n_expert(c))
        if c.integer("n_shared_experts", default=0):
            parts.shared_ffn(b, "mlp.shared_experts")
