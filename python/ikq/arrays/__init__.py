"""Tensor types, and arrays of blocks of them.

quant_types.py   the types and their facts: `QuantType`
coding.py        floats to blocks and back, sizes: `quantize`, `dequantize`, `repack`
fields.py        blocks taken apart into integers: `unpack`, `pack`
tensor.py        a stored tensor with type and shape: `QTensor`
"""

from ikq.arrays.coding import (
    ByteData,
    available_isas,
    dequantize,
    isa,
    quantize,
    repack,
    row_bytes,
    tensor_bytes,
)

__all__ = [
    "ByteData",
    "available_isas",
    "dequantize",
    "isa",
    "quantize",
    "repack",
    "row_bytes",
    "tensor_bytes",
]
