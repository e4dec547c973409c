"""gpt-oss: sinks, windows on every other layer, biases everywhere, a clamped activation.

The softmax of the router runs over the chosen experts. YaRN's bounds were published without rounding; GGUF
engines round them, and so does ikq unless told otherwise.
"""

from __future__ import annotations

from ikq.models.attention import gqa, has_window
from ikq.models.ffn import moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec, Rope

__all__ = ["build"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `gpt-oss`."""
    width = source.keys.integer("attention.sliding_window", low=1)

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 2)
        other_base = windowed and block.keys.has("rope.freq_base_swa")
        base = block.keys.number("rope.freq_base_swa", positive=True) if other_base else None

        def rotation(block: Block, head_dim: int) -> Rope:
            return rope(block, "neox", head_dim, base=base)

        attention = gqa(block, rotation, window=width if windowed else None, sinks=True)
        ffn = moe_ffn(block, func="softmax_chosen", normalize=False, activation="swiglu_oai")
        return standard_layer(block, attention, ffn, ffn_norm="post_attention_norm")

    return source.model(layer)
