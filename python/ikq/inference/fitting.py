"""The placement that fills a GPU's memory and no more: `fit` (`--fit`).

Experts leave the GPU first, those of the last layers before others: few of them are read for a token, so
they cost the least speed where the CPU computes them. Then layers leave it, the first ones before others (a
smaller `-ngl`). What weights and cache of a placement take is what the core says of it; here is only the
search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from ikq import _ikq, cuda
from ikq.errors import DeviceError, RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.explaining import Fitted, Placed
from ikq.inference.loading import PlacementOptions
from ikq.inference.step_memory import step_bytes
from ikq.models import ModelSpec

__all__ = ["MARGIN", "FitOptions", "fit"]

MARGIN = 1024
"""MiB of a GPU's memory that stay free: its context, compiled kernels, what other programs have."""

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
        for name, value, low in (("fit_margin", self.margin, 0), ("fit_sequences", self.n_sequences, 1)):
            if value < low:
                raise RefusedError(f"{name}={value}: expected {low} or more")


@dataclass(frozen=True)
class _Level:
    """A placement: how much of the model is on the GPU."""

    n_gpu_layers: int
    cpu_moe: bool
    override_tensor: tuple[str, ...]


def fit(
    reader: GGUFReader, spec: ModelSpec, n_ctx: int | None, options: PlacementOptions, room: FitOptions
) -> Fitted:
    """The placement with most on the GPU that fits its memory.

    Args:
        reader: The model's file.
        spec: What its model is.
        n_ctx: Most positions of a sequence. `None`: the trained context, or the largest half, quarter, ... of
            it whose cache takes at most a quarter of the GPU's memory.
        options: As for loading; nothing may be said of where tensors go. `n_gpu_layers` but 0 is the most
            layers that may go to the GPU.
        room: What must be left.

    Raises:
        RefusedError: the options say already what goes where, or name another device than one GPU.
        DeviceError: no GPU is usable, it does not hold even one layer, or does not compute the model.
    """
    device = _device(options)
    n_bytes = _memory(device)
    # of the options of loading those that decide
    names = [field.name for field in fields(PlacementOptions)]
    deciding = PlacementOptions(
        **{name: getattr(options, name) for name in names} | {"devices": ["CPU", device]}
    )
    search = _Search(reader, spec, deciding, room, device)
    search.n_ctx = search.context(n_bytes) if n_ctx is None else n_ctx
    levels = search.levels(options.n_gpu_layers)
    budget = n_bytes - room.margin * _MIB
    # less is needed from level to level
    at = bisect_left(levels, True, key=lambda level: search.needed(level) <= budget)
    if at == len(levels):
        least = search.needed(levels[-1]) / _MIB
        raise DeviceError(
            f"fit: {device} has {n_bytes / _MIB:.1f} MiB, and even one layer takes {least:.1f} MiB with its "
            f"cache and buffers, beside the margin of {room.margin} MiB; make the margin (--fit-margin) or "
            "the context (-c) smaller, or leave all layers on the CPU"
        )
    return search.fitted(levels[at], n_bytes)


def _device(options: PlacementOptions) -> str:
    """The GPU to be filled."""
    if options.override_tensor or options.cpu_moe or options.n_cpu_moe:
        raise RefusedError(
            "fit decides what goes where: leave out override_tensor (-ot), cpu_moe (--cpu-moe) and n_cpu_moe "
            "(--n-cpu-moe), or fit (--fit)"
        )
    others = [name for name in options.devices if name.upper() != "CPU"]
    name = others[0].upper() if others else "CUDA0"
    if len(others) > 1 or not name.startswith("CUDA"):
        raise RefusedError(f"fit is for one GPU, such as CUDA0, not for {', '.join(others)}")
    return name


def _memory(device: str) -> int:
    """Bytes of a GPU's memory, all of them."""
    devices = cuda.require()["devices"]
    index = device.removeprefix("CUDA")
    if not (index.isdecimal() and int(index) < len(devices)):
        raise DeviceError(f"there is no GPU {index}; there are {len(devices)}")
    return devices[int(index)]["memory_bytes"]


