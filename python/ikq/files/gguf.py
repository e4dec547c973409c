"""GGUF files: `GGUFReader`, `GGUFWriter` and their `Metadata`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor, stored_shape
from ikq.errors import FormatError, IkqError, ShapeError

__all__ = ["GGUFReader", "GGUFWriter", "Metadata", "Shard", "Typed"]

MetadataValue: TypeAlias = "bool | int | float | str | bytes | list[Any]"


class Typed(NamedTuple):
    """A metadata value with its type in the file.

    Types are `uint8`, `int8`, `uint16`, `int16`, `uint32`, `int32`, `uint64`, `int64`, `float32`,
    `float64`, `bool`, `string`, and `array[TYPE]`.
    """

    value: object
    type: str


class Metadata(MutableMapping[str, MetadataValue]):
    """Key-value pairs in file order.

    Values are Python's; arrays become lists when they are asked for, and strings that are not
    UTF-8 are `bytes`. Pairs that came from a file and are not set anew are written again byte for
    byte.

    A value that is set keeps the type it is given with `Typed`. Otherwise bool, str and float become
    `bool`, `string` and `float32`; int becomes `uint32`, or `int32` if negative, and the 64-bit types
    where it does not fit; numpy scalars and arrays keep their dtype; a list becomes an array of what
    fits all its elements.

    Examples:
        >>> m = Metadata({"general.name": "tiny", "x.block_count": Typed(4, "uint64")})
        >>> m["x.block_count"], m.type_of("x.block_count"), m.type_of("general.name")
        (4, 'uint64', 'string')
    """

    _pairs: _ikq.Metadata

    def __init__(self, pairs: Mapping[str, object] | None = None) -> None:
        self._pairs = pairs._pairs.copy() if isinstance(pairs, Metadata) else _ikq.Metadata()
        if not isinstance(pairs, Metadata):
            for key, value in (pairs or {}).items():
                self[key] = value

    @classmethod
    def _of(cls, pairs: _ikq.Metadata) -> Metadata:
        metadata = cls.__new__(cls)
        metadata._pairs = pairs
        return metadata

    def __getitem__(self, key: str) -> MetadataValue:
        value = self._pairs.get(key)
        if value is None:
            raise KeyError(key)
        return value  # type: ignore[return-value]  # the binding says `object`

    def __setitem__(self, key: str, value: object) -> None:
        if not isinstance(value, Typed):
            value = Typed(value, _infer_type(key, value))
        plain = value.value.tolist() if isinstance(value.value, (np.ndarray, np.generic)) else value.value
        self._pairs.set(key, value.type, plain)

    def __delitem__(self, key: str) -> None:
        if not self._pairs.remove(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._pairs.contains(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs.keys())

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"Metadata({len(self)} keys)"

    def type_of(self, key: str) -> str:
        """The type of a value in the file, as in `Typed`.

        Raises:
            KeyError: no such key.
        """
        type_name = self._pairs.type_of(key)
        if type_name is None:
            raise KeyError(key)
        return type_name

    def copy(self) -> Metadata:
        """A copy that can be changed by itself."""
        return Metadata(self)


_UNSIGNED, _SIGNED = ("uint32", "uint64"), ("int32", "int64")


def _int_type(values: Sequence[int]) -> str | None:
    low, high = min(values), max(values)
    for name in _SIGNED if low < 0 else _UNSIGNED:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return name
    return None


def _infer_type(key: str, value: object) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        if isinstance(value, np.ndarray) and value.ndim != 1 and value.ndim:
            raise FormatError(f"key `{key}`: an array must have one axis, not {value.ndim}")
        name = "float32" if value.dtype == np.float16 else value.dtype.name
        name = "string" if value.dtype.kind == "U" else name
        return f"array[{name}]" if value.ndim else name
    scalar = _infer_scalar([value])
    if scalar is not None:
        return scalar
    if isinstance(value, (list, tuple)):
        if not value:
            raise FormatError(
                f"key `{key}`: the type of an empty array is unknown; use Typed([], 'array[TYPE]')"
            )
        scalar = _infer_scalar(value)
        if scalar is not None:
            return f"array[{scalar}]"
        inner = {_infer_type(key, v) for v in value}
        if len(inner) == 1:
            return f"array[{inner.pop()}]"
    raise FormatError(
        f"key `{key}`: no metadata type holds {value!r:.80}; give it one with Typed(value, type)"
    )


def _infer_scalar(values: Sequence[object]) -> str | None:
    """The type that holds all of `values`, if they are scalars of a kind."""
    if all(isinstance(v, bool) for v in values):
        return "bool"
    if all(isinstance(v, (str, bytes)) for v in values):
        return "string"
    ints = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    if len(ints) == len(values):
        return _int_type(ints)
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return "float32"
    return None


class Shard(NamedTuple):
    """One file of a model."""

    path: Path
    version: int
    alignment: int
    n_tensors: int
    nbytes: int


class GGUFReader:
    """A GGUF file, or all files of a split set seen as one (give any of them).

    The file is mapped and checked when it is opened; tensors are views of it and stay valid
    after `close`.

    Attributes:
        metadata: the key-value pairs (of a split set: of its first file). A copy: changing it changes no
            file.
        tensors: `QTensor` by name, in file order.
        shards: the files.

    Examples:
        >>> with GGUFReader("tests/data/tiny-moe-bf16.gguf") as model:  # doctest: +SKIP
        ...     model.metadata["general.architecture"], model.tensors["output.weight"]
        ('qwen3moe', QTensor(output.weight, BF16, (4096, 256), 2097152 bytes))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file.

        Raises:
            FormatError: the file is no whole GGUF file; the message has the place and what is wrong.
            OSError: it cannot be read (`FileNotFoundError`, `IsADirectoryError`, ...), or a shard is
                missing.
        """
        self._set(_ikq.Model.open(path))

    @classmethod
    def _of(cls, model: _ikq.Model) -> GGUFReader:
        """A reader of a model that is open already."""
        reader = cls.__new__(cls)
        reader._set(model)
        return reader

    def _set(self, model: _ikq.Model) -> None:
        self._model: _ikq.Model | None = model
        self.metadata = Metadata._of(model.metadata())
        self.tensors: Mapping[str, QTensor] = _Tensors(model)
        self.shards = tuple(Shard(Path(path), *rest) for path, *rest in model.shards())

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(s.nbytes for s in self.shards)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, in file order; no tensor's bytes are looked at, or made.

        Raises:
            ShapeError: a tensor's type cannot have its shape.
            ValueError: the reader is closed.
        """
        found = {}
        for name, extents, type_id, _ in self._opened().tensors():
            shape = tuple(extents)
            if type_id in QuantType._value2member_map_:
                try:
                    stored_shape(QuantType(type_id), shape)
                except ShapeError as e:
                    raise ShapeError(f"tensor `{name}`: {e}") from None
            found[name] = shape
        return found

    def close(self) -> None:
        """Closes the file. Tensors taken from the reader keep it mapped as long as they live."""
        self.tensors = {}
        self._model = None

    def with_tensors_of(self, other: GGUFReader, names: Iterable[str]) -> GGUFReader:
        """A reader of this file in which the tensors `names` are those of another one.

        Metadata and the order of tensors stay; nothing is copied.

        Raises:
            FormatError: one of the files has no tensor of such a name.
            ValueError: one of the readers is closed.
        """
        mixed = GGUFReader.__new__(GGUFReader)
        mixed._model = self._opened().with_tensors_of(other._opened(), list(names))
        mixed.metadata = self.metadata.copy()
        mixed.tensors = _Tensors(mixed._model)
        mixed.shards = self.shards
        return mixed

    def _opened(self) -> _ikq.Model:
        if self._model is None:
            raise ValueError("the reader is closed")
        return self._model

    def __enter__(self) -> GGUFReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        files = "" if len(self.shards) == 1 else f" in {len(self.shards)} files"
        return f"GGUFReader({self.shards[0].path}, {sum(s.n_tensors for s in self.shards)} tensors{files})"


