"""Gemma 3: norms around both branches, windows on five layers of six, scaled embeddings, tied output.

Layers with a window have a rotary base of their own. Weights of norms hold the published 1 + w already.
"""

from __future__ import annotations

import math

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec, Rope

__all__ = ["build", "convert"]

_WINDOW_BASE = 10000.0
# no key says how the 27B model scales its scores; its number of layers tells it from the others
_N_LAYER_27B = 62


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `gemma3`."""
    keys = source.keys
    width = keys.integer("attention.sliding_window", low=1)

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 6)
        base = keys.number("rope.freq_base_swa", _WINDOW_BASE, positive=True) if windowed else None

        def rotation(block: Block, head_dim: int) -> Rope:
            return rope(block, "neox", head_dim, base=base, scaled=not windowed)

        scale = None
        if source.n_layer == _N_LAYER_27B and not keys.number("attention.scale", 0.0):
            scale = 1 / math.sqrt(source.n_embd / block.integer("attention.head_count"))
            block.note(f"{_N_LAYER_27B} layers: scores are scaled as in the model of 27B parameters")
        return Layer(
            attention_norm=block.norm("attn_norm"),
            attention=gqa(block, rotation, qk_norm=True, window=width if windowed else None, scale=scale),
            ffn_norm=block.norm("ffn_norm"),
            ffn=dense_ffn(block, "gelu_tanh"),
            post_attention_norm=block.norm("post_attention_norm"),
            post_ffn_norm=block.norm("post_ffw_norm"),
        )

    return source.model(layer, embd_scale=math.sqrt(source.n_embd))


# of the model's class: published files leave these out
_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def convert(t: Target) -> None:
    """A checkpoint of Gemma 3: weights of norms get the 1 that the source adds when it runs.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config = t.config.with_defaults(_DEFAULTS)
    parts.common_keys(t, activation="gelu_pytorch_tanh")
    parts.rope_keys(t, "full_attention")
    head_dim = c.integer("head_dim")
    newer = c.get("rope_parameters")
    local = newer.get("sliding_attention") if isinstance(newer, dict) else None
    base = c.number("rope_local_base_freq", default=_WINDOW_BASE)
    if isinstance(local, dict):
        base = c.rope("sliding_attention").number("rope_theta", default=base)
    t.number("rope.freq_base_swa", base)
    t.count("attention.sliding_window", c.integer("sliding_window", low=1))
    if c.has("final_logit_softcapping"):
        t.number("final_logit_softcapping", c.number("final_logit_softcapping"))
    own = c.number("query_pre_attn_scalar", default=float(head_dim))
    if own != head_dim:
        t.number("attention.scale", 1 / math.sqrt(own))
    kinds = c.texts("layer_types")
    windowed = [kind == "sliding_attention" for kind in kinds]
    if windowed != [(i + 1) % 6 != 0 for i in range(len(kinds))]:
        t.key("attention.sliding_window_pattern", windowed)
    t.ignore("*vision_tower.*", "*multi_modal_projector.*")
    parts.embeddings(t, plus=1.0)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm", plus=1.0)
        parts.attention(b, norm_plus=1.0)
        b.norm("post_attention_layernorm", "post_attention_norm", plus=1.0)
        b.norm("pre_feedforward_layernorm", "ffn_norm", plus=1.0)
        parts.dense_ffn(b)
        b.norm("post_feedforward_layernorm", "post_ffw_norm", plus=1.0)
