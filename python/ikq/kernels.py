"""Which kernels multiply with a tensor type on this machine, and a check of each."""

from __future__ import annotations

from typing import NamedTuple

from ikq import _ikq
from ikq.quant_types import QuantType, TypeLike, as_type

__all__ = ["Kernel", "kernel", "self_test"]


class Kernel(NamedTuple):
    """How products with a type are computed.

    Attributes:
        type: The tensor type.
        few: Kernel for few columns of activations (generating).
        many: Kernel for many (reading a prompt).
    """

    type: QuantType
    few: str
    many: str


def kernel(type: TypeLike) -> Kernel:
    """The kernels of a type, on the instruction set that is in use.

    Raises:
        UnsupportedError: `IKQ_ISA` asks for one that this machine lacks.
    """
    t = as_type(type)
    return Kernel(t, _ikq.kernel_name(t, 1, None), _ikq.kernel_name(t, 512, None))


def self_test(type: TypeLike) -> str | None:
    """Multiplies random weights of the type, and compares with scalar arithmetic.

    Returns:
        `None` when they agree within the rounding of float32, else what differs.
    """
    return _ikq.kernel_self_test(as_type(type), None)
