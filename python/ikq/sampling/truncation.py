"""Steps that narrow candidates down: top-k, top-p, min-p, typical, top-n-sigma, XTC.

Each takes sorted or unsorted candidates; none reorders equal ones, so the result does not depend on how it
was computed. `min_keep` is at least 1.
"""

from __future__ import annotations

import math

import numpy as np

from ikq.sampling.candidates import Candidates, Indices, Logits, largest

__all__ = ["min_p", "top_k", "top_n_sigma", "top_p", "typical_p", "xtc"]

# Candidates that are sorted first; ten times as many each time that they do not suffice.
_FIRST = 256


def top_k(c: Candidates, k: int, min_keep: int) -> Candidates:
    """The `k` most probable; all if `k` is 0."""
    return c.top(max(k, min_keep)) if k > 0 else c


def top_p(c: Candidates, p: float, min_keep: int) -> Candidates:
    """The fewest that have the probability `p` together."""
    if p >= 1:
        return c
    # up to a factor, and as exact as the logits are: a vocabulary is large
    weight = np.exp(c.logits - c.logits.max())
    enough = p * float(weight.sum(dtype=np.float64))
    index = _fewest(weight, c.logits, enough, min_keep, is_sorted=c.is_sorted)
    return c.take(index, is_sorted=True)


def typical_p(c: Candidates, p: float, min_keep: int) -> Candidates:
    """Those whose surprise is closest to the entropy, up to the probability `p` (arXiv:2202.00666)."""
    if p >= 1:
        return c
    probability = c.probabilities()
    with np.errstate(divide="ignore"):
        surprise = -np.log(probability)
    possible = probability > 0
    entropy = float((probability[possible] * surprise[possible]).sum())
    index = np.sort(_fewest(probability, -np.abs(surprise - entropy), p, min_keep, is_sorted=False))
    return c.take(index, is_sorted=c.is_sorted)


def _fewest(weight: Logits, key: Logits, enough: float, min_keep: int, *, is_sorted: bool) -> Indices:
    """Places of those with the largest keys that have the weight `enough` together, the largest first."""
    n = len(key)
    tried = n if is_sorted else _FIRST
    while True:
        place = np.arange(n) if is_sorted else largest(key, tried)
        n_kept = int(np.searchsorted(np.cumsum(weight[place], dtype=np.float64), enough)) + 1
        if n_kept <= len(place) or tried >= n:
            return place[: max(n_kept, min_keep)]
        tried *= 10


def min_p(c: Candidates, p: float, min_keep: int) -> Candidates:
    """Those at least `p` times as probable as the most probable one."""
    if p <= 0:
        return c
    kept = c.at_least(float(c.logits.max()) + math.log(p))
    return kept if len(kept.ids) >= min_keep else c.top(min_keep)


def top_n_sigma(c: Candidates, n: float) -> Candidates:
    """Those whose logit is at most `n` standard deviations below the largest (arXiv:2411.07641)."""
    if n <= 0:
        return c
    finite = c.logits[np.isfinite(c.logits)]
    return c.at_least(float(finite.max()) - n * float(finite.std(dtype=np.float64)))


def xtc(c: Candidates, threshold: float, min_keep: int) -> Candidates:
    """Removes all tokens of probability `threshold` or more but the least probable of them.

    Whether this is done at all is drawn by the caller.
    """
    c = c.sorted()
    n_top = int((c.probabilities() >= threshold).sum())
    if n_top < 2 or len(c.ids) - (n_top - 1) < min_keep:
        return c
    return Candidates(c.ids[n_top - 1 :], c.logits[n_top - 1 :], is_sorted=True)
