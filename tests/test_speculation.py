"""Speculation without an engine: the rule, drafters, how deep to draft, and texts of a model that computes nothing."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from fake_models import N_VOCAB, FakeModel, alone, hidden_after, logits_after
from hypothesis import given
from hypothesis import strategies as st

import ikq
from ikq.generate import Generation
from ikq.sampling import Sampler, SamplingOptions
from ikq.speculation import (
    AdaptiveDepth,
    Ask,
    DraftModel,
    FixedDepth,
    Lookup,
    Speculation,
    StepTimes,
    TextSpeculation,
    Verified,
    check_same_vocabulary,
    draft_together,
)

READER = SimpleNamespace(metadata={}, tensors={})


class SpeculativeFake(FakeModel):
    """A fake model that gives logits after all tokens, or hidden states that tell what they come after."""

    spec = SimpleNamespace(n_vocab=N_VOCAB)

    @property
    def n_ubatch(self):
        return self._batcher._n_ubatch

    def step(self, entries):
        entries = list(entries)
        texts = [list(s._core._tokens) for s, _, _ in entries]
        found = super().step(entries)
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


def test_what_was_verified_is_given_out_while_the_draft_is_chosen():
    logits = np.arange(12, dtype=np.float32).reshape(4, 3)
    for chosen, n_given, n_accepted in (([7, 8, 9, 0], 4, 3), ([7, 8, 0], 3, 2), ([1], 1, 0), ([7, 8], 3, 2)):
        verified = Verified(logits, [7, 8, 9])
        given = []
        for token in chosen:
            given.append(verified.logits)
            verified.choose(token)
        if verified.logits is not None:
            given.append(verified.logits)
        assert np.array_equal(given, logits[:n_given])
        assert verified.n_accepted == n_accepted
    verified = Verified(logits[:1])
    verified.choose(5)
    assert (verified.logits, verified.n_chosen, verified.n_accepted) == (None, 1, 0)


def chain_logits(tokens):
    """A model of four tokens that looks at the last two."""
    return _chain_logits(*tokens[-2:])


@cache
def _chain_logits(*last):
    return logits_after(["chain", *last])[:4]


def chain_probabilities(tokens, temperature=1.0):
    logits = chain_logits(tokens).astype(np.float64) / temperature
    e = np.exp(logits - logits.max())
    return e / e.sum()


def text_with_drafts(sampler, draft_of, n):
    """A text of `n` tokens, as the rule makes it."""
    text, verified = [0], None
    while len(text) <= n:
        if verified is None or verified.logits is None:
            draft = draft_of(text)
            rows = [chain_logits(text + draft[:k]) for k in range(len(draft) + 1)]
            verified = Verified(np.stack(rows), draft)
        token = sampler.sample(verified.logits)
        sampler.accept(token)
        verified.choose(token)
        text.append(token)
    return tuple(text[1:])


def drafters_of_four():
    """What drafts may depend on: nothing, the text, its length; good ones, bad ones, none."""
    rng = random.Random(5)
    table = {
        text: rng.choices(range(4), k=rng.randrange(4))
        for n in range(4)
        for text in itertools.product(range(4), repeat=n)
    }

    def best(text):
        draft = []
        while len(draft) < 3:
            draft.append(int(chain_logits(text + draft).argmax()))
        return draft

    def worst(text):
        return [int(chain_logits(text).argmin())] * 2

    return {
        "none": lambda text: [],
        "best": best,
        "worst": worst,
        "any": lambda text: table[tuple(text[1:4])],
    }


@pytest.mark.parametrize("drafter", ["none", "best", "worst", "any"])
def test_the_distribution_is_the_models_own(drafter):
    """Exactly, for all texts of three tokens.

    A token is drawn with one number from 0 to 1, which is cut into an interval per token, as long as the token is
    probable. Numbers near both ends of the intervals of a text's tokens must give that text, whatever is drafted:
    then all between them do, and its probability is the product of the lengths.
    """
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0))
    draft_of = drafters_of_four()[drafter]
    for text in itertools.product(range(4), repeat=3):
        p = [chain_probabilities([0, *text[:i]]) for i in range(3)]
        for ends in itertools.product((1e-6, 1 - 1e-6), repeat=3):
            numbers = iter(
                [p[i][:t].sum() + end * p[i][t] for i, (t, end) in enumerate(zip(text, ends, strict=True))]
            )
            sampler.reset()
            sampler._uniform = lambda numbers=numbers: next(numbers)
            assert text_with_drafts(sampler, draft_of, 3) == text
            assert next(numbers, None) is None  # no number is drawn for what is drafted


@pytest.mark.parametrize("drafter", ["none", "best", "worst", "any"])
def test_frequencies_of_sampled_texts(drafter):
    """Chi-square of 10000 texts of two tokens against exact probabilities; 15 degrees of freedom."""
    n, temperature = 10000, 0.7
    sampler = Sampler(SamplingOptions(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=11))
    draft_of = drafters_of_four()[drafter]
    counts = Counter(text_with_drafts(sampler, draft_of, 2) for _ in range(n))
    chi2 = 0.0
    for text in itertools.product(range(4), repeat=2):
        p = (
            chain_probabilities([0], temperature)[text[0]]
            * chain_probabilities([0, text[0]], temperature)[text[1]]
        )
        chi2 += (counts[text] - n * p) ** 2 / (n * p)
    assert chi2 < 37.7  # exceeded with probability 0.001; the seed is fixed


SAMPLING = (
    {"temperature": 0},
    {"seed": 3},
    {
        "seed": 4,
        "temperature": 1.5,
        "top_k": 0,
        "top_p": 1.0,
        "repeat_penalty": 1.3,
        "frequency_penalty": 0.2,
    },
    {"seed": 5, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"seed": 6, "mirostat": 2},
    {"seed": 7, "adaptive_target": 0.3, "dynatemp_range": 0.3},
    {"seed": 8, "dry_multiplier": 0.8, "typical_p": 0.9},
)


@pytest.mark.parametrize("options", SAMPLING, ids=str)
@pytest.mark.parametrize("n_right", [0, 1, 2, 4])
def test_texts_are_those_without_drafts(options, n_right):
    wanted = alone(prompt(10), 40, **options)
    drafter = knows(n_right)
    found = with_drafter(fake(), prompt(10), drafter, max_tokens=40, **options)
    assert tokens_of(found) == wanted
    assert drafter.is_closed


@given(st.data())
def test_any_drafts_at_all(data):
    """Whatever is proposed, of whatever length, at any chunk of recurrent models: the text is the same."""
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    chunk = data.draw(st.sampled_from([None, 4, 8]))
    seed = data.draw(st.integers(0, 5))

    def propose(tokens, n):
        n_right = rng.randrange(n + 1) if n else 0
        right = alone_from(tokens, n_right, seed)
        return right + rng.choices(range(N_VOCAB), k=rng.randrange(n + 1))

    def alone_from(tokens, n, seed):
        wanted = alone(prompt(6), 30, seed=seed)
        return wanted[len(tokens) - 6 :][:n]

    model = fake(chunk=chunk)
    generation = with_drafter(
        model, prompt(6), Scripted(propose), depth=rng.randrange(1, 9), max_tokens=30, seed=seed
    )
    assert tokens_of(generation) == alone(prompt(6), 30, seed=seed)
    assert all(core.n_past <= 6 + 29 for core in model.made if not core.is_closed)


def test_steps_and_numbers_with_perfect_drafts():
    model, drafter = fake(), knows(4)
    generation = with_drafter(model, prompt(10), drafter, max_tokens=21, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(10), 21)
    # the prompt gives one token, each step over 1 + 4 five; no step for what nobody asks
    assert model.steps == [[(0, 10, "last")], *([(10 + 5 * i, 5, "all")] for i in range(4))]
    assert (generation.stats.n_drafted, generation.stats.n_accepted) == (16, 16)
    assert drafter.asked == [(11 + 5 * i, 4) for i in range(4)]
    # the last draft is followed by a token that nobody compares
    assert drafter.kept == [10, *[15 + 5 * i for i in range(4)]]


def test_steps_and_numbers_with_drafts_half_right():
    model, drafter = fake(), knows(2)
    generation = with_drafter(model, prompt(10), drafter, max_tokens=22, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(10), 22)
    # three tokens are left at the end, so two are drafted
    assert model.steps == [[(0, 10, "last")], *([(10 + 3 * i, 5 if i < 6 else 3, "all")] for i in range(7))]
    assert (generation.stats.n_drafted, generation.stats.n_accepted) == (6 * 3 + 2, 14)
    assert drafter.kept == [10, *[13 + 3 * i for i in range(7)]]


def test_drafts_that_are_too_short_are_not_used():
    model = fake()
    generation = with_drafter(
        model, prompt(10), Scripted(lambda t, n: greedy_after(t, 1)), n_min=2, max_tokens=5
    )
    assert len(tokens_of(generation)) == 5
    assert all(n == 1 for step in model.steps[1:] for _, n, _ in step)


def test_no_more_is_drafted_than_is_wanted_or_fits():
    model, drafter = fake(n_ctx=32), knows(8)
    generation = with_drafter(model, prompt(20), drafter, depth=8, max_tokens=100, temperature=0)
    found = tokens_of(generation)
    assert (len(found), generation.reason) == (13, "context")
    assert found == greedy_after(prompt(20), 13)
    assert max(at + n for step in model.steps for at, n, _ in step) == 32
    drafter = knows(8)
    found = with_drafter(fake(), prompt(20), drafter, depth=8, max_tokens=4, temperature=0)
    assert len(tokens_of(found)) == 4
    assert drafter.asked == [(21, 2)]


@pytest.mark.parametrize("n_right", [0, 2, 8])
def test_context_shifts(n_right):
    def texts(**options):
        model = fake(n_ctx=32)
        limits = {"max_tokens": 100, "context_shift": True, "n_keep": 5}
        if options:
            return with_drafter(model, prompt(20), options["drafter"], **limits, temperature=0), model
        return model.generate(prompt(20), **limits, temperature=0), model

    plain, _ = texts()
    wanted = tokens_of(plain)
    # a fake model's logits after a shift depend on what was moved, so drafts come from the text that is known
    known = [*prompt(20), *wanted]
    drafter = Scripted(lambda tokens, n: guess(known, tokens, n, n_right))
    drafted, model = texts(drafter=drafter)
    assert tokens_of(drafted) == wanted
    assert drafted.tokens == plain.tokens
    if n_right:
        assert drafted.stats.n_accepted > 20
        assert len(model.steps) < 80


def guess(known, tokens, n, n_right):
    for at in range(len(known) - 1, 4, -1):
        if known[at - 5 : at] == tokens[-5:]:
            return [t if i < n_right else -1 % N_VOCAB for i, t in enumerate(known[at : at + n])]
    return []


def test_a_lent_sequence_holds_the_text_afterwards():
    """Without the last token, and without what was drafted in vain."""
    for n_right in (0, 1, 4):
        for n in (1, 2, 3, 7, 8):
            model = fake()
            sequence = model.new_sequence()
            generation = with_drafter(
                model, prompt(10), knows(n_right), max_tokens=n, temperature=0, sequence=sequence
            )
            found = tokens_of(generation)
            assert sequence.tokens == [*prompt(10), *found[:-1]]


def test_leaving_in_the_middle_of_a_draft():
    model = fake()
    sequence = model.new_sequence()
    generation = with_drafter(model, prompt(10), knows(4), temperature=0, sequence=sequence)
    found = [next(generation).token for _ in range(3)]
    generation.close()
    # what was verified is the text's, what was not is taken back
    assert sequence.tokens[: 10 + 3] == [*prompt(10), *found][: sequence.n_past]
    assert 10 + 2 <= sequence.n_past <= 10 + 3
    again = model.generate([*prompt(10), *found], max_tokens=2, temperature=0)
    assert found + tokens_of(again) == greedy_after(prompt(10), 5)


def test_several_texts_in_one_step():
    model = fake()
    lengths = (10, 20, 5)
    texts = [
        with_drafter(model, prompt(n, n), knows(i), max_tokens=30, seed=n) for i, n in enumerate(lengths)
    ]
    texts.append(model.generate(prompt(7), max_tokens=30, seed=1))
    rows = [tokens_of(row) for row in zip(*texts, strict=True)]
    for i, n in enumerate(lengths):
        assert [row[i] for row in rows] == alone(prompt(n, n), 30, seed=n)
    assert [row[3] for row in rows] == alone(prompt(7), 30, seed=1)
    full = [step for step in model.steps if len(step) == 4]
    assert len(full) > 10
    assert any({n for _, n, _ in step} == {1, 5} for step in full)


def test_an_error_of_a_drafter_is_its_texts():
    class Broken(Scripted):
        def propose(self, tokens, n):
            yield from ()
            if len(tokens) > 15:
                raise ikq.RefusedError("no memory")
            return []

    model = fake()
    broken = with_drafter(model, prompt(10), Broken(None), max_tokens=20, temperature=0)
    other = with_drafter(model, prompt(12), knows(3), max_tokens=20, temperature=0)
    found = []
    with pytest.raises(ikq.RefusedError, match="no memory"):
        for a, b in zip(broken, other, strict=False):
            found.append((a.token, b.token))
    assert [a for a, _ in found] == greedy_after(prompt(10), len(found))
    rest = tokens_of(other)
    assert [b for _, b in found] + rest == greedy_after(prompt(12), len(found) + len(rest))


# Lookup


def naive_lookup(tokens, n, n_min, n_max):
    for k in range(min(n_max, len(tokens)), n_min - 1, -1):
        for at in range(len(tokens) - 1, k - 1, -1):
            if tokens[at - k : at] == tokens[len(tokens) - k :]:
                text = list(tokens)
                while len(text) < len(tokens) + n:
                    text.append(text[at + len(text) - len(tokens)])
                return text[len(tokens) :]
    return []


def proposal(drafter, tokens, n):
    (draft,) = draft_together([drafter.propose(tokens, n)])
    return draft


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


class Counting(SpeculativeFake):
    """A draft model whose most probable token is the text's model's, or not."""

    def __init__(self, agrees=lambda tokens: True, certain=lambda tokens: True, **options):
        super().__init__(READER, **options)
        self.agrees, self.certain = agrees, certain

    def step(self, entries):
        entries = list(entries)
        texts = [[*s._core._tokens, *tokens] for s, tokens, _ in entries]
        found = super().step(entries)
        for i, text in enumerate(texts):
            if found[i] is not None:
                best = int(logits_after(text).argmax())
                row = np.zeros((1, N_VOCAB), np.float32)
                row[0, best if self.agrees(text) else (best + 1) % N_VOCAB] = 20 if self.certain(text) else 1
                found[i] = row
        return found


def drafted_by(draft, model, tokens, n_vocab=N_VOCAB, p_min=0.5, **options):
    return with_drafter(model, tokens, DraftModel(draft, n_vocab, p_min), **options)


def test_a_draft_model_that_always_agrees():
    model, draft = fake(), Counting()
    generation = drafted_by(draft, model, prompt(10), max_tokens=21, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(10), 21)
    assert (generation.stats.n_drafted, generation.stats.n_accepted) == (16, 16)
    # it reads the prompt and every accepted token once; the last of a draft is read with what follows
    assert draft.steps[0] == [(0, 11, "last")]
    assert [n for step in draft.steps for _, n, _ in step] == [11, 1, 1, 1, *[2, 1, 1, 1] * 3]
    assert all(
        at == sum(n for step in draft.steps[:i] for _, n, _ in step)
        for i, ((at, _, _),) in enumerate(draft.steps)
    )


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_draft_model_that_sometimes_agrees(chunk):
    model, draft = fake(), Counting(lambda text: len(text) % 5 != 0, chunk=chunk)
    generation = drafted_by(draft, model, prompt(10), max_tokens=60, seed=2)
    assert tokens_of(generation) == alone(prompt(10), 60, seed=2)
    assert 0 < generation.stats.n_accepted < generation.stats.n_drafted
    if chunk is None:
        # every token of the text is read once; what else is read was drafted in vain
        n_in_vain = sum(n - 1 for step in model.steps[1:] for _, n, _ in step) - generation.stats.n_accepted
        assert draft.n_computed <= 10 + 60 + n_in_vain


def test_a_draft_ends_before_a_token_that_is_not_sure():
    model, draft = fake(), Counting(certain=lambda text: len(text) % 3 != 0)
    generation = drafted_by(draft, model, prompt(10), depth=8, max_tokens=40, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(10), 40)
    assert generation.stats.n_drafted == generation.stats.n_accepted
    assert max(n for step in model.steps[1:] for _, n, _ in step) == 3


def test_tokens_that_only_the_draft_model_has_are_not_drafted():
    model, draft = fake(), Counting()
    best = int(logits_after(prompt(10)).argmax())
    tokens = [*prompt(10), best]
    drafter = DraftModel(draft, N_VOCAB, 0.0)
    wanted = greedy_after(tokens, 1)[0]
    assert proposal(drafter, tokens, 1) == [wanted]
    few = DraftModel(draft, wanted, 0.0)
    assert all(t < wanted for t in proposal(few, tokens, 3))
    del model


def test_a_draft_model_reads_long_prompts_beside_the_model():
    model, draft = fake(n_ubatch=100), Counting(n_ubatch=100)
    generation = drafted_by(draft, model, prompt(450), max_tokens=11, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(450), 11)
    # part by part, all but the last token, which says what is drafted
    assert [step[0] for step in draft.steps[:6]] == [
        *[(100 * i, 100, "none") for i in range(4)],
        (400, 51, "last"),
        (451, 1, "last"),
    ]


def test_a_draft_model_reads_no_prompt_while_drafts_do_not_pay():
    class Doubtful(FixedDepth):
        is_promising = False

    model, draft = fake(), Counting()
    drafter = DraftModel(draft, N_VOCAB, 0.5)
    generation = with_drafter(model, prompt(450), drafter, max_tokens=11, temperature=0)
    generation._work.speculation = TextSpeculation(drafter, Doubtful(0), StepTimes(from_zero=True))
    assert tokens_of(generation) == greedy_after(prompt(450), 11)
    assert draft.steps == []


def test_a_draft_model_with_a_smaller_context():
    model, draft = fake(), Counting(n_ctx=24)
    generation = drafted_by(draft, model, prompt(10), max_tokens=40, temperature=0)
    assert tokens_of(generation) == greedy_after(prompt(10), 40)
    assert max(at + n for step in draft.steps for at, n, _ in step) <= 24
    assert generation.stats.n_accepted > 8


def test_the_next_turn_reads_only_what_is_new():
    model, draft = fake(), Counting()
    first = drafted_by(draft, model, prompt(100), max_tokens=20, temperature=0)
    found = tokens_of(first)
    n = draft.n_computed
    longer = [*prompt(100), *found, 1, 2, 3]
    again = drafted_by(draft, model, longer, max_tokens=20, temperature=0)
    assert tokens_of(again) == greedy_after(longer, 20)
    assert draft.n_computed - n < 30


def test_drafts_of_several_texts_are_made_in_common_steps():
    model, draft = fake(), Counting()
    texts = [drafted_by(draft, model, prompt(10 + i, i), max_tokens=31, temperature=0) for i in range(4)]
    rows = [tokens_of(row) for row in zip(*texts, strict=True)]
    for i in range(4):
        assert [row[i] for row in rows] == greedy_after(prompt(10 + i, i), 31)
    assert sum(len(step) == 4 for step in draft.steps) > len(draft.steps) / 2
    assert sum(len(step) == 4 for step in model.steps) >= 4


def test_shifts_of_a_draft_model():
    for n_ctx in (64, 200):
        model, draft = fake(n_ctx=32), Counting(n_ctx=n_ctx)
        plain = fake(n_ctx=32).generate(
            prompt(20), max_tokens=60, context_shift=True, n_keep=3, temperature=0
        )
        drafted = drafted_by(
            draft, model, prompt(20), max_tokens=60, context_shift=True, n_keep=3, temperature=0
        )
        assert tokens_of(drafted) == tokens_of(plain)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", ["model", "draft"])
def test_interruptions(who, when):
    """At any step, of either model, before or after it has changed its sequence: the text goes on as if nothing was."""
    wanted = greedy_after(prompt(10), 40)
    for at in range(1, 12, 2):
        model, draft = fake(), Counting(lambda text: len(text) % 4 != 0)
        interrupted, steps = model if who == "model" else draft, itertools.count()

        def interrupt(entries, at=at, steps=steps):
            if next(steps) == at:
                raise KeyboardInterrupt

        setattr(interrupted, when, interrupt)
        generation = drafted_by(draft, model, prompt(10), max_tokens=40, temperature=0)
        found = []
        with pytest.raises(KeyboardInterrupt):
            for piece in generation:
                found.append(piece.token)
        found += tokens_of(generation)
        assert found == wanted
        assert 0 < generation.stats.n_accepted < generation.stats.n_drafted


def test_asks_of_one_runner_are_one_step():
    ran = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def run(self, asks):
            ran.append((self.name, [ask.tokens for ask in asks]))
            return [ask.tokens[0] * 10 for ask in asks]

    def drafting(runner, first, n):
        found = []
        for i in range(n):
            found.append((yield Ask(runner, None, [first + i])))
        return found

    a, b = Runner("a"), Runner("b")
    drafts = draft_together([drafting(a, 1, 2), drafting(b, 5, 1), drafting(a, 7, 3), drafting(b, 0, 0)])
    assert drafts == [[10, 20], [50], [70, 80, 90], []]
    assert ran == [("a", [[1], [7]]), ("b", [[5]]), ("a", [[2], [8]]), ("a", [[9]])]


# Vocabularies


def vocabulary(*tokens, types=None):
    found = {"tokenizer.ggml.tokens": list(tokens)}
    return found if types is None else found | {"tokenizer.ggml.token_type": types}


def check(ours, theirs):
    sizes = tuple(len(m.get("tokenizer.ggml.tokens", ())) for m in (ours, theirs))
    check_same_vocabulary(ours, theirs, sizes, "small.gguf")


def test_vocabularies_that_are_the_same():
    check(vocabulary("a", "b"), vocabulary("a", "b"))
    check(vocabulary("a", "b"), vocabulary("a", "b", "[PAD2]", "[PAD3]"))
    check(vocabulary("a", "b", "<x>", types=[1, 1, 5]), vocabulary("a", "b"))
    check({}, {})


def test_vocabularies_that_are_not():
    with pytest.raises(
        ikq.RefusedError, match="small.gguf has another vocabulary: token 1 is 'c', in the model it is 'b'"
    ):
        check(vocabulary("a", "b"), vocabulary("a", "c"))
    for ours, theirs in (("ab", "abc"), ("abc", "ab")):
        with pytest.raises(ikq.RefusedError, match="token 2, 'c', is no padding"):
            check(vocabulary(*ours), vocabulary(*theirs))
    with pytest.raises(ikq.RefusedError, match="not both files have a tokenizer"):
        check(vocabulary("a"), {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookup": True, "mtp": True}, "lookup and mtp: one of them"),
        ({"lookup": -1}, "lookup=-1"),
        ({"draft_max": 0}, "draft_max=0"),
        ({"draft_min": 9}, "draft_min=9: expected 0 to draft_max, 8"),
        ({"draft_p_min": 1.5}, r"draft_p_min=1\.5"),
        ({"draft_p_min": float("nan")}, "draft_p_min=nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Speculation(**options)
    with pytest.raises(ValueError, match=message):
        fake().generate([1], **options)


# How deep


def test_times_of_steps():
    times = StepTimes()
    assert times.estimate(1) is None
    times.add(1, 2.0)
    assert times.estimate(1) == 2.0
    assert times.estimate(3) == pytest.approx(2.4)  # nothing is known of more tokens: a tenth for each
    times.add(5, 4.0)
    assert times.estimate(3) == pytest.approx(3.0)
    assert times.estimate(9) == pytest.approx(6.0)
    times.add(9, 3.0)  # a step over more tokens takes no less: what lies beyond never falls
    assert times.estimate(20) >= times.estimate(9)
    for _ in range(200):
        times.add(1, 4.0)
    # a longer text makes all steps longer
    assert times.estimate(1) == pytest.approx(4.0, rel=0.01)
    assert times.estimate(5) > 5.0
    zero = StepTimes(from_zero=True)
    zero.add(2, 1.0)
    assert (zero.estimate(0), zero.estimate(1), zero.estimate(4)) == (0.0, 0.5, pytest.approx(2.0))


def test_one_disturbed_measurement_does_little():
    times = StepTimes()
    for seconds in (9.0, 1.0, 1.0):
        times.add(1, seconds)
    assert times.estimate(1) == 1.0
    times.add(1, 100.0)
    assert times.estimate(1) < 1.2


class Simulated:
    """Rounds whose times and acceptance are known: a step over n tokens takes 1 + cost * (n - 1)."""

    def __init__(
        self, cost, accepted, draft_cost, *, n_max=8, noise=0.0, seed=0, after=None, offers=1.0, steps=None
    ):
        self.cost, self.accepted, self.draft_cost, self.offers = cost, accepted, draft_cost, offers
        self.noise, self.rng = noise, random.Random(seed)
        self.steps = StepTimes() if steps is None else steps
        self.drafts = StepTimes(from_zero=True)
        self.depth = AdaptiveDepth(n_max, 0, self.steps, self.drafts, after)
        self.n_max = n_max

    def seconds(self, exact):
        return exact * (1 + self.noise * abs(self.rng.gauss(0, 1)))

    def speed(self, n_tokens):
        """Tokens per second of the speed without drafts."""
        done = plain = total = 0
        while done < n_tokens:
            n = self.depth.choose()
            if self.rng.random() > self.offers:
                n = 0
            n_accepted = 0
            while n_accepted < n and self.rng.random() < self.accepted:
                n_accepted += 1
            step, draft = self.seconds(1 + self.cost * n), self.seconds(self.draft_cost * n)
            self.steps.add(1 + n, step)
            self.drafts.add(n, draft)
            self.depth.done(n, n_accepted, step, draft)
            done += n_accepted + 1
            total += step + draft
            plain += sum(self.seconds(1) for _ in range(n_accepted + 1))
        return plain / total

    def best(self):
        """The same of the best fixed depth, in the long run."""
        a = self.accepted
        return max(
            sum(a**i for i in range(n + 1)) / (1 + (self.cost + self.draft_cost) * n)
            for n in range(self.n_max + 1)
        )


COSTS = (0.02, 0.1, 0.3, 0.6, 1.0)
CHANCES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
DRAFT_COSTS = (0.0, 0.1, 0.3, 0.7)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("n_tokens", [128, 512])
def test_speculation_is_never_slower(noise, n_tokens):
    """At least 0.98 of the speed without, however useless drafts are and whatever they cost."""
    for cost, accepted, draft_cost in itertools.product(COSTS, CHANCES, DRAFT_COSTS):
        found = Simulated(cost, accepted, draft_cost, noise=noise, seed=3).speed(n_tokens)
        # both times are sums of so many numbers, whose deviation is 0.6 * noise
        assert found >= 0.98 - 3 * 0.6 * noise * (2 / n_tokens) ** 0.5, (cost, accepted, draft_cost)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_best_depth_is_found(noise):
    for cost, accepted, draft_cost in itertools.product(COSTS[::2], CHANCES[::2], DRAFT_COSTS[::2]):
        simulated = Simulated(cost, accepted, draft_cost, noise=noise)
        assert simulated.speed(3000) >= 0.9 * simulated.best(), (cost, accepted, draft_cost)


def test_drafts_that_fail_are_tried_again():
    simulated = Simulated(0.1, 0.0, 0.05)
    assert simulated.speed(2000) >= 0.98
    simulated.accepted = 0.9
    simulated.speed(500)  # it may have to wait
    assert simulated.speed(1000) >= 0.9 * simulated.best()


@pytest.mark.parametrize("every", [20, 100])
def test_disturbances_do_not_stop_what_pays(every):
    """Now and then another program takes the machine for the time of many steps."""
    simulated = Simulated(0.1, 0.8, 0.05)
    calm, count, rounds = simulated.seconds, itertools.count(1), []
    simulated.seconds = lambda exact: calm(exact) + (50.0 if exact and next(count) % every == 0 else 0.0)
    choose = simulated.depth.choose
    simulated.depth.choose = lambda: rounds.append(choose()) or rounds[-1]
    simulated.speed(3000)
    assert sum(n > 0 for n in rounds) > len(rounds) / 2


def test_looking_in_vain_is_paid_for():
    """A drafter that takes time and proposes nothing."""
    simulated = Simulated(0.1, 0.9, 0.0)
    steps, drafts, depth = simulated.steps, simulated.drafts, simulated.depth
    total = 0.0
    for _ in range(1000):
        draft = 0.2 if depth.choose() else 0.0
        steps.add(1, 1.0)
        drafts.add(0, draft)
        depth.done(0, 0, 1.0, draft)
        total += 1 + draft
    assert total < 1000 / 0.98


def test_a_text_begins_with_what_the_last_one_knew():
    first = Simulated(0.05, 0.9, 0.02)
    first.speed(500)
    second = Simulated(0.05, 0.9, 0.02, after=first.depth, steps=first.steps)
    second.drafts.add(1, 0.02)
    assert second.depth.choose() >= 4
    # and with its doubts
    bad = Simulated(0.5, 0.0, 0.3)
    bad.speed(500)
    speeds = []
    for seed in range(20):
        bad = Simulated(0.5, 0.0, 0.3, after=bad.depth, steps=bad.steps, seed=seed)
        speeds.append(bad.speed(32))
    assert np.mean(speeds) > 0.97


def test_what_must_be_read_before_is_part_of_the_price():
    steps, drafts = StepTimes(), StepTimes(from_zero=True)
    for _ in range(3):
        steps.add(1, 1.0)
    depth = AdaptiveDepth(8, 0, steps, drafts)
    assert depth.choose() > 0
    assert depth.choose(read_seconds=2.0) == 0
    for _ in range(200):
        depth.done(0, 0, 1.0, 0.0)
    assert depth.choose(read_seconds=2.0) > 0
    # and once it was paid there is less for the next one
    depth.done(1, 0, 1.1, 0.0, 2.0)
    assert depth.choose(read_seconds=2.0) == 0


def test_many_texts_at_once_draft_less():
    """Where each token costs the same, the tokens of other texts are the better bet."""
    steps, drafts = StepTimes(), StepTimes(from_zero=True)
    for n in range(1, 80):
        # up to 8 tokens cost little more than one, then each costs as much
        for _ in range(3):
            steps.add(n, 1 + 0.02 * n + max(0, n - 8) * 0.15)
    depth = AdaptiveDepth(8, 0, steps, drafts)
    chosen = {1: [], 8: []}
    for n_texts in chosen:
        for i in range(60):
            n = depth.choose(n_texts)
            depth.done(n, n * (i % 3 != 0), steps.estimate(n_texts * (1 + n)), 0.0)
            chosen[n_texts].append(n)
    assert np.mean(chosen[1][20:]) > 2 * np.mean(chosen[8][20:])
