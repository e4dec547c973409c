"""`PrefixCache` on sequences that compute nothing."""

from __future__ import annotations

import random

from fake_models import Core
from hypothesis import given
from hypothesis import strategies as st

import ikq
from ikq.inference.kept import common_length
from ikq.serve.prefixes import PrefixCache


def sequence(tokens, chunk=None):
    core = Core(chunk)
    for at in range(0, len(tokens), 64):
        core.add(list(tokens[at : at + 64]))
    return ikq.Sequence(core)


def tokens(n, seed=0):
    return random.Random(seed).choices(range(50), k=n)


def cache(budget=10**9):
    found = PrefixCache(lambda: sum(s.n_past for s in found.sequences()), budget)
    return found


def test_the_longest_beginning_is_found_whatever_the_blocks():
    kept = cache()
    base = tokens(300)
    for n in (10, 63, 64, 65, 200):
        kept.add(sequence([*base[:n], 99, n]))
    for n in (5, 10, 64, 65, 130, 200, 300):
        wanted = [*base[:n], 77, *tokens(50, 1)]
        found, n_found = kept.find(wanted)
        expected = max(common_length(s.tokens, wanted) for s in kept.sequences())
        assert n_found == expected == common_length(found.tokens, wanted)
    assert kept.find([77])[0] is None


@given(st.lists(st.lists(st.integers(0, 1), max_size=200), max_size=12), st.lists(st.integers(0, 1)))
def test_as_if_all_were_compared(texts, wanted):
    kept = cache()
    for text in texts:
        kept.add(sequence(text))
    _, n = kept.find(wanted)
    assert n == max((common_length(text, wanted) for text in texts), default=0)
    # no text is kept that another one says
    held = [s.tokens for s in kept.sequences()]
    assert not any(a is not b and common_length(a, b) == len(a) for a in held for b in held)


def test_what_was_not_used_longest_goes_first():
    kept = cache(250)
    for i in range(3):
        kept.add(sequence([i, *tokens(99, i)]))
    assert [s.tokens[0] for s in kept.sequences()] == [2, 1]
    found, n = kept.find([1, *tokens(20, 1)])
    copy = kept.take(found, n, [])
    assert copy.tokens == [1, *tokens(20, 1)]
    assert [s.tokens[0] for s in kept.sequences()] == [1, 2]
    kept.add(sequence([3, *tokens(99, 3)]))
    assert [s.tokens[0] for s in kept.sequences()] == [3, 1]
    assert kept.n_dropped == 2


def test_who_goes_on_from_the_end_takes_the_sequence_itself():
    kept = cache()
    kept.add(sequence(tokens(100)))
    found, n = kept.find([*tokens(100), 1])
    assert kept.take(found, n, []) is found
    assert len(kept) == 0


def test_recurrent_texts_go_back_to_snapshots():
    kept = cache()
    kept.add(sequence(tokens(300), chunk=16))
    _, n = kept.find([*tokens(300)[:200], 99])
    assert n == 192  # a snapshot at each 64
    found, n = kept.find([*tokens(300), 1])
    assert n == 300
    assert kept.take(found, n, []).n_past == 300


def test_forgetting():
    kept = cache()
    kept.add(sequence(tokens(100)))
    kept.add(sequence([*tokens(100)[:50], 99]))
    assert kept.forget([*tokens(100), 5]) == 1
    assert len(kept) == 1
    assert kept.clear() == 1
    assert kept.find(tokens(100)) == (None, 0)
