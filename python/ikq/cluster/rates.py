"""How fast nodes are: `Rates` of bytes that they make, `ChunkRates` of text that they read."""

from __future__ import annotations

import time
from collections.abc import Callable

from ikq.cluster.job import Batch

__all__ = ["ChunkRates", "Rates"]

_INTERVAL = 10.0


class _Lines:
    """Lines of progress, one every ten seconds.

    Args:
        on_note: Called with each.
    """

    def __init__(self, on_note: Callable[[str], None] | None) -> None:
        self._on_note = on_note
        self._told = time.monotonic()

    def tell(self, line: Callable[[float], str]) -> bool:
        """Tells what `line` makes of the seconds since the last line, if it is time for one."""
        now = time.monotonic()
        if self._on_note is None or now - self._told < _INTERVAL:
            return False
        self._on_note(f"cluster: {line(now - self._told)}")
        self._told = now
        return True


class Rates:
    """Counts what nodes make and tells it from time to time.

    Args:
        on_note: called with a line every ten seconds.
    """

    def __init__(self, on_note: Callable[[str], None] | None) -> None:
        self._lines = _Lines(on_note)
        self._start = time.monotonic()
        self._bytes: dict[str, int] = {}
        self._recent: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """Counts a batch."""
        for counts in (self._bytes, self._recent):
            counts[batch.node] = counts.get(batch.node, 0) + batch.n_bytes

    def tell(self) -> None:
        """Tells the last seconds, if it is time for that."""
        if self._lines.tell(lambda seconds: _line(self._recent, seconds)):
            self._recent = dict.fromkeys(self._recent, 0)

    def summary(self) -> str | None:
        """All of it; `None` where nothing was made."""
        if not self._bytes:
            return None
        total = max(sum(self._bytes.values()), 1)
        seconds = max(time.monotonic() - self._start, 1e-9)
        shares = ", ".join(
            f"{node} {n / total:.0%} ({n / seconds / 2**20:.1f} MiB/s)"
            for node, n in sorted(self._bytes.items())
        )
        return f"cluster: of {total / 2**20:.1f} MiB that nodes made: {shares}"


def _line(counts: dict[str, int], seconds: float) -> str:
    return (
        ", ".join(f"{node} {n / seconds / 2**20:.1f} MiB/s" for node, n in sorted(counts.items()))
        or "waiting"
    )


class ChunkRates:
    """Counts chunks of a text that nodes run and tells it from time to time.

    Rates are those of a node while it runs chunks: they take so long that few end between two lines.

    Args:
        n_tokens: Of a chunk.
        on_note: called with a line every ten seconds.
        unit: what a chunk is called.
    """

    def __init__(self, n_tokens: int, on_note: Callable[[str], None] | None, unit: str = "chunk") -> None:
        self._n_tokens, self._lines, self._unit = n_tokens, _Lines(on_note), unit
        # number and seconds of the chunks of each node
        self._all: dict[str, tuple[int, float]] = {}
        self._recent: dict[str, tuple[int, float]] = {}

    def add(self, node: str, seconds: float) -> None:
        """Counts a chunk that a node has run in so many seconds."""
        for counts in (self._all, self._recent):
            n, total = counts.get(node, (0, 0.0))
            counts[node] = n + 1, total + seconds

    def tell(self) -> None:
        """Tells the last seconds, if it is time for that."""
        if self._recent and self._lines.tell(lambda _: self._rates(self._recent)):
            self._recent = {}

    def summary(self) -> str | None:
        """All of it; `None` where no chunk was run."""
        if not self._all:
            return None
        shares = ", ".join(
            f"{node} {found[0]} ({self._rate(*found)})" for node, found in sorted(self._all.items())
        )
        return f"cluster: {self._unit}s by node: {shares}"

    def _rates(self, counts: dict[str, tuple[int, float]]) -> str:
        return ", ".join(f"{node} {self._rate(*found)}" for node, found in sorted(counts.items()))

    def _rate(self, n: int, seconds: float) -> str:
        return f"{n * self._n_tokens / max(seconds, 1e-9):.1f} tokens/s"
