"""Random texts that a constraint allows."""

import random

import numpy as np

from ikq.grammar.vocabulary import is_special


def walk(constraint, tokenizer, seed, *, n_free=20, n_most=400, closing=('"', "}", "]")):
    """Tokens that a constraint allows one after the other, until it lets the text end.

    After `n_free` tokens texts that close something are preferred, so that it comes to an end.
    """
    random_ = random.Random(seed)
    ends = np.array(sorted(tokenizer.end_ids))
    special = np.array([is_special(tokenizer, t) for t in range(tokenizer.n_vocab)])
    closers = [tokenizer.encode(text, parse_special=True) for text in closing]
    tokens = []

    def accept(token):
        assert constraint.n_allowed([token]) == 1
        constraint.accept(token)
        tokens.append(token)

    while not constraint.must_stop and len(tokens) < n_most:
        mask = constraint.mask()
        allowed = np.ones(tokenizer.n_vocab, bool) if mask is None else mask.copy()
        assert allowed.any()
        assert allowed[ends].all() == allowed[ends].any() == constraint.is_complete
        if constraint.is_complete and (len(tokens) >= n_free or random_.random() < 0.2):
            break
        allowed[ends] = False
        if len(tokens) >= n_free:
            fitting = [ids for ids in closers if constraint.n_allowed(ids) == len(ids)]
            closer = random_.choice(fitting) if fitting else None
            if closer is not None:
                for token in closer:
                    accept(token)
                continue
        ids = np.flatnonzero(allowed & ~special)
        if not len(ids):
            ids = np.flatnonzero(allowed)
        if not len(ids):
            break
        accept(int(random_.choice(list(ids))))
    return tokens


def text_of(tokenizer, tokens):
    """What a reader sees of tokens, control tokens included."""
    return b"".join(tokenizer.token_bytes(t) for t in tokens).decode(errors="replace")
