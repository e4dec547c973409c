"""GLM-4.5, 4.5-Air and 4.6: half of a head rotated, sigmoid routing with a bias, leading dense layers.

Published files end with a block that predicts a further token (`nextn_predict_layers`), a head of its own.
"""

from __future__ import annotations

from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe

__all__ = ["build"]


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
