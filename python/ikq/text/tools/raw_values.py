"""Arguments that are texts between tags, as regular expressions: what a schema says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ikq.errors import GrammarError
from ikq.grammar.blame import failure
from ikq.text.tools.values import is_text

__all__ = ["check_enforced", "is_limited", "text_patterns"]

_ANY = "(?s:.*)"
# what of a text's schema is enforced, beside `enum`, and what else may limit it
_LENGTHS = ("minLength", "maxLength")
_REFUSED = ("format", "allOf", "anyOf", "oneOf", "$ref")
# what limits the arguments together; each of them stands for itself between tags
_TOGETHER = ("allOf", "anyOf", "oneOf", "$ref", "enum", "const", "patternProperties", "minProperties",
             "maxProperties")  # fmt: skip


def check_enforced(schema: Mapping[str, Any]) -> None:
    """Finds out whether arguments between tags can be kept to a function's schema.

    Args:
        schema: Of the arguments together; it can be compiled as JSON.

    Raises:
        GrammarError: they cannot; it names the keyword and its place.
    """
    for keyword in _TOGETHER:
        if keyword in schema:
            raise _refused(keyword, "")
    properties = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in properties:
            raise _refused("required", "")
    for name, inner in properties.items():
        place = f"/properties/{name}"
        if inner is False:
            raise _refused("false", place)
        if not isinstance(inner, Mapping) or not is_text(schema, name, {}):
            continue
        values = "enum" in inner or "const" in inner
        for keyword in (*_REFUSED, *((*_LENGTHS, "pattern") if values else ())):
            if keyword in inner:
                raise _refused(keyword, place)
        if "pattern" in inner and not values and _searched(inner["pattern"]) is None:
            raise _refused("pattern", place)


def is_limited(schema: Mapping[str, Any]) -> bool:
    """Whether a schema of no type says anything of a value."""
    return bool(schema.keys() - {"title", "description", "default", "examples", "$defs", "definitions"})


def text_patterns(schema: Mapping[str, Any]) -> list[str]:
    """Regular expressions that a text has to match as a whole, all of them; none: it may be anything."""
    patterns = []
    low, high = (schema.get(name) for name in _LENGTHS)
    if low or high is not None:
        patterns.append(f"(?s:.{{{low or 0},{'' if high is None else high}}})")
    if isinstance(schema.get("pattern"), str) and (searched := _searched(schema["pattern"])) is not None:
        patterns.append(searched)
    return patterns


def _refused(keyword: str, place: str) -> GrammarError:
    at = f"{place}/{keyword}"
    return GrammarError(
        f"the JSON schema has the keyword `{keyword}` at {at}, which cannot be enforced in arguments between "
        "tags, as this model writes them; leave it out, or say it in another way",
        keyword=keyword,
        place=at,
    )


def _searched(pattern: str) -> str | None:
    """A pattern that is found somewhere in a text as one that is all of it; `None`: there is none."""
    alternatives = []
    for alternative in _alternatives(pattern):
        begin, end = "" if alternative.startswith("^") else _ANY, _ANY
        if re.search(r"(?<!\\)(?:\\\\)*\$\Z", alternative):
            alternative, end = alternative[:-1], ""
        alternative = alternative.removeprefix("^")
        if any(part in ("^", "$") for part in _parts(alternative)):
            return None
        alternatives.append(f"{begin}(?:{alternative}){end}")
    whole = f"(?:{'|'.join(alternatives)})"
    return None if failure({"type": "string", "pattern": f"^{whole}$"}) else whole.replace("/", "\\/")


def _alternatives(pattern: str) -> list[str]:
    """What the bars outside of groups part."""
    found, depth = [""], 0
    for part in _parts(pattern):
        depth += (part == "(") - (part == ")")
        if part == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += part
    return found


def _parts(pattern: str) -> Iterator[str]:
    """Escapes, classes and all other characters of a pattern."""
    yield from re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", pattern, re.DOTALL)
