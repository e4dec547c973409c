"""Drafts of a second model, and which vocabularies and options go together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_models import N_VOCAB, alone, logits_after
from speculation_fakes import (
    READER,
    SpeculativeFake,
    fake,
    greedy_after,
    prompt,
    proposal,
    tokens_of,
    with_drafter,
)

import ikq
from ikq.speculation import (
    Ask,
    DraftModel,
    FixedDepth,
    Speculation,
    StepTimes,
    TextSpeculation,
    check_same_vocabulary,
    draft_together,
)


class Counting(SpeculativeFake):
    """A draft model whose most probable token is the text's model's, or not."""

    def __init__(self, agrees=lambda tokens: True, certain=lambda tokens: True, **options):
        super().__init__(READER, **options)
        self.agrees, self.certain = agrees, certain

    def computed(self, entries):
        texts = [[*s._core._tokens, *tokens] for s, tokens, _ in entries]
        found = super().computed(entries)
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
