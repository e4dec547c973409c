"""From a schema or grammar to a constraint: `compile_constraint`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ikq.errors import GrammarError
from ikq.grammar.constraint import GrammarConstraint
from ikq.grammar.gbnf_lark import lark_of_gbnf
from ikq.grammar.schema import compact, prepared
from ikq.grammar.vocabulary import library, words_of
from ikq.tokenizer import Tokenizer

__all__ = ["compile_constraint"]


def compile_constraint(
    tokenizer: Tokenizer,
    *,
    json_schema: Mapping[str, Any] | bool | None = None,
    json_object: bool = False,
    gbnf: str | None = None,
    regex: str | None = None,
    lark: str | None = None,
) -> GrammarConstraint:
    r"""A constraint on a text of a model; exactly one of the keywords says which.

    Args:
        tokenizer: Of the model.
        json_schema: The text is JSON that is valid under this schema.
        json_object: The text is a JSON object.
        gbnf: A grammar in llama.cpp's notation, which begins with `root`.
        regex: A regular expression of the whole text.
        lark: A grammar in Lark's notation as llguidance reads it, which begins with `start`.

    Raises:
        GrammarError: it cannot be compiled; the message names the keyword and its place.
        UnsupportedError: llguidance is not installed.
        ValueError: none of them or several are given.

    Examples:
        >>> import ikq
        >>> from ikq.grammar import compile_constraint
        >>> tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader("tests/data/tiny-moe-bf16.gguf"))
        >>> constraint = compile_constraint(tokenizer, regex="[0-9]+")
        >>> constraint.n_allowed(tokenizer.encode("12a")), constraint.is_complete
        (2, False)
    """
    given = {
        "json_schema": json_schema,
        "json_object": json_object or None,
        "gbnf": gbnf,
        "regex": regex,
        "lark": lark,
    }
    kinds = [kind for kind, value in given.items() if value is not None]
    if len(kinds) != 1:
        raise ValueError(f"one of {', '.join(given)} is needed, not {' and '.join(kinds) or 'none'}")
    matcher = library()
    if json_object:
        grammar = matcher.grammar_from_json_schema(json.dumps(compact({"type": "object"})))
    elif json_schema is not None:
        grammar = matcher.grammar_from_json_schema(json.dumps(compact(prepared(json_schema))))
    elif regex is not None:
        grammar = matcher.grammar_from_regex(regex)
    else:
        grammar = matcher.grammar_from_lark(lark_of_gbnf(gbnf) if gbnf is not None else str(lark))
    try:
        return GrammarConstraint.of(words_of(tokenizer), grammar)
    except GrammarError as e:
        raise _explained(kinds[0], str(e)) from None


_NAMES = {"json_schema": "the JSON schema", "gbnf": "the grammar", "regex": "the regular expression"}


def _explained(kind: str, message: str) -> GrammarError:
    """An error of the library, told as ours."""
    from ikq.grammar.schema import explained

    if kind == "json_schema":
        return explained(message)
    name = _NAMES.get(kind, "the grammar")
    return GrammarError(f"{name} cannot be compiled: {message.splitlines()[0] if message else 'no reason'}")
