"""Gemma 4: as Gemma 3, with heads of two lengths, normed values, and what its sizes have besides.

The small models have embeddings of every layer's own and last layers that read the keys and values of
earlier ones. Some layers have no matrix of values: these are the keys before norm and rotation. The mixture
of experts adds a plain FFN, and both, and the router, have norms of their own. Scores have no factor. Of the
heads of layers without a window only some elements are rotated; factors of 1e30 in `rope_freqs.weight` leave
out the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.rows import Given
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import FormatError, UnsupportedError
from ikq.models.attention import gqa, has_window
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DenseFfn, Layer, LayerEmbedding, ModelSpec, Moe, PerLayer, Rope

__all__ = ["build", "convert"]

_WINDOW_BASE = 10000.0
# an angle divided by it is none
_NOT_ROTATED = 1e30


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `gemma4`."""
    keys = source.keys
    width = keys.integer("attention.sliding_window", low=1)
    n_shared = keys.integer("attention.shared_kv_layers", 0, high=source.n_layer - 1)
    windows = [has_window(Block(source, i), 6) for i in range(source.n_layer)]
    per_layer = _per_layer(source)

    def layer(block: Block) -> Layer:
        windowed, shares = windows[block.index], None
        if block.index >= source.n_layer - n_shared:
            shares = _shared_with(block, windows, source.n_layer - n_shared)

        def rotation(block: Block, head_dim: int) -> Rope:
            if not windowed:
                return rope(block, "neox", head_dim)
            n_rot = keys.integer("rope.dimension_count_swa", head_dim, low=2)
            base = keys.number("rope.freq_base_swa", _WINDOW_BASE, positive=True)
            return rope(block, "neox", head_dim, n_rot=n_rot, base=base, scaled=False)

        attention = gqa(
            block,
            rotation,
            qk_norm=True,
            window=width if windowed else None,
            scale=1.0,
            v_norm=True,
            shares=shares,
            lengths="_swa" if windowed else "",
        )
        ffn: DenseFfn | Moe
        if block.has("ffn_gate_inp.weight"):
            ffn_norm = block.norm("pre_ffw_norm_2")
            ffn = moe_ffn(block, normalize=True, activation="gelu_tanh", own_norms=True)
        else:
            ffn_norm, ffn = block.norm("ffn_norm"), dense_ffn(block, "gelu_tanh")
        return Layer(
            attention_norm=block.norm("attn_norm"),
            attention=attention,
            ffn_norm=ffn_norm,
            ffn=ffn,
            post_attention_norm=block.norm("post_attention_norm"),
            post_ffn_norm=block.norm("post_ffw_norm"),
            embedding=None if per_layer is None else _embedding(block, per_layer.n),
            scale=block.tensors.optional_vector(block.name("layer_output_scale.weight"), 1),
        )

    spec = source.model(layer, embd_scale=math.sqrt(source.n_embd))
    return dataclasses.replace(spec, per_layer=per_layer)


def _shared_with(block: Block, windows: list[bool], n_own: int) -> int:
    """The last layer of the same kind that has keys and values of its own.

    Raises:
        FormatError: there is none.
    """
    alike = [i for i in range(n_own) if windows[i] == windows[block.index]]
    if not alike:
        key = "attention.shared_kv_layers"
        raise block.keys.wrong(
            key, block.source.n_layer - n_own, f"less: layer {block.index} has none of its kind before it"
        )
    for part in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"):
        # files have them though nothing reads them
        block.tensors.unused.discard(block.name(part))
    return alike[-1]


def _per_layer(source: Source) -> PerLayer | None:
    n = source.keys.integer("embedding_length_per_layer_input", 0)
    if not n:
        return None
    tensors, n_all = source.tensors, n * source.n_layer
    embd, n_vocab = "per_layer_token_embd.weight", tensors.rows("token_embd.weight")
    if tensors.ne(embd) != (n_all, n_vocab, 1, 1):
        raise tensors.wrong(embd, f"{n_vocab} rows of {n} elements for each of {source.n_layer} layers")
    return PerLayer(
        n=n,
        embd=embd,
        embd_scale=math.sqrt(n),
        proj=tensors.linear("per_layer_model_proj", source.n_embd, n_all),
        proj_scale=1 / math.sqrt(source.n_embd),
        norm=tensors.vector("per_layer_proj_norm.weight", n),
        scale=1 / math.sqrt(2),
    )


