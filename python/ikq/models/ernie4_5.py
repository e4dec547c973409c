"""ERNIE 4.5 without experts: plain layers whose neighbouring elements are rotated together."""

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
    """The model of a file of architecture `ernie4_5`."""

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "norm", head_dim))
        return standard_layer(block, attention, dense_ffn(block))

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of ERNIE 4.5 without experts.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    parts.dense_model(t)
