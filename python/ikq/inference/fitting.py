"""The placement that fills the memory of GPUs and no more: `fit` (`--fit`).

Experts leave the GPUs first, those of the last layers before others: few of them are read for a token, so
they cost the least speed where the CPU computes them. Then layers leave them, the first ones before others (a
smaller `-ngl`). What stays is divided in the order of layers, and each GPU gets as many as it holds. What
weights, cache and buffers of a placement take is what the core says of it; here is only the search.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple, SupportsIndex

from ikq import cuda
from ikq.errors import DeviceMemoryError, RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.beside import Beside, planned
from ikq.inference.explaining import CacheRooms, Filled, Fitted, LoadingPlan
from ikq.inference.gpu_parts import blocks, rules_for_the_cpu
from ikq.inference.loading import PlacementOptions
from ikq.models import ModelSpec

__all__ = ["MARGIN", "FitOptions", "fit"]

MARGIN = 1024
"""MiB of a GPU's free memory that stay free: for compiled kernels, and for what other programs will have."""

_GROWTH = 1.25
"""A GPU's cache grows by a quarter more than is needed at the moment."""
_LEAST_CONTEXT = 512
_MIB = 2**20


@dataclass(frozen=True)
class FitOptions:
    """What a placement must leave room for.

    Attributes:
        margin: MiB that stay free.
        n_sequences: Texts of full length whose cache is held at once.
        n_ubatch: Most tokens of a step.
    """

    margin: int
    n_sequences: int
    n_ubatch: int

    def __post_init__(self) -> None:
        for name, value, low, what in (
            ("fit_margin", self.margin, 0, "MiB"),
            ("fit_sequences", self.n_sequences, 1, "texts"),
        ):
            if not isinstance(value, SupportsIndex):
                raise TypeError(f"{name}={value!r}: expected a whole number of {what}")
            if value < low:
                raise RefusedError(f"{name}={value}: expected {low} or more")


class _Gpu(NamedTuple):
    """A GPU, and the bytes of its memory that are free."""

    name: str
    free: int


@dataclass(frozen=True)
class _Level:
    """A placement: how much of the model is on GPUs."""

    n_gpu_layers: int
    cpu_moe: bool
    override_tensor: tuple[str, ...]


def fit(
    reader: GGUFReader,
    spec: ModelSpec,
    n_ctx: int | None,
    options: PlacementOptions,
    room: FitOptions,
    beside: Beside,
) -> Fitted:
    """The placement with most on GPUs that fits their free memory.

    Args:
        reader: The model's file.
        spec: What its model is.
        n_ctx: Most positions of a sequence. `None`: the trained context, or the largest half, quarter, ... of
            it whose cache takes at most a quarter of the free memory.
        options: As for loading; nothing may be said of where tensors go. `n_gpu_layers` but 0 is the most
            layers that may go to GPUs.
        room: What must be left.
        beside: What drafts the model's texts, for which there must be room as well.

    Raises:
        RefusedError: the options say already what goes where, or name another device than GPUs.
        DeviceError: no GPU is usable, or GPUs do not compute the model.
        DeviceMemoryError: none holds even one layer.
    """
    gpus, is_all = _gpus(options)
    # of the options of loading those that decide
    names = [field.name for field in fields(PlacementOptions)]
    deciding = PlacementOptions(
        **{name: getattr(options, name) for name in names} | {"devices": ["CPU", *(gpu.name for gpu in gpus)]}
    )
    search = _Search(reader, spec, deciding, room, gpus, beside)
    search.n_ctx = search.context() if n_ctx is None else n_ctx
    levels = search.levels(options.n_gpu_layers)
    # less is needed from level to level
    at = bisect_left(levels, True, key=lambda level: search.split(level) is not None)
    if at == len(levels):
        least = search.taken(levels[-1], (1, *(0 for _ in gpus[1:])))[0].needed / _MIB
        there = " and ".join(f"{gpu.name} has {gpu.free / _MIB:.1f} MiB free" for gpu in gpus)
        raise DeviceMemoryError(
            f"fit: {there}, and even one layer takes {least:.1f} MiB with its cache and buffers, beside the "
            f"margin of {room.margin} MiB; make the margin (--fit-margin) or the context (-c) smaller, or "
            "leave all layers on the CPU"
        )
    return search.fitted(levels[at], is_all)


