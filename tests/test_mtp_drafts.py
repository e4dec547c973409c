"""`Mtp` on a head that computes nothing but notes what it is given: the right pairs, whatever the text does."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from fake_models import Core, hidden_after, logits_after, narrowed, text_of
from speculation_fakes import SpeculativeFake, prompt, tokens_of

import ikq
from ikq.sampling import SamplingOptions
from ikq.speculation import FixedDepth, Mtp, MtpHead, StepTimes, TextSpeculation, draft_together
from ikq.text.generate import Generation

READER = SimpleNamespace(metadata={}, tensors={})


class FakeHead:
    """Stands for the compiled head.

    A hidden state of the model tells its text, so the head can see whether it belongs to the token that it comes with.
    What it gives for them is the hidden state after that text and token, or of a wrong one.

    Attributes:
        steps: Of each entry position, tokens, whether they were drafted by the head itself.
    """

    n_ctx = 1000
    memory = (0, 0, 0)

    def __init__(self, is_right=lambda text: True, refuses=0):
        self.is_right, self.refuses = is_right, refuses
        self.steps, self.made, self.n_head = [], [], 0

    def new_sequence(self, lora=()):
        self.made.append(Core())
        return self.made[-1]

    def step(self, entries):
        if self.refuses:
            self.refuses -= 1
            raise ikq.RefusedError("no memory")
        found, noted = [], []
        for core, tokens, want, hidden in entries:
            assert hidden.dtype == np.float32
            assert hidden.flags.c_contiguous
            assert len(hidden) == len(tokens) > 0
            texts = [text_of(row) for row in hidden]
            noted.append(
                (
                    core.n_past,
                    [(len(text) - 1, token) for text, token in zip(texts, tokens, strict=True)],
                    want,
                )
            )
            core.add(tokens)
            found.append(
                None
                if want == "none"
                else np.stack([self.after(t, x) for t, x in zip(texts, tokens, strict=True)])
            )
        self.steps.append(noted)
        return found

    def after(self, text, token):
        told = [*text, token]
        return hidden_after(told if self.is_right(told) else [*told[:-1], (token + 1) % 40])

    def head(self, hidden):
        self.n_head += 1
        return np.stack([logits_after(text_of(row)) * 10 for row in hidden])

    def head_best(self, hidden, n):
        best = narrowed(self.head(hidden), n)
        return np.stack([x.ids for x in best]), np.stack([x.logits for x in best])

    def set_collector(self, collector):
        pass

    def close(self):
        pass


def made(head):
    return MtpHead(head, SimpleNamespace(output=object(), n_embd=600), head)


def with_head(model, tokens, head, depth=3, p_min=0.0, **options):
    limits = {
        k: options.pop(k) for k in list(options) if k in ("max_tokens", "context_shift", "n_keep", "sequence")
    }
    speculation = TextSpeculation(Mtp(head, p_min), FixedDepth(depth), StepTimes(from_zero=True))
    return Generation(
        model,
        list(tokens),
        options=SamplingOptions(**options),
        tokenizer=None,
        speculation=speculation,
        **limits,
    )


def check_pairs(head, text, first=0):
    """Every position's token and hidden state belong together, and positions come in order."""
    for step in head.steps:
        for at, pairs, _ in step:
            for i, (last, token) in enumerate(pairs):
                # position i of the head holds the token i + 1, and the state after token i
                assert last == first + at + i
                assert last + 1 >= len(text) or token == text[last + 1] or len(pairs) == 1


def fake(**options):
    return SpeculativeFake(READER, **options)


def plain(tokens, n, **options):
    return tokens_of(fake().generate(tokens, max_tokens=n, **options))


def test_a_head_that_is_always_right():
    model, core = fake(), FakeHead()
    generation = with_head(model, prompt(10), made(core), max_tokens=21, temperature=0)
    found = tokens_of(generation)
    assert found == plain(prompt(10), 21, temperature=0)
    text = [*prompt(10), *found]
    check_pairs(core, text)
    # after the prompt and its first token the head reads ten positions and goes on with what it says itself; after four
    # more tokens, three of which it knew, it reads those anew, with the model's hidden states
    assert [(at, len(pairs)) for step in core.steps for at, pairs, _ in step[:1]][:6] == [
        (0, 10), (10, 1), (11, 1), (10, 4), (14, 1), (15, 1)
    ]  # fmt: skip
    assert generation.stats.n_drafted == generation.stats.n_accepted == 15
    # prompts and texts are computed once, and hidden states are asked for everywhere
    assert {want for step in model.steps for _, _, want in step} == {"hidden"}
    assert model.n_computed == 10 + 20
    assert core.steps[3][0][1] == [(i, text[i + 1]) for i in range(10, 14)]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}])
@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_head_that_is_sometimes_right(period, options):
    model, core = fake(), FakeHead(lambda text: len(text) % period != 0)
    generation = with_head(model, prompt(10), made(core), max_tokens=60, **options)
    found = tokens_of(generation)
    assert found == plain(prompt(10), 60, **options)
    # one of 40 tokens is right by chance
    assert (generation.stats.n_accepted < 5) == (period == 1)
    for step in core.steps:
        for _, pairs, _ in step:
            assert len(pairs) == 1 or all(token == [*prompt(10), *found][last + 1] for last, token in pairs)


