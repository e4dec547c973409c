"""MiMo-V2: short, scaled values, windows with sinks and more key/value heads, sigmoid routing."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.target import Target
from ikq.files.gguf import Typed
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe, Rope

__all__ = ["build", "convert"]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `mimo2`."""
    keys = source.keys
    window = keys.integer("attention.sliding_window", low=1)
    value_scale = keys.number("attention.value_scale", 0.0) or 1.0

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 0)
        base = None
        if windowed and keys.has("rope.freq_base_swa"):
            base = keys.number("rope.freq_base_swa", positive=True)

        def rotation(block: Block, head_dim: int) -> Rope:
            return rope(block, "neox", head_dim, base=base)

        sinks = block.has("attn_sinks.weight")
        attention = gqa(block, rotation, window=window if windowed else None, sinks=sinks)
        ffn: DenseFfn | Moe
        if block.has("ffn_gate_inp.weight"):
            ffn = moe_ffn(block, func="sigmoid", normalize=True)
        else:
            ffn = dense_ffn(block)
        # values are only summed and projected, so that their factor is one of the result
        return standard_layer(block, attention, ffn, factors=(value_scale, 1.0))

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of MiMo-V2-Flash and its kin; heads that predict further tokens are left out.

    The window is what `sliding_window` says, the position itself counted, as GGUF engines have it.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: scoring, or layers with a window, that such files do not have.
    """
    c = t.config
    n = c.integer("num_hidden_layers", low=1)
    for name, values in (
        ("scoring_func", ("sigmoid",)),
        ("topk_method", ("noaux_tc",)),
        ("n_group", (1,)),
        ("norm_topk_prob", (True,)),
        ("routed_scaling_factor", (1, 1.0)),
        ("swa_head_dim", (c.get("head_dim"),)),
        ("swa_v_head_dim", (c.get("v_head_dim"),)),
        ("swa_num_attention_heads", (c.get("num_attention_heads"),)),
    ):
        parts.only(c, name, *values)
    windowed = _windowed(c, n)
    kv = c.integer("num_key_value_heads", low=1)
    kv_windowed = c.integer("swa_num_key_value_heads", default=2 * kv, low=1)
    parts.common_keys(t)
    head_dim, d_v = c.integer("head_dim", low=1), c.integer("v_head_dim", low=1)
    t.count("attention.value_length", d_v)
    per_block = [kv_windowed if w else kv for w in windowed]
    t.key("attention.head_count_kv", Typed(per_block, "array[uint32]"))
    t.count("attention.sliding_window", c.integer("sliding_window", "sliding_window_size", low=1))
    t.key("attention.sliding_window_pattern", Typed(windowed, "array[bool]"))
    t.number("attention.value_scale", c.number("attention_value_scale", default=1.0))
    _rope_keys(t, head_dim)
    parts.moe_keys(t)
    t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    t.count("expert_gating_func", 2)
    dense = _dense_layers(c, n)
    t.ignore(f"{t.root}mtp.*")
    parts.embeddings(t)
    for i in range(n):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b, n_head_kv=per_block[i], head_dim_v=d_v)
        if b.has("self_attn.attention_sink_bias"):
            b.vector("self_attn.attention_sink_bias", "attn_sinks.weight")
        b.norm("post_attention_layernorm", "ffn_norm")
        if i in dense:
            parts.dense_ffn(b)
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.vector("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")
        b.experts("mlp.experts", parts.n_expert(c))


def _windowed(c: Config, n: int) -> list[bool]:
    """Which layers have a window."""
    kinds = c.texts("layer_types")
    pattern = [kind == _SLIDING for kind in kinds] or c.get("hybrid_layer_pattern")
    if not isinstance(pattern, list) or len(pattern) != n or any(p not in (0, 1) for p in pattern):
        raise c.wrong("layer_types" if kinds else "hybrid_layer_pattern", f"a kind for each of {n} layers")
    return [bool(p) for p in pattern]


def _dense_layers(c: Config, n: int) -> set[int]:
    """Layers without experts."""
    kinds = c.texts("mlp_layer_types")
    sparse = [kind == "sparse" for kind in kinds] or c.get("moe_layer_freq")
    if not isinstance(sparse, list) or len(sparse) != n:
        raise c.wrong("mlp_layer_types" if kinds else "moe_layer_freq", f"a kind for each of {n} layers")
    return {i for i, has_experts in enumerate(sparse) if not has_experts}


def _rope_keys(t: Target, head_dim: int) -> None:
    c = t.config
    full, sliding = c.rope(_FULL), c.rope(_SLIDING)
    share = full.number("partial_rotary_factor", default=1.0)
    if sliding.number("partial_rotary_factor", default=share) != share:
        raise sliding.wrong("partial_rotary_factor", "the same in all layers")
    for own in (full, sliding):
        parts.only(own, "rope_type", "default")
    base = full.number("rope_theta", default=10000.0)
    t.number("rope.freq_base", base)
    other = sliding.number("rope_theta", default=base)
    t.number("rope.freq_base_swa", c.number("swa_rope_theta", default=other))
    t.count("rope.dimension_count", int(head_dim * share))
