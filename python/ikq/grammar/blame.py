"""Which keyword of a JSON schema is at fault, and where: `blamed`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from ikq.errors import GrammarError
from ikq.grammar.schema import inner_schemas, place_of
from ikq.grammar.vocabulary import library

__all__ = ["blamed", "failure"]

# a schema of more parts is searched only so far
_MOST_TRIALS = 300

_WAYS_OUT = (
    ("oneOf constraints", "its alternatives may be valid together; use `anyOf`"),
    ("is not present in a registry", "it refers to what is not in this schema; bring it in as `$defs`"),
    ("patternProperty", "its patterns match the same names"),
    ("Unsatisfiable", "no text fulfils it"),
)
_REASON = re.compile(r"^error: (.*)$", re.MULTILINE)


def failure(schema: Mapping[str, Any]) -> str:
    """What the compiler says about a schema; nothing if it compiles."""
    matcher = library()
    grammar = matcher.grammar_from_json_schema(json.dumps(schema))
    failed, messages = matcher.validate_grammar_with_warnings(grammar)
    return messages[0] if failed else ""


def blamed(schema: Mapping[str, Any], message: str) -> GrammarError:
    """An error that names the keyword and its place.

    They are found by trying: the innermost schema that fails in the same way, and the keyword without which
    it does not.

    Args:
        schema: One that does not compile.
        message: What the compiler says about it.
    """
    trials = itertools.count()
    place, inner = "", dict(schema)
    while (deeper := _deeper(inner, message, trials)) is not None:
        step, inner = deeper
        place += step
    # what the message speaks of comes first
    keys = sorted(inner.keys() - {"$defs"}, key=lambda key: (key not in message, key))
    keyword = next((key for key in keys if _without(inner, key, message, trials)), None)
    found = _REASON.search(message)
    reason = found.group(1) if found else message.splitlines()[0]
    way_out = next((f"{way} ({reason})" for sign, way in _WAYS_OUT if sign in message), reason)
    if keyword is None:
        return GrammarError(
            f"the JSON schema cannot be compiled at {place or '/'}: {way_out}", place=place or "/"
        )
    at = place_of(place, keyword)
    text = f"the JSON schema cannot be compiled for its keyword `{keyword}` at {at}: {way_out}"
    return GrammarError(text, keyword=keyword, place=at)


def _deeper(
    schema: dict[str, Any], message: str, trials: itertools.count[int]
) -> tuple[str, dict[str, Any]] | None:
    """A schema within a schema that fails in the same way, and the way to it."""
    for key, inside, inner in inner_schemas(dict(schema)):
        if next(trials) < _MOST_TRIALS and failure(inner) == message:
            return place_of("", key, inside), dict(inner)
    return None


def _without(schema: dict[str, Any], key: str, message: str, trials: itertools.count[int]) -> bool:
    """Whether a schema does not fail in this way without a keyword."""
    rest = {name: value for name, value in schema.items() if name != key}
    return next(trials) < _MOST_TRIALS and failure(rest) != message
