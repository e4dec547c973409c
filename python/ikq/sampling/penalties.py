"""Repetition, presence and frequency penalties."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["penalize"]


def penalize(
    logits: NDArray[np.float32],
    recent: NDArray[np.int64],
    *,
    repeat: float,
    presence: float,
    frequency: float,
) -> None:
    """Lowers, in place, the logits of tokens in `recent`.

    The repetition penalty divides positive logits and multiplies negative ones, so that it always makes a
    token less likely.
    """
    tokens, counts = np.unique(recent, return_counts=True)
    x = logits[tokens].astype(np.float64)
    x = np.where(x > 0, x / repeat, x * repeat)
    logits[tokens] = x - counts * frequency - presence
