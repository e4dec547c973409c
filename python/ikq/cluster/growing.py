"""Values that come piece by piece and are wanted as one array after each: `Growing`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growing"]


class Growing:
    """A float64 array that grows at its end; what is there is seldom copied.

    Args:
        values: What is there at first, `(n,)`; copied.
    """

    def __init__(self, values: NDArray[np.float64] | None = None) -> None:
        first = np.zeros(0) if values is None else values
        self._room = np.array(first, np.float64)
        self._n = len(first)

    def add(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Puts values at the end.

        Returns:
            All of them, `(n,)` without gaps: a view that stays what it is when more come.
        """
        n = self._n + len(values)
        if n > len(self._room):
            # twice the room each time, so that a value is moved about once
            room = np.empty(2 * n)
            room[: self._n] = self._room[: self._n]
            self._room = room
        self._room[self._n : n] = values
        self._n = n
        found = self._room[:n]
        found.flags.writeable = False
        return found
