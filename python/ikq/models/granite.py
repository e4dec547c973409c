"""Granite 3, without experts and with them: factors of embeddings, scores, branches and logits.

The converter has permuted the rows of queries and keys, so that neighbouring elements are rotated together.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import UnsupportedError
from ikq.models.attention import gqa
from ikq.models.ffn import SharedExpert, dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `granite` or `granitemoe`."""
    keys = source.keys
    if not keys.flag("rope.scaling.finetuned", True):
        raise UnsupportedError(
            f"architecture `{keys.architecture}`: key `{keys.full_name('rope.scaling.finetuned')}` is false: "
            "models without positions are not supported"
        )
    factor = keys.number("residual_scale", 0.0) or 1.0
    has_experts = keys.integer("expert_count", 0) > 0

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "norm", head_dim))
        shared: SharedExpert = "plain" if block.has("ffn_up_shexp.weight") else "none"
        width = "feed_forward_length"
        if has_experts:
            ffn = moe_ffn(block, normalize=True, shared=shared, width_key=width)
            return standard_layer(block, attention, ffn, factors=(factor, factor))
        return standard_layer(block, attention, dense_ffn(block), factors=(factor, factor))

    return source.model(
        layer,
        embd_scale=keys.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1 / keys.number("logit_scale", positive=True),
    )


def convert(t: Target) -> None:
    """A checkpoint of Granite or GraniteMoe: rows of queries and keys are permuted, merged experts parted.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, or of position, that such files do not have.
    """
    c = t.config
    n, n_shared = parts.n_expert(c), c.integer("shared_intermediate_size", default=0)
    parts.only(c, "position_embedding_type", "rope")
    parts.common_keys(t)
    parts.rope_keys(t)
    if n:
        parts.moe_keys(t)
    if n_shared:
        t.count("expert_shared_feed_forward_length", n_shared)
    for name, key in (
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
    ):
        if c.has(name):
            t.number(key, c.number(name))
    t.number("logit_scale", c.number("logits_scaling", default=1.0))
    t.count("vocab_size", c.integer("vocab_size", low=1))
    head_dim = c.integer(
        "head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1)
    )
    t.count("rope.dimension_count", head_dim)
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b, permute=True)
        b.norm("post_attention_layernorm", "ffn_norm")
        if n:
            b.linear("block_sparse_moe.router.layer", "ffn_gate_inp")
            merged, down = (f"block_sparse_moe.{part}_linear.weight" for part in ("input", "output"))
            b.merged_experts(merged, down, n)
        elif not n_shared:
            parts.dense_ffn(b)
        if n_shared:
            _shared(b, n_shared, "_shexp" if n else "")


def _shared(b: BlockTarget, n_ff: int, suffix: str) -> None:
    """The FFN that every token takes: gate and up are one matrix."""
    n_embd = b.config.integer("hidden_size")
    for part, first in (("gate", 0), ("up", n_ff)):
        b.rows("shared_mlp.input_linear", f"ffn_{part}{suffix}", (2 * n_ff, n_embd), first, n_ff)
    b.linear("shared_mlp.output_linear", f"ffn_down{suffix}", (n_embd, n_ff))
