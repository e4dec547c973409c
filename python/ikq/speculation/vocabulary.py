"""Which models can draft for which: those whose tokens mean the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ikq.errors import RefusedError
from ikq.tokenizer.vocab import TokenType

__all__ = ["check_same_vocabulary"]

# What converters call tokens that stand for nothing.
_PADDING = re.compile(r"\[PAD\d+\]")
_WAY_OUT = "take a smaller model of the same family"


def check_same_vocabulary(
    metadata: Mapping[str, Any],
    draft: Mapping[str, Any],
    n_vocab: tuple[int, int],
    name: str = "the draft model",
) -> None:
    """Refuses a draft model whose tokens are others.

    One of them may have more tokens than the other at the end, if they are padding.

    Args:
        metadata: Of the text's model.
        draft: Of the draft model.
        n_vocab: Tokens of both.
        name: What the message calls the draft model.

    Raises:
        RefusedError: the vocabularies differ; the message names the first token that does.
    """
    ours, theirs = (m.get("tokenizer.ggml.tokens") for m in (metadata, draft))
    if ours is None and theirs is None and n_vocab[0] == n_vocab[1]:
        return
    if ours is None or theirs is None:
        raise RefusedError(
            f"{name} cannot draft: not both files have a tokenizer; they have {n_vocab[1]} and {n_vocab[0]} "
            "tokens"
        )
    for token, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            raise RefusedError(
                f"{name} has another vocabulary: token {token} is {b!r:.60}, in the model it is {a!r:.60}; "
                f"{_WAY_OUT}"
            )
    n = min(len(ours), len(theirs))
    for texts, m in ((ours, metadata), (theirs, draft)):
        types = m.get("tokenizer.ggml.token_type") or ()
        for token, text in enumerate(texts[n:], n):
            is_unused = token < len(types) and types[token] == TokenType.UNUSED
            if not is_unused and not _PADDING.fullmatch(text):
                raise RefusedError(
                    f"{name} has another vocabulary, {len(theirs)} tokens where the model has {len(ours)}: "
                    f"token {token}, {text!r:.60}, is no padding; {_WAY_OUT}"
                )
