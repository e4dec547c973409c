"""Covariances of inputs in the place of mean squares: `InputCovariances`, and the imatrix in them."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import RefusedError
from ikq.statistics.covariance import Covariances, InputCovariance

__all__ = ["InputCovariances", "write_diagonal"]

_FLOOR = 1e-4
"""Of the mean square of columns, added to the diagonal, as the encoders do with the mean squares."""


class InputCovariances:
    """Means of x x^T of the inputs of tensors.

    Args:
        covariances: The file that has them.
    """

    def __init__(self, covariances: Covariances) -> None:
        self._covariances = covariances
        self._places: dict[str, tuple[int, int | None]] = {}
        self._last: tuple[int, InputCovariance] | None = None
        for i in range(len(covariances)):
            for name, group in self._site(i).tensors:
                self._places[name] = i, group
        self._last = None

    def _site(self, index: int) -> InputCovariance:
        # tensors that stand next to one another read the same
        if self._last is None or self._last[0] != index:
            self._last = None
            self._last = index, self._covariances[index]
        return self._last[1]

    @property
    def names(self) -> frozenset[str]:
        """Tensors whose input is known."""
        return frozenset(self._places)

    def of(self, name: str, n_experts: int, n_per_row: int) -> NDArray[np.float32] | None:
        """`(n_experts, k, k)`, or `(1, k, k)` where all read the same; `None` where nothing is known.

        Experts that no token reached get the mean of the others.

        Raises:
            ikq.errors.RefusedError: The file is of another model.
        """
        if name not in self._places:
            return None
        index, group = self._places[name]
        site = self._site(index)
        at = slice(None) if group is None else slice(group, group + 1)
        sums, counts = site.sums[at], site.counts[at]
        if sums.shape[1] != n_per_row or len(sums) not in (1, n_experts):
            raise RefusedError(
                f"the covariance of `{name}` is {len(sums)} of {sums.shape[1]} columns, the model has "
                f"{n_experts} of {n_per_row}: it is of another model"
            )
        seen = counts > 0
        if not seen.any():
            return None
        means = (sums / np.maximum(counts, 1)[:, np.newaxis, np.newaxis]).astype(np.float32, copy=False)
        means[~seen] = means[seen].mean(axis=0)
        columns = np.arange(n_per_row)
        squares = means[:, columns, columns]
        means[:, columns, columns] = squares + np.float32(_FLOOR) * squares.mean(axis=1, keepdims=True)
        return means


def write_diagonal(covariances: Covariances, path: str | os.PathLike[str]) -> None:
    """Writes the mean squares that covariances contain as an imatrix (GGUF).

    Raises:
        OSError: The file cannot be written.
    """
    entries = []
    for site in covariances:
        columns = np.arange(site.sums.shape[1])
        squares = site.sums[:, columns, columns].astype(np.float64)
        for name, group in site.tensors:
            at = slice(None) if group is None else slice(group, group + 1)
            entries.append((name, np.ascontiguousarray(squares[at]), np.ascontiguousarray(site.counts[at])))
    _ikq.write_statistics(
        path,
        "gguf",
        entries,
        datasets=covariances.datasets,
        n_chunks=covariances.n_chunks,
        chunk_size=covariances.chunk_size,
        all_experts=False,
    )
