"""Arrays of floats to arrays of blocks and back: `dequantize`, `quantize`, `repack`, and sizes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq
from ikq.arrays.quant_types import QuantType, TypeLike, as_type
from ikq.errors import FormatError, NotTernaryWarning, ShapeError

__all__ = [
    "available_isas",
    "dequantize",
    "isa",
    "quantize",
    "repack",
    "row_bytes",
    "tensor_bytes",
]

ByteData: TypeAlias = "NDArray[np.uint8] | bytes | bytearray | memoryview"
"""What holds stored blocks: an array of uint8, or anything with bytes."""


def row_bytes(type: TypeLike, n: int) -> int:
    """Bytes of one row of `n` elements, row header included.

    For interleaved types this is a row's share of its group.

    Raises:
        ShapeError: blocks do not tile the row.

    Examples:
        >>> row_bytes("Q4_0", 64), row_bytes("IQ4_KS", 256)
        (36, 140)
    """
    return _ikq.row_bytes(as_type(type), _count(n, "n"))


def tensor_bytes(type: TypeLike, shape: Sequence[int]) -> int:
    """Bytes of a tensor of `shape` (up to 4 axes, the elements of a row last).

    Raises:
        ShapeError: blocks do not tile the rows, or groups of an interleaved type the matrix.

    Examples:
        >>> tensor_bytes("Q4_K", (8, 4, 512))
        9216
    """
    return _ikq.tensor_bytes(as_type(type), [_count(n, "extent of a shape") for n in shape])


def isa() -> str:
    """The instruction set in use: `scalar`, `avx2` or `avx512`. The environment's `IKQ_ISA` forces one.

    Raises:
        UnsupportedError: `IKQ_ISA` names a set that this machine lacks.
    """
    return _ikq.selected_isa()


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, weakest first."""
    return tuple(_ikq.available_isas())


class Rows(NamedTuple):
    """A byte array seen as rows, in the form that all functions on stored data use."""

    flat: NDArray[np.uint8]
    """All bytes, contiguous."""
    lead: tuple[int, ...]
    """The axes in front of the row's bytes; for I2_S in front of the matrix."""
    n_rows: int
    n_per_row: int


