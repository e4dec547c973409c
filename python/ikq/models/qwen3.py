"""Qwen3: norms on the heads of queries and keys; the length of a head is free."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa, note_unused_window
from ikq.models.ffn import dense_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `qwen3`."""

    def layer(block: Block) -> Layer:
        note_unused_window(block)
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim), qk_norm=True)
        return standard_layer(block, attention, dense_ffn(block))

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Qwen3.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    parts.dense_model(t)
