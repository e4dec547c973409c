"""Step-3.5 and 3.7: windows with heads and a rotation of their own, gates per head, limits of activations.

Layers that see everything rotate half of a head. Experts are chosen by sigmoids with a bias.
"""

from __future__ import annotations

from typing import Literal

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.target import BlockTarget, Target
from ikq.files.gguf import Typed
from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe, Rope

__all__ = ["build", "convert"]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `step35`."""
    keys = source.keys
    window = keys.integer("attention.sliding_window", low=1)
    limits = keys.numbers("swiglu_clamp_exp", source.n_block, 0.0)
    shared_limits = keys.numbers("swiglu_clamp_shexp", source.n_block, 0.0)

    def layer(block: Block) -> Layer:
        windowed = bool(block.flag("attention.sliding_window_pattern"))

        def rotation(block: Block, head_dim: int) -> Rope:
            n_rot = keys.integer("rope.dimension_count", head_dim, low=2)
            base = keys.number("rope.freq_base_swa", positive=True) if windowed else None
            return rope(
                block,
                "neox",
                head_dim,
                n_rot=n_rot if windowed else n_rot // 2,
                base=base,
                scaled=not windowed,
                n_factors=n_rot // 2,
            )

        gate: Literal["sigmoid"] | None = "sigmoid" if block.has("attn_gate.weight") else None
        attention = gqa(block, rotation, window=window if windowed else None, gate_func=gate)
        both = (limits[block.index] or None, shared_limits[block.index] or None)
        ffn: DenseFfn | Moe
        if block.has("ffn_gate_inp.weight"):
            ffn = moe_ffn(block, func="sigmoid", normalize=False, shared="plain", limits=both)
        else:
            ffn = dense_ffn(block, limit=both[1])
        return standard_layer(block, attention, ffn)

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Step-3.5 or 3.7: norms get their 1; heads for further tokens are left out, and vision.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    n = c.integer("num_hidden_layers", low=1)
    kinds = (c.texts("layer_types") or [_FULL] * n)[:n]
    if len(kinds) < n:
        raise c.wrong("layer_types", f"a kind for each of {n} layers")
    heads = _heads(c)
    parts.common_keys(t)
    _rope_keys(t, kinds)
    per_block = [heads[kind == _SLIDING] for kind in kinds]
    t.key("attention.head_count", Typed([q for q, _ in per_block], "array[uint32]"))
    t.key("attention.head_count_kv", Typed([kv for _, kv in per_block], "array[uint32]"))
    t.count("attention.sliding_window", c.integer("sliding_window", low=1))
    t.key("attention.sliding_window_pattern", Typed([kind == _SLIDING for kind in kinds], "array[bool]"))
    width, n_expert = c.integer("moe_intermediate_size", low=1), parts.n_expert(c)
    n_shared = c.integer("share_expert_dim", "share_expert_dims", low=1)
    t.count("expert_count", n_expert)
    t.count("expert_used_count", c.integer("moe_top_k", "num_experts_per_tok", low=1))
    t.count("expert_feed_forward_length", width)
    t.count("expert_shared_feed_forward_length", n_shared)
    t.count("expert_gating_func", 2)
    t.number("expert_weights_scale", c.number("moe_router_scaling_factor", default=1.0))
    t.key("expert_weights_norm", True)
    parts.only(c, "moe_router_activation", "sigmoid")
    dense = _dense_layers(c, n)
    t.count("leading_dense_block_count", next((i for i in range(n) if i not in dense), n))
    for name, key in (("swiglu_limits", "swiglu_clamp_exp"), ("swiglu_limits_shared", "swiglu_clamp_shexp")):
        if c.has(name):
            limits = (c.numbers(name, none=0.0) + [0.0] * n)[:n]
            t.key(key, Typed(limits, "array[float32]"))
    t.ignore("*vision_model.*", "*multi_modal_projector.*", "*vit_large_projector.*")
    t.ignore(*(f"{t.root}layers.{n + i}.*" for i in range(c.integer("num_nextn_predict_layers", default=0))))
    parts.embeddings(t, plus=1.0)
    for i in range(n):
        b = t.block(i)
        q, kv = per_block[i]
        b.norm("input_layernorm", "attn_norm", 1.0)
        parts.attention(b, norm_plus=1.0, n_head=q, n_head_kv=kv)
        b.linear("self_attn.g_proj", "attn_gate", (q, c.integer("hidden_size")))
        b.norm("post_attention_layernorm", "ffn_norm", 1.0)
        if i in dense:
            parts.dense_ffn(b)
        else:
            _experts(b, n_expert)


def _heads(c: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Query and key/value heads: of layers that see everything, and of those with a window."""
    q = c.integer("num_attention_heads", low=1)
    kv = c.integer("num_attention_groups", "num_key_value_heads", default=q, low=1)
    other = Config(c.path, c.get("attention_other_setting") or {})
    return (q, kv), (
        other.integer("num_attention_heads", default=c.integer("num_sliding_attention_heads", default=q)),
        other.integer("num_attention_groups", default=kv),
    )


def _dense_layers(c: Config, n: int) -> set[int]:
    """Layers without experts."""
    kinds = c.texts("mlp_layer_types")
    if kinds:
        return {i for i, kind in enumerate(kinds[:n]) if kind == "dense"}
    listed = c.get("moe_layers_enum")
    items = listed.split(",") if isinstance(listed, str) else listed
    if items is None:
        return set(range(min(3, n)))
    try:
        return set(range(n)) - {int(i) for i in items if str(i).strip()}
    except (TypeError, ValueError):
        raise c.wrong("moe_layers_enum", "numbers of layers") from None


def _rope_keys(t: Target, kinds: list[str]) -> None:
    """Bases of both kinds of layers; half of a head is rotated where everything is seen."""
    c = t.config
    head_dim = c.integer("head_dim", low=2)
    bases = {}
    scaling = Config(c.path, {})
    for kind, share in ((_FULL, 0.5), (_SLIDING, 1.0)):
        if kind not in kinds:
            continue
        own = c.per_kind(kind, kinds.index(kind))
        if own.number("partial_rotary_factor", default=share) != share:
            raise own.wrong("partial_rotary_factor", f"{share} in layers of {kind}")
        bases[kind] = own.number("rope_theta", default=10000.0)
        if kind == _FULL:
            scaling = own
    t.count("rope.dimension_count", head_dim)
    t.number("rope.freq_base", bases.get(_FULL, 10000.0))
    if _SLIDING in bases:
        t.number("rope.freq_base_swa", bases[_SLIDING])
    if scaling.get("rope_type") == "llama3":
        parts.llama3_factors(t, head_dim // 2, scaling, n_factors=head_dim // 2)
    else:
        parts.only(scaling, "rope_type", "default")


def _experts(b: BlockTarget, n_expert: int) -> None:
    """Router, experts and the FFN beside them, as published or as `transformers` has them in memory."""
    b.linear("moe.gate", "ffn_gate_inp")
    b.vector("moe.router_bias", "exp_probs_b.bias")
    b.stacked_experts("moe", n_expert)
    parts.shared_ffn(b, "share_expert")
