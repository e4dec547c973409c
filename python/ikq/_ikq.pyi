"""Compiled core of ikq. Private: use the names of `ikq`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, final, overload

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_BEST",
    "CovarianceFile",
    "Coverage",
    "Engine",
    "Imatrix",
    "Metadata",
    "Model",
    "PlanWorker",
    "QuantizePlan",
    "QuantizeRun",
    "Sequence",
    "StatisticsCollector",
    "StatisticsFile",
    "TensorPlan",
    "TypeFacts",
    "__version__",
    "available_isas",
    "changed_tensors",
    "cuda_architecture",
    "cuda_blas_offers",
    "cuda_blas_product",
    "cuda_blas_seconds",
    "cuda_blas_version",
    "cuda_compile",
    "cuda_counts",
    "cuda_dequantize",
    "cuda_files",
    "cuda_plan",
    "cuda_product",
    "cuda_status",
    "cuda_warm",
    "dequantize",
    "distinct_and_hold",
    "ftype_of_type",
    "ftypes",
    "kernel_name",
    "kernel_self_test",
    "layout_fields",
    "limit_caches",
    "merge_covariances",
    "model_origin",
    "named_devices",
    "pack",
    "parse_type",
    "partial_files",
    "plan_quantize",
    "product",
    "product_speeds",
    "quantize",
    "repack",
    "roles",
    "row_bytes",
    "selected_isa",
    "tensor_bytes",
    "type_facts",
    "type_range",
    "unpack",
    "write_gguf",
    "write_statistics",
]

MOST_BEST: int
__version__: str

@final
class TypeFacts:
    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def row_header_bytes(self) -> int: ...
    @property
    def bpw(self) -> float: ...
    @property
    def family(self) -> str: ...
    @property
    def known_to(self) -> str: ...
    @property
    def imatrix(self) -> str: ...
    @property
    def fallback(self) -> int | None: ...
    @property
    def activation(self) -> int | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def base(self) -> int | None: ...
    @property
    def is_storable(self) -> bool: ...
    @property
    def can_encode(self) -> bool: ...

def type_facts() -> list[TypeFacts]: ...
def distinct_and_hold(numbers: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> bool: ...
def parse_type(name: str) -> int: ...
def row_bytes(ty: int, n_per_row: int) -> int: ...
def tensor_bytes(ty: int, shape: list[int]) -> int: ...
def named_devices(devices: list[str], override_tensor: list[str]) -> list[str]: ...
def limit_caches(engine: Engine, rooms: list[tuple[str, int, int]]) -> None: ...
def cuda_status(nvrtc: list[Path], cublas: list[Path], memory: bool) -> dict[str, Any]: ...
def cuda_blas_version(nvrtc: list[Path], cublas: list[Path], device: int) -> tuple[Path, str]: ...
def cuda_blas_offers(type_id: int) -> bool: ...
def cuda_blas_seconds(
    nvrtc: list[Path],
    cublas: list[Path],
    device: int,
    type_id: int,
    data: NDArray[np.uint8],
    n_rows: int,
    x: NDArray[np.float32],
    counts: list[int],
    turns: int,
    repeats: int,
) -> list[tuple[list[float], list[float]]]: ...
def cuda_blas_product(
    nvrtc: list[Path],
    cublas: list[Path],
    device: int,
    type_id: int,
    data: NDArray[np.uint8],
    n_rows: int,
    x: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    in_place: bool = False,
) -> NDArray[np.float32]: ...
def cuda_counts() -> dict[str, int]: ...
def cuda_files() -> list[str]: ...
def cuda_compile(
    nvrtc: list[Path],
    major: int,
    file: str,
    defines: list[tuple[str, str]],
    arch: str,
    options: list[str],
) -> tuple[bytes, str]: ...
def cuda_architecture(nvrtc: list[Path], major: int, text: str) -> str: ...
def cuda_warm(nvrtc: list[Path], major: int, type_ids: list[int], arch: str) -> list[tuple[str, bool]]: ...
def cuda_plan(kernel: str, shape: dict[str, Any]) -> dict[str, Any]: ...
def cuda_product(
    nvrtc: list[Path],
    device: int,
    type_id: int,
    data: NDArray[np.uint8],
    n_rows: int,
    x: NDArray[np.float32],
    replays: int,
) -> NDArray[np.float32]: ...
def cuda_dequantize(
    nvrtc: list[Path], device: int, type_id: int, data: NDArray[np.uint8], n_rows: int, n: int
) -> NDArray[np.float32]: ...
def selected_isa() -> str: ...
def available_isas() -> list[str]: ...
def dequantize(
    data: NDArray[np.uint8],
    ty: int,
    n_rows: int,
    n_per_row: int,
    n_threads: int | None,
    isa_name: str | None,
) -> NDArray[np.float32]: ...
def quantize(
    x: NDArray[np.float32],
    ty: int,
    n_experts: int | None,
    n_rows: int,
    n_per_row: int,
    importance: NDArray[np.float32] | None,
    biased: bool,
    clamp: bool,
    n_threads: int | None,
    isa_name: str | None,
) -> NDArray[np.uint8]: ...
def type_range(ty: int) -> tuple[float, float, float]: ...
def repack(
    data: NDArray[np.uint8], from_type: int, to_type: int, n_rows: int, n_per_row: int
) -> NDArray[np.uint8]: ...
def layout_fields(ty: int) -> tuple[int, list[tuple[str, int, int, int, bool]]]: ...
def unpack(
    data: NDArray[np.uint8], ty: int, n_rows: int, n_per_row: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint8]]: ...
def pack(
    headers: NDArray[np.uint8],
    values: NDArray[np.uint32],
    trailer: NDArray[np.uint8],
    ty: int,
    n_rows: int,
    n_per_row: int,
) -> NDArray[np.uint8]: ...

@final
class Metadata:
    def __new__(cls) -> Metadata: ...
    def __len__(self) -> int: ...
    def copy(self) -> Metadata: ...
    def keys(self) -> list[str]: ...
    def contains(self, key: str) -> bool: ...
    def get(self, key: str) -> object | None: ...
    def type_of(self, key: str) -> str | None: ...
    def set(self, key: str, type_name: str, value: object) -> None: ...
    def remove(self, key: str) -> bool: ...

@final
class Model:
    @staticmethod
    def open(path: str | os.PathLike[str]) -> Model: ...
    @staticmethod
    def made(
        files: list[str],
        metadata: Metadata,
        tensors: list[
            tuple[
                str,
                list[int],
                int,
                tuple[list[tuple[int, int, int]], int, NDArray[np.uint32] | None] | None,
            ]
        ],
        maker: Callable[[int, int, int], NDArray[np.uint8]],
    ) -> Model: ...
    def metadata(self) -> Metadata: ...
    def tensors(self) -> list[tuple[str, list[int], int, int]]: ...
    def shards(self) -> list[tuple[Path, int, int, int, int]]: ...
    def with_tensors_of(self, other: Model, names: list[str]) -> Model: ...
    def data(self, name: str) -> NDArray[np.uint8]: ...

@final
class Engine:
    @staticmethod
    def load(
        model: Model,
        spec: str,
        *,
        n_ctx: int | None,
        n_threads: int | None,
        n_ubatch: int,
        cache_type_k: str,
        cache_type_v: str,
        cache_rotation: bool,
        swa_full: bool,
        compute: str,
        fused_up_gate: bool,
        fused_moe: bool,
        merge_up_gate_experts: bool,
        expert_reduction: tuple[int, float] | None,
        mmap: str,
        devices: list[str],
        n_gpu_layers: int,
        tensor_split: list[float],
        override_tensor: list[str],
        cpu_moe: bool,
        n_cpu_moe: int,
        kv_offload: bool,
        isa_name: str | None,
        adapters: list[tuple[Model, str, float]] = ...,
    ) -> Engine: ...
    @staticmethod
    def plan(
        model: Model,
        spec: str,
        *,
        n_ctx: int,
        n_ubatch: int,
        cache_type_k: str,
        cache_type_v: str,
        cache_rotation: bool,
        swa_full: bool,
        fused_up_gate: bool,
        fused_moe: bool,
        merge_up_gate_experts: bool,
        devices: list[str],
        n_gpu_layers: int,
        tensor_split: list[float],
        override_tensor: list[str],
        cpu_moe: bool,
        n_cpu_moe: int,
        kv_offload: bool,
    ) -> tuple[list[tuple[str, str, int, str]], list[tuple[str, int, int, int]]]: ...
    def exchange(self, model: Model) -> Engine: ...
    def new_sequence(self, scales: list[float] | None = None) -> Sequence: ...
    @property
    def adapters(self) -> list[tuple[str, float]]: ...
    def set_scales(self, scales: list[float]) -> None: ...
    @overload
    def step(
        self, entries: list[tuple[Sequence, list[int], str, NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | None]: ...
    @overload
    def step(
        self, entries: list[tuple[Sequence, list[int], str | tuple[int, bool], NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | tuple[NDArray[np.int64], NDArray[np.float32]] | None]: ...
    def head(self, hidden: NDArray[np.float32], scales: list[float] | None = None) -> NDArray[np.float32]: ...
    def head_best(
        self, hidden: NDArray[np.float32], n: int, scales: list[float] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
    def load_sequence(self, path: str | os.PathLike[str]) -> Sequence: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def memory(self) -> tuple[int, int, int]: ...
    def sequence_bytes(self, n: int) -> int: ...
    def pages_held(self) -> list[tuple[int | None, int]]: ...
    @property
    def why_memory(self) -> str: ...
    def set_collector(self, collector: StatisticsCollector | None) -> None: ...
    def plans(self) -> list[tuple[int, str, str, str, list[str]]]: ...
    def placement(self) -> list[tuple[str, str, int, str]]: ...
    def close(self) -> None: ...

@final
class Sequence:
    @property
    def n_past(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def scales(self) -> list[float]: ...
    def fork(self) -> Sequence: ...
    def truncate(self, n: int) -> None: ...
    def rewindable(self, n: int) -> int: ...
    def shift(self, n_keep: int, n_discard: int) -> None: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    def close(self) -> None: ...

def kernel_name(type_id: int, isa_name: str | None) -> str: ...
def kernel_self_test(type_id: int, isa_name: str | None) -> float: ...
def product(
    type_id: int,
    data: NDArray[np.uint8],
    n_rows: int,
    x: NDArray[np.float32],
    compute: str,
    isa_name: str | None,
) -> NDArray[np.float32]: ...
def product_speeds(
    type_id: int, counts: list[int], n_threads: int | None, isa_name: str | None
) -> tuple[int, int, list[float], float, float | None]: ...
def write_gguf(
    path: str | os.PathLike[str],
    metadata: Metadata,
    tensors: list[tuple[str, list[int], int, NDArray[np.uint8]]],
    alignment: int | None,
    max_bytes: int | None,
    max_tensors: int | None,
    no_tensor_first_split: bool,
) -> list[Path]: ...

@final
class Imatrix:
    @staticmethod
    def open(path: str | os.PathLike[str]) -> Imatrix: ...
    @property
    def path(self) -> Path: ...
    @property
    def datasets(self) -> list[str]: ...
    @property
    def n_chunks(self) -> int | None: ...
    @property
    def all_experts(self) -> bool: ...
    def names(self) -> list[str]: ...
    def get(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None: ...
    def entry_for(self, name: str) -> str | None: ...

_Site = tuple[list[tuple[list[str], bool]], NDArray[np.float64], NDArray[np.uint64]]

@final
class StatisticsCollector:
    def __new__(
        cls,
        *,
        all_experts: bool,
        similarity: bool,
        output: bool,
        choices: bool,
        covariance_layers: tuple[int, int] | None = None,
        n_threads: int | None = None,
    ) -> StatisticsCollector: ...
    def write_covariances(
        self,
        path: str | os.PathLike[str],
        datasets: list[str],
        n_chunks: int,
        chunk_size: int,
        origin: str | None,
        identity: str | None,
    ) -> None: ...
    def restore_covariances(self, file: CovarianceFile) -> None: ...
    def choices(self) -> list[tuple[str, list[list[int]]]]: ...
    def commit(
        self,
        wanted: StatisticsCollector | None = None,
        products: tuple[list[str], NDArray[np.float32]] | None = None,
    ) -> None: ...
    def discard(self) -> None: ...
    def entries(self) -> list[tuple[str, NDArray[np.float64], NDArray[np.uint64]]]: ...
    def similarity(self) -> tuple[list[list[float]], int]: ...
    def state(self) -> tuple[list[_Site], list[list[float]], int]: ...
    def restore(self, sites: list[_Site], layers: list[list[float]], n_tokens: int) -> None: ...

@final
class StatisticsFile:
    @staticmethod
    def open(path: str | os.PathLike[str]) -> StatisticsFile: ...
    @property
    def datasets(self) -> list[str]: ...
    @property
    def n_chunks(self) -> int | None: ...
    @property
    def chunk_size(self) -> int | None: ...
    @property
    def all_experts(self) -> bool: ...
    @property
    def counts_are_calls(self) -> bool: ...
    def entries(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]: ...

@final
class CovarianceFile:
    @staticmethod
    def open(path: str | os.PathLike[str]) -> CovarianceFile: ...
    @property
    def datasets(self) -> list[str]: ...
    @property
    def n_chunks(self) -> int: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def identity(self) -> str | None: ...
    @property
    def n_sites(self) -> int: ...
    def site(
        self, index: int
    ) -> tuple[
        list[tuple[str, int | None]],
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.uint32],
        NDArray[np.float32],
    ]: ...

def model_origin(model: Model) -> str | None: ...
def merge_covariances(paths: list[str], out: str | os.PathLike[str]) -> None: ...
def write_statistics(
    path: str | os.PathLike[str],
    form: str,
    entries: list[tuple[str, NDArray[np.float64], NDArray[np.float32]]],
    *,
    datasets: list[str],
    n_chunks: int,
    chunk_size: int,
    all_experts: bool,
) -> None: ...
def ftypes() -> list[tuple[str, int | None, int | None, bool]]: ...

@final
class TensorPlan:
    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> list[int]: ...
    @property
    def from_type(self) -> int: ...
    @property
    def to_type(self) -> int: ...
    @property
    def copied(self) -> bool: ...
    @property
    def repacked(self) -> bool: ...
    @property
    def unbiased(self) -> bool: ...
    @property
    def feedback(self) -> str: ...
    @property
    def without_feedback(self) -> list[int]: ...
    @property
    def reason(self) -> str: ...
    @property
    def fallback_from(self) -> int | None: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def statistics(self) -> str: ...
    @property
    def unseen_experts(self) -> list[int]: ...
    @property
    def thin_experts(self) -> list[int]: ...

@final
class Coverage:
    @property
    def n_tensors(self) -> int: ...
    @property
    def n_covered(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def n_experts_seen(self) -> int: ...
    @property
    def missing(self) -> list[str]: ...
    @property
    def borrowed(self) -> list[tuple[str, str]]: ...
    @property
    def partial(self) -> list[tuple[str, int, int]]: ...
    @property
    def left_out(self) -> list[str]: ...
    @property
    def is_complete(self) -> bool: ...

@final
class QuantizePlan:
    def tensors(self) -> list[TensorPlan]: ...
    def coverage(self) -> Coverage | None: ...
    @property
    def shards(self) -> list[int]: ...
    @property
    def total_bytes(self) -> int: ...
    def memory(
        self, n_threads: int | None, *, max_ram: int | None, measure_errors: bool
    ) -> tuple[int, int]: ...
    def seconds(
        self,
        folder: str | os.PathLike[str],
        n_threads: int | None,
        *,
        isa_name: str | None,
        measure_errors: bool,
    ) -> float: ...
    def run(
        self,
        target: str | os.PathLike[str],
        *,
        n_threads: int | None,
        isa_name: str | None,
        restart: bool,
        reuse: list[str],
        keep_finished: bool,
        measure_errors: bool,
        clamp: bool,
        progress: Callable[[int, float, bool, float], None] | None,
        on_bytes: Callable[[int], None] | None,
        on_note: Callable[[str], None] | None,
        outside: _Outside | None = None,
    ) -> QuantizeRun: ...

# what `QuantizePlan.run` calls; the core has no class of this name
class _Outside(Protocol):
    def begin(self, numbers: list[int], /) -> None: ...
    def next(self) -> list[tuple[int, bytes, bytes | None]]: ...

@final
class PlanWorker:
    def __new__(
        cls, plan: QuantizePlan, *, isa_name: str | None, measure_errors: bool, clamp: bool
    ) -> PlanWorker: ...
    @property
    def identity(self) -> int: ...
    @property
    def n_units(self) -> int: ...
    def spot(self, number: int) -> tuple[int, int]: ...
    def unit(self, number: int) -> tuple[bytes, bytes]: ...

def partial_files(plan: QuantizePlan, target: str | os.PathLike[str]) -> list[Path]: ...

@final
class QuantizeRun:
    @property
    def files(self) -> list[Path]: ...
    @property
    def n_items(self) -> int: ...
    @property
    def n_resumed(self) -> int: ...
    @property
    def n_damaged(self) -> int: ...
    @property
    def tensors(
        self,
    ) -> list[tuple[str, float, bool, float, tuple[float, float, float, float, list[float]] | None]]: ...

def plan_quantize(
    model: Model, ftype: str, imatrix: Imatrix | None, wishes: Mapping[str, object]
) -> QuantizePlan: ...
def changed_tensors(model: Model, *, n_threads: int | None) -> tuple[int, list[str]]: ...
def roles() -> list[str]: ...
def ftype_of_type(ty: int) -> str | None: ...
