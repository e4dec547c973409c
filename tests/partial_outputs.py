"""What an interrupted quantization leaves, read independently of the program: journal slots and pieces."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ikq

SLOT = 96


def noted(journal: Path) -> list[bool]:
    """For every work item, whether its slot has been written."""
    raw = journal.read_bytes()
    magic, n_items = raw[:8], struct.unpack_from("<Q", raw, 24)[0]
    assert magic == b"ikqjrnl3"
    slots = raw[SLOT:].ljust(SLOT * n_items, b"\0")
    return [any(slots[SLOT * i : SLOT * (i + 1)]) for i in range(n_items)]


class Item(NamedTuple):
    """Where the result of a work item lies in the output."""

    tensor: str
    begin: int
    end: int


def items(path: Path) -> Iterator[Item]:
    """The work items of a whole single output, in order: blocks of at most 2^18 elements of a matrix."""
    raw = path.read_bytes()
    for name, tensor in ikq.GGUFReader(path).tensors.items():
        content = tensor.raw.tobytes()
        at = raw.index(content)
        n = tensor.shape[-1]
        n_rows = tensor.shape[-2] if tensor.ndim > 1 else 1
        n_matrices = len(content) // (n_rows * ikq.row_bytes(tensor.type, n))
        step = -(-max(1, (1 << 18) // n) // 16) * 16
        row = ikq.row_bytes(tensor.type, n)
        for matrix in range(n_matrices):
            for first in range(0, n_rows, step):
                begin = at + (matrix * n_rows + first) * row
                yield Item(name, begin, begin + min(step, n_rows - first) * row)
