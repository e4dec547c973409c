"""Seed-OSS: layers like those of Qwen2; the length of a head is free."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `seed_oss`."""

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim))
        return standard_layer(block, attention, dense_ffn(block), ffn_norm="post_attention_norm")

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Seed-OSS.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.embeddings(t)
    for i in range(t.config.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "post_attention_norm")
        parts.dense_ffn(b)
