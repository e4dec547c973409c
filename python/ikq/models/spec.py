"""`ModelSpec`: a model as data. What an architecture makes from GGUF metadata, and what the engine runs.

A spec names tensors and says how they combine; it holds no numbers of the weights. All shapes are in
elements, `n_*` are counts. The engine (Rust, `ikq-model`) reads exactly these fields from
`ModelSpec.to_json`; a field added here is added to `rust/ikq-model/src/spec.rs`.

The layer that every model shares (norms that are `None` are left out):

    a = x + attention_factor * post_attention_norm( attention( attention_norm(x) ) )
    x = a + ffn_factor * post_ffn_norm( ffn( ffn_norm(a) ) )

(some layers end with an `embedding` and a `scale` of their own).

A head that predicts further tokens (`nextn`) is a spec of its own, of one layer, whose x at position i comes
from the next token t and what the model's last norm gave there, h:

    x = eh_proj( concat( enorm( embedding(t) ), hnorm(h) ) )
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "DeltaNet",
    "DenseFfn",
    "Gqa",
    "Layer",
    "LayerEmbedding",
    "Linear",
    "Mla",
    "ModelSpec",
    "Moe",
    "MoeNorms",
    "Nextn",
    "PerLayer",
    "Rope",
    "Routing",
    "Temperature",
    "Yarn",
]

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]


@dataclass(frozen=True)
class Linear:
    """A matrix product `scale * (W x) + bias`, or one per expert.

    Attributes:
        weight: Tensor name. For experts a 3-D tensor, or (older files) one name per expert.
        bias: Tensor of one number per row of `weight` (experts: one row per expert), added after the
            product. Where only some rows of `weight` belong to this matrix, the same of the bias do.
        scale: One-number tensor (experts: one number each) that the product is multiplied with.
        first_row: First row of the tensor that belongs to this matrix (of each expert's matrix).
        n_rows: Rows of this matrix; `None`: all of the tensor's. Two `Linear` may share a tensor
            (`attn_qkv`, `ffn_gate_up_exps`).
    """

    weight: str | tuple[str, ...]
    bias: str | None = None
    scale: str | None = None
    first_row: int = 0
    n_rows: int | None = None


@dataclass(frozen=True)
class Yarn:
    """YaRN: frequencies between the trained ones and those divided by `factor`.

    Attributes:
        factor: Extension of the context.
        n_ctx_orig: Trained context.
        beta_fast: Rotations above which a frequency stays.
        beta_slow: Rotations below which it is divided by `factor`.
        magnitude: Factor of cos and sin.
        truncate: Round the bounds of the ramp to integers, as GGUF engines do.
    """

    factor: float
    n_ctx_orig: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `n_rot` elements of a head.

    Attributes:
        pairing: `norm` rotates neighbours (2i, 2i+1), `neox` halves (i, i + n_rot/2).
        n_rot: Elements that are rotated.
        base: Base of the frequencies, `base ** (-2i / n_rot)`.
        linear: Positions are divided by it.
        factors: Tensor of `n_rot / 2` numbers that angles are divided by.
        n_factors: Numbers of that tensor where there are more, of which the first count.
        yarn: YaRN, where the model uses it.
    """

    pairing: Literal["norm", "neox"]
    n_rot: int
    base: float
    linear: float = 1.0
    factors: str | None = None
    yarn: Yarn | None = None
    n_factors: int | None = None


@dataclass(frozen=True)
class Temperature:
    """Queries are multiplied with `1 + scale * ln(1 + floor((position + offset) / length))`."""

    scale: float
    length: int
    offset: int = 0


@dataclass(frozen=True)
class Gqa:
    """Attention with grouped key/value heads.

    Attributes:
        n_head: Query heads.
        n_head_kv: Key/value heads; query head h reads head `h // (n_head // n_head_kv)`.
        head_dim: Elements of a query or key head.
        head_dim_v: Elements of a value head.
        q, k, v, output: Projections; `k` and `v` are `None` where the layer `shares`. With `output_gate`,
            each head of `q` has `head_dim` query rows, then `head_dim` gate rows: what attention gives is
            multiplied with `sigmoid(gate)` before `output`.
        q_norm, k_norm: RMS norm of each head (tensor of `head_dim` numbers), before the rotation.
        qk_norm: Where these are otherwise: `rotated_head` norms heads after the rotation, `row` all heads
            together (tensors of as many numbers) before it, `unit` heads by weights of 1 (no tensors).
        v_norm: Each value head is divided by the root of its mean square.
        rope: `None` leaves positions out.
        scale: Factor of the scores.
        window: A query sees this many positions, its own included; `None`: all before it.
        softcap: Scores s become `softcap * tanh(s / softcap)`.
        sinks: Tensor of one extra logit per query head that has no value.
        gate: One row per query head, or per element of all values, applied to the normed input: what
            attention gives is multiplied with `gate_func` of it before `output`.
        temperature: Factor of queries by position.
        shares: An earlier layer with the same heads and window, whose keys and values this one reads instead
            of its own.
    """

    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    q: Linear
    k: Linear | None
    v: Linear | None
    output: Linear
    scale: float
    rope: Rope | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None
    output_gate: bool = False
    qk_norm: Literal["head", "rotated_head", "row", "unit"] = "head"
    gate: Linear | None = None
    gate_func: Literal["sigmoid", "softplus"] = "sigmoid"
    temperature: Temperature | None = None
    v_norm: bool = False
    shares: int | None = None
    kind: Literal["gqa"] = "gqa"


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: one cached vector of `kv_rank + n_rot` gives all heads' keys and values.

    Attributes:
        n_head: Heads.
        kv_rank: Elements of the compressed vector c.
        n_rot: Rotated elements that all heads' keys share.
        n_nope: Elements of a head's query and key without rotation.
        head_dim_v: Elements of a head's value.
        q: Queries (`n_nope` rows, then `n_rot` rows per head), applied to the normed input, or to
            `q_a_norm(q_a x)` where queries are compressed.
        q_a, q_a_norm: Compression of queries.
        kv_a: `kv_rank` rows of c, then `n_rot` rows of the shared key.
        kv_a_norm: RMS norm of c.
        k_b: Tensor `[n_nope, kv_rank, n_head]` (or the same as `[n_nope, kv_rank * n_head]`).
        v_b: Tensor `[kv_rank, head_dim_v, n_head]` (or the same as two dimensions).
        kv_b: Where `k_b` and `v_b` are missing: `[kv_rank, n_head * (n_nope + head_dim_v)]`, per head key
            rows, then value rows.
        kv_b_twin: A tensor like `kv_b` that stands in the file besides `k_b` and `v_b`. It is not read; the
            statistics of its input are kept for it.
        output: Projection of all heads' values.
        rope: Rotation of queries' and keys' rotated part.
        scale: Factor of the scores.
        temperature: Factor of queries by position.
    """

    n_head: int
    kv_rank: int
    n_rot: int
    n_nope: int
    head_dim_v: int
    q: Linear
    kv_a: Linear
    kv_a_norm: str
    output: Linear
    scale: float
    rope: Rope
    q_a: Linear | None = None
    q_a_norm: str | None = None
    k_b: str | None = None
    v_b: str | None = None
    kv_b: str | None = None
    kv_b_twin: str | None = None
    temperature: Temperature | None = None
    kind: Literal["mla"] = "mla"


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta-net: a recurrent layer with a state of `head_dim_k x head_dim_v` per value head.

    Attributes:
        n_head_k, n_head_v: Key (and query) heads, value heads.
        head_dim_k, head_dim_v: Their elements.
        conv_kernel: Taps of the convolution over time.
        qkv: All query heads, all key heads, all value heads. With `mixed` its rows are instead, per key head:
            query, key, its value heads, its gates.
        z: Output gate, one number per value element; `None` with `mixed`.
        beta, alpha: One row per value head; with `ba_grouped` both name the same tensor, whose rows are per
            key head the betas of its value heads, then their alphas.
        value_order: Value head j uses key head `j // (n_head_v // n_head_k)` if `grouped`, `j % n_head_k` if
            `tiled`.
        conv: Tensor of the convolution, `conv_kernel` numbers per channel of `qkv`.
        dt, a: Tensors of one number per value head: bias of alpha, and `-exp(A_log)`.
        norm: RMS norm of each value head's output (tensor of `head_dim_v` numbers).
        output: Projection of all value heads.
    """

    n_head_k: int
    n_head_v: int
    head_dim_k: int
    head_dim_v: int
    conv_kernel: int
    qkv: Linear
    z: Linear | None
    beta: Linear
    alpha: Linear
    value_order: Literal["grouped", "tiled"]
    conv: str
    dt: str
    a: str
    norm: str
    output: Linear
    mixed: bool = False
    ba_grouped: bool = False
    kind: Literal["delta_net"] = "delta_net"


@dataclass(frozen=True)
class DenseFfn:
    """`down( act(gate x) * up x )`, for every token.

    Attributes:
        input_gate: Tensor of one row: the result is multiplied with `sigmoid(input_gate . x)` (shared
            experts).
        limit: `act(gate x)` is at most this, and `up x` between it and its negative (`silu` only).
    """

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation = "silu"
    input_gate: str | None = None
    limit: float | None = None
    kind: Literal["dense"] = "dense"


@dataclass(frozen=True)
class Routing:
    """How a token chooses experts.

    With logits l = router(x): probabilities p are `softmax` (over all), `sigmoid`, or for `softmax_chosen`
    the logits themselves; the `n_used` largest of p + selection_bias are chosen, from the `n_group_used`
    groups with the largest sum of their two best; their weights are p (softmax over the chosen for
    `softmax_chosen`), divided by their sum where `normalize`, times `scale`.
    """

    n_expert: int
    n_used: int
    router: Linear
    func: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    selection_bias: str | None = None
    normalize: bool = False
    scale: float = 1.0
    n_group: int = 1
    n_group_used: int = 1


@dataclass(frozen=True)
class MoeNorms:
    """Norms of a mixture whose router, experts and shared FFN each read x normed in a way of their own.

    The experts read the layer's `ffn_norm`; the layer's `post_ffn_norm` is of the sum of both outputs.

    Attributes:
        router: RMS norm of what the router reads.
        router_scale: Factor of what the router reads.
        shared: RMS norm of what the shared FFN reads.
        shared_output, experts_output: RMS norms of what they give.
    """

    router: str
    router_scale: float
    shared: str
    shared_output: str
    experts_output: str


@dataclass(frozen=True)
class Moe:
    """A mixture of experts, with an optional FFN that every token takes; `limit` as of `DenseFfn`.

    Attributes:
        weighs_input: An expert's input is multiplied with its weight, not what it gives.
        norms: Where the parts have norms of their own; there is a shared FFN then.
    """

    routing: Routing
    gate: Linear
    up: Linear
    down: Linear
    activation: Activation = "silu"
    shared: DenseFfn | None = None
    limit: float | None = None
    weighs_input: bool = False
    norms: MoeNorms | None = None
    kind: Literal["moe"] = "moe"


@dataclass(frozen=True)
class LayerEmbedding:
    """What a layer does last with its part e of the model's `PerLayer` input.

        x = x + norm( proj( gelu(gate x) * e ) )

    Attributes:
        gate: From the residual stream to elements of e.
        proj: Back.
        norm: RMS norm.
    """

    gate: Linear
    proj: Linear
    norm: str


@dataclass(frozen=True)
class Layer:
    """One block; norms are tensor names, factors those of what the branches add.

    Attributes:
        parallel: The FFN reads x, not a.
        embedding: An embedding of the token of the layer's own, and how it is added.
        scale: Tensor of one number that x is multiplied with at the end.
    """

    attention_norm: str
    attention: Gqa | Mla | DeltaNet
    ffn_norm: str
    ffn: DenseFfn | Moe
    post_attention_norm: str | None = None
    post_ffn_norm: str | None = None
    attention_factor: float = 1.0
    ffn_factor: float = 1.0
    parallel: bool = False
    embedding: LayerEmbedding | None = None
    scale: str | None = None


@dataclass(frozen=True)
class PerLayer:
    """Embeddings that each layer has of its own, side by side in one tensor.

    From token t and x, the scaled embedding, layer l gets its `n` numbers of

        scale * ( embd_scale * embd(t) + norm( proj_scale * proj x ) )

    where the norm is of the numbers of each layer.

    Attributes:
        n: Elements per layer.
        embd: Tensor of rows of `n` elements for each layer.
        embd_scale: Factor of them.
        proj: Projection of x to as many.
        proj_scale: Factor of it.
        norm: RMS norm of `n` elements.
        scale: Factor of the sum.
    """

    n: int
    embd: str
    embd_scale: float
    proj: Linear
    proj_scale: float
    norm: str
    scale: float


@dataclass(frozen=True)
class Nextn:
    """What goes into a head that predicts further tokens; norms are tensor names.

    Attributes:
        enorm: RMS norm of the token's embedding.
        hnorm: RMS norm of the hidden state.
        eh_proj: Projection of both, one after the other, to the residual stream.
    """

    enorm: str
    hnorm: str
    eh_proj: Linear


@dataclass(frozen=True)
class ModelSpec:
    """A whole model, or the head of one that predicts further tokens.

    Attributes:
        architecture: `general.architecture`.
        n_vocab, n_embd: Rows and columns of the embedding.
        n_ctx_train: Context the model was trained for.
        norm_eps: Epsilon of every RMS norm.
        norm_kind: `layer`: norms of the residual stream subtract the mean first.
        token_embd: Tensor of embeddings.
        embd_scale: Factor of embeddings.
        output_norm: Last norm.
        output: Projection to logits (the embedding's tensor where they are tied); `None`: of a head that
            shares the model's.
        logit_scale: Factor of logits.
        final_softcap: Logits s become `softcap * tanh(s / softcap)`.
        n_ctx_most: Most positions for which what the engine computes is the model: with more, its attention
            leaves some out that an index or chunks do not choose. The engine refuses longer contexts.
        nextn: Of a head that predicts further tokens: how its input is made.
        per_layer: Embeddings of layers, for those that have an `embedding`.
        is_part: Some layers of a model: the first is given hidden states, and the last gives them, as they
            are. Embedding, last norm and output are not looked at.
        notes: Sentences for `explain` about what was assumed.
    """

    architecture: str
    n_vocab: int
    n_embd: int
    n_ctx_train: int
    norm_eps: float
    token_embd: str
    output_norm: str
    output: Linear | None
    layers: tuple[Layer, ...]
    embd_scale: float = 1.0
    logit_scale: float = 1.0
    norm_kind: Literal["rms", "layer"] = "rms"
    final_softcap: float | None = None
    n_ctx_most: int | None = None
    nextn: Nextn | None = None
    per_layer: PerLayer | None = None
    is_part: bool = False
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The spec as the engine reads it."""
        return json.dumps(self.to_dict())
