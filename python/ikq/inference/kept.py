"""`KeptSequences`: sequences of finished generations, reused by texts with the same beginning."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ikq.errors import IkqError
from ikq.inference.sequence import Sequence

__all__ = ["KeptSequences", "common_length", "is_of"]

_MOST = 4
# Tokens that are compared at once.
_RUN = 256


class KeptSequences:
    """A few sequences that nobody uses; the least recently used one is dropped first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Sequence] = []  # the latest last

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sequence: Sequence) -> None:
        """Keeps a sequence, as far as it was computed in place."""
        try:
            sequence.truncate(sequence.rewindable(sequence.n_unshifted))
            is_empty = sequence.n_past == 0
        except (IkqError, ValueError):  # closed, or the model is
            return
        if is_empty:
            sequence.close()
            return
        with self._lock:
            self._all.append(sequence)
            surplus = self._all[:-_MOST]
            del self._all[:-_MOST]
        for old in surplus:
            old.close()

    def clear(self) -> int:
        """Frees all sequences, and returns how many there were."""
        with self._lock:
            found, self._all = self._all, []
        for sequence in found:
            sequence.close()
        return len(found)

    def find(
        self, tokens: list[int], in_use: Iterable[Sequence], lora: tuple[float, ...] = ()
    ) -> tuple[Sequence | None, int]:
        """The sequence that begins with most of these tokens, and with how many; `None` if none does.

        Args:
            tokens: Those that are wanted.
            in_use: Sequences that others work on.
            lora: Scales of adapters that it was computed with.
        """
        with self._lock:
            kept = self._all[::-1]
        best, best_n = None, 0
        for sequence in (*kept, *in_use):
            n = _usable(sequence, tokens) if is_of(sequence, lora) else 0
            if n > best_n:
                best, best_n = sequence, n
        return best, best_n

    def take(self, found: Sequence, n: int, tokens: list[int]) -> Sequence | None:
        """A sequence of the first `n` tokens, made from what `find` found; `None` if that has gone meanwhile.

        It is the one found, or shares what it holds, if it is in use or too much would be lost.

        Raises:
            RefusedError: memory does not hold the copy of a recurrent state.
        """
        try:
            is_free = 2 * n >= found.n_past and self._remove(found)
            sequence = found if is_free else found.fork()
            # another thread may have gone on with what was copied
            sequence.truncate(sequence.rewindable(min(n, _usable(sequence, tokens))))
        except ValueError:  # closed
            return None
        return sequence

    def _remove(self, sequence: Sequence) -> bool:
        """Whether it was kept; it is not any more."""
        with self._lock:
            is_kept = sequence in self._all
            if is_kept:
                self._all.remove(sequence)
        return is_kept


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    for at in range(0, n, _RUN):
        end = min(at + _RUN, n)
        if a[at:end] != b[at:end]:
            return next(i for i in range(at, end) if a[i] != b[i])
    return n


def is_of(sequence: Sequence, lora: tuple[float, ...]) -> bool:
    """Whether a sequence was computed with these scales of adapters; one that is closed was not."""
    try:
        return sequence.lora == lora
    except ValueError:
        return False


def _usable(sequence: Sequence, tokens: list[int]) -> int:
    """How many of the tokens a sequence can begin with; 0 if it is closed."""
    try:
        n = min(common_length(sequence.tokens, tokens), sequence.n_unshifted)
        return sequence.rewindable(n)
    except ValueError:
        return 0
