"""DeepSeek V2-Lite, V2, V3, R1 and relatives: latent attention, leading dense layers, shared experts.

Current files hold the two halves of the expansion as `attn_k_b` and `attn_v_b`; older ones as matrices of
two axes beside, or only as, `attn_kv_b`. Whether queries are compressed shows in the tensors.
"""

from __future__ import annotations

from ikq.models.attention import score_scale
from ikq.models.ffn import RoutingFunc, dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import log_growth, rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, Linear, Mla, ModelSpec, Moe

__all__ = ["build"]


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `deepseek2`."""

    def layer(block: Block) -> Layer:
        ffn = dense_ffn(block) if is_leading_dense(block) else _experts(block)
        return standard_layer(block, _attention(block), ffn)

    return source.model(layer)


def _experts(block: Block) -> Moe:
    # a bias of the choice came with sigmoids; files that have one and no key for the function mean them
    func: RoutingFunc = "sigmoid" if block.has("exp_probs_b.bias") else "softmax"
    moe = moe_ffn(block, func=func, normalize=False, shared="plain", shared_width="count")
    if moe.routing.n_group > 1 and moe.routing.func == "softmax":
        block.note(
            "groups of experts are judged by their two best members, as GGUF engines do; V2's source by one"
        )
    return moe


def _attention(block: Block) -> Mla:
    keys, tensors, n_embd = block.keys, block.tensors, block.n_embd
    n_head = block.integer("attention.head_count")
    rank_source = block.name("attn_kv_a_norm.weight")
    kv_rank = tensors.ne(rank_source)[0]
    keys.check("attention.kv_lora_rank", kv_rank, rank_source)
    n_rot = keys.integer("rope.dimension_count", low=2)
    q_part, q, q_a, q_a_norm = _queries(block)
    q_source = block.name(q_part)
    key_dim = block.divide(q_part, tensors.rows(q_source), "attention.head_count", n_head)
    if n_rot >= key_dim:
        raise keys.wrong("rope.dimension_count", n_rot, f"less than {key_dim}, the elements of a key")
    n_nope = key_dim - n_rot
    out_source = block.name("attn_output.weight")
    head_dim_v = block.divide("attn_output.weight", tensors.ne(out_source)[0], "attention.head_count", n_head)
    # the keys without suffix describe the cache in current files, and heads in older ones
    suffix = "_mla" if keys.has("attention.key_length_mla") else ""
    keys.check(f"attention.key_length{suffix}", key_dim, q_source)
    keys.check(f"attention.value_length{suffix}", head_dim_v, out_source)
    rotation = rope(block, "norm", key_dim, n_rot=n_rot, grows=False)
    scale = score_scale(block, key_dim)
    if rotation.yarn is not None and keys.text("rope.scaling.type", "linear") == "yarn":
        # a tenth of the published `mscale_all_dim`
        c = keys.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
        if c:
            scale *= log_growth(rotation.yarn.factor, c) ** 2
        else:
            rotation = rope(block, "norm", key_dim, n_rot=n_rot)
            block.note("YaRN without a log multiplier: cos and sin grow, the factor of scores does not")
    k_b, v_b, kv_b, twin = _expansion(block, n_head, kv_rank, n_nope, head_dim_v)
    return Mla(
        n_head=n_head,
        kv_rank=kv_rank,
        n_rot=n_rot,
        n_nope=n_nope,
        head_dim_v=head_dim_v,
        q=q,
        kv_a=tensors.linear(block.name("attn_kv_a_mqa"), n_embd, kv_rank + n_rot),
        kv_a_norm=tensors.vector(rank_source, kv_rank),
        output=tensors.linear(block.name("attn_output"), n_head * head_dim_v, n_embd),
        scale=scale,
        rope=rotation,
        q_a=q_a,
        q_a_norm=q_a_norm,
        k_b=k_b,
        v_b=v_b,
        kv_b=kv_b,
        kv_b_twin=twin,
    )


def _queries(block: Block) -> tuple[str, Linear, Linear | None, str | None]:
    """Which tensor gives queries, and their compression where the file has it."""
    tensors = block.tensors
    if not block.has("attn_q_a.weight"):
        return "attn_q.weight", tensors.linear(block.name("attn_q"), block.n_embd), None, None
    rank = tensors.rows(block.name("attn_q_a.weight"))
    block.keys.check("attention.q_lora_rank", rank, block.name("attn_q_a.weight"))
    q_a = tensors.linear(block.name("attn_q_a"), block.n_embd, rank)
    q_a_norm = tensors.vector(block.name("attn_q_a_norm.weight"), rank)
    return "attn_q_b.weight", tensors.linear(block.name("attn_q_b"), rank), q_a, q_a_norm


def _expansion(
    block: Block, n_head: int, kv_rank: int, n_nope: int, head_dim_v: int
) -> tuple[str | None, str | None, str | None, str | None]:
    """Names of `k_b` and `v_b`, or of `kv_b` alone; then of a `kv_b` that stands beside the two."""
    tensors = block.tensors
    k_b, v_b, kv_b = (block.name(f"attn_{part}") for part in ("k_b", "v_b", "kv_b"))
    for name in (k_b, v_b, kv_b):
        tensors.refuse_scale(name)
    if f"{k_b}.weight" not in tensors and f"{kv_b}.weight" in tensors:
        tensors.linear(kv_b, kv_rank, n_head * (n_nope + head_dim_v))
        return None, None, f"{kv_b}.weight", None
    for name, n_in, n_out in ((k_b, n_nope, kv_rank), (v_b, kv_rank, head_dim_v)):
        ne = tensors.ne(f"{name}.weight")
        if ne not in ((n_in, n_out, n_head, 1), (n_in, n_out * n_head, 1, 1)):
            raise tensors.wrong(f"{name}.weight", f"{n_head} matrices of {n_out} rows of {n_in}")
    twin = f"{kv_b}.weight" if f"{kv_b}.weight" in tensors else None
    tensors.unused.discard(f"{kv_b}.weight")
    return f"{k_b}.weight", f"{v_b}.weight", None, twin
