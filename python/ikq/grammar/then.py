"""One constraint behind another: `Then`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ikq.grammar.constraint import Constraint, n_allowed_by_masks

__all__ = ["Then"]


class Then(Constraint):
    """A text of two parts, each with a constraint of its own.

    The first part is over where it is complete, so none of its texts may be the beginning of another one.
    No token belongs to both parts.

    Args:
        first: Of the first part.
        second: Of what follows it.
    """

    def __init__(self, first: Constraint, second: Constraint) -> None:
        self._first: Constraint | None = first
        self._second = second

    def mask(self) -> NDArray[np.bool_] | None:
        """As `Constraint.mask`."""
        return (self._first or self._second).mask()

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        if self._first is None:
            self._second.accept(token)
            return
        self._first.accept(token)
        if self._first.is_complete:
            self._first = None

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """As `Constraint.n_allowed`."""
        if self._first is None:
            return self._second.n_allowed(tokens)
        return n_allowed_by_masks(self, tokens)

    def clone(self) -> Then:
        """As `Constraint.clone`."""
        other = Then.__new__(Then)
        other._first = None if self._first is None else self._first.clone()
        other._second = self._second.clone()
        return other

    @property
    def is_complete(self) -> bool:
        """As `Constraint.is_complete`."""
        return self._first is None and self._second.is_complete

    @property
    def must_stop(self) -> bool:
        """As `Constraint.must_stop`."""
        return self._first is None and self._second.must_stop
