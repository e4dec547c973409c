"""`Candidates`: tokens that may come next with their logits; selection of the largest without a full sort."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "Scores", "candidates", "largest", "log_probability", "softmax", "top_logprobs"]

Floats = NDArray[np.float64]
Logits = NDArray[np.float32] | NDArray[np.float64]
Indices = NDArray[np.intp]

# Elements of which only the maximum is looked at first.
_BLOCK = 64


class Candidates(NamedTuple):
    """Tokens that are left.

    Attributes:
        ids: Token ids.
        logits: Their logits.
        is_sorted: Whether the largest logit comes first, equal ones by id.
    """

    ids: Indices
    logits: Logits
    is_sorted: bool = False

    @classmethod
    def all(cls, logits: NDArray[np.float32]) -> Candidates:
        """The whole vocabulary."""
        return cls(_places(len(logits)), logits)

    def take(self, index: Indices, *, is_sorted: bool = False) -> Candidates:
        """Those at the places of `index`."""
        return Candidates(self.ids[index], self.logits[index], is_sorted)

    def first(self, n: int) -> Candidates:
        """The first `n`."""
        return Candidates(self.ids[:n], self.logits[:n], self.is_sorted)

    def top(self, k: int) -> Candidates:
        """The `k` largest, sorted."""
        if self.is_sorted:
            return self.first(k)
        return self.take(largest(self.logits, k), is_sorted=True)

    def sorted(self) -> Candidates:
        """All, the largest first."""
        return self.top(len(self.ids))

    def at_least(self, bound: float) -> Candidates:
        """Those whose logit is `bound` or more, in the order that they have."""
        return self.take(np.flatnonzero(self.logits >= bound), is_sorted=self.is_sorted)

    def probabilities(self) -> Floats:
        """Softmax of the logits."""
        return softmax(self.logits)


Scores: TypeAlias = NDArray[np.float32] | Candidates
"""What a token is chosen from: the logits of all, float32 `(n_vocab,)`; or only the largest ones, sorted."""


def candidates(ids: NDArray[np.int64], logits: NDArray[np.float32]) -> list[Candidates]:
    """The largest logits of several positions, sorted in each row."""
    rows = zip(ids.astype(np.intp, copy=False), logits, strict=True)
    return [Candidates(places, row, is_sorted=True) for places, row in rows]


@lru_cache(maxsize=4)
def _places(n: int) -> Indices:
    places = np.arange(n)
    places.flags.writeable = False
    return places


def softmax(logits: Logits) -> Floats:
    """Probabilities in float64; `-inf` becomes 0."""
    p = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
    p /= p.sum()
    return p


def largest(keys: Logits, k: int) -> Indices:
    """Places of the `k` largest keys, the largest first, equal ones in order of place.

    Each of k blocks whose maximum is among the k largest maxima holds at least one key of that size, so the
    k-th largest maximum is a bound that no wanted key is below. Few keys reach it, and only they are sorted.
    """
    n = len(keys)
    k = min(k, n)
    n_blocks = n // _BLOCK
    if k < n_blocks // 2:
        blocks = keys[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
        bound = np.partition(blocks, n_blocks - k)[n_blocks - k]
        place = np.flatnonzero(keys >= bound)
        return place[np.argsort(-keys[place], kind="stable")[:k]]
    if k < n // 2:
        bound = np.partition(keys, n - k)[n - k]
        place = np.flatnonzero(keys >= bound)
        return place[np.argsort(-keys[place], kind="stable")[:k]]
    return np.argsort(-keys, kind="stable")[:k]


def _log_sum(logits: Logits) -> float:
    top = logits.max()
    return float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))


def log_probability(logits: Logits, token: int) -> float:
    """Log of the probability that the model itself gives a token, before any sampler."""
    return float(logits[token]) - _log_sum(logits)


def top_logprobs(logits: NDArray[np.float32], n: int) -> tuple[tuple[int, float], ...]:
    """The `n` most probable tokens with the logs of their probabilities."""
    total = _log_sum(logits)
    return tuple((int(i), float(logits[i]) - total) for i in largest(logits, n))