class _Tensors(Mapping[str, QTensor]):
    """Tensors by name, made when asked for."""

    def __init__(self, model: _ikq.Model) -> None:
        self._model = model
        self._infos = {name: (tuple(shape), type_id) for name, shape, type_id, _ in model.tensors()}

    def __getitem__(self, name: str) -> QTensor:
        shape, type_id = self._infos[name]
        data = self._model.data(name)
        if type_id in QuantType._value2member_map_:
            return QTensor(data, type_id, shape, name)
        return QTensor._unknown(data, type_id, shape, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors>"


class GGUFWriter:
    """Writes a GGUF file.

    Tensors are collected until `close`, which writes everything under a temporary name and renames the file
    when it is complete. After an exception no new file is left behind, and an existing file is unchanged. In
    a `with` block `close` is called at the end, unless there was an exception.

    Attributes:
        metadata: the key-value pairs to write; may be changed until `close`.

    Examples:
        >>> with GGUFWriter("m.gguf", {"general.architecture": "llama"}) as writer:  # doctest: +SKIP
        ...     writer.add_tensor("output.weight", QTensor.quantize(x, "Q8_0"))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, object] | None = None,
        *,
        alignment: int | None = None,
        split_max_bytes: int | None = None,
        split_max_tensors: int | None = None,
        no_tensor_first_split: bool = False,
    ) -> None:
        """Plans a file; nothing is written yet.

        Args:
            path: the file to write. Split sets are named `PREFIX-00001-of-00003.gguf` after it.
            metadata: the pairs to begin with; those of a reader are written byte for byte.
            alignment: of tensor data, a power of two; else what `general.alignment` says, or 32.
            split_max_bytes: write several files of at most this size.
            split_max_tensors: write several files of at most so many tensors.
            no_tensor_first_split: let the first file of a split set hold metadata only.

        Raises:
            FormatError: a metadata value that no type holds.
        """
        self._path = path
        self.metadata = Metadata(metadata)
        self._options = (alignment, split_max_bytes, split_max_tensors, no_tensor_first_split)
        self._tensors: dict[str, QTensor] = {}
        self._closed = False

    def add_tensor(self, name: str, tensor: QTensor | ArrayLike) -> None:
        """Adds a tensor behind those added before.

        Args:
            name: its name in the file.
            tensor: a `QTensor`, or an array of float32, float16, float64 or signed integers, which
                is stored as it is.

        Raises:
            FormatError: the name is taken, or no type holds the array's dtype.
            IkqError: the writer is closed.
        """
        if self._closed:
            raise IkqError("the writer is closed")
        if name in self._tensors:
            raise FormatError(f"tensor `{name}` is added twice")
        self._tensors[name] = tensor if isinstance(tensor, QTensor) else _plain(name, tensor)

    def add_tensors(self, tensors: Mapping[str, QTensor] | Iterable[tuple[str, QTensor]]) -> None:
        """Adds several tensors; errors are those of `add_tensor`."""
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
            self.add_tensor(name, tensor)

    def close(self) -> tuple[Path, ...]:
        """Writes the file and returns its path, or those of a split set.

        Raises:
            OSError: it cannot be written: no permission, disk full, file size limit.
            FormatError: an option that makes no sense.
            ShapeError: a shape that GGUF cannot hold.
        """
        if self._closed:
            raise IkqError("the writer is closed")
        self._closed = True
        tensors = [
            (name, list(t.shape), int(t.type), np.ascontiguousarray(t.raw).reshape(-1))
            for name, t in self._tensors.items()
        ]
        self._tensors = {}
        paths = _ikq.write_gguf(self._path, self.metadata._pairs, tensors, *self._options)
        return tuple(Path(p) for p in paths)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._closed:
            self.close()
        self._closed = True


_PLAIN_TYPES = {
    "float32": QuantType.F32,
    "float16": QuantType.F16,
    "float64": QuantType.F64,
    "int8": QuantType.I8,
    "int16": QuantType.I16,
    "int32": QuantType.I32,
    "int64": QuantType.I64,
}


def _plain(name: str, tensor: ArrayLike) -> QTensor:
    array = np.asarray(tensor)
    plain = _PLAIN_TYPES.get(array.dtype.name)
    if plain is None:
        dtypes = ", ".join(_PLAIN_TYPES)
        raise FormatError(
            f"tensor `{name}`: arrays of {array.dtype} cannot be stored; give a QTensor or one of {dtypes}"
        )
    if array.ndim == 0:
        raise ShapeError(f"tensor `{name}` must have at least one axis")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return QTensor(little.view(np.uint8), plain, array.shape, name)
