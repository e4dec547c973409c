"""Matrices that are read row by row, wherever their numbers come from.

A `Matrix` stands for a tensor of the output: matrices (experts) one behind the other, as rows. `rows`
gives some of them as numbers; nothing is read before. What only changes places (`Stored`, `Stacked`,
`Columns`, `Permuted`) keeps the bits. `runs` says where the bytes lie when rows are runs of bytes of
files, in whatever order, which are then copied without a detour through Python.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.safetensors import SafeTensor, SafetensorsFile
from ikq.errors import FormatError

__all__ = [
    "Columns",
    "Computed",
    "Flat",
    "FloatKind",
    "Given",
    "Matrix",
    "Permuted",
    "Piece",
    "RowRange",
    "Rows",
    "Runs",
    "Stacked",
    "Stored",
    "Transposed",
    "bf16_to_f32",
    "f32_to_bf16",
    "to_float32",
]

FloatKind = Literal["F32", "F16", "BF16"]

_NUMPY: dict[str, np.dtype[np.generic]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


class Piece(NamedTuple):
    """A run of bytes of a file."""

    file: SafetensorsFile
    offset: int
    nbytes: int


class Runs(NamedTuple):
    """Rows that are runs of bytes of files.

    Attributes:
        pieces: The bytes, to be joined.
        order: Row `i` is row `order[i]` of what is joined; None is its own order.
    """

    pieces: list[Piece]
    order: NDArray[np.uint32] | None = None


class Matrix(Protocol):
    """Rows of numbers.

    Attributes:
        n_rows: Rows, those of all experts.
        n_per_row: Numbers in a row.
        kind: What `rows` gives: float32, float16, or the upper halves of float32 as uint16.
    """

    n_rows: int
    n_per_row: int
    kind: FloatKind

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """Rows `first` to `first + n`, [n, n_per_row]; float32, float16 or uint16 as `kind` says."""
        ...

    def runs(self) -> Runs | None:
        """Where the rows lie, if they are runs of bytes of files."""
        ...

    def release(self, first: int, n: int) -> None:
        """Tells the system that what these rows were read from is not needed soon."""
        ...


class Rows:
    """What most matrices have in common: rows that are computed."""

    def runs(self) -> Runs | None:
        """Computed rows lie nowhere."""
        return None

    def release(self, first: int, n: int) -> None:
        """Most matrices are small, or read what they are made from more than once."""
        del first, n


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers whose upper halves are given."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def f32_to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16, to even where two are as near; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    # in place: rows in work are large against a cache
    work = bits >> np.uint32(16)
    work &= np.uint32(1)
    work += np.uint32(0x7FFF)
    work += bits
    work >>= np.uint32(16)
    rounded = work.astype(np.uint16)
    is_nan = np.isnan(x)
    if is_nan.any():
        rounded[is_nan] = (bits[is_nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(64)
    return rounded


def to_float32(rows: NDArray[np.generic], kind: FloatKind) -> NDArray[np.float32]:
    """Rows of a matrix as float32, which holds all kinds exactly."""
    if kind == "BF16":
        return bf16_to_f32(np.asarray(rows, np.uint16))
    return np.ascontiguousarray(rows, np.float32)


def _own_order(n: int) -> NDArray[np.uint32]:
    """Rows one behind the other."""
    return np.arange(n, dtype=np.uint32)


class Stored:
    """A float tensor as a checkpoint has it; its last axis is a row."""

    def __init__(self, tensor: SafeTensor, shape: tuple[int, int] | None = None) -> None:
        """Looks at the tensor.

        Args:
            tensor: of F32, F16 or BF16.
            shape: rows and columns, where not those of the tensor.

        Raises:
            FormatError: it is no tensor of floats.
        """
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise FormatError(f"tensor `{tensor.name}` is of {tensor.dtype}, where floats are expected")
        self.kind: FloatKind = tensor.dtype  # type: ignore[assignment]  # just checked
        self.tensor = tensor
        n_per_row = tensor.shape[-1] if tensor.shape else 1
        n_elements = math.prod(tensor.shape)
        self.n_rows, self.n_per_row = shape or (n_elements // n_per_row if n_per_row else 0, n_per_row)
        if self.n_rows * self.n_per_row != n_elements:
            raise FormatError(f"tensor `{tensor.name}` has the shape {tensor.shape}, not {shape}")

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        dtype = _NUMPY[self.kind]
        size = self.n_per_row * dtype.itemsize
        raw = self.tensor.file.view(self.tensor.offset + first * size, n * size)
        return raw.view(dtype).reshape(n, self.n_per_row)

    def runs(self) -> Runs | None:
        """As `Matrix.runs`."""
        return Runs([Piece(self.tensor.file, self.tensor.offset, self.tensor.nbytes)])

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        size = self.n_per_row * _NUMPY[self.kind].itemsize
        self.tensor.file.release(self.tensor.offset + first * size, n * size)


class Stacked:
    """Matrices one behind the other."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self.parts = list(parts)
        self.n_per_row = parts[0].n_per_row
        kinds = {p.kind for p in parts}
        self.kind: FloatKind = parts[0].kind if len(kinds) == 1 else "F32"
        self._ends = list(accumulate(p.n_rows for p in parts))
        self.n_rows: int = self._ends[-1]

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        found: list[NDArray[np.generic]] = []
        at, end = first, first + n
        while at < end:
            index = bisect_right(self._ends, at)
            part = self.parts[index]
            begin = self._ends[index] - part.n_rows
            take = min(end, self._ends[index]) - at
            rows = part.rows(at - begin, take)
            found.append(rows if part.kind == self.kind else to_float32(rows, part.kind))
            at += take
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else self.parts[0].rows(0, 0)

    def runs(self) -> Runs | None:
        """As `Matrix.runs`."""
        if any(p.kind != self.kind for p in self.parts):
            return None
        found = [part.runs() for part in self.parts]
        runs = [r for r in found if r is not None]
        if len(runs) < len(found):
            return None
        pieces = [piece for r in runs for piece in r.pieces]
        if all(r.order is None for r in runs):
            return Runs(pieces)
        size = self.n_per_row * _NUMPY[self.kind].itemsize
        orders, at = [], 0
        for part, r in zip(self.parts, runs, strict=True):
            orders.append((_own_order(part.n_rows) if r.order is None else r.order) + np.uint32(at))
            at += sum(piece.nbytes for piece in r.pieces) // size
        return Runs(pieces, np.concatenate(orders))

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        at, end = first, first + n
        while at < end:
            index = bisect_right(self._ends, at)
            begin = self._ends[index] - self.parts[index].n_rows
            take = min(end, self._ends[index]) - at
            self.parts[index].release(at - begin, take)
            at += take


