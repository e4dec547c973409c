"""`Lookup`: drafts from earlier occurrences of the last tokens in the text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ikq.speculation.drafter import Drafting

__all__ = ["Lookup"]

_BITS = 32


class Lookup:
    """Proposes what followed the latest earlier occurrence of the last tokens, of as many as possible.

    Costs nothing but memory, and pays where texts repeat themselves or their prompt: code, summaries, edits.

    Args:
        n_min: Fewest last tokens that must occur earlier.
        n_max: Most that are looked for.

    Raises:
        ValueError: these are no numbers of tokens.
    """

    needs_hidden = False

    def __init__(self, n_min: int = 2, n_max: int = 4) -> None:
        if not 1 <= n_min <= n_max:
            raise ValueError(
                f"lookup of {n_min} to {n_max} tokens: expected 1 or more, and no less than that"
            )
        self.n_min, self.n_max = n_min, n_max
        self._forget()

    def _forget(self) -> None:
        # by number of tokens: those tokens, packed into an integer, to the place behind their last occurrence
        self._found: dict[int, dict[int, int]] = {n: {} for n in range(self.n_min, self.n_max + 1)}
        self._n_read = 0
        self._packed = 0

    def _note(self, tokens: Sequence[int]) -> None:
        """Notes tokens: constant time for each. What ends the text is noted when something follows."""
        for place in range(self._n_read, len(tokens)):
            for n, found in self._found.items():
                if n <= place:
                    found[self._packed & ((1 << n * _BITS) - 1)] = place
            self._packed = (self._packed << _BITS | tokens[place]) & ((1 << self.n_max * _BITS) - 1)
        self._n_read = len(tokens)

    def n_unread(self, tokens: Sequence[int]) -> int:
        """Nothing has to be computed."""
        return 0

    def read(self, tokens: Sequence[int], n: int) -> Drafting:
        """Notes them."""
        yield from ()
        self._note(tokens)
        return []

    def propose(self, tokens: Sequence[int], n: int) -> Drafting:
        """As `Drafter.propose`; a proposal that reaches the end of the text goes on with itself."""
        yield from ()
        self._note(tokens)
        for n_last in range(min(self.n_max, len(tokens)), self.n_min - 1, -1):
            place = self._found[n_last].get(self._packed & ((1 << n_last * _BITS) - 1))
            if place is not None:
                draft = list(tokens[place : place + n])
                while len(draft) < n:
                    draft.append(draft[place + len(draft) - len(tokens)])
                return draft
        return []

    def observe(self, tokens: Sequence[int], first: int, hidden: NDArray[np.float32]) -> None:
        """Does nothing: hidden states are not needed."""

    def keep(self, n: int) -> None:
        """Does nothing: only tokens that are certain are stored."""

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Reads the text again, because positions have changed."""
        self._forget()

    def close(self) -> None:
        """Does nothing: there is nothing to free."""