def _gpus(options: PlacementOptions) -> tuple[tuple[_Gpu, ...], bool]:
    """The GPUs that are to be filled, and whether these are all that can be used."""
    if options.override_tensor or options.cpu_moe or options.n_cpu_moe or options.tensor_split:
        raise RefusedError(
            "fit decides what goes where: leave out override_tensor (-ot), tensor_split (-ts), cpu_moe "
            "(--cpu-moe) and n_cpu_moe (--n-cpu-moe), or fit (--fit)"
        )
    names = [name for name in options.devices if name != "CPU"]
    if others := [name for name in names if not name.startswith("CUDA")]:
        raise RefusedError(f"fit is for GPUs, such as CUDA0, not for {', '.join(others)}")
    cuda.require(memory=False)
    there = cuda.usable_devices()
    chosen = names or list(there)
    # a driver that does not tell what is free counts as one with nothing else on it; a full GPU is full
    free = {name: device["free_bytes"] for name, device in there.items()}
    sizes = {name: there[name]["memory_bytes"] if n is None else n for name, n in free.items()}
    return tuple(_Gpu(name, sizes[name]) for name in chosen), chosen == list(there)


class _Search:
    """What placements take of GPUs."""

    n_ctx: int

    def __init__(
        self,
        reader: GGUFReader,
        spec: ModelSpec,
        options: PlacementOptions,
        room: FitOptions,
        gpus: tuple[_Gpu, ...],
        beside: Beside,
    ) -> None:
        self._reader, self._spec, self._gpus = reader, spec, gpus
        self._options, self._room, self._beside = options, room, beside
        self._taken: dict[tuple[_Level, tuple[int, ...], int], tuple[Filled, ...]] = {}
        self._plans: dict[tuple[_Level, tuple[int, ...], int], LoadingPlan] = {}
        self._splits: dict[_Level, tuple[int, ...] | None] = {}

    @cached_property
    def _staying(self) -> tuple[str, ...]:
        """Rules that leave to the CPU what GPUs do not compute."""
        return rules_for_the_cpu(self._spec)

    def levels(self, most: int) -> list[_Level]:
        """Placements, the one with most on GPUs first."""
        n_layers = len(self._spec.layers)
        top = min(most or n_layers + 1, n_layers + 1)
        experts = [
            i for i, layer in enumerate(self._spec.layers) if layer.ffn.kind == "moe" and i >= n_layers - top
        ]
        levels = []
        for n in range(len(experts)):
            rule = (rf"{blocks(experts[-n:])}\.ffn_.*_exps=CPU",) if n else ()
            levels.append(_Level(top, False, self._staying + rule))
        for n in range(top, 0, -1):
            levels.append(_Level(n, bool(experts), self._staying))
        return levels

    def context(self) -> int:
        """The context where none is asked for."""
        everything = self.levels(0)[0]
        # the cache does not depend on what of it is where
        split = self._all_to(0, everything)
        n_bytes = sum(gpu.free for gpu in self._gpus)
        n_ctx = min(self._spec.n_ctx_train, self._spec.n_ctx_most or self._spec.n_ctx_train)
        while n_ctx > _LEAST_CONTEXT and self._plan(everything, split, n_ctx)[0].cache > n_bytes // 4:
            n_ctx //= 2
        return n_ctx

    def split(self, level: _Level) -> tuple[int, ...] | None:
        """How many layers (the output counts as one) of a placement each GPU gets: as many as it holds.

        `None`: together they do not hold all.
        """
        if level not in self._splits:
            self._splits[level] = self._split(level)
        return self._splits[level]

    def _split(self, level: _Level) -> tuple[int, ...] | None:
        counts: tuple[int, ...] = ()
        left = level.n_gpu_layers
        for i in range(len(self._gpus) - 1):

            def is_too_much(n: int, i: int = i, counts: tuple[int, ...] = counts, left: int = left) -> bool:
                rest = (left - n, *(0 for _ in self._gpus[i + 2 :]))
                return not self._holds(i, level, (*counts, n, *rest))

            n = bisect_left(range(1, left + 1), True, key=is_too_much)
            counts, left = (*counts, n), left - n
        counts = (*counts, left)
        return counts if self._holds(len(self._gpus) - 1, level, counts) else None

    def _holds(self, i: int, level: _Level, split: tuple[int, ...]) -> bool:
        budget = self._gpus[i].free - self._room.margin * _MIB
        return self.taken(level, split)[i].needed <= max(budget, 0)

    def _all_to(self, i: int, level: _Level) -> tuple[int, ...]:
        return tuple(level.n_gpu_layers if i == j else 0 for j in range(len(self._gpus)))

    def taken(self, level: _Level, split: tuple[int, ...]) -> tuple[Filled, ...]:
        """What a placement takes of each GPU."""
        return self._plan(level, split, self.n_ctx)

    def _plan(self, level: _Level, split: tuple[int, ...], n_ctx: int) -> tuple[Filled, ...]:
        key = level, split, n_ctx
        if key not in self._taken:
            options = replace(
                self._options,
                n_gpu_layers=level.n_gpu_layers,
                cpu_moe=level.cpu_moe,
                override_tensor=list(level.override_tensor),
                tensor_split=[float(n) for n in split],
            )
            n_ubatch = self._room.n_ubatch
            model = planned(self._reader, self._spec, n_ctx, n_ubatch, options)
            plan = self._plans[key] = self._beside.added(self._reader, model, n_ubatch, options)
            drafts = [p for p in (plan.mtp, plan.draft_model) if p is not None]
            self._taken[key] = tuple(
                Filled(gpu.name, gpu.free, *taken, sum(sum(self._of(p, gpu.name)) for p in drafts))
                for gpu in self._gpus
                for taken in [self._of(plan, gpu.name)]
            )
        return self._taken[key]

    def _of(self, plan: LoadingPlan, gpu: str) -> tuple[int, int, int]:
        """Bytes of weights, cache and buffers of a GPU."""
        cache = int(_GROWTH * self._room.n_sequences * plan.caches.get(gpu, 0))
        return plan.weights.get(gpu, 0), cache, plan.buffers.get(gpu, 0)

    def fitted(self, level: _Level, is_all: bool) -> Fitted:
        """A placement that fits, with what it takes."""
        split = self.split(level)
        assert split is not None
        return Fitted(
            devices=self.taken(level, split),
            margin=self._room.margin * _MIB,
            n_ctx=self.n_ctx,
            n_gpu_layers=level.n_gpu_layers,
            cpu_moe=level.cpu_moe,
            override_tensor=level.override_tensor,
            tensor_split=split if len(split) > 1 else (),
            is_all=is_all,
            rooms=self._rooms(self._plans[level, split, self.n_ctx]),
        )

    def _rooms(self, plan: LoadingPlan) -> CacheRooms:
        """How large caches may become, so that everybody finds what was counted for it."""
        rooms: dict[str, list[tuple[str, int, int]]] = {}
        parts = {"model": plan, "mtp": plan.mtp, "draft_model": plan.draft_model}
        there = {name: part for name, part in parts.items() if part is not None}
        for gpu in self._gpus:
            sizes = {name: self._of(part, gpu.name) for name, part in there.items()}
            for name, (_, cache, step) in sizes.items():
                # the model's weights are there when any cache grows; those of what drafts may come later
                others = [
                    sum(size) - (size[0] if other == "model" else 0)
                    for other, size in sizes.items()
                    if other != name
                ]
                left = self._room.margin * _MIB + step + sum(others)
                rooms.setdefault(name, []).append((gpu.name, cache, left))
        return CacheRooms(**{name: tuple(found) for name, found in rooms.items()})