class RowRange:
    """Some rows of a matrix, `step` rows apart."""

    def __init__(self, of: Matrix, first: int, n: int, step: int = 1) -> None:
        self.of, self.first, self.n_rows, self.step = of, first, n, step
        self.n_per_row, self.kind = of.n_per_row, of.kind

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        if n == 0:
            return self.of.rows(0, 0)
        span = (n - 1) * self.step + 1
        return self.of.rows(self.first + first * self.step, span)[:: self.step]

    def runs(self) -> Runs | None:
        """As `Matrix.runs`."""
        whole = self.of.runs()
        if whole is None:
            return None
        if whole.order is None and self.step == 1 and len(whole.pieces) == 1:
            file, offset, _ = whole.pieces[0]
            size = self.n_per_row * _NUMPY[self.kind].itemsize
            return Runs([Piece(file, offset + self.first * size, self.n_rows * size)])
        order = _own_order(self.of.n_rows) if whole.order is None else whole.order
        return Runs(whole.pieces, order[self.first :: self.step][: self.n_rows])

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        if n:
            self.of.release(self.first + first * self.step, (n - 1) * self.step + 1)


class Permuted:
    """The rows of a matrix in another order (those named, the rest is left out)."""

    def __init__(self, of: Matrix, order: NDArray[np.intp] | NDArray[np.uint32]) -> None:
        self.of, self.order = of, np.asarray(order, np.uint32)
        self.n_rows, self.n_per_row, self.kind = len(order), of.n_per_row, of.kind

    def runs(self) -> Runs | None:
        """As `Matrix.runs`."""
        whole = self.of.runs()
        if whole is None:
            return None
        return Runs(whole.pieces, self.order if whole.order is None else whole.order[self.order])

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        wanted = self.order[first : first + n]
        if not len(wanted):
            return self.of.rows(0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        # orders move rows within heads, so what lies between is small; what is not is taken row by row
        if high - low <= 8 * len(wanted):
            return self.of.rows(low, high - low)[wanted - low]
        return np.concatenate([self.of.rows(int(row), 1) for row in wanted])

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        wanted = self.order[first : first + n]
        if len(wanted):
            low = int(wanted.min())
            self.of.release(low, int(wanted.max()) + 1 - low)


class Columns(Rows):
    """The columns of a matrix in another order."""

    def __init__(self, of: Matrix, order: NDArray[np.intp]) -> None:
        self.of, self.order = of, order
        self.n_rows, self.n_per_row, self.kind = of.n_rows, len(order), of.kind

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        return self.of.rows(first, n)[:, self.order]


class Transposed(Rows):
    """Each of `n_matrices` matrices, transposed; of these every `step`-th row from `start`."""

    def __init__(self, of: Matrix, n_matrices: int, start: int = 0, step: int = 1) -> None:
        self.of, self.start, self.step = of, start, step
        self._n_in = of.n_rows // n_matrices
        self._n_out = len(range(start, of.n_per_row, step))
        self.n_rows, self.n_per_row, self.kind = n_matrices * self._n_out, self._n_in, of.kind

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        found = []
        at, end = first, first + n
        while at < end:
            matrix, row = divmod(at, self._n_out)
            take = min(self._n_out - row, end - at)
            source = self.of.rows(matrix * self._n_in, self._n_in)
            columns = slice(
                self.start + row * self.step, self.start + (row + take - 1) * self.step + 1, self.step
            )
            found.append(np.ascontiguousarray(source[:, columns].T))
            at += take
        return found[0] if len(found) == 1 else np.concatenate(found)


class Flat:
    """A matrix in rows of another length."""

    def __init__(self, of: Matrix, n_per_row: int) -> None:
        self.of, self.n_per_row, self.kind = of, n_per_row, of.kind
        self.n_rows = of.n_rows * of.n_per_row // n_per_row

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        every = self.of.rows(0, self.of.n_rows).reshape(-1, self.n_per_row)
        return every[first : first + n]

    def runs(self) -> Runs | None:
        """As `Matrix.runs`."""
        whole = self.of.runs()
        return whole if whole is None or whole.order is None else None

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        del first, n


class Computed(Rows):
    """Numbers that are a function of those of another matrix, element by element (or of nothing)."""

    kind: FloatKind = "F32"

    def __init__(self, of: Matrix, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self.of, self.function = of, function
        self.n_rows, self.n_per_row = of.n_rows, of.n_per_row

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        return self.function(to_float32(self.of.rows(first, n), self.of.kind)).astype(np.float32)


class Given(Rows):
    """Numbers that are known."""

    kind: FloatKind = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = np.atleast_2d(np.asarray(values, np.float32))
        self.n_rows, self.n_per_row = self.values.shape

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        return self.values[first : first + n]
