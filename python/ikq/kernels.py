"""Which kernels multiply with a tensor type on this machine, and a check of each."""

from __future__ import annotations

from ikq import _ikq
from ikq.quant_types import TypeLike, as_type

__all__ = ["kernel", "self_test"]


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
