"""Attention with grouped key/value heads, from the tensors that a block has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from ikq.models.source import Block
from ikq.models.spec import Gqa, Linear, Rope, Temperature

__all__ = ["gqa", "has_window", "note_unused_window", "score_scale", "temperature"]


def gqa(
    block: Block,
    make_rope: Callable[[Block, int], Rope | None],
    *,
    qk_norm: bool | Literal["rotated_head", "row", "unit"] = False,
    window: int | None = None,
    sinks: bool = False,
    output_gate: bool = False,
    scale: float | None = None,
    gate_func: Literal["sigmoid", "softplus"] | None = None,
    temperature: Temperature | None = None,
    v_norm: bool = False,
    shares: int | None = None,
    lengths: Literal["", "_swa"] = "",
) -> Gqa:
    """Attention of a layer; projections may be separate or fused (`attn_qkv`).

    Args:
        block: the layer.
        make_rope: gives the rotation for heads of so many elements.
        qk_norm: queries and keys must have norms, of each head, or as `Gqa.qk_norm` says; otherwise they have
            them where the tensors exist.
        window: positions that a query sees.
        sinks: the layer has sinks.
        output_gate: `attn_q` holds gates as well.
        gate_func: what becomes of gates in a tensor of their own, `attn_gate`; none: the layer has none.
        temperature: factor of queries by position.
        scale: factor of the scores; else what the key says, or one over the root of the head's length.
        v_norm: values are normed, and where the layer has no `attn_v` they are its keys before norm and
            rotation.
        shares: the layer whose keys and values are read; then this one has none.
        lengths: what the keys of lengths of heads end with.

    Raises:
        FormatError: a tensor or key is missing, or they do not fit together.
    """
    keys, tensors = block.keys, block.tensors
    n_head = block.integer("attention.head_count")
    has_kv = keys.has("attention.head_count_kv")
    n_head_kv = block.integer("attention.head_count_kv") if has_kv else n_head
    if n_head % n_head_kv:
        raise keys.wrong("attention.head_count_kv", n_head_kv, f"a divisor of the {n_head} query heads")
    q_parts = 2 if output_gate else 1
    k: Linear | None
    v: Linear | None
    if block.has("attn_qkv.weight"):
        n_rows = tensors.rows(block.name("attn_qkv.weight"))
        n_shares = q_parts * n_head + 2 * n_head_kv
        if keys.has(f"attention.key_length{lengths}"):
            head_dim = keys.integer(f"attention.key_length{lengths}", low=1)
            n_values = n_rows - (q_parts * n_head + n_head_kv) * head_dim
            if n_values <= 0:
                raise tensors.wrong(block.name("attn_qkv.weight"), f"rows for {n_shares} heads of {head_dim}")
            head_dim_v = block.divide("attn_qkv.weight", n_values, "attention.head_count_kv", n_head_kv)
        else:
            head_dim = block.divide("attn_qkv.weight", n_rows, "attention.head_count", n_shares)
            head_dim_v = head_dim
        parts = _fused(block, q_parts * n_head * head_dim, n_head_kv * head_dim, n_head_kv * head_dim_v)
        q, k, v = parts
        source_k = source_v = block.name("attn_qkv.weight")
    elif shares is not None:
        source_k, source_v = block.name("attn_q.weight"), block.name("attn_output.weight")
        n_q, n_v = tensors.rows(source_k), tensors.ne(source_v)[0]
        head_dim = block.divide("attn_q.weight", n_q, "attention.head_count", q_parts * n_head)
        head_dim_v = block.divide("attn_output.weight", n_v, "attention.head_count", n_head)
        q, k, v = tensors.linear(block.name("attn_q"), block.n_embd, n_q), None, None
    else:
        part_v = "attn_k" if v_norm and not block.has("attn_v.weight") else "attn_v"
        source_k, source_v = block.name("attn_q.weight"), block.name(f"{part_v}.weight")
        n_q, n_v = tensors.rows(source_k), tensors.rows(source_v)
        head_dim = block.divide("attn_q.weight", n_q, "attention.head_count", q_parts * n_head)
        head_dim_v = block.divide(f"{part_v}.weight", n_v, "attention.head_count_kv", n_head_kv)
        q = tensors.linear(block.name("attn_q"), block.n_embd, n_q)
        k = tensors.linear(block.name("attn_k"), block.n_embd, n_head_kv * head_dim)
        v = tensors.linear(block.name(part_v), block.n_embd, n_v)
    keys.check(f"attention.key_length{lengths}", head_dim, source_k)
    keys.check(f"attention.value_length{lengths}", head_dim_v, source_v)
    if output_gate and head_dim != head_dim_v:
        raise tensors.wrong(source_v, f"values as long as the gates, {head_dim}")
    norms = tuple(block.name(f"attn_{x}_norm.weight") for x in "qk")
    q_norm, k_norm = None, None
    if qk_norm != "unit" and (qk_norm or any(name in tensors for name in norms)):
        heads = (n_head, n_head_kv) if qk_norm == "row" else (1, 1)
        q_norm, k_norm = (
            None if name == norms[1] and shares is not None else tensors.vector(name, n * head_dim)
            for name, n in zip(norms, heads, strict=True)
        )
    gate = None
    if gate_func is not None:
        name = block.name("attn_gate")
        gate = tensors.linear(name, block.n_embd)
        if tensors.rows(f"{name}.weight") not in (n_head, n_head * head_dim_v):
            raise tensors.wrong(f"{name}.weight", f"{n_head} rows, or {n_head * head_dim_v}")
    return Gqa(
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        q=q,
        k=k,
        v=v,
        output=tensors.linear(block.name("attn_output"), n_head * head_dim_v, block.n_embd),
        scale=score_scale(block, head_dim) if scale is None else scale,
        rope=make_rope(block, head_dim),
        q_norm=q_norm,
        k_norm=k_norm,
        window=window,
        softcap=keys.number("attn_logit_softcapping", 0.0) or None,
        sinks=tensors.vector(block.name("attn_sinks.weight"), n_head) if sinks else None,
        output_gate=output_gate,
        qk_norm=qk_norm if isinstance(qk_norm, str) else "head",
        gate=gate,
        gate_func=gate_func or "sigmoid",
        temperature=temperature,
        v_norm=v_norm and shares is None,
        shares=shares,
    )


def _fused(block: Block, *counts: int) -> list[Linear]:
    parts, first = [], 0
    for n in counts:
        name = block.name("attn_qkv")
        parts.append(block.tensors.linear(name, block.n_embd, sum(counts), rows=(first, n)))
        first += n
    return parts


def score_scale(block: Block, head_dim: int) -> float:
    """Factor of the scores."""
    return block.keys.number("attention.scale", 0.0) or 1 / math.sqrt(head_dim)


def temperature(block: Block) -> Temperature | None:
    """How queries grow with the position, where the file says so.

    Raises:
        FormatError: a key holds no number, or the length is missing.
    """
    keys = block.keys
    scale = keys.number("attention.temperature_scale", 0.0)
    if not scale:
        return None
    return Temperature(scale, keys.integer("attention.temperature_length", low=1))


def has_window(block: Block, default_period: int, *, whole: Literal["first", "last"] = "last") -> bool:
    """Whether the layer sees a window only.

    `attention.sliding_window_pattern` is a period, all layers of which but one have the window (0: all
    layers), or one truth value per block.

    Args:
        block: the layer.
        default_period: where the key is missing.
        whole: which layer of a period sees all positions.
    """
    keys, key = block.keys, "attention.sliding_window_pattern"
    flag = block.flag(key)
    if flag is not None:
        return flag
    period = keys.integer(key, default_period)
    return period == 0 or block.index % period != (0 if whole == "first" else period - 1)


def note_unused_window(block: Block) -> None:
    """Notes a window that the architecture does not apply.

    Raises:
        FormatError: the key holds no length.
    """
    n = block.keys.integer("attention.sliding_window", 0)
    if 0 < n < block.source.n_ctx_train:
        block.note(f"the sliding window of {n} positions is not applied, as GGUF engines have it")
