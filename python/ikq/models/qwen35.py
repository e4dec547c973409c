"""Qwen3.5 and 3.6 without experts: the layers of Qwen3.5-MoE with a plain FFN in each."""

from __future__ import annotations

from ikq.checkpoint.target import Target
from ikq.models.delta_net import build_hybrid, convert_hybrid
from ikq.models.source import Source
from ikq.models.spec import ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `qwen35`."""
    return build_hybrid(source, dense=True)


def convert(t: Target) -> None:
    """A checkpoint of Qwen3.5: value heads are put in the order of its files.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    convert_hybrid(t, tiled=True, dense=True)
