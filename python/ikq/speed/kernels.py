"""Which kernels multiply with a tensor type on this machine, and a check of each."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq
from ikq.arrays.quant_types import TypeLike, as_type
from ikq.arrays.tensor import QTensor
from ikq.errors import ShapeError

__all__ = ["kernel", "product", "self_test"]


def kernel(type: TypeLike) -> str:
    """How products with a type are computed on the instruction set that is in use.

    Raises:
        FormatError: no type has that name.
        UnsupportedError: `IKQ_ISA` asks for an instruction set that this machine lacks.
    """
    return _ikq.kernel_name(as_type(type), None)


def self_test(type: TypeLike) -> float:
    """Multiplies random weights of the type with random columns, and compares with sums in float64.

    Returns:
        The largest error as a share of what the rounding of float32 explains: above 1 the kernel is wrong.

    Raises:
        UnsupportedError: weights do not have this type, or as `kernel`.
    """
    return _ikq.kernel_self_test(as_type(type), None)


def product(
    x: ArrayLike, weights: QTensor, *, compute: Literal["auto", "f32"] = "auto", _isa: str | None = None
) -> NDArray[np.float32]:
    """`x @ weights.T`, as a model computes it, on the calling thread.

    Args:
        x: Activations `(n, k)`, or `(k,)`.
        weights: A matrix `(n_rows, k)` of any type.
        compute: `auto` quantizes activations to 8 bits where the type's kernel does; `f32` multiplies with
            the decoded weights.
        _isa: forces an instruction set (for tests).

    Returns:
        float32 `(n, n_rows)`, or `(n_rows,)`.

    Raises:
        ShapeError: shapes do not fit together.
    """
    columns = np.atleast_2d(np.asarray(x, np.float32))
    if weights.ndim != 2 or columns.ndim != 2 or columns.shape[1] != weights.shape[1]:
        raise ShapeError(f"activations of shape {np.shape(x)} do not fit weights of shape {weights.shape}")
    raw = np.ascontiguousarray(weights.raw).reshape(-1)
    y = _ikq.product(as_type(weights.type), raw, weights.shape[0], columns, compute, _isa)
    return y if np.ndim(x) == 2 else y[0]
