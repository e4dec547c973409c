"""Who gets which units: `Dispatch`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ikq.cluster.job import Batch
from ikq.cluster.rates import Rates
from ikq.errors import IkqError

__all__ = ["REPEATS", "Dispatch"]

REPEATS = 10
"""How often Ray repeats a batch whose worker or node died."""

# a batch takes about a second: more would leave slow nodes behind at the end, less is spent on the way
_SHORT, _LONG = 0.5, 2.0
_MOST_UNITS = 16
_WAIT = 0.5
_LOOK_INTERVAL = 5.0


class Dispatch:
    """Hands out small batches of units, twice as many at a time as there are CPUs, and takes what comes back.

    What the core calls the outside of a run; see `QuantizePlan.run`.

    Args:
        ray: the module.
        submit: makes Ray's task of some units; returns its reference.
        rates: counts what nodes make.
        on_note: called with what the user should know.
    """

    def __init__(
        self,
        ray: Any,
        submit: Callable[[Sequence[int]], Any],
        rates: Rates,
        on_note: Callable[[str], None] | None,
    ) -> None:
        self._ray, self._submit, self._rates, self._on_note = ray, submit, rates, on_note
        self._open: deque[int] = deque()
        self._in_work: set[Any] = set()
        self._size = 1
        self._n_cpus, self._looked = 0, 0.0
        self._is_waiting = False

    def begin(self, numbers: list[int]) -> None:
        """Takes the units of a run."""
        self._open.extend(numbers)

    def next(self) -> list[tuple[int, bytes, bytes | None]]:
        """Number, record and bytes of units that were finished; waits half a second at most.

        Raises:
            IkqError: what kept a node from its work; workers die again and again.
            OSError: a node cannot read or write.
        """
        self._fill()
        self._rates.tell()
        if not self._in_work:
            time.sleep(_WAIT)
            return []
        in_work = list(self._in_work)
        if not self._ray.wait(in_work, num_returns=1, timeout=_WAIT)[0]:
            return []
        # others that are there as well
        ready, _ = self._ray.wait(in_work, num_returns=len(in_work), timeout=0)
        units: list[tuple[int, bytes, bytes | None]] = []
        for reference in ready:
            batch = self._get(reference)
            self._in_work.discard(reference)
            if batch.failure is not None:
                raise batch.failure.exception()
            self._rates.add(batch)
            self._learn(batch)
            units.extend(batch.units)
        return units

    def end(self) -> None:
        """Takes back what was handed out."""
        for reference in self._in_work:
            self._ray.cancel(reference)
        self._in_work.clear()

    def _get(self, reference: Any) -> Batch:
        try:
            batch: Batch = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as e:
            raise IkqError(
                f"a node could not run ikq {e.cause!r}: it needs the same version as here"
            ) from None
        except self._ray.exceptions.RayError as e:
            raise IkqError(f"workers died {REPEATS} times over the same units: {e}") from None
        return batch

    def _fill(self) -> None:
        now = time.monotonic()
        if now - self._looked > _LOOK_INTERVAL or not self._n_cpus:
            self._looked = now
            self._n_cpus = int(self._ray.cluster_resources().get("CPU", 0))
            if not self._n_cpus and not self._is_waiting and self._on_note is not None:
                self._on_note("cluster: no node is there to work; waiting for one")
            self._is_waiting = not self._n_cpus
        while self._open and len(self._in_work) < 2 * self._n_cpus:
            # the last units go one by one, so that all nodes end at the same time
            size = max(1, min(self._size, len(self._open) // (2 * self._n_cpus)))
            self._in_work.add(self._submit([self._open.popleft() for _ in range(min(size, len(self._open)))]))

    def _learn(self, batch: Batch) -> None:
        if batch.seconds < _SHORT and len(batch.units) >= self._size:
            self._size = min(2 * self._size, _MOST_UNITS)
        elif batch.seconds > _LONG:
            self._size = max(1, self._size // 2)
