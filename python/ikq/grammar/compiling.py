"""From a schema or grammar to a constraint: `compile_constraint`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ikq.errors import GrammarError
from ikq.grammar.blame import blamed, failure
from ikq.grammar.constraint import GrammarConstraint
from ikq.grammar.gbnf_lark import lark_of_gbnf
from ikq.grammar.schema import compact, prepared
from ikq.grammar.vocabulary import library, words_of
from ikq.tokenizer import Tokenizer

__all__ = ["compile_constraint", "compile_lark"]

# the compiler follows rules and references in depth, and its stack has an end
_MOST_RULES = 1000
# ... and characters, which take a second or two to read
_MOST_TEXT = 200_000
_RULE = re.compile(r"^[?!]*[A-Za-z_]\w*[^:\n]*:", re.MULTILINE)


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
    for name, text in (("grammar", gbnf), ("regular expression", regex), ("grammar", lark)):
        if text is not None and len(text) > _MOST_TEXT:
            raise GrammarError(f"the {name} has {len(text)} characters, more than {_MOST_TEXT}")
    try:
        "".join(text for text in (gbnf, regex, lark) if text is not None).encode()
    except UnicodeEncodeError as e:
        raise GrammarError(
            f"the text of a grammar is not Unicode: half a surrogate pair at {e.start}"
        ) from None
    matcher = library()
    if json_object:
        json_schema = {"type": "object"}
    schema = None if json_schema is None else prepared(json_schema)
    if schema is not None:
        grammar = matcher.grammar_from_json_schema(json.dumps(compact(schema)))
    elif regex is not None:
        grammar = matcher.grammar_from_regex(regex)
    else:
        text = lark_of_gbnf(gbnf) if gbnf is not None else str(lark)
        if len(_RULE.findall(text)) > _MOST_RULES:
            raise GrammarError(f"the grammar has more than {_MOST_RULES} rules")
        grammar = matcher.grammar_from_lark(text)
    try:
        return GrammarConstraint.of(words_of(tokenizer), grammar)
    except GrammarError as e:
        if schema is not None and (message := failure(schema)):
            raise blamed(schema, message) from None
        raise GrammarError(
            f"{_NAMES.get(kinds[0], 'the grammar')} cannot be compiled: {_short(str(e))}"
        ) from None


def compile_lark(tokenizer: Tokenizer, lark: str) -> GrammarConstraint:
    """A constraint by a grammar of our own making, which may have any number of rules.

    Raises:
        GrammarError: it is too large.
    """
    try:
        return GrammarConstraint.of(words_of(tokenizer), library().grammar_from_lark(lark))
    except GrammarError as e:
        raise GrammarError(f"the grammar cannot be compiled: {_short(str(e))}") from None


_NAMES = {"json_schema": "the JSON schema", "json_object": "JSON", "regex": "the regular expression"}


def _short(message: str) -> str:
    """The first line of a message, and the reason that patterns have further below."""
    if "symbols.len()" in message or "grammar size" in message:
        return "it is too large"
    lines = message.splitlines() or ["no reason is known"]
    reason = next((line for line in lines if line.startswith("error: ")), "")
    return f"{lines[0]} {reason.removeprefix('error: ')}".strip()
