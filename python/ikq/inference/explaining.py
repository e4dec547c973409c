"""Where the parts of a model are computed and how much memory they take: `Explanation`, `LoadingPlan`."""

from __future__ import annotations

from typing import NamedTuple

from ikq.arrays.quant_types import QuantType

__all__ = ["Explanation", "FfnPlan", "LoadingPlan", "Memory", "Placed"]


class FfnPlan(NamedTuple):
    """How a layer's FFN is computed.

    Attributes:
        layer: Index of the layer.
        role: `dense`, `experts` or `shared`.
        plan: `fused`, `merged` or `separate`.
        why: The reason.
        gate, up, down: Types of the weights.
    """

    layer: int
    role: str
    plan: str
    why: str
    gate: QuantType
    up: QuantType
    down: QuantType


class Placed(NamedTuple):
    """Where a part of the model is computed.

    Attributes:
        stage: The part: `embedding`, `layer 3, attention`, `layer 3, experts`, ..., `output`.
        device: Name of the device.
        bytes: Bytes of its matrices in the file.
        why: The reason.
    """

    stage: str
    device: str
    bytes: int
    why: str


class Memory(NamedTuple):
    """Bytes that a model takes.

    Attributes:
        mapped: Weights read from the mapped files.
        copied: Weights copied to memory of this process, or of GPUs.
        cache: The KV cache and recurrent states that sequences hold at the moment; what they share is counted
            once. Those that the model keeps for texts with the same beginning are included.
    """

    mapped: int
    copied: int
    cache: int


class LoadingPlan(NamedTuple):
    """The placement and memory of a model that `Model.plan` predicts.

    Attributes:
        placement: Where every stage of every layer would be computed, in order.
        weights: Bytes of weights by device, except those of the embedding, which stay mapped.
        cache: Bytes of the KV cache of one text of `n_ctx` tokens.
        n_ctx: As asked for, or the trained context.
    """

    placement: tuple[Placed, ...]
    weights: dict[str, int]
    cache: int
    n_ctx: int


class Explanation(NamedTuple):
    """The result of `Model.explain`.

    Attributes:
        architecture: Name of the architecture.
        ffn: One plan per FFN, in order of layers.
        placement: Where every stage of every layer is computed, in order.
        memory: Where the weights are.
        why_memory: Why they were copied or not.
        loaded_by: Programs that know every tensor type of the file.
        notes: What was assumed because the file does not say it, and options that have no effect.
    """

    architecture: str
    ffn: tuple[FfnPlan, ...]
    placement: tuple[Placed, ...]
    memory: Memory
    why_memory: str
    loaded_by: tuple[str, ...]
    notes: tuple[str, ...]
