"""Models with recurrent layers: which layers those are, and the gated delta-net from its tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint import parts
from ikq.checkpoint.rows import Columns, Computed, Flat, Matrix, Permuted
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import FormatError
from ikq.files.gguf import Typed
from ikq.models.attention import gqa
from ikq.models.ffn import dense_ffn, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DeltaNet, DenseFfn, Gqa, Layer, Linear, ModelSpec, Moe, Rope

__all__ = ["build_hybrid", "convert_hybrid", "delta_net"]


# of text models whose `config.json` does not give it
_SECTIONS = [11, 11, 10]


def build_hybrid(source: Source, *, dense: bool = False) -> ModelSpec:
    """Recurrent layers with gated full attention between them.

    Args:
        source: the file.
        dense: each layer has a plain FFN, not a mixture of experts.
    """

    def rotation(block: Block, head_dim: int) -> Rope:
        return rope(block, "neox", head_dim, sections="interleaved")

    def layer(block: Block) -> Layer:
        attention: DeltaNet | Gqa
        if _is_recurrent(block):
            attention = delta_net(block)
        else:
            attention = gqa(block, rotation, qk_norm=True, output_gate=True)
        ffn: DenseFfn | Moe
        ffn = dense_ffn(block) if dense else moe_ffn(block, normalize=True, shared="gated")
        return standard_layer(block, attention, ffn, ffn_norm="post_attention_norm")

    return source.model(layer)


def _is_recurrent(block: Block) -> bool:
    if block.index >= block.source.n_layer:  # a block that predicts further tokens
        return False
    key = "attention.recurrent_layers"
    flag = block.flag(key)
    if flag is not None:
        return flag
    if block.keys.has(key):
        raise block.keys.wrong(key, "one value", "one truth value per block")
    return (block.index + 1) % block.keys.integer("full_attention_interval", 4, low=1) != 0


def delta_net(block: Block) -> DeltaNet:
    """The recurrent part of a layer.

    `ssm_ba` or `ssm_in` tell that value heads of a key head stand side by side, `ssm_beta` and `ssm_alpha`
    that the key heads alternate.

    Raises:
        FormatError: a tensor or key is missing, or they do not fit together.
    """
    keys, tensors, n_embd = block.keys, block.tensors, block.n_embd
    n_head_k = keys.integer("ssm.group_count", low=1)
    n_head_v = keys.integer("ssm.time_step_rank", low=1)
    head_dim_k = keys.integer("ssm.state_size", low=1)
    n_values = keys.integer("ssm.inner_size", low=1)
    if n_head_v % n_head_k:
        raise keys.wrong("ssm.time_step_rank", n_head_v, f"a multiple of the {n_head_k} key heads")
    if n_values % n_head_v:
        raise keys.wrong("ssm.inner_size", n_values, f"a multiple of the {n_head_v} value heads")
    n_channels = 2 * n_head_k * head_dim_k + n_values
    conv = block.name("ssm_conv1d.weight")
    conv_kernel = tensors.ne(conv)[0]
    keys.check("ssm.conv_kernel", conv_kernel, conv)
    mixed = block.has("ssm_in.weight")
    z: Linear | None = None
    if mixed:
        qkv = tensors.linear(block.name("ssm_in"), n_embd, n_channels + n_values)
    else:
        qkv = tensors.linear(block.name("attn_qkv"), n_embd, n_channels)
        z = tensors.linear(block.name("attn_gate"), n_embd, n_values)
    ba_grouped = mixed or block.has("ssm_ba.weight")
    if ba_grouped:
        beta = alpha = tensors.linear(block.name("ssm_ba"), n_embd, 2 * n_head_v)
    else:
        beta = tensors.linear(block.name("ssm_beta"), n_embd, n_head_v)
        alpha = tensors.linear(block.name("ssm_alpha"), n_embd, n_head_v)
    return DeltaNet(
        n_head_k=n_head_k,
        n_head_v=n_head_v,
        head_dim_k=head_dim_k,
        head_dim_v=n_values // n_head_v,
        conv_kernel=conv_kernel,
        qkv=qkv,
        z=z,
        beta=beta,
        alpha=alpha,
        value_order="grouped" if ba_grouped else "tiled",
        conv=tensors.vector(conv, conv_kernel * n_channels),
        dt=tensors.vector(block.name("ssm_dt.bias"), n_head_v),
        a=tensors.vector(block.name("ssm_a"), n_head_v),
        norm=tensors.vector(block.name("ssm_norm.weight"), n_values // n_head_v),
        output=tensors.linear(block.name("ssm_out"), n_values, n_embd),
        mixed=mixed,
        ba_grouped=ba_grouped,
    )


def convert_hybrid(t: Target, *, tiled: bool, dense: bool = False) -> None:
    """A checkpoint with recurrent layers; norms get the 1 that the source adds when it runs.

    Args:
        t: what is written.
        tiled: value heads are put in the order of newer files, where key heads alternate.
        dense: each layer has a plain FFN, not a mixture of experts.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    c = t.config
    n_layer = c.integer("num_hidden_layers", low=1)
    n_extra = 1 if t.weights.has("mtp.fc.weight") else 0
    parts.common_keys(t, n_layer + n_extra)
    parts.rope_keys(t)
    if not dense:
        parts.moe_keys(t)
        parts.norm_key(t, default=True)
        t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
        width = c.integer("shared_expert_intermediate_size", low=1)
        t.count("expert_shared_feed_forward_length", width)
    rope = c.rope()
    head_dim = c.integer("head_dim", default=256, low=1)
    t.count("attention.key_length", head_dim)
    t.count("attention.value_length", head_dim)
    t.count("rope.dimension_count", int(head_dim * rope.number("partial_rotary_factor", default=0.25)))
    sections = rope.get("mrope_section")
    if tiled:
        sections = sections if isinstance(sections, list) else _SECTIONS
        t.key("rope.dimension_sections", Typed([*sections, 0, 0, 0, 0][:4], "array[int32]"))
    n_v = c.integer("linear_num_value_heads", low=1)
    t.count("ssm.conv_kernel", c.integer("linear_conv_kernel_dim", low=1))
    t.count("ssm.state_size", c.integer("linear_key_head_dim", low=1))
    t.count("ssm.group_count", c.integer("linear_num_key_heads", low=1))
    t.count("ssm.time_step_rank", n_v)
    t.count("ssm.inner_size", n_v * c.integer("linear_value_head_dim", low=1))
    interval = c.integer("full_attention_interval", default=4, low=1)
    kinds = c.texts("layer_types") or [
        "linear_attention" if (i + 1) % interval else "full_attention" for i in range(n_layer)
    ]
    if len(kinds) != n_layer:
        raise c.wrong("layer_types", f"one for each of {n_layer} layers")
    recurrent = [kind == "linear_attention" for kind in kinds]
    t.key("attention.recurrent_layers", recurrent + [False] * n_extra)
    t.count("full_attention_interval", interval)
    if n_extra:
        t.count("nextn_predict_layers", n_extra)
    t.ignore("*visual.*")
    parts.embeddings(t, plus=1.0)
    for i in range(n_layer):
        _convert_layer(t.block(i), recurrent[i], tiled, dense)
    if n_extra:
        b = t.block(n_layer, "mtp.layers.0.")
        _convert_layer(b, False, tiled, dense)
        t.linear("mtp.fc", b.name("nextn.eh_proj"))
        t.norm("mtp.pre_fc_norm_embedding.weight", b.name("nextn.enorm.weight"), 1.0)
        t.norm("mtp.pre_fc_norm_hidden.weight", b.name("nextn.hnorm.weight"), 1.0)
        t.norm("mtp.norm.weight", b.name("nextn.shared_head_norm.weight"), 1.0)


