"""What every type costs every tensor: squared errors of products, from a sample of rows.

A product of a matrix whose elements are off by d with an input x is off by the sum of d_j x_j; over many
tokens its square is the sum of d_j^2 E[x_j^2] if columns of x have nothing to do with one another, and
E[x_j^2] is what the statistics hold; with covariances C it is d C d. So a few rows, encoded by the real
encoders, tell the error of the whole tensor. Rows are taken from all parts of all experts.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ikq.arrays.coding import dequantize, quantize
from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.errors import NotTernaryWarning
from ikq.recipes.covariances import InputCovariances
from ikq.recipes.problem import Problem, TensorChoices
from ikq.recipes.source import Tensors
from ikq.statistics.imatrix import Imatrix

__all__ = ["Errors", "expert_importance", "measure_errors", "sample_rows"]

ROWS = 256
"""Rows that are taken of a tensor. Errors of rows differ by a fifth or so, their mean by a hundredth."""

_SLOW_SHARE = 4
"""Trellis types take ten times as long as others and get a part of the rows, one of so many."""

_FLOOR = 1e-4
"""Of the mean importance, added to all columns, as the encoders do."""


@dataclass(frozen=True)
class Errors:
    """Errors of all tensors.

    Attributes:
        relative: Tensors x choices: squared error of the product over its square, the latter as if inputs of
            different columns had nothing to do with one another, and the error, too, unless there are
            covariances. Infinite where a tensor has fewer choices.
        signal: Per tensor that square: mean over experts of sum over rows and columns of w^2 E[x^2].
        n_sampled: Elements that were encoded, once for every type.
    """

    relative: NDArray[np.float64]
    signal: NDArray[np.float64]
    n_sampled: int


def measure_errors(
    problem: Problem,
    *,
    n_rows: int = ROWS,
    n_threads: int | None = None,
    covariances: InputCovariances | None = None,
    progress: Callable[[TensorChoices], None] | None = None,
) -> Errors:
    """Encodes a sample of every tensor as every type it may become.

    Args:
        problem: The model and its choices.
        n_rows: Rows of each tensor.
        n_threads: Threads; None is one per CPU.
        covariances: Of the inputs, for tensors that have them.
        progress: Called after each tensor.

    Raises:
        ikq.errors.FormatError: A weight that is not finite.
        ikq.errors.RefusedError: Covariances of another model.
    """
    width = max(len(t.types) for t in problem.tensors)
    relative = np.full((len(problem.tensors), width), np.inf)
    signal = np.zeros(len(problem.tensors))
    n_sampled = 0
    with Tensors(problem.source) as tensors:
        for i, t in enumerate(problem.tensors):
            rows, importance, scale = _sample(tensors[t.name], t, problem.imatrix, n_rows)
            signal[i] = scale * float(np.einsum("eij,ej->", rows**2, importance, dtype=np.float64))
            n_sampled += rows.size
            full = None if covariances is None else covariances.of(t.name, rows.shape[0], rows.shape[2])
            for k, to in enumerate(t.types):
                relative[i, k] = _relative_error(rows, importance, full, to, t.source_type, n_threads)
            if progress is not None:
                progress(t)
    return Errors(relative, signal, n_sampled)


def _sample(
    tensor: QTensor, t: TensorChoices, imatrix: Imatrix | None, n_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Rows (experts x rows x elements), importance (experts x elements), rows per row taken."""
    together = max(k.rows for k in t.types if isinstance(k, QuantType))
    rows = sample_rows(tensor, n_rows, together)
    importance = expert_importance(imatrix, t.imatrix, rows.shape[0], rows.shape[2])
    return rows, importance, t.shape[-2] / rows.shape[1] / rows.shape[0]


def sample_rows(tensor: QTensor, n_rows: int, together: int = 1) -> NDArray[np.float32]:
    """Decoded rows, as many of each expert, evenly spread with a start that depends on the name only.

    Args:
        tensor: A matrix, or one per expert.
        n_rows: Rows in all; at least one group per expert.
        together: Rows that a type stores together.
    """
    shape = tensor.shape if tensor.ndim == 3 else (1, *tensor.shape[-2:])
    source_rows = tensor.type.rows if isinstance(tensor.type, QuantType) else 1
    group = max(together, source_rows)
    n_groups = shape[1] // group
    if n_groups == 0:
        return tensor.dequantize().reshape(shape)
    wanted = max(1, min(n_groups, round(n_rows / (shape[0] * group))))
    start = zlib.crc32((tensor.name or "").encode()) / 2**32
    out = np.empty((shape[0], wanted * group, shape[2]), np.float32)
    for e in range(shape[0]):
        matrix = tensor[e] if tensor.ndim == 3 else tensor
        # another place in each expert, so that all rows of the tensor have their turn
        places = (np.arange(wanted) + (start + e * 0.618034) % 1) * n_groups / wanted
        for j, place in enumerate(np.minimum(places.astype(int), n_groups - 1)):
            rows = slice(int(place) * group, (int(place) + 1) * group)
            out[e, j * group : (j + 1) * group] = matrix[rows].dequantize(n_threads=1)
    return out


def expert_importance(
    imatrix: Imatrix | None, entry: str | None, n_experts: int, n_per_row: int
) -> NDArray[np.float32]:
    """Mean squared inputs, experts x columns; ones where there are no statistics.

    An expert that the text never reached gets the mean of the others.
    """
    if imatrix is None or entry is None or entry not in imatrix:
        return np.ones((n_experts, n_per_row), np.float32)
    values = imatrix[entry].values
    if values.size == n_per_row:
        found = np.repeat(values.reshape(1, n_per_row), n_experts, axis=0)
    elif values.size == n_experts * n_per_row:
        found = values.reshape(n_experts, n_per_row).copy()
    else:
        return np.ones((n_experts, n_per_row), np.float32)
    seen = found.any(axis=1)
    if not seen.any():
        return np.ones((n_experts, n_per_row), np.float32)
    found[~seen] = found[seen].mean(axis=0)
    found += np.float32(_FLOOR) * found.mean(axis=1, keepdims=True)
    return found


def _relative_error(
    rows: NDArray[np.float32],
    importance: NDArray[np.float32],
    full: NDArray[np.float32] | None,
    type: QuantType | int,
    source_type: QuantType | int,
    n_threads: int | None,
) -> float:
    if type == source_type or not isinstance(type, QuantType):
        return 0.0
    part = rows
    if type.family == "trellis":
        step = max(1, min(_SLOW_SHARE, rows.shape[1] // max(1, type.rows)))
        part = np.ascontiguousarray(rows[:, ::step]) if step > 1 else rows
        if step == 1 and rows.shape[0] >= 2 * _SLOW_SHARE:
            part, importance = rows[::_SLOW_SHARE], importance[::_SLOW_SHARE]
            full = full if full is None or len(full) == 1 else full[::_SLOW_SHARE]
    with warnings.catch_warnings():
        # what ternary types lose is in the number; it is for the recipe to choose them or not
        warnings.simplefilter("ignore", NotTernaryWarning)
        stored = quantize(part, type, importance, n_threads=n_threads)
    # types that store a matrix as a whole come back without its rows
    difference = part - dequantize(stored, type, n_threads=n_threads).reshape(part.shape)
    if full is None:
        error = float(np.einsum("eij,ej->", difference**2, importance, dtype=np.float64))
    else:
        error = float(np.einsum("eij,eij->", difference @ full, difference, dtype=np.float64))
    total = float(np.einsum("eij,ej->", part**2, importance, dtype=np.float64))
    return error / total if total > 0 else 0.0
