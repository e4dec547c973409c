"""JSON schemas before they are compiled: what is rewritten, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ikq.errors import GrammarError

__all__ = ["compact", "inner_schemas", "place_of", "prepared"]

_UNSUPPORTED = (
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "not",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
)
# where schemas stand in a schema: one, a list of them, or some by name
_ONE = ("additionalProperties", "items", "additionalItems", "not", "contains", "if", "then", "else",
        "propertyNames", "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties",
           "minContains", "maxContains")  # fmt: skip
# those that are enforced; others say something about a text without limiting it
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)

Schema = dict[str, Any]


def prepared(schema: Mapping[str, Any] | bool, *, lenient: bool = False) -> Schema:
    """A schema that means the same, without what the compiler stumbles over although it limits nothing.

    Args:
        schema: As given; it is not changed.
        lenient: What cannot be enforced is left out, so that more is valid than should be.

    Raises:
        GrammarError: it has a keyword that cannot be enforced; the message names it and its place.
    """
    if isinstance(schema, bool):
        if not schema:
            raise GrammarError(
                "the JSON schema is `false`, which no text fulfils", keyword="false", place="/"
            )
        return {}
    if not isinstance(schema, Mapping):
        raise GrammarError(f"a JSON schema is an object, not {schema!r:.40}", place="/")
    return _prepared(schema, "", lenient)


def compact(schema: Mapping[str, Any]) -> Schema:
    """A schema with white space between the parts of its texts kept short: some models never end it."""
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}


_WHITE_SPACE = "[ \\t\\n\\r]{1,40}"


def _prepared(schema: Mapping[str, Any], place: str, lenient: bool) -> Schema:
    """The same for a schema within one, which stands at `place`."""
    result = _without_idle(dict(schema))
    for keyword in _UNSUPPORTED:
        if keyword in result and not lenient:
            raise _refused(keyword, place)
        result.pop(keyword, None)
    if "x-guidance" in result:  # it would change how the schema is read
        if not lenient:
            raise _refused("x-guidance", place)
        del result["x-guidance"]
    for name in _COUNTS:
        value = result.get(name)
        if isinstance(value, float) and value.is_integer():
            result[name] = int(value)
    for key, inside, inner in inner_schemas(result):
        changed = _prepared(inner, place_of(place, key, inside), lenient)
        if inside is None:
            result[key] = changed
        else:
            result[key][inside] = changed
    return result


def _without_idle(schema: Schema) -> Schema:
    """Without keywords that limit nothing where they stand."""
    if "if" not in schema or not {"then", "else"} & schema.keys():
        for name in ("if", "then", "else"):
            schema.pop(name, None)
    if "contains" not in schema:
        schema.pop("minContains", None)
        schema.pop("maxContains", None)
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]
    for name in ("unevaluatedProperties", "unevaluatedItems", "propertyNames"):
        if schema.get(name) is True:
            del schema[name]
    if isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS:
        del schema["format"]
    return schema


def inner_schemas(schema: Schema) -> Iterator[tuple[str, str | int | None, Mapping[str, Any]]]:
    """Schemas within a schema: keyword, name or place below it, schema.

    Lists and mappings on the way are copied into `schema`, so that they can be changed there.
    """
    for key in list(schema):
        value = schema[key]
        if key in _ONE and isinstance(value, Mapping):
            yield key, None, value
        elif key in _LISTS and isinstance(value, list):
            schema[key] = list(value)
            yield from ((key, i, v) for i, v in enumerate(value) if isinstance(v, Mapping))
        elif key in _NAMED and isinstance(value, Mapping):
            schema[key] = dict(value)
            yield from ((key, name, v) for name, v in value.items() if isinstance(v, Mapping))


def place_of(place: str, *steps: str | int | None) -> str:
    """The JSON pointer to what is so many steps below a place."""
    names = [str(step).replace("~", "~0").replace("/", "~1") for step in steps if step is not None]
    return "/".join([place, *names])


def _refused(keyword: str, place: str) -> GrammarError:
    at = place_of(place, keyword)
    return GrammarError(
        f"the JSON schema has the keyword `{keyword}` at {at}, which cannot be enforced; leave it out, or "
        "say it in another way",
        keyword=keyword,
        place=at,
    )
