"""Summaries of each tensor's statistics, as llama-imatrix shows them: `summarize`, `summarize_layers`."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ikq.statistics.activations import ActivationStatistics

__all__ = ["LayerSummary", "TensorSummary", "summarize", "summarize_layers"]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Mean squares below this count as no activation.
_ACTIVE = 1e-5


class TensorSummary(NamedTuple):
    """The mean squared inputs of a tensor's columns, of all its experts that have data.

    Attributes:
        name: The tensor.
        layer: Its block; `None` outside of blocks.
        role: Its name without the block.
        n: Number of columns.
        total, least, most, mean, deviation: Of the mean squares.
        active: Share of columns above 1e-5.
        entropy: In bits, of the mean squares as shares of their sum.
        evenness: The entropy as a share of what equal columns would have.
        outliers: Share of columns more than one deviation from the mean.
        cosine: With the same role in the previous block that has it; `None` if there is none of that size.
    """

    name: str
    layer: int | None
    role: str
    n: int
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    entropy: float
    evenness: float
    outliers: float
    cosine: float | None


class LayerSummary(NamedTuple):
    """A block.

    Attributes:
        layer: Its number.
        total: Sum over its tensors of the sums of mean squares.
        outliers: Mean of the tensors' shares, weighted with their columns.
        cosine: The same of cosines; `None` for the first block.
    """

    layer: int
    total: float
    outliers: float
    cosine: float | None


def summarize(statistics: ActivationStatistics) -> list[TensorSummary]:
    """One summary for every tensor with data, largest sums first."""
    means = {name: entry.mean for name, entry in statistics.items()}
    places = {}
    for name in means:
        block = _BLOCK.fullmatch(name)
        places[name] = (int(block[1]), block[2]) if block else (None, name)
    by_place = {place: name for name, place in places.items()}
    summaries = []
    for name, entry in statistics.items():
        seen = entry.counts > 0
        values = means[name][seen].ravel()
        if not values.size:
            continue
        layer, role = places[name]
        before = None
        if layer is not None:
            known = (by_place.get((i, role)) for i in range(layer - 1, -1, -1))
            before = next((means[other] for other in known if other is not None), None)
        cosine = None
        if before is not None and before.shape == means[name].shape:
            lengths = float(np.linalg.norm(before) * np.linalg.norm(means[name]))
            cosine = float((before * means[name]).sum()) / lengths if lengths else 0.0
        total = float(values.sum())
        shares = values[values > 0] / total if total else np.zeros(0)
        entropy = float(-(shares * np.log2(shares)).sum())
        deviation = float(values.std())
        far = np.abs(values - values.mean()) > deviation
        summaries.append(
            TensorSummary(
                name,
                layer,
                role.removesuffix(".weight"),
                int(values.size),
                total,
                float(values.min()),
                float(values.max()),
                float(values.mean()),
                deviation,
                float((values > _ACTIVE).mean()),
                entropy,
                entropy / float(np.log2(values.size)) if values.size > 1 else 1.0,
                float(far.mean()) if deviation else 0.0,
                cosine,
            )
        )
    return sorted(summaries, key=lambda s: -s.total)


def summarize_layers(summaries: list[TensorSummary]) -> list[LayerSummary]:
    """One summary for every block, in order."""
    layers = []
    for layer in sorted({s.layer for s in summaries if s.layer is not None}):
        rows = [s for s in summaries if s.layer == layer]
        columns = sum(s.n for s in rows)
        compared = [s for s in rows if s.cosine is not None]
        cosine = sum((s.cosine or 0) * s.n for s in compared) / max(1, sum(s.n for s in compared))
        layers.append(
            LayerSummary(
                layer,
                sum(s.total for s in rows),
                sum(s.outliers * s.n for s in rows) / columns,
                cosine if compared else None,
            )
        )
    return layers
