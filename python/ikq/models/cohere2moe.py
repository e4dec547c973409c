"""Cohere2 with experts (North): attention and FFN read the same norm; some layers know no positions.

Layers with a window are rotated, and leading dense ones; the others do without positions. Experts and the FFN
that every token takes count half each.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import Target
from ikq.files.gguf import Typed
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn, is_leading_dense, moe_ffn
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe, Rope

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `cohere2moe`."""
    keys = source.keys
    window = keys.integer("attention.sliding_window", low=1)

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 4, whole="first")
        dense = is_leading_dense(block)

        def rotation(block: Block, head_dim: int) -> Rope | None:
            return rope(block, "norm", head_dim) if windowed or dense else None

        attention = gqa(block, rotation, window=window if windowed else None)
        ffn: DenseFfn | Moe
        factor = 1.0
        if dense:
            ffn = dense_ffn(block)
        else:
            ffn = moe_ffn(block, func="sigmoid", normalize=False, shared="plain")
            factor = 1.0 if ffn.shared is None else 0.5
        norm = block.norm("attn_norm")
        return Layer(norm, attention, norm, ffn, ffn_factor=factor, parallel=True)

    is_rms = keys.has("attention.layer_norm_rms_epsilon")
    return source.model(
        layer,
        logit_scale=keys.number("logit_scale", 0.0) or 1.0,
        norm_kind="rms" if is_rms else "layer",
    )


def convert(t: Target) -> None:
    """A checkpoint of Cohere2 with experts; blocks that predict further tokens are left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: routing or positions that such files do not have.
    """
    c = t.config
    n = c.integer("num_hidden_layers", low=1)
    parts.only(c, "expert_selection_fn", "sigmoid")
    parts.only(c, "shared_expert_combination_strategy", "average")
    kinds = c.texts("mlp_layer_types") or ["dense"] * c.integer("first_k_dense_replace", default=0)
    n_dense = kinds.count("dense")
    if kinds[:n_dense] != ["dense"] * n_dense:
        raise c.wrong("mlp_layer_types", "dense layers and then sparse ones")
    if n_dense:
        parts.only(c, "prefix_dense_sliding_window_pattern", 1)
    windows = c.texts("layer_types")
    if len(windows) != n:
        raise c.wrong("layer_types", f"a kind for each of {n} layers")
    parts.common_keys(t, rms=c.has("rms_norm_eps"))
    width = c.integer("intermediate_size", low=1)
    t.count("feed_forward_length", c.integer("prefix_dense_intermediate_size", default=width))
    parts.rope_keys(t)
    parts.moe_keys(t)
    n_shared = c.integer("num_shared_experts", default=0)
    t.number("logit_scale", c.number("logit_scale", default=1.0))
    t.count("attention.sliding_window", c.integer("sliding_window", low=1))
    pattern = [kind == "sliding_attention" for kind in windows]
    t.key("attention.sliding_window_pattern", Typed(pattern, "array[bool]"))
    t.count("vocab_size", c.integer("vocab_size", low=1))
    t.count("expert_feed_forward_length", width)
    t.count("leading_dense_block_count", n_dense)
    t.key("expert_weights_norm", c.flag("norm_topk_prob", default=True))
    t.count("expert_gating_func", 2)
    if n_shared:
        t.count("expert_shared_count", n_shared)
        t.count("expert_shared_feed_forward_length", width * n_shared)
    t.count("rope.dimension_count", c.integer("head_dim", low=2))
    t.ignore(*(f"{t.root}layers.{n + i}.*" for i in range(c.integer("num_nextn_predict_layers", default=0))))
    parts.embeddings(t)
    for i in range(n):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        if i < n_dense:
            parts.dense_ffn(b, c.integer("prefix_dense_intermediate_size", default=width))
            continue
        b.linear("mlp.gate", "ffn_gate_inp")
        b.experts("mlp.experts", parts.n_expert(c))
        if n_shared:
            parts.shared_ffn(b, "mlp.shared_experts")
