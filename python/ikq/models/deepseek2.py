"""DeepSeek V2-Lite, V2, V3, R1 and relatives: latent attention, leading dense layers, shared experts.

Kimi K2 and GLM-4.7-Flash are such models too. Those whose attention reads the positions that an index chooses
have names of their own (`deepseek32`, `glm_dsa`). Current files hold the two halves of the expansion as
`attn_k_b` and `attn_v_b`; older ones as matrices of two axes beside, or only as, `attn_kv_b`. Whether queries
are compressed shows in the tensors.
"""

from __future__ import annotations

import dataclasses

from ikq.checkpoint import parts
from ikq.checkpoint.config import Config
from ikq.checkpoint.rows import RowRange, Stacked, Transposed
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import UnsupportedError
from ikq.models.attention import score_scale, temperature
from ikq.models.ffn import RoutingFunc, dense_ffn, is_leading_dense, moe_ffn
from ikq.models.layers import standard_layer
from ikq.models.rope import log_growth, rope
from ikq.models.source import Block, Source
from ikq.models.spec import Layer, Linear, Mla, ModelSpec, Moe

__all__ = ["build", "build_indexed", "convert", "convert_indexed", "convert_v3"]

_INDEX = "attention.indexer."
# parts of a layer's index: in files, in checkpoints
_INDEX_PARTS = {"attn_q_b": "wq_b", "attn_k": "wk", "proj": "weights_proj"}


def build(source: Source) -> ModelSpec:
    """The model of a file of architecture `deepseek2`."""

    def layer(block: Block) -> Layer:
        ffn = dense_ffn(block) if is_leading_dense(block) else _experts(block)
        return standard_layer(block, _attention(block), ffn)

    return source.model(layer)


def build_indexed(source: Source) -> ModelSpec:
    """A model whose attention reads the positions that an index chooses, as far as these are all.

    The index itself is not computed: up to the number that it chooses, attention reads every position, and no
    longer context is run.

    Raises:
        FormatError: keys and tensors do not fit together.
        UnsupportedError: as `build`.
    """
    most = source.keys.integer(f"{_INDEX}top_k", low=1)
    for i in range(source.n_block):
        block = Block(source, i)
        for part in (*(f"{name}.weight" for name in _INDEX_PARTS), "k_norm.weight", "k_norm.bias"):
            source.tensors.unused.discard(block.name(f"indexer.{part}"))
    source.notes.append(
        f"attention reads the {most} positions that an index chooses: all, as no longer context is run"
    )
    return dataclasses.replace(build(source), n_ctx_most=most)


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
        temperature=temperature(block),
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


def convert(t: Target) -> None:
    """A checkpoint of DeepSeek V2 and relatives: `kv_b_proj` is split, its keys transposed.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling that such files do not have.
    """
    _convert(t)


# of the models' classes: what `transformers` writes leaves these out
_DEFAULTS = {"scoring_func": "sigmoid", "norm_topk_prob": True}


def convert_v3(t: Target) -> None:
    """A checkpoint of DeepSeek V3, Kimi K2, GLM-4.7-Flash: as `convert`, with a router of sigmoids.

    Raises:
        FormatError, UnsupportedError: as `convert`.
    """
    t.config = t.config.with_defaults(_DEFAULTS)
    parts.only(t.config, "rope_interleave", True)
    t.ignore("vision_tower.*", "mm_projector.*", "model.vision_tower.*", "model.mm_projector.*")
    _convert(t)


def convert_indexed(t: Target) -> None:
    """A checkpoint whose attention reads positions that an index chooses: as `convert_v3`, with the index.

    Raises:
        FormatError, UnsupportedError: as `convert`.
    """
    c = t.config
    t.count(f"{_INDEX}head_count", c.integer("index_n_heads", low=1))
    t.count(f"{_INDEX}key_length", c.integer("index_head_dim", low=1))
    t.count(f"{_INDEX}top_k", c.integer("index_topk", low=1))
    kinds = c.texts("indexer_types")
    if kinds:
        t.key(f"{_INDEX}types", [kind == "full" for kind in kinds])
    convert_v3(t)


def _n_dense(c: Config, n_layer: int) -> int:
    """Layers before the first mixture.

    Raises:
        UnsupportedError: there are such behind it.
    """
    kinds = c.texts("mlp_layer_types")
    if not kinds:
        return c.integer("first_k_dense_replace", default=0)
    n = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    if kinds != ["dense"] * n + ["sparse"] * (n_layer - n):
        raise UnsupportedError(
            f"{c.path}: `mlp_layer_types` has layers without experts behind ones with them"
        )
    return n


