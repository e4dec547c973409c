"""What most architectures write alike: keys, embeddings, attention, feed-forward parts."""

from __future__ import annotations

import math
from array import array
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.config import Config
from ikq.checkpoint.rows import Given
from ikq.checkpoint.target import BlockTarget, Target
from ikq.errors import FormatError, UnsupportedError

__all__ = [
    "attention",
    "common_keys",
    "dense_ffn",
    "dense_model",
    "embeddings",
    "interleaved_rope",
    "moe_keys",
    "moe_model",
    "n_expert",
    "n_further_blocks",
    "nextn",
    "no_window",
    "norm_key",
    "only",
    "rope_keys",
    "shared_ffn",
]

_UNUSED = (
    "*rotary_emb.inv_freq",
    "*.attn.bias",
    "*.attn.masked_bias",
    "*.k_scale",
    "*.v_scale",
    "*.input_scale",
)


def n_expert(config: Config) -> int:
    """Number of routed experts; 0 where there are none."""
    return config.integer(
        "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", default=0
    )


def only(config: Config, name: str, *values: object) -> None:
    """Refuses a value that changes the model and that its architecture does not have.

    Raises:
        UnsupportedError: the key is there and has none of these values.
    """
    if config.has(name) and config.get(name) not in values:
        known = " or ".join(repr(value) for value in values)
        raise UnsupportedError(
            f"{config.path}: `{name}` is {config.get(name)!r:.60}, and models of this architecture are run "
            f"with {known} only"
        )


def no_window(config: Config, *, by_flag: bool = False) -> None:
    """Refuses windows of attention, which engines of these architectures do not apply.

    Args:
        config: the checkpoint's.
        by_flag: `use_sliding_window` says whether there are windows, `max_window_layers` where they begin.

    Raises:
        UnsupportedError: some positions would see more than they were trained to.
        FormatError: a value of another kind.
    """
    if by_flag:
        n_layer = config.integer("num_hidden_layers", low=1)
        first = config.integer("max_window_layers", default=n_layer)
        if not config.flag("use_sliding_window", default=False) or first >= n_layer:
            return
    n = config.integer("sliding_window", default=0)
    if 0 < n < config.integer("max_position_embeddings", low=1):
        raise UnsupportedError(
            f"{config.path}: the `sliding_window` of {n} positions is not applied in files of this kind; "
            "set it to null to convert the model without it"
        )


def common_keys(t: Target, n_block: int | None = None, *, activation: str = "silu", rms: bool = True) -> None:
    """Keys of all architectures: extents, heads, rotary base, epsilon.

    Args:
        t: what is written.
        n_block: layers, where not as many as `num_hidden_layers`.
        activation: the only one that the architecture has.
        rms: norms are RMS norms, which do not subtract the mean.

    Raises:
        FormatError: `config.json` lacks one of them.
        UnsupportedError: another activation.
    """
    c = t.config
    for name in ("hidden_act", "hidden_activation"):
        only(c, name, activation)
    n_head = c.integer("num_attention_heads", low=1)
    t.count("block_count", c.integer("num_hidden_layers", low=1) if n_block is None else n_block)
    t.count("context_length", c.integer("max_position_embeddings", low=1))
    t.count("embedding_length", c.integer("hidden_size", low=1))
    if c.has("intermediate_size"):
        t.count("feed_forward_length", c.integer("intermediate_size"))
    t.count("attention.head_count", n_head)
    t.count("attention.head_count_kv", c.integer("num_key_value_heads", default=n_head, low=1))
    if rms:
        t.number("attention.layer_norm_rms_epsilon", c.number("rms_norm_eps", "layernorm_epsilon"))
    else:
        t.number("attention.layer_norm_epsilon", c.number("layer_norm_eps", default=1e-5))
    if c.has("head_dim"):
        t.count("attention.key_length", c.integer("head_dim", low=1))
        t.count("attention.value_length", c.integer("head_dim", low=1))


def rope_keys(t: Target, kind: str | None = None, *, llama3: bool = False) -> None:
    """Rotary base and scaling.

    Args:
        t: what is written.
        kind: of layers, where they have parameters of their own (`full_attention`).
        llama3: whether the architecture writes the factors of Llama 3 (`llama3_factors`).

    Raises:
        UnsupportedError: a kind of scaling that GGUF files of these architectures do not have.
        FormatError: a number is missing.
    """
    rope = t.config.rope(kind)
    form = rope.get("rope_type")
    t.number("rope.freq_base", rope.number("rope_theta", default=10000.0))
    if form in ("default", "mrope") or (form == "llama3" and llama3):
        return
    if form == "linear":
        t.key("rope.scaling.type", "linear")
        t.number("rope.scaling.factor", rope.number("factor"))
        return
    if form != "yarn":
        raise UnsupportedError(
            f"{t.config.path}: rotary scaling {form!r:.40} is not known for this architecture"
        )
    factor = rope.number("factor")
    t.key("rope.scaling.type", "yarn")
    t.number("rope.scaling.factor", factor)
    if rope.has("original_max_position_embeddings"):
        t.count(
            "rope.scaling.original_context_length", rope.integer("original_max_position_embeddings", low=1)
        )
    for name in ("beta_fast", "beta_slow"):
        if rope.has(name):
            t.number(f"rope.scaling.yarn_{name}", rope.number(name))
    if rope.has("attention_factor"):
        # files say how it differs from what follows from the factor
        own = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        if not math.isclose(rope.number("attention_factor"), own, rel_tol=1e-6):
            t.number("rope.scaling.attn_factor", rope.number("attention_factor") / own)


