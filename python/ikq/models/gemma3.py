"""Gemma 3: norms around both branches, windows on five layers of six, scaled embeddings, tied output.

Layers with a window have a rotary base of their own. Weights of norms hold the published 1 + w already.
"""

from __future__ import annotations

import math

from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec, Rope

__all__ = ["build"]

_WINDOW_BASE = 10000.0
# no key says how the 27B model scales its scores; its number of layers tells it from the others
_N_LAYER_27B = 62


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `gemma3`."""
    keys = source.keys
    width = keys.integer("attention.sliding_window", low=1)

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 6)
        base = keys.number("rope.freq_base_swa", _WINDOW_BASE, positive=True) if windowed else None

        def rotation(block: Block, head_dim: int) -> Rope:
            return rope(block, "neox", head_dim, base=base, scaled=not windowed)

        scale = None
        if source.n_layer == _N_LAYER_27B and not keys.number("attention.scale", 0.0):
            scale = 1 / math.sqrt(source.n_embd / block.integer("attention.head_count"))
            block.note(f"{_N_LAYER_27B} layers: scores are scaled as in the model of 27B parameters")
        return Layer(
            attention_norm=block.norm("attn_norm"),
            attention=gqa(block, rotation, qk_norm=True, window=width if windowed else None, scale=scale),
            ffn_norm=block.norm("ffn_norm"),
            ffn=dense_ffn(block, "gelu_tanh"),
            post_attention_norm=block.norm("post_attention_norm"),
            post_ffn_norm=block.norm("post_ffw_norm"),
        )

    return source.model(layer, embd_scale=math.sqrt(source.n_embd))
