"""Decoded values of a tensor, a piece at a time, so that its size does not matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor

__all__ = ["Block", "blocks", "common_rows"]

# 16 MiB of floats
_ELEMENTS = 1 << 22


class Block(NamedTuple):
    """Some decoded rows of a tensor.

    Attributes:
        start: Index of the first value in the tensor: experts, row, column.
        values: `(rows, columns)`.
    """

    start: tuple[int, ...]
    values: NDArray[np.float32]


def blocks(tensor: QTensor, *, together: int = 1) -> Iterator[Block]:
    """All rows in order.

    Args:
        tensor: The tensor. One with a single scale for all (I2_S) comes whole.
        together: Rows of a block are a multiple of this (except the last ones), and of what its type stores
            together.

    Raises:
        UnsupportedError: its type is unknown or cannot be decoded.
    """
    if not tensor.size:
        return
    if tensor.ndim == 1 or not isinstance(tensor.type, QuantType) or tensor.type is QuantType.I2_S:
        values = tensor.dequantize().reshape(-1, *tensor.shape[-2:])
        matrices = values if tensor.ndim > 1 else values[np.newaxis]
        leads = itertools.product(*(range(n) for n in tensor.shape[:-2]))
        for lead, matrix in zip(leads, matrices, strict=True):
            yield Block((*lead, *[0] * min(tensor.ndim, 2)), matrix)
        return
    n_rows, n_columns = tensor.shape[-2:]
    together = math.lcm(together, tensor.type.rows)
    step = max(1, _ELEMENTS // n_columns // together) * together
    for lead in itertools.product(*(range(n) for n in tensor.shape[:-2])):
        for row in range(0, n_rows, step):
            yield Block((*lead, row, 0), tensor[(*lead, slice(row, row + step))].dequantize())


def common_rows(*tensors: QTensor) -> int:
    """The `together` with which blocks of all these tensors, which have one shape, are the same rows."""
    if any(t.type is QuantType.I2_S and t.ndim > 1 for t in tensors):
        return max(1, tensors[0].shape[-2])
    return math.lcm(*(t.type.rows for t in tensors if isinstance(t.type, QuantType)))
