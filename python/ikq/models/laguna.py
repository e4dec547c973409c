"""Laguna: gated attention, windows with heads and a rotation of their own, experts chosen by sigmoids."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.target import Target
from ikq.files.gguf import Typed
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe, Rope

__all__ = ["build", "convert"]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `laguna`."""
    keys = source.keys
    window = keys.integer("attention.sliding_window", 0)

    def layer(block: Block) -> Layer:
        windowed = window > 0 and has_window(block, 4, whole="first")

        def rotation(block: Block, head_dim: int) -> Rope:
            if not windowed:
                return rope(block, "neox", head_dim)
            base = keys.number("rope.freq_base", 10000.0, positive=True)
            n_rot = keys.integer("rope.dimension_count", head_dim, low=2)
            return rope(
                block,
                "neox",
                head_dim,
                n_rot=keys.integer("rope.dimension_count_swa", n_rot, low=2),
                base=keys.number("rope.freq_base_swa", base, positive=True),
                scaled=False,
            )

        attention = gqa(
            block, rotation, qk_norm=True, window=window if windowed else None, gate_func="softplus"
        )
        ffn: DenseFfn | Moe
        if is_leading_dense(block):
            ffn = dense_ffn(block)
        else:
            ffn = moe_ffn(block, func="sigmoid", normalize=False, shared="plain")
        return standard_layer(block, attention, ffn)

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Laguna: experts are stacked.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, or of routing, that such files do not have.
    """
    c = t.config
    n = c.integer("num_hidden_layers", low=1)
    parts.only(c, "moe_apply_router_weight_on_input", False)
    parts.only(c, "moe_router_logit_softcapping", 0, 0.0)
    kinds = c.texts("layer_types") or [_FULL] * n
    heads = c.get("num_attention_heads_per_layer") or [c.integer("num_attention_heads", low=1)] * n
    if len(kinds) != n:
        raise c.wrong("layer_types", f"a kind for each of {n} layers")
    if not isinstance(heads, list) or len(heads) != n or any(type(h) is not int or h < 1 for h in heads):
        raise c.wrong("num_attention_heads_per_layer", f"a number for each of {n} layers")
    parts.common_keys(t)
    t.count("vocab_size", c.integer("vocab_size", low=1))
    t.key("attention.head_count", Typed(heads, "array[uint32]"))
    if _SLIDING in kinds:
        t.count("attention.sliding_window", c.integer("sliding_window", low=1))
        t.key("attention.sliding_window_pattern", Typed([k == _SLIDING for k in kinds], "array[bool]"))
    _rope_keys(t, kinds)
    parts.moe_keys(t)
    t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    t.count("expert_shared_feed_forward_length", c.integer("shared_expert_intermediate_size", low=1))
    t.key("expert_weights_norm", True)
    t.number("expert_weights_scale", c.number("moe_routed_scaling_factor", default=1.0))
    t.count("expert_gating_func", 2)
    n_dense = _n_leading_dense(c, n)
    t.count("leading_dense_block_count", n_dense)
    parts.embeddings(t)
    head_dim = c.integer("head_dim", low=1)
    for i in range(n):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b, n_head=heads[i])
        rows = heads[i] * (head_dim if c.get("gating") == "per-element" else 1)
        b.linear("self_attn.g_proj", "attn_gate", (rows, c.integer("hidden_size")))
        b.norm("post_attention_layernorm", "ffn_norm")
        if i < n_dense:
            parts.dense_ffn(b)
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.vector("mlp.experts.e_score_correction_bias", "exp_probs_b.bias")
        b.experts("mlp.experts", parts.n_expert(c))
        parts.shared_ffn(b, "mlp.shared_expert")


def _n_leading_dense(c: Config, n: int) -> int:
    """Layers without experts, which must be the first ones."""
    kinds = c.texts("mlp_layer_types") or ["dense"] + ["sparse"] * (n - 1)
    n_dense = kinds.count("dense")
    if len(kinds) != n or kinds != ["dense"] * n_dense + ["sparse"] * (n - n_dense):
        raise c.wrong("mlp_layer_types", f"dense layers and then sparse ones, {n} in all")
    return n_dense


def _rope_keys(t: Target, kinds: list[str]) -> None:
    """Rotation of layers that see everything, and of those with a window."""
    c = t.config
    head_dim = c.integer("head_dim", low=2)
    parts.rope_keys(t, _FULL)
    share = c.rope(_FULL).number("partial_rotary_factor", default=1.0)
    t.count("rope.dimension_count", int(head_dim * share))
    if _SLIDING not in kinds:
        return
    sliding = c.rope(_SLIDING)
    parts.only(sliding, "rope_type", "default")
    t.number("rope.freq_base_swa", sliding.number("rope_theta", default=10000.0))
    share = sliding.number("partial_rotary_factor", default=1.0)
    t.count("rope.dimension_count_swa", int(head_dim * share))
