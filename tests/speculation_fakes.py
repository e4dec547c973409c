"""Models and drafters for tests of speculation, which compute nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
from fake_models import N_VOCAB, FakeModel, alone, hidden_after, logits_after

from ikq.sampling import SamplingOptions
from ikq.speculation import (
    FixedDepth,
    StepTimes,
    TextSpeculation,
    draft_together,
)
from ikq.text.generate import Generation

READER = SimpleNamespace(metadata={}, tensors={})


class SpeculativeFake(FakeModel):
    """A fake model that gives logits after all tokens, or hidden states that tell what they come after."""

    spec = SimpleNamespace(n_vocab=N_VOCAB)

    @property
    def n_ubatch(self):
        return self._batcher._n_ubatch

    def computed(self, entries):
        texts = [list(s._core._tokens) for s, _, _ in entries]
        found = super().computed(entries)
        for i, (before, (_, tokens, want)) in enumerate(zip(texts, entries, strict=True)):
            after = [before + tokens[: n + 1] for n in range(len(tokens))]
            if want == "all":
                found[i] = np.stack([logits_after(text) for text in after])
            elif want == "hidden":
                found[i] = np.stack([hidden_after(text) for text in after])
        return found


def fake(**options):
    return SpeculativeFake(READER, **options)


def prompt(n, seed=0):
    return random.Random(f"{n} {seed}").choices(range(N_VOCAB), k=n)


class Scripted:
    """Proposes what a function of the text says."""

    needs_hidden = False

    def __init__(self, propose):
        self._propose = propose
        self.kept, self.asked, self.is_closed = [], [], False

    def n_unread(self, tokens):
        return 0

    def read(self, tokens, n):
        yield from ()
        return []

    def propose(self, tokens, n):
        yield from ()
        self.asked.append((len(tokens), n))
        return self._propose(list(tokens), n)[:n]

    def observe(self, tokens, first, hidden):
        raise AssertionError("hidden states were not asked for")

    def keep(self, n):
        self.kept.append(n)

    def shift(self, n_keep, n_discard):
        pass

    def close(self):
        assert not self.is_closed
        self.is_closed = True


def with_drafter(model, tokens, drafter, depth=4, n_min=0, **options):
    """A generation that something else drafts than `Speculation` offers."""
    limits = {
        k: options.pop(k) for k in list(options) if k in ("max_tokens", "context_shift", "n_keep", "sequence")
    }
    speculation = TextSpeculation(drafter, FixedDepth(depth), StepTimes(from_zero=True), n_min)
    return Generation(
        model,
        list(tokens),
        options=SamplingOptions(**options),
        tokenizer=None,
        speculation=speculation,
        **limits,
    )


def tokens_of(generation):
    return [piece.token for piece in generation]


def knows(n_right, seed=0, **options):
    """Drafts what the text will be, but for the tokens behind the first `n_right` of each draft."""

    def propose(tokens, n):
        right = greedy_after(tokens, n)
        return [t if i < n_right else (t + 1) % N_VOCAB for i, t in enumerate(right)]

    return Scripted(propose)


def greedy_after(tokens, n):
    return alone(tokens, n, temperature=0)


# The rule


def proposal(drafter, tokens, n):
    (draft,) = draft_together([drafter.propose(tokens, n)])
    return draft
