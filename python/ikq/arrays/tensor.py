"""`QTensor`: a stored tensor, with its type and shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq.arrays.coding import ByteData, as_bytes, dequantize, quantize, row_bytes, tensor_bytes
from ikq.arrays.quant_types import QuantType, TypeLike, as_type
from ikq.errors import ShapeError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import CapsuleType

__all__ = ["QTensor"]

Index = int | slice


class QTensor:
    """A tensor as it is stored: bytes, type and shape. Immutable; the bytes are not copied.

    A slice by expert and row is a view of the same bytes: `t[3]` is the matrix of expert 3,
    `t[3, 10:20]` ten of its rows. Rows of interleaved types come in whole groups only.

    Pickling copies the bytes. `==` compares identity; `equals` compares content.

    Attributes:
        type: the tensor type; an `int` where a file has a type that ikq does not know.
        shape: as numpy has it, `(n,)`, `(n_rows, n)` or `(n_experts, n_rows, n)`.
        raw: the bytes, a read-only uint8 array `(..., row_bytes)`; flat for I2_S and unknown types.
        name: the tensor's name, or None.

    Examples:
        >>> t = QTensor.quantize(np.ones((2, 4, 32), np.float32), "Q8_0", name="ffn_up_exps")
        >>> t
        QTensor(ffn_up_exps, Q8_0, (2, 4, 32), 272 bytes)
        >>> t[1, 2:4].dequantize().shape
        (2, 32)
    """

    __slots__ = ("name", "raw", "shape", "type")

    type: QuantType | int
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]
    name: str | None

    def __init__(self, raw: ByteData, type: TypeLike, shape: Sequence[int], name: str | None = None) -> None:
        """A tensor from its bytes.

        Args:
            raw: uint8 in any shape, or bytes; a view is kept.
            type: the tensor type.
            shape: as numpy has it, the elements of a row last.
            name: for files and messages.

        Raises:
            FormatError: unknown type, or `raw` is not bytes.
            ShapeError: the type cannot have this shape, or `raw` has another number of bytes.
        """
        t = as_type(type)
        size, stored = stored_shape(t, shape)
        array = as_bytes(raw)
        if array.size != size:
            raise ShapeError(f"{t} data of shape {tuple(shape)} has {size} bytes, got {array.size}")
        self._set(array.reshape(stored), t, tuple(int(n) for n in shape), name)

    def _set(
        self, raw: NDArray[np.uint8], type: QuantType | int, shape: tuple[int, ...], name: str | None
    ) -> None:
        view = raw.view()
        view.flags.writeable = False
        for key, value in (("raw", view), ("type", type), ("shape", shape), ("name", name)):
            object.__setattr__(self, key, value)

    @classmethod
    def _unknown(cls, raw: NDArray[np.uint8], type_id: int, shape: tuple[int, ...], name: str) -> QTensor:
        """A tensor of a type that ikq does not know: it can be listed and copied."""
        tensor = cls.__new__(cls)
        tensor._set(raw, type_id, shape, name)
        return tensor

    def __setattr__(self, key: str, value: object) -> None:
        raise AttributeError(f"QTensor is immutable: cannot set `{key}`")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"QTensor is immutable: cannot delete `{key}`")

    @classmethod
    def quantize(
        cls,
        x: ArrayLike,
        type: TypeLike,
        imatrix: ArrayLike | None = None,
        *,
        name: str | None = None,
        biased: bool = False,
        clamp: bool = False,
        n_threads: int | None = None,
    ) -> QTensor:
        """Encodes floats; arguments and errors are those of `ikq.quantize`.

        All matrices of an I2_S tensor share one scale, which does not depend on `imatrix`.
        """
        shape = np.shape(x)
        if as_type(type) is QuantType.I2_S:
            x, imatrix = np.asarray(x).reshape(-1, *shape[-1:]), None
        data = quantize(x, type, imatrix, biased=biased, clamp=clamp, n_threads=n_threads)
        return cls(data, type, shape, name)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.raw.nbytes

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def dequantize(self, *, n_threads: int | None = None) -> NDArray[np.float32]:
        """The values, float32 of the tensor's shape, in an ordinary array.

        Raises:
            UnsupportedError: the type is unknown, or cannot be decoded on its own.
        """
        if not isinstance(self.type, QuantType):
            raise UnsupportedError(
                f"tensor `{self.name}` has type {self.type}, which ikq does not know; "
                "it can be listed and copied, not decoded"
            )
        n_per_row = None if self.type is QuantType.I2_S else self.shape[-1]
        return dequantize(self._rows(), self.type, n_per_row, n_threads=n_threads).reshape(self.shape)

    def _rows(self) -> NDArray[np.uint8]:
        """`raw` with at least one axis of rows."""
        return self.raw if self.type is QuantType.I2_S or self.raw.ndim > 1 else self.raw[np.newaxis]

    def __getitem__(self, key: Index | tuple[Index, ...]) -> QTensor:
        """Experts and rows: a view of the same bytes.

        Raises:
            IndexError: outside the tensor, or more indices than there are axes of experts and rows.
            ShapeError: rows of an interleaved type that are not whole groups.
            UnsupportedError: a type whose tensors cannot be cut (I2_S has one scale for all).
        """
        keys = key if isinstance(key, tuple) else (key,)
        n_axes = self.ndim - 1
        if not isinstance(self.type, QuantType) or self.type is QuantType.I2_S:
            raise UnsupportedError(f"a tensor of type {self.type} cannot be cut; dequantize it first")
        if len(keys) > n_axes or not all(isinstance(k, slice) or hasattr(k, "__index__") for k in keys):
            raise IndexError(
                f"a tensor of shape {self.shape} takes up to {n_axes} integers or slices: experts, rows"
            )
        if self.type.rows > 1 and len(keys) == n_axes:
            _check_groups(self.type, keys[-1], self.shape[-2])
        raw = self.raw[keys]
        return self._view(raw, (*raw.shape[:-1], self.shape[-1]))

    def _view(self, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> QTensor:
        tensor = QTensor.__new__(QTensor)
        tensor._set(raw, self.type, shape, self.name)
        return tensor

    def equals(self, other: QTensor) -> bool:
        """Whether the other tensor has the same type, shape and bytes (the name does not count)."""
        same = self.type == other.type and self.shape == other.shape
        return same and np.array_equal(self.raw, other.raw)

    def __repr__(self) -> str:
        name = "" if self.name is None else f"{self.name}, "
        return f"QTensor({name}{self.type}, {self.shape}, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.raw.tobytes(), self.raw.shape, int(self.type), self.shape, self.name)

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        """The raw bytes as a DLPack capsule.

        DLPack before version 1.0 cannot say that memory is read-only; a consumer of such a version gets
        a copy, or BufferError if it asks for none.
        """
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the bytes are in the memory of the CPU")
        if max_version is not None and max_version >= (1, 0) and not copy and _NUMPY_HAS_DLPACK_1:
            return self.raw.__dlpack__(max_version=max_version)
        if copy is False:
            raise BufferError("read-only bytes need DLPack 1.0 to be passed on without a copy")
        return self.raw.copy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.raw.__dlpack_device__()


_NUMPY_HAS_DLPACK_1 = tuple(int(n) for n in np.__version__.split(".")[:2]) >= (2, 1)


def _restore(
    data: bytes, raw_shape: tuple[int, ...], type_id: int, shape: tuple[int, ...], name: str | None
) -> QTensor:
    tensor = QTensor.__new__(QTensor)
    known = type_id in QuantType._value2member_map_
    raw = np.frombuffer(data, np.uint8).reshape(raw_shape)
    tensor._set(raw, QuantType(type_id) if known else type_id, shape, name)
    return tensor


def stored_shape(type: QuantType, shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Bytes of a tensor, and the shape of the array that holds them: its last axis is bytes.

    Args:
        type: the tensor type.
        shape: as numpy has it, the elements of a row last.

    Raises:
        ShapeError: the type cannot have this shape, or an array could not.
    """
    size = tensor_bytes(type, shape)
    flat = type is QuantType.I2_S or not len(shape)
    stored = (size,) if flat else (*(int(n) for n in shape[:-1]), row_bytes(type, int(shape[-1])))
    if size == 0:
        try:
            np.empty(0, np.uint8).reshape(stored)
        except ValueError:  # axes whose product no array can have
            raise ShapeError(f"shape {tuple(shape)} is too large for an array") from None
    return size, stored


def _check_groups(type: QuantType, key: Index, n_rows: int) -> None:
    together = f"{type} stores {type.rows} rows together"
    if not isinstance(key, slice):
        raise ShapeError(f"row {key} cannot be taken alone: {together}")
    start, stop, step = key.indices(n_rows)
    if step != 1 or start % type.rows or stop % type.rows:
        raise ShapeError(f"rows {start}:{stop}:{step} are not whole groups: {together}")
