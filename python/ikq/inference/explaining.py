"""Where the parts of a model are computed and how much memory they take: `Explanation`, `LoadingPlan`."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from ikq.arrays.quant_types import QuantType

__all__ = [
    "CacheRooms",
    "Explanation",
    "FfnPlan",
    "Filled",
    "Fitted",
    "LoadingPlan",
    "Memory",
    "Placed",
]

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


class Filled(NamedTuple):
    """What a model takes of a GPU's memory.

    Attributes:
        device: Name of the GPU.
        memory: Bytes of its memory that were free.
        weights: Bytes of weights.
        cache: Bytes of the cache, for as many texts of full length as were asked for, as it grows.
        step: Bytes that a step takes at most.
        drafts: Bytes that a draft model and a head for further tokens take, of all these kinds.
    """

    device: str
    memory: int
    weights: int
    cache: int
    step: int
    drafts: int = 0

    @property
    def needed(self) -> int:
        """All that the model takes, with what drafts its texts."""
        return self.weights + self.cache + self.step + self.drafts

    @property
    def sentence(self) -> str:
        """The same in words."""
        parts = [("weights", self.weights), ("cache", self.cache), ("buffers", self.step)]
        parts += [("what drafts", self.drafts)] if self.drafts else []
        held = ", ".join(f"{name} of {n / _GIB:.3f} GiB" for name, n in parts)
        return (
            f"{self.device} holds {held}, together {self.needed / _GIB:.3f} of {self.memory / _GIB:.3f} GiB"
        )


class CacheRooms(NamedTuple):
    """How large caches may become on GPUs that `fit=True` has filled, so that nobody takes what others need.

    Each is a device, the bytes that were counted for its cache, and the bytes that must stay free when the
    cache becomes larger than that: for what others were promised, larger steps, and the margin.

    Attributes:
        model: The model's own cache.
        mtp: That of its head for further tokens, if it was to draft.
        draft_model: That of a draft model, if one was to draft.
    """

    model: tuple[tuple[str, int, int], ...] = ()
    mtp: tuple[tuple[str, int, int], ...] = ()
    draft_model: tuple[tuple[str, int, int], ...] = ()


class Fitted(NamedTuple):
    """The placement that `fit=True` found for GPUs, and what it takes of their memory.

    Attributes:
        devices: The GPUs.
        margin: Bytes that were to stay free on each.
        n_ctx: Most positions of a sequence.
        n_gpu_layers, cpu_moe, override_tensor, tensor_split: Options of `Model.load` that say the same.
        is_all: The GPUs are all that can be used here.
        rooms: How large caches may become.
    """

    devices: tuple[Filled, ...]
    margin: int
    n_ctx: int
    n_gpu_layers: int
    cpu_moe: bool
    override_tensor: tuple[str, ...]
    tensor_split: tuple[int, ...]
    is_all: bool
    rooms: CacheRooms = CacheRooms()

    @property
    def memory(self) -> int:
        """Bytes that were free, of all GPUs."""
        return sum(d.memory for d in self.devices)

    @property
    def weights(self) -> int:
        """Bytes of weights on all GPUs."""
        return sum(d.weights for d in self.devices)

    @property
    def cache(self) -> int:
        """Bytes of the cache on all GPUs."""
        return sum(d.cache for d in self.devices)

    @property
    def step(self) -> int:
        """Bytes that a step takes at most on all GPUs."""
        return sum(d.step for d in self.devices)

    @property
    def drafts(self) -> int:
        """Bytes that a draft model and a head for further tokens take on all GPUs."""
        return sum(d.drafts for d in self.devices)

    @property
    def needed(self) -> int:
        """Bytes that all this takes on all GPUs."""
        return sum(d.needed for d in self.devices)

    @property
    def placement(self) -> dict[str, Any]:
        """Keywords of `Model.load` and `Model.plan` that say the same of what goes where."""
        return {
            "devices": ["CPU", *(d.device for d in self.devices)],
            "n_gpu_layers": self.n_gpu_layers,
            "cpu_moe": self.cpu_moe,
            "override_tensor": list(self.override_tensor),
            "tensor_split": [float(n) for n in self.tensor_split],
        }

    @property
    def keywords(self) -> dict[str, Any]:
        """All keywords that do the same without `fit`."""
        return {"n_ctx": self.n_ctx, "fit": False, **self.placement}

    @property
    def options(self) -> str:
        """The same for a command line, quoted for a shell."""
        names = ",".join(d.device for d in self.devices)
        words = ["-c", str(self.n_ctx), *([] if self.is_all else ["-dev", names])]
        words += ["-ngl", str(self.n_gpu_layers), *(["--cpu-moe"] if self.cpu_moe else [])]
        if self.tensor_split:
            words += ["-ts", ",".join(map(str, self.tensor_split))]
        for rule in self.override_tensor:
            words += ["-ot", rule]
        return shlex.join(words)

    @property
    def sentence(self) -> str:
        """The options that say the same, and what the model takes of each GPU's memory."""
        held = "; ".join(f"{d.sentence} less {self.margin >> 20} MiB" for d in self.devices)
        return f"the same as {self.options}: {held}"


class LoadingPlan(NamedTuple):
    """The placement and memory of a model that `Model.plan` predicts.

    Attributes:
        placement: Where every stage of every layer would be computed, in order.
        weights: Bytes of weights by device, except those of the embedding, which stay mapped.
        caches: Bytes of the KV cache of one text of `n_ctx` tokens by device.
        n_ctx: As asked for, or the trained context; with `fit` what was chosen.
        fitted: What `fit` found; `None` without it.
        buffers: Bytes that a step of `n_ubatch` tokens takes at most on each GPU, besides weights and cache.
        mtp: The same of the head for further tokens, if it was asked for.
        draft_model: The same of the draft model, if one was named.
        assumed: GPUs that are named and taken to be there, though this machine has none that can be used.
    """

    placement: tuple[Placed, ...]
    weights: dict[str, int]
    caches: dict[str, int]
    n_ctx: int
    fitted: Fitted | None
    buffers: dict[str, int]
    mtp: LoadingPlan | None = None
    draft_model: LoadingPlan | None = None
    assumed: tuple[str, ...] = ()

    @property
    def cache(self) -> int:
        """Bytes of the KV cache of one text of `n_ctx` tokens."""
        return sum(self.caches.values())


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
        mtp: Where every stage of the head for further tokens is computed; none while it is not loaded.
        draft_models: The same of draft models that were loaded for it.
    """

    architecture: str
    ffn: tuple[FfnPlan, ...]
    placement: tuple[Placed, ...]
    memory: Memory
    why_memory: str
    loaded_by: tuple[str, ...]
    notes: tuple[str, ...]
    mtp: tuple[Placed, ...] = ()
    draft_models: tuple[Explanation, ...] = ()
