"""Qwen3-Next: three recurrent layers of four, gated attention, experts with a gated shared one.

Value heads of a key head stand side by side (`ssm_ba`). Weights of norms hold the published 1 + w already,
except `ssm_norm`, which has no 1.
"""

from ikq.models.delta_net import build_hybrid as build

__all__ = ["build"]
