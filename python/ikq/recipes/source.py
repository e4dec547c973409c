"""Tensors of a file much larger than memory: `Tensors`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from ikq.arrays.tensor import QTensor
from ikq.files.gguf import GGUFReader

__all__ = ["Tensors"]

_MOST = 512 * 1024 * 1024


class Tensors:
    """Tensors by name, of a file that is mapped anew now and then.

    The system maps the neighbourhood of every page that is touched, so a few rows of each tensor are soon
    the whole file; what was mapped goes when the mapping does. A tensor is to be used before the next is
    asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = GGUFReader(path)
        self._touched = 0

    @property
    def reader(self) -> GGUFReader:
        """The file, for its metadata."""
        return self._reader

    def __getitem__(self, name: str) -> QTensor:
        """A tensor."""
        tensor = self._reader.tensors[name]
        self._touched += tensor.nbytes
        if self._touched > _MOST:
            del tensor
            self._reader.close()
            self._reader = GGUFReader(self._path)
            tensor = self._reader.tensors[name]
            self._touched = tensor.nbytes
        return tensor

    def __enter__(self) -> Tensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