def _embedding(block: Block, n: int) -> LayerEmbedding:
    return LayerEmbedding(
        gate=block.tensors.linear(block.name("inp_gate"), block.n_embd, n),
        proj=block.tensors.linear(block.name("proj"), n, block.n_embd),
        norm=block.norm("post_norm"),
    )


# of the model's class: published files leave these out
_DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
}


def convert(t: Target) -> None:
    """A checkpoint of Gemma 4; what it sees and hears with is left out.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling or attention that such files do not have.
    """
    c = t.config = t.config.with_defaults(_DEFAULTS)
    parts.common_keys(t, activation="gelu_pytorch_tanh")
    parts.only(c, "use_bidirectional_attention", "vision", None)
    n_layer = c.integer("num_hidden_layers")
    kinds = c.texts("layer_types") or [
        "full_attention" if (i + 1) % 6 == 0 or i == n_layer - 1 else "sliding_attention"
        for i in range(n_layer)
    ]
    if len(kinds) != n_layer:
        raise c.wrong("layer_types", f"one for each of {n_layer} layers")
    windows = [kind == "sliding_attention" for kind in kinds]
    n_shared = c.integer("num_kv_shared_layers")
    wide = n_shared if c.flag("use_double_wide_mlp", default=False) else 0
    heads = [_heads(c, i, windowed) for i, windowed in enumerate(windows)]
    _attention_keys(t, windows, heads)
    t.count("attention.shared_kv_layers", n_shared)
    n_extra = c.integer("hidden_size_per_layer_input")
    t.count("embedding_length_per_layer_input", n_extra)
    width = c.integer("intermediate_size", low=1)
    if wide:
        widths = [width * (2 if i >= n_layer - wide else 1) for i in range(n_layer)]
        t.key("feed_forward_length", widths)
    experts = c.flag("enable_moe_block", default=False)
    if experts:
        t.count("expert_count", parts.n_expert(c))
        t.count("expert_used_count", c.integer("top_k_experts", "num_experts_per_tok", low=1))
        t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    if c.has("final_logit_softcapping"):
        t.number("final_logit_softcapping", c.number("final_logit_softcapping"))
    t.ignore("*vision_tower.*", "*audio_tower.*", "*embed_vision.*", "*embed_audio.*")
    parts.embeddings(t)
    _rope_factors(t, windows, heads)
    if n_extra:
        t.linear(f"{t.root}embed_tokens_per_layer", "per_layer_token_embd")
        t.linear(f"{t.root}per_layer_model_projection", "per_layer_model_proj")
        t.norm(f"{t.root}per_layer_projection_norm.weight", "per_layer_proj_norm.weight")
    for i in range(n_layer):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        _convert_attention(b, *heads[i], shares=i >= n_layer - n_shared)
        b.norm("post_attention_layernorm", "post_attention_norm")
        b.norm("pre_feedforward_layernorm", "ffn_norm")
        parts.dense_ffn(b, width * (2 if i >= n_layer - wide else 1))
        if experts:
            _convert_experts(b)
        b.norm("post_feedforward_layernorm", "post_ffw_norm")
        if n_extra:
            b.linear("per_layer_input_gate", "inp_gate")
            b.linear("per_layer_projection", "proj")
            b.norm("post_per_layer_input_norm", "post_norm")
        if b.has("layer_scalar"):
            b.vector("layer_scalar", "layer_output_scale.weight")


def _heads(c: Config, layer: int, windowed: bool) -> tuple[int, int]:
    """Key/value heads of a layer, and their length.

    Raises:
        FormatError: `config.json` lacks them.
    """
    n_kv, length = c.integer("num_key_value_heads", low=1), c.integer("head_dim", low=1)
    if windowed:
        return n_kv, length
    of_layers = c.get("per_layer_config")
    if isinstance(of_layers, Mapping):
        own = of_layers.get(str(layer))
        own = Config(c.path, own if isinstance(own, Mapping) else {})
        return own.integer("num_key_value_heads", default=n_kv, low=1), own.integer(
            "head_dim", default=length, low=1
        )
    if c.flag("attention_k_eq_v", default=False):
        n_kv = c.integer("num_global_key_value_heads", default=n_kv, low=1)
    return n_kv, c.integer("global_head_dim", default=512, low=1)


