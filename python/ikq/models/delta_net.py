"""Models with recurrent layers: which layers those are, and the gated delta-net from its tensors."""

from __future__ import annotations

from ikq.models.attention import gqa
from ikq.models.ffn import moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import rope
from ikq.models.source import Block, Source
from ikq.models.spec import DeltaNet, Layer, Linear, ModelSpec, Rope

__all__ = ["build_hybrid", "delta_net"]


def build_hybrid(source: Source) -> ModelSpec:
    """Recurrent layers with gated full attention between them, a mixture of experts in each."""

    def rotation(block: Block, head_dim: int) -> Rope:
        return rope(block, "neox", head_dim, sections="interleaved")

    def layer(block: Block) -> Layer:
        if _is_recurrent(block):
            ffn = moe_ffn(block, normalize=True, shared="gated")
            return standard_layer(block, delta_net(block), ffn, ffn_norm="post_attention_norm")
        attention = gqa(block, rotation, qk_norm=True, output_gate=True)
        ffn = moe_ffn(block, normalize=True, shared="gated")
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
