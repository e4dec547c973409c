"""What GPUs can do at most, by a part of their names."""

from __future__ import annotations

from ikq import cuda

BANDWIDTH = {"H200": 4.3e12, "H100": 3.0e12, "RTX 3090": 0.9e12, "A100": 1.7e12, "RTX 4090": 0.95e12}
"""Bytes per second of a copy."""
INT8 = {"H200": 1979e12, "H100": 1979e12, "RTX 3090": 284e12, "A100": 624e12, "RTX 4090": 660e12}
"""Operations per second of tensor cores with integers of 8 bits, by data sheet. Hopper's is that of `wgmma`; what `mma` reaches of
it is not known here (from its instructions half, `benches/results/cuda_mma.md`)."""
F16 = {"H200": 989e12, "H100": 989e12, "RTX 3090": 71e12, "A100": 312e12, "RTX 4090": 165e12}
"""Operations per second of tensor cores with halves that are summed in floats, by data sheet."""


def of_device(table: dict[str, float]) -> float | None:
    """What a table has for the first GPU, if it is known."""
    device = cuda.require()["devices"][0]["name"]
    return next((value for name, value in table.items() if name in device), None)
