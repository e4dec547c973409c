"""The hidden states of a text before a layer: `States`, `embedded`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq.arrays.tensor import QTensor
from ikq.evaluate.windows import Windows
from ikq.files.gguf import GGUFReader
from ikq.models import ModelSpec

__all__ = ["embedded", "new_states"]


def new_states(windows: Windows, n_embd: int, path: Path, max_bytes: int | None) -> NDArray[np.float32]:
    """Zeros `(n_windows, n_ctx, n_embd)`, float32.

    Args:
        windows: The text.
        n_embd: Numbers of a token.
        path: A file for them where they take more than `max_bytes`; it has no name as soon as it is mapped.
        max_bytes: `None`: any number of bytes stay in memory.

    Raises:
        OSError: The file cannot be made.
    """
    shape = (windows.n, windows.n_ctx, n_embd)
    if max_bytes is None or 4 * np.prod(shape) <= max_bytes:
        return np.zeros(shape, np.float32)
    mapped = np.memmap(path, np.float32, "w+", shape=shape)
    path.unlink()
    return mapped


def embedded(reader: GGUFReader, spec: ModelSpec, windows: Windows, states: NDArray[np.float32]) -> None:
    """Fills in the states before the first layer."""
    tensor = reader.tensors[spec.token_embd]
    for i in range(windows.n):
        tokens = windows[i].tokens
        rows = QTensor(tensor.raw[tokens], tensor.type, (len(tokens), spec.n_embd))
        states[i] = rows.dequantize() * np.float32(spec.embd_scale)
