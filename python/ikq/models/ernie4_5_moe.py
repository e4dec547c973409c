"""ERNIE 4.5 with experts: softmax routing with a bias of the choice, leading dense layers."""

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
    """The model of a file of architecture `ernie4_5-moe`."""
    step = source.keys.integer("interleave_moe_layer_step", 1, low=1)

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "norm", head_dim))
        ffn: DenseFfn | Moe
        if is_leading_dense(block) or (block.index + 1) % step:
            ffn = dense_ffn(block)
        else:
            # the key of the shared width is right by coincidence only
            ffn = moe_ffn(block, normalize=True, shared="plain", shared_width="count")
        return standard_layer(block, attention, ffn)

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Ernie 4.5 with experts.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.moe_keys(t)
    first, step = (
        c.integer("moe_layer_start_index", default=0),
        c.integer("moe_layer_interval", default=1, low=1),
    )
    width, n_shared = (
        c.integer("moe_intermediate_size", low=1),
        c.integer("moe_num_shared_experts", default=0),
    )
    t.count("interleave_moe_layer_step", step)
    t.count("leading_dense_block_count", first)
    t.count("expert_feed_forward_length", width)
    t.count("expert_shared_count", n_shared)
    if n_shared:
        t.count("expert_shared_feed_forward_length", width * n_shared)
    # heads that predict further tokens have no place in files of this architecture
    t.ignore("*.mtp_*")
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "ffn_norm")
        if i < first or (i + 1) % step:
            parts.dense_ffn(b)
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.experts("mlp.experts", parts.n_expert(c))
        bias = b.weights.matrix(f"{b.source}mlp.moe_statics.e_score_correction_bias")
        t.add(b.name("exp_probs_b.bias"), bias, (1, parts.n_expert(c)))
        if n_shared:
            parts.shared_ffn(b, "mlp.shared_experts")
