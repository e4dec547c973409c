"""Temperature, fixed or following the entropy of the candidates."""

from __future__ import annotations

import math

import numpy as np

from ikq.sampling.candidates import Candidates

__all__ = ["dynamic", "scale"]

# Below it a division could overflow; the most probable token has all the probability there anyway.
_COLDEST = 1e-4


def scale(c: Candidates, temperature: float) -> Candidates:
    """Divides logits by the temperature."""
    if temperature < _COLDEST:
        return c.top(1)
    if temperature == 1:
        return c
    return Candidates(c.ids, c.logits / np.float64(temperature), c.is_sorted)


def dynamic(c: Candidates, temperature: float, half_range: float, exponent: float) -> Candidates:
    """A temperature between `temperature - half_range` and `temperature + half_range`.

    The entropy of the candidates, as a share of the largest that so many can have, to the power of
    `exponent`, says where: sure candidates get the lowest.
    """
    if len(c.ids) < 2:
        return c
    p = c.probabilities()
    p = p[p > 0]
    share = min(1.0, max(0.0, -float((p * np.log(p)).sum()) / math.log(len(c.ids))))
    low, high = max(0.0, temperature - half_range), temperature + half_range
    return scale(c, low + (high - low) * share**exponent)