class _Search:
    """What placements take of a GPU."""

    n_ctx: int

    def __init__(
        self,
        reader: GGUFReader,
        spec: ModelSpec,
        options: PlacementOptions,
        room: FitOptions,
        device: str,
    ) -> None:
        self._reader, self._spec, self._device = reader, spec, device
        self._options, self._room = options, room
        self._json = spec.to_json()
        self._found: dict[_Level, tuple[int, int, int]] = {}
        self._caches: dict[tuple[int, int], int] = {}

    @cached_property
    def _recurrent(self) -> tuple[str, ...]:
        """Rules that leave recurrent layers to the CPU: how many snapshots they will keep is not known."""
        numbers = [i for i, layer in enumerate(self._spec.layers) if layer.attention.kind == "delta_net"]
        return (rf"{_blocks(numbers)}\.(attn|ssm)_.*=CPU",) if numbers else ()

    def levels(self, most: int) -> list[_Level]:
        """Placements, the one with most on the GPU first."""
        n_layers = len(self._spec.layers)
        top = min(most or n_layers + 1, n_layers + 1)
        experts = [
            i for i, layer in enumerate(self._spec.layers) if layer.ffn.kind == "moe" and i >= n_layers - top
        ]
        levels = []
        for n in range(len(experts)):
            rule = (rf"{_blocks(experts[-n:])}\.ffn_.*_exps=CPU",) if n else ()
            levels.append(_Level(top, False, self._recurrent + rule))
        for n in range(top, 0, -1):
            levels.append(_Level(n, bool(experts), self._recurrent))
        return levels

    def context(self, n_bytes: int) -> int:
        """The context where none is asked for."""
        n_ctx = self._spec.n_ctx_train
        while n_ctx > _LEAST_CONTEXT and self._cache(len(self._spec.layers), n_ctx) > n_bytes // 4:
            n_ctx //= 2
        return n_ctx

    def needed(self, level: _Level) -> int:
        """Bytes of weights, cache and buffers on the GPU."""
        return sum(self._parts(level))

    def _parts(self, level: _Level) -> tuple[int, int, int]:
        if level not in self._found:
            placement, weights, _ = self._plan(self._json, level, self.n_ctx)
            step = step_bytes(
                self._reader,
                self._spec,
                [Placed(*p) for p in placement],
                self._device,
                n_ubatch=self._room.n_ubatch,
                n_ctx=self.n_ctx,
            )
            cache = self._cache(level.n_gpu_layers, self.n_ctx)
            self._found[level] = (dict(weights)[self._device], cache, step)
        return self._found[level]

    def _cache(self, n_gpu_layers: int, n_ctx: int) -> int:
        """Bytes of the cache of the last layers, which the core tells of a model that has no others."""
        key = n_gpu_layers, n_ctx
        if key not in self._caches:
            self._caches[key] = self._cache_of(n_gpu_layers, n_ctx)
        return self._caches[key]

    def _cache_of(self, n_gpu_layers: int, n_ctx: int) -> int:
        layers = self._spec.layers[-n_gpu_layers:]
        layers = tuple(layer for layer in layers if layer.attention.kind != "delta_net")
        if not layers:
            return 0
        part = replace(self._spec, layers=layers, is_part=True, output=None, nextn=None)
        _, _, cache = self._plan(part.to_json(), _Level(len(layers), False, ()), n_ctx)
        return int(_GROWTH * self._room.n_sequences * cache)

    def _plan(
        self, spec: str, level: _Level, n_ctx: int
    ) -> tuple[list[tuple[str, str, int, str]], list[tuple[str, int]], int]:
        options = replace(
            self._options,
            n_gpu_layers=level.n_gpu_layers,
            cpu_moe=level.cpu_moe,
            override_tensor=list(level.override_tensor),
        )
        return _ikq.Engine.plan(self._reader._opened(), spec, n_ctx=n_ctx, **vars(options))

    def fitted(self, level: _Level, n_bytes: int) -> Fitted:
        """A placement with what it takes."""
        weights, cache, step = self._parts(level)
        return Fitted(
            device=self._device,
            memory=n_bytes,
            margin=self._room.margin * _MIB,
            weights=weights,
            cache=cache,
            step=step,
            n_ctx=self.n_ctx,
            n_gpu_layers=level.n_gpu_layers,
            cpu_moe=level.cpu_moe,
            override_tensor=level.override_tensor,
        )


def _blocks(layers: Sequence[int]) -> str:
    """An expression for the names of tensors of these layers."""
    numbers = "|".join(map(str, layers))
    return rf"blk\.({numbers})" if len(layers) > 1 else rf"blk\.{numbers}"
