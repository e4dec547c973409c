"""MiniMax-M2: norms over all heads of queries and of keys, partial rotation, sigmoid routing with a bias."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa
from ikq.models.ffn import moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `minimax-m2`."""

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim), qk_norm="row")
        return standard_layer(block, attention, moe_ffn(block, func="sigmoid", normalize=True))

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of MiniMax-M2: experts are stacked; heads that predict further tokens are left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, scoring or norm that such files do not have.
    """
    c = t.config
    parts.only(c, "scoring_func", "sigmoid")
    parts.only(c, "use_qk_norm", True)
    parts.only(c, "qk_norm_type", "per_layer")
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.moe_keys(t)
    head_dim = c.integer(
        "head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1)
    )
    n_rot = c.integer("rotary_dim", default=0)
    t.count(
        "rope.dimension_count",
        n_rot or int(head_dim * c.rope().number("partial_rotary_factor", default=1.0)),
    )
    t.count("expert_feed_forward_length", c.integer("intermediate_size", low=1))
    t.count("expert_gating_func", 2)
    t.ignore("*.mtp.*", "*mtp_modules*")
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "ffn_norm")
        b.linear("block_sparse_moe.gate", "ffn_gate_inp")
        b.vector("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias")
        b.experts("block_sparse_moe.experts", parts.n_expert(c), ("w1", "w3", "w2"))
