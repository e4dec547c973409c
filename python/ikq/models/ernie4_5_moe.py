"""ERNIE 4.5 with experts: softmax routing with a bias of the choice, leading dense layers."""

from __future__ import annotations

from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe

__all__ = ["build"]


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
