"""Where the weights of a checkpoint lie in its GGUF file: `BaseNames`.

The architecture's own table (`ikq.models`) says so. It is run on weights of which only names and shapes are
known, and what it has made of each is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.config import Config
from ikq.checkpoint.opening import architecture
from ikq.checkpoint.rows import FloatKind, Matrix, Permuted, Rows, Stacked
from ikq.checkpoint.safetensors import Shards
from ikq.checkpoint.target import Target
from ikq.checkpoint.weights import Weights
from ikq.errors import FormatError, UnsupportedError

__all__ = ["BaseNames", "Place"]

_ROOTS = ("model.language_model.", "language_model.model.", "language_model.", "model.")


@dataclass(frozen=True)
class Place:
    """Where a weight lies.

    Attributes:
        name: The tensor in the file.
        shape: Rows and columns of the weight in the checkpoint.
        rows: The weight's rows in the order of the file, where that is another one.
        expert: Its number among stacked weights.
        n_experts: How many of these there are.
    """

    name: str
    shape: tuple[int, int]
    rows: NDArray[np.intp] | None = None
    expert: int | None = None
    n_experts: int | None = None


class _Named(Rows):
    """A weight by its name."""

    kind: FloatKind = "F32"

    def __init__(self, name: str, of: Matrix) -> None:
        self.name, self.n_rows, self.n_per_row = name, of.n_rows, of.n_per_row

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        raise AssertionError(f"rows {first} to {first + n} of {self.name}")


class _NamedWeights(Weights):
    def matrix(self, name: str) -> Matrix:
        return _Named(name, super().matrix(name))


class BaseNames:
    """Places by the names that `transformers` gives weights.

    Attributes:
        architecture: The value of `general.architecture`.
        order: Places of tensors in the file, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Reads configuration and headers of a checkpoint.

        Raises:
            FormatError: A file is damaged, or they do not fit together.
            UnsupportedError: The architecture is not known.
            OSError: A file is missing or cannot be read.
        """
        self._folder = folder
        config = Config.read(folder)
        self.architecture, write = architecture(config)
        target = Target(self.architecture, config, _NamedWeights(Shards(folder), config))
        write(target)
        self.order = {name: i for i, name in enumerate(target.tensors)}
        self._root = target.root
        self._places: dict[str, Place] = {}
        for name, tensor in target.tensors.items():
            for source, place in _places(name, tensor.matrix):
                self._places[source] = place
        self._weights = target.weights

    def place(self, source: str) -> Place:
        """Where a weight lies.

        Args:
            source: Its name, with `.weight`; the root of layers may be that of another class of the model.

        Raises:
            UnsupportedError: It is parted, merged or computed on the way, or left out.
            FormatError: The base has none of this name.
        """
        rest = next((source.removeprefix(r) for r in _ROOTS if source.startswith(r)), None)
        names = [source] if rest is None else [source, self._root + rest]
        for name in names:
            if name in self._places:
                return self._places[name]
        if any(self._weights.has(name) for name in names):
            raise UnsupportedError(
                f"`{source}` is not a matrix of its own in files of architecture `{self.architecture}`, so "
                "that an adapter for it has no form there"
            )
        raise FormatError(f"{self._folder}: the base has no weight `{source:.120}`, which the adapter is for")


def _places(name: str, matrix: Matrix) -> Iterator[tuple[str, Place]]:
    """Weights that a tensor has as they are, or with rows in another order, or stacked."""
    if isinstance(matrix, _Named):
        yield matrix.name, Place(name, (matrix.n_rows, matrix.n_per_row))
    elif isinstance(matrix, Permuted) and isinstance(matrix.of, _Named):
        of = matrix.of
        if len(matrix.order) == of.n_rows:
            yield of.name, Place(name, (of.n_rows, of.n_per_row), rows=matrix.order.astype(np.intp))
    elif isinstance(matrix, Stacked):
        parts = [part for part in matrix.parts if isinstance(part, _Named)]
        if len(parts) == len(matrix.parts):
            for i, part in enumerate(parts):
                shape = (part.n_rows, part.n_per_row)
                yield part.name, Place(name, shape, expert=i, n_experts=len(parts))
