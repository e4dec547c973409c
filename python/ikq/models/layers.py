"""The layer that most architectures share."""

from __future__ import annotations

from ikq.models.source import Block
from ikq.models.spec import DeltaNet, DenseFfn, Gqa, Layer, Mla, Moe

__all__ = ["standard_layer"]


def standard_layer(
    block: Block,
    attention: Gqa | Mla | DeltaNet,
    ffn: DenseFfn | Moe,
    *,
    ffn_norm: str = "ffn_norm",
    factors: tuple[float, float] = (1.0, 1.0),
) -> Layer:
    """Two branches with a norm before each.

    Args:
        block: the layer.
        attention: its first branch.
        ffn: its second branch.
        ffn_norm: what the file calls the norm before the FFN.
        factors: of what the branches add.
    """
    of_attention, of_ffn = factors
    return Layer(
        attention_norm=block.norm("attn_norm"),
        attention=attention,
        ffn_norm=block.norm(ffn_norm),
        ffn=ffn,
        attention_factor=of_attention,
        ffn_factor=of_ffn,
    )