def _convert(t: Target) -> None:
    c = t.config
    n_layer, n_extra = c.integer("num_hidden_layers"), parts.n_further_blocks(t)
    parts.common_keys(t, n_layer + n_extra)
    parts.rope_keys(t)
    parts.moe_keys(t, groups=True)
    _attention_keys(t)
    func = c.get("scoring_func") or ("sigmoid" if c.get("topk_method") == "noaux_tc" else "softmax")
    if func not in ("softmax", "sigmoid"):
        raise c.wrong("scoring_func", "softmax or sigmoid")
    t.count("expert_gating_func", 2 if func == "sigmoid" else 1)
    n_dense = _n_dense(c, n_layer)
    t.count("leading_dense_block_count", n_dense)
    t.count("vocab_size", c.integer("vocab_size", low=1))
    t.count("expert_feed_forward_length", c.integer("moe_intermediate_size", low=1))
    t.count("expert_shared_count", c.integer("n_shared_experts", default=0))
    t.number("expert_weights_scale", c.number("routed_scaling_factor", default=1.0))
    if c.flag("norm_topk_prob", default=False):
        t.key("expert_weights_norm", True)
    if n_extra:
        t.count("nextn_predict_layers", n_extra)
    parts.embeddings(t)
    for i in range(n_layer + n_extra):
        b = t.block(i)
        b.norm("input_layernorm", "attn_norm")
        _convert_attention(b)
        if b.has("self_attn.indexer.wk.weight"):
            _convert_index(b)
        b.norm("post_attention_layernorm", "ffn_norm")
        if i < n_dense:
            parts.dense_ffn(b)
        else:
            b.linear("mlp.gate", "ffn_gate_inp")
            if b.has("mlp.gate.e_score_correction_bias"):
                b.vector("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")
            b.experts("mlp.experts", parts.n_expert(c))
            if c.integer("n_shared_experts", default=0):
                parts.shared_ffn(b, "mlp.shared_experts")
        if i >= n_layer:
            parts.nextn(b)


def _convert_index(b: BlockTarget) -> None:
    for name, source in _INDEX_PARTS.items():
        b.linear(f"self_attn.indexer.{source}", f"indexer.{name}")
    for part in ("weight", "bias"):
        b.vector(f"self_attn.indexer.k_norm.{part}", f"indexer.k_norm.{part}")


def _attention_keys(t: Target) -> None:
    c = t.config
    rank, n_rot = c.integer("kv_lora_rank", low=1), c.integer("qk_rope_head_dim", low=1)
    # these describe the cache, the others the heads
    t.count("attention.head_count_kv", 1)
    t.count("attention.key_length", rank + n_rot)
    t.count("attention.value_length", rank)
    t.count("attention.kv_lora_rank", rank)
    t.count("attention.key_length_mla", c.integer("qk_nope_head_dim", low=1) + n_rot)
    t.count("attention.value_length_mla", c.integer("v_head_dim", low=1))
    if c.has("q_lora_rank"):
        t.count("attention.q_lora_rank", c.integer("q_lora_rank", low=1))
    t.count("rope.dimension_count", n_rot)
    rope = c.rope()
    if rope.get("rope_type") != "yarn":
        return
    # cos and sin grow by the quotient of what follows from the two, which is 1 where they are equal
    every = rope.number("mscale_all_dim", default=0.0)
    if rope.number("mscale", default=1.0) != (every or 1.0):
        raise UnsupportedError(
            f"{c.path}: `mscale` is {rope.get('mscale')}, and `mscale_all_dim` {rope.get('mscale_all_dim')}: "
            "files hold one number for both"
        )
    if rope.has("mscale_all_dim"):
        t.number("rope.scaling.yarn_log_multiplier", 0.1 * every)


def _convert_attention(b: BlockTarget) -> None:
    c = b.config
    n_embd, n_head = c.integer("hidden_size"), c.integer("num_attention_heads", low=1)
    rank, n_rot = c.integer("kv_lora_rank"), c.integer("qk_rope_head_dim")
    n_nope, d_v = c.integer("qk_nope_head_dim"), c.integer("v_head_dim")
    if c.has("q_lora_rank"):
        b.linear("self_attn.q_a_proj", "attn_q_a", (c.integer("q_lora_rank"), n_embd))
        b.norm("self_attn.q_a_layernorm", "attn_q_a_norm")
        b.linear("self_attn.q_b_proj", "attn_q_b", (n_head * (n_nope + n_rot), c.integer("q_lora_rank")))
    else:
        b.linear("self_attn.q_proj", "attn_q", (n_head * (n_nope + n_rot), n_embd))
    b.linear("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", (rank + n_rot, n_embd))
    b.norm("self_attn.kv_a_layernorm", "attn_kv_a_norm")
    name = f"{b.source}self_attn.kv_b_proj.weight"
    kv_b = b.weights.matrix(name)
    per_head = n_nope + d_v
    if (kv_b.n_rows, kv_b.n_per_row) != (n_head * per_head, rank):
        raise c.wrong("kv_lora_rank", f"what `{name}` has: {kv_b.n_rows} rows of {kv_b.n_per_row}")
    keys = [RowRange(kv_b, h * per_head, n_nope) for h in range(n_head)]
    values = [RowRange(kv_b, h * per_head + n_nope, d_v) for h in range(n_head)]
    fp8 = b.weights.is_fp8(name)
    transposed = Transposed(Stacked(keys), n_head)
    b.target.add(b.name("attn_k_b.weight"), transposed, (n_head, rank, n_nope), from_fp8=fp8)
    b.target.add(b.name("attn_v_b.weight"), Stacked(values), (n_head, d_v, rank), from_fp8=fp8)
    b.linear("self_attn.o_proj", "attn_output", (n_embd, n_head * d_v))