def test_long_prompts_do_not_pile_up():
    """Hidden states of a prompt are read part by part, without logits."""
    model, core = fake(n_ubatch=100), FakeHead()
    generation = with_head(model, prompt(450), made(core), max_tokens=5, temperature=0)
    found = tokens_of(generation)
    assert found == plain(prompt(450), 5, temperature=0)
    check_pairs(core, [*prompt(450), *found])
    reads = [(at, len(pairs), want) for step in core.steps for at, pairs, want in step]
    assert reads[:4] == [(100 * i, 100, "none") for i in range(4)]
    assert core.n_head == sum(any(want == "hidden" for *_, want in step) for step in core.steps)


def test_without_drafts_the_head_reads_now_and_then():
    model, core = fake(), FakeHead()
    generation = with_head(model, prompt(10), made(core), depth=0, max_tokens=200, temperature=0)
    found = tokens_of(generation)
    assert found == plain(prompt(10), 200, temperature=0)
    assert [(at, len(pairs), want) for step in core.steps for at, pairs, want in step] == [
        (64 * i, 64, "none") for i in range(3)
    ]
    check_pairs(core, [*prompt(10), *found])


def test_the_next_turn_goes_on_where_the_last_one_was():
    model, core = fake(), FakeHead()
    head = made(core)
    first = with_head(model, prompt(100), head, max_tokens=20, temperature=0)
    longer = [*prompt(100), *tokens_of(first), 1, 2, 3]
    del core.steps[:]
    again = with_head(model, longer, head, max_tokens=9, temperature=0)
    found = tokens_of(again)
    assert found == plain(longer, 9, temperature=0)
    assert again.stats.n_reused >= 100
    # the head's past has no gap, so its positions are the text's
    check_pairs(core, [*longer, *found])
    assert core.steps[0][0][0] > 90
    # a text that differs early begins there, or anew
    other = [*prompt(50), 1, 2, 3]
    del core.steps[:]
    found = tokens_of(with_head(model, other, head, max_tokens=9, temperature=0))
    assert found == plain(other, 9, temperature=0)
    check_pairs(core, [*other, *found])


def test_texts_that_share_a_beginning_whose_states_are_not_there():
    """The head begins where the model did."""
    model, core = fake(), FakeHead()
    shared = prompt(80)
    list(model.generate(shared, max_tokens=2, temperature=0))
    generation = with_head(model, [*shared, 5, 6], made(core), max_tokens=9, temperature=0)
    found = tokens_of(generation)
    assert found == plain([*shared, 5, 6], 9, temperature=0)
    assert generation.stats.n_reused == 80
    check_pairs(core, [*shared, 5, 6, *found], first=80)
    assert generation.stats.n_accepted > 0


def test_several_texts_with_a_head():
    model, core = fake(), FakeHead()
    head = made(core)
    texts = [with_head(model, prompt(10 + i, i), head, max_tokens=41, temperature=0) for i in range(3)]
    rows = [tokens_of(row) for row in zip(*texts, strict=True)]
    for i in range(3):
        assert [row[i] for row in rows] == plain(prompt(10 + i, i), 41, temperature=0)
    assert sum(len(step) == 3 for step in core.steps) > len(core.steps) / 2


@pytest.mark.parametrize("n_keep", [0, 5])
def test_context_shifts(n_keep):
    limits = {"max_tokens": 100, "context_shift": True, "n_keep": n_keep}
    wanted = fake(n_ctx=40).generate(prompt(20), **limits, temperature=0)
    found = with_head(fake(n_ctx=40), prompt(20), made(FakeHead()), **limits, temperature=0)
    assert tokens_of(found) == tokens_of(wanted)
    assert found.tokens == wanted.tokens


def test_a_sequence_that_is_changed_meanwhile():
    """The model computes again what is missing, and the head hears of it."""
    rng = random.Random(3)
    model, core = fake(), FakeHead()
    sequence = model.new_sequence()
    generation = with_head(model, prompt(30), made(core), max_tokens=60, temperature=0, sequence=sequence)
    found = []
    for piece in generation:
        found.append(piece.token)
        if rng.randrange(5) == 0:
            sequence._core.truncate(rng.randrange(30))
            sequence._version += 1
    assert found == plain(prompt(30), 60, temperature=0)


def test_a_draft_ends_where_the_head_is_not_sure():
    class Unsure(FakeHead):
        def head(self, hidden):
            logits = super().head(hidden)
            for row, after in zip(logits, hidden, strict=True):
                row *= len(text_of(after)) % 3 != 0
            return logits

    model = fake()
    generation = with_head(
        model, prompt(10), made(Unsure()), depth=8, p_min=0.5, max_tokens=40, temperature=0
    )
    assert tokens_of(generation) == plain(prompt(10), 40, temperature=0)
    assert generation.stats.n_drafted == generation.stats.n_accepted > 10
    assert max(n for step in model.steps[1:] for _, n, _ in step) == 3


def test_memory_that_is_short_is_taken_from_what_is_kept():
    model, core = fake(), FakeHead()
    head = made(core)
    tokens_of(with_head(model, prompt(10), head, max_tokens=5, temperature=0))
    core.refuses = 1
    assert len(tokens_of(with_head(model, prompt(11), head, max_tokens=5, temperature=0))) == 5
    core.refuses = 2
    with pytest.raises(ikq.RefusedError, match="no memory"):
        tokens_of(with_head(model, prompt(12), head, max_tokens=5, temperature=0))


def test_nothing_is_drafted_before_anything_is_known():
    drafter = Mtp(made(FakeHead()), 0.0)
    assert draft_together([drafter.propose([1, 2, 3], 4)]) == [[]]
    drafter.keep(2)
    drafter.shift(0, 1)
    drafter.close()
