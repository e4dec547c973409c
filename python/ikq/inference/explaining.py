"""Where the parts of a model are computed and how much memory they take: `Explanation`, `LoadingPlan`."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from ikq.arrays.quant_types import QuantType

__all__ = ["Explanation", "FfnPlan", "Fitted", "LoadingPlan", "Memory", "Placed"]

_GIB = 2**30


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


class Fitted(NamedTuple):
    """The placement that `fit=True` found for a GPU, and what it takes of its memory.

    Attributes:
        device: Name of the GPU.
        memory: Bytes of its memory, all of them.
        margin: Bytes that were to stay free.
        weights: Bytes of weights there.
        cache: Bytes of the cache there, for as many texts of full length as were asked for, as it grows.
        step: Bytes that a step takes there at most.
        n_ctx: Most positions of a sequence.
        n_gpu_layers, cpu_moe, override_tensor: Options of `Model.load` that say the same.
    """

    device: str
    memory: int
    margin: int
    weights: int
    cache: int
    step: int
    n_ctx: int
    n_gpu_layers: int
    cpu_moe: bool
    override_tensor: tuple[str, ...]

    @property
    def needed(self) -> int:
        """Bytes that the model takes on the GPU."""
        return self.weights + self.cache + self.step

    @property
    def placement(self) -> dict[str, Any]:
        """Keywords of `Model.load` and `Model.plan` that say the same of what goes where."""
        return {
            "devices": ["CPU", self.device],
            "n_gpu_layers": self.n_gpu_layers,
            "cpu_moe": self.cpu_moe,
            "override_tensor": list(self.override_tensor),
        }

    @property
    def keywords(self) -> dict[str, Any]:
        """All keywords that do the same without `fit`."""
        return {"n_ctx": self.n_ctx, "fit": False, **self.placement}

    @property
    def options(self) -> str:
        """The same for a command line, quoted for a shell."""
        words = ["-c", str(self.n_ctx), *([] if self.device == "CUDA0" else ["-dev", self.device])]
        words += ["-ngl", str(self.n_gpu_layers), *(["--cpu-moe"] if self.cpu_moe else [])]
        for rule in self.override_tensor:
            words += ["-ot", rule]
        return shlex.join(words)

    @property
    def sentence(self) -> str:
        """The options that say the same, and what the model takes of the GPU's memory."""
        parts = (("weights", self.weights), ("cache", self.cache), ("buffers", self.step))
        return (
            f"the same as {self.options}: {self.device} holds "
            f"{', '.join(f'{name} of {n / _GIB:.3f} GiB' for name, n in parts)}, "
            f"together {self.needed / _GIB:.3f} of {self.memory / _GIB:.3f} GiB less {self.margin >> 20} MiB"
        )


class LoadingPlan(NamedTuple):
    """The placement and memory of a model that `Model.plan` predicts.

    Attributes:
        placement: Where every stage of every layer would be computed, in order.
        weights: Bytes of weights by device, except those of the embedding, which stay mapped.
        cache: Bytes of the KV cache of one text of `n_ctx` tokens.
        n_ctx: As asked for, or the trained context; with `fit` what was chosen.
        fitted: What `fit` found; `None` without it.
    """

    placement: tuple[Placed, ...]
    weights: dict[str, int]
    cache: int
    n_ctx: int
    fitted: Fitted | None = None


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