def _convert_layer(b: BlockTarget, recurrent: bool, tiled: bool, dense: bool) -> None:
    b.norm("input_layernorm", "attn_norm", 1.0)
    if recurrent:
        _convert_delta_net(b, tiled)
    else:
        parts.attention(b, gate=True, norm_plus=1.0)
    b.norm("post_attention_layernorm", "post_attention_norm", 1.0)
    if dense:
        parts.dense_ffn(b)
        return
    b.linear("mlp.gate", "ffn_gate_inp")
    b.experts("mlp.experts", parts.n_expert(b.config))
    parts.shared_ffn(b, "mlp.shared_expert")
    b.linear("mlp.shared_expert_gate", "ffn_gate_inp_shexp")


def _convert_delta_net(b: BlockTarget, tiled: bool) -> None:
    """Rows of one key head after the other become all queries, all keys, all values, and the gates apart."""
    c, t, weights = b.config, b.target, b.weights
    n_k, n_v = c.integer("linear_num_key_heads", low=1), c.integer("linear_num_value_heads", low=1)
    d_k, d_v = c.integer("linear_key_head_dim", low=1), c.integer("linear_value_head_dim", low=1)
    r = n_v // n_k
    if r * n_k != n_v:
        raise c.wrong("linear_num_value_heads", f"a multiple of the {n_k} key heads")
    n_keys = n_k * d_k
    # before lists of these lengths are made
    out = weights.matrix(f"{b.source}linear_attn.out_proj.weight")
    if out.n_per_row != n_v * d_v:
        raise c.wrong("linear_value_head_dim", f"what `{b.source}linear_attn.out_proj.weight` has")
    if weights.matrix(f"{b.source}linear_attn.conv1d.weight").n_rows != 2 * n_keys + n_v * d_v:
        raise c.wrong("linear_key_head_dim", f"what `{b.source}linear_attn.conv1d.weight` has")
    # value head j of the file is head heads[j] of the checkpoint
    heads = np.arange(n_v).reshape(n_k, r).T.reshape(-1) if tiled else np.arange(n_v)
    values = (heads[:, None] * d_v + np.arange(d_v)).reshape(-1)
    channels = np.concatenate([np.arange(2 * n_keys), 2 * n_keys + values])

    def rows(source: str, order: NDArray[np.intp], n: int, *, column: bool = False) -> Matrix:
        matrix = weights.matrix(f"{b.source}linear_attn.{source}")
        matrix = Flat(matrix, 1) if column else matrix
        if matrix.n_rows != n:
            raise FormatError(
                f"tensor `{b.source}linear_attn.{source}` has {matrix.n_rows} rows, expected {n} by "
                "config.json"
            )
        is_same = len(order) == n and bool((order == np.arange(n)).all())
        return matrix if is_same else Permuted(matrix, order)

    def is_fp8(source: str) -> bool:
        return weights.is_fp8(f"{b.source}linear_attn.{source}")

    if b.has("linear_attn.in_proj_qkvz.weight"):
        group = np.arange(n_k * (2 * d_k + 2 * r * d_v)).reshape(n_k, -1)
        parts = np.split(group, np.cumsum([d_k, d_k, r * d_v]), axis=1)
        q, k, v, z = (part.reshape(-1) for part in parts)
        source, n = "in_proj_qkvz.weight", group.size
        qkv, gate = rows(source, np.concatenate([q, k, v[values]]), n), rows(source, z[values], n)
        fp8 = is_fp8(source), is_fp8(source)
    else:
        qkv = rows("in_proj_qkv.weight", channels, 2 * n_keys + n_v * d_v)
        gate = rows("in_proj_z.weight", values, n_v * d_v)
        fp8 = is_fp8("in_proj_qkv.weight"), is_fp8("in_proj_z.weight")
    t.add(b.name("attn_qkv.weight"), qkv, from_fp8=fp8[0])
    t.add(b.name("attn_gate.weight"), gate, from_fp8=fp8[1])
    if tiled:
        for part, name in (("b", "beta"), ("a", "alpha")):
            t.add(b.name(f"ssm_{name}.weight"), rows(f"in_proj_{part}.weight", heads, n_v))
    else:
        b.linear("linear_attn.in_proj_ba", "ssm_ba", (2 * n_v, c.integer("hidden_size")))
    kernel = c.integer("linear_conv_kernel_dim", low=1)
    t.add(b.name("ssm_conv1d.weight"), rows("conv1d.weight", channels, 2 * n_keys + n_v * d_v))
    if t.tensors[b.name("ssm_conv1d.weight")].shape[1] != kernel:
        raise c.wrong("linear_conv_kernel_dim", "what `conv1d.weight` has")
    t.add(b.name("ssm_dt.bias"), rows("dt_bias", heads, n_v, column=True), (n_v,))
    a = rows("A_log", heads, n_v, column=True)
    t.add(b.name("ssm_a"), Computed(a, lambda x: -np.exp(x.astype(np.float64)).astype(np.float32)), (n_v,))
    b.norm("linear_attn.norm", "ssm_norm")
    t.add(
        b.name("ssm_out.weight"), Columns(out, values) if tiled else out, from_fp8=is_fp8("out_proj.weight")
    )
