"""Mistral 4: DeepSeek's latent attention and experts, with queries that grow with the position."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models import deepseek2
from ikq.models.source import Source
from ikq.models.spec import ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `mistral4`."""
    return deepseek2.build(source)


def convert(t: Target) -> None:
    """A checkpoint of Mistral 4; vision is left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have, or another Mistral.
    """
    c = t.config
    parts.only(c, "model_type", "mistral4", "mistral4_text")
    parts.only(c, "rope_interleave", True)
    deepseek2.convert(t)
    scale = c.rope().number("llama_4_scaling_beta", default=0.0)
    if scale:
        t.number("attention.temperature_scale", scale)
        t.count("attention.temperature_length", c.rope().integer("original_max_position_embeddings", low=1))
    t.ignore("*vision_tower.*", "*multi_modal_projector.*")
