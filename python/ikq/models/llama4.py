"""Llama 4: three layers of four see chunks of positions, the fourth everything and knows no positions.

One expert is chosen for a token, and its input is multiplied with the sigmoid of the router. Within the first
chunk (8192 positions) chunks change nothing; longer contexts are refused, because kernels have no chunks.
"""

from __future__ import annotations

import dataclasses

from ikq.checkpoint import parts
from ikq.checkpoint.rows import RowRange, Stacked, Transposed
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import UnsupportedError
from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, ModelSpec, Moe, Rope, Temperature

__all__ = ["build", "convert"]

_CHUNK = 8192
_PERIOD = 4
# the large one has no norms of queries and keys; nothing else in a file says so
_EXPERTS_WITHOUT_NORM = 128


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `llama4`."""
    keys = source.keys
    if keys.integer("attention.sliding_window", _CHUNK) != _CHUNK:
        key = keys.full_name("attention.sliding_window")
        raise UnsupportedError(f"architecture `llama4`: chunks of {_CHUNK} positions only (key `{key}`)")
    normed = keys.integer("expert_count", low=1) != _EXPERTS_WITHOUT_NORM
    step = keys.integer("interleave_moe_layer_step", low=1)

    def layer(block: Block) -> Layer:
        rotated = (block.index + 1) % _PERIOD != 0

        def rotation(block: Block, head_dim: int) -> Rope | None:
            return rope(block, "norm", head_dim) if rotated else None

        attention = gqa(
            block,
            rotation,
            qk_norm="unit" if rotated and normed else False,
            temperature=None if rotated else Temperature(0.1, _CHUNK, 1),
        )
        ffn: DenseFfn | Moe
        if (block.index + 1) % step:
            ffn = dense_ffn(block)
        else:
            moe = moe_ffn(block, func="sigmoid", normalize=False, shared="plain", shared_width="unknown")
            ffn = dataclasses.replace(moe, weighs_input=True)
        return standard_layer(block, attention, ffn)

    if source.n_ctx_train > _CHUNK:
        source.notes.append(f"chunks of positions are not computed: contexts of at most {_CHUNK}")
    return dataclasses.replace(source.model(layer), n_ctx_most=_CHUNK)


def convert(t: Target) -> None:
    """A checkpoint of Llama 4: merged experts are parted and transposed; vision is left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: layers that such files do not have.
    """
    c = t.config
    n, n_expert = c.integer("num_hidden_layers", low=1), parts.n_expert(c)
    for name, value in (
        ("attention_chunk_size", _CHUNK),
        ("floor_scale", _CHUNK),
        ("attn_scale", 0.1),
        ("attn_temperature_tuning", True),
        ("no_rope_layer_interval", _PERIOD),
        ("use_qk_norm", n_expert != _EXPERTS_WITHOUT_NORM),
        ("no_rope_layers", [int((i + 1) % _PERIOD != 0) for i in range(n)]),
    ):
        if c.get(name) != []:  # an empty list is as none
            parts.only(c, name, value)
    step = c.integer("interleave_moe_layer_step", default=1, low=1)
    with_experts = list(range(step - 1, n, step))
    parts.only(c, "moe_layers", with_experts)
    parts.common_keys(t)
    width = c.integer("intermediate_size", low=1)
    t.count("feed_forward_length", c.integer("intermediate_size_mlp", default=width))
    parts.rope_keys(t, llama3=True)
    parts.moe_keys(t)
    t.count("vocab_size", c.integer("vocab_size", low=1))
    head_dim = c.integer(
        "head_dim", default=c.integer("hidden_size") // c.integer("num_attention_heads", low=1)
    )
    t.count("rope.dimension_count", head_dim)
    t.count("interleave_moe_layer_step", step)
    t.count("expert_feed_forward_length", width)
    parts.llama3_factors(t, head_dim)
    t.ignore("*vision_model.*", "*multi_modal_projector.*")
    parts.embeddings(t)
    for i in range(n):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.norm("post_attention_layernorm", "ffn_norm")
        if i in with_experts:
            b.linear("feed_forward.router", "ffn_gate_inp")
            _experts(b, n_expert, width)
            parts.shared_ffn(b, "feed_forward.shared_expert")
        else:
            parts.dense_ffn(b, c.integer("intermediate_size_mlp", default=width), "feed_forward")


def _experts(b: BlockTarget, n_expert: int, n_ff: int) -> None:
    """Gate and up side by side in one matrix for each expert, inputs first; downs as well."""
    n_embd = b.config.integer("hidden_size", low=1)
    module = f"{b.source}feed_forward.experts"
    both, down = (b.weights.matrix(f"{module}.{part}_proj") for part in ("gate_up", "down"))
    for matrix, shape in ((both, (n_expert * n_embd, 2 * n_ff)), (down, (n_expert * n_ff, n_embd))):
        if (matrix.n_rows, matrix.n_per_row) != shape:
            raise b.config.wrong("intermediate_size", f"what tensors of `{module}` have")
    turned = Transposed(both, n_expert)
    for i, part in enumerate(("gate", "up")):
        rows = Stacked([RowRange(turned, (2 * e + i) * n_ff, n_ff) for e in range(n_expert)])
        b.target.add(b.name(f"ffn_{part}_exps.weight"), rows, (n_expert, n_ff, n_embd))
    b.target.add(b.name("ffn_down_exps.weight"), Transposed(down, n_expert), (n_expert, n_embd, n_ff))