def _attention_keys(t: Target, windows: list[bool], heads: list[tuple[int, int]]) -> None:
    c = t.config
    t.count("attention.sliding_window", c.integer("sliding_window", low=1))
    t.key("attention.sliding_window_pattern", windows)
    t.key("attention.head_count_kv", [n for n, _ in heads])
    full = [length for windowed, (_, length) in zip(windows, heads, strict=True) if not windowed]
    if len(set(full)) != 1:
        raise c.wrong("layer_types", "one with full attention, all with heads of one length")
    for part, length in (("", full[0]), ("_swa", c.integer("head_dim"))):
        t.count(f"attention.key_length{part}", length)
        t.count(f"attention.value_length{part}", length)
        t.count(f"rope.dimension_count{part}", length)
    for part, kind in (("", "full_attention"), ("_swa", "sliding_attention")):
        base = {"": 1e6, "_swa": _WINDOW_BASE}[part]
        t.number(f"rope.freq_base{part}", c.rope(kind).number("rope_theta", default=base))


def _rope_factors(t: Target, windows: list[bool], heads: list[tuple[int, int]]) -> None:
    """Factors that leave the last elements of a head as they are."""
    local, rope = (t.config.rope(kind) for kind in ("sliding_attention", "full_attention"))
    given = t.config.has("rope_parameters")
    form, plain = rope.get("rope_type"), local.get("rope_type")
    if given and (
        form != "proportional"
        or plain != "default"
        or rope.number("factor", default=1.0) != 1
        or local.number("partial_rotary_factor", default=1.0) != 1
    ):
        raise UnsupportedError(
            f"{t.config.path}: `rope_parameters` of kinds {form!r:.40} and {plain!r:.40} are not known for "
            "this architecture"
        )
    length = heads[windows.index(False)][1]
    n = int(length * rope.number("partial_rotary_factor", default=0.25) // 2)
    factors = np.full(length // 2, _NOT_ROTATED, np.float32)
    factors[:n] = 1
    t.add("rope_freqs.weight", Given(factors), (length // 2,))


def _convert_attention(b: BlockTarget, n_kv: int, length: int, *, shares: bool) -> None:
    c = b.config
    n_embd, n_head = c.integer("hidden_size"), c.integer("num_attention_heads", low=1)
    b.linear("self_attn.q_proj", "attn_q", (n_head * length, n_embd))
    b.norm("self_attn.q_norm", "attn_q_norm")
    if shares:
        # checkpoints have them though nothing reads them
        b.target.ignore(
            *(f"{b.source}self_attn.{part}.*" for part in ("k_proj", "v_proj", "k_norm", "v_norm"))
        )
    else:
        b.linear("self_attn.k_proj", "attn_k", (n_kv * length, n_embd))
        if b.has("self_attn.v_proj.weight"):
            b.linear("self_attn.v_proj", "attn_v", (n_kv * length, n_embd))
        b.norm("self_attn.k_norm", "attn_k_norm")
    b.linear("self_attn.o_proj", "attn_output", (n_embd, n_head * length))


def _convert_experts(b: BlockTarget) -> None:
    b.linear("router.proj", "ffn_gate_inp")
    b.vector("router.scale", "ffn_gate_inp.scale")
    _merged_experts(b, parts.n_expert(b.config))
    b.vector("router.per_expert_scale", "ffn_down_exps.scale")
    b.norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2")
    b.norm("post_feedforward_layernorm_1", "post_ffw_norm_1")
    b.norm("post_feedforward_layernorm_2", "post_ffw_norm_2")


def _merged_experts(b: BlockTarget, n_expert: int) -> None:
    """Gate and up stay in one tensor, as files of this architecture have them."""
    name = f"{b.source}experts.gate_up_proj"
    if not b.weights.has(name):
        b.experts("experts", n_expert)
        return
    for source, part in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
        name = f"{b.source}experts.{source}"
        matrix = b.weights.matrix(name)
        if len(b.weights.shape(name)) != 3 or b.weights.shape(name)[0] != n_expert:
            raise FormatError(
                f"tensor `{name}` has the shape {list(b.weights.shape(name))}, expected one matrix for "
                f"each of {n_expert} experts"
            )
        shape = (n_expert, matrix.n_rows // n_expert, matrix.n_per_row)
        b.target.add(b.name(f"ffn_{part}_exps.weight"), matrix, shape, from_fp8=b.weights.is_fp8(name))
