"""Qwen3.5-MoE: as Qwen3-Next, with betas and alphas apart and value heads in tiled order.

The rotation has sections; for text they hold the same position, which leaves the plain rotation.
"""

from ikq.models.delta_net import build_hybrid as build

__all__ = ["build"]
