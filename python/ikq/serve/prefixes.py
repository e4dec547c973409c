"""`PrefixCache`: KV caches of earlier requests, reused by requests with the same beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ikq.errors import IkqError
from ikq.inference.kept import common_length, is_of
from ikq.inference.lora import Scales
from ikq.inference.sequence import Sequence

__all__ = ["PrefixCache"]

# Tokens of a block. Prefixes are found by hash at its multiples; what is shared behind is compared.
_BLOCK = 64


class _Entry:
    """A sequence that nobody works on.

    Attributes:
        sequence: See there.
        tokens: Its tokens.
        lora: Scales of adapters that they were computed with.
        hashes: Of its tokens up to the end of each whole block.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.tokens = sequence.tokens
        self.lora = sequence.lora
        self.hashes = list(_hashes(self.tokens, self.lora))

    def usable(self, tokens: list[int]) -> int:
        """How many of these tokens the sequence can begin with; 0 if it is closed."""
        try:
            return self.sequence.rewindable(common_length(self.tokens, tokens))
        except ValueError:
            return 0


class PrefixCache:
    """Sequences of texts that have ended, found by the hash of their beginnings.

    Sequences with the same beginning share its pages, so a text takes only the memory of the rest. When all
    caches of the model together take more than the budget, the least recently used text is dropped first. A
    sequence belongs to no slot: a text with the same beginning continues from a copy that shares its pages.

    It is the `kept` of `ikq.inference.steps.Steps`, and belongs to the thread that drives them.

    Attributes:
        budget: Bytes that caches may take.
        n_dropped: The number of sequences that were dropped for lack of memory.

    Args:
        held: Tells the bytes that caches take, those of texts in the making included.
        budget: See there.
    """

    def __init__(self, held: Callable[[], int], budget: int) -> None:
        self.budget = budget
        self.n_dropped = 0
        self._held = held
        # the latest last
        self._entries: dict[Sequence, _Entry] = {}
        # by hash of a prefix; the entries that begin with it, the latest last
        self._by_hash: dict[int, dict[_Entry, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_over_budget(self) -> bool:
        """Whether caches take more than they may."""
        return self._held() > self.budget

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences, those that they share counted for each."""
        return sum(len(entry.tokens) for entry in self._entries.values())

    def sequences(self) -> list[Sequence]:
        """All, the latest first."""
        return list(self._entries)[::-1]

    def add(self, sequence: Sequence) -> None:
        """Keeps a sequence, as far as it was computed in place."""
        try:
            sequence.truncate(sequence.rewindable(sequence.n_unshifted))
            entry = _Entry(sequence)
        except (IkqError, ValueError):  # closed, or the model is
            return
        said = next(self._saying(entry), None)
        if said is not None:  # it is the latest now
            self._entries[said.sequence] = self._entries.pop(said.sequence)
        if said is not None or not entry.tokens:
            sequence.close()
            return
        # a text that went on from what another one left says all that this one says
        for other in self._said_by(entry):
            if sequence.rewindable(len(other.tokens)) == len(other.tokens):
                self._drop(other)
        self._entries[sequence] = entry
        for digest in entry.hashes:
            self._by_hash.setdefault(digest, {})[entry] = None
        self.make_room()

    def make_room(self, n_bytes: int = 0) -> None:
        """Drops the oldest sequences until this many bytes of the budget are free."""
        while self._entries and self._held() + n_bytes > self.budget:
            self._drop(next(iter(self._entries.values())))
            self.n_dropped += 1

    def clear(self) -> int:
        """Frees all sequences, and returns how many there were."""
        n = len(self._entries)
        for entry in list(self._entries.values()):
            self._drop(entry)
        return n

    def forget(self, tokens: list[int], lora: Scales = ()) -> int:
        """Frees the sequences that hold a beginning of these tokens and nothing else; returns how many."""
        alike = [e for e in self._entries.values() if e.lora == lora]
        found = [e for e in alike if common_length(e.tokens, tokens) == len(e.tokens)]
        for entry in found:
            self._drop(entry)
        return len(found)

    def find(
        self, tokens: list[int], in_use: Iterable[Sequence] = (), lora: Scales = ()
    ) -> tuple[Sequence | None, int]:
        """The sequence that begins with most of these tokens, and with how many; `None` if none does.

        Args:
            tokens: Those that are wanted.
            in_use: Sequences that others work on.
            lora: Scales of adapters that it was computed with.
        """
        best, best_n = None, 0
        for entry, most in self._candidates(tokens, lora):
            if most <= best_n:
                break
            n = entry.usable(tokens)
            if n > best_n:
                best, best_n = entry.sequence, n
        for sequence in in_use:
            if not is_of(sequence, lora):
                continue
            try:
                n = min(common_length(sequence.tokens, tokens), sequence.n_unshifted)
                n = sequence.rewindable(n)
            except ValueError:  # closed
                continue
            if n > best_n:
                best, best_n = sequence, n
        return best, best_n

    def take(self, found: Sequence, n: int, tokens: list[int]) -> Sequence | None:
        """A sequence of the first `n` tokens, made from what `find` found; `None` if that has gone meanwhile.

        Raises:
            RefusedError: memory does not hold the copy of a recurrent state.
        """
        try:
            entry = self._entries.get(found)
            if entry is not None and n == found.n_past:
                self._remove(entry)
                return found
        except ValueError:  # closed
            return None
        if entry is not None:  # it was used: it is the latest
            self._entries[found] = self._entries.pop(found)
        return self.copy(found, n)

    def copy(self, found: Sequence, n: int) -> Sequence | None:
        """As `take`, but what is kept stays."""
        try:
            copy = found.fork()
            copy.truncate(copy.rewindable(n))
        except ValueError:  # closed
            return None
        return copy

    def _candidates(self, tokens: list[int], lora: Scales) -> Iterator[tuple[_Entry, int]]:
        """Entries with the most tokens that they may share, those that may share more first."""
        levels = [found for digest in _hashes(tokens, lora) if (found := self._by_hash.get(digest))]
        seen: set[_Entry] = set()
        for i in range(len(levels) - 1, -1, -1):
            for entry in reversed(levels[i]):
                if entry not in seen and entry.lora == lora:
                    seen.add(entry)
                    yield entry, (i + 2) * _BLOCK - 1
        for entry in reversed(list(self._entries.values())):
            if entry not in seen and entry.lora == lora:
                yield entry, _BLOCK - 1

    def _saying(self, entry: _Entry) -> Iterator[_Entry]:
        """Entries that begin with all tokens of another one, and can go back to its end."""
        alike = self._by_hash.get(entry.hashes[-1], {}) if entry.hashes else self._entries.values()
        n = len(entry.tokens)
        longer = (e for e in alike if e.lora == entry.lora and len(e.tokens) >= n)
        return (e for e in longer if e.usable(entry.tokens) == n)

    def _said_by(self, entry: _Entry) -> list[_Entry]:
        """Entries all of whose tokens another one begins with."""
        alike = self._by_hash.get(entry.hashes[0], {}) if entry.hashes else {}
        short = [e for e in self._entries.values() if len(e.tokens) < _BLOCK]
        found = [e for e in (*alike, *short) if e.lora == entry.lora]
        return [e for e in found if common_length(e.tokens, entry.tokens) == len(e.tokens)]

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.sequence]
        for digest in entry.hashes:
            alike = self._by_hash[digest]
            del alike[entry]
            if not alike:
                del self._by_hash[digest]

    def _drop(self, entry: _Entry) -> None:
        self._remove(entry)
        entry.sequence.close()


def _hashes(tokens: list[int], lora: Scales) -> Iterator[int]:
    """Hashes of the tokens up to the end of each whole block; equal ones are compared by who finds them."""
    digest = hash(lora)
    for end in range(_BLOCK, len(tokens) + 1, _BLOCK):
        digest = hash((digest, *tokens[end - _BLOCK : end]))
        yield digest