def moe_keys(t: Target, *, groups: bool = False) -> None:
    """Number of experts, and how many a token takes."""
    c = t.config
    t.count("expert_count", n_expert(c))
    t.count("expert_used_count", c.integer("num_experts_per_tok", "moe_k", low=1))
    if groups:
        t.count("expert_group_count", c.integer("n_group", default=1, low=1))
        t.count("expert_group_used_count", c.integer("topk_group", default=1, low=1))


def norm_key(t: Target, default: bool) -> None:
    """Whether weights of chosen experts are made to sum to 1, where it is not as usual (`default`)."""
    if t.config.flag("norm_topk_prob", default=default) != default:
        t.key("expert_weights_norm", not default)


def embeddings(t: Target, plus: float = 0.0) -> None:
    """Embedding, last norm, and projection unless it is tied to the embedding.

    Raises:
        FormatError: one of them is missing.
    """
    t.ignore(*_UNUSED)
    vocab = (t.config.integer("vocab_size", low=1), t.config.integer("hidden_size", low=1))
    t.linear(f"{t.root}{t.embeddings}", "token_embd", vocab)
    t.norm(f"{t.root}norm.weight", "output_norm.weight", plus)
    head = next((h for h in ("lm_head", "language_model.lm_head") if t.weights.has(f"{h}.weight")), None)
    if head is not None and t.config.flag("tie_word_embeddings", default=False):
        t.ignore(f"{head}.weight")
    elif head is not None:
        t.linear(head, "output", vocab)
    elif not t.config.flag("tie_word_embeddings", default=True):
        raise FormatError(
            f"{t.config.path.parent}: tensor `lm_head.weight` is missing, and `tie_word_embeddings` is false"
        )


@lru_cache(8)
def interleaved_rope(n_head: int, head_dim: int) -> NDArray[np.uint32]:
    """Order of rows that turns a rotation of halves into one of neighbours."""
    half = head_dim // 2
    order = array("I")
    for head in range(n_head):
        for row in range(head * 2 * half, (head * 2 + 1) * half):
            order.extend((row, row + half))
    return np.frombuffer(order, np.uint32)


