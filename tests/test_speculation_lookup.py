"""Drafts that are looked up in the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speculation_fakes import (
    fake,
    prompt,
    proposal,
    tokens_of,
)

from ikq.speculation import (
    Lookup,
)


def naive_lookup(tokens, n, n_min, n_max):
    for k in range(min(n_max, len(tokens)), n_min - 1, -1):
        for at in range(len(tokens) - 1, k - 1, -1):
            if tokens[at - k : at] == tokens[len(tokens) - k :]:
                text = list(tokens)
                while len(text) < len(tokens) + n:
                    text.append(text[at + len(text) - len(tokens)])
                return text[len(tokens) :]
    return []


@given(st.data())
def test_lookup_finds_the_latest_longest_match(data):
    n_min, n_more = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    lookup = Lookup(n_min, n_min + n_more)
    tokens = []
    for part in data.draw(
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)
    ):
        tokens += part
        n = data.draw(st.integers(1, 6))
        assert proposal(lookup, tokens, n) == naive_lookup(tokens, n, n_min, n_min + n_more)
        lookup.keep(len(tokens))
        if data.draw(st.integers(0, 9)) == 0 and len(tokens) > 4:
            del tokens[1:3]
            lookup.shift(1, 2)


def test_lookup_costs_the_same_for_every_token():
    lookup = Lookup(2, 4)
    tokens = [i * i % 997 for i in range(20000)]
    proposal(lookup, tokens, 8)
    read = []

    class Counted(list):
        def __getitem__(self, at):
            read.append(at)
            return super().__getitem__(at)

    counted = Counted([*tokens, 5, 6])
    proposal(lookup, counted, 8)
    assert len(read) < 20


@pytest.mark.parametrize(("n_min", "n_max"), [(0, 3), (3, 2), (-1, 4)])
def test_lookups_that_are_none(n_min, n_max):
    with pytest.raises(ValueError, match="lookup of"):
        Lookup(n_min, n_max)


def test_lookup_pays_in_a_text_that_repeats_itself():
    model = fake()
    bias = dict.fromkeys((3, 4), 30.0)
    options = {"max_tokens": 60, "temperature": 0, "logit_bias": bias, "frequency_penalty": 0.0}
    plain = model.generate(prompt(10), **options)
    found = model.generate(prompt(10), **options, lookup=True, draft_adapt=False)
    assert tokens_of(found) == tokens_of(plain)
    assert found.stats.n_drafted > 0


# Draft models
