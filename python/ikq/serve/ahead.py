"""`Ahead`: a constraint whose masks are computed while the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ikq.grammar import Constraint

__all__ = ["Ahead"]

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="ikq-masks")


class Ahead(Constraint):
    """Another constraint, which begins with the next mask as soon as a token is taken.

    Args:
        inner: See there; nobody else uses it.
    """

    def __init__(self, inner: Constraint) -> None:
        self._inner = inner
        self._next: Future[NDArray[np.bool_] | None] | None = _THREAD.submit(inner.mask)

    def mask(self) -> NDArray[np.bool_] | None:
        """As `Constraint.mask`."""
        coming, self._next = self._next, None
        return self._inner.mask() if coming is None else coming.result()

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        self._wait()
        self._inner.accept(token)
        if not self._inner.must_stop:
            self._next = _THREAD.submit(self._inner.mask)

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """As `Constraint.n_allowed`."""
        self._wait()
        return self._inner.n_allowed(tokens)

    def clone(self) -> Constraint:
        """As `Constraint.clone`."""
        self._wait()
        return Ahead(self._inner.clone())

    @property
    def is_complete(self) -> bool:
        """As `Constraint.is_complete`."""
        self._wait()
        return self._inner.is_complete

    @property
    def must_stop(self) -> bool:
        """As `Constraint.must_stop`."""
        self._wait()
        return self._inner.must_stop

    def _wait(self) -> None:
        """Waits until nobody uses the inner one. What failed there is raised by `mask`."""
        if self._next is not None:
            self._next.exception()
