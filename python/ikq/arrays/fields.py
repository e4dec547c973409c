"""Takes blocks apart into the integers of their fields: `unpack` and its inverse `pack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq
from ikq.arrays.coding import ByteData, as_bytes, as_rows
from ikq.arrays.quant_types import QuantType, TypeLike, as_type
from ikq.errors import FormatError, ShapeError

__all__ = ["Field", "block_fields", "pack", "unpack"]

ROW_HEADER = "row_header"
TRAILER = "trailer"
_I2_S_TRAILER_BYTES = 32


@dataclass(frozen=True)
class Field:
    """A field of a block: `count` integers of `bits` bits."""

    name: str
    count: int
    bits: int
    levels: int
    """Values are `range(levels)`; of signed fields `range(-levels // 2, levels // 2)`."""
    signed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest numpy integer that holds the values."""
        n = next(n for n in (8, 16, 32) if self.bits <= n)
        return np.dtype(f"{'int' if self.signed else 'uint'}{n}")


@cache
def _layout(type: QuantType) -> tuple[int, tuple[Field, ...]]:
    block_size, fields = _ikq.layout_fields(type)
    return block_size, tuple(Field(*f) for f in fields)


def block_fields(type: TypeLike) -> tuple[Field, ...]:
    """The fields of one row's block, in the order of the layout.

    Floats inside a block (such as `d`) are fields that hold the float's bits.

    Raises:
        UnsupportedError: the type has no blocks of its own (some activation types), or elements wider
            than 32 bits.

    Examples:
        >>> [(f.name, f.count, f.bits) for f in block_fields("Q4_0")]
        [('d', 1, 16), ('q', 32, 4)]
    """
    return _layout(as_type(type))[1]


def unpack(data: ByteData, type: TypeLike, n_per_row: int | None = None) -> dict[str, NDArray[Any]]:
    """Takes stored rows apart into integers.

    Args:
        data: uint8 in one of the shapes that `dequantize` takes; for I2_S one flat matrix.
        type: the tensor type.
        n_per_row: elements of a row. Needed for flat data only.

    Returns:
        For each field of `block_fields(type)` an array `(..., n_blocks, count)` of the smallest
        fitting integer dtype, the leading axes those of the rows; interleaved types give the same
        shapes as plain ones. Types with row headers have `row_header`, uint8
        `(..., row_header_bytes)`; I2_S has `trailer`, uint8 `(32,)`.

    Raises:
        FormatError: unknown type, or data that is not bytes.
        ShapeError: the bytes are not whole rows (or groups) of the type.
        UnsupportedError: as `block_fields`.

    Examples:
        >>> fields = unpack(bytes(range(36)), "Q4_0", 64)
        >>> fields["d"].shape, fields["q"].shape, fields["q"].dtype
        ((1, 2, 1), (1, 2, 32), dtype('uint8'))
        >>> bytes(pack(fields, "Q4_0").ravel()) == bytes(range(36))
        True
    """
    t = as_type(type)
    block_size, fields = _layout(t)
    lead: tuple[int, ...]
    if t is QuantType.I2_S:
        flat = np.ascontiguousarray(as_bytes(data)).reshape(-1)
        lead, n_rows, n = (), 1, max(4 * (len(flat) - _I2_S_TRAILER_BYTES), 0)
    else:
        rows = as_rows(data, t, n_per_row)
        flat, lead, n_rows, n = rows
    headers, values, trailer = _ikq.unpack(flat, t, n_rows, n)
    table = values.reshape((*lead, n // block_size, sum(f.count for f in fields)))
    out: dict[str, NDArray[Any]] = {}
    if t.row_header_bytes:
        out[ROW_HEADER] = headers.reshape((*lead, t.row_header_bytes))
    at = 0
    for f in fields:
        out[f.name] = _from_stored(table[..., at : at + f.count], f)
        at += f.count
    if t is QuantType.I2_S:
        out[TRAILER] = trailer
    return out


def pack(fields: Mapping[str, ArrayLike], type: TypeLike) -> NDArray[np.uint8]:
    """Puts integers together to stored rows: the inverse of `unpack`.

    Args:
        fields: the arrays that `unpack` gives, all of them.
        type: the tensor type.

    Returns:
        uint8 `(..., row_bytes)`; I2_S flat.

    Raises:
        FormatError: unknown type; a field is missing, unknown, not of integers or has a value that the
            format cannot store.
        ShapeError: the fields' shapes do not fit together.
        UnsupportedError: as `block_fields`.
    """
    t = as_type(type)
    block_size, layout = _layout(t)
    extra = [ROW_HEADER] if t.row_header_bytes else [TRAILER] if t is QuantType.I2_S else []
    expected = [f.name for f in layout] + extra
    if set(fields) != set(expected):
        raise FormatError(f"{t} has the fields {', '.join(expected)}; got {', '.join(fields)}")
    arrays = [_integers(fields[f.name], f.name) for f in layout]
    lead = arrays[0].shape[:-1]
    for f, a in zip(layout, arrays, strict=True):
        if a.ndim < 1 or a.shape != (*lead, f.count) or not lead:
            raise ShapeError(
                f"field `{f.name}` of {t} must have the shape (..., n_blocks, {f.count}), not {a.shape}"
            )
    values = np.concatenate([_to_stored(a, f, t) for f, a in zip(layout, arrays, strict=True)], axis=-1)
    n_per_row = lead[-1] * block_size
    empty = np.zeros(0, np.uint8)
    if t is QuantType.I2_S:
        trailer = _bytes_field(fields[TRAILER], TRAILER, (_I2_S_TRAILER_BYTES,))
        return _ikq.pack(
            empty, values.reshape(-1), trailer, t, 1, values.size // layout[0].count * block_size
        )
    header = (
        _bytes_field(fields[ROW_HEADER], ROW_HEADER, (*lead[:-1], t.row_header_bytes))
        if t.row_header_bytes
        else empty
    )
    n_rows = int(np.prod(lead[:-1], dtype=np.int64))
    out = _ikq.pack(header.reshape(-1), values.reshape(-1), empty, t, n_rows, n_per_row)
    return out.reshape((*lead[:-1], _ikq.row_bytes(t, n_per_row)))


def _from_stored(values: NDArray[np.uint32], f: Field) -> NDArray[Any]:
    if f.signed:
        shift = np.uint32(32 - f.bits)
        return ((values << shift).view(np.int32) >> np.int32(shift)).astype(f.dtype)
    return values.astype(f.dtype)


def _to_stored(values: NDArray[Any], f: Field, type: QuantType) -> NDArray[np.uint32]:
    low, high = (-(f.levels // 2), f.levels // 2) if f.signed else (0, f.levels)
    wrong = (values < low) | (values >= high)
    if wrong.any():
        raise FormatError(f"field `{f.name}` of {type}: {values[wrong].flat[0]} is not in {low}..{high - 1}")
    return (values.astype(np.int64) & ((1 << f.bits) - 1)).astype(np.uint32)


def _integers(values: ArrayLike, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise FormatError(f"field `{name}` must be an array of integers, not of {array.dtype}")
    return array


def _bytes_field(values: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    array = np.asarray(values)
    if array.dtype != np.uint8:
        raise FormatError(f"`{name}` must be an array of uint8, not of {array.dtype}")
    if array.shape != shape:
        raise ShapeError(f"`{name}` must have the shape {shape}, not {array.shape}")
    return np.ascontiguousarray(array).reshape(-1)
