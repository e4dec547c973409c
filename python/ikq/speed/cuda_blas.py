"""Products on a GPU in tiles beside those by cuBLAS, measured, and the table of where cuBLAS is quicker.

A table is for one device. Models use it only where `IKQ_CUDA_BLAS` names its file: cuBLAS sums in an order
that depends on the sizes of a product, so the last bits of a token's results then hang on how many tokens a
step has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq, cuda
from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.errors import DeviceError, RefusedError
from ikq.files.whole_file import whole_file

__all__ = ["COLUMNS", "SHAPES", "BlasTable", "Measured", "measure_blas", "offered_types"]

FORMAT = 1
"""Version of the file."""

LEAST_COLUMNS = 65
"""Smaller steps are replayed as graphs, which have no products by cuBLAS."""

COLUMNS = (96, 128, 256, 512, 1024, 2048)
"""Numbers of columns (tokens) that are measured."""

SHAPES = ((1024, 2048), (4096, 4096), (14336, 4096), (4096, 14336))
"""Rows of matrices, and elements of a row."""

RANDOM_ROWS = 32
"""Rows of random codes, which come again and again: encoding takes longer than multiplying."""


@dataclass(frozen=True)
class Measured:
    """Medians of a product, in seconds.

    Attributes:
        type: The type of the weights.
        n_rows: Rows of the matrix.
        n: Elements of a row.
        n_columns: Columns that it was multiplied with.
        tiles: Seconds in tiles of this program.
        cublas: Seconds by cuBLAS, with decoding the weights.
    """

    type: str
    n_rows: int
    n: int
    n_columns: int
    tiles: float
    cublas: float


@dataclass(frozen=True)
class BlasTable:
    """From how many columns on cuBLAS is quicker than tiles, on one device.

    Attributes:
        device: The device's name.
        compute_capability: As `9.0`.
        n_multiprocessors: Of the device.
        emulated: It is the tests' stand-in, whose times mean nothing.
        driver: Version of the driver, where the system tells it.
        cuda: CUDA version of the driver.
        cublas: Version of cuBLAS.
        columns_from: By type; `None`: cuBLAS is not quicker in all shapes with any number that was measured.
        smallest: Rows, and elements of a row, below which nothing was measured, and cuBLAS is not used.
        measured: What was measured.
    """

    device: str
    compute_capability: str
    n_multiprocessors: int
    emulated: bool
    driver: str | None
    cuda: str | None
    cublas: str
    columns_from: dict[str, int | None]
    smallest: tuple[int, int]
    measured: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        found = asdict(self)
        found["from"] = found.pop("columns_from")
        return {"ikq_cuda_blas": FORMAT, **found}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `IKQ_CUDA_BLAS` can name.

        Args:
            path: The file.
        """
        with whole_file(Path(path)) as file:
            file.write(json.dumps(self.to_json(), indent=1).encode() + b"\n")


def offered_types() -> tuple[QuantType, ...]:
    """Types whose values bf16 keeps as well as products need: all but F16 and F32."""
    return tuple(t for t in QuantType if _ikq.cuda_blas_offers(t.id))


def measure_blas(
    types: Iterable[QuantType],
    *,
    device: str = "CUDA0",
    columns: Sequence[int] = COLUMNS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    turns: int = 5,
    repeats: int = 10,
    progress: Callable[[Measured], None] | None = None,
) -> BlasTable:
    """Measures products with some types, in tiles and by cuBLAS by turns.

    Args:
        types: Types of weights, from `offered_types`.
        device: The GPU.
        columns: Numbers of columns.
        shapes: Rows, and elements of a row, of matrices.
        turns: Measurements of each product, of which the median counts.
        repeats: Products of a measurement, one behind another.
        progress: Called after each product.

    Raises:
        DeviceError: There is no such GPU, or no cuBLAS; the message says what is missing, and how to get it.
        RefusedError: A number of columns, or a type, that models do not use cuBLAS for.
    """
    if few := [n for n in columns if n < LEAST_COLUMNS]:
        raise RefusedError(
            f"columns {few[0]}: cuBLAS is used in steps of {LEAST_COLUMNS} tokens and more only"
        )
    if not columns or not shapes or turns < 1 or repeats < 1:
        raise RefusedError("nothing is to be measured")
    chosen, offered = list(types), offered_types()
    if wrong := [t for t in chosen if t not in offered]:
        raise RefusedError(f"{wrong[0].name}: cuBLAS is not used for it: its values have more bits than bf16")
    found, usable = cuda.require(memory=False), cuda.usable_devices(memory=False)
    name = (_ikq.named_devices([device], [])[1:] or [device])[0]
    if name not in usable:
        raise DeviceError(f"there is no GPU {name}; there are {', '.join(usable)}")
    index, facts = list(usable).index(name), usable[name]
    places = (cuda.places_of_nvrtc(), cuda.places_of_cublas())
    _, version = _ikq.cuda_blas_version(*places, index)
    rng, counts = np.random.default_rng(0), sorted(set(columns))
    measured: list[Measured] = []
    for t in chosen:
        for n_rows, n in shapes:
            some = rng.standard_normal((min(RANDOM_ROWS, n_rows), n), dtype=np.float32) / np.float32(
                np.sqrt(n)
            )
            raw = _repeated(QTensor.quantize(some, t), t, n_rows)
            x = np.resize(rng.standard_normal((RANDOM_ROWS, n), dtype=np.float32), (counts[-1], n))
            seconds = _ikq.cuda_blas_seconds(*places, index, t.id, raw, n_rows, x, counts, turns, repeats)
            for count, (tiles, by_blas) in zip(counts, seconds, strict=True):
                measured.append(Measured(t.name, n_rows, n, count, median(tiles), median(by_blas)))
                if progress:
                    progress(measured[-1])
    return BlasTable(
        device=facts["name"],
        compute_capability=facts["compute_capability"],
        n_multiprocessors=facts["n_multiprocessors"],
        emulated=found["emulated"],
        driver=found["driver"],
        cuda=found["cuda_version"],
        cublas=version,
        columns_from={t.name: columns_from(m for m in measured if m.type == t.name) for t in chosen},
        smallest=(min(n_rows for n_rows, _ in shapes), min(n for _, n in shapes)),
        measured=tuple(measured),
    )


def columns_from(measured: Iterable[Measured]) -> int | None:
    """The least number of columns from which on cuBLAS is quicker with every shape.

    Args:
        measured: Of one type.
    """
    quicker: dict[int, bool] = {}
    for m in measured:
        quicker[m.n_columns] = quicker.get(m.n_columns, True) and m.cublas < m.tiles
    least = None
    for n_columns in sorted(quicker, reverse=True):
        if not quicker[n_columns]:
            break
        least = n_columns
    return least


def _repeated(tensor: QTensor, t: QuantType, n_rows: int) -> NDArray[np.uint8]:
    """The bytes of a matrix whose rows come again and again."""
    some, n = tensor.shape
    raw = np.ascontiguousarray(tensor.raw).reshape(-1).view(np.uint8)
    # a scale stands behind all rows of I2_S
    n_bytes = n // 4 if t is QuantType.I2_S else len(raw) // some
    rows, rest = raw[: some * n_bytes].reshape(some, n_bytes), raw[some * n_bytes :]
    return np.concatenate([np.resize(rows, (n_rows, n_bytes)).reshape(-1), rest])
