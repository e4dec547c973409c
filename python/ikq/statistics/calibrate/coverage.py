"""Which tensors and experts statistics have data for: `coverage`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ikq.arrays.tensor import QTensor
from ikq.statistics.activations import ActivationStatistics

__all__ = ["Coverage", "TensorCoverage", "coverage", "wanted_tensors"]

# Matrices of a file that nothing is multiplied with: tables that rows are taken from, norms, convolutions.
_NOT_MULTIPLIED = re.compile(
    r"(token_embd|position_embd|token_types|per_layer_token_embd|embed_tokens|_norm|conv1d)[_.]"
)


class TensorCoverage(NamedTuple):
    """A tensor's data.

    Attributes:
        name: The tensor.
        n_expert: Experts; 1 for plain matrices.
        unseen: Experts that no token reached.
        fewest, median, most: Tokens per expert.
    """

    name: str
    n_expert: int
    unseen: tuple[int, ...]
    fewest: float
    median: float
    most: float


class Coverage(NamedTuple):
    """Which tensors of a model statistics have data for.

    Attributes:
        tensors: Tensors with data.
        missing: Tensors of the model without data.
        foreign: Entries whose tensors the model does not have.
    """

    tensors: tuple[TensorCoverage, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def n_experts(self) -> int:
        """Experts of all tensors that have several."""
        return sum(t.n_expert for t in self.tensors if t.n_expert > 1)

    @property
    def n_unseen(self) -> int:
        """Those of them that no token reached."""
        return sum(len(t.unseen) for t in self.tensors if t.n_expert > 1)


def wanted_tensors(tensors: Mapping[str, QTensor]) -> dict[str, int]:
    """The matrices of a file that activations are multiplied with, and how many experts each has.

    Args:
        tensors: `GGUFReader.tensors`.
    """
    wanted = {}
    for name, tensor in tensors.items():
        shape = [n for n in tensor.shape if n > 1]
        tied = name == "token_embd.weight" and "output.weight" not in tensors
        if not name.endswith(".weight") or (_NOT_MULTIPLIED.search(name) and not tied):
            continue
        if len(shape) >= 2 or "ffn_gate_inp" in name:
            wanted[name] = int(np.prod(tensor.shape[:-2], dtype=np.int64)) if len(tensor.shape) > 2 else 1
    return wanted


def coverage(statistics: ActivationStatistics, wanted: Iterable[str] | None = None) -> Coverage:
    """Which tensors statistics have data for.

    Args:
        statistics: The statistics.
        wanted: Names of all tensors that should have data, as from `wanted_tensors`; `None`: not known.
    """
    rows = []
    for name, entry in statistics.items():
        if not entry.counts.any():
            continue
        counts = entry.counts
        unseen = tuple(int(i) for i in np.flatnonzero(counts == 0))
        middle = float(np.median(counts))
        rows.append(
            TensorCoverage(name, len(counts), unseen, float(counts.min()), middle, float(counts.max()))
        )
    names = {row.name for row in rows}
    expected = list(names if wanted is None else wanted)
    return Coverage(
        tuple(rows),
        tuple(name for name in expected if name not in names),
        tuple(row.name for row in rows if row.name not in expected),
    )
