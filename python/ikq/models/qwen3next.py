"""Qwen3-Next: three recurrent layers of four, gated attention, experts with a gated shared one.

Value heads of a key head stand side by side (`ssm_ba`). Weights of norms hold the published 1 + w already,
except `ssm_norm`, which has no 1.
"""

from __future__ import annotations

from ikq.checkpoint.target import Target
from ikq.models.delta_net import build_hybrid as build
from ikq.models.delta_net import convert_hybrid

__all__ = ["build", "convert"]


def convert(t: Target) -> None:
    """A checkpoint of Qwen3-Next: value heads stay as they are.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    convert_hybrid(t, tiled=False)
