"""A model that computes nothing, but whose logits depend on every token before them; and what its steps were."""

from __future__ import annotations

import random
import threading
import time

import numpy as np

import ikq
from ikq.inference.sequence import Best
from ikq.sampling import Candidates
from ikq.text.model import TextModel

N_VOCAB = 40


def logits_after(tokens):
    """Each text has its own."""
    rng = random.Random(repr(tokens))
    return np.array([rng.gauss(0, 2) for _ in range(N_VOCAB)], np.float32)


def hidden_after(tokens):
    """The text itself; tokens that were moved by a shift are negative."""
    row = np.zeros(600, np.float32)
    row[: len(tokens)] = np.add(tokens, 1000)
    return row


def text_of(row):
    return [int(t) - 1000 for t in row[row > 0]]


class Core:
    """Stands for the compiled core of a sequence.

    With `chunk` it is like that of a recurrent model: it can go back inside its last chunk, or to a snapshot.
    """

    scales = ()  # of adapters

    def __init__(self, chunk=None, tokens=(), snapshots=()):
        self.chunk = chunk
        self._tokens = list(tokens)
        self.snapshots = list(snapshots)
        self.is_closed = False
        self.is_busy = threading.Lock()

    @property
    def tokens(self):
        if self.is_closed:
            raise ValueError("the sequence is closed")
        return list(self._tokens)

    @property
    def n_past(self):
        return len(self.tokens)

    n_bytes = n_past

    def add(self, tokens):
        assert not self.is_closed
        self._tokens += tokens
        if self.chunk and self.n_past % (4 * self.chunk) == 0:
            self.snapshots.append(self.n_past)

    def fork(self):
        return Core(self.chunk, self.tokens, self.snapshots)

    def rewindable(self, n):
        if n >= self.n_past or self.chunk is None:
            return min(n, self.n_past)
        if n >= self.n_past // self.chunk * self.chunk:
            return n
        return max([s for s in self.snapshots if s <= n], default=0)

    def truncate(self, n):
        if n >= self.n_past:
            return
        if self.rewindable(n) != n and n:
            raise ikq.UnsupportedError("the sequence cannot go back")
        del self._tokens[n:]
        self.snapshots = [s for s in self.snapshots if s <= n]

    def shift(self, n_keep, n_discard):
        if self.chunk is not None:
            raise ikq.UnsupportedError("positions cannot be removed")
        assert n_keep + n_discard <= self.n_past
        # what was moved is not what would be computed there
        moved = [-t - 1 for t in self._tokens[n_keep + n_discard :]]
        self._tokens[n_keep:] = moved

    def close(self):
        self.is_closed = True


def narrowed(rows, n):
    """The candidates of logits."""
    order = np.argsort(-rows, axis=-1, kind="stable")[:, :n]
    return [Candidates(ids, row[ids], is_sorted=True) for ids, row in zip(order, rows, strict=True)]


class FakeModel(TextModel):
    """Notes its steps: of each entry the positions before, the number of tokens, what was wanted.

    Attributes:
        steps: All of them.
        before, after: Called with the entries at the begin and at the end of a step; may raise.
        seconds: How long a step takes.
    """

    def __init__(self, reader, *, n_ubatch=64, n_ctx=1000, chunk=None, seconds=0.0):
        super().__init__(reader, n_ubatch)
        self._n_ctx = n_ctx
        self.chunk = chunk
        self.seconds = seconds
        self.steps = []
        self.made = []
        self.before = self.after = lambda entries: None

    @property
    def n_ctx(self):
        return self._n_ctx

    def new_sequence(self, lora=()):
        self.made.append(Core(self.chunk))
        return ikq.Sequence(self.made[-1])

    def step(self, entries):
        """What `computed` gives, or the largest of these logits."""
        entries = list(entries)
        plain = [(s, t, ("all" if w.each else "last") if isinstance(w, Best) else w) for s, t, w in entries]
        found = self.computed(plain)
        return [
            narrowed(x, w.n) if isinstance(w, Best) else x
            for x, (_, _, w) in zip(found, entries, strict=True)
        ]

    def computed(self, entries):
        cores = [s._core for s, _, _ in entries]
        assert len(set(map(id, cores))) == len(cores)
        for core in cores:
            assert core.is_busy.acquire(blocking=False), "two steps at once"
        try:
            self.before(entries)
            for _, tokens, _ in entries:
                assert tokens
                if not all(0 <= t < N_VOCAB for t in tokens):
                    raise ikq.FormatError(f"a token of {tokens[:3]} is not in the vocabulary")
            self.steps.append([(c.n_past, len(t), w) for c, (_, t, w) in zip(cores, entries, strict=True)])
            time.sleep(self.seconds)
            found = []
            for core, (sequence, tokens, want) in zip(cores, entries, strict=True):
                core.add(tokens)
                sequence._version += 1
                found.append(logits_after(core.tokens)[np.newaxis] if want == "last" else None)
            self.after(entries)
            return found
        finally:
            for core in cores:
                core.is_busy.release()

    def _head(self, hidden, lora=()):
        return np.stack([logits_after(text_of(row)) for row in hidden])

    def _head_best(self, hidden, n, lora=()):
        return narrowed(self._head(hidden), n)

    @property
    def n_computed(self):
        return sum(n for step in self.steps for _, n, _ in step)


def alone(prompt, n, **options):
    """The tokens that a text of a fake model has, computed without any of what is tested."""
    sampler = ikq.Sampler(ikq.SamplingOptions(**options))
    tokens = list(prompt)
    sampler.reset(tokens)
    for _ in range(n):
        tokens.append(sampler.sample(logits_after(tokens)))
        sampler.accept(tokens[-1])
    return tokens[len(prompt) :]
