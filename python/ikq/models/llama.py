"""Llama 1 to 3, Mistral, and Mixtral's mixture of experts under the same name.

The converter has permuted the rows of queries and keys, so that neighbouring elements are rotated together.
"""

from __future__ import annotations

from ikq.models.attention import gqa, note_unused_window
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build"]


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
