"""Steps that want only the largest logits, against all logits of the same device; and greedy texts from either."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

import ikq
from ikq import _ikq
from ikq.inference.sequence import Best
from ikq.sampling import Candidates, Sampler


def largest(row, n):
    """Ids of the largest, and their logits."""
    ids = np.argsort(-row, kind="stable")[:n]
    return ids, row[ids]


def check(found, rows, n):
    """Whether candidates are the largest of all logits, the same bits in the same order."""
    assert len(found) == len(rows)
    for candidates, row in zip(found, rows, strict=True):
        assert isinstance(candidates, Candidates)
        assert candidates.is_sorted
        ids, logits = largest(row, n)
        assert candidates.ids.tolist() == ids.tolist()
        assert candidates.logits.tobytes() == logits.tobytes()


def check_steps(model, ids, n_rounds=4):
    """Several sequences that want different things in one step, which comes again and again: graphs are replayed."""
    names = ("last", "one", "five", "draft", "hidden", "none", "most")
    wants = {
        "last": "last",
        "one": Best(1),
        "five": Best(5),
        "draft": Best(3, each=True),
        "hidden": "hidden",
        "none": "none",
        "most": Best(_ikq.MOST_BEST),
    }
    texts = {name: model.new_sequence() for name in names}
    for i, (name, text) in enumerate(texts.items()):
        model.step([(text, [ids[i], ids[0]], "none")])
        assert text.n_past == 2, name
    for i in range(n_rounds):
        parts = {name: ids[i + j : i + j + 1] for j, name in enumerate(names)}
        parts["draft"] = ids[i : i + 2]
        plain = [(texts[name].fork(), parts[name], "all") for name in names]
        rows = dict(zip(names, model.step(plain), strict=True))
        entries = [(texts[name], parts[name], wants[name]) for name in names]
        found = dict(zip(names, model.step(entries), strict=True))
        assert found["none"] is None
        assert np.array_equal(found["last"], rows["last"])
        assert found["hidden"].shape == (1, model.spec.n_embd)
        for name in ("one", "five", "draft", "most"):
            check(found[name], rows[name], wants[name].n)
        # only such as want them: other shapes
        for name in ("one", "draft"):
            fork = texts[name].fork()
            (all_,) = model.step([(texts[name].fork(), ids[:2], "all")])
            (best,) = model.step([(fork, ids[:2], wants[name])])
            check(best, all_ if wants[name].each else all_[-1:], wants[name].n)


def check_prompts(model, ids):
    """Of a prompt that is cut into pieces, after the last token and after each."""
    (rows,) = model.step([(model.new_sequence(), ids, "all")])
    (last,) = model.step([(model.new_sequence(), ids, Best(4))])
    (each,) = model.step([(model.new_sequence(), ids, Best(4, each=True))])
    check(last, rows[-1:], 4)
    check(each, rows, 4)


def check_heads(model, ids):
    """Of hidden states that come back, as heads for further tokens and those who draft with them ask."""
    for n_states in (1, len(ids)):
        (hidden,) = model.step([(model.new_sequence(), ids[:n_states], "hidden")])
        rows = model._head(hidden)
        for n in (1, 5, _ikq.MOST_BEST):
            check(model._head_best(hidden, n), rows, n)
    for n in (0, _ikq.MOST_BEST + 1):
        with pytest.raises(ikq.RefusedError, match="1 to 64 can be wanted"):
            model._head_best(hidden, n)


@contextmanager
def from_all_logits():
    """Texts are chosen from all logits meanwhile."""
    enough = Sampler._enough
    Sampler._enough = lambda self: None
    try:
        yield
    finally:
        Sampler._enough = enough


def texts(model, prompts, **options):
    """Tokens of texts that are generated at the same time, and the bytes that came from devices meanwhile."""
    before = _ikq.cuda_counts()["bytes_out"]
    generations = [model.generate(prompt, **options) for prompt in prompts]
    found = [[] for _ in prompts]
    while not all(g.is_over for g in generations):
        for tokens, generation in zip(found, generations, strict=True):
            tokens += [piece.token for piece in [next(generation, None)] if piece is not None]
    model._batcher.forget()
    return found, _ikq.cuda_counts()["bytes_out"] - before


def twins(changed):
    """Makes every other row of the output matrix the same as the one before: all logits come in equal pairs."""
    name = "output.weight" if "output.weight" in changed.tensors else "token_embd.weight"
    rows = changed.array(name).copy()
    rows[1::2] = rows[::2]
    changed.add("output.weight", rows)
    return changed


def too_large(changed):
    """Makes one logit infinite, wherever the text goes: its row is huge."""
    name = "output.weight" if "output.weight" in changed.tensors else "token_embd.weight"
    rows = changed.array(name).copy()
    rows[77] = np.where(rows[77] < 0, -3e38, 3e38)
    changed.add("output.weight", rows)
    return changed


def errors(model, ids):
    """What is said of logits that are not finite, for all that may be wanted."""
    said = []
    for want in ("last", Best(1), Best(9), Best(2, each=True)):
        try:
            model.step([(model.new_sequence(), ids, want)])
        except ikq.FormatError as error:
            said.append(str(error))
    return said
