"""Options of loading a model, and engines made with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ikq import _ikq
from ikq.errors import FormatError
from ikq.files.gguf import GGUFReader
from ikq.inference.lora import LoraAdapter, opened, with_file
from ikq.models import ModelSpec, model_spec, mtp_spec

__all__ = [
    "PLANNED",
    "Drafts",
    "FileOptions",
    "LoadingOptions",
    "PlacementOptions",
    "rules",
    "share_of_experts",
]

PLANNED = (
    "n_ctx",
    "cache_type_k",
    "cache_type_v",
    "cache_rotation",
    "swa_full",
    "fused_up_gate",
    "fused_moe",
    "merge_up_gate_experts",
    "devices",
    "n_gpu_layers",
    "tensor_split",
    "override_tensor",
    "cpu_moe",
    "n_cpu_moe",
    "kv_offload",
    "fit",
    "fit_margin",
    "fit_sequences",
    "n_ubatch",
    "override_kv",
    "mtp",
    "draft_model",
    "draft_options",
)
"""Options of `Model.load` that command lines hand to `Model.plan` as well: they decide what goes where, and
how much memory it takes there."""


@dataclass(frozen=True)
class Drafts:
    """What is to draft a model's texts, see `Model.load`."""

    mtp: bool
    draft_model: str | os.PathLike[str] | None
    draft_options: Mapping[str, Any] | None


@dataclass(frozen=True)
class FileOptions:
    """How a file is read, see `Model.load`."""

    yarn_truncate: bool
    override_kv: Mapping[str, bool | int | float | str] | None

    def open(self, path: str | os.PathLike[str]) -> GGUFReader:
        """The file with the metadata that override its own."""
        reader = GGUFReader(path)
        reader.metadata.update(self.override_kv or {})
        return reader

    def spec(self, reader: GGUFReader) -> ModelSpec:
        """What the file's model is."""
        return model_spec(reader, yarn_truncate=self.yarn_truncate)

    def mtp_spec(self, reader: GGUFReader) -> ModelSpec | None:
        """What the file's head for further tokens is; `None`: it has none."""
        return mtp_spec(reader, yarn_truncate=self.yarn_truncate)


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """What decides what goes where, and how large cache and buffers are: keywords of `_ikq.Engine.plan`."""

    cache_type_k: str
    cache_type_v: str
    cache_rotation: bool
    swa_full: bool
    fused_up_gate: bool
    fused_moe: bool
    merge_up_gate_experts: bool
    devices: list[str]
    n_gpu_layers: int
    tensor_split: list[float]
    override_tensor: list[str]
    cpu_moe: bool
    n_cpu_moe: int
    kv_offload: bool


@dataclass(frozen=True, kw_only=True)
class LoadingOptions(PlacementOptions):
    """Keywords of `_ikq.Engine.load`, the same for a model and its head for further tokens."""

    n_threads: int | None
    n_ubatch: int
    compute: Literal["auto", "f32"]
    expert_reduction: tuple[int, float] | None
    mmap: Literal["auto", "on", "off"]

    def engine(
        self,
        reader: GGUFReader,
        spec: ModelSpec,
        n_ctx: int | None,
        lora: Sequence[LoraAdapter] = (),
    ) -> _ikq.Engine:
        """The engine of a file, for sequences of at most `n_ctx` tokens, with adapters.

        Errors are those of `Model.load`.
        """
        with ExitStack() as stack:
            adapters = opened(lora, stack)
            try:
                return _ikq.Engine.load(
                    reader._opened(),
                    spec.to_json(),
                    n_ctx=n_ctx,
                    isa_name=None,
                    adapters=adapters,
                    **vars(self),
                )
            except FormatError as error:
                raise with_file(error, lora) from None

    def head_engine(
        self,
        path: Path,
        file_options: FileOptions,
        rooms: Sequence[tuple[str, int, int]],
        n_ctx: int,
    ) -> tuple[_ikq.Engine, ModelSpec] | None:
        """The engine of the file's head for further tokens, without adapters; `None`: it has none."""
        with file_options.open(path) as reader:
            spec = file_options.mtp_spec(reader)
            if spec is None:
                return None
            engine = self.engine(reader, spec, n_ctx)
            if rooms:
                _ikq.limit_caches(engine, list(rooms))
            return engine, spec


def share_of_experts(reduction: tuple[int, float] | None) -> tuple[int, float] | None:
    """What `expert_reduction` says, checked.

    Raises:
        ValueError: no expert would be left, or the share is none.
    """
    if reduction is None:
        return None
    k, t = reduction
    if k < 1 or not 0 <= t <= 1:
        raise ValueError(f"expert_reduction={reduction}: at least 1 expert, a share of 0 to 1")
    return int(k), float(t)


def rules(override_tensor: str | Sequence[str]) -> list[str]:
    """Rules of `override_tensor`, of which one may come without a list."""
    return [override_tensor] if isinstance(override_tensor, str) else list(override_tensor)