def attention(
    b: BlockTarget,
    *,
    permute: bool = False,
    gate: bool = False,
    norm_plus: float = 0.0,
    n_head: int | None = None,
    n_head_kv: int | None = None,
    head_dim_v: int | None = None,
) -> None:
    """Queries, keys, values and output, with biases and norms where the checkpoint has them.

    Args:
        b: the layer.
        permute: rows of queries and keys are put side by side as they are rotated.
        gate: queries bring a gate of the same size.
        norm_plus: what the source adds to the weights of norms.
        n_head: query heads of this layer, where not as many as `config.json` has for all.
        n_head_kv: the same of key/value heads.
        head_dim_v: elements of a value, where not as many as of a key.

    Raises:
        FormatError: a matrix is missing, or its shape does not fit `config.json`.
    """
    c = b.config
    n_embd, all_heads = c.integer("hidden_size"), c.integer("num_attention_heads", low=1)
    n_kv = n_head_kv or c.integer("num_key_value_heads", default=all_heads, low=1)
    d = c.integer("head_dim", default=n_embd // all_heads, low=1)
    d_v = head_dim_v or d
    n_head = n_head or all_heads
    for part, heads, length in (("q", n_head, d), ("k", n_kv, d), ("v", n_kv, d_v)):
        order = partial(interleaved_rope, heads, d) if permute and part != "v" else None
        rows = heads * length * (2 if gate and part == "q" else 1)
        b.linear(f"self_attn.{part}_proj", f"attn_{part}", (rows, n_embd), order)
    b.linear("self_attn.o_proj", "attn_output", (n_embd, n_head * d_v))
    for part in ("q", "k"):
        if b.has(f"self_attn.{part}_norm.weight"):
            b.norm(f"self_attn.{part}_norm", f"attn_{part}_norm", norm_plus)


def dense_ffn(b: BlockTarget, width: int | None = None, source: str = "mlp") -> None:
    """Gate, up and down of a module.

    Raises:
        FormatError: a matrix is missing, or its shape does not fit `config.json`.
    """
    n_embd = b.config.integer("hidden_size")
    n = b.config.integer("intermediate_size") if width is None else width
    b.linear(f"{source}.gate_proj", "ffn_gate", (n, n_embd))
    b.linear(f"{source}.up_proj", "ffn_up", (n, n_embd))
    b.linear(f"{source}.down_proj", "ffn_down", (n_embd, n))


def shared_ffn(b: BlockTarget, source: str) -> None:
    """The FFN that all tokens take besides experts.

    Raises:
        FormatError: a matrix is missing.
    """
    for part in ("gate", "up", "down"):
        b.linear(f"{source}.{part}_proj", f"ffn_{part}_shexp")


def dense_model(t: Target) -> None:
    """A whole model of plain layers, as Qwen2 and Qwen3 are.

    Raises:
        FormatError: a tensor or a value of `config.json` is missing, or they do not fit together.
        UnsupportedError: a kind of rotary scaling, or windows, that such files do not have.
    """
    _model_keys(t)
    embeddings(t)
    for i in range(t.config.integer("num_hidden_layers")):
        dense_ffn(_plain_block(t, i))


def moe_model(t: Target, *, normalized: bool, shared: str | None = None) -> None:
    """A whole model of layers with experts, as Qwen2-MoE and Qwen3-MoE are.

    Args:
        t: where it goes.
        normalized: weights of experts have the sum 1 where `config.json` does not say.
        shared: the module of an expert for all tokens, which has a gate of its own, if there is one.

    Raises:
        FormatError: as `dense_model`.
        UnsupportedError: as `dense_model`.
    """
    _model_keys(t)
    moe_keys(t)
    norm_key(t, default=normalized)
    t.count("expert_feed_forward_length", t.config.integer("moe_intermediate_size", low=1))
    if shared is not None:
        width = t.config.integer("shared_expert_intermediate_size", low=1)
        t.count("expert_shared_feed_forward_length", width)
    embeddings(t)
    for i in range(t.config.integer("num_hidden_layers")):
        b = _plain_block(t, i)
        b.linear("mlp.gate", "ffn_gate_inp")
        b.experts("mlp.experts", n_expert(t.config))
        if shared is not None:
            shared_ffn(b, shared)
            b.linear(f"{shared}_gate", "ffn_gate_inp_shexp")


def _model_keys(t: Target) -> None:
    common_keys(t)
    rope_keys(t)
    no_window(t.config, by_flag=True)


def _plain_block(t: Target, index: int) -> BlockTarget:
    """A layer with everything before its feed-forward part's matrices."""
    b = t.block(index)
    b.norm("input_layernorm", "attn_norm")
    attention(b)
    b.norm("post_attention_layernorm", "ffn_norm")
    return b


def n_further_blocks(t: Target) -> int:
    """Blocks behind the last layer that predict further tokens, as far as the checkpoint has them.

    `transformers` leaves them out of what it saves, and some checkpoints name them only.

    Raises:
        FormatError: a value of `config.json` is missing or wrong.
    """
    n_layer = t.config.integer("num_hidden_layers")
    n = t.config.integer("num_nextn_predict_layers", default=0)
    return n if t.weights.has(f"{t.root}layers.{n_layer}.eh_proj.weight") else 0


def nextn(b: BlockTarget) -> None:
    """What a block that predicts a further token has besides a layer.

    Raises:
        FormatError: a matrix is missing.
    """
    b.linear("eh_proj", "nextn.eh_proj")
    for part in ("enorm", "hnorm"):
        b.norm(part, f"nextn.{part}")
    b.norm("shared_head.norm", "nextn.shared_head_norm")
    for source, name in (("embed_tokens", "embed_tokens"), ("shared_head.head", "shared_head_head")):
        if b.has(f"{source}.weight"):
            b.linear(source, f"nextn.{name}")


def llama3_factors(
    t: Target, n_rot: int, rope: Config | None = None, *, n_factors: int | None = None
) -> None:
    """The divisors of rotary frequencies that Llama 3.1 and later have, as a tensor.

    Args:
        t: where it goes.
        n_rot: rotated elements of a head.
        rope: parameters, where not those of the whole model.
        n_factors: numbers of the tensor; those behind the rotated pairs are 1.

    Raises:
        FormatError: a number is missing.
    """
    rope = rope or t.config.rope()
    if rope.get("rope_type") != "llama3":
        return
    f32, one = np.float32, np.float32(1)
    factor, low, high = (rope.number(n) for n in ("factor", "low_freq_factor", "high_freq_factor"))
    if factor <= 0 or low <= 0 or high <= low:
        raise t.config.wrong("rope_parameters", "factors above 0, the high one above the low one")
    n_orig = rope.integer("original_max_position_embeddings", default=8192, low=1)
    # in single precision, with reciprocals for quotients, as the files that people have were made
    powers = np.power(
        f32(rope.number("rope_theta", default=10000.0)), np.arange(0, n_rot, 2, dtype=f32) / f32(n_rot)
    )
    waves = (one / (one / powers)) * f32(2 * math.pi)
    smooth = ((one / waves) * f32(n_orig) - f32(low)) / f32(high - low)
    with np.errstate(divide="ignore"):
        between = one / ((one - smooth) / f32(factor) + smooth)
    factors = np.where(
        waves < f32(n_orig / high), one, np.where(waves > f32(n_orig / low), f32(factor), between)
    )
    n = n_factors or n_rot // 2
    factors = np.pad(factors, (0, n - n_rot // 2), constant_values=1.0)
    t.add("rope_freqs.weight", Given(factors), (n,))
