"""gpt-oss: sinks, windows on every other layer, biases everywhere, a clamped activation.

The softmax of the router runs over the chosen experts. YaRN's bounds were published without rounding; GGUF
engines round them, and so does ikq unless told otherwise.
"""

from __future__ import annotations

from ikq.checkpoint import parts
from ikq.checkpoint.rows import Flat, RowRange, Transposed
from ikq.checkpoint.target import BlockRows, BlockTarget, Target
from ikq.errors import UnsupportedError
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, ModelSpec, Rope

__all__ = ["build", "convert"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `gpt-oss`."""
    width = source.keys.integer("attention.sliding_window", low=1)

    def layer(block: Block) -> Layer:
        windowed = has_window(block, 2)
        other_base = windowed and block.keys.has("rope.freq_base_swa")
        base = block.keys.number("rope.freq_base_swa", positive=True) if other_base else None

        def rotation(block: Block, head_dim: int) -> Rope:
            return rope(block, "neox", head_dim, base=base)

        attention = gqa(block, rotation, window=width if windowed else None, sinks=True)
        ffn = moe_ffn(block, func="softmax_chosen", normalize=False, activation="swiglu_oai")
        return standard_layer(block, attention, ffn, ffn_norm="post_attention_norm")

    return source.model(layer)


def convert(t: Target) -> None:
    """A checkpoint of gpt-oss: gate and up lie row by row in one matrix, as blocks of MXFP4 or transposed.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    parts.common_keys(t)
    parts.rope_keys(t)
    parts.moe_keys(t)
    n_layer = c.integer("num_hidden_layers", low=1)
    kinds = c.texts("layer_types")
    if kinds and kinds != [("sliding_attention", "full_attention")[i % 2] for i in range(n_layer)]:
        raise UnsupportedError(
            f"{c.path}: `layer_types` do not alternate, beginning with a window, as in all files of gpt-oss"
        )
    parts.only(c, "swiglu_limit", 7.0)
    t.count("attention.sliding_window", c.integer("sliding_window", low=1))
    t.count("expert_feed_forward_length", c.integer("intermediate_size", low=1))
    parts.embeddings(t)
    for i in range(n_layer):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        parts.attention(b)
        b.vector("self_attn.sinks", "attn_sinks.weight")
        b.norm("post_attention_layernorm", "post_attention_norm")
        b.linear("mlp.router", "ffn_gate_inp")
        _convert_experts(b, parts.n_expert(c))


def _convert_experts(b: BlockTarget, n_expert: int) -> None:
    c = b.config
    n_ff, n_embd = c.integer("intermediate_size", low=1), c.integer("hidden_size", low=1)
    # of each expert: even rows are gate, odd ones up
    places = {
        "gate": ("gate_up_proj", 0, 2, n_ff, n_embd),
        "up": ("gate_up_proj", 1, 2, n_ff, n_embd),
        "down": ("down_proj", 0, 1, n_embd, n_ff),
    }
    for part, (source, start, step, n_rows, n_per_row) in places.items():
        name = f"{b.source}mlp.experts.{source}"
        shape = (n_expert, n_rows, n_per_row)
        blocks = b.weights.mxfp4(name)
        target = b.name(f"ffn_{part}_exps")
        if blocks is not None:
            if (blocks.n_rows, blocks.n_per_row) != (n_expert * n_rows * step, n_per_row):
                raise c.wrong("intermediate_size", f"what `{name}_blocks` has")
            rows = RowRange(blocks, start, n_expert * n_rows, step)
            b.target.add(f"{target}.weight", rows, shape, blocks=BlockRows(blocks, start, step))
        else:
            stored = b.weights.matrix(name)
            if (stored.n_rows, stored.n_per_row) != (n_expert * n_per_row, n_rows * step):
                raise c.wrong("intermediate_size", f"what `{name}` has")
            b.target.add(f"{target}.weight", Transposed(stored, n_expert, start, step), shape)
        bias = b.weights.matrix(f"{name}_bias")
        if (bias.n_rows, bias.n_per_row) != (n_expert, n_rows * step):
            raise c.wrong("num_local_experts", f"what `{name}_bias` has")
        numbers = Flat(RowRange(Flat(bias, 1), start, n_expert * n_rows, step), n_rows)
        b.target.add(f"{target}.bias", numbers, (n_expert, n_rows))
