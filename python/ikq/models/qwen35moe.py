"""Qwen3.5-MoE: as Qwen3-Next, with betas and alphas apart and value heads in tiled order.

The rotation has sections; for text they hold the same position, which leaves the plain rotation.
"""

from __future__ import annotations

from ikq.checkpoint.target import Target
from ikq.models.delta_net import build_hybrid as build
from ikq.models.delta_net import convert_hybrid

__all__ = ["build", "convert"]


def convert(t: Target) -> None:
    """A checkpoint of Qwen3.5-MoE: value heads are put in the order of its files.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    convert_hybrid(t, tiled=True)
