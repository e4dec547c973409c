"""`Imatrix`: activation statistics that tell the encoders which columns matter."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq

__all__ = ["Imatrix", "ImatrixEntry"]


class ImatrixEntry(NamedTuple):
    """Statistics of the input of one matrix."""

    values: NDArray[np.float32]
    """Mean squared input per column, shape (n_expert, n_per_row); (1, n_per_row) for a plain matrix.
    A `.dat` file does not store the number of experts; for it the shape is (1, n_expert * n_per_row)."""

    counts: NDArray[np.float32]
    """Tokens seen per expert (`.dat`: the number of calls), shape (n_expert,) or (1,)."""


class Imatrix(Mapping[str, ImatrixEntry]):
    """An importance matrix file as a mapping from tensor name to `ImatrixEntry`.

    Both forms are read: `.dat` (ik_llama.cpp, older llama.cpp) and GGUF (llama.cpp).

    Args:
        path: The file.

    Raises:
        OSError: The file cannot be read.
        ikq.errors.FormatError: It is neither form, is cut short, or holds NaN or negative values.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._core = _ikq.Imatrix.open(os.fspath(path))
        self._names = self._core.names()

    @property
    def path(self) -> str:
        """The file it was read from."""
        return os.fspath(self._core.path)

    @property
    def datasets(self) -> list[str]:
        """Names of the calibration texts, as far as the file has them."""
        return self._core.datasets

    @property
    def n_chunks(self) -> int | None:
        """Chunks of text that the statistics come from, if the file says so."""
        return self._core.n_chunks

    @property
    def all_experts(self) -> bool:
        """Whether every token counted for every expert, not only for those that it was routed to."""
        return self._core.all_experts

    def entry_for(self, tensor: str) -> str | None:
        """The name of the entry that is used for a tensor: its own, or that of a tensor with the same input.

        Programs that compute up and gate in one kernel store only one of the two; then the entry of
        `ffn_up_exps` is used for `ffn_gate_exps`, because both read the same activations.
        """
        return self._core.entry_for(tensor)

    def __getitem__(self, name: str) -> ImatrixEntry:
        found = self._core.get(name)
        if found is None:
            raise KeyError(name)
        return ImatrixEntry(*found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Imatrix({self.path!r}, {len(self)} entries)"