def as_bytes(data: ByteData) -> NDArray[np.uint8]:
    """`data` as an array of uint8, not copied.

    Raises:
        FormatError: it is an array of another dtype, or no bytes at all.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise FormatError(
                f"stored data must be an array of uint8, not of {data.dtype}; `.view(numpy.uint8)`?"
            )
        if data.ndim == 0:
            raise ShapeError("stored data must have at least one axis")
        return data
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as e:
        raise FormatError(
            f"stored data must be an array of uint8 or bytes, not {data.__class__.__name__}"
        ) from e


def as_rows(data: ByteData, type: QuantType, n_per_row: int | None) -> Rows:
    """Finds the rows in stored data; see `dequantize` for the shapes accepted. Not for I2_S.

    Raises:
        FormatError: `data` holds no bytes.
        ShapeError: rows or groups of rows do not tile the data.
    """
    array = as_bytes(data)
    shape = array.shape
    if n_per_row is not None:
        size = row_bytes(type, _count(n_per_row, "n_per_row"))
        if array.ndim == 1:
            n_rows = len(array) // size if size else 0
            if n_rows * size != len(array):
                raise ShapeError(
                    f"{len(array)} bytes are not whole rows of {n_per_row} elements of {type} ({size} bytes)"
                )
            shape = (n_rows, size)
    elif type.rows > 1 and array.ndim == 1:
        raise ShapeError(
            f"{type} stores {type.rows} rows together: give an array (..., n_rows, row_bytes), or n_per_row"
        )
    else:
        n_per_row, size = _infer_n_per_row(type, shape[-1]), shape[-1]
    if shape[-1] != size:
        raise ShapeError(
            f"rows of {n_per_row} elements of {type} have {size} bytes, but the data's last axis {shape[-1]}"
        )
    lead = shape[:-1]
    if type.rows > 1 and lead[-1] % type.rows:
        raise ShapeError(f"{lead[-1]} rows are not whole groups: {type} stores {type.rows} rows together")
    return Rows(np.ascontiguousarray(array).reshape(-1), lead, math.prod(lead), n_per_row)


def dequantize(
    data: ByteData,
    type: TypeLike,
    n_per_row: int | None = None,
    *,
    n_threads: int | None = None,
    _isa: str | None = None,
) -> NDArray[np.float32]:
    """Decodes stored rows to floats.

    The interpreter lock is released meanwhile, and Ctrl-C ends the call.

    Args:
        data: uint8, one of

            - `(..., row_bytes)`: rows; interleaved types `(..., n_rows, row_bytes)` where groups of
              rows are contiguous and the last but one axis holds whole groups;
            - flat (one axis, or `bytes`) together with `n_per_row`: all rows one after another;
            - for I2_S `(..., matrix_bytes)`: each matrix flat with its scale behind it.
        type: the tensor type.
        n_per_row: elements of a row. Needed for flat data only; otherwise it follows from the bytes.
        n_threads: threads to use; all CPUs unless given.
        _isa: forces an instruction set (for tests).

    Returns:
        float32 `(..., n_per_row)`; `(n_rows, n_per_row)` for flat data with `n_per_row`. I2_S gives
        `(..., n_rows, n_per_row)`, without `n_per_row` `(..., n_elements)`.

    Raises:
        FormatError: unknown type, or data that is not bytes.
        ShapeError: the bytes are not whole rows (or groups) of the type.
        UnsupportedError: the type cannot be decoded on its own.

    Examples:
        >>> data = quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), "Q8_0")
        >>> data.shape
        (2, 34)
        >>> dequantize(data, "Q8_0").shape
        (2, 32)
        >>> dequantize(data.tobytes(), "Q8_0", 32).shape
        (2, 32)
    """
    t = as_type(type)
    if t is QuantType.I2_S:
        return _dequantize_i2_s(as_bytes(data), n_per_row, n_threads, _isa)
    rows = as_rows(data, t, n_per_row)
    out = _ikq.dequantize(rows.flat, t, rows.n_rows, rows.n_per_row, n_threads, _isa)
    return out.reshape((*rows.lead, rows.n_per_row))


def _dequantize_i2_s(
    data: NDArray[np.uint8], n_per_row: int | None, n_threads: int | None, isa_name: str | None
) -> NDArray[np.float32]:
    """Each matrix has its scale in the 32 bytes behind its codes."""
    lead, n_bytes = data.shape[:-1], data.shape[-1]
    n = 4 * (n_bytes - 32)
    if n < 0 or n % 128:
        raise ShapeError(
            f"an I2_S matrix has a multiple of 32 bytes of codes and 32 bytes more, not {n_bytes} bytes"
        )
    width = n if n_per_row is None else _count(n_per_row, "n_per_row")
    if width == 0 or n % width:
        raise ShapeError(f"the {n} elements of an I2_S matrix are not whole rows of {width}")
    matrices = np.ascontiguousarray(data).reshape(-1, n_bytes)
    out = [_ikq.dequantize(m, QuantType.I2_S, 1, n, n_threads, isa_name) for m in matrices]
    shape = (*lead, n) if n_per_row is None else (*lead, n // width, width)
    return np.concatenate(out).reshape(shape) if len(out) != 1 else out[0].reshape(shape)


def _is_ternary(x: NDArray[np.float32]) -> bool:
    """Whether every row holds 0 and plus or minus one magnitude only, within 1 % of it."""
    magnitudes = np.abs(x)
    largest = magnitudes.max(axis=-1, keepdims=True, initial=0.0)
    return bool(((magnitudes <= 0.01 * largest) | (magnitudes >= 0.99 * largest)).all())


def quantize(
    x: ArrayLike,
    type: TypeLike,
    imatrix: ArrayLike | None = None,
    *,
    biased: bool = False,
    clamp: bool = False,
    n_threads: int | None = None,
    _isa: str | None = None,
) -> NDArray[np.uint8]:
    """Encodes floats as blocks of `type`.

    The same input gives the same bytes on every machine and for any number of threads. The
    interpreter lock is released meanwhile, and Ctrl-C ends the call.

    Args:
        x: float32 (float16 and float64 are converted) of shape `(n,)`, `(n_rows, n)` or
            `(n_experts, n_rows, n)`.
        type: the tensor type to write.
        imatrix: importance of the columns, `(n,)` for all, or `(n_experts, n)` for an `x` of three
            axes: finite, not negative. No type needs it here, not even those for which `ikq quantize` demands
            it.
        biased: keep scales as they were fitted, which makes the least squared error. By default they are
            divided by the gain of the fit, because fitted values are smaller than `x` on average.
        clamp: cut off numbers that are larger than the type can represent (65504 in F16, that times the
            largest code in types with scales in half precision); otherwise they are refused.
        n_threads: threads to use; all CPUs unless given.
        _isa: forces an instruction set (for tests).

    Returns:
        uint8 of shape `(..., row_bytes)`: `x` with its last axis replaced by the row's bytes. For
        interleaved types groups of rows are contiguous. I2_S gives `(..., matrix_bytes)`: each matrix flat
        with its scale behind it.

    Raises:
        FormatError: unknown type; `x` is not float; NaN or infinity in `x` (named by expert, row and
            column); an importance that is negative or not finite.
        ShapeError: another number of axes, blocks that do not tile the rows, another shape of `imatrix`.
        UnsupportedError: a type that cannot be written.
        RefusedError: a number that is larger than the type can represent, without `clamp`.

    Warns:
        NotTernaryWarning: `type` is a ternary or BitNet type and `x` has rows that are not ternary.

    Examples:
        >>> rng = np.random.default_rng(1)
        >>> x = rng.standard_normal((4, 512), dtype=np.float32)
        >>> q = quantize(x, "BF16", imatrix=np.ones(512))
        >>> q.shape, q.dtype
        ((4, 1024), dtype('uint8'))
    """
    t = as_type(type)
    values = _as_floats(x, "x")
    if not 1 <= values.ndim <= 3:
        raise ShapeError(
            f"x must have the shape (n,), (n_rows, n) or (n_experts, n_rows, n), not {values.shape}"
        )
    n_experts = values.shape[0] if values.ndim == 3 else None
    n_rows = 1 if values.ndim == 1 else values.shape[-2]
    n = values.shape[-1]
    importance = None if imatrix is None else _as_importance(imatrix, n_experts, n)
    if (t.base or t).family == "ternary" and not _is_ternary(values):
        warnings.warn(
            f"the weights are not ternary, and {t.name} keeps little of others; types such as IQ1_S or "
            "IQ2_XXS are made for them",
            NotTernaryWarning,
            stacklevel=2,
        )
    flat = np.ascontiguousarray(values).reshape(-1)
    out = _ikq.quantize(flat, t, n_experts, n_rows, n, importance, biased, clamp, n_threads, _isa)
    if t is QuantType.I2_S:
        return out.reshape((*values.shape[:-2], tensor_bytes(t, (n_rows, n))))
    return out.reshape((*values.shape[:-1], row_bytes(t, n)))


def repack(
    data: ByteData, from_type: TypeLike, to_type: TypeLike, n_per_row: int | None = None
) -> NDArray[np.uint8]:
    """Turns a plain type into its interleaved form, or back, without loss.

    Args:
        data: uint8 `(..., n_rows, row_bytes)` of `from_type`, or flat with `n_per_row`, as for
            `dequantize`; whole groups of rows of the interleaved type.
        from_type: type of `data`.
        to_type: type to make: an interleaved form of `from_type`, its plain type, or another
            interleaved form of the same plain type.
        n_per_row: elements of a row. Needed for flat data only.

    Returns:
        uint8 `(..., n_rows, row_bytes)` of `to_type`, flat where `data` was flat.

    Raises:
        FormatError: unknown type, or data that is not bytes.
        ShapeError: the bytes are not whole rows, the rows not whole groups.
        UnsupportedError: the types cannot be converted: Q8_K_R8, Q8_K_R16 and Q8_KV_R8 lack what converting
            back needs, and IQ1_S_R4 and IQ1_M_R4 have no plain type.

    Examples:
        >>> x = np.arange(512, dtype=np.float32).reshape(16, 32)
        >>> plain = quantize(x, "BF16")
        >>> packed = repack(plain, "BF16", "BF16_R16")
        >>> bool((repack(packed, "BF16_R16", "BF16") == plain).all())
        True
    """
    source, target = as_type(from_type), as_type(to_type)
    array = as_bytes(data)
    if source is QuantType.I2_S or target is QuantType.I2_S:
        if source is not target:
            raise ShapeError("an I2_S matrix has no rows to repack")
        return array.copy()
    rows = as_rows(array, source, n_per_row)
    if target.rows > 1 and (not rows.lead or rows.lead[-1] % target.rows):
        n_rows = rows.lead[-1] if rows.lead else 1
        raise ShapeError(f"{n_rows} rows are not whole groups: {target} stores {target.rows} rows together")
    out = _ikq.repack(rows.flat, source, target, rows.n_rows, rows.n_per_row)
    if array.ndim == 1:
        return out
    return out.reshape((*rows.lead, row_bytes(target, rows.n_per_row)))


def _as_floats(x: ArrayLike, name: str) -> NDArray[np.float32]:
    """`x` as float32; what is too large for it becomes infinite and is refused later, by place."""
    array: NDArray[Any] = np.asarray(x)
    if array.dtype == np.float32:
        return array
    if array.dtype.kind != "f":
        raise FormatError(f"{name} must be an array of float32, float16 or float64, not of {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _as_importance(imatrix: ArrayLike, n_experts: int | None, n: int) -> NDArray[np.float32]:
    array: NDArray[Any] = np.asarray(imatrix)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    values = _as_floats(array, "imatrix")
    allowed = [(n,)] if n_experts is None else [(n,), (n_experts, n)]
    if values.shape not in allowed:
        raise ShapeError(f"imatrix must have the shape {' or '.join(map(str, allowed))}, not {values.shape}")
    return np.ascontiguousarray(values).reshape(-1)


def _infer_n_per_row(type: QuantType, n_bytes: int) -> int:
    n_blocks, rest = divmod(n_bytes - type.row_header_bytes, type.block_bytes)
    if rest or n_blocks < 0:
        header = f"{type.row_header_bytes} + " if type.row_header_bytes else ""
        raise ShapeError(f"rows of {type} have {header}a multiple of {type.block_bytes} bytes, not {n_bytes}")
    return n_blocks * type.block_size


def _count(n: int, name: str) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise ShapeError(f"{name} must be an integer, not {n!r}")
    if n < 0:
        raise ShapeError(f"{name} must not be negative, got {n}")
    return int(n)
