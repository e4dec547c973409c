"""Feed-forward parts: dense FFNs and mixtures of experts, from the tensors that a block has."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ikq.errors import UnsupportedError
from ikq.models.source import Block
from ikq.models.spec import Activation, DenseFfn, Linear, Moe, MoeNorms, Routing

__all__ = ["RoutingFunc", "SharedExpert", "dense_ffn", "is_leading_dense", "moe_ffn"]

RoutingFunc = Literal["softmax", "sigmoid", "softmax_chosen"]
SharedExpert = Literal["none", "plain", "gated"]

_FUNCS: dict[int, RoutingFunc] = {1: "softmax", 2: "sigmoid", 3: "softmax_chosen"}


def dense_ffn(block: Block, activation: Activation = "silu", *, limit: float | None = None) -> DenseFfn:
    """Every token's FFN, with a limit of gate and up if there is one.

    Raises:
        FormatError: a tensor is missing, or does not fit the others or the key.
    """
    ffn, width = _ffn(block, "", activation)
    key = "feed_forward_length"
    if block.keys.has(key) and block.integer(key) != width:
        raise block.keys.wrong(
            key, block.integer(key), f"{width} as in tensor `{block.name('ffn_up.weight')}`"
        )
    return dataclasses.replace(ffn, limit=limit)


def is_leading_dense(block: Block) -> bool:
    """Whether the layer is one of those before the first mixture.

    Raises:
        FormatError: the key counts more layers than there are.
    """
    return block.index < block.keys.integer("leading_dense_block_count", 0, high=block.source.n_block)


def moe_ffn(
    block: Block,
    *,
    func: RoutingFunc = "softmax",
    normalize: bool,
    shared: SharedExpert = "none",
    shared_width: Literal["key", "count", "unknown"] = "key",
    activation: Activation = "silu",
    width_key: str = "expert_feed_forward_length",
    limits: tuple[float | None, float | None] = (None, None),
    own_norms: bool = False,
) -> Moe:
    """A mixture of experts; keys override how the architecture routes.

    Args:
        block: the layer.
        func: how probabilities are made.
        normalize: whether the chosen weights are divided by their sum.
        shared: whether there is an FFN that every token takes, and whether it has a gate of its own.
        shared_width: which key says how wide that is: its own, the number of shared experts, or none.
        activation: of the experts.
        width_key: which key says how wide an expert is.
        limits: of the experts' gates and ups, and of those of the FFN that every token takes.
        own_norms: the layer's plain FFN is the shared one, and it, the router and the experts have norms of
            their own.

    Raises:
        FormatError: a tensor or key is missing, or they do not fit together.
        UnsupportedError: a routing function that is not supported.
    """
    keys, tensors = block.keys, block.tensors
    n_expert = keys.integer("expert_count", low=1)
    # `ffn_gate_inp.scale` is not of the product there
    router = tensors.linear(block.name("ffn_gate_inp"), block.n_embd, n_expert, scaled=not own_norms)
    gate, up, down, width = _experts(block, n_expert)
    keys_width = f"{width} as in tensor `{up.weight if isinstance(up.weight, str) else up.weight[0]}`"
    if keys.has(width_key) and block.integer(width_key) != width:
        raise keys.wrong(width_key, block.integer(width_key), keys_width)
    routing = _routing(block, n_expert, router, func, normalize)
    if own_norms:
        return Moe(routing, gate, up, down, activation, dense_ffn(block, activation), norms=_norms(block))
    always = None if shared == "none" else _shared(block, shared, shared_width, width, activation)
    if always is not None:
        always = dataclasses.replace(always, limit=limits[1])
    return Moe(routing, gate, up, down, activation, always, limits[0])


def _norms(block: Block) -> MoeNorms:
    return MoeNorms(
        router=block.tensors.vector(block.name("ffn_gate_inp.scale"), block.n_embd),
        router_scale=block.n_embd**-0.5,
        shared=block.norm("ffn_norm"),
        shared_output=block.norm("post_ffw_norm_1"),
        experts_output=block.norm("post_ffw_norm_2"),
    )


def _routing(block: Block, n_expert: int, router: Linear, func: RoutingFunc, normalize: bool) -> Routing:
    keys = block.keys
    n_used = keys.integer("expert_used_count", low=1, high=n_expert)
    number = keys.integer("expert_gating_func", 0)
    if number and number not in _FUNCS:
        known = ", ".join(f"{n} ({name})" for n, name in _FUNCS.items())
        raise UnsupportedError(
            f"key `{keys.full_name('expert_gating_func')}` is {number}; supported are {known}"
        )
    n_group = keys.integer("expert_group_count", 1) or 1
    n_group_used = 1
    if n_group > 1:
        # a group is judged by its two best members
        if n_expert % n_group or n_expert // n_group < 2:
            raise keys.wrong(
                "expert_group_count", n_group, f"a divisor of the {n_expert} experts into twos or more"
            )
        n_group_used = keys.integer("expert_group_used_count", low=1, high=n_group)
        if n_used > n_expert // n_group * n_group_used:
            raise keys.wrong(
                "expert_used_count", n_used, f"no more than {n_group_used} groups of experts hold"
            )
    return Routing(
        n_expert=n_expert,
        n_used=n_used,
        router=router,
        func=_FUNCS.get(number, func),
        selection_bias=block.tensors.optional_vector(block.name("exp_probs_b.bias"), n_expert),
        normalize=keys.flag("expert_weights_norm", normalize),
        scale=keys.number("expert_weights_scale", 1.0) or 1.0,
        n_group=n_group,
        n_group_used=n_group_used,
    )


def _experts(block: Block, n_expert: int) -> tuple[Linear, Linear, Linear, int]:
    """Gate, up and down of all experts, and their width."""
    tensors, n_embd = block.tensors, block.n_embd
    if block.has("ffn_gate.0.weight"):
        return _experts_apart(block, n_expert)
    merged = block.name("ffn_gate_up_exps")
    if f"{merged}.weight" in tensors:
        n_rows = tensors.rows(f"{merged}.weight")
        width = block.divide("ffn_gate_up_exps.weight", n_rows, "expert_count", 2)
        gate, up = (
            tensors.linear(merged, n_embd, n_rows, n_expert, rows=(first, width)) for first in (0, width)
        )
    else:
        width = tensors.rows(block.name("ffn_up_exps.weight"))
        gate = tensors.linear(block.name("ffn_gate_exps"), n_embd, width, n_expert)
        up = tensors.linear(block.name("ffn_up_exps"), n_embd, width, n_expert)
    return gate, up, tensors.linear(block.name("ffn_down_exps"), width, n_embd, n_expert), width


def _experts_apart(block: Block, n_expert: int) -> tuple[Linear, Linear, Linear, int]:
    """Older files: one tensor per expert."""
    tensors, n_embd = block.tensors, block.n_embd
    width = tensors.rows(block.name("ffn_up.0.weight"))

    def all_of(role: str, n_in: int, n_out: int) -> Linear:
        names = []
        for expert in range(n_expert):
            one = tensors.linear(block.name(f"ffn_{role}.{expert}"), n_in, n_out)
            if one.bias or one.scale:
                raise UnsupportedError(f"tensor `{one.bias or one.scale}`: experts apart with bias or scale")
            names.append(one.weight)
        return Linear(tuple(str(name) for name in names))

    return all_of("gate", n_embd, width), all_of("up", n_embd, width), all_of("down", width, n_embd), width


def _ffn(
    block: Block, suffix: str, activation: Activation, input_gate: str | None = None
) -> tuple[DenseFfn, int]:
    tensors, n_embd = block.tensors, block.n_embd
    width = tensors.rows(block.name(f"ffn_up{suffix}.weight"))
    gate = tensors.linear(block.name(f"ffn_gate{suffix}"), n_embd, width)
    up = tensors.linear(block.name(f"ffn_up{suffix}"), n_embd, width)
    down = tensors.linear(block.name(f"ffn_down{suffix}"), width, n_embd)
    return DenseFfn(gate, up, down, activation, input_gate), width


def _shared(
    block: Block, kind: SharedExpert, width_from: str, expert_width: int, activation: Activation
) -> DenseFfn | None:
    keys = block.keys
    count = keys.optional_integer("expert_shared_count")
    up = block.name("ffn_up_shexp.weight")
    if kind == "plain" and not count and up not in block.tensors:
        return None
    input_gate = None
    if kind == "gated":
        input_gate = block.tensors.vector(block.name("ffn_gate_inp_shexp.weight"), block.n_embd)
    ffn, width = _ffn(block, "_shexp", activation, input_gate)
    if width_from == "key":
        keys.check("expert_shared_feed_forward_length", width, up)
    elif width_from == "count" and count is not None and count * expert_width != width:
        raise keys.wrong("expert_shared_count", count, f"{width} / {expert_width} as in tensor `{up}`")
    return ffn
