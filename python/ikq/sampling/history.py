"""`History`: the tokens so far, as an array that grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["History"]


class History:
    """Tokens in the order in which they came."""

    def __init__(self, tokens: ArrayLike = ()) -> None:
        given = np.asarray(tokens, np.int64)
        self._n = len(given)
        self._tokens = np.empty(max(256, 2 * self._n), np.int64)
        self._tokens[: self._n] = given

    def append(self, token: int) -> None:
        """Adds a token."""
        if self._n == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self._n] = token
        self._n += 1

    def last(self, n: int) -> NDArray[np.int64]:
        """The last `n` tokens, all if `n` is -1, as a view."""
        start = 0 if n < 0 else max(0, self._n - n)
        return self._tokens[start : self._n]

    def __len__(self) -> int:
        return self._n
