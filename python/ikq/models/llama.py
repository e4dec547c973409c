"""Llama 1 to 3, Mistral, and Mixtral's mixture of experts under the same name.

The converter has permuted the rows of queries and keys, so that neighbouring elements are rotated together.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa, note_unused_window
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `llama`."""
    has_experts = source.keys.integer("expert_count", 0) > 0
    # old files of Mixtral call the width of an expert that of the FFN
    newer = source.keys.has("expert_feed_forward_length")
    width_key = "expert_feed_forward_length" if newer else "feed_forward_length"

    def layer(block: Block) -> Layer:
        note_unused_window(block)
        attention = gqa(block, lambda b, head_dim: rope(b, "norm", head_dim))
        ffn = moe_ffn(block, normalize=True, width_key=width_key) if has_experts else dense_ffn(block)
        return standard_layer(block, attention, ffn)

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Llama, Mistral or Mixtral: rows of queries and keys are permuted.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    n = parts.n_expert(c)
    parts.common_keys(t)
    parts.rope_keys(t, llama3=True)
    if c.texts("architectures") != ["LlamaForCausalLM"]:
        parts.no_window(c)  # Llama has the key at most by mistake
    if n:
        parts.moe_keys(t)
    t.count("vocab_size", c.integer("vocab_size", low=1))
    head_dim = c.integer(
        "head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1)
    )
    t.count("rope.dimension_count", head_dim)
    parts.llama3_factors(t, head_dim)
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b, permute=True)
        b.norm("post_attention_layernorm", "ffn_norm")
        if not n:
            parts.dense_ffn(b)
        elif b.has("block_sparse_moe.gate.weight"):
            b.linear("block_sparse_moe.gate", "ffn_gate_inp")
            b.experts("block_sparse_moe.experts", n, ("w1", "w3", "w2"))
        else:
            b.linear("mlp.gate", "ffn_gate_inp")
            b.experts("mlp.experts", n)
