"""Hunyuan-A13B: norms of queries and keys behind the rotation, experts beside an FFN for all tokens."""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.target import Target
from ikq.models.attention import gqa
from ikq.models.ffn import moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `hunyuan-moe`."""

    def layer(block: Block) -> Layer:
        attention = gqa(block, lambda b, head_dim: rope(b, "neox", head_dim), qk_norm="rotated_head")
        return standard_layer(block, attention, moe_ffn(block, normalize=True, shared="plain"))

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of Hunyuan-A13B: experts are stacked, the base of the rotation is scaled.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have, or layers that differ.
    """
    c = t.config
    for name, value in (
        ("use_cla", False),
        ("use_mla", False),
        ("use_qk_norm", True),
        ("norm_topk_prob", True),
    ):
        parts.only(c, name, value)
    parts.common_keys(t)
    t.count("expert_count", parts.n_expert(c))
    t.count("expert_used_count", _same(c, "moe_topk", "num_experts_per_tok"))
    n_ff = c.integer("intermediate_size", low=1)
    t.count("expert_feed_forward_length", _same(c, "moe_intermediate_size", default=n_ff))
    n_shared = _same(c, "num_shared_expert", default=1)
    t.count("expert_shared_count", n_shared)
    t.count("expert_shared_feed_forward_length", n_ff * n_shared)
    _rope_keys(t)
    parts.embeddings(t)
    for i in range(c.integer("num_hidden_layers")):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        for part in ("q", "k"):
            b.norm(f"self_attn.{'query' if part == 'q' else 'key'}_layernorm", f"attn_{part}_norm")
        b.norm("post_attention_layernorm", "ffn_norm")
        b.linear("mlp.gate.wg", "ffn_gate_inp")
        b.experts("mlp.experts", parts.n_expert(c))
        parts.shared_ffn(b, "mlp.shared_mlp")


def _same(c: Config, *names: str, default: int | None = None) -> int:
    """A number that may be given once for every layer.

    Raises:
        FormatError: layers differ, or it is no number.
    """
    value = c.get(*names)
    if isinstance(value, list) and value:
        if any(v != value[0] for v in value):
            raise c.wrong(names[0], "the same number for all layers")
        value = value[0]
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < 2**31:
        raise c.wrong(names[0], "a number above 0")
    return value


def _rope_keys(t: Target) -> None:
    """The base of the rotation, which `alpha` makes larger."""
    c, rope = t.config, t.config.rope()
    alpha = rope.number("alpha", default=0.0)
    if rope.get("rope_type") != "dynamic" or not alpha:
        parts.rope_keys(t)
        return
    d = c.integer("head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1))
    base = rope.number("rope_theta", default=10000.0)
    t.number("rope.freq_base", base * alpha ** (d / (d - 2)))
    t.key("rope.scaling.type", "none")
    if alpha == 1000 and d == 128:
        # what the published model was trained for; its `config.json` says less
        t.count("context_length", 262144)
